"""The inner loops of MaxSim and of centroid assignment in machine code.

Matrix products write every similarity to memory and read it again for the maxima. Here a few document tokens at a time
are multiplied with the query and only their maxima are kept. Vectors are read from where they lie: float16 and a
codec's bytes become numbers in the processor, documents anywhere in memory need no gathering.

A token's similarities come from the same instructions wherever it stands and whatever else is scored, so equal vectors
get equal similarities.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.codec import Codec, rotation
from manyvec.vectors.llvm import TILE, Cpu, KernelBuilder, addresses, chunks, in_threads, packed

if TYPE_CHECKING:
    from llvmlite import ir

# Tokens times registers of query tokens: less is done in less time than it takes to wake another thread.
_FOR_A_THREAD = 4096


@dataclass(frozen=True)
class Layout:
    """How the bytes of a document token are to be read.

    Attributes:
        dim: of the vector.
        bits: a dimension; 32 and 16 are floats, fewer a codec's whole numbers, 0 stands for no numbers at all.
        row_bytes: a token.
        numbers_at: the byte at which its numbers start.
        scale_at: the byte at which its float16 scale stands; None for none.
        centroid_at: the byte at which the number of its centroid stands; None for none.
    """

    dim: int
    bits: int
    row_bytes: int
    numbers_at: int = 0
    scale_at: int | None = None
    centroid_at: int | None = None

    @classmethod
    def of(cls, vectors: NDArray[Any], codec: Codec | None) -> Layout:
        """The layout of (n, dim) float32 or float16 vectors, or of (n, width) codes."""
        row_bytes = vectors.shape[1] * vectors.itemsize
        if codec is None:
            return cls(vectors.shape[1], 8 * vectors.itemsize, row_bytes)
        centroid_at = None if codec.centroids is None else 0
        return cls(codec.dim, codec.bits, row_bytes, codec.numbers_at, codec.scale_at, centroid_at)

    @property
    def is_coded(self) -> bool:
        """Whether its numbers are a codec's."""
        return 0 < self.bits <= 8

    @property
    def n_planes(self) -> int:
        """Numbers in a byte. The loop reads the first of each byte, then the second of each, …"""
        return 8 // self.bits if 0 < self.bits < 8 else 1

    @property
    def step(self) -> int:
        """What lies between two codes that follow each other."""
        return 2 if self.bits < 8 else 1

    @property
    def zero(self) -> float:
        """The code, as a number from 0 on, that stands for 0."""
        return {8: 128, 16: 0, 32: 0}.get(self.bits, (2**self.bits - 1) / 2)

    @property
    def n_read(self) -> int:
        """Numbers that the loop reads: those of the dims, and what fills the last byte."""
        return self.dim if self.bits > 8 else (self.row_bytes - self.numbers_at) * self.n_planes

    @property
    def order(self) -> NDArray[np.int64]:
        """(n_read,) the dimension of each number read, in that order; dim and more for none."""
        return np.arange(self.n_read).reshape(-1, self.n_planes).T.ravel()


