"""Read one index: hold its newest version in memory, score it and search it."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from manyvec.errors import ManyvecError, StoreError
from manyvec.filters.values import read_metadata
from manyvec.retrieval.candidates import Candidates, Query, Scope
from manyvec.retrieval.centroid_lists import PostingListLoader
from manyvec.retrieval.lexical import Lexicon, RowScores, WordMatches, WordStatistics
from manyvec.retrieval.search import SearchOptions, rank_mixed, search
from manyvec.storage.cache import CachedVersion
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store
from manyvec.timing import stage
from manyvec.types import Document, Hit
from manyvec.vectors.backend import has_cuda
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.device import scorer_on
from manyvec.vectors.maxsim import Scorer, Scores

logger = logging.getLogger(__name__)
T = TypeVar("T")
# Scores of query-document pairs that are held at a time: 64 MB.
_MAX_SCORES = 16 * 2**20


def scorer_for(device: str, score_device: str | None = None) -> Scorer | None:
    """Return the scorer for the devices that a user named; None for `auto`, which `IndexReader` decides.

    Raises:
        InputError: There is no such device.
    """
    # Documents are scored on the CPU or on CUDA.
    chosen = score_device if score_device is not None else "cpu" if device == "mps" else device
    return None if chosen == "auto" else scorer_on(chosen)


class IndexReader:
    """Searches an index, always in its newest version. May be shared by threads.

    Args:
        store: Table of the index.
        scorer: Computes the exact scores. None for one on CUDA if torch finds it, else on the CPU. torch may be
            imported to find out, so this waits for the first search.
        cache_bytes: Memory budget; see `Index.create`.
    """

    def __init__(self, store: Store, scorer: Scorer | None, cache_bytes: int) -> None:
        self.lists = PostingListLoader()
        self.lexicon = Lexicon(cache_bytes)
        self._store = store
        self._scorer = scorer
        self._cache_bytes = cache_bytes
        self._cached: CachedVersion | None = None
        self._loading = threading.Lock()
        self._filling: threading.Thread | None = None

    @property
    def scorer(self) -> Scorer:
        """The scorer in use, chosen at the first use if it was not passed."""
        if self._scorer is None:
            self._scorer = scorer_on("cuda" if has_cuda() else "cpu")
        return self._scorer

    @property
    def bytes_held(self) -> int:
        """Bytes of token vectors in memory."""
        return self._cached.bytes_held if self._cached else 0

    @stage("fetch")
    def current(self) -> CachedVersion:
        """Return the newest version of the table, with as many token vectors in memory as the budget allows.

        An index with centroid lists is answered from disk first, and its vectors follow while it is searched.
        """
        cached = self._cached
        if cached is not None and cached.snapshot.key == self._store.key:
            return cached
        with self._loading:
            snapshot = self._store.snapshot()
            cached = self._cached
            if cached is not None and cached.snapshot.key.generation != snapshot.key.generation:
                # Of another index that was at this URI.
                cached = self._cached = None
            if cached is None:
                cached = self._cached = self._loaded(snapshot)
            elif cached.snapshot.key != snapshot.key:
                is_filling = self._filling is not None and self._filling.is_alive()
                cached = self._cached = cached.refreshed(snapshot, self._budget(snapshot), reads=not is_filling)
            return cached

    def _loaded(self, snapshot: Snapshot) -> CachedVersion:
        budget = self._budget(snapshot)
        kept = CachedVersion.load(snapshot, budget, reads=False)
        # A GPU scores what it holds, which has to be in memory.
        if not snapshot.assignments_key or self.scorer.holds(()):
            loaded = kept.refreshed(snapshot, budget)
            loaded.keep(than=kept.bytes_held)
            return loaded
        if budget > 0:
            # Not a daemon, which would be stopped within LanceDB when the program ends.
            self._filling = threading.Thread(target=_fill, args=(weakref.ref(self), kept, budget))
            self._filling.start()
        return kept

    def _budget(self, snapshot: Snapshot) -> int:
        held = self.lists.bytes_held(snapshot) + self.lexicon.bytes_held + self._store.bytes_held
        return self._cache_bytes - held

    def hold(self, filled: CachedVersion) -> None:
        """Search a version with its token vectors in memory, or a newer one with those that are unchanged."""
        with self._loading:
            newest = self._cached
            if newest is None or newest.snapshot.key.generation != filled.snapshot.key.generation:
                return
            if newest.snapshot.key != filled.snapshot.key:
                filled = filled.refreshed(newest.snapshot, self._budget(newest.snapshot), reads=False)
            self._cached = filled

    def statistics(self, texts: Sequence[str]) -> WordStatistics:
        """Return the word statistics of the newest version; see `Index.statistics`."""
        return self.lexicon.statistics(self.current(), texts)

    def word_matches(self, queries: Sequence[str], limits: Sequence[int], where: str | None) -> list[WordMatches]:
        """Return the documents that match the words of each query best, at most as many as its limit."""
        version = self.current()
        passing = None if where is None else version.passing(where)
        return [
            self.lexicon.best_matches(version, query, limit, where, passing)
            for query, limit in zip(queries, limits, strict=True)
        ]

    def documents(self, ids: Sequence[str], *, with_vectors: bool) -> list[Document]:
        """Return the documents with these distinct ids, in this order; unknown ids are left out. See `Index.get`."""
        snapshot = self._store.snapshot()
        stored = snapshot.find(ids)
        row_ids = [stored[id].row_id for id in ids if id in stored]
        rows = snapshot.texts(row_ids, spans=with_vectors)
        tokens = list(snapshot.tokens(row_ids)) if with_vectors and row_ids else [None] * len(rows)
        documents = []
        for row, image, vectors in zip(rows, snapshot.images(row_ids), tokens, strict=True):
            given: dict[str, Any] = {"image": image}
            # A document whose vectors are damaged has none.
            if vectors is not None and len(vectors):
                given |= {"vectors": vectors, "spans": row["spans"] if row["spans"].max() >= 0 else None}
            documents.append(Document(row["id"], row["text"], read_metadata(row["metadata"]), **given))
        return documents

    def token_vectors(self, ids: Sequence[str]) -> TokenBatch:
        """Return one entry for each id, in this order; an unknown id has no tokens."""
        snapshot = self._store.snapshot()
        rows = {id: stored.row_id for id, stored in snapshot.find(list(dict.fromkeys(ids))).items()}
        nothing = TokenBatch.unchecked(np.empty((0, snapshot.manifest.dim), np.float16), np.zeros(2, np.int64))
        stored = TokenBatch.concatenate([snapshot.tokens(list(rows.values())), nothing]) if rows else nothing
        positions = {id: position for position, id in enumerate(rows)}
        return stored.select([positions.get(id, len(rows)) for id in ids])

    def search(
        self,
        version: CachedVersion,
        queries: Sequence[str],
        tokens: TokenBatch,
        candidates: Candidates,
        options: SearchOptions,
        where: str | None = None,
        matches: Sequence[RowScores] | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of each query.

        Args:
            version: Version to search, that `tokens` and `where` were made for; see `current`.
            queries: Query strings.
            tokens: Token vectors of the queries, in the same order.
            candidates: First stage that chooses the documents to score.
            options: What the search is to return.
            where: Filter as SQL.
            matches: BM25 scores of rows for each query, where BM25 takes part with statistics from outside. By default
                they are LanceDB's.
        """

        def search_version(version: CachedVersion) -> list[list[Hit]]:
            scope = self._scope(version, where, options.k)
            hits: list[list[Hit]] = []
            for part in _parts(len(queries), len(version)):
                of_part = tokens.select(np.arange(part.start, part.stop))
                of_rows = None if matches is None else [found.in_version(version) for found in matches[part]]
                hits += search(scope, candidates, queries[part], of_part, options, of_rows)
            return hits

        return self._read(version, search_version)

    def score(
        self, version: CachedVersion, tokens: TokenBatch, ids: Sequence[str], hashes: Sequence[str | None]
    ) -> Scores:
        """Return the exact scores of documents by id, all of one version; see `Index.score`.

        Args:
            version: Version to score, that `tokens` were made for.
            tokens: Token vectors of one query.
            ids: (n,) ids of documents.
            hashes: (n,) hashes of the texts, or of texts and images, that count as known; None for any.
        """

        def score_version(version: CachedVersion) -> Scores:
            stored = version.snapshot.find(list(dict.fromkeys(ids)))
            rows = {
                i: stored[id].row_id
                for i, (id, hashes_of) in enumerate(zip(ids, hashes, strict=True))
                if id in stored and (hashes_of is None or stored[id].has_content(hashes_of))
            }
            scores = np.full(len(ids), np.nan, np.float32)
            if rows:
                positions = version.positions(np.array([*rows.values()], np.int64))
                distinct, again = np.unique(positions, return_inverse=True)
                known = version.score(self.scorer, tokens, distinct)[0]
                if tokens.n_tokens:
                    # These have no vectors, because they are damaged: rerankers encode them, as unknown ones.
                    known[np.isneginf(known)] = np.nan
                scores[[*rows]] = known[again]
            return scores

        return self._read(version, score_version)

    def rank(
        self,
        version: CachedVersion,
        queries: Sequence[str],
        tokens: TokenBatch,
        candidates: Candidates,
        depth: int,
        where: str | None = None,
    ) -> list[list[str]]:
        """Return the ids that a first stage finds by itself for each query, best first; see `Index.rank`."""
        scope = self._scope(version, where)
        found = [candidates.find(Query(text, tokens[i]), scope, depth) for i, text in enumerate(queries)]
        ids = scope.documents.states.ids
        return [ids[slice(None) if positions is None else positions].tolist() for positions in found]

    def rank_mixed(
        self,
        version: CachedVersion,
        queries: Sequence[str],
        tokens: TokenBatch,
        weights: Sequence[float],
        depth: int,
        where: str | None = None,
    ) -> dict[float, list[list[str]]]:
        """Return the ids of the best documents for each query by each weight; see `Index.rank_mixed`."""
        scope = self._scope(version, where, depth)
        found: dict[float, list[list[str]]] = {weight: [] for weight in weights}
        for part in _parts(len(queries), len(version)):
            of_part = tokens.select(np.arange(part.start, part.stop))
            for weight, ids in rank_mixed(scope, queries[part], of_part, weights, depth).items():
                found[weight] += ids
        return found

    @stage("candidates")
    def _scope(self, version: CachedVersion, where: str | None, k: int = 0) -> Scope:
        passing = None if where is None else version.passing(where)
        return Scope(version, self.lists, where, passing, k, self.scorer, self.lexicon)

    def _read(self, version: CachedVersion, work: Callable[[CachedVersion], T]) -> T:
        """Do work on a version, and once more on the newest one if that version was removed meanwhile."""
        try:
            return work(version)
        except StoreError as error:
            # Another process may have removed this version during the search; a newer one is as good an answer.
            newest = self.current()
            if newest.snapshot.key == version.snapshot.key:
                raise
            if newest.snapshot.key.generation != version.snapshot.key.generation:
                raise StoreError(f"another index has taken the place of {self._store.uri}: search again") from error
            return work(newest)


def _fill(of: weakref.ref[IndexReader], version: CachedVersion, budget: int) -> None:
    """Read token vectors of a version into memory, as long as the program runs and the reader is in use."""
    try:
        filled = version.refreshed(
            version.snapshot, budget, go_on=lambda: threading.main_thread().is_alive() and of() is not None
        )
    except ManyvecError as error:
        # The version was removed meanwhile, or the index: the next search reads another one.
        logger.debug("the token vectors are not in memory: %s", error)
        return
    if (reader := of()) is not None:
        reader.hold(filled)
    filled.keep(than=version.bytes_held)


def _parts(n_queries: int, n_documents: int) -> Iterator[slice]:
    """Yield runs of queries whose scores fit into memory together."""
    size = max(1, _MAX_SCORES // max(1, n_documents))
    for start in range(0, n_queries, size):
        yield slice(start, min(start + size, n_queries))
