"""Candidate generators: which documents are worth an exact score.

Each takes one query and what a search may look at, and answers with documents, or with None for all of them. The
filter is applied before anything is ranked, so that no filtered search comes back short.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.retrieval.centroid_lists import PostingListLoader, PostingLists
from manyvec.storage.cache import CachedVersion
from manyvec.vectors.maxsim import MaxSimScorer, ScoredPositions, Scorer

logger = logging.getLogger(__name__)

Positions = NDArray[np.int64]
# So many documents are asked of BM25 where it takes part in the score.
LEXICAL_DEPTH = 300


@dataclass(frozen=True)
class Query:
    """A query as its users wrote it and as its encoder read it.

    Attributes:
        tokens: (n_tokens, dim).
        matches: the `LEXICAL_DEPTH` best documents in scope by BM25, where the search has asked for them already.
    """

    text: str
    tokens: NDArray[np.floating]
    matches: ScoredPositions | None = None


@dataclass(frozen=True)
class Scope:
    """What one search may look at: a version's documents, and of these the ones that pass its filter.

    Attributes:
        where: the filter, as LanceDB takes it; None without one.
        passing: (n,) in rising order; None for all.
        k: hits that the search wants; a generator looks at no fewer documents.
        scorer: what will score them.
    """

    documents: CachedVersion
    list_loader: PostingListLoader
    where: str | None = None
    passing: Positions | None = None
    k: int = 0
    scorer: Scorer = field(default_factory=MaxSimScorer)

    def n_wanted(self, depth: int | None) -> int:
        """How many documents to find: 300 if the search names no depth, and never fewer than its hits."""
        return max(depth or 300, self.k)

    @property
    def lists(self) -> PostingLists | None:
        """The centroid lists over this version, read when they are first wanted; None if there are none."""
        return self.list_loader.over(self.documents)

    @property
    def is_on_device(self) -> bool:
        """Whether all of the version's token vectors lie on a GPU."""
        scorer, documents = self.scorer, self.documents
        return documents.is_in_memory and scorer.holds(documents.segments)


class Candidates(Protocol):
    """A first stage."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """Documents worth scoring, best first, about `depth` of them; None for every one in scope."""
        ...


@dataclass(frozen=True)
class Exhaustive:
    """Every document: the exact answer, and the reference for every other generator."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        return None


@dataclass(frozen=True)
class Lexical:
    """BM25 over the words of the text, from LanceDB's full-text index; rows not indexed yet are scanned."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        return _matched(query, scope, scope.n_wanted(depth))


def _matched(query: Query, scope: Scope, limit: int) -> Positions:
    if query.matches is not None and limit <= LEXICAL_DEPTH:
        return query.matches.positions[:limit]
    return scope.documents.match(query.text, limit, scope.where).positions


class Pooled:
    """Cosine of mean token vectors: what a single-vector search with the same model would find.

    The means are made once for each version of the table, from all its token vectors.
    """

    def __init__(self) -> None:
        self._version = -1
        self._vectors = np.empty((0, 0), np.float32)

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        snapshot, row_ids = scope.documents.snapshot, scope.documents.states.row_ids
        if self._version != snapshot.version:
            parts = [row_ids[start : start + 256] for start in range(0, len(row_ids), 256)]
            self._vectors = np.concatenate([snapshot.tokens(part).pooled() for part in parts] or [self._vectors])
            self._version = snapshot.version
        positions = np.arange(len(row_ids)) if scope.passing is None else scope.passing
        similarities = self._vectors[positions] @ query.tokens.mean(axis=0)
        return positions[np.argsort(-similarities, kind="stable")[: scope.n_wanted(depth)]]


@dataclass(frozen=True)
class CentroidLists:
    """The centroid lists that `Index.optimize` makes: documents with token vectors near those of the query.

    Every document is a candidate where there are no lists. Kept in memory, they find more in less time than the same
    terms in LanceDB's full-text index, whose scores are sums over all terms (BM25) instead of the best term for each
    query token.
    """

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        lists = scope.lists
        return None if lists is None else lists.find(query.tokens, scope.passing, scope.n_wanted(depth))


@dataclass(frozen=True)
class Auto:
    """Centroid lists where they save work, every document where they do not.

    A word that is rare in the corpus may have no centroid near it, and what is found by it alone is then missed. So the
    documents that BM25 has first are candidates beside those of the lists.

    Args:
        exhaustive_tokens: up to so many token vectors in scope, scoring all of them takes no longer than looking for
            candidates and scoring those.
        depth_tokens: so many token vectors are scored where the search names no depth: a depth in documents alone
            would do for long ones and be far too little for short ones.
        min_depth: and at least so many documents,
        max_depth: and up to so many, of those that by their centroids come close to the k best:
        margin: within so much similarity for each query token. Where many documents are much alike, as FAQs are, it
            takes more of them to have the right ones (`examples/benchmarks/candidates.py`).
        lexical_depth: and so many by their words.
        device_tokens: as `exhaustive_tokens`, where all token vectors lie on a GPU.
    """

    exhaustive_tokens: int = 200_000
    depth_tokens: int = 10_000
    min_depth: int = 32
    max_depth: int = 300
    margin: float = 0.04
    lexical_depth: int = 16
    device_tokens: int = 50_000_000

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        n_tokens = scope.documents.states.n_tokens
        in_scope = n_tokens if scope.passing is None else n_tokens[scope.passing]
        max_depth = depth or max(self.max_depth, 3 * scope.k)
        if depth is None:
            depth = max(self.min_depth, math.ceil(self.depth_tokens * len(n_tokens) / max(1, n_tokens.sum())))
        depth = max(depth, scope.k)
        lists = None
        if len(in_scope) <= depth or in_scope.sum() <= self.exhaustive_tokens:
            reason = "they are few"
        elif in_scope.sum() <= self.device_tokens and scope.is_on_device:
            reason = "they are few for a GPU"
        elif (lists := scope.lists) is None:
            reason = "there are no centroid lists; Index.optimize makes them"
        elif 4 * len(lists.uncovered) > len(scope.documents):
            reason = "the centroid lists cover less than three quarters of the index; Index.optimize extends them"
        else:
            k = max(10, scope.k)
            positions = lists.find(query.tokens, scope.passing, depth, max_depth, k=k, margin=self.margin)
            positions = np.concatenate([positions, np.setdiff1d(_matched(query, scope, self.lexical_depth), positions)])
            logger.debug("centroid lists and BM25 choose %d of %d documents in scope", len(positions), len(in_scope))
            return positions
        logger.debug("all %d documents in scope are scored: %s", len(in_scope), reason)
        return None
