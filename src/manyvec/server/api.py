"""What `manyvec serve` and its MCP server answer: requests checked and bounded, results as records for JSON.

Spans count characters as Python does, by code point.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from manyvec.errors import check_unicode
from manyvec.evidence.pages import PageEvidence, for_browser
from manyvec.evidence.text import Evidence
from manyvec.filters import AllOf, Comparison, F, Filter
from manyvec.index import Index
from manyvec.timing import timings
from manyvec.types import Hit

MAX_QUERY_CHARS = 4_000
MAX_HITS = 100
MAX_PASSAGE_CHARS = 4_000
MAX_TEXT_CHARS = 200_000
# Heat maps of the best hits, until they hold so many numbers together: about 2.5 MB of JSON.
MAX_MAP_NUMBERS = 400_000

Scalar = str | int | float | bool


class Condition(BaseModel):
    """A comparison of a declared filter column."""

    model_config = ConfigDict(extra="forbid")

    column: str = Field(max_length=200)
    op: Literal["==", "!=", "<", "<=", ">", ">=", "in", "contains", "is null"] = "=="
    value: Scalar | list[Scalar] | None = Field(
        None, description="of the column's type, dates in ISO 8601; a list for 'in', nothing for 'is null'"
    )

    def to_filter(self) -> Filter:
        column = F(self.column)
        if self.op == "!=":
            return column != self.value
        if self.op == "==":
            return column == self.value
        if self.op == "in":
            return column.in_(self.value)  # type: ignore[arg-type]  # what is no list is refused there
        return Comparison(self.column, self.op, self.value)


class SearchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: str = Field(max_length=MAX_QUERY_CHARS)
    k: int = Field(10, ge=1, le=MAX_HITS, description="how many hits, at most")
    filter: list[Condition] = Field([], max_length=20, description="conditions that must all hold")
    passage_chars: int = Field(500, ge=1, le=MAX_PASSAGE_CHARS, description="length of a best passage, at most")


class PassageRecord(BaseModel):
    """A stretch of a document: its characters from `start` to `end`."""

    text: str
    start: int
    end: int


class WordRecord(BaseModel):
    """A word of the query and what it found; `span` is null where it found no text, `patch` where no part of a page."""

    word: str
    query_span: tuple[int, int]
    text: str
    span: tuple[int, int] | None
    similarity: float
    share: float
    patch: tuple[int, int] | None = Field(None, description="row and column on a page image")
    map: list[list[float]] | None = Field(None, description="similarity of each patch, row by row")


class PageRecord(BaseModel):
    """A page image; `GET /api/images/ID` gives it, with `etag` in its header as long as it is the one searched."""

    grid: tuple[int, int] = Field(description="rows and columns of patches")
    is_cropped: bool = Field(description="the patches divide the middle square of the image")
    etag: str
    map: list[list[float]] | None = Field(None, description="the maps of all words, summed")


class HitRecord(BaseModel):
    """A document found. The shares of its words and `unshown` add up to the score."""

    rank: int
    id: str
    score: float
    similarity: float
    metadata: dict[str, Any]
    n_chars: int = Field(description="length of the document's text")
    passage: PassageRecord
    words: list[WordRecord]
    unshown: float
    problem: str | None = Field(None, description="why no words are pointed at")
    page: PageRecord | None = Field(None, description="of a page image; `passage` is of the text beside it")


class SearchResponse(BaseModel):
    query: str
    hits: list[HitRecord]
    milliseconds: dict[str, float] = Field(description="by stage; `total` is the whole search")


class DocumentRecord(BaseModel):
    """A document, or a part of a long one: `text` begins at character `start` of `n_chars`.

    Of a page image it is the text beside the image, and may be empty.
    """

    id: str
    text: str
    start: int
    n_chars: int
    metadata: dict[str, Any]
    is_page: bool = False


class InfoRecord(BaseModel):
    name: str
    documents: int
    tokens: int
    model: str
    dim: int
    filters: dict[str, str] = Field(description="declared filter columns and their types")
    version: int


class Api:
    """Answers from one index. May be shared by threads."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def search(self, request: SearchRequest) -> SearchResponse:
        """Find documents, with evidence and the time of each stage.

        Raises:
            InputError, FilterError: as `Index.search`.
        """
        check_unicode(request.query, "the query")
        condition = AllOf(tuple(condition.to_filter() for condition in request.filter)) if request.filter else None
        started = time.perf_counter()
        with timings() as seconds:
            hits = self.index.search(request.query, request.k, filter=condition, evidence=True)
        seconds["total"] = time.perf_counter() - started
        n_free, records = MAX_MAP_NUMBERS, []
        for hit in hits:
            record = _to_record(hit, request.passage_chars)
            n_free -= _add_maps(record, hit.evidence, n_free)
            records.append(record)
        return SearchResponse(
            query=request.query,
            hits=records,
            milliseconds={stage: round(1000 * taken, 2) for stage, taken in seconds.items()},
        )

    def document(self, id: str, start: int = 0, n_chars: int = MAX_TEXT_CHARS) -> DocumentRecord | None:
        """A document as it is now; None if there is none."""
        check_unicode(id, "the id")
        for found in self.index.get(id):
            return DocumentRecord(
                id=found.id,
                text=found.text[start : start + n_chars],
                start=start,
                n_chars=len(found.text),
                metadata=dict(found.metadata),
                is_page=found.image is not None,
            )
        return None

    def image(self, id: str) -> tuple[bytes, str, str] | None:
        """A page image as it is now, its content type and its etag; None if there is none. See `for_browser`."""
        check_unicode(id, "the id")
        for found in self.index.get(id):
            if isinstance(found.image, bytes):
                return *for_browser(found.image), _etag(found.image)
        return None

    def info(self) -> InfoRecord:
        info = self.index.info()
        return InfoRecord(
            # The last part of a path or URI: the rest is the server's own business.
            name=PurePath(info.uri).name,
            documents=info.documents,
            tokens=info.tokens,
            model=info.model,
            dim=info.dim,
            filters=info.filter_columns,
            version=info.version,
        )


