"""`LlvmBackend`: MaxSim and nearest centroids by the kernels of `kernels`. Prepares the arrays that these take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.backend import CentroidSearch, Matcher, in_threads, n_threads
from manyvec.vectors.batch import CodedBatch, StoredBatch
from manyvec.vectors.codec import Codec, rotation
from manyvec.vectors.kernels import Layout, maxsim_kernel, nearest_kernel, products_kernel
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
        values = _rotated(self, layout.dim)(queries) if codec is not None and codec.is_rotated else queries
        query_scales = np.ones(len(queries), np.float32)
        if self.cpu.has_int8 and layout.is_coded:
            query_scales = np.maximum(np.abs(values).max(axis=1), 1e-30) / np.float32(127)
            values = np.rint(values / query_scales[:, None])
        ordered = np.zeros((len(queries), layout.n_values), np.float32)
        is_value = layout.dim_order < layout.dim
        ordered[:, is_value] = values[:, layout.dim_order[is_value]]
        similarities = None
        if codec is not None and codec.centroids is not None:
            similarities = _centroid_products(self, codec)(queries).T / query_scales
        scale = layout.code_step * (layout.dim**-0.5 if layout.scale_at is None else 1)
        return _KernelMatcher(self.cpu, layout, documents.rows, query_scales, ordered, similarities, scale)

    def products(self, vectors: NDArray[np.float32]) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
        return _KernelCentroids(replace(self.cpu, has_int8=False), vectors).similarities

    def match_centroids(self, similarities: NDArray[np.float32], centroids: NDArray[np.uint16]) -> Matcher:
        # A row is a centroid and nothing else.
        layout = Layout(dim=0, bits=0, row_bytes=2, values_at=2, centroid_at=0)
        n = len(similarities)
        no_values = np.empty((n, 0), np.float32)
        return _KernelMatcher(self.cpu, layout, centroids, np.ones(n, np.float32), no_values, similarities.T)

    def search_centroids(self, centroids: NDArray[np.float32]) -> CentroidSearch:
        if not self.cpu.has_int8:
            return _KernelCentroids(self.cpu, centroids)
        step = max(float(np.abs(centroids).max(initial=0)), 1e-30) / 127
        return _KernelCentroids(self.cpu, np.rint(centroids / step).astype(np.int8), step)


@lru_cache(maxsize=8)
def _rotated(backend: LlvmBackend, dim: int) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
    """Return a function that rotates vectors as codecs do."""
    return backend.products(rotation(dim).T)


@lru_cache(maxsize=4)
def _centroid_products(backend: LlvmBackend, codec: Codec) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
    """Return a function that multiplies vectors with all centroids of a codec."""
    assert codec.centroids is not None
    return backend.products(codec.centroids)


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


class _KernelCentroids:
    """A `CentroidSearch` that calls kernels; see `kernels.nearest_builder` and `kernels.products_builder`.

    With int8, vectors are rounded too: of two centroids equally near to 1 %, either may be found, and similarities of
    unit vectors are off by less than 0.02.

    Args:
        cpu: CPU to compile for.
        centroids: (n, dim) float32, or int8 where the CPU has int8.
        step: Value of the integer 1.
    """

    def __init__(self, cpu: Cpu, centroids: NDArray[np.float32] | NDArray[np.int8], step: float = 1) -> None:
        self._cpu, self._centroids, self._step = cpu, centroids, step
        self._n_groups = -(-len(centroids) // cpu.lanes)

    @cached_property
    def _packed(self) -> NDArray[np.generic]:
        return pack(self._centroids, self._cpu.lanes, is_integer=self._cpu.has_int8)

    @cached_property
    def _starts(self) -> NDArray[np.generic]:
        """What each centroid's product starts from. Vectors are unsigned in integer kernels, with zero point 128."""
        has_int8, n = self._cpu.has_int8, len(self._centroids)
        # A lane without a centroid starts so low that it is never the nearest.
        starts = np.full(self._n_groups * self._cpu.lanes, -(2**30), np.int32 if has_int8 else np.float32)
        starts[:n] = -128 * self._centroids.sum(axis=1, dtype=np.int32) if has_int8 else 0
        return starts

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        vectors = np.ascontiguousarray(vectors)
        nearest = np.empty(len(vectors), np.int32)
        run = nearest_kernel(self._cpu, Layout.of_floats(vectors))
        run(*addresses(vectors, self._packed, self._starts, nearest), len(vectors), self._n_groups)
        return nearest

    def similarities(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """See `CentroidSearch`. Not by BLAS, whose threads wait for each other on a busy machine."""
        vectors = np.ascontiguousarray(vectors)
        products = np.empty((len(vectors), self._n_groups * self._cpu.lanes), np.float32)
        counter = np.zeros(1, np.int64)
        kernel = products_kernel(self._cpu, Layout.of_floats(vectors))
        pointers = addresses(vectors, self._packed, self._starts, products, counter)

        def run() -> None:
            kernel(*pointers, len(vectors), self._n_groups, self._step)

        in_threads(run, len(vectors) * self._n_groups // _WORK_PER_THREAD)
        return products[:, : len(self._centroids)]

    def subset(self, positions: NDArray[np.int64]) -> CentroidSearch:
        return _KernelCentroids(self._cpu, self._centroids[positions], self._step)