class QueryKernel:
    """Query tokens made ready to be compared with documents of one layout.

    Args:
        own: this processor.
        layout: of the rows of `vectors`.
        vectors: of all documents.
        factors: (n,) what the similarities of each query token are to be multiplied with.
        queries: (n, n_read) the query tokens' numbers, in the layout's order.
        to_centroids: (n_centroids, n) their similarities to what the layout's centroids are.
        unit: what a codec's number 1 is worth, but for a token's scale.
    """

    def __init__(
        self,
        own: Cpu,
        layout: Layout,
        vectors: NDArray[Any],
        factors: NDArray[np.float32],
        queries: NDArray[np.float32],
        to_centroids: NDArray[np.float32] | None = None,
        unit: float = 1,
    ) -> None:
        self._run = _maxsim(own, layout)
        self._vectors, self._factors, self._unit = np.ascontiguousarray(vectors), factors, ctypes.c_float(unit)
        self._shape = -(-len(factors) // own.lanes), own.lanes
        self._queries = packed(queries, own.lanes, is_integer=own.has_int8 and layout.is_coded)
        # Codes are read as whole numbers from 0 on; what that adds to a product is the same for all documents.
        self._less = self._in_lanes(queries.sum(axis=1)[None] * np.float32(layout.zero))
        self._to_centroids = self._in_lanes(
            np.empty((0, len(factors)), np.float32) if to_centroids is None else to_centroids
        )

    @classmethod
    def for_vectors(
        cls, own: Cpu, queries: NDArray[np.float32], vectors: NDArray[Any], codec: Codec | None
    ) -> QueryKernel:
        """For documents' vectors.

        Args:
            own: this processor.
            queries: (n, dim) float32 tokens, of one query or of several.
            vectors: (n_rows, dim) float32 or float16 of all documents, or their (n_rows, width) codes.
            codec: whose codes they are.
        """
        layout = Layout.of(vectors, codec)
        numbers = queries @ rotation(layout.dim) if codec is not None and codec.is_rotated else queries
        factors = np.ones(len(queries), np.float32)
        if own.has_int8 and layout.is_coded:
            factors = np.maximum(np.abs(numbers).max(axis=1), 1e-30) / np.float32(127)
            numbers = np.rint(numbers / factors[:, None])
        ordered = np.zeros((len(queries), layout.n_read), np.float32)
        in_dim = layout.order < layout.dim
        ordered[:, in_dim] = numbers[:, layout.order[in_dim]]
        of_centroids = None if codec is None else codec.centroids
        to_centroids = None if of_centroids is None else of_centroids @ queries.T / factors
        unit = layout.step * (layout.dim**-0.5 if layout.scale_at is None else 1)
        return cls(own, layout, vectors, factors, ordered, to_centroids, unit)

    @classmethod
    def for_centroids(cls, own: Cpu, similarities: NDArray[np.float32], centroids: NDArray[np.uint16]) -> QueryKernel:
        """For documents of which only the tokens' centroids are looked at.

        Args:
            own: this processor.
            similarities: (n, n_centroids) of n query tokens.
            centroids: (n_rows,) those of all documents' tokens.
        """
        layout = Layout(dim=0, bits=0, row_bytes=2, numbers_at=2, centroid_at=0)
        n = len(similarities)
        return cls(own, layout, centroids, np.ones(n, np.float32), np.empty((n, 0), np.float32), similarities.T)

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n_documents, n) for each query token the highest similarity among `lengths` rows from `starts` on.

        No length is 0. Several threads work on it if it is worth it; the interpreter is free meanwhile.
        """
        n_groups, lanes = self._shape
        best = np.full((len(starts), n_groups * lanes), -np.inf, np.float32)
        starts, lengths = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths, np.int64)
        counter = np.zeros(1, np.int64)
        arrays = (self._vectors, starts, lengths, self._queries, self._less, self._to_centroids, best, counter)
        pointers = addresses(*arrays)

        def run() -> None:
            self._run(*pointers, len(starts), n_groups, self._unit)

        in_threads(run, max(1, n_groups * int(lengths.sum()) // _FOR_A_THREAD))
        return best[:, : len(self._factors)] * self._factors

    def _in_lanes(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_queries) with zeros for the lanes that no query token has."""
        n_groups, lanes = self._shape
        filled = np.zeros((len(numbers), n_groups * lanes), np.float32)
        filled[:, : numbers.shape[1]] = numbers
        return filled


