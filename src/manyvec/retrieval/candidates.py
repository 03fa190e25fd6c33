"""First stages of a search: which documents are worth an exact score.

A first stage takes one query and the scope of a search, and returns positions of documents, or None for all documents
in scope. Filters are applied before anything is ranked, so a filtered search never returns fewer hits than it could.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from manyvec.retrieval.centroid_lists import PostingListLoader, PostingLists
from manyvec.retrieval.lexical import Lexicon
from manyvec.storage.cache import CachedVersion
from manyvec.vectors.maxsim import MaxSimScorer, ScoredPositions, Scorer

logger = logging.getLogger(__name__)

Positions = NDArray[np.int64]
# Number of documents requested from BM25 where it takes part in the score.
LEXICAL_DEPTH = 300
# Documents pooled at a time.
_POOLED_BATCH = 256


@dataclass(frozen=True)
class Query:
    """A query as the user wrote it and as the encoder read it.

    Attributes:
        text: The query string.
        tokens: (n_tokens, dim) token vectors.
        matches: The best documents in scope by BM25, `LEXICAL_DEPTH` or as many as the search wants hits, if it has
            requested them already.
    """

    text: str
    tokens: NDArray[np.floating]
    matches: ScoredPositions | None = None


@dataclass(frozen=True)
class Scope:
    """What one search may look at: a version of the table, and the documents in it that pass the filter.

    Attributes:
        documents: The version. Positions count its documents.
        list_loader: Loads the centroid lists of the index.
        where: The filter as SQL; None without a filter.
        passing: (n,) positions that pass the filter, rising; None for all documents.
        k: Number of hits that the search wants. A first stage returns at least as many documents if it can.
        scorer: Scorer that will compute the exact scores.
        lexicon: BM25 over the index.
    """

    documents: CachedVersion
    list_loader: PostingListLoader
    where: str | None = None
    passing: Positions | None = None
    k: int = 0
    scorer: Scorer = field(default_factory=MaxSimScorer)
    lexicon: Lexicon = field(default_factory=Lexicon)

    def match(self, text: str, limit: int) -> ScoredPositions:
        """Return the at most `limit` best documents in scope by BM25 with their scores, best first, then by id."""
        return self.lexicon.match(self.documents, text, limit, self.where, self.passing)

    def n_wanted(self, depth: int | None) -> int:
        """Return how many documents to find: `depth`, by default 300, and at least `k`."""
        return max(depth or 300, self.k)

    @property
    def lists(self) -> PostingLists | None:
        """The centroid lists over this version, loaded at the first use; None if the index has none."""
        return self.list_loader.over(self.documents)

    @property
    def is_on_device(self) -> bool:
        """Whether all of the version's token vectors lie on a GPU."""
        scorer, documents = self.scorer, self.documents
        return documents.is_in_memory and scorer.holds(documents.segments)