def _to_record(hit: Hit, n_chars: int) -> HitRecord:
    assert hit.evidence is not None
    record = hit.evidence.to_dict()
    if hit.is_page or hit.evidence.problem:
        text = hit.text[:n_chars]
        passage = PassageRecord(text=text, start=0, end=len(text))
    else:
        passage = PassageRecord(**vars(hit.best_passage(n_chars)))
    return HitRecord(
        rank=hit.rank,
        id=hit.id,
        score=round(hit.score, 4),
        similarity=round(hit.similarity, 4),
        metadata=hit.metadata,
        n_chars=len(hit.text),
        passage=passage,
        words=record["words"],
        unshown=record["unshown"],
        problem=hit.evidence.problem,
        page=_to_page(hit.evidence) if isinstance(hit.evidence, PageEvidence) else None,
    )


def _to_page(evidence: PageEvidence) -> PageRecord:
    return PageRecord(grid=evidence.grid, is_cropped=evidence.is_cropped, etag=_etag(evidence.image), map=None)


def _add_maps(record: HitRecord, evidence: Evidence | PageEvidence | None, n_free: int) -> int:
    """Put the heat maps of a page into its record if there is room for all of them; answers how many numbers."""
    if record.page is None or not isinstance(evidence, PageEvidence) or evidence.problem:
        return 0
    n_numbers = (len(evidence.words) + 1) * evidence.grid[0] * evidence.grid[1]
    if n_numbers > n_free:
        return 0
    record.page.map = _to_lists(evidence.heatmap())
    for i, word in enumerate(record.words):
        word.map = _to_lists(evidence.heatmap(i))
    return n_numbers


def _to_lists(heat: NDArray[np.float32]) -> list[list[float]]:
    return np.round(heat.astype(float), 3).tolist()


def _etag(image: bytes) -> str:
    return f'"{hashlib.blake2b(image, digest_size=16).hexdigest()}"'
