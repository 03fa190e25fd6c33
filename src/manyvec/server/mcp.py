"""The index as an MCP server, for agents: a `search` and a `get_document` tool."""

from __future__ import annotations

import json
from importlib.metadata import version as package_version
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from manyvec.errors import ManyvecError
from manyvec.server.api import (
    MAX_HITS,
    MAX_PASSAGE_CHARS,
    MAX_QUERY_CHARS,
    Api,
    Condition,
    DocumentRecord,
    HitRecord,
    SearchRequest,
)

_READS_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)


class CitedHit(BaseModel):
    """A document found: `passage` is the part of it that fits the query best, from character `start` to `end`.

    Of a page image it is the text beside the image, and `note` says what matched on the image.
    """

    id: str
    rank: int
    score: float
    similarity: float
    passage: str
    start: int
    end: int
    n_chars: int
    metadata: dict[str, Any]
    note: str | None = None


class Found(BaseModel):
    hits: list[CitedHit]


def mcp_server(api: Api) -> MCPServer[Any]:
    """An MCP server over one index; it only reads."""
    server = MCPServer[Any]("manyvec", version=package_version("manyvec"), log_level="WARNING")
    columns = json.dumps(api.index.filter_columns, ensure_ascii=False) if api.index.filter_columns else "none"

    def search(
        query: Annotated[str, Field(max_length=MAX_QUERY_CHARS, description="a question, or words to look for")],
        k: Annotated[int, Field(ge=1, le=MAX_HITS, description="how many hits, at most")] = 5,
        filter: Annotated[list[Condition] | None, Field(max_length=20)] = None,
        passage_chars: Annotated[
            int, Field(ge=1, le=MAX_PASSAGE_CHARS, description="length of a passage, at most")
        ] = 600,
    ) -> Found:
        request = SearchRequest(query=query, k=k, filter=filter or [], passage_chars=passage_chars)
        try:
            hits = api.search(request).hits
        except ManyvecError as error:
            raise ToolError(str(error)) from error
        return Found(
            hits=[
                CitedHit(
                    id=hit.id,
                    rank=hit.rank,
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
        id: Annotated[str, Field(description="as `search` gives it")],
        start: Annotated[int, Field(ge=0, description="first character wanted")] = 0,
        n_chars: Annotated[int, Field(ge=1, le=100_000, description="how many characters, at most")] = 20_000,
    ) -> DocumentRecord:
        try:
            found = api.document(id, start, n_chars)
        except ManyvecError as error:
            raise ToolError(str(error)) from error
        if found is None:
            raise ToolError(f"there is no document {id!r}: it may have been deleted since it was found. Search again")
        return found

    server.add_tool(
        search,
        title="Search the documents",
        description="Find the documents that match a query best, each with the passage to quote. "
        f"Conditions in `filter` must all hold; columns and their types: {columns}.",
        annotations=_READS_ONLY,
    )
    server.add_tool(
        get_document,
        title="Read a document",
        description="Read a document that `search` found, by its id; long ones in parts. Of a page image (`is_page`) "
        "only the text beside it can be read here, if it has one.",
        annotations=_READS_ONLY,
    )
    return server


def _note(hit: HitRecord) -> str:
    found = ", ".join(f"{word.word} {word.similarity:.2f}" for word in hit.words)
    return f"This is a page image. How similar the most similar part of it is to each word: {found}"
