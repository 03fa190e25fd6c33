"""Offer indexes to agents as an MCP server with the tools `search`, `get_document` and `list_sources`."""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Annotated, Any, Literal

import pydantic_core
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field, WithJsonSchema

from manyvec.cluster import AnyIndex
from manyvec.errors import InputError
from manyvec.server.answers import (
    ReadDocument,
    SearchResult,
    ValueCounts,
    image_content,
    read_document,
    search_result,
    shortened,
    value_counts,
)
from manyvec.server.api import Api, Searches
from manyvec.server.errors import RequestError, request_error
from manyvec.server.records import (
    FILTER_DESCRIPTION,
    MAX_HITS,
    MAX_OFFSET,
    MAX_PASSAGE_CHARS,
    MAX_QUERY_CHARS,
    FilterRecord,
    SearchRequest,
)

logger = logging.getLogger(__name__)

# A search may wait for the model to load.
_STDIO_TIMEOUT = 300.0
# Clients give up on a server that does not answer the handshake, the strictest of them after 30 s.
WARM_UP_SECONDS = 20.0
_MAX_DOCUMENT_CHARS = 30_000
_READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
# A condition on a column of each type.
_EXAMPLES: dict[str, Any] = {
    "str": "VALUE",
    "int": {"$gte": 2020},
    "float": {"$lt": 0.5},
    "bool": True,
    "datetime": {"$gte": "2026-01-31"},
}
_SEARCH = "Find the documents that best match a query, each with a passage to quote. {holdings} {columns}"
_GET_DOCUMENT = (
    "Read a document by the id that `search` returned; read long documents in parts, from `next_start` on. For a page "
    "image (`is_page`), only the text stored with the image is returned, which may be empty, and with `include_image` "
    "the image."
)
_LIST_SOURCES = (
    "List the files that the documents come from with their numbers of documents, or the values of another metadata "
    "key, to filter on."
)
_OPERATORS = ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", "like", "is null", "is empty"]


@dataclass(frozen=True)
class ServedIndex:
    """An index as agents see it.

    Attributes:
        api: What reads the index.
        searches: What searches it.
        name: What tools call the index, if there are several.
        description: What the index holds, in the words of its owner.
    """

    api: Api
    searches: Searches
    name: str
    description: str = ""

    @property
    def columns(self) -> dict[str, str]:
        return self.api.index.filter_columns

    @property
    def summary(self) -> str:
        """What the index holds, in one line."""
        try:
            n_documents = f"{self.api.info().documents:,} documents"
        except RequestError:
            n_documents = "not readable at the moment"
        about = f": {self.description}" if self.description else ""
        return f"{self.name}{about} ({n_documents} at the start of the server)"


def mcp_server(*indexes: ServedIndex, is_warm: bool = True) -> MCPServer[Any]:
    """Return an MCP server over indexes. Its tools only read.

    Args:
        indexes: The indexes, with different names. If there are several, every tool takes the name of one.
        is_warm: Whether the models are loaded. If not, agents are told that their first search may wait.

    Raises:
        InputError: There is no index, or two have the same name.
    """
    if not indexes or len({served.name for served in indexes}) < len(indexes):
        names = ", ".join(served.name for served in indexes) or "none"
        raise InputError(f"the indexes of an MCP server need different names, got {names}: pass --name for each")
    by_name = {served.name: served for served in indexes}
    holdings = " ".join(f"{served.summary}." for served in indexes)
    waits = "" if is_warm else " The first search waits until the model is loaded, which can take a minute."
    instructions = f"Find documents with `search`, and read more of them with `get_document`. {holdings}{waits}"
    with _root_logger_kept():
        server = MCPServer[Any]("manyvec", version=package_version("manyvec"), instructions=instructions)

    async def search(
        query: Annotated[str, Field(max_length=MAX_QUERY_CHARS, description="a question, or words to search for")],
        index: str,
        k: Annotated[int, Field(ge=1, le=MAX_HITS, description="maximum number of hits")] = 5,
        offset: Annotated[int, Field(ge=0, le=MAX_OFFSET, description="`next_offset` of the page before")] = 0,
        filter: FilterRecord | None = None,
        passage_chars: Annotated[
            int, Field(ge=1, le=MAX_PASSAGE_CHARS, description="maximum length of a passage, in characters")
        ] = 600,
    ) -> SearchResult:
        request = SearchRequest(query=query, k=k, offset=offset, filter=filter, passage_chars=passage_chars)  # type: ignore[call-arg]
        with _tool_errors():
            hits = (await by_name[index].searches.submit(request)).hits
        return search_result(hits, k, offset, MAX_OFFSET)

    def get_document(
        id: Annotated[str, Field(description="id of a hit of `search`")],
        index: str,
        start: Annotated[int, Field(ge=0, le=2**63 - 1, description="position of the first character to return")] = 0,
        n_chars: Annotated[
            int, Field(ge=1, le=_MAX_DOCUMENT_CHARS, description="maximum number of characters")
        ] = _MAX_DOCUMENT_CHARS,
        include_image: Annotated[bool, Field(description="whether to return the image of a page image")] = False,
    ) -> Annotated[CallToolResult, ReadDocument]:
        api = by_name[index].api
        with _tool_errors():
            document = api.document(id, start, n_chars)
            image = api.page_image(id) if include_image else None
        if document is None:
            raise ToolError(
                f"there is no document {shortened(id)!r}. It may have been deleted since the search: search again."
            )
        record = read_document(document)
        images: list[ContentBlock] = []
        if image is not None:
            with _tool_errors():
                encoded, content_type = image_content(image)
            images.append(ImageContent(data=encoded, mime_type=content_type))
        elif include_image:
            record.note = "this document has no image"
        text = TextContent(text=pydantic_core.to_json(record, indent=2).decode())
        return CallToolResult(content=[text, *images], structured_content=record.model_dump(mode="json"))

    def list_sources(
        index: str,
        key: Annotated[str, Field(description="metadata key, such as `source` or a filter column")] = "source",
        offset: Annotated[int, Field(ge=0, le=2**31, description="`next_offset` of the page before")] = 0,
        limit: Annotated[int, Field(ge=1, le=500, description="maximum number of values")] = 100,
    ) -> ValueCounts:
        with _tool_errors():
            return value_counts(by_name[index].api.value_counts(key), offset, limit)

    search.__annotations__["filter"] = _filter_type(indexes)
    columns = _columns_text(indexes)
    for tool, title, description in (
        (search, "Search the documents", _SEARCH.format(holdings=holdings, columns=columns)),
        (get_document, "Read a document", _GET_DOCUMENT),
        (list_sources, "List sources", _LIST_SOURCES),
    ):
        server.add_tool(_for_agents(tool, by_name), title=title, description=description, annotations=_READ_ONLY)
    return server


