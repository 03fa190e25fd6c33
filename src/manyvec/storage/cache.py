"""`CachedVersion`: one version of the table with as many token vectors in memory as a budget allows.

A `CachedVersion` never changes. When the table does, `refreshed` returns a new one that shares the vectors of all
unchanged documents: after one document is added, only that one is read, and searches that are running go on with the
version they started with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import StoreError
from manyvec.storage.kept import KeptSegment, kept_file, read_kept, write_kept
from manyvec.storage.rows import RecentRows
from manyvec.storage.snapshot import LOAD_WINDOW_BYTES, Snapshot, windows
from manyvec.storage.states import RowStates
from manyvec.timing import stage
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, concatenated, offsets_of
from manyvec.vectors.codebook import positions_of_rows
from manyvec.vectors.maxsim import ScoredPositions, Scorer, Scores, top_k

# Segments are merged up to this size: copying larger ones costs more than scoring a few more segments.
_MERGE_BYTES = 256 * 2**20
_ON_DISK = -1
# 120 for the id as a Python string and the numbers in `RowStates` and `CachedVersion`; the rest was measured for
# LanceDB's full-text index and for freed arrays (`examples/benchmarks/growth.py`).
_BYTES_PER_DOCUMENT = 120 + 400
# Share of the budget for texts and metadata, which take 1.5 % of what float16 vectors of 128 dims take (SciFact).
_ROWS_SHARE = 1 / 32
# What was kept of an index in a bucket is written again once this many times as much is in memory.
_KEPT_AGAIN = 1.05
# Filters whose documents are remembered, a byte for each document in the index.
_MAX_FILTERS = 8


@dataclass(frozen=True, eq=False)
class CachedVersion:
    """The documents of one table version. The document at position i is the row `states.row_ids[i]`.

    Attributes:
        snapshot: The version.
        states: All rows of the version.
        segments: Token vectors in memory.
        segment_of: (n_documents,) number of the segment that holds the document, -1 for none.
        position_of: (n_documents,) position of the document in its segment; ascending within each segment.
        recent: Texts and metadata that were read last, of this version and those before it.
    """

    snapshot: Snapshot
    states: RowStates
    segments: tuple[StoredBatch, ...]
    segment_of: NDArray[np.int64]
    position_of: NDArray[np.int64]
    recent: RecentRows
    _passing: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, snapshot: Snapshot, budget: int, *, reads: bool = True) -> CachedVersion:
        """Read the token vectors of a version into memory, in row order, until the budget is used up.

        Args:
            snapshot: The version.
            budget: Bytes for token vectors, for what is kept in memory of every document, and for recent texts.
            reads: Whether to read token vectors at all.
        """
        states, recent = snapshot.states(), RecentRows(int(budget * _ROWS_SHARE))
        segment_of = np.full(len(states.row_ids), _ON_DISK, np.int64)
        position_of = np.zeros(len(states.row_ids), np.int64)
        file = kept_file(snapshot)
        kept = read_kept(file, snapshot, budget * (1 - _ROWS_SHARE)) if file else []
        for number, segment in enumerate(kept):
            held = positions_of_rows(states.row_ids, states.updated, segment.row_ids, segment.updated)
            here = np.flatnonzero(held >= 0)
            segment_of[here], position_of[here] = number, segment.positions[held[here]]
        segments = tuple(segment.tokens for segment in kept)
        on_disk = cls(snapshot, states, segments, segment_of, position_of, recent)
        return on_disk.refreshed(snapshot, budget, reads=reads)

    def keep(self, *, than: int) -> None:
        """Keep the token vectors in memory on this machine's disk, if they are those of a bucket; see `kept_file`.

        Args:
            than: Bytes of those that were kept before. Nothing is written unless there are 5 % more.
        """
        if (file := kept_file(self.snapshot)) is None or self.bytes_held <= _KEPT_AGAIN * than:
            return
        kept = []
        for number, tokens in enumerate(self.segments):
            here = np.flatnonzero(self.segment_of == number)
            # Without damaged documents, which have fewer vectors than their row says.
            here = here[tokens.lengths[self.position_of[here]] == self.states.n_tokens[here]]
            row_ids, updated = self.states.row_ids[here], self.states.updated[here]
            kept.append(KeptSegment(row_ids, updated, self.position_of[here], tokens))
        write_kept(file, kept)

    def __len__(self) -> int:
        return len(self.states.row_ids)

    @property
    def bytes_held(self) -> int:
        """Bytes of the token vectors in memory."""
        return sum(segment.nbytes for segment in self.segments)

    def refreshed(
        self, snapshot: Snapshot, budget: int, *, reads: bool = True, go_on: Callable[[], bool] = lambda: True
    ) -> CachedVersion:
        """Return another version; unchanged documents keep their vectors, new and changed ones are read.

        Args:
            snapshot: The other version, of the same index; see `VersionKey`.
            budget: Bytes, as for `load`. Vectors in memory stay there even if the budget has become smaller.
            reads: Whether to read token vectors at all.
            go_on: Asked about every MB whether to read any further.

        Raises:
            StoreError: The version was removed meanwhile, or reading was stopped.
        """
        states = self.states if snapshot is self.snapshot else snapshot.states(self.states)
        segment_of = np.full(len(states.row_ids), _ON_DISK, np.int64)
        position_of = np.zeros(len(states.row_ids), np.int64)
        held = self.states
        before = positions_of_rows(states.row_ids, states.updated, held.row_ids, held.updated)
        same = before >= 0
        segment_of[same], position_of[same] = self.segment_of[before[same]], self.position_of[before[same]]
        segments = _used_segments(self.segments, segment_of, position_of)

        free = budget * (1 - _ROWS_SHARE) - _BYTES_PER_DOCUMENT * len(states.row_ids)
        free -= sum(segment.nbytes for segment in segments)
        missing = np.flatnonzero(segment_of == _ON_DISK)
        fitting = missing[np.cumsum(snapshot.token_bytes(states, missing)) <= (free if reads else 0)]
        for is_coded in (True, False):
            if len(group := fitting[states.is_coded[fitting] == is_coded]):
                segment_of[group], position_of[group] = len(segments), np.arange(len(group))
                segments.append(_read(snapshot, states, group, go_on))
                _merge_newest(segments, segment_of, position_of)
        passing = self._passing if snapshot is self.snapshot else {}
        return CachedVersion(snapshot, states, tuple(segments), segment_of, position_of, self.recent, passing)

    def positions(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of rows, which must be rows of this version."""
        return np.searchsorted(self.states.row_ids, row_ids)

    def passing(self, where: str) -> NDArray[np.int64]:
        """Return the positions, ascending, of the documents that satisfy a condition."""
        is_passing = self._passing.get(where)
        if is_passing is None:
            is_passing = np.zeros(len(self), bool)
            is_passing[self.positions(self.snapshot.row_ids(where))] = True
            # A list, because other threads may add filters meanwhile.
            for oldest in list(self._passing)[: 1 - _MAX_FILTERS]:
                self._passing.pop(oldest, None)
            self._passing[where] = is_passing
        return np.flatnonzero(is_passing)

    def rows(self, documents: NDArray[np.int64], *, spans: bool = False) -> list[dict[str, Any]]:
        """Return texts and metadata of documents, in this order, as `Snapshot.texts` does."""
        return self.recent.read(self.snapshot, self.states, documents, spans=spans)

    def match(self, text: str, limit: int, where: str | None = None) -> ScoredPositions:
        """Return the at most `limit` best documents by BM25 with their scores, best first, then by id."""
        row_ids, scores = self.snapshot.match(text, limit, where)
        positions = self.positions(row_ids)
        is_known = self.states.row_ids.take(positions, mode="clip") == row_ids if len(self) else row_ids < 0
        if not is_known.all():
            self.snapshot.report_search_index("refers to rows that do not exist")
            positions, scores = positions[is_known], scores[is_known]
        order = top_k(scores, self.states.ids[positions], limit)
        return ScoredPositions(positions[order], scores[order])

    def tokens(self, documents: NDArray[np.int64]) -> TokenBatch:
        """Return float16 token vectors of a few documents, in this order, from memory where they are held there."""
        row_ids, segment_of = self.states.row_ids[documents], self.segment_of[documents]
        on_disk = np.flatnonzero(segment_of == _ON_DISK)
        read = dict(zip(on_disk.tolist(), self.snapshot.tokens(row_ids[on_disk]), strict=True)) if len(on_disk) else {}
        vectors = [
            read[i] if i in read else self.segments[segment_of[i]].select([position]).decoded().vectors
            for i, position in enumerate(self.position_of[documents].tolist())
        ]
        return TokenBatch.unchecked(np.concatenate(vectors), offsets_of([len(rows) for rows in vectors]))

    @property
    def is_in_memory(self) -> bool:
        """Whether all token vectors are in memory."""
        return bool((self.segment_of != _ON_DISK).all())

    @stage("score")
    def score(self, scorer: Scorer, queries: TokenBatch, documents: NDArray[np.int64] | None = None) -> Scores:
        """Score documents.

        Args:
            scorer: Computes the scores.
            queries: Token vectors of the queries.
            documents: Positions, ascending; None for all documents.

        Returns:
            (n_queries, n_documents) scores.
        """
        chosen = np.arange(len(self)) if documents is None else documents
        scores = np.full((len(queries), len(chosen)), -np.inf, np.float32)
        for chosen_at, tokens, subset in self._parts(chosen):
            scores[:, chosen_at] = scorer.score_many(queries, tokens, subset)
        return scores

    @stage("score")
    def best(
        self, scorer: Scorer, queries: TokenBatch, k: int, documents: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """Return for each query some documents that include its k best.

        Args:
            scorer: Computes the scores.
            queries: Token vectors of the queries.
            k: Number of documents wanted.
            documents: Positions, ascending, of the documents to score; None for all.

        Returns:
            Positions and scores in no order: up to k for each segment or window that was scored.
        """
        chosen = np.arange(len(self)) if documents is None else documents
        best_of_parts: list[list[ScoredPositions]] = [
            [ScoredPositions(np.empty(0, np.int64), np.empty(0, np.float32))] for _ in range(len(queries))
        ]
        for chosen_at, tokens, subset in self._parts(chosen):
            for parts, best in zip(best_of_parts, scorer.top_k(queries, tokens, k, subset), strict=True):
                parts.append(ScoredPositions(chosen[chosen_at[best.positions]], best.scores))
        return [ScoredPositions(*map(np.concatenate, zip(*parts, strict=True))) for parts in best_of_parts]

    def _parts(
        self, chosen: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], StoredBatch, NDArray[np.int64] | None]]:
        """Yield the chosen documents in parts that are scored together.

        Yields:
            Positions in `chosen`, a batch that holds these documents, and their positions in it (None for all of it).
        """
        segment_of = self.segment_of[chosen]
        for number, segment in enumerate(self.segments):
            if len(here := np.flatnonzero(segment_of == number)):
                yield here, segment, None if len(here) == len(segment) else self.position_of[chosen[here]]
        on_disk = np.flatnonzero(segment_of == _ON_DISK)
        for is_coded in (True, False):
            group = on_disk[self.states.is_coded[chosen[on_disk]] == is_coded]
            for window in windows(self.snapshot.token_bytes(self.states, chosen[group])):
                here = group[window]
                yield here, _read_window(self.snapshot, self.states, chosen[here], is_coded=is_coded), None


