"""`Api`: answer the requests of the HTTP and MCP servers from one index."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manyvec.cluster import AnyIndex
from manyvec.errors import EncoderError, IndexNotFoundError, InputError, ManifestError, StoreError, check_unicode
from manyvec.evidence.pages import PageEvidence, for_browser
from manyvec.evidence.text import Evidence
from manyvec.filters.values import json_default
from manyvec.server.batching import Batcher
from manyvec.server.comparison import METHODS, Comparison, compare
from manyvec.server.errors import RequestError, request_error
from manyvec.server.records import (
    MAX_COMPARED_CHARS,
    MAX_FACET_CHARS,
    MAX_FACET_VALUES,
    MAX_OFFSET,
    MAX_SAMPLE_CHARS,
    MAX_TEXT_CHARS,
    N_SAMPLES,
    AddRequest,
    AddResponse,
    CompareRequest,
    CompareResponse,
    DocumentRecord,
    FacetRecord,
    FacetValue,
    HitRecord,
    InfoRecord,
    OverviewRecord,
    PageRecord,
    PassageRecord,
    SearchRequest,
    SearchResponse,
    StandingRecord,
)
from manyvec.timing import span, timings
from manyvec.types import Document, Hit

T = TypeVar("T")

# Heat maps are sent for the best hits until they hold this many numbers, about 2.5 MB of JSON.
MAX_MAP_NUMBERS = 400_000
# Matched words of all hits of a response, about 800 KB of JSON. The hits get equal parts.
MAX_WORDS = 4_000
# Metadata of all hits of a response, in characters of JSON.
MAX_METADATA_CHARS = 1_000_000
# Words of the query times hits: evidence takes time in proportion, about 0.3 s of CPU for this many.
MAX_EXPLAINED_WORDS = 20_000
# Counting the values of a column reads the whole column, which takes long for more documents.
MAX_OVERVIEW_DOCUMENTS = 500_000
# Queries of more characters are not encoded together with shorter ones, which would wait for them.
_SHORT_QUERY_CHARS = 500


class Api:
    """Answers requests from one index. Safe to share between threads.

    An index that was deleted or replaced is served again once there is one at the same URI, even if it was built with
    another model than the one that the server was started with.

    Args:
        index: The index to search.
        max_map_numbers: Maximum number of values in the heat maps of one response.
        max_words: Maximum number of matched words in one response.
        max_metadata_chars: Maximum length of all metadata in one response, as JSON.

    Attributes:
        on_search: Called after each pass over the index, with the number of its queries and the seconds by stage.

    Every method raises RequestError.
    """

    def __init__(
        self,
        index: AnyIndex,
        *,
        max_map_numbers: int = MAX_MAP_NUMBERS,
        max_words: int = MAX_WORDS,
        max_metadata_chars: int = MAX_METADATA_CHARS,
    ) -> None:
        self.index = index
        self.max_map_numbers = max_map_numbers
        self.max_words = max_words
        self.max_metadata_chars = max_metadata_chars
        self.on_search: Callable[[int, Mapping[str, float]], None] | None = None
        self._first = index.anew()
        self._by_manifest: AnyIndex | None = None
        self._switching = threading.Lock()

    @property
    def name(self) -> str:
        """Last part of the index's path or URI: clients need not know where the index lies."""
        return PurePath(self.index.uri).name

    def search(self, request: SearchRequest) -> SearchResponse:
        """Search the index; a response has the time of each stage."""
        (result,) = self.search_many([request])
        if isinstance(result, Exception):
            raise result
        return result

    def search_many(self, requests: Sequence[SearchRequest]) -> list[SearchResponse | RequestError]:
        """Return the response to each request, or its error. All requests must have the same `search_key`.

        The queries are encoded together. If that fails, the requests are answered one by one, so that a bad one fails
        alone.
        """
        try:
            return [*self._responses(requests)]
        except Exception as error:
            if len(requests) == 1:
                return [request_error(error)]
        return [result for request in requests for result in self.search_many([request])]

    def _responses(self, requests: Sequence[SearchRequest]) -> list[SearchResponse]:
        queries, first = [request.query for request in requests], requests[0]
        # All hits before a page are found again: the hits of two pages are then those of one longer search.
        k = first.offset + first.k
        options: dict[str, Any] = {} if first.lexical_weight is None else {"lexical_weight": first.lexical_weight}
        options |= {"evidence": True} if first.evidence else {"passage_chars": first.passage_chars}
        for query in queries:
            check_unicode(query, "the query")
            if (n_words := len(query.split())) * k > MAX_EXPLAINED_WORDS:
                raise InputError(
                    f"a query of {n_words} words can have at most {MAX_EXPLAINED_WORDS // n_words} hits, "
                    f"got k={first.k}" + (f" after offset={first.offset}" if first.offset else "")
                )
        started = time.perf_counter()
        with span("manyvec.search", queries=len(queries), k=k) as attributes, timings() as seconds:
            hits_of = self._read(lambda index: index.search_many(queries, k, filter=first.filter, **options))
            attributes |= {f"seconds.{stage}": taken for stage, taken in seconds.items()}
        seconds["total"] = time.perf_counter() - started
        if self.on_search:
            self.on_search(len(requests), seconds)
        milliseconds = {stage: round(1000 * taken / len(requests), 2) for stage, taken in seconds.items()}
        return [
            SearchResponse(
                query=request.query,
                hits=self._records(hits[request.offset :], request),
                next_offset=k if len(hits) == k and k <= MAX_OFFSET else None,
                milliseconds=milliseconds,
            )
            for request, hits in zip(requests, hits_of, strict=True)
        ]

    def _records(self, hits: Sequence[Hit], request: SearchRequest) -> list[HitRecord]:
        """Return the records of the hits of one response, within its limits."""
        n_numbers, n_chars = self.max_map_numbers, self.max_metadata_chars
        max_words = max(1, self.max_words // max(1, len(hits)))
        records = []
        for hit in hits:
            record = _to_record(hit, request.passage_chars)
            n_numbers -= _add_maps(record, hit.evidence, n_numbers)
            _limit_words(record, max_words)
            n_chars -= _limit_metadata(record, n_chars)
            records.append(record)
        return records

    def document(self, id: str, start: int = 0, n_chars: int = MAX_TEXT_CHARS) -> DocumentRecord | None:
        """Return a document as it is stored now, or None if the id is unknown."""
        for document in self._get(id):
            record = DocumentRecord(
                id=document.id,
                text=document.text[start : start + n_chars],
                start=start,
                n_chars=len(document.text),
                metadata=dict(document.metadata),
                is_page=document.image is not None,
            )
            _limit_metadata(record, self.max_metadata_chars)
            return record
        return None

    def image(self, id: str) -> tuple[bytes, str, str] | None:
        """Return a page image as it is stored now, its content type and its ETag, or None if the id has no image.

        Large images are scaled down; see `for_browser`.
        """
        if (stored := self.page_image(id)) is None:
            return None
        try:
            return *for_browser(stored), _etag(stored)
        except Exception as error:
            raise request_error(error) from error

    def value_counts(self, key: str) -> dict[str, int]:
        """Return the values of a metadata key as strings, with their numbers of documents; see `Index.value_counts`."""

        def count(index: AnyIndex) -> dict[str, int]:
            check_unicode(key, "the key")
            # Booleans are written as in JSON.
            names = {"True": "true", "False": "false"}
            return {names.get(str(value), str(value)): n for value, n in index.value_counts(key).items()}

        return self._answered(count)

    def page_image(self, id: str) -> bytes | None:
        """Return a page image as it is stored now, or None if the id has no image."""
        return next((document.image for document in self._get(id) if isinstance(document.image, bytes)), None)

    def info(self) -> InfoRecord:
        """Return the size of the index, its model and its filter columns."""
        info = self._answered(lambda index: index.info())
        return InfoRecord(
            name=self.name,
            documents=info.documents,
            tokens=info.tokens,
            model=info.model,
            dim=info.dim,
            filter_columns=info.filter_columns,
            lexical_weight=info.lexical_weight,
            version=info.version,
        )

    def count(self) -> int:
        """Return the number of documents."""
        return self._answered(lambda index: index.count())

    def overview(self) -> OverviewRecord:
        """Return the most frequent values of each column of strings or booleans, and a few things to search for.

        Both are empty for an index of more than `MAX_OVERVIEW_DOCUMENTS`.
        """
        if self.count() > MAX_OVERVIEW_DOCUMENTS:
            return OverviewRecord(facets={}, samples=[])
        facets = {}
        for name, kind in self._answered(lambda index: index.filter_columns).items():
            if kind.removeprefix("list[").removesuffix("]") in ("str", "bool"):
                counts = self.value_counts(name)
                shown = [(value, count) for value, count in counts.items() if len(value) <= MAX_FACET_CHARS]
                facets[name] = FacetRecord(
                    values=[FacetValue(value=value, documents=count) for value, count in shown[:MAX_FACET_VALUES]],
                    n_values=len(counts),
                )
        ids = self._answered(lambda index: index.ids())
        chosen = ids[:: max(1, len(ids) // N_SAMPLES)][:N_SAMPLES]
        samples = [_sample(document) for document in self._answered(lambda index: index.get(chosen))]
        return OverviewRecord(facets=facets, samples=[*dict.fromkeys(filter(None, samples))])

    def compare(self, request: CompareRequest) -> CompareResponse:
        """Rank documents by BM25, by pooled vectors and by late interaction."""

        def compared(index: AnyIndex) -> Comparison:
            check_unicode(request.query, "the query")
            return compare(index, request.query, request.k, filter=request.filter)

        comparison = self._answered(compared)
        standings = [
            StandingRecord(id=found.id, text=found.text[:MAX_COMPARED_CHARS], ranks=found.ranks)
            for found in comparison.standings
        ]
        missed = {method: comparison.missed(method) for method in METHODS}
        return CompareResponse(query=request.query, k=request.k, standings=standings, missed=missed)

    def add(self, request: AddRequest) -> AddResponse:
        """Add documents, replacing those with the same ids."""
        documents = [document.model_dump() for document in request.documents]
        report = self._answered(lambda index: index.add(documents))
        return AddResponse(added=report.added, updated=report.updated, unchanged=report.unchanged)

    def delete(self, id: str) -> bool:
        """Delete a document, and return whether there was one."""
        return self._answered(lambda index: index.delete(id)) > 0

    def _answered(self, act: Callable[[AnyIndex], T]) -> T:
        """Return what `act` returns for the index, as `_read` does. Raises RequestError."""
        try:
            return self._read(act)
        except Exception as error:
            raise request_error(error) from error

    def _get(self, id: str) -> list[Any]:
        def get(index: AnyIndex) -> list[Any]:
            check_unicode(id, "the id")
            return index.get(id)

        return self._answered(get)

    def _read(self, read: Callable[[AnyIndex], T]) -> T:
        """Return what `read` returns for the index, and try a second time if the index was replaced meanwhile."""
        index = self.index
        try:
            return read(index)
        except (StoreError, IndexNotFoundError):
            return read(index)
        except (ManifestError, EncoderError) as error:
            # The index at the URI needs another encoder than `index` has, or the model of its manifest is unknown.
            if isinstance(error, EncoderError) is (index is not self._by_manifest):
                raise
            return read(self._switched(index))

    def _switched(self, failed: AnyIndex) -> AnyIndex:
        """Return the index with the model of its manifest, or with the server's first encoder if `failed` has that."""
        with self._switching:
            if self.index is failed:
                is_first = failed is not self._by_manifest
                index = self._first.anew(by_manifest=is_first)
                _ = index.encoder  # Raises an error if this one does not fit either.
                self.index, self._by_manifest = index, index if is_first else None
            return self.index


def search_key(request: SearchRequest) -> tuple[Hashable, ...]:
    """Return a value that is equal for requests that one search can answer."""
    is_long = len(request.query) > _SHORT_QUERY_CHARS
    passage_chars = None if request.evidence else request.passage_chars
    return request.k, request.offset, request.lexical_weight, is_long, json.dumps(request.filter), passage_chars


class Searches:
    """Searches of many clients at once: those that arrive together are answered together, see `Batcher`.

    Args:
        api: The index to search.
        options: Limits of `Batcher`.
    """

    def __init__(self, api: Api, **options: Any) -> None:
        self._batcher = Batcher(api.search_many, search_key, **options)

    async def submit(self, request: SearchRequest) -> SearchResponse:
        """Return the response to one request.

        Raises:
            RequestError: As for `Api.search`; or the server is busy.
        """
        try:
            return await self._batcher.submit(request)
        except Exception as error:
            raise request_error(error) from error


def _sample(document: Document) -> str:
    """Return the title of a document or the beginning of its text; empty if it is too long or there is none."""
    title = document.metadata.get("title")
    text = title if isinstance(title, str) and title.strip() else document.text
    line = text.strip().partition("\n")[0].partition(". ")[0]
    return line if len(line) <= MAX_SAMPLE_CHARS else ""


def _to_record(hit: Hit, passage_chars: int) -> HitRecord:
    evidence = hit.evidence.to_dict() if hit.evidence else {"words": [], "unattributed": _finite(hit.score) or 0}
    best = hit.passage
    if hit.evidence is not None and not hit.is_page and not hit.evidence.problem:
        best = hit.best_passage(passage_chars)
    text = hit.text[:passage_chars]
    passage = PassageRecord(text=text, start=0, end=len(text)) if best is None else PassageRecord(**vars(best))
    return HitRecord(
        rank=hit.rank,
        id=hit.id,
        final_score=_finite(hit.final_score),
        score=_finite(hit.score),
        similarity=_finite(hit.similarity),
        metadata=hit.metadata,
        n_chars=len(hit.text),
        passage=passage,
        words=evidence["words"],
        unattributed=evidence["unattributed"],
        counted=evidence.get("counted", []),
        problem=hit.evidence.problem if hit.evidence else None,
        page=_to_page(hit.evidence) if isinstance(hit.evidence, PageEvidence) else None,
    )


def _finite(value: float) -> float | None:
    """Return a rounded score, or None for one that JSON cannot hold: -inf is the score of a document without tokens."""
    return round(value, 4) if math.isfinite(value) else None


def _to_page(evidence: PageEvidence) -> PageRecord:
    return PageRecord(
        grid=evidence.grid, is_cropped=evidence.is_cropped, etag=_etag(evidence.image), map=None, color_range=None
    )


def _add_maps(record: HitRecord, evidence: Evidence | PageEvidence | None, n_free: int) -> int:
    """Add the heat maps of a page to its record if all of them fit, and return how many numbers were added."""
    if record.page is None or not isinstance(evidence, PageEvidence) or evidence.problem:
        return 0
    n_numbers = (len(evidence.words) + 1) * evidence.grid[0] * evidence.grid[1]
    if n_numbers > n_free:
        return 0
    record.page.map, record.page.color_range = _to_lists(evidence.heatmap()), evidence.color_range()
    for i, word in enumerate(record.words):
        word.map, word.color_range = _to_lists(evidence.heatmap(i)), evidence.color_range(i)
    return n_numbers


def _limit_words(record: HitRecord, max_words: int) -> None:
    """Keep the words with the largest shares, in the order of the query, and as many of those that BM25 counted."""
    record.counted = record.counted[:max_words]
    if len(record.words) > max_words:
        by_share = sorted(range(len(record.words)), key=lambda i: -abs(record.words[i].share))
        kept, dropped = sorted(by_share[:max_words]), by_share[max_words:]
        record.unattributed += sum(record.words[i].share for i in dropped)
        record.words = [record.words[i] for i in kept]


def _limit_metadata(record: HitRecord | DocumentRecord, n_free: int) -> int:
    """Remove the metadata if its JSON is longer than `n_free`, and return the length of the JSON that is left."""
    if not record.metadata:
        return 0
    n_chars = len(json.dumps(record.metadata, default=json_default))
    if n_chars <= n_free:
        return n_chars
    record.metadata, record.is_metadata_omitted = {}, True
    return 0


def _to_lists(heatmap: NDArray[np.float32]) -> list[list[float]]:
    return np.round(heatmap.astype(float), 3).tolist()


def _etag(image: bytes) -> str:
    return f'"{hashlib.blake2b(image, digest_size=16).hexdigest()}"'
