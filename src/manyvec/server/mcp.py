"""Offer an index to agents as an MCP server with the tools `search` and `get_document`."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as package_version
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from manyvec.index import Index
from manyvec.server.api import Api, RequestError, Searches
from manyvec.server.records import (
    MAX_HITS,
    MAX_PASSAGE_CHARS,
    MAX_QUERY_CHARS,
    DocumentRecord,
    FilterRecord,
    HitRecord,
    SearchRequest,
)

logger = logging.getLogger(__name__)

# A search may wait for the model to load.
_STDIO_TIMEOUT = 300.0
_INSTRUCTIONS = (
    "Find documents with `search`, and read more of them with `get_document`. "
    "The first search after the start of the server waits until the model is loaded, which can take a minute."
)
_READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)


class CitedHit(BaseModel):
    """A document that matches. Hits are ordered by `final_score`, in which BM25 may take part.

    `passage` is its best matching part, from character `start` up to `end`.

    If the document is a page image, `passage` is the start of the text stored with it, and `note` says how well each
    word of the query matches the image.
    """

    id: str
    rank: int
    final_score: float | None
    score: float | None
    similarity: float | None
    passage: str
    start: int
    end: int
    n_chars: int
    metadata: dict[str, Any]
    note: str | None = None


class SearchResult(BaseModel):
    hits: list[CitedHit]


def mcp_server(api: Api, searches: Searches) -> MCPServer[Any]:
    """Return an MCP server over one index. Its tools only read."""
    with _root_logger_kept():
        server = MCPServer[Any]("manyvec", version=package_version("manyvec"), instructions=_INSTRUCTIONS)
    columns = json.dumps(api.index.filter_columns, ensure_ascii=False) if api.index.filter_columns else "none"

    async def search(
        query: Annotated[str, Field(max_length=MAX_QUERY_CHARS, description="a question, or words to search for")],
        k: Annotated[int, Field(ge=1, le=MAX_HITS, description="maximum number of hits")] = 5,
        filter: FilterRecord | None = None,
        passage_chars: Annotated[
            int, Field(ge=1, le=MAX_PASSAGE_CHARS, description="maximum length of a passage, in characters")
        ] = 600,
    ) -> SearchResult:
        request = SearchRequest(query=query, k=k, filter=filter, passage_chars=passage_chars)
        try:
            hits = (await searches.submit(request)).hits
        except RequestError as error:
            raise ToolError(error.detail) from error
        return SearchResult(
            hits=[
                CitedHit(
                    id=hit.id,
                    rank=hit.rank,
                    final_score=hit.final_score,
                    score=hit.score,
                    similarity=hit.similarity,
                    passage=hit.passage.text,
                    start=hit.passage.start,
                    end=hit.passage.end,
                    n_chars=hit.n_chars,
                    metadata=hit.metadata,
                    note=_note(hit) if hit.page else None,
                )
                for hit in hits
            ]
        )

    def get_document(
        id: Annotated[str, Field(description="id of a hit of `search`")],
        start: Annotated[int, Field(ge=0, le=2**63 - 1, description="position of the first character to return")] = 0,
        n_chars: Annotated[int, Field(ge=1, le=100_000, description="maximum number of characters")] = 20_000,
    ) -> DocumentRecord:
        try:
            document = api.document(id, start, n_chars)
        except RequestError as error:
            raise ToolError(error.detail) from error
        if document is None:
            raise ToolError(f"there is no document {id!r}. It may have been deleted since the search: search again.")
        return document

    server.add_tool(
        search,
        title="Search the documents",
        description="Find the documents that best match a query, each with a passage to quote. "
        f"Filter columns and their types: {columns}.",
        annotations=_READ_ONLY,
    )
    server.add_tool(
        get_document,
        title="Read a document",
        description="Read a document by the id that `search` returned; read long documents in parts with `start`. For "
        "a page image (`is_page`), only the text stored with the image is returned, which may be empty.",
        annotations=_READ_ONLY,
    )
    return server


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


def serve_stdio(index: Index) -> None:
    """Serve an index over standard input and output until the client closes them.

    The model is loaded in the background from the start, so that the handshake is answered at once and the first call
    waits as little as possible: clients often allow it only a few seconds.
    """
    threading.Thread(target=_warm_up, args=[index], daemon=True).start()
    api = Api(index)
    mcp_server(api, Searches(api, timeout=_STDIO_TIMEOUT)).run("stdio")


def _warm_up(index: Index) -> None:
    started = time.monotonic()
    try:
        index.search("manyvec", k=1, evidence=True)
    except Exception as error:
        # The first call of the client fails with the same error, and is answered with it.
        logger.warning("the index cannot be searched: %s", error)
    else:
        print(f"manyvec: ready after {time.monotonic() - started:.1f} seconds", file=sys.stderr, flush=True)


def _note(hit: HitRecord) -> str:
    similarities = ", ".join(f"{word.word} {word.similarity:.2f}" for word in hit.words)
    return f"This is a page image. Similarity of each word of the query to its best matching patch: {similarities}"