def _for_agents(tool: Callable[..., Any], by_name: dict[str, ServedIndex]) -> Callable[..., Any]:
    """Make `index` one of the names, or drop it from the signature of a tool if there is only one index."""
    names = (*by_name,)
    signature = inspect.signature(tool, eval_str=True)
    if len(names) > 1:
        chosen = Annotated[Literal[names], Field(description="the index to use")]  # type: ignore[valid-type]
        index = signature.parameters["index"].replace(annotation=chosen)
        parameters = [index if name == "index" else other for name, other in signature.parameters.items()]
        tool.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return tool
    parameters = [other for name, other in signature.parameters.items() if name != "index"]

    def call(**arguments: Any) -> Any:
        return tool(index=names[0], **arguments)

    async def call_async(**arguments: Any) -> Any:
        return await tool(index=names[0], **arguments)

    alone: Callable[..., Any] = call_async if inspect.iscoroutinefunction(tool) else call
    alone.__name__ = tool.__name__
    alone.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return alone


def _filter_type(indexes: Sequence[ServedIndex]) -> Any:
    """Return the type of the argument `filter`: its JSON schema names the columns of all indexes."""
    columns = {name: kind for served in indexes for name, kind in served.columns.items()}
    if not columns:
        return FilterRecord | None
    condition = {
        "type": "object",
        "properties": {
            "column": {"type": "string", "enum": [*columns]},
            "op": {"type": "string", "enum": _OPERATORS, "default": "=="},
            "value": {},
        },
        "required": ["column"],
    }
    by_column = {
        name: {"description": f"{kind}: a value, a list of values, or an object of operators"}
        for name, kind in columns.items()
    }
    schema = {
        "anyOf": [
            {"type": "object", "properties": by_column, "examples": [_example(*column) for column in columns.items()]},
            {"type": "array", "items": condition},
            {"type": "null"},
        ],
        "description": FILTER_DESCRIPTION,
    }
    return Annotated[FilterRecord | None, WithJsonSchema(schema)]


def _example(column: str, kind: str) -> dict[str, Any]:
    scalar = kind.removeprefix("list[").removesuffix("]")
    return {column: {"$contains": "VALUE"} if scalar != kind else _EXAMPLES[scalar]}


def _columns_text(indexes: Sequence[ServedIndex]) -> str:
    def listed(served: ServedIndex) -> str:
        of = f" of {served.name}" if len(indexes) > 1 else ""
        columns = ", ".join(f"{name} ({kind})" for name, kind in served.columns.items()) or "none"
        return f"Filter columns{of}: {columns}."

    return " ".join(map(listed, indexes))


@contextmanager
def _tool_errors() -> Iterator[None]:
    """Turn errors of requests into those that agents read."""
    try:
        yield
    except Exception as error:
        raise ToolError(shortened(request_error(error).detail, 2_000)) from error


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what the block does to the root logger.

    MCPServer gives it a handler that colors the source lines of tracebacks: 0.5 to 8 s of CPU for each error.
    """
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def serve_stdio(indexes: Sequence[tuple[AnyIndex, str, str]]) -> None:
    """Serve indexes over standard input and output until the client closes them.

    The models are loaded before the handshake is answered, because clients often allow a call only a few seconds. A
    handshake waits at most `WARM_UP_SECONDS`; what is not loaded by then goes on loading in the background.

    Args:
        indexes: Each index with its name and description; see `ServedIndex`.
    """
    warming = threading.Thread(target=_warm_up, args=[[index for index, _, _ in indexes]], daemon=True)
    warming.start()
    warming.join(WARM_UP_SECONDS)
    served = [
        ServedIndex(api := Api(index), Searches(api, timeout=_STDIO_TIMEOUT), name, description)
        for index, name, description in indexes
    ]
    mcp_server(*served, is_warm=not warming.is_alive()).run("stdio")


def _warm_up(indexes: Sequence[AnyIndex]) -> None:
    started = time.monotonic()
    for index in indexes:
        try:
            index.search("manyvec", k=1, evidence=True)
        except Exception as error:
            # The first call of the client fails with the same error, and is answered with it.
            logger.warning("the index %s cannot be searched: %s", index.uri, error)
            return
    print(f"manyvec: ready after {time.monotonic() - started:.1f} seconds", file=sys.stderr, flush=True)
