"""Read `--where CONDITION` and `--column NAME=TYPE`, and values that a file holds as strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from manyvec.errors import FilterError, InputError
from manyvec.filters import AllOf, ColumnType, F, Filter
from manyvec.filters.columns import value_at

_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)


def parse_columns(declarations: Sequence[str]) -> dict[str, str]:
    """Return the type of each column declared as `NAME=TYPE` or, for strings, `NAME`."""
    pairs = (declaration.partition("=") for declaration in declarations)
    return {name.strip(): str(ColumnType.parse(kind.strip() or "str")) for name, _, kind in pairs}


def parse_where(conditions: Sequence[str], columns: Mapping[str, str]) -> Filter | None:
    """Return a filter that requires all `conditions`, or None if there are none.

    Args:
        conditions: Such as `year>=2023`, `lang=en` or, for lists, `tags~ir` (contains).
        columns: Declared filter columns and their types, which values are converted to.

    Raises:
        FilterError: A condition has no operator.
        InputError: A value cannot be converted to the type of its column.
    """
    parts = tuple(_parse_condition(condition, columns) for condition in conditions)
    return AllOf(parts) if parts else None


def _parse_condition(condition: str, columns: Mapping[str, str]) -> Filter:
    match = _CONDITION.fullmatch(condition)
    if not match:
        raise FilterError(f"{condition!r} is not a condition: write 'year>=2023', 'lang=en' or 'tags~ir'")
    name, operator, written = match.groups()
    kind = ColumnType.parse(columns[name]) if name in columns else ColumnType(str)
    column, value = F(name), parse_value(written, kind, f"the value of {name!r} in --where")
    return {
        ">=": column >= value,
        "<=": column <= value,
        "<": column < value,
        ">": column > value,
        "!=": column != value,
        "=": column == value,
        "==": column == value,
        "~": column.contains(value),
    }[operator]


def parse_value(written: str, kind: ColumnType, what: str) -> Any:
    """Return a string as the bool or number that its column holds; other types are left to the index.

    Args:
        written: The value as a string.
        kind: Type of the column.
        what: Name of the value in error messages.

    Raises:
        InputError: The string is not a bool or not a number.
    """
    if kind.scalar is bool:
        if written.lower() not in ("true", "false"):
            raise InputError(f"{what} must be true or false, got {written!r}")
        return written.lower() == "true"
    if kind.scalar in (int, float):
        try:
            # Python reads 1_000; HTTP, MCP and the frameworks do not.
            return kind.scalar(written.replace("_", " "))
        except ValueError:
            raise InputError(f"{what} must be a number, got {written!r}") from None
    return written


def typed(metadata: Mapping[str, Any], columns: Mapping[str, ColumnType], what: str) -> dict[str, Any]:
    """Return metadata with the strings of declared columns converted; an empty string counts as missing.

    Args:
        metadata: Metadata of a document, for example a row of a CSV file.
        columns: Declared filter columns.
        what: Name of the document in error messages.
    """
    converted = dict(metadata)
    for name, kind in columns.items():
        if isinstance(value := value_at(converted, name), str) and not kind.is_list:
            *parents, key = [name] if name in converted else name.split(".")
            holder = converted
            for parent in parents:
                holder[parent] = dict(holder[parent])
                holder = holder[parent]
            holder[key] = parse_value(value, kind, f"{what}: {name!r}") if value else None
    return converted
