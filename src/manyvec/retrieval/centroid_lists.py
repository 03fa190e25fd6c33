"""Centroid lists: for each centroid the documents near it. Made from stored vectors, kept beside the table, searched in
memory: PLAID's first stage (https://arxiv.org/abs/2205.09707)."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manyvec.storage.cache import CachedVersion
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import offsets_of, ragged_rows
from manyvec.vectors.codebook import Assignments, Codebook

Positions = NDArray[np.int64]
# So many members are ranked a second time, by all their centroids, as hold so many centroids in the mean.
_N_WHOLE = 32_768
_MEMBERS_AT_A_TIME = 8_192
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class PostingLists:
    """For each centroid the documents with a token vector near it: what a query token's centroids lead to.

    A document scores, for every query token, the similarity of the best of its centroids among the few that the token
    probes, less that of the first centroid not probed (what a document without any of them could have had, XTR's
    imputation); the sum over the query's tokens ranks the documents.

    The best of these are ranked once more by the best of all their centroids for every query token (PLAID's centroid
    interaction), before any vector is read.

    Documents that no list covers yet, because they are newer than the last `optimize`, are always candidates.

    Attributes:
        offsets: (n_centroids + 1,) where each centroid's list starts in `members`.
        members: (n_postings,) documents by their number in these lists.
        assignments: the other way round, for each member its centroids.
        place_of: (n_members,) which document of the version a member is; -1 where it was changed or deleted.
        uncovered: (n,) documents of the version that no list knows.
    """

    offsets: NDArray[np.int64]
    members: NDArray[np.int32]
    assignments: Assignments
    position_of: Positions
    uncovered: Positions

    @classmethod
    def build(cls, assignments: Assignments, documents: CachedVersion) -> PostingLists:
        """Turn what each document's centroids are into what each centroid's documents are."""
        offsets = offsets_of(np.bincount(assignments.centroids, minlength=len(assignments.codebook)))
        members = np.empty(len(assignments.centroids), np.int32)
        free = offsets[:-1].copy()
        # A part at a time: sorting all would take several times the memory of the lists.
        for first in range(0, len(assignments), _MEMBERS_AT_A_TIME):
            own = assignments.offsets[first : first + _MEMBERS_AT_A_TIME + 1]
            centroids = assignments.centroids[own[0] : own[-1]]
            order = np.argsort(centroids, kind="stable")
            counts = np.bincount(centroids, minlength=len(free))
            of_posting = np.repeat(np.arange(first, first + len(own) - 1, dtype=np.int32), np.diff(own))
            members[ragged_rows(free, counts)] = of_posting[order]
            free += counts
        nothing = np.empty(0, np.int64)
        return cls(offsets, members, assignments, nothing, nothing).moved(documents)

    def moved(self, documents: CachedVersion) -> PostingLists:
        """The same lists for another version of the table."""
        position_of = self.assignments.positions_in(documents.states.row_ids, documents.states.updated)
        is_covered = np.zeros(len(documents), bool)
        is_covered[position_of[position_of >= 0]] = True
        return replace(self, position_of=position_of, uncovered=np.flatnonzero(~is_covered))

    @property
    def codebook(self) -> Codebook:
        return self.assignments.codebook

    @property
    def n_probed(self) -> int:
        """Centroids that a query token looks into: 16 of 4,096, 32 of 16,384."""
        return min(len(self.codebook) - 1, max(16, math.isqrt(len(self.codebook)) // 4))

    def scores(self, similarities: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_members,) the score of each member; 0 for one that shares no probed centroid with the query.

        Args:
            similarities: (n_query_tokens, n_centroids).
        """
        import torch

        # numpy's argpartition takes several times as long.
        highest, probed = torch.topk(torch.from_dlpack(similarities), self.n_probed + 1, dim=1)
        rising = probed.numpy()[:, ::-1]
        weights = highest.numpy()[:, ::-1] - highest.numpy()[:, -1:]
        starts, ends = self.offsets[rising], self.offsets[rising + 1]
        scores = np.zeros(len(self.position_of), np.float32)
        for token in range(len(rising)):
            lists = [self.members[start:end] for start, end in zip(starts[token, 1:], ends[token, 1:], strict=True)]
            members = np.concatenate(lists)
            # Of a member that comes several times numpy keeps what is added last, and the lists come in rising order:
            # each query token adds its best match, with no sort and no table of tokens by documents.
            scores[members] += np.repeat(weights[token, 1:], ends[token, 1:] - starts[token, 1:])
        return scores

    def whole_scores(self, similarities: NDArray[np.float32], members: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) for each of these members the best of all its centroids for every query token, summed."""
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
        """The best members of those that pass, best first, and behind them all that pass and are not covered.

        Args:
            tokens: (n_query_tokens, dim).
            passing: (n,) documents of the version in rising order; None for all.
            depth: so many members.
            max_depth: and up to so many, of those that score almost as the k-th best does,
            margin: less by no more than this for each query token.
        """
        similarities = self.codebook.similarities(np.asarray(tokens, np.float32))
        scores = self.scores(similarities)
        is_wanted = self.position_of >= 0
        uncovered = self.uncovered
        if passing is not None:
            is_wanted &= np.isin(self.position_of, passing)
            uncovered = np.intersect1d(uncovered, passing)
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


def _largest(values: NDArray[np.float32], n: int) -> Positions:
    """Places of the n largest values, the largest first."""
    positions = np.arange(len(values))
    if n < len(values):
        positions = _not_small(values, n)
        positions = positions[np.argpartition(-values[positions], n - 1)[:n]]
    return positions[np.argsort(-values[positions], kind="stable")]


def _not_small(values: NDArray[np.float32], n: int) -> Positions:
    """Places, in rising order, that the n largest values are among: few of them, mostly, so that few are sorted."""
    sample = values[::_SAMPLED]
    rank = 2 * n // _SAMPLED + 1
    if rank < len(sample):
        positions = np.flatnonzero(values >= np.partition(sample, -rank)[-rank])
        if len(positions) >= n:
            return positions
    return np.arange(len(values))


class PostingListLoader:
    """The centroid lists of one index: reads them and hands them out over a version of the table."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loading = threading.Lock()
        # What the lists were made of, by its name, and the lists, by the version they were last moved to.
        self._assignments: tuple[str, Assignments | None] | None = None
        self._lists: tuple[int, PostingLists | None] = (-1, None)

    def bytes_held(self, snapshot: Snapshot) -> int:
        """Bytes in memory of the lists over a version, about."""
        with self._loading:
            assignments = self._read(snapshot)
        if assignments is None:
            return 0
        return 6 * len(assignments.centroids) + 24 * len(assignments) + 5 * assignments.codebook.centroids.size

    def over(self, documents: CachedVersion) -> PostingLists | None:
        """The lists over this version; None if there are none."""
        with self._loading:
            version, lists = self._lists
            if version != documents.snapshot.version:
                assignments = self._read(documents.snapshot)
                if assignments is None:
                    lists = None
                elif lists is None or lists.assignments is not assignments:
                    lists = PostingLists.build(assignments, documents)
                else:
                    lists = lists.moved(documents)
                self._lists = documents.snapshot.version, lists
            return lists

    def _read(self, snapshot: Snapshot) -> Assignments | None:
        name = snapshot.assignments_key
        if self._assignments is None or self._assignments[0] != name:
            self._assignments = name, self._store.centroids.assignments()
        return self._assignments[1]
