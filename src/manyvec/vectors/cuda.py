"""MaxSim on a CUDA device: documents are kept there as they are stored, and only scores are copied back.

Rows lie end to end with offsets, as in a `TokenBatch`, and nothing is padded. Each query token is split into a float16
value and a float16 remainder. Their products with float16 vectors, or with a codec's small integers, are exact in
tensor cores, which sum in float32, whether TF32 is allowed or not. `triton_kernel` scores in one pass where Triton is;
the same in torch runs on any device, block by block.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import DeviceMemoryError, ShapeError
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, document_blocks, offsets_of
from manyvec.vectors.codec import Codec, rotation
from manyvec.vectors.maxsim import MaxSimScorer, Reduction, ScoredPositions, Scores

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Smaller blocks would hardly save memory.
_MIN_BLOCK_TOKENS = 1024
# What is on the device twice while it is copied.
_UPLOAD_ROWS = 2**20
# Documents that may tie with the last of the best, and are copied from the device with these.
_TIES = 16
# Rows that the kernel could not be compiled for: their bits for an integer, and their width.
_REFUSED: set[tuple[int, int]] = set()


@dataclass(frozen=True, eq=False)
class DeviceDocuments:
    """The documents of one batch on a device. Use `upload` to make one.

    Attributes:
        packed: (n_tokens, dim) float16 vectors, or (n_tokens, bytes) a codec's integers, padded with zeros to a
            multiple of 16 rows, as the other columns are.
        scales: (n_tokens,) float16 scale of each token, for codecs that have one.
        nearest: (n_tokens,) int16 bits of each token's uint16 centroid, for codecs that have centroids.
        offsets: (n_documents + 1,) start of each document, on the host.
        device_offsets: The same on the device.
        dim: Dimension of the vectors.
        codec: Codec of the codes; None for vectors.
        table: (256, integers per byte) float16 integers of each byte, for a codec of several integers per byte.
        centroids: (2 * n_centroids, dim) the codec's centroids, split by `_halves`.
        scratch_bytes: Memory that a search may take on the device besides, about. A document is never divided.
    """

    packed: torch.Tensor
    scales: torch.Tensor | None
    nearest: torch.Tensor | None
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

        codec = documents.codec if isinstance(documents, CodedBatch) else None
        held = documents.rows if codec else documents.rows.astype(np.float16, copy=False)
        packed_at = codec.integers_at if codec else 0
        # By type: where it lies in a row, and where it is kept.
        columns: dict[torch.dtype, tuple[int, torch.Tensor]] = {}
        table = centroids = None
        try:
            n_rows = _to_sixteen(documents.n_tokens)
            dtype = torch.uint8 if codec else torch.float16
            packed = torch.zeros(n_rows, held.shape[1] - packed_at, dtype=dtype, device=device)
            if codec is not None and codec.scale_at is not None:
                columns[torch.float16] = codec.scale_at, torch.zeros(n_rows, dtype=torch.float16, device=device)
            if codec is not None and codec.centroids is not None:
                columns[torch.int16] = 0, torch.zeros(n_rows, dtype=torch.int16, device=device)
                centroids = _halves(codec.centroids, packed.device)
            for start in range(0, len(held), _UPLOAD_ROWS):
                part = torch.from_dlpack(held[start : start + _UPLOAD_ROWS]).to(device)
                packed[start : start + len(part)] = part[:, packed_at:]
                for kind, (at, column) in columns.items():
                    column[start : start + len(part)] = part[:, at : at + 2].flatten().view(kind)
            device_offsets = torch.tensor(documents.offsets, device=device)
            if codec is not None and codec.bits < 8:
                every_byte = np.repeat(np.arange(256, dtype=np.uint8)[:, None], codec.width, axis=1)
                integers = codec.integers(every_byte)[:, : 8 // codec.bits]
                table = torch.from_numpy(integers.astype(np.float16)).to(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{held.nbytes / 2**30:.2f} GiB of token vectors do not fit on {device}: score them on the CPU"
            ) from error
        scales, nearest = (columns.get(kind, (0, None))[1] for kind in (torch.float16, torch.int16))
        offsets, dim = documents.offsets, documents.dim
        return cls(packed, scales, nearest, offsets, device_offsets, dim, codec, table, centroids, scratch_bytes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def bytes_held(self) -> int:
        """Bytes that the documents take on the device between searches."""
        tensors = (self.packed, self.scales, self.nearest, self.device_offsets, self.table, self.centroids)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def bits(self) -> int:
        """Bits of a codec's integer; 16 for vectors."""
        return 16 if self.codec is None else self.codec.bits

    @property
    def unit(self) -> float:
        """Scale of all tokens where they have none of their own."""
        return 1.0 if self.codec is None else float(np.float32(self.dim**-0.5))

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
        best = scores.topk(min(k + _TIES, scores.shape[1]), dim=1)
        found = []
        for row, values, positions in zip(scores, best.values.cpu().numpy(), best.indices.cpu().numpy(), strict=True):
            threshold = values[k - 1]
            if values[-1] == threshold > -np.inf:  # more may tie
                chosen = (row >= threshold).nonzero()[:, 0]
                values, positions = row[chosen].cpu().numpy(), chosen.cpu().numpy()
            kept = (values >= threshold) & (values > -np.inf)
            order = np.argsort(positions[kept])
            found.append(ScoredPositions(positions[kept][order], values[kept][order]))
        return found

    def _score(self, queries: TokenBatch, subset: NDArray[np.int64] | None, reduction: Reduction) -> torch.Tensor:
        """(n_queries, n_documents) on the device."""
        import torch

        if queries.dim != self.dim:
            raise ShapeError(f"queries have dim {queries.dim}, documents {self.dim}: encode both with one model")
        MaxSimScorer(reduction)  # raises for an unknown one
        device = self.packed.device
        n_documents = len(self) if subset is None else len(subset)
        with_tokens = np.flatnonzero(queries.lengths)
        asked = queries if len(with_tokens) == len(queries) else queries.select(with_tokens)
        try:
            scores = self._score_in_kernel(asked, subset)
            if scores is None:
                scores = self._score_in_torch(asked, subset)
            if reduction == "mean":
                scores /= torch.from_numpy(asked.lengths).to(device)[:, None]
            if len(asked) == len(queries):
                return scores
            found = torch.full((len(queries), n_documents), -torch.inf, device=device)
            found[with_tokens] = scores
            return found
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{device} has no memory left to score {len(queries)} queries: score fewer, or on the CPU"
            ) from error

    def _score_in_kernel(self, queries: TokenBatch, subset: NDArray[np.int64] | None) -> torch.Tensor | None:
        """Return the sums of all queries' best matches; None where the kernel cannot run."""
        import torch

        device, kind = self.packed.device, (self.bits, self.packed.shape[1])
        n_programs = len(queries) * (len(self) if subset is None else len(subset))
        if device.type != "cuda" or kind in _REFUSED or not 0 < n_programs < 2**31:
            return None
        vectors, to_centroids = self._turned(queries)
        if to_centroids is not None:
            to_centroids = to_centroids[:, : len(vectors)].contiguous()
        chosen = None if subset is None else torch.tensor(subset, device=device)
        try:
            kernel = importlib.import_module("manyvec.vectors.triton_kernel")
            return kernel.scores(self, vectors, queries.offsets, chosen, to_centroids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton is missing, or what it or the C compiler that it calls says.
            logger.warning("Triton cannot score these documents, so torch does, more slowly: %s", error)
            _REFUSED.add(kind)
            return None

    def _turned(self, queries: TokenBatch) -> tuple[NDArray[np.float32], torch.Tensor | None]:
        """Return (n_query_tokens, dim) vectors, rotated as the integers are, and their similarities to the centroids.

        The similarities are (n_centroids, n_query_tokens rounded up to 16), or None without centroids.
        """
        vectors = np.asarray(queries.vectors, np.float32)
        to_centroids = None
        if self.centroids is not None:
            high, low = _dots(self.centroids, _halves(vectors, self.packed.device)).chunk(2)
            to_centroids = high + low
        is_rotated = self.codec is not None and self.codec.is_rotated
        return vectors @ rotation(self.dim) if is_rotated else vectors, to_centroids

    def _score_in_torch(self, queries: TokenBatch, subset: NDArray[np.int64] | None) -> torch.Tensor:
        """Return what the kernel does, in blocks of documents that leave room for all similarities."""
        padded = _to_sixteen(queries.n_tokens)
        # Gathered rows and their positions, similarities, up to four copies of them, and unpacked codes.
        bytes_per_token = 8 * self.dim + 16 * padded
        block_tokens = max(1, min(self.scratch_bytes // bytes_per_token, len(self.packed)))
        return halved_until_it_fits(partial(self._score_in_blocks, queries, subset), block_tokens, _MIN_BLOCK_TOKENS)

    def _score_in_blocks(
        self, queries: TokenBatch, subset: NDArray[np.int64] | None, block_tokens: int
    ) -> torch.Tensor:
        import torch

        device = self.packed.device
        lengths = self.lengths if subset is None else self.lengths[subset]
        scores = torch.full((len(queries), len(lengths)), -torch.inf, device=device)
        vectors, to_centroids = self._turned(queries)
        parts = _halves(vectors, device)
        query_offsets = torch.from_numpy(queries.offsets).to(device)
        # All products have one shape. Another shape may be summed in another order, and equal documents would not tie.
        window = _to_sixteen(min(block_tokens, int(lengths.sum())))
        for block in document_blocks(lengths, block_tokens) if len(queries) else []:
            n_rows = max(window, _to_sixteen(int(lengths[block].sum())))
            if subset is None:
                first = min(int(self.offsets[block.start]), len(self.packed) - n_rows)
                at: Any = slice(first, first + n_rows)
                offsets = self.device_offsets[block.start : block.stop + 1] - first
            else:
                starts = self.device_offsets[:-1][torch.tensor(subset[block], device=device)]
                offsets = torch.from_numpy(offsets_of(lengths[block])).to(device)
                at = _ragged_rows(starts, offsets, n_rows)
            similarities = _dots(self._values(at), parts)
            if self.scales is not None:
                similarities *= self.scales[at][:, None].float()
            elif self.codec is not None:
                similarities *= self.unit
            if self.nearest is not None and to_centroids is not None:
                similarities += to_centroids.index_select(0, self.nearest[at].int() & 0xFFFF)
            best = _segments(similarities, "max", offsets, -torch.inf)
            scores[:, block] = _segments(best.T.contiguous(), "sum", query_offsets, 0)
        # As in `MaxSimScorer.score_many`: a damaged document has no score.
        return scores.masked_fill_(~scores.isfinite(), -torch.inf)

    def _values(self, at: Any) -> torch.Tensor:
        """(n, dim) float16 vectors, or the integers of codes, of rows."""
        import torch

        rows = self.packed[at]
        if self.codec is None:
            return rows
        if self.table is None:
            return rows.view(torch.int8).half()
        return torch.nn.functional.embedding(rows.int(), self.table).flatten(1)[:, : self.dim]


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


def _to_sixteen(n: int) -> int:
    """Round up to a multiple of 16; see `torch_backend` for why."""
    return -(-n // 16) * 16
