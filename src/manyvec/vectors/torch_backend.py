"""`TorchBackend`: MaxSim and nearest centroids by matrix products, for machines that llvmlite has no wheels for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.backend import CentroidSearch, Matcher
from manyvec.vectors.batch import CodedBatch, StoredBatch, as_float32, document_blocks, offsets_of, ragged_rows
from manyvec.vectors.codec import rotation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TorchBackend:
    """Multiplies matrices with torch, a block of rows at a time. Implements `Backend`.

    Everything is computed by torch, because the threads of torch and numpy would wait for each other.

    Args:
        block_tokens: Document tokens in a block. A longer document is a block of its own.
        block_bytes: Bytes of the similarities of vectors and centroids in a block.
    """

    block_tokens: int = 32_768
    block_bytes: int = 4 * 2**20

    @property
    def n_threads(self) -> int:
        # torch has threads of its own.
        return 1

    def match_vectors(self, queries: NDArray[np.float32], documents: StoredBatch) -> Matcher:
        return _ProductMatcher(queries, documents, self.block_tokens)

    def products(self, vectors: NDArray[np.float32]) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
        return _ProductCentroids(vectors, self.block_bytes).similarities

    def match_centroids(self, similarities: NDArray[np.float32], centroids: NDArray[np.uint16]) -> Matcher:
        return _CentroidMatcher(similarities, centroids, self.block_tokens)

    def search_centroids(self, centroids: NDArray[np.float32]) -> CentroidSearch:
        return _ProductCentroids(centroids, self.block_bytes)


class _ProductMatcher:
    """A `Matcher` by matrix products."""

    def __init__(self, queries: NDArray[np.float32], documents: StoredBatch, block_tokens: int) -> None:
        import torch

        self._documents, self._block_tokens = documents, block_tokens
        self._queries = torch.from_dlpack(queries)
        self._centroid_similarities: torch.Tensor | None = None
        if isinstance(documents, CodedBatch):
            codec = documents.codec
            if codec.is_rotated:
                # Instead of rotating each document token back.
                self._queries = self._queries @ torch.from_dlpack(rotation(codec.dim))
            if codec.centroids is not None:
                self._centroid_similarities = torch.from_dlpack(codec.centroids) @ torch.from_dlpack(queries).T

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Matcher`."""
        best = np.empty((len(starts), len(self._queries)), np.float32)
        for block in document_blocks(lengths, self._block_tokens):
            similarities = self._similarities(self._rows(starts[block], lengths[block])).numpy()
            np.maximum.reduceat(similarities, offsets_of(lengths[block])[:-1], axis=0, out=best[block])
        return best

    def _rows(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of these documents end to end, as a view if that is how they are stored."""
        rows, first, last = self._documents.rows, starts[0], starts[-1] + lengths[-1]
        return rows[first:last] if last - first == lengths.sum() else rows[ragged_rows(starts, lengths)]

    def _similarities(self, rows: NDArray[Any]) -> torch.Tensor:
        """(n_rows, n_query_tokens)"""
        import torch

        codec = self._documents.codec if isinstance(self._documents, CodedBatch) else None
        values = rows if codec is None else codec.integers(rows)
        # The last few rows of a product are computed by other instructions, which round differently. With rows of zeros
        # behind them, equal vectors get equal similarities wherever they are.
        padded = torch.zeros((-(-len(rows) // 16) * 16, values.shape[1]))
        padded[: len(rows)] = torch.from_dlpack(values)
        similarities = (padded @ self._queries.T)[: len(rows)]
        if codec is not None:
            similarities *= torch.from_dlpack(codec.scales(rows))[:, None]
            if self._centroid_similarities is not None:
                similarities += self._centroid_similarities[torch.from_dlpack(codec.nearest(rows))]
        return similarities


class _CentroidMatcher:
    """A `Matcher` that looks up the similarities of centroids."""

    def __init__(self, similarities: NDArray[np.float32], centroids: NDArray[np.uint16], block_tokens: int) -> None:
        self._similarities, self._centroids, self._block_tokens = similarities, centroids, block_tokens

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Matcher`."""
        best = np.empty((len(self._similarities), len(starts)), np.float32)
        for block in document_blocks(lengths, self._block_tokens):
            of_rows = self._similarities.take(self._centroids[ragged_rows(starts[block], lengths[block])], axis=1)
            np.maximum.reduceat(of_rows, offsets_of(lengths[block])[:-1], axis=1, out=best[:, block])
        return best.T


class _ProductCentroids:
    """A `CentroidSearch` by matrix products."""

    def __init__(self, centroids: NDArray[np.float32], block_bytes: int) -> None:
        self._centroids, self._block_bytes = centroids, block_bytes

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        import torch

        nearest = np.empty(len(vectors), np.int32)
        step = max(1, self._block_bytes // (4 * len(self._centroids)))
        for start in range(0, len(vectors), step):
            block = torch.from_dlpack(np.ascontiguousarray(vectors[start : start + step])).float()
            # numpy finds the position of a maximum ten times faster than torch does on a CPU.
            nearest[start : start + step] = (block @ torch.from_dlpack(self._centroids).T).numpy().argmax(axis=1)
        return nearest

    def similarities(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray(as_float32(vectors) @ self._centroids.T, np.float32)

    def subset(self, positions: NDArray[np.int64]) -> CentroidSearch:
        return _ProductCentroids(self._centroids[positions], self._block_bytes)