class CentroidKernel:
    """Centroids made ready to be compared with vectors.

    Args:
        centroids: (n, dim) float32, or where the processor has int8 whole numbers in any unit.
    """

    def __init__(self, own: Cpu, centroids: NDArray[np.float32] | NDArray[np.int8]) -> None:
        self._own, n = own, len(centroids)
        self._centroids = packed(centroids, own.lanes, is_integer=own.has_int8)
        dtype = np.int32 if own.has_int8 else np.float32
        # What the loop starts from. A lane without a centroid never wins.
        self._start = np.full(-(-n // own.lanes) * own.lanes, -(2**30), dtype)
        self._start[:n] = -128 * centroids.sum(axis=1, dtype=np.int32) if own.has_int8 else 0

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) the centroid with the highest dot product for each of (n, dim) vectors, the first of equals.

        Where the processor has int8 the vectors are rounded to it, and of two that are equally near to 1 % either may
        be taken.
        """
        vectors = np.ascontiguousarray(vectors)
        nearest = np.empty(len(vectors), np.int32)
        run = _nearest(self._own, Layout.of(vectors, None))
        n_groups = len(self._start) // self._own.lanes
        run(*addresses(vectors, self._centroids, self._start, nearest), len(vectors), n_groups)
        return nearest


@lru_cache(maxsize=32)
def _maxsim(own: Cpu, layout: Layout) -> Callable[..., None]:
    """The loop of `QueryKernel`:

    for each document:
        for each tile of its tokens (the last token fills up the last tile):
            for each group of query tokens:
                best = max(best, similarities of the tile's tokens)
    """
    loop = KernelBuilder(own, layout.n_read, is_integer=own.has_int8 and layout.is_coded, arguments="********nnf")
    rows, starts, lengths, queries, less, to_centroids, best, counter, n_documents, n_groups, unit = loop.arguments
    b, group_bytes = loop.b, loop.whole(loop.group_bytes)
    with loop.each_shared(n_documents, counter) as document:
        start, length = (loop.load(loop.i64, array, b.mul(document, loop.whole(8))) for array in (starts, lengths))
        own_best = loop.at(best, b.mul(document, b.mul(n_groups, group_bytes)))
        last = b.sub(length, loop.whole(1))
        with loop.each(length, TILE) as first:
            tokens = [_token(loop, layout, rows, start, b.add(first, loop.whole(i)), last) for i in range(TILE)]
            for i, token in enumerate(tokens):
                _read(loop, layout, token, loop.row(i))
            with loop.each(n_groups) as group:
                here = b.mul(group, group_bytes)
                products = loop.products(loop.at(queries, b.mul(group, loop.whole(loop.n_steps * loop.group_bytes))))
                highest = loop.load(loop.floats, own_best, here)
                for token, product in zip(tokens, products, strict=True):
                    if layout.is_coded:
                        less_here = loop.load(loop.floats, less, here)
                        product = _worth(loop, layout, product, less_here, token, unit)
                    if layout.centroid_at is not None:
                        centroid = b.zext(loop.load(loop.i16, token, loop.whole(layout.centroid_at), 1), loop.i64)
                        at = b.add(b.mul(centroid, b.mul(n_groups, group_bytes)), here)
                        product = b.fadd(product, loop.load(loop.floats, to_centroids, at))
                    highest = loop.larger(product, highest)
                loop.store(highest, own_best, here)
    return loop.compiled()


@lru_cache(maxsize=8)
def _nearest(own: Cpu, layout: Layout) -> Callable[..., None]:
    """The loop of `CentroidKernel`:

    for each tile of vectors (the last vector fills up the last tile):
        for each group of centroids:
            in each lane: keep the highest product, and its group
        of the lanes with the highest product the first centroid
    """
    loop = KernelBuilder(own, layout.n_read, is_integer=own.has_int8, arguments="****nn")
    rows, centroids, starts, nearest, n_vectors, n_groups = loop.arguments
    b, ir = loop.b, loop.ir
    highest, groups = ([b.alloca(kind) for _ in range(TILE)] for kind in (loop.sums, loop.integers))
    lowest = ir.Constant(loop.sums, [-(2**31) if own.has_int8 else float("-inf")] * own.lanes)
    numbers_of_lanes = ir.Constant(loop.integers, list(range(own.lanes)))
    last = b.sub(n_vectors, loop.whole(1))
    kind, scalar, compare = ("smax", loop.i32, b.icmp_signed) if own.has_int8 else ("fmax", loop.f32, b.fcmp_ordered)
    reduced = f"llvm.vector.reduce.{kind}.v{own.lanes}{'i' if own.has_int8 else 'f'}32"
    with loop.each(n_vectors, TILE) as first:
        positions = [loop.smaller(b.add(first, loop.whole(i)), last) for i in range(TILE)]
        for i, position in enumerate(positions):
            token = loop.at(rows, b.mul(position, loop.whole(layout.row_bytes)))
            if own.has_int8:
                _read_rounded(loop, layout, token, loop.row(i))
            else:
                _read(loop, layout, token, loop.row(i))
            b.store(lowest, highest[i])
            b.store(ir.Constant(loop.integers, None), groups[i])
        with loop.each(n_groups) as group:
            start = loop.load(loop.sums, starts, b.mul(group, loop.whole(loop.group_bytes)))
            of_group = loop.at(centroids, b.mul(group, loop.whole(loop.n_steps * loop.group_bytes)))
            number = loop.splat(b.trunc(group, loop.i32))
            for i, product in enumerate(loop.products(of_group, start)):
                before = b.load(highest[i], typ=loop.sums)
                is_higher = compare(">", product, before)
                b.store(b.select(is_higher, product, before), highest[i])
                b.store(b.select(is_higher, number, b.load(groups[i], typ=loop.integers)), groups[i])
        for i, position in enumerate(positions):
            of_lanes = b.load(highest[i], typ=loop.sums)
            top = loop.splat(loop.call(reduced, scalar, of_lanes))
            first_of_group = b.mul(b.load(groups[i], typ=loop.integers), loop.splat(ir.Constant(loop.i32, own.lanes)))
            none = ir.Constant(loop.integers, [2**31 - 1] * own.lanes)
            candidates = b.select(compare("==", of_lanes, top), b.add(first_of_group, numbers_of_lanes), none)
            centroid = loop.call(f"llvm.vector.reduce.smin.v{own.lanes}i32", loop.i32, candidates)
            loop.store(centroid, nearest, b.mul(position, loop.whole(4)))
    return loop.compiled()


def _token(
    loop: KernelBuilder, layout: Layout, rows: ir.Value, start: ir.Value, position: ir.Value, last: ir.Value
) -> ir.Value:
    """Where a token of a document lies; for a place behind its last token, that one."""
    row = loop.b.add(start, loop.smaller(position, last))
    return loop.at(rows, loop.b.mul(row, loop.whole(layout.row_bytes)))


def _floats(loop: KernelBuilder, layout: Layout, token: ir.Value, at: int, n: int) -> ir.Value:
    """n float32 numbers of a token of floats, from the one `at` on."""
    kind, n_bytes = (loop.f32, 4) if layout.bits == 32 else (loop.f16, 2)
    numbers = loop.load(loop.lanes(kind, n), token, loop.whole(n_bytes * at), n_bytes)
    return numbers if layout.bits == 32 else loop.b.fpext(numbers, loop.lanes(loop.f32, n))


def _read(loop: KernelBuilder, layout: Layout, token: ir.Value, into: ir.Value) -> None:
    """A token's numbers: as float32, or those of a codec as bytes if integers are multiplied."""
    b, ir = loop.b, loop.ir
    if layout.bits > 8:
        for at, n in chunks(layout.n_read, loop.own.lanes):
            loop.store(_floats(loop, layout, token, at, n), into, loop.whole(4 * at))
        return
    width = layout.n_read // layout.n_planes
    for at, n in chunks(width, 64 if loop.is_integer else loop.own.lanes):
        kind = loop.lanes(loop.i8, n)
        codes = loop.load(kind, token, loop.whole(layout.numbers_at + at), 1)
        for plane in range(layout.n_planes):
            if layout.bits == 8:
                numbers = b.xor(codes, ir.Constant(kind, [128] * n))
            else:
                numbers = b.lshr(codes, ir.Constant(kind, [plane * layout.bits] * n))
                numbers = b.and_(numbers, ir.Constant(kind, [2**layout.bits - 1] * n))
            position = plane * width + at
            if loop.is_integer:
                loop.store(numbers, into, loop.whole(position), 1)
            else:
                loop.store(b.uitofp(numbers, loop.lanes(loop.f32, n)), into, loop.whole(4 * position))


def _read_rounded(loop: KernelBuilder, layout: Layout, token: ir.Value, into: ir.Value) -> None:
    """A token's floats as bytes: scaled so that the largest is 127, rounded, and 128 added."""
    b, ir = loop.b, loop.ir
    parts = [(at, n, _floats(loop, layout, token, at, n)) for at, n in chunks(layout.n_read, loop.own.lanes)]
    largest = ir.Constant(loop.f32, 1e-30)
    for _, n, numbers in parts:
        sizes = loop.call(f"llvm.fabs.v{n}f32", numbers.type, numbers)
        largest = loop.larger(loop.call(f"llvm.vector.reduce.fmax.v{n}f32", loop.f32, sizes), largest)
    factor = b.fdiv(ir.Constant(loop.f32, 127.0), largest)
    for at, n, numbers in parts:
        rounded = loop.call(f"llvm.rint.v{n}f32", numbers.type, b.fmul(numbers, loop.splat(factor, n)))
        integers = b.trunc(b.fptosi(rounded, loop.lanes(loop.i32, n)), loop.lanes(loop.i8, n))
        loop.store(b.xor(integers, ir.Constant(integers.type, [128] * n)), into, loop.whole(at), 1)


def _worth(
    loop: KernelBuilder, layout: Layout, product: ir.Value, less: ir.Value, token: ir.Value, unit: ir.Value
) -> ir.Value:
    """What products of codes mean."""
    b = loop.b
    if loop.is_integer:
        product = b.sitofp(product, loop.floats)
    scale = unit
    if layout.scale_at is not None:
        scale = b.fmul(unit, b.fpext(loop.load(loop.f16, token, loop.whole(layout.scale_at), 1), loop.f32))
    return b.fmul(b.fsub(product, less), loop.splat(scale))