def _read_window(snapshot: Snapshot, states: RowStates, documents: NDArray[np.int64], *, is_coded: bool) -> StoredBatch:
    """Read documents that are all stored the same way. One whose number of vectors disagrees with its row has none."""
    tokens = snapshot.stored_tokens(states.row_ids[documents], is_coded=is_coded)
    expected, lengths = states.n_tokens[documents], tokens.lengths
    if not len(wrong := np.flatnonzero(lengths != expected)):
        return tokens
    reasons = [f"{lengths[position]} token vectors instead of {expected[position]}" for position in wrong]
    snapshot.report_damage(states.row_ids[documents[wrong]].tolist(), reasons)
    return tokens.emptied(wrong)


def _read(
    snapshot: Snapshot, states: RowStates, documents: NDArray[np.int64], go_on: Callable[[], bool]
) -> StoredBatch:
    """Read one segment of documents that are all stored the same way.

    It is filled window by window, so that memory never holds it twice.
    """
    is_coded = bool(states.is_coded[documents[0]])
    # Damaged documents have fewer rows than their row says, none has more.
    lengths, n_rows = states.n_tokens[documents].copy(), 0
    rows: NDArray[Any] | None = None
    for window in windows(snapshot.token_bytes(states, documents), LOAD_WINDOW_BYTES):
        if not go_on():
            raise StoreError(f"reading the index {snapshot.uri} into memory was stopped")
        part = _read_window(snapshot, states, documents[window], is_coded=is_coded)
        if rows is None:
            rows = np.empty((lengths.sum(), part.rows.shape[1]), part.rows.dtype)
        rows[n_rows : n_rows + part.n_tokens] = part.rows
        lengths[window], n_rows = part.lengths, n_rows + part.n_tokens
    assert rows is not None
    if isinstance(part, CodedBatch):
        return CodedBatch.unchecked(rows[:n_rows], offsets_of(lengths), part.codec)
    return TokenBatch.unchecked(rows[:n_rows], offsets_of(lengths))


