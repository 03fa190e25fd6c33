"""Centroid lists: the documents near each centroid, PLAID's first stage (https://arxiv.org/abs/2205.09707).

They are built from stored vectors, kept in tables beside the documents, and searched in memory.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manyvec.storage.cache import CachedVersion
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.states import VersionKey
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import offsets_of, ragged_rows
from manyvec.vectors.codebook import Assignments, Codebook

Positions = NDArray[np.int64]
# Centroids that the members ranked a second time hold together, on average.
_N_WHOLE = 32_768
_MEMBERS_AT_A_TIME = 8_192
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class PostingLists:
    """The documents near each centroid of a codebook, over one version of the table.

    A document gets, for every query token, the similarity of the best of its centroids among the few that the token
    probes, minus the similarity of the first centroid not probed (what a document without any of them could have had:
    XTR's imputation). The sum over the query tokens ranks the documents.

    The best of them are ranked again by the best of all their centroids for every query token (PLAID's centroid
    interaction), before any vector is read.

    Documents that no list covers yet, because they are newer than the last `optimize`, are always candidates.

    Attributes:
        offsets: (n_centroids + 1,) start of each centroid's list in `members`.
        members: (n_postings,) documents, numbered within these lists.
        assignments: Centroids of each member.
        position_of: (n_members,) position of each member in the version; -1 if it was changed or deleted.
        uncovered: (n,) positions of documents that no list contains.
    """

    offsets: NDArray[np.int64]
    members: NDArray[np.int32]
    assignments: Assignments
    position_of: Positions
    uncovered: Positions

    @classmethod
    def build(cls, assignments: Assignments, documents: CachedVersion) -> PostingLists:
        """Invert the assignments: from the centroids of each document to the documents of each centroid."""
        offsets = offsets_of(np.bincount(assignments.centroids, minlength=len(assignments.codebook)))
        members = np.empty(len(assignments.centroids), np.int32)
        free = offsets[:-1].copy()
        # In parts: sorting everything at once would take several times the memory of the lists.
        for first in range(0, len(assignments), _MEMBERS_AT_A_TIME):
            starts = assignments.offsets[first : first + _MEMBERS_AT_A_TIME + 1]
            centroids = assignments.centroids[starts[0] : starts[-1]]
            order = np.argsort(centroids, kind="stable")
            counts = np.bincount(centroids, minlength=len(free))
            of_posting = np.repeat(np.arange(first, first + len(starts) - 1, dtype=np.int32), np.diff(starts))
            members[ragged_rows(free, counts)] = of_posting[order]
            free += counts
        nothing = np.empty(0, np.int64)
        return cls(offsets, members, assignments, nothing, nothing).moved(documents)

    def moved(self, documents: CachedVersion) -> PostingLists:
        """Return the same lists for another version of the table."""
        position_of = self.assignments.positions_in(documents.states.row_ids, documents.states.updated)
        is_covered = np.zeros(len(documents), bool)
        is_covered[position_of[position_of >= 0]] = True
        return replace(self, position_of=position_of, uncovered=np.flatnonzero(~is_covered))

    @property
    def codebook(self) -> Codebook:
        """The centroids."""
        return self.assignments.codebook

    @property
    def n_probed(self) -> int:
        """Number of centroids that a query token probes: 16 of 4,096, 32 of 16,384."""
        return min(len(self.codebook) - 1, max(16, math.isqrt(len(self.codebook)) // 4))

    def scores(self, similarities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (n_members,) score of each member; 0 if it shares no probed centroid with the query.

        Args:
            similarities: (n_query_tokens, n_centroids).
        """
        highest, probed = _highest(similarities, self.n_probed + 1)
        rising = probed[:, ::-1]
        weights = highest[:, ::-1] - highest[:, -1:]
        starts, ends = self.offsets[rising], self.offsets[rising + 1]
        scores = np.zeros(len(self.position_of), np.float32)
        for token in range(len(rising)):
            lists = [self.members[start:end] for start, end in zip(starts[token, 1:], ends[token, 1:], strict=True)]
            members = np.concatenate(lists)
            # If a member occurs several times, numpy keeps the last addition, and the lists are in rising order: each
            # query token adds its best match, without a sort and without a table of tokens by documents.
            scores[members] += np.repeat(weights[token, 1:], ends[token, 1:] - starts[token, 1:])
        return scores

    def whole_scores(self, similarities: NDArray[np.float32], members: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the (n,) sums, over the query tokens, of the best of all centroids of each of these members."""
        starts, lengths = self.assignments.offsets[members], np.diff(self.assignments.offsets)[members]
        backend = self.codebook.backend or default_backend()
        matcher = backend.match_centroids(similarities, self.assignments.centroids)
        return matcher.best(starts, lengths).sum(axis=1)

    def find(
        self,
        tokens: NDArray[np.floating],
        passing: Positions | None,
        depth: int,
        max_depth: int = 0,
        *,
        k: int = 10,
        margin: float = 0,
    ) -> Positions:
        """Return positions of the best documents that pass, best first, then all that pass and are not covered.

        Args:
            tokens: (n_query_tokens, dim).
            passing: (n,) positions that pass the filter, rising; None for all documents.
            depth: Number of covered documents to return.
            max_depth: Upper bound on additional documents whose score is within `margin` of the k-th best.
            k: Number of hits that the search wants.
            margin: Difference in similarity per query token.
        """
        similarities = self.codebook.similarities(np.asarray(tokens, np.float32))
        scores = self.scores(similarities)
        is_wanted = self.position_of >= 0
        uncovered = self.uncovered
        if passing is not None:
            # A member each, or uncovered. Of 100,000 documents, isin and intersect1d take thirty times as long.
            is_passing = np.zeros(np.count_nonzero(is_wanted) + len(uncovered), bool)
            is_passing[passing] = True
            is_wanted &= is_passing[self.position_of]
            uncovered = uncovered[is_passing[uncovered]]
        scores[~is_wanted] = -1
        max_depth = max(depth, max_depth)
        best = _largest(scores, max(max_depth, _N_WHOLE * len(self.position_of) // max(1, len(self.members))))
        best = best[scores[best] >= 0]
        if len(best) > depth:
            whole = self.whole_scores(similarities, best)
            order = _largest(whole, max_depth)
            lowest = whole[order[min(k, len(order)) - 1]] - margin * len(tokens)
            best = best[order[: max(depth, np.count_nonzero(whole[order] >= lowest))]]
        return np.concatenate([self.position_of[best], uncovered])


def _highest(similarities: NDArray[np.float32], n: int) -> tuple[NDArray[np.float32], Positions]:
    """Return the (n_query_tokens, n) highest similarities of each query token, falling, and their centroids."""
    probed = np.stack([_largest(row, n) for row in similarities]) if len(similarities) else np.empty((0, n), np.int64)
    return np.take_along_axis(similarities, probed, axis=1), probed


def _largest(values: NDArray[np.float32], n: int) -> Positions:
    """Return the positions of the n largest values, the largest first."""
    positions = np.arange(len(values))
    if n < len(values):
        positions = _not_small(values, n)
        positions = positions[np.argpartition(-values[positions], n - 1)[:n]]
    return positions[np.argsort(-values[positions], kind="stable")]


def _not_small(values: NDArray[np.float32], n: int) -> Positions:
    """Return rising positions that include the n largest values: usually few, so that few have to be sorted."""
    sample = values[::_SAMPLED]
    rank = 2 * n // _SAMPLED + 1
    if rank < len(sample):
        positions = np.flatnonzero(values >= np.partition(sample, -rank)[-rank])
        if len(positions) >= n:
            return positions
    return np.arange(len(values))


class PostingListLoader:
    """Loads the centroid lists of one index and moves them to newer versions of the table. May be shared by threads."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        # The assignments by index and name, and the lists by the version that they were last moved to.
        self._assignments: tuple[tuple[int, str], Assignments | None] | None = None
        self._lists: tuple[VersionKey | None, PostingLists | None] = (None, None)

    def bytes_held(self, snapshot: Snapshot) -> int:
        """Return approximately how many bytes the lists over a version take in memory."""
        with self._loading:
            assignments = self._read(snapshot)
        if assignments is None:
            return 0
        return 6 * len(assignments.centroids) + 24 * len(assignments) + 5 * assignments.codebook.centroids.size

    def over(self, documents: CachedVersion) -> PostingLists | None:
        """Return the lists over this version; None if the index has none."""
        with self._loading:
            key, lists = self._lists
            if key != documents.snapshot.key:
                assignments = self._read(documents.snapshot)
                if assignments is None:
                    lists = None
                elif lists is None or lists.assignments is not assignments:
                    lists = PostingLists.build(assignments, documents)
                else:
                    lists = lists.moved(documents)
                self._lists = documents.snapshot.key, lists
            return lists

    def _read(self, snapshot: Snapshot) -> Assignments | None:
        key = snapshot.key.generation, snapshot.assignments_key
        if self._assignments is None or self._assignments[0] != key:
            self._assignments = key, snapshot.assignments()
        return self._assignments[1]
