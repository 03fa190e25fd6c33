"""Read tool definitions of every common kind: a name, the text to encode, and a JSON-schema form to save."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from manyvec.errors import InputError, check_unicode
from manyvec.tools.bm25 import split_name

Tool: TypeAlias = Mapping[str, Any] | Callable[..., Any]


def read_tool(tool: Any) -> tuple[str, str]:
    """Return the name of a tool and the text that stands for it in a search.

    The text holds the name, as written and split into words, the description, and the names and descriptions of all
    arguments.

    Raises:
        InputError: The object is no tool of a known kind, or it has no name.
    """
    schema = to_schema(tool)
    if isinstance(inner := schema.get("function"), Mapping):
        schema = inner
    name, description = schema.get("name"), schema.get("description") or ""
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a tool needs a name, got {name!r} with the keys {sorted(map(str, schema))}")
    if not isinstance(description, str):
        raise InputError(f"tool {name!r}: the description must be a string, got {type(description).__name__}")
    words = " ".join(split_name(name))
    parameters: Any = next(
        (schema[key] for key in ("parameters", "input_schema", "inputSchema") if schema.get(key)), {}
    )
    parts = [name if words == name else f"{name} {words}", description.strip(), "; ".join(_arguments(parameters))]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    check_unicode(text, f"tool {name!r}")
    return name, text


def to_schema(tool: Any) -> Mapping[str, Any]:
    """Return the tool as a JSON-schema tool; a dict is returned unchanged.

    Raises:
        InputError: The object is no tool of a known kind.
    """
    if isinstance(tool, Mapping):
        return tool
    # The MCP SDK's Tool: `inputSchema` in version 1, `input_schema` in version 2.
    if (schema := getattr(tool, "inputSchema", getattr(tool, "input_schema", None))) is not None:
        return {"name": tool.name, "description": getattr(tool, "description", None), "inputSchema": schema}
    if callable(tool) and hasattr(tool, "__name__"):
        return _function_schema(tool)
    raise InputError(f"a tool must be a dict with a name, or a function, got {type(tool).__name__}")


def to_json_schema(name: str, tool: Any) -> Mapping[str, Any]:
    """Return `to_schema(tool)` after checking that JSON can hold it.

    Raises:
        InputError: The schema holds a value that JSON cannot, such as an object as a default.
    """
    schema = to_schema(tool)
    try:
        json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise InputError(f"tool {name!r} cannot be saved as JSON: {error}") from error
    return schema


def _function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have no signature
        parameters = []
    properties = {
        parameter.name: {"description": "" if parameter.annotation is parameter.empty else _annotation(parameter)}
        for parameter in parameters
    }
    return {
        "name": function.__name__,
        "description": inspect.getdoc(function),
        "parameters": {"properties": properties},
    }


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _arguments(schema: Any) -> Iterator[str]:
    """Yield `name: description` for each argument, nested ones included, wherever the schema keeps them."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            for name, value in properties.items():
                description = value.get("description") if isinstance(value, Mapping) else None
                yield f"{name}: {description}" if isinstance(description, str) and description else str(name)
                yield from _arguments(value)
        for key, value in schema.items():
            if key not in ("properties", "default", "examples", "enum", "const"):
                yield from _arguments(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _arguments(value)