def _used_segments(
    segments: tuple[StoredBatch, ...], segment_of: NDArray[np.int64], position_of: NDArray[np.int64]
) -> list[StoredBatch]:
    """Return the segments without those that are no longer used; one of which less than half is used is compacted.

    `segment_of` and `position_of` are updated in place.
    """
    kept: list[StoredBatch] = []
    for number, segment in enumerate(segments):
        used = np.flatnonzero(segment_of == number)
        if not len(used):
            continue
        if 2 * segment.lengths[position_of[used]].sum() < segment.n_tokens:
            segment = segment.select(position_of[used])
            position_of[used] = np.arange(len(used))
        segment_of[used] = len(kept)
        kept.append(segment)
    return kept


def _merge_newest(segments: list[StoredBatch], segment_of: NDArray[np.int64], position_of: NDArray[np.int64]) -> None:
    """Merge the last two segments while the newer is at least half as large: n additions leave log n segments."""
    while len(segments) > 1:
        older, newer = segments[-2:]
        if older.kind != newer.kind:
            return
        size = older.nbytes + newer.nbytes
        if 2 * newer.nbytes < older.nbytes or size > _MERGE_BYTES:
            return
        last = len(segments) - 1
        # In row order, and without documents that are no longer used.
        merged = np.flatnonzero(segment_of >= last - 1)
        positions = position_of[merged] + np.where(segment_of[merged] == last, len(older), 0)
        segments[-2:] = [concatenated(older, newer).select(positions)]
        segment_of[merged], position_of[merged] = last - 1, np.arange(len(merged))
