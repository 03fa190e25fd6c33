"""`LlvmBackend`: MaxSim and nearest centroids by the kernels of `kernels`. Prepares the arrays that these take."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.backend import CentroidSearch, Matcher, in_threads, n_threads
from manyvec.vectors.batch import CodedBatch, StoredBatch
from manyvec.vectors.codec import rotation
from manyvec.vectors.kernels import Layout, maxsim_kernel, nearest_kernel
from manyvec.vectors.llvm import Cpu, addresses, pack

# Document tokens times groups of query tokens. Less takes less time than waking another thread.
_WORK_PER_THREAD = 4096


@dataclass(frozen=True)
class LlvmBackend:
    """Compiles kernels for a CPU when they are first needed. Implements `Backend`.

    Where the CPU multiplies int8, codes are compared with query tokens rounded to int8, and centroids are too.

    Args:
        cpu: This machine's CPU, or one with fewer instruction sets.
    """

    cpu: Cpu

    @property
    def n_threads(self) -> int:
        return n_threads()

    def match_vectors(self, queries: NDArray[np.float32], documents: StoredBatch) -> Matcher:
        layout = Layout.of(documents)
        codec = documents.codec if isinstance(documents, CodedBatch) else None
        values = queries @ rotation(layout.dim) if codec is not None and codec.is_rotated else queries
        query_scales = np.ones(len(queries), np.float32)
        if self.cpu.has_int8 and layout.is_coded:
            query_scales = np.maximum(np.abs(values).max(axis=1), 1e-30) / np.float32(127)
            values = np.rint(values / query_scales[:, None])
        ordered = np.zeros((len(queries), layout.n_values), np.float32)
        is_value = layout.dim_order < layout.dim
        ordered[:, is_value] = values[:, layout.dim_order[is_value]]
        similarities = None
        if codec is not None and codec.centroids is not None:
            similarities = codec.centroids @ queries.T / query_scales
        scale = layout.code_step * (layout.dim**-0.5 if layout.scale_at is None else 1)
        return _KernelMatcher(self.cpu, layout, documents.rows, query_scales, ordered, similarities, scale)

    def match_centroids(self, similarities: NDArray[np.float32], centroids: NDArray[np.uint16]) -> Matcher:
        # A row is a centroid and nothing else.
        layout = Layout(dim=0, bits=0, row_bytes=2, values_at=2, centroid_at=0)
        n = len(similarities)
        no_values = np.empty((n, 0), np.float32)
        return _KernelMatcher(self.cpu, layout, centroids, np.ones(n, np.float32), no_values, similarities.T)

    def search_centroids(self, centroids: NDArray[np.float32]) -> CentroidSearch:
        if not self.cpu.has_int8:
            return _FloatCentroids(self.cpu, centroids)
        step = max(float(np.abs(centroids).max(initial=0)), 1e-30) / 127
        return _IntegerCentroids(self.cpu, np.rint(centroids / step).astype(np.int8), step)


class _KernelMatcher:
    """A `Matcher` that calls the MaxSim kernel; see `kernels.maxsim_builder`.

    Args:
        cpu: CPU to compile for.
        layout: Layout of `rows`.
        rows: Rows of all documents.
        query_scales: (n,) factor of each query token's similarities.
        queries: (n, layout.n_values) values of the query tokens, in the layout's order.
        centroid_similarities: (n_centroids, n) similarities of the layout's centroids and the query tokens.
        scale: Factor of all products of codes.
    """

    def __init__(
        self,
        cpu: Cpu,
        layout: Layout,
        rows: NDArray[np.generic],
        query_scales: NDArray[np.float32],
        queries: NDArray[np.float32],
        centroid_similarities: NDArray[np.float32] | None = None,
        scale: float = 1,
    ) -> None:
        self._run = maxsim_kernel(cpu, layout)
        self._rows, self._query_scales, self._scale = np.ascontiguousarray(rows), query_scales, ctypes.c_float(scale)
        self._n_groups, self._n_lanes = -(-len(queries) // cpu.lanes), cpu.lanes
        self._queries = pack(queries, cpu.lanes, is_integer=cpu.has_int8 and layout.is_coded)
        # Codes are unsigned in the kernel. What their zero point adds to a product is the same for all documents.
        self._zero_terms = self._in_lanes(queries.sum(axis=1)[None] * np.float32(layout.zero_point))
        if centroid_similarities is None:
            centroid_similarities = np.empty((0, len(queries)), np.float32)
        self._centroid_similarities = self._in_lanes(centroid_similarities)

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Matcher`. Runs in several threads where there is enough to do, without the GIL."""
        n_groups = self._n_groups
        best = np.full((len(starts), n_groups * self._n_lanes), -np.inf, np.float32)
        starts, lengths = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths, np.int64)
        counter = np.zeros(1, np.int64)
        queries = (self._queries, self._zero_terms, self._centroid_similarities)
        pointers = addresses(self._rows, starts, lengths, *queries, best, counter)

        def run() -> None:
            self._run(*pointers, len(starts), n_groups, self._scale)

        in_threads(run, n_groups * int(lengths.sum()) // _WORK_PER_THREAD)
        return best[:, : len(self._query_scales)] * self._query_scales

    def _in_lanes(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_groups * lanes) of (n, n_query_tokens) values, with zeros for lanes without a query token."""
        padded = np.zeros((len(values), self._n_groups * self._n_lanes), np.float32)
        padded[:, : values.shape[1]] = values
        return padded


class _FloatCentroids:
    """A `CentroidSearch` in float32.

    Args:
        cpu: CPU to compile for.
        centroids: (n, dim)
    """

    def __init__(self, cpu: Cpu, centroids: NDArray[np.float32]) -> None:
        self._cpu, self._centroids = cpu, centroids

    @cached_property
    def _kernel(self) -> _NearestKernel:
        return _NearestKernel(self._cpu, self._centroids, np.zeros(len(self._centroids), np.float32))

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        return self._kernel.nearest(vectors)

    def similarities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(vectors @ self._centroids.T, np.float32)

    def subset(self, positions: NDArray[np.int64]) -> CentroidSearch:
        return _FloatCentroids(self._cpu, self._centroids[positions])


class _IntegerCentroids:
    """A `CentroidSearch` in int8. Vectors are rounded too: of two centroids equally near to 1 %, either may be found.

    Args:
        cpu: CPU to compile for.
        centroids: (n, dim) rounded.
        step: Value of the integer 1.
    """

    def __init__(self, cpu: Cpu, centroids: NDArray[np.int8], step: float) -> None:
        self._cpu, self._centroids, self._step = cpu, centroids, step

    @cached_property
    def _kernel(self) -> _NearestKernel:
        # Vectors are unsigned in the kernel, with zero point 128.
        return _NearestKernel(self._cpu, self._centroids, -128 * self._centroids.sum(axis=1, dtype=np.int32))

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        return self._kernel.nearest(vectors)

    def similarities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `CentroidSearch`. Those of unit vectors are off by less than 0.02."""
        import torch

        steps = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-30) / 127
        integers = torch.from_dlpack(np.rint(vectors / steps).astype(np.int8))
        products: NDArray[np.float32]
        products = torch._int_mm(integers, torch.from_dlpack(self._centroids).T).float().numpy()
        products *= (steps * self._step).astype(np.float32)
        return products

    def subset(self, positions: NDArray[np.int64]) -> CentroidSearch:
        return _IntegerCentroids(self._cpu, self._centroids[positions], self._step)


class _NearestKernel:
    """Centroids as the kernel takes them; see `kernels.nearest_builder`.

    Args:
        cpu: CPU to compile for.
        centroids: (n, dim) float32, or int8 where the CPU has int8.
        start: (n,) what each centroid's product starts from.
    """

    def __init__(self, cpu: Cpu, centroids: NDArray[np.float32] | NDArray[np.int8], start: NDArray[np.generic]) -> None:
        self._cpu, self._n_groups = cpu, -(-len(centroids) // cpu.lanes)
        self._centroids = pack(centroids, cpu.lanes, is_integer=cpu.has_int8)
        # A lane without a centroid starts so low that it never wins.
        self._starts = np.full(self._n_groups * cpu.lanes, -(2**30), start.dtype)
        self._starts[: len(centroids)] = start

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        vectors = np.ascontiguousarray(vectors)
        nearest = np.empty(len(vectors), np.int32)
        run = nearest_kernel(self._cpu, Layout.of_floats(vectors))
        run(*addresses(vectors, self._centroids, self._starts, nearest), len(vectors), self._n_groups)
        return nearest