class Candidates(Protocol):
    """Protocol of a first stage. Assign one to `Index.candidates` to use it."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """Return positions of about `depth` documents worth scoring, best first; None for all documents in scope."""
        ...


@dataclass(frozen=True)
class Exhaustive:
    """Score every document: exact, and the reference for all other first stages."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """See `Candidates.find`."""
        return None


@dataclass(frozen=True)
class Lexical:
    """Find documents by BM25."""

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """See `Candidates.find`."""
        return _bm25_best(query, scope, scope.n_wanted(depth))


class Pooled:
    """Find documents by the cosine of mean token vectors, as a single-vector search with the same model would.

    The means are computed once for each version of an index, from all its token vectors. May be shared by indexes and
    threads.
    """

    def __init__(self) -> None:
        # By version object, which belongs to one index: neither a version number nor a path tells indexes apart.
        self._means: WeakKeyDictionary[CachedVersion, NDArray[np.float32]] = WeakKeyDictionary()
        self._computing = threading.Lock()

    def __reduce__(self) -> tuple[type[Pooled], tuple[()]]:
        # Copies compute the means of what they see.
        return Pooled, ()

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """See `Candidates.find`."""
        with self._computing:
            means = self._means.get(scope.documents)
            if means is None:
                means = self._means[scope.documents] = _mean_vectors(scope.documents, query.tokens.shape[1])
        positions = np.arange(len(means)) if scope.passing is None else scope.passing
        # Not `@`: BLAS starts threads that spin for longer than this takes.
        similarities = np.einsum("nd,d->n", means[positions], query.tokens.mean(axis=0))
        return positions[np.argsort(-similarities, kind="stable")[: scope.n_wanted(depth)]]


@dataclass(frozen=True)
class CentroidLists:
    """Find documents with token vectors near those of the query, in the centroid lists that `Index.optimize` builds.

    Without lists, every document is a candidate. Held in memory, the lists find more in less time than the same terms
    in LanceDB's full-text index, whose scores are sums over all terms (BM25) instead of the best term for each query
    token.
    """

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """See `Candidates.find`."""
        lists = scope.lists
        return None if lists is None else lists.find(query.tokens, scope.passing, scope.n_wanted(depth))


@dataclass(frozen=True)
class Auto:
    """Use the centroid lists where they save work, and score every document where they do not.

    A word that is rare in the corpus may have no centroid near it, and documents found by it alone would be missed. So
    BM25's best documents are candidates too.

    Args:
        exhaustive_tokens: Number of token vectors in scope up to which all of them are scored, because that takes no
            longer than finding candidates and scoring those.
        depth_tokens: Default depth, in token vectors; the number of documents follows from their average length. A
            fixed number of documents would be enough for long ones and far too small for short ones.
        min_depth: Lower bound on that number of documents.
        max_depth: Upper bound on the number of documents whose centroid score is within `margin` of the k-th best.
        margin: Difference in similarity per query token. Where many documents are much alike, as in FAQs, more of them
            are needed to include the best ones (`examples/benchmarks/candidates.py`).
        lexical_depth: Number of BM25's best documents that become candidates too.
        device_tokens: Same as `exhaustive_tokens`, if all token vectors lie on a GPU.
    """

    exhaustive_tokens: int = 200_000
    depth_tokens: int = 10_000
    min_depth: int = 32
    max_depth: int = 300
    margin: float = 0.04
    lexical_depth: int = 16
    device_tokens: int = 50_000_000

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        """See `Candidates.find`."""
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
            reason = "there are no centroid lists; Index.optimize builds them"
        elif 4 * len(lists.uncovered) > len(scope.documents):
            reason = "the centroid lists cover less than three quarters of the index; Index.optimize extends them"
        else:
            k = max(10, scope.k)
            near = lists.find(query.tokens, scope.passing, depth, max_depth, k=k, margin=self.margin)
            positions = np.concatenate([near, np.setdiff1d(_bm25_best(query, scope, self.lexical_depth), near)])
            logger.debug("centroid lists and BM25 choose %d of %d documents in scope", len(positions), len(in_scope))
            return positions
        logger.debug("all %d documents in scope are scored: %s", len(in_scope), reason)
        return None


def _bm25_best(query: Query, scope: Scope, limit: int) -> Positions:
    if query.matches is not None and limit <= max(LEXICAL_DEPTH, scope.k):
        return query.matches.positions[:limit]
    # Images and token vectors come without words.
    return scope.match(query.text, limit if query.text else 0).positions


def _mean_vectors(documents: CachedVersion, dim: int) -> NDArray[np.float32]:
    """Return the (n_documents, dim) mean token vectors of a version, unit length."""
    row_ids = documents.states.row_ids
    starts = range(0, len(row_ids), _POOLED_BATCH)
    parts = [documents.snapshot.tokens(row_ids[start : start + _POOLED_BATCH]).pooled() for start in starts]
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float32)
