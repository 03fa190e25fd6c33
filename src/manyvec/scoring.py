"""MaxSim, the late-interaction score: a readable reference, and the fast path that has to agree with it.

For every query token the most similar document token is found; these best similarities are summed (ColBERT,
https://arxiv.org/abs/2004.12832) or averaged (FILIP, https://arxiv.org/abs/2111.07783).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.tokens import TokenBatch, offsets_of

Reduction = Literal["sum", "mean"]
Scores = NDArray[np.float32]


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
    """Scores documents against queries on the CPU, exactly, in blocks that stay in the processor's cache.

    Args:
        reduction: `sum` over the query tokens (ColBERT) or their `mean` (FILIP).
        block_bytes: float32 bytes of document vectors converted and multiplied at a time. With 3 MB, float16
            documents cost no more than float32 ones that take twice the memory; blocks of 64 MB take more than twice
            as long (`examples/benchmarks/scoring.py`). A document larger than a block is scored in a block of its own.
    """

    reduction: Reduction = "sum"
    block_bytes: int = 3 * 2**20

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise InputError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    def score(
        self, query: NDArray[np.floating], documents: TokenBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """Score one query.

        Args:
            query: (n_query_tokens, dim).
            documents: documents of any length, same dim.
            subset: (n,) which documents, each at most once, in rising order; all of them by default.

        Returns:
            (n_documents,) or (n,) float32 in that order. A query or document without tokens scores -inf.

        Raises:
            ShapeError: the dims differ.
        """
        return self.score_many(TokenBatch.unchecked(query, offsets_of([len(query)])), documents, subset)[0]

    def score_many(self, queries: TokenBatch, documents: TokenBatch, subset: NDArray[np.int64] | None = None) -> Scores:
        """Score every query against every document: (n_queries, n_documents) float32. See `score`.

        All queries go through one matrix product, so the documents are read and converted once.
        """
        if queries.dim != documents.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {documents.dim}: encode both with one model")
        import torch

        n_documents = len(documents) if subset is None else len(subset)
        scores = np.full((len(queries), n_documents), -np.inf, np.float32)
        answered = np.flatnonzero(queries.lengths)
        if not len(answered):
            return scores
        query_vectors = torch.zeros(_padded(queries.n_tokens), queries.dim)
        query_vectors[: queries.n_tokens] = torch.from_dlpack(np.ascontiguousarray(queries.vectors))

        def score_block(block: _Block) -> None:
            rows = block.rows(documents)
            # from_dlpack takes the read-only arrays that Arrow gives.
            vectors = torch.zeros(_padded(len(rows)), documents.dim)
            vectors[: len(rows)] = torch.from_dlpack(rows)
            similarities = (query_vectors @ vectors.T)[: queries.n_tokens, : len(rows)].numpy()
            filled = np.flatnonzero(block.lengths)
            best = np.maximum.reduceat(similarities, offsets_of(block.lengths)[filled], axis=1)
            # float32 here: near 16, float16 steps are 0.016 wide and unlike documents would tie.
            scores[np.ix_(answered, block.first + filled)] = np.add.reduceat(best, queries.offsets[answered], axis=0)

        # list() passes on what a worker raised.
        list(_workers(os.getpid()).map(score_block, self._blocks(documents, subset)))
        if self.reduction == "mean":
            scores[answered] /= queries.lengths[answered, None]
        return scores

    def _blocks(self, documents: TokenBatch, subset: NDArray[np.int64] | None) -> Iterator[_Block]:
        """Runs of whole documents, none of them without tokens."""
        lengths = documents.lengths if subset is None else documents.lengths[subset]
        ends = np.cumsum(lengths)
        max_tokens = max(1, self.block_bytes // (4 * documents.dim))
        first = 0
        while first < len(lengths):
            done = ends[first] - lengths[first]
            last = max(first + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
            if ends[last - 1] > done:
                yield _Block(first, lengths[first:last], None if subset is None else subset[first:last])
            first = last


@dataclass(frozen=True)
class _Block:
    """Some documents: the place of the first among those to score, their lengths, and which they are if not a run."""

    first: int
    lengths: NDArray[np.int64]
    subset: NDArray[np.int64] | None

    def rows(self, documents: TokenBatch) -> NDArray[np.floating]:
        """(n_tokens, dim) their vectors."""
        if self.subset is not None:
            return documents.vectors[documents.rows(self.subset)]
        return documents.vectors[documents.offsets[self.first] : documents.offsets[self.first + len(self.lengths)]]


@lru_cache(maxsize=1)
def _workers(_process: int) -> ThreadPoolExecutor:
    """As many threads as torch would use, in each of which it works alone.

    Torch's own threads meet after every step of every block. Where another process holds one core, all wait for the
    one that waits for it, hundreds of times a search: ten times the time on a busy machine.

    Args:
        _process: the process's id; one that was forked has none of its parent's threads, and makes its own.
    """
    import torch

    n_threads = torch.get_num_threads()
    all_there = threading.Barrier(n_threads)
    pool = ThreadPoolExecutor(n_threads, "maxsim", initializer=torch.set_num_threads, initargs=(1,))
    for waiting in [pool.submit(all_there.wait) for _ in range(n_threads)]:
        waiting.result()
    # The setting is each thread's own, but new threads start with the one that was made last.
    torch.set_num_threads(n_threads)
    return pool


def _padded(n: int) -> int:
    """The next multiple of 16.

    A matrix product treats its last few rows and columns with other instructions, which round differently. With no
    such rest, equal vectors get equal similarities wherever they stand, and equal documents tie.
    """
    return -(-n // 16) * 16


def top_k(scores: Scores, ids: Sequence[str] | NDArray[np.object_], k: int) -> list[int]:
    """Places of the k best scores, best first; equal scores in the order of their ids. -inf is never among them."""
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    if k <= 0:
        return []
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    # Everything that ties with the last one takes part, or the order of storage would decide.
    tied: list[int] = np.flatnonzero(scores >= threshold).tolist()
    return sorted(tied, key=lambda i: (-scores[i], ids[i]))[:k]
