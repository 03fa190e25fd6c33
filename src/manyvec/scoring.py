"""MaxSim, the late-interaction score: a readable reference, and the fast path that has to agree with it.

For every query token the most similar document token is found; these best similarities are summed (ColBERT,
https://arxiv.org/abs/2004.12832) or averaged (FILIP, https://arxiv.org/abs/2111.07783).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.codec import Codec, rotation
from manyvec.errors import InputError, ShapeError
from manyvec.tokens import TokenBatch, offsets_of, ragged_rows

if TYPE_CHECKING:
    import torch

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

    Documents in a codec's bytes are scored as they are: their integers are multiplied with the query in two int8 parts
    (15 bits), so that no float32 copy is made and only the codec's own error remains.

    Args:
        reduction: `sum` over the query tokens (ColBERT) or their `mean` (FILIP).
        block_bytes: document vectors are multiplied so many float32 bytes at a time. Smaller blocks cost more calls
            than a nearer cache saves, larger ones leave the caches (`examples/benchmarks/scoring.py`). A larger
            document makes a block of its own.
    """

    reduction: Reduction = "sum"
    block_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise InputError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    def score(
        self, query: NDArray[np.floating], documents: TokenBatch, subset: NDArray[np.int64] | None = None
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
        self,
        queries: TokenBatch,
        documents: TokenBatch,
        subset: NDArray[np.int64] | None = None,
        *,
        coarse: bool = False,
    ) -> Scores:
        """Score every query against every document: (n_queries, n_documents) float32. See `score`.

        All queries go through one matrix product, so the documents are read and converted once.

        Args:
            coarse: codes and queries are rounded to 8 bits, for choosing whom to score again: takes a third of the time,
                and similarities are off by about 0.003.
        """
        if queries.dim != documents.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {documents.dim}: encode both with one model")
        import torch

        lengths = documents.lengths if subset is None else documents.lengths[subset]
        scores = np.full((len(queries), len(lengths)), -np.inf, np.float32)
        answered = np.flatnonzero(queries.lengths)
        blocks = self._blocks(lengths, documents.dim)
        if not len(answered) or not blocks:
            return scores
        similarities = _similarities_to(queries, documents.codec, coarse)
        rows_of = documents.vectors if subset is None else ragged_rows(documents.offsets[subset], lengths)
        starts = offsets_of(lengths)

        def score_block(block: slice) -> None:
            rows = rows_of[starts[block.start] : starts[block.stop]]
            if subset is not None:
                # Unlike numpy, torch gathers without holding up the other threads.
                rows = torch.from_dlpack(documents.vectors).index_select(0, torch.from_dlpack(rows)).numpy()
            filled = np.flatnonzero(lengths[block])
            own_starts = starts[block.start : block.stop] - starts[block.start]
            best = np.maximum.reduceat(similarities(rows), own_starts[filled], axis=1) * similarities.factors
            # float32 here: near 16, float16 steps are 0.016 wide and unlike documents would tie.
            summed = np.add.reduceat(best, queries.offsets[answered], axis=0)
            scores[answered[:, None], block.start + filled] = summed

        _in_parallel(score_block, blocks)
        if self.reduction == "mean":
            scores[answered] /= queries.lengths[answered, None]
        return scores

    def _blocks(self, lengths: NDArray[np.int64], dim: int) -> list[slice]:
        """Runs of whole documents, none of them without tokens."""
        ends = np.cumsum(lengths)
        max_tokens = max(1, self.block_bytes // (4 * dim))
        blocks = []
        first = 0
        while first < len(lengths):
            done = ends[first] - lengths[first]
            last = max(first + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
            if ends[last - 1] > done:
                blocks.append(slice(first, last))
            first = last
        return blocks


class _Similarities(Protocol):
    """Dot products of all query tokens with rows of documents, but for one positive factor a query token.

    Attributes:
        factors: (n_query_tokens, 1) what the products, or the best of them, are to be multiplied with.
    """

    factors: NDArray[np.float32]

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """(n_query_tokens, n_rows) of (n_rows, dim) vectors or (n_rows, width) codes."""
        ...


def _similarities_to(queries: TokenBatch, codec: Codec | None, coarse: bool) -> _Similarities:
    vectors = np.ascontiguousarray(queries.vectors, np.float32)
    if codec is None or not has_fast_int8():
        return _FloatProducts(vectors, codec)
    return _IntegerProducts(vectors, codec, coarse)


class _FloatProducts:
    """Products in float32, of vectors or of decoded codes."""

    def __init__(self, vectors: NDArray[np.float32], codec: Codec | None) -> None:
        import torch

        self.factors = np.ones((len(vectors), 1), np.float32)
        self._query = _padded(torch.from_dlpack(vectors))
        self._codec = codec

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        vectors = rows if self._codec is None else self._codec.decode(rows)
        # from_dlpack takes the read-only arrays that Arrow gives.
        products = self._query @ _padded(torch.from_dlpack(vectors)).T
        return products[: len(self.factors), : len(rows)].numpy()


class _IntegerProducts:
    """Products of codes as they are, with query tokens in two int8 parts: part 0 times `unit`, and part 1.

    A product of int8 with int8 is exact, and four times as fast as one of float32 on processors made for it.
    """

    def __init__(self, vectors: NDArray[np.float32], codec: Codec, coarse: bool) -> None:
        import torch

        self._codec, self._coarse, self._unit = codec, coarse, 1 if coarse else 128
        rotated = vectors @ rotation(codec.dim) if codec.is_rotated else vectors
        self.factors = np.maximum(np.abs(rotated).max(axis=1, keepdims=True), 1e-30) / np.float32(127 * self._unit)
        whole = np.rint(rotated / self.factors).astype(np.int32)
        high = (whole + self._unit // 2) // self._unit
        self._high = torch.from_dlpack(high.astype(np.int8))
        self._low = torch.from_dlpack((whole - self._unit * high).astype(np.int8))
        if codec.centroids is not None:
            self._to_centroids = torch.from_dlpack(vectors @ codec.centroids.T / self.factors)

    def __call__(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        codec = self._codec
        integers = torch.from_dlpack(codec.integers(rows)).T
        if self._coarse:
            products = torch._int_mm(self._high, integers)
        else:
            both = torch._int_mm(torch.cat([self._high, self._low]), integers).float()
            products = both[: len(self._high)].mul_(self._unit).add_(both[len(self._high) :])
            if codec.bits == 16:
                lower = torch._int_mm(self._high, torch.from_dlpack(codec.low_integers(rows)).T)
                products = products.mul_(256).add_(lower, alpha=self._unit)
        scales = codec.scales(rows) * np.float32(256 if self._coarse and codec.bits == 16 else 1)
        products = products * torch.from_dlpack(scales)
        if codec.centroids is not None:
            products += self._to_centroids.index_select(1, torch.from_dlpack(codec.nearest(rows)))
        return products.numpy()


@lru_cache(maxsize=1)
def has_fast_int8() -> bool:
    """Whether this processor multiplies int8 faster than float32: x86 with VNNI. Elsewhere torch does it by hand."""
    import torch

    supports = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supports and supports() and torch.backends.mkldnn.is_available())


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """float32 of (n, dim) rows, and rows of zeros up to the next multiple of 16.

    A matrix product treats its last few rows and columns with other instructions, which round differently. With no
    such rest, equal vectors get equal similarities wherever they stand, and equal documents tie.
    """
    import torch

    n = len(rows)
    padded = torch.empty(-(-n // 16) * 16, rows.shape[1])
    padded[:n] = rows
    padded[n:] = 0
    return padded


def _in_parallel(work: Callable[[slice], None], blocks: list[slice]) -> None:
    """Work on all blocks; each thread takes the next one when it has done one."""
    numbers = itertools.count()

    def work_on() -> None:
        while (number := next(numbers)) < len(blocks):
            work(blocks[number])

    pool = _workers(os.getpid())
    waiting = [pool.submit(work_on) for _ in range(min(pool._max_workers, len(blocks)))]
    for future in waiting:
        future.result()


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


def top_k(scores: Scores, ids: Sequence[str] | NDArray[np.object_], k: int) -> list[int]:
    """Places of the k best scores, best first; equal scores in the order of their ids. -inf is never among them."""
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    if k <= 0:
        return []
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    # Everything that ties with the last one takes part, or the order of storage would decide.
    tied: list[int] = np.flatnonzero(scores >= threshold).tolist()
    return sorted(tied, key=lambda i: (-scores[i], ids[i]))[:k]
