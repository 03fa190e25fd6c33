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
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.codec import Codec, has_fast_int8, rotation
from manyvec.errors import InputError, ShapeError
from manyvec.tokens import TokenBatch, offsets_of, ragged_rows

if TYPE_CHECKING:
    import torch

Reduction = Literal["sum", "mean"]
Scores = NDArray[np.float32]


class Best(NamedTuple):
    """The best documents for one query: (n,) places among those scored, and their (n,) scores, in no order.

    All that tie with the last of them are there, so that ids can decide.
    """

    places: NDArray[np.int64]
    scores: Scores


class Scorer(Protocol):
    """MaxSim of queries and documents, both of any length and of one dim; documents are vectors or codes."""

    def score_many(self, queries: TokenBatch, documents: TokenBatch, subset: NDArray[np.int64] | None = None) -> Scores:
        """(n_queries, n_documents) float32, of all or of a subset in rising order; -inf where there is no token."""
        ...

    def top_k(
        self, queries: TokenBatch, documents: TokenBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[Best]:
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
    """Scores documents against queries on the CPU, exactly, in blocks that stay in the processor's cache.

    Documents in a codec's bytes are scored as they are, without a float32 copy, against the query rounded to int8.

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

    def score_many(self, queries: TokenBatch, documents: TokenBatch, subset: NDArray[np.int64] | None = None) -> Scores:
        """Score every query against every document: (n_queries, n_documents) float32. See `score`.

        All queries go through one matrix product, so the documents are read and converted once.
        """
        if queries.dim != documents.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {documents.dim}: encode both with one model")
        import torch

        lengths = documents.lengths if subset is None else documents.lengths[subset]
        scores = np.full((len(queries), len(lengths)), -np.inf, np.float32)
        answered = np.flatnonzero(queries.lengths)
        blocks = document_blocks(lengths, max(1, self.block_bytes // (4 * documents.dim)))
        if not len(answered) or not blocks:
            return scores
        similarities = _similarities_to(queries, documents.codec)
        rows_of = documents.vectors if subset is None else ragged_rows(documents.offsets[subset], lengths)
        starts = offsets_of(lengths)

        def score_block(block: slice) -> None:
            rows = rows_of[starts[block.start] : starts[block.stop]]
            if subset is not None:
                # Unlike numpy, torch gathers without holding up the other threads.
                source = torch.from_dlpack(documents.vectors)
                out = scratch("gathered", (len(rows), source.shape[1]), source.dtype)
                rows = torch.index_select(source, 0, torch.from_dlpack(rows), out=out).numpy()
            filled = np.flatnonzero(lengths[block])
            own_starts = starts[block.start : block.stop] - starts[block.start]
            best = np.maximum.reduceat(similarities(rows), own_starts[filled], axis=1) * similarities.factors
            # float32 here: near 16, float16 steps are 0.016 wide and unlike documents would tie.
            summed = np.add.reduceat(best, queries.offsets[answered], axis=0)
            scores[answered[:, None], block.start + filled] = summed

        in_parallel(score_block, blocks)
        if self.reduction == "mean":
            scores[answered] /= queries.lengths[answered, None]
        return scores

    def top_k(
        self, queries: TokenBatch, documents: TokenBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[Best]:
        """See `Scorer`."""
        best = []
        for scores in self.score_many(queries, documents, subset):
            places = np.flatnonzero(scores >= _threshold(scores, k))
            best.append(Best(places, scores[places]))
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


class _Similarities(Protocol):
    """Dot products of all query tokens with rows of documents, but for one positive factor a query token.

    Attributes:
        factors: (n_query_tokens, 1) what the products, or the best of them, are to be multiplied with.
    """

    factors: NDArray[np.float32]

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """(n_query_tokens, n_rows) of (n_rows, dim) vectors or (n_rows, width) codes."""
        ...


def _similarities_to(queries: TokenBatch, codec: Codec | None) -> _Similarities:
    vectors = np.ascontiguousarray(queries.vectors, np.float32)
    if codec is None or not has_fast_int8():
        return _FloatProducts(vectors, codec)
    return _IntegerProducts(vectors, codec)


class _FloatProducts:
    """Products in float32, of vectors or of decoded codes."""

    def __init__(self, vectors: NDArray[np.float32], codec: Codec | None) -> None:
        import torch

        self.factors = np.ones((len(vectors), 1), np.float32)
        self._n = len(vectors)
        self._query = _padded(torch.from_dlpack(vectors), 8).clone()
        self._codec = codec

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        vectors = rows if self._codec is None else self._codec.decode(rows)
        # from_dlpack takes the read-only arrays that Arrow gives.
        if has_onednn():
            # It prepares itself for each new shape: few shapes, or that would take longer than the products do.
            padded = _padded(torch.from_dlpack(vectors), 1024)
            products = torch.ops.mkldnn._linear_pointwise(self._query, padded, None, "none", [], "")
        else:
            padded = _padded(torch.from_dlpack(vectors), 16)
            out = scratch("products", (len(self._query), len(padded)), torch.float32)
            products = torch.mm(self._query, padded.T, out=out)
        return products[: self._n, : len(rows)].numpy()


class _IntegerProducts:
    """Products of codes as they are with query tokens in int8, one scale a token: exact but for the query's rounding.

    That rounding errs as much as the one of `int8` documents; what each storage loses, by
    `examples/benchmarks/storage.py`, includes it. Taking the query in two int8 parts would multiply twice as much.
    """

    def __init__(self, vectors: NDArray[np.float32], codec: Codec) -> None:
        import torch

        self._codec = codec
        rotated = vectors @ rotation(codec.dim) if codec.is_rotated else vectors
        self.factors = np.maximum(np.abs(rotated).max(axis=1, keepdims=True), 1e-30) / np.float32(127)
        self._query = torch.from_dlpack(np.rint(rotated / self.factors).astype(np.int8))
        if codec.centroids is not None:
            self._to_centroids = torch.from_dlpack(vectors @ codec.centroids.T / self.factors)

    def __call__(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        codec, shape = self._codec, (len(self._query), len(rows))
        integers = scratch("integers", shape, torch.int32)
        torch._int_mm(self._query, torch.from_dlpack(codec.integers(rows)).T, out=integers)
        scales = torch.from_dlpack(codec.scales(rows))
        products = torch.mul(integers, scales, out=scratch("products", shape, torch.float32))
        if codec.centroids is not None:
            products += self._to_centroids.index_select(1, torch.from_dlpack(codec.nearest(rows)))
        return products.numpy()


def _padded(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    """float32 of (n, dim) rows, and rows of zeros up to the next multiple.

    A matrix product treats its last few rows with other instructions, which round differently. With no such rest, equal
    vectors get equal similarities wherever they stand: equal documents tie, and a query scores the same among others.
    """
    import torch

    n = len(rows)
    padded = scratch("padded", (-(-n // multiple) * multiple, rows.shape[1]), torch.float32)
    padded[:n] = rows
    padded[n:] = 0
    return padded


@lru_cache(maxsize=1)
def has_onednn() -> bool:
    """Whether torch can multiply with oneDNN, which keeps to a thread's own number of threads, as MKL does not."""
    import torch

    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def in_parallel(work: Callable[[slice], None], blocks: list[slice]) -> None:
    """Work on all blocks; each thread takes the next one when it has done one.

    The calling thread waits. It would have to turn off torch's own threads meanwhile, and threads that others start in
    that time would have none for good.
    """
    numbers = itertools.count()

    def work_on() -> None:
        while (number := next(numbers)) < len(blocks):
            work(blocks[number])

    pool, n_threads = _workers(os.getpid())
    for running in [pool.submit(work_on) for _ in range(min(n_threads, len(blocks)))]:
        running.result()


def scratch(name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread's own, not cleared, that is used again by the next call with this name.

    Fresh memory for every block would cost more than what is done in it: the system clears each page of it.
    """
    import torch

    n_bytes = shape[0] * shape[1] * dtype.itemsize
    held: torch.Tensor | None = getattr(_HELD, name, None)
    if held is None or len(held) < n_bytes:
        held = torch.empty(n_bytes, dtype=torch.uint8)
        if n_bytes <= _MAX_HELD_BYTES:
            setattr(_HELD, name, held)
    return held[:n_bytes].view(dtype).view(shape)


_HELD = threading.local()
_MAX_HELD_BYTES = 16 * 2**20


@lru_cache(maxsize=1)
def _workers(_process: int) -> tuple[ThreadPoolExecutor, int]:
    """As many threads as torch would use, in each of which it works alone, and their number.

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
    return pool, n_threads


def top_k(scores: Scores, ids: Sequence[str] | NDArray[np.object_], k: int) -> list[int]:
    """Places of the k best scores, best first; equal scores in the order of their ids. -inf is never among them."""
    # Everything that ties with the last one takes part, or the order of storage would decide.
    tied: list[int] = np.flatnonzero(scores >= _threshold(scores, k)).tolist()
    return sorted(tied, key=lambda i: (-scores[i], ids[i]))[: max(0, k)]


def _threshold(scores: Scores, k: int) -> float:
    """The score of the k-th best, or of the last that is not -inf; more than all of them where none is wanted."""
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    return np.inf if k <= 0 else float(np.partition(scores, len(scores) - k)[len(scores) - k])
