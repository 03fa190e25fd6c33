"""MaxSim on a CUDA device: documents are kept there as they are stored, and only scores are copied back.

Rows lie end to end with offsets, as in a `TokenBatch`. Nothing is padded, and nothing is gathered where all documents
are scored. Each query token is split into a float16 value and a float16 remainder. Their products with float16 vectors,
or with a codec's small integers, are exact in tensor cores, which sum in float32, whether TF32 is allowed or not.
Everything but the kernel of flash-maxsim runs on any torch device, so that it can be tested without a GPU.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import DeviceMemoryError, InputError, ShapeError
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, document_blocks, offsets_of
from manyvec.vectors.codec import Codec, rotation
from manyvec.vectors.maxsim import MaxSimScorer, Reduction, ScoredPositions, Scorer, Scores

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Smaller blocks would hardly save memory.
_MIN_BLOCK_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class DeviceDocuments:
    """The documents of one batch on a device. Use `upload` to make one.

    Attributes:
        rows: (n_tokens, dim) float16 vectors or (n_tokens, width) codes, padded with zeros to a multiple of 16 rows.
        offsets: (n_documents + 1,) start of each document, on the host.
        device_offsets: The same on the device.
        dim: Dimension of the vectors.
        codec: Codec of the codes; None for vectors.
        table: (256, integers per byte) float16 integers of each byte, for a codec of several integers per byte.
        centroids: (2 * n_centroids, dim) the codec's centroids, split by `_halves`.
        scratch_bytes: Memory that a search may take on the device besides, about. A document is never divided.
    """

    rows: torch.Tensor
    offsets: NDArray[np.int64]
    device_offsets: torch.Tensor
    dim: int
    codec: Codec | None = None
    table: torch.Tensor | None = None
    centroids: torch.Tensor | None = None
    scratch_bytes: int = 2**29

    @classmethod
    def upload(
        cls, documents: StoredBatch, device: str | torch.device = "cuda", *, scratch_bytes: int = 2**29
    ) -> DeviceDocuments:
        """Copy a batch to the device. float32 vectors become float16.

        Raises:
            DeviceMemoryError: The batch does not fit. Nothing stays on the device.
        """
        import torch

        codec, n_tokens = None, documents.n_tokens
        if isinstance(documents, CodedBatch):
            codec, held = documents.codec, documents.codes
        else:
            held = documents.vectors.astype(np.float16, copy=False)
        table = centroids = None
        try:
            dtype = torch.uint8 if codec else torch.float16
            rows = torch.zeros(_to_sixteen(n_tokens), held.shape[1], dtype=dtype, device=device)
            rows[:n_tokens] = torch.from_dlpack(held)
            device_offsets = torch.tensor(documents.offsets, device=device)
            if codec is not None and codec.bits < 8:
                every_byte = np.repeat(np.arange(256, dtype=np.uint8)[:, None], codec.width, axis=1)
                integers = codec.integers(every_byte)[:, : 8 // codec.bits]
                table = torch.from_numpy(integers.astype(np.float16)).to(device)
            if codec is not None and codec.centroids is not None:
                centroids = _halves(codec.centroids, rows.device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{held.nbytes / 2**30:.2f} GiB of token vectors do not fit on {device}: score them on the CPU"
            ) from error
        return cls(rows, documents.offsets, device_offsets, documents.dim, codec, table, centroids, scratch_bytes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def bytes_held(self) -> int:
        """Bytes that the documents take on the device between searches."""
        tensors = (self.rows, self.device_offsets, self.table, self.centroids)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n_documents,) number of tokens of each document."""
        return np.diff(self.offsets)

    def score_many(
        self, queries: TokenBatch, subset: NDArray[np.int64] | None = None, *, reduction: Reduction = "sum"
    ) -> Scores:
        """Score every query against every document, as `MaxSimScorer.score_many` does.

        Args:
            queries: Queries of any length, same dim.
            subset: (n,) positions of the documents to score; only their rows are read. Defaults to all documents.
            reduction: `sum` or `mean` over the query tokens.

        Returns:
            (n_queries, n_documents) or (n_queries, n) float32. A query or document without tokens scores -inf.

        Raises:
            ShapeError: The dims differ.
            DeviceMemoryError: The device has too little memory even for the smallest blocks.
        """
        return self._score(queries, subset, reduction).cpu().numpy()

    def top_k(
        self,
        queries: TokenBatch,
        k: int,
        subset: NDArray[np.int64] | None = None,
        *,
        reduction: Reduction = "sum",
    ) -> list[ScoredPositions]:
        """Return the k best documents for each query and all that tie with the last of them, as `MaxSimScorer.top_k`.

        Arguments and errors are those of `score_many`.
        """
        scores = self._score(queries, subset, reduction)
        k = min(k, scores.shape[1])
        if k <= 0:
            return [ScoredPositions(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(queries))]
        thresholds = scores.topk(k, dim=1).values[:, -1:]
        chosen = (scores >= thresholds) & (scores > -np.inf)
        positions = [row.nonzero()[:, 0] for row in chosen]
        return [
            ScoredPositions(best.cpu().numpy(), row[best].cpu().numpy())
            for best, row in zip(positions, scores, strict=True)
        ]

    def _score(self, queries: TokenBatch, subset: NDArray[np.int64] | None, reduction: Reduction) -> torch.Tensor:
        """(n_queries, n_documents) on the device."""
        import torch

        if queries.dim != self.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {self.dim}: encode both with one model")
        MaxSimScorer(reduction)  # raises for an unknown one
        kernel = self._kernel()
        padded = _to_sixteen(queries.n_tokens)
        # Gathered rows and their positions. Without the kernel also similarities, up to four copies of them, and
        # unpacked codes. The kernel reads all documents where they are, in one block.
        bytes_per_token = 2 * self.dim + (24 if kernel else 16 * padded + 6 * self.dim)
        block_tokens = len(self.rows)
        if kernel is None or subset is not None:
            block_tokens = min(self.scratch_bytes // bytes_per_token, block_tokens)
        try:
            work = partial(self._score_in_blocks, queries, subset, reduction, kernel)
            return halved_until_it_fits(work, max(1, block_tokens), _MIN_BLOCK_TOKENS)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{self.rows.device} has no memory left to score {len(queries)} queries: score fewer, or on the CPU"
            ) from error

    def _score_in_blocks(
        self,
        queries: TokenBatch,
        subset: NDArray[np.int64] | None,
        reduction: Reduction,
        kernel: Callable[..., Any] | None,
        block_tokens: int,
    ) -> torch.Tensor:
        import torch

        device = self.rows.device
        lengths = self.lengths if subset is None else self.lengths[subset]
        scores = torch.full((len(queries), len(lengths)), -torch.inf, device=device)
        blocks = document_blocks(lengths, block_tokens)
        with_tokens = np.flatnonzero(queries.lengths)
        if not blocks or not len(with_tokens):
            return scores
        queries = queries.select(with_tokens)
        score = self._in_kernel(queries, kernel) if kernel else self._in_torch(queries)
        # All products have one shape. Another shape may be summed in another order, and equal documents would not tie.
        window = _to_sixteen(min(block_tokens, int(lengths.sum())))
        for block in blocks:
            n_rows = max(window, _to_sixteen(int(lengths[block].sum())))
            if subset is None:
                first = min(int(self.offsets[block.start]), len(self.rows) - n_rows)
                rows = self.rows[first : first + n_rows]
                offsets = self.device_offsets[block.start : block.stop + 1] - first
            else:
                starts = self.device_offsets[:-1][torch.tensor(subset[block], device=device)]
                offsets = torch.from_numpy(offsets_of(lengths[block])).to(device)
                rows = self.rows.index_select(0, _ragged_rows(starts, offsets, n_rows))
            scores[with_tokens, block] = score(rows, offsets)
        if reduction == "mean":
            scores[with_tokens] /= torch.from_numpy(queries.lengths).to(device)[:, None]
        # As in `MaxSimScorer.score_many`: a damaged document has no score.
        return scores.masked_fill_(~scores.isfinite(), -torch.inf)

    def _in_torch(self, queries: TokenBatch) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return a function of a block's rows and its documents' offsets to (n_queries, n_documents) scores."""
        import torch

        device, codec = self.rows.device, self.codec
        vectors = np.asarray(queries.vectors, np.float32)
        is_rotated = codec is not None and codec.is_rotated
        parts = _halves(vectors @ rotation(self.dim) if is_rotated else vectors, device)
        query_offsets = torch.from_numpy(queries.offsets).to(device)
        to_centroids = None
        if self.centroids is not None:
            high, low = _dots(self.centroids, _halves(vectors, device)).chunk(2)
            to_centroids = high + low

        def score(rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            similarities = _dots(self._values(rows), parts)
            if codec is not None:
                similarities *= self._scales(rows)
            if to_centroids is not None:
                similarities += to_centroids.index_select(0, _two_bytes(rows[:, :2], torch.int16).int() & 0xFFFF)
            best = _segments(similarities, "max", offsets, -torch.inf)
            return _segments(best.T.contiguous(), "sum", query_offsets, 0)

        return score

    def _values(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, dim) float16 vectors, or the integers of codes."""
        import torch

        if self.codec is None:
            return rows
        packed = rows[:, self.codec.integers_at :]
        if self.table is None:
            return packed.view(torch.int8).half()
        return torch.nn.functional.embedding(packed.int(), self.table).flatten(1)[:, : self.dim]

    def _scales(self, rows: torch.Tensor) -> torch.Tensor | float:
        import torch

        assert self.codec is not None
        if (start := self.codec.scale_at) is None:
            return float(np.float32(self.dim**-0.5))
        return _two_bytes(rows[:, start : start + 2], torch.float16)[:, None].float()

    def _in_kernel(
        self, queries: TokenBatch, kernel: Callable[..., Any]
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        import torch

        vectors = [torch.from_numpy(np.asarray(query, np.float16)).to(self.rows.device) for query in queries]

        return lambda rows, offsets: torch.stack([kernel(query, rows, offsets) for query in vectors])

    def _kernel(self) -> Callable[..., Any] | None:
        """Return flash-maxsim's kernel for ragged documents, or None if it is not installed or would copy these.

        The kernel rounds the query to float16 too, and sums in float32. Scores differ from torch's by less than 2^-11
        times the number of query tokens. Its first call for a dim and a query length compiles for some seconds.
        """
        # It pads dims that are not a power of two, in a copy of all documents at every call.
        is_read_in_place = self.codec is None and 16 <= self.dim <= 512 and self.dim & (self.dim - 1) == 0
        if self.rows.device.type != "cuda" or not is_read_in_place:
            return None
        try:
            return importlib.import_module("flash_maxsim").flash_maxsim_packed
        except ModuleNotFoundError:
            return None


class DeviceScorer:
    """Scores documents on a device that keeps them between searches, and on the CPU those that do not fit there.

    A batch is copied to the device when it is first scored, and is freed there when it is freed on the host.
    Thread-safe.

    Args:
        device: Name of a torch device, such as `cuda` or `cuda:1`.

    Raises:
        InputError: The device is not available, or not of a supported type.
    """

    def __init__(self, device: str) -> None:
        import torch

        try:
            if torch.device(device).type not in ("cuda", "cpu"):
                raise InputError(f"token vectors are scored on the CPU or on CUDA, not on {device!r}")
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"the device {device!r} cannot be used, score on 'cpu': {error}") from error
        self.device = device
        self._on_cpu = MaxSimScorer()
        # None for a batch that does not fit on the device.
        self._held: WeakKeyDictionary[StoredBatch, DeviceDocuments | None] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def holds(self, batches: Iterable[StoredBatch]) -> bool:
        """See `Scorer`."""
        return all(self._uploaded(batch) is not None for batch in batches)

    def score_many(
        self, queries: TokenBatch, documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """See `Scorer`."""
        there = self._uploaded(documents)
        if there is not None:
            try:
                return there.score_many(queries, subset)
            except DeviceMemoryError as error:
                self._refuse(documents, error)
        return self._on_cpu.score_many(queries, documents, subset)

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """See `Scorer`. Only the best scores are copied from the device."""
        there = self._uploaded(documents)
        if there is not None:
            try:
                return there.top_k(queries, k, subset)
            except DeviceMemoryError as error:
                self._refuse(documents, error)
        return self._on_cpu.top_k(queries, documents, k, subset)

    def _uploaded(self, documents: StoredBatch) -> DeviceDocuments | None:
        with self._lock:
            if documents not in self._held:
                try:
                    self._held[documents] = DeviceDocuments.upload(documents, self.device)
                except DeviceMemoryError as error:
                    self._refuse(documents, error)
            return self._held[documents]

    def _refuse(self, documents: StoredBatch, error: DeviceMemoryError) -> None:
        """Score this batch on the CPU from now on: another attempt would fail as late as this one."""
        logger.warning("%s; they are scored on the CPU instead", error)
        self._held[documents] = None


def scorer_on(device: str) -> Scorer:
    """Return the scorer for a torch device: `cpu` or as for `DeviceScorer`."""
    return MaxSimScorer() if device == "cpu" else DeviceScorer(device)


def halved_until_it_fits(work: Callable[[int], T], size: int, least: int) -> T:
    """Return `work(size)`, halving the size while the device runs out of memory.

    Args:
        work: Function of a size.
        size: Size to start with.
        least: Smallest size to try.

    Raises:
        torch.OutOfMemoryError: The device runs out of memory even with `least`.
    """
    import torch

    while True:
        try:
            return work(size)
        except torch.OutOfMemoryError:
            if size <= least:
                raise
        # Outside of the except clause, where the error still references the memory.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        size = max(least, size // 2)


def _dots(rows: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """(n_rows, n) float32 dot products of float16 rows and n vectors split by `_halves`."""
    import torch

    if rows.is_cuda and "dtype" in torch.ops.aten.mm.overloads():  # torch 2.8
        products = torch.mm(rows, parts.T, out_dtype=torch.float32)
    else:
        products = rows.float() @ parts.float().T
    high, low = products.chunk(2, dim=1)
    return high + low


def _halves(vectors: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Split (n, dim) vectors into (2 * m, dim) float16: vector i is row i plus row m + i. m is n rounded up to 16."""
    import torch

    high = vectors.astype(np.float16)
    halves = np.zeros((2, _to_sixteen(len(vectors)), vectors.shape[1]), np.float16)
    halves[:, : len(vectors)] = high, vectors - high
    return torch.from_numpy(halves.reshape(-1, vectors.shape[1])).to(device)


def _segments(data: torch.Tensor, reduce: str, offsets: torch.Tensor, initial: float) -> torch.Tensor:
    """Reduce runs of rows to (n, columns). `unsafe` allows rows before the first and after the last run."""
    import torch

    return torch.segment_reduce(data, reduce, offsets=offsets, axis=0, unsafe=True, initial=initial)


def _ragged_rows(starts: torch.Tensor, offsets: torch.Tensor, n_rows: int) -> torch.Tensor:
    """(n_rows,) the rows of documents end to end, padded with 0.

    Args:
        starts: (n,) first row of each document.
        offsets: (n + 1,) offsets of the documents in the result.
        n_rows: Length of the result.
    """
    import torch

    n = int(offsets[-1])
    rows = torch.zeros(n_rows, dtype=torch.int64, device=starts.device)
    shifts = torch.repeat_interleave(starts - offsets[:-1], offsets.diff(), output_size=n)
    rows[:n] = torch.arange(n, device=starts.device) + shifts
    return rows


def _two_bytes(columns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n,) two-byte numbers of (n, 2) bytes."""
    return columns.contiguous().view(dtype)[:, 0]


def _to_sixteen(n: int) -> int:
    """Round up to a multiple of 16; see `torch_backend` for why."""
    return -(-n // 16) * 16
