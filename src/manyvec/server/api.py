"""`Api`: answer the requests of the HTTP and MCP servers from one index."""

from __future__ import annotations

import hashlib
import time
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import check_unicode
from manyvec.evidence.pages import PageEvidence, for_browser
from manyvec.evidence.text import Evidence
from manyvec.filters import AllOf
from manyvec.index import Index
from manyvec.server.records import (
    MAX_TEXT_CHARS,
    DocumentRecord,
    HitRecord,
    InfoRecord,
    PageRecord,
    PassageRecord,
    SearchRequest,
    SearchResponse,
)
from manyvec.timing import timings
from manyvec.types import Hit

# Heat maps are sent for the best hits until they hold this many numbers, about 2.5 MB of JSON.
MAX_MAP_NUMBERS = 400_000


class Api:
    """Answers requests from one index. Safe to share between threads.

    Args:
        index: The index to search.
        max_map_numbers: Maximum number of values in the heat maps of one response.
    """

    def __init__(self, index: Index, *, max_map_numbers: int = MAX_MAP_NUMBERS) -> None:
        self.index = index
        self.max_map_numbers = max_map_numbers

    def search(self, request: SearchRequest) -> SearchResponse:
        """Search the index, with evidence and the time of each stage.

        Raises:
            InputError, FilterError: As for `Index.search`.
        """
        check_unicode(request.query, "the query")
        condition = AllOf(tuple(condition.to_filter() for condition in request.filter)) if request.filter else None
        started = time.perf_counter()
        with timings() as seconds:
            hits = self.index.search(request.query, request.k, filter=condition, evidence=True)
        seconds["total"] = time.perf_counter() - started
        n_free, records = self.max_map_numbers, []
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
        """Return a document as it is stored now, or None if the id is unknown."""
        check_unicode(id, "the id")
        for document in self.index.get(id):
            return DocumentRecord(
                id=document.id,
                text=document.text[start : start + n_chars],
                start=start,
                n_chars=len(document.text),
                metadata=dict(document.metadata),
                is_page=document.image is not None,
            )
        return None

    def image(self, id: str) -> tuple[bytes, str, str] | None:
        """Return a page image as it is stored now, its content type and its ETag, or None if the id has no image.

        Large images are scaled down; see `for_browser`.
        """
        check_unicode(id, "the id")
        for document in self.index.get(id):
            if isinstance(document.image, bytes):
                return *for_browser(document.image), _etag(document.image)
        return None

    def info(self) -> InfoRecord:
        """Return the size of the index, its model and its filter columns."""
        info = self.index.info()
        return InfoRecord(
            # Only the last part of the path or URI: clients need not know where the index lies.
            name=PurePath(info.uri).name,
            documents=info.documents,
            tokens=info.tokens,
            model=info.model,
            dim=info.dim,
            filter_columns=info.filter_columns,
            version=info.version,
        )


def _to_record(hit: Hit, passage_chars: int) -> HitRecord:
    assert hit.evidence is not None
    evidence = hit.evidence.to_dict()
    if hit.is_page or hit.evidence.problem:
        text = hit.text[:passage_chars]
        passage = PassageRecord(text=text, start=0, end=len(text))
    else:
        passage = PassageRecord(**vars(hit.best_passage(passage_chars)))
    return HitRecord(
        rank=hit.rank,
        id=hit.id,
        score=round(hit.score, 4),
        similarity=round(hit.similarity, 4),
        metadata=hit.metadata,
        n_chars=len(hit.text),
        passage=passage,
        words=evidence["words"],
        unattributed=evidence["unattributed"],
        problem=hit.evidence.problem,
        page=_to_page(hit.evidence) if isinstance(hit.evidence, PageEvidence) else None,
    )


def _to_page(evidence: PageEvidence) -> PageRecord:
    return PageRecord(grid=evidence.grid, is_cropped=evidence.is_cropped, etag=_etag(evidence.image), map=None)


def _add_maps(record: HitRecord, evidence: Evidence | PageEvidence | None, n_free: int) -> int:
    """Add the heat maps of a page to its record if all of them fit, and return how many numbers were added."""
    if record.page is None or not isinstance(evidence, PageEvidence) or evidence.problem:
        return 0
    n_numbers = (len(evidence.words) + 1) * evidence.grid[0] * evidence.grid[1]
    if n_numbers > n_free:
        return 0
    record.page.map = _to_lists(evidence.heatmap())
    for i, word in enumerate(record.words):
        word.map = _to_lists(evidence.heatmap(i))
    return n_numbers


def _to_lists(heatmap: NDArray[np.float32]) -> list[list[float]]:
    return np.round(heatmap.astype(float), 3).tolist()


def _etag(image: bytes) -> str:
    return f'"{hashlib.blake2b(image, digest_size=16).hexdigest()}"'
