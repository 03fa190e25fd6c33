"""MaxSim, the late-interaction score: a readable reference, and `MaxSimScorer`, which computes the same faster.

Each query token is matched with the most similar document token. The similarities of these matches are summed (ColBERT,
https://arxiv.org/abs/2004.12832) or averaged (FILIP, https://arxiv.org/abs/2111.07783).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.vectors.backend import Backend, default_backend
from manyvec.vectors.batch import StoredBatch, TokenBatch, offsets_of

Reduction = Literal["sum", "mean"]
Scores = NDArray[np.float32]


class ScoredPositions(NamedTuple):
    """The best documents for one query, in no order, with all that tie with the last of them, so that ids can decide.

    Attributes:
        positions: (n,) positions among the documents that were scored.
        scores: (n,) their scores.
    """

    positions: NDArray[np.int64]
    scores: Scores


class Scorer(Protocol):
    """Computes MaxSim of queries and documents of the same dim. Documents are vectors or codes."""

    def holds(self, batches: Iterable[StoredBatch]) -> bool:
        """Return whether all of these batches are kept on a GPU between searches; they are copied there if they fit."""
        ...

    def score_many(
        self, queries: TokenBatch, documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """Score every query against every document; see `MaxSimScorer.score_many`."""
        ...

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """Return the k best documents for each query; see `MaxSimScorer.top_k`."""
        ...


def maxsim_reference(query: NDArray[np.floating], documents: TokenBatch) -> Scores:
    """Score each document by itself, as the formula reads. Slow; every faster way is tested against it.

    Args:
        query: (n_query_tokens, dim)
        documents: Documents of any length, same dim.

    Returns:
        (n_documents,) float32 in the documents' order. A document without tokens scores -inf.
    """
    scores = np.full(len(documents), -np.inf, np.float32)
    for i, document in enumerate(documents):
        if len(document):
            similarities = query.astype(np.float32) @ document.astype(np.float32).T
            scores[i] = similarities.max(axis=1).sum(dtype=np.float32)
    return scores


@dataclass(frozen=True)
class MaxSimScorer:
    """Scores documents against queries on the CPU, exactly.

    Codes are scored as they are stored, without a float copy. On a CPU with AVX-512 VNNI they are compared with query
    tokens rounded to int8.

    Args:
        reduction: `sum` over the query tokens (ColBERT) or their `mean` (FILIP).
        backend: Backend that compares query tokens with documents. Defaults to `default_backend()`.
        scratch_bytes: Memory for the matches of query tokens and documents before they are summed, about.

    Raises:
        InputError: The reduction is unknown.
    """

    reduction: Reduction = "sum"
    backend: Backend | None = field(default=None, kw_only=True, repr=False)
    scratch_bytes: int = field(default=16 * 2**20, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise InputError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    def holds(self, batches: Iterable[StoredBatch]) -> bool:
        """See `Scorer`."""
        return False

    def score(
        self, query: NDArray[np.floating], documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """Score one query.

        Args:
            query: (n_query_tokens, dim)
            documents: Documents of any length, same dim.
            subset: (n,) positions of the documents to score, strictly increasing. Defaults to all documents.

        Returns:
            (n_documents,) or (n,) float32 in that order. A query or document without tokens scores -inf, and so does a
            document with damaged vectors whose score would be NaN or infinite.

        Raises:
            ShapeError: The query has not two axes, or the dims differ.
        """
        if query.ndim != 2:
            raise ShapeError(f"a query must be (n_query_tokens, dim), got {query.shape}")
        return self.score_many(TokenBatch.unchecked(query, offsets_of([len(query)])), documents, subset)[0]

    def score_many(
        self, queries: TokenBatch, documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """Score every query against every document.

        All queries are compared in one pass, so that documents are read and converted once.

        Args:
            queries: Queries of any length.
            documents: As for `score`.
            subset: As for `score`.

        Returns:
            (n_queries, n_documents) or (n_queries, n) float32. A query or document without tokens scores -inf.

        Raises:
            ShapeError: The dims differ.
        """
        if queries.dim != documents.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {documents.dim}: encode both with one model")
        lengths = documents.lengths if subset is None else documents.lengths[subset]
        starts = documents.offsets[:-1] if subset is None else documents.offsets[:-1][subset]
        scores = np.full((len(queries), len(lengths)), -np.inf, np.float32)
        with_tokens, filled = np.flatnonzero(queries.lengths), np.flatnonzero(lengths)
        if not len(with_tokens) or not len(filled):
            return scores
        backend = self.backend or default_backend()
        matcher = backend.match_vectors(np.ascontiguousarray(queries.vectors, np.float32), documents)
        step = max(1, self.scratch_bytes // (4 * queries.n_tokens))
        for block in (filled[first : first + step] for first in range(0, len(filled), step)):
            best = matcher.best(starts[block], lengths[block])
            # float32 here: near 16, float16 steps are 0.016 wide and unlike documents would tie.
            scores[with_tokens[:, None], block] = np.add.reduceat(best, queries.offsets[with_tokens], axis=1).T
        if self.reduction == "mean":
            scores[with_tokens] /= queries.lengths[with_tokens, None]
        # Only damaged vectors lead to NaN or inf. These must not take the place of a good document.
        scores[~np.isfinite(scores)] = -np.inf
        return scores

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """Return the k best documents for each query, and all that tie with the last of them.

        Args:
            queries: As for `score_many`.
            documents: As for `score`.
            k: Number of documents. There are fewer if fewer have a score above -inf.
            subset: As for `score`. Positions then count within the subset.
        """
        best = []
        for scores in self.score_many(queries, documents, subset):
            positions = np.flatnonzero(scores >= _threshold(scores, k))
            best.append(ScoredPositions(positions, scores[positions]))
        return best


def top_k(scores: Scores, ids: Sequence[str] | NDArray[np.object_], k: int) -> list[int]:
    """Return the positions of the k best finite scores, best first; equal scores in the order of their ids."""
    # All that tie with the last one are sorted too, otherwise the order of storage would decide.
    tied: list[int] = np.flatnonzero((scores >= _threshold(scores, k)) & (scores < np.inf)).tolist()
    return sorted(tied, key=lambda i: (-scores[i], ids[i]))[: max(0, k)]


def _threshold(scores: Scores, k: int) -> float:
    """Return the k-th best finite score, or the last; inf if there is none or k is 0."""
    is_finite = np.isfinite(scores)
    finite = scores if is_finite.all() else scores[is_finite]
    k = min(k, len(finite))
    return np.inf if k <= 0 else float(np.partition(finite, len(finite) - k)[len(finite) - k])
