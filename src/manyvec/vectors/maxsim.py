"""MaxSim, the late-interaction score: a readable reference, and the fast path that has to agree with it.

For every query token the most similar document token is found; these best similarities are summed (ColBERT,
https://arxiv.org/abs/2004.12832) or averaged (FILIP, https://arxiv.org/abs/2111.07783).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, offsets_of, ragged_rows
from manyvec.vectors.codec import Codec
from manyvec.vectors.kernels import QueryKernel
from manyvec.vectors.llvm import processor

Reduction = Literal["sum", "mean"]
Scores = NDArray[np.float32]
# Similarities of query tokens, one for each document, that are held before they are added up: 16 MB.
_MATCHES_AT_A_TIME = 4 * 2**20
# Tokens that matrix products are made of at a time.
_TOKENS_AT_A_TIME = 32_768


class ScoredPositions(NamedTuple):
    """The best documents for one query: (n,) places among those scored, and their (n,) scores, in no order.

    All that tie with the last of them are there, so that ids can decide.
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
        """(n_queries, n_documents) float32, of all or of a subset in rising order; -inf where there is no token."""
        ...

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """For each query the k best of them; none at -inf. Places count within the subset."""
        ...


def maxsim_reference(query: NDArray[np.floating], documents: TokenBatch) -> Scores:
    """Score each document by itself, as the formula reads: the truth that every faster way is tested against.

    Args:
        query: (n_query_tokens, dim).
        documents: documents of any length, same dim.

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

    Documents in a codec's bytes are scored as they are, without a float32 copy; where the processor multiplies int8,
    against the query rounded to int8.

    Args:
        reduction: `sum` over the query tokens (ColBERT) or their `mean` (FILIP).
    """

    reduction: Reduction = "sum"

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
            query: (n_query_tokens, dim).
            documents: documents of any length, same dim; vectors or codes.
            subset: (n,) which documents, each at most once, in rising order; all of them by default.

        Returns:
            (n_documents,) or (n,) float32 in that order. A query or document without tokens scores -inf.

        Raises:
            ShapeError: the dims differ.
        """
        return self.score_many(TokenBatch.unchecked(query, offsets_of([len(query)])), documents, subset)[0]

    def score_many(
        self, queries: TokenBatch, documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """Score every query against every document: (n_queries, n_documents) float32. See `score`.

        All queries are compared in one pass, so the documents are read and converted once.
        """
        if queries.dim != documents.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {documents.dim}: encode both with one model")
        lengths = documents.lengths if subset is None else documents.lengths[subset]
        starts = documents.offsets[:-1] if subset is None else documents.offsets[subset]
        scores = np.full((len(queries), len(lengths)), -np.inf, np.float32)
        answered, filled = np.flatnonzero(queries.lengths), np.flatnonzero(lengths)
        if not len(answered) or not len(filled):
            return scores
        matches = _matches(np.ascontiguousarray(queries.vectors, np.float32), documents)
        step = max(1, _MATCHES_AT_A_TIME // queries.n_tokens)
        for own in (filled[first : first + step] for first in range(0, len(filled), step)):
            best = matches.best(starts[own], lengths[own])
            # float32 here: near 16, float16 steps are 0.016 wide and unlike documents would tie.
            scores[answered[:, None], own] = np.add.reduceat(best, queries.offsets[answered], axis=1).T
        if self.reduction == "mean":
            scores[answered] /= queries.lengths[answered, None]
        return scores

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """See `Scorer`."""
        best = []
        for scores in self.score_many(queries, documents, subset):
            positions = np.flatnonzero(scores >= _threshold(scores, k))
            best.append(ScoredPositions(positions, scores[positions]))
        return best


def document_blocks(lengths: NDArray[np.int64], max_tokens: int) -> list[slice]:
    """Runs of whole documents of at most so many tokens together, or of one longer document; none without tokens."""
    ends = np.cumsum(lengths)
    blocks = []
    first = 0
    while first < len(lengths):
        done = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
        if ends[last - 1] > done:
            blocks.append(slice(first, last))
        first = last
    return blocks


def _matches(queries: NDArray[np.float32], documents: StoredBatch) -> QueryKernel | _Products:
    own, codec = processor(), documents.codec if isinstance(documents, CodedBatch) else None
    if own is None:
        return _Products(queries, documents.rows, codec)
    return QueryKernel.for_vectors(own, queries, documents.rows, codec)


class _Products:
    """What `QueryKernel` does, by matrix products: where there is no llvmlite, and for tests to compare it with."""

    def __init__(self, queries: NDArray[np.float32], vectors: NDArray[Any], codec: Codec | None) -> None:
        self._queries, self._vectors, self._codec = queries, vectors, codec

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n_documents, n_query_tokens); see `QueryKernel.best`."""
        blocks = document_blocks(lengths, _TOKENS_AT_A_TIME)
        return np.concatenate([self._best(starts[block], lengths[block]) for block in blocks])

    def _best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        import torch

        n_rows, first, last = int(lengths.sum()), starts[0], starts[-1] + lengths[-1]
        is_one_run = last - first == n_rows
        rows = self._vectors[first:last] if is_one_run else self._vectors[ragged_rows(starts, lengths)]
        numbers = rows if self._codec is None else self._codec.decode(rows)
        # A product treats its last few rows with other instructions, which round differently. With rows of zeros behind
        # them, equal vectors get equal similarities wherever they stand.
        padded = torch.zeros((-(-n_rows // 16) * 16, numbers.shape[1]))
        padded[:n_rows] = torch.from_dlpack(numbers)
        # All by torch: threads of its own and numpy's would wait for each other.
        similarities = (padded @ torch.from_dlpack(self._queries).T)[:n_rows].numpy()
        return np.maximum.reduceat(similarities, offsets_of(lengths)[:-1], axis=0)


def top_k(scores: Scores, ids: Sequence[str] | NDArray[np.object_], k: int) -> list[int]:
    """Places of the k best scores, best first; equal scores in the order of their ids. -inf is never among them."""
    # Everything that ties with the last one takes part, or the order of storage would decide.
    tied: list[int] = np.flatnonzero(scores >= _threshold(scores, k)).tolist()
    return sorted(tied, key=lambda i: (-scores[i], ids[i]))[: max(0, k)]


def _threshold(scores: Scores, k: int) -> float:
    """The score of the k-th best, or of the last that is not -inf; more than all of them where none is wanted."""
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    return np.inf if k <= 0 else float(np.partition(scores, len(scores) - k)[len(scores) - k])
