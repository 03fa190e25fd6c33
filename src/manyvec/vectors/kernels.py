"""The CPU kernels: the best match of each query token in each document, products of vectors with all centroids, and the
nearest centroid of each vector.

Matrix products write every similarity to memory and read it again to find the maxima. A kernel keeps only the maxima of
a few document tokens at a time, in registers. It reads documents from where they are stored: float16 values and a
codec's bytes are unpacked in registers, and documents are not gathered first.

A token's similarities are computed by the same instructions wherever the token is stored and whatever else is scored,
so equal vectors get equal similarities. `llvm_backend` prepares the arrays that the kernels take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.batch import CodedBatch, StoredBatch
from manyvec.vectors.llvm import TILE, Cpu, KernelBuilder

if TYPE_CHECKING:
    from llvmlite import ir

# Groups of centroids that a thread takes at a time. 400 KB of 384 dims stay in a core's cache while all vectors are
# multiplied with them.
GROUPS_IN_PART = 32


@dataclass(frozen=True)
class Layout:
    """Where the parts of a document token are in its row of bytes.

    Attributes:
        dim: Dimension of the vector.
        bits: Bits per dimension: 32 and 16 are floats, 8 to 1 a codec's integers, 0 for a row that has no values.
        row_bytes: Bytes per token.
        values_at: Byte offset of the values.
        scale_at: Byte offset of the float16 scale; None if there is none.
        centroid_at: Byte offset of the uint16 centroid; None if there is none.
    """

    dim: int
    bits: int
    row_bytes: int
    values_at: int = 0
    scale_at: int | None = None
    centroid_at: int | None = None

    @classmethod
    def of(cls, documents: StoredBatch) -> Layout:
        """Return the layout of a batch's rows."""
        if not isinstance(documents, CodedBatch):
            return cls.of_floats(documents.vectors)
        codec = documents.codec
        centroid_at = None if codec.centroids is None else 0
        return cls(codec.dim, codec.bits, codec.width, codec.integers_at, codec.scale_at, centroid_at)

    @classmethod
    def of_floats(cls, vectors: NDArray[np.floating]) -> Layout:
        """Return the layout of (n, dim) float32 or float16 vectors."""
        return cls(vectors.shape[1], 8 * vectors.itemsize, vectors.shape[1] * vectors.itemsize)

    @property
    def name(self) -> str:
        """A name for files, such as `int4-128d`."""
        if self.bits == 0:
            return "centroids"
        kind = f"float{self.bits}" if self.bits > 8 else f"int{self.bits}"
        return f"{kind}{'-residual' if self.centroid_at is not None else ''}-{self.dim}d"

    @property
    def is_coded(self) -> bool:
        """Whether the values are a codec's integers."""
        return 0 < self.bits <= 8

    @property
    def values_per_byte(self) -> int:
        """Values in a byte; 1 for values of a byte or more. Kernels unpack the first value of every byte, then the
        second of every byte, and so on."""
        return 8 // self.bits if 0 < self.bits < 8 else 1

    @property
    def code_step(self) -> int:
        """Difference between the integers of two consecutive codes; a codec of fewer than 8 bits has odd ones only."""
        return 2 if self.bits < 8 else 1

    @property
    def zero_point(self) -> float:
        """The unsigned code that stands for 0, possibly between two codes."""
        return {8: 128, 16: 0, 32: 0}.get(self.bits, (2**self.bits - 1) / 2)

    @property
    def n_values(self) -> int:
        """Values that are unpacked: one per dimension, and those that fill up the last byte."""
        return self.dim if self.bits > 8 else (self.row_bytes - self.values_at) * self.values_per_byte

    @property
    def dim_order(self) -> NDArray[np.int64]:
        """(n_values,) the dimension of each value, in the order in which they are unpacked; `dim` or more for none."""
        return np.arange(self.n_values).reshape(-1, self.values_per_byte).T.ravel()


@lru_cache(maxsize=32)
def maxsim_kernel(cpu: Cpu, layout: Layout) -> Callable[..., None]:
    """Compile the kernel that finds the best match of each query token in each document; see `maxsim_builder`."""
    return maxsim_builder(cpu, layout).compile()


@lru_cache(maxsize=8)
def nearest_kernel(cpu: Cpu, layout: Layout) -> Callable[..., None]:
    """Compile the kernel that finds the nearest centroid of each vector; see `nearest_builder`."""
    return nearest_builder(cpu, layout).compile()


@lru_cache(maxsize=8)
def products_kernel(cpu: Cpu, layout: Layout) -> Callable[..., None]:
    """Compile the kernel that multiplies vectors with all centroids; see `products_builder`."""
    return products_builder(cpu, layout).compile()


def maxsim_builder(cpu: Cpu, layout: Layout) -> KernelBuilder:
    """Build the kernel that finds the best match of each query token in each document.

        for (document = 0; document < n_documents; document++)                // shared by threads
            for (first = 0; first < length[document]; first += TILE) {
                tile = unpack(rows[start[document] + first ...]);             // beyond the end, the last token again
                for (group = 0; group < n_groups; group++)                    // of query tokens, one per lane
                    for (t = 0; t < TILE; t++)
                        best[document][group] = max(best[document][group], similarity(tile[t], queries[group]));
            }

    Parameters of the kernel:
        rows: Document tokens, as `layout` says.
        starts, lengths: int64[n_documents] first row and number of rows of each document, at least one.
        queries: The query tokens, by `pack`.
        zero_terms: float32[n_groups][lanes] what `zero_point` adds to each query token's products.
        centroid_similarities: float32[n_centroids][n_groups][lanes] query tokens times centroids.
        best: float32[n_documents][n_groups][lanes] the result, initially -inf.
        counter: int64, initially 0; see `KernelBuilder.shared_loop`.
        n_documents, n_groups: Counts.
        scale: float32 factor of all products of codes.
    """
    is_integer = cpu.has_int8 and layout.is_coded
    k = KernelBuilder(cpu, f"maxsim-{layout.name}", layout.n_values, is_integer=is_integer, parameters="********nnf")
    rows, starts, lengths, queries, zero_terms, centroid_similarities, best, counter = k.parameters[:8]
    n_documents, n_groups, scale = k.parameters[8:]
    b, group_bytes = k.builder, k.const(k.group_bytes)
    with k.shared_loop(n_documents, counter) as document:
        start, length = (k.load(k.i64, array, b.mul(document, k.const(8))) for array in (starts, lengths))
        best_of_document = k.address(best, b.mul(document, b.mul(n_groups, group_bytes)))
        last = b.sub(length, k.const(1))
        with k.loop(length, TILE) as first:
            tokens = [_row_address(k, layout, rows, start, b.add(first, k.const(t)), last) for t in range(TILE)]
            _unpack(k, layout, tokens)
            with k.loop(n_groups) as group:
                lanes_at = b.mul(group, group_bytes)
                products = k.dot_products(k.address(queries, b.mul(group, k.const(k.n_steps * k.group_bytes))))
                highest = k.load(k.floats, best_of_document, lanes_at)
                for token, similarity in zip(tokens, products, strict=True):
                    if layout.is_coded:
                        zero_term = k.load(k.floats, zero_terms, lanes_at)
                        similarity = _rescale(k, layout, similarity, zero_term, token, scale)
                    if layout.centroid_at is not None:
                        centroid = b.zext(k.load(k.i16, token, k.const(layout.centroid_at), 1), k.i64)
                        at = b.add(b.mul(centroid, b.mul(n_groups, group_bytes)), lanes_at)
                        similarity = b.fadd(similarity, k.load(k.floats, centroid_similarities, at))
                    highest = k.maximum(similarity, highest)
                k.store(highest, best_of_document, lanes_at)
    return k


def nearest_builder(cpu: Cpu, layout: Layout) -> KernelBuilder:
    """Build the kernel that finds the nearest centroid of each vector.

        for (first = 0; first < n_vectors; first += TILE) {
            tile = unpack(rows[first ...]);                           // beyond the end, the last vector again
            for (group = 0; group < n_groups; group++)                // of centroids, one per lane
                for (t = 0; t < TILE; t++) {
                    product = dot(tile[t], centroids[group]) + start[group];
                    is_higher = product > highest[t];                 // in each lane
                    highest[t] = is_higher ? product : highest[t];
                    group_of[t] = is_higher ? group : group_of[t];
                }
            nearest[first + t] = the first centroid among the lanes with the highest product;
        }

    Parameters of the kernel:
        rows: The vectors, as `layout` says.
        centroids: The centroids, by `pack`.
        starts: float32 or int32 [n_groups][lanes] what each centroid's product starts from.
        nearest: int32[n_vectors] the result.
        n_vectors, n_groups: Counts.
    """
    k = KernelBuilder(cpu, f"nearest-{layout.name}", layout.n_values, is_integer=cpu.has_int8, parameters="****nn")
    rows, centroids, starts, nearest, n_vectors, n_groups = k.parameters
    b, ir = k.builder, k.ir
    highest, groups = ([b.alloca(kind) for _ in range(TILE)] for kind in (k.sums, k.integers))
    largest = b.alloca(k.floats)
    lowest = ir.Constant(k.sums, [-(2**31) if cpu.has_int8 else float("-inf")] * cpu.lanes)
    lane_numbers = ir.Constant(k.integers, list(range(cpu.lanes)))
    last = b.sub(n_vectors, k.const(1))
    reduction, scalar, compare = ("smax", k.i32, b.icmp_signed) if cpu.has_int8 else ("fmax", k.f32, b.fcmp_ordered)
    largest_lane = f"llvm.vector.reduce.{reduction}.v{cpu.lanes}{'i' if cpu.has_int8 else 'f'}32"
    with k.loop(n_vectors, TILE) as first:
        positions = [k.minimum(b.add(first, k.const(t)), last) for t in range(TILE)]
        _fill_tile(k, layout, rows, positions, largest)
        for t in range(TILE):
            b.store(lowest, highest[t])
            b.store(ir.Constant(k.integers, None), groups[t])
        with k.loop(n_groups) as group:
            start = k.load(k.sums, starts, b.mul(group, k.const(k.group_bytes)))
            of_group = k.address(centroids, b.mul(group, k.const(k.n_steps * k.group_bytes)))
            group_number = k.splat(b.trunc(group, k.i32))
            for t, product in enumerate(k.dot_products(of_group, start)):
                before = b.load(highest[t], typ=k.sums)
                is_higher = compare(">", product, before)
                b.store(b.select(is_higher, product, before), highest[t])
                b.store(b.select(is_higher, group_number, b.load(groups[t], typ=k.integers)), groups[t])
        for t, position in enumerate(positions):
            of_lanes = b.load(highest[t], typ=k.sums)
            top = k.splat(k.intrinsic(largest_lane, scalar, of_lanes))
            first_of_group = b.mul(b.load(groups[t], typ=k.integers), k.splat(ir.Constant(k.i32, cpu.lanes)))
            none = ir.Constant(k.integers, [2**31 - 1] * cpu.lanes)
            candidates = b.select(compare("==", of_lanes, top), b.add(first_of_group, lane_numbers), none)
            centroid = k.intrinsic(f"llvm.vector.reduce.smin.v{cpu.lanes}i32", k.i32, candidates)
            k.store(centroid, nearest, b.mul(position, k.const(4)))
    return k


def products_builder(cpu: Cpu, layout: Layout) -> KernelBuilder:
    """Build the kernel that multiplies vectors with all centroids.

        for (part = 0; part < n_groups; part += GROUPS_IN_PART)              // shared by threads
            for (first = 0; first < n_vectors; first += TILE) {
                tile = unpack(rows[first ...]);                              // beyond the end, the last vector again
                for (group = part; group < part + GROUPS_IN_PART && group < n_groups; group++)
                    for (t = 0; t < TILE; t++)
                        products[first + t][group] = dot(tile[t], centroids[group]);
            }

    Parameters of the kernel:
        rows: The vectors, as `layout` says.
        centroids: The centroids, by `pack`.
        starts: float32 or int32 [n_groups][lanes] what each centroid's product starts from.
        products: float32[n_vectors][n_groups][lanes] the result.
        counter: int64, initially 0; see `KernelBuilder.shared_loop`.
        n_vectors, n_groups: Counts.
        step: Where centroids are int8, the value of the integer 1; else 1.
    """
    k = KernelBuilder(cpu, f"products-{layout.name}", layout.n_values, is_integer=cpu.has_int8, parameters="*****nnf")
    rows, centroids, starts, products, counter, n_vectors, n_groups, step = k.parameters
    b, group_bytes, largest = k.builder, k.const(k.group_bytes), k.builder.alloca(k.floats)
    last, in_part = b.sub(n_vectors, k.const(1)), k.const(GROUPS_IN_PART)
    n_parts = b.sdiv(b.add(n_groups, b.sub(in_part, k.const(1))), in_part)
    with k.shared_loop(n_parts, counter, at_once=1) as part, k.loop(n_vectors, TILE) as first:
        at = b.mul(part, in_part)
        positions = [k.minimum(b.add(first, k.const(t)), last) for t in range(TILE)]
        factors = [k.splat(b.fmul(step, one)) for one in _fill_tile(k, layout, rows, positions, largest)]
        with k.loop(k.minimum(in_part, b.sub(n_groups, at))) as i:
            group = b.add(at, i)
            lanes_at = b.mul(group, group_bytes)
            start = k.load(k.sums, starts, lanes_at)
            of_group = k.address(centroids, b.mul(group, k.const(k.n_steps * k.group_bytes)))
            for t, product in enumerate(k.dot_products(of_group, start)):
                if cpu.has_int8:
                    product = b.fmul(b.sitofp(product, k.floats), factors[t])
                row = b.mul(positions[t], b.mul(n_groups, group_bytes))
                k.store(product, products, b.add(row, lanes_at))
    return k


def _row_address(
    k: KernelBuilder, layout: Layout, rows: ir.Value, start: ir.Value, token: ir.Value, last: ir.Value
) -> ir.Value:
    """C: `rows + (start + min(token, last)) * row_bytes`."""
    row = k.builder.add(start, k.minimum(token, last))
    return k.address(rows, k.builder.mul(row, k.const(layout.row_bytes)))


def _fill_tile(
    k: KernelBuilder, layout: Layout, rows: ir.Value, positions: Sequence[ir.Value], largest: ir.Value
) -> list[ir.Value]:
    """Store the vectors at these positions in the tile; of each, return the value of 1 if they become integers."""
    vectors = [k.address(rows, k.builder.mul(position, k.const(layout.row_bytes))) for position in positions]
    if k.is_integer:
        return [_quantize(k, layout, vector, k.tile_row(t), largest) for t, vector in enumerate(vectors)]
    _unpack(k, layout, vectors)
    return []


def _load_floats(k: KernelBuilder, layout: Layout, row: ir.Value, at: ir.Value, n: int) -> ir.Value:
    """C: `for (i = 0; i < n; i++) result[i] = (float)row[at + i];`, of a row of float32 or float16."""
    kind, n_bytes = (k.f32, 4) if layout.bits == 32 else (k.f16, 2)
    values = k.load(k.vector(kind, n), row, k.builder.mul(at, k.const(n_bytes)), n_bytes)
    return values if layout.bits == 32 else k.builder.fpext(values, k.vector(k.f32, n))


def _unpack(k: KernelBuilder, layout: Layout, rows: Sequence[ir.Value]) -> None:
    """Store the values of a tile's tokens in the tile, as float32 or, in an integer kernel, as unsigned bytes.

    C for each token, of floats: `for (i = 0; i < n_values; i++) tile_row[i] = (float)row[i];`
    C, of 8 bits: `tile_row[i] = row[i] ^ 128;`, which turns int8 into an unsigned code
    C, of fewer: `tile_row[v * n_bytes + i] = (row[i] >> v * bits) & ((1 << bits) - 1);` for each value v of a byte
    """
    for t, row in enumerate(rows):
        _unpack_token(k, layout, row, k.tile_row(t))


def _unpack_token(k: KernelBuilder, layout: Layout, row: ir.Value, tile_row: ir.Value) -> None:
    b, ir = k.builder, k.ir
    if layout.bits > 8:
        for at, n in k.runs(layout.n_values, k.cpu.lanes):
            k.store(_load_floats(k, layout, row, at, n), tile_row, b.mul(at, k.const(4)))
        return
    n_bytes = layout.n_values // layout.values_per_byte
    for at, n in k.runs(n_bytes, 64 if k.is_integer else k.cpu.lanes):
        kind = k.vector(k.i8, n)
        codes = k.load(kind, row, b.add(at, k.const(layout.values_at)), 1)
        for v in range(layout.values_per_byte):
            if layout.bits == 8:
                values = b.xor(codes, ir.Constant(kind, [128] * n))
            else:
                values = b.lshr(codes, ir.Constant(kind, [v * layout.bits] * n))
                values = b.and_(values, ir.Constant(kind, [2**layout.bits - 1] * n))
            position = b.add(at, k.const(v * n_bytes))
            if k.is_integer:
                k.store(values, tile_row, position, 1)
            else:
                k.store(b.uitofp(values, k.vector(k.f32, n)), tile_row, b.mul(position, k.const(4)))


def _quantize(k: KernelBuilder, layout: Layout, row: ir.Value, tile_row: ir.Value, highest: ir.Value) -> ir.Value:
    """Store a vector of floats in the tile as unsigned bytes, scaled so that its largest value becomes 127.

    C: `tile_row[i] = (int8_t)rint(row[i] * 127 / largest) ^ 128;`, where largest is the maximum of `fabs(row[i])`

    Args:
        highest: Address of a register of floats that is used meanwhile.

    Returns:
        The value of the integer 1, `largest / 127`.
    """
    b, ir = k.builder, k.ir
    b.store(ir.Constant(k.floats, None), highest)
    largest = ir.Constant(k.f32, 1e-30)
    for at, n in k.runs(layout.n_values, k.cpu.lanes):
        values = _load_floats(k, layout, row, at, n)
        magnitudes = k.intrinsic(f"llvm.fabs.v{n}f32", values.type, values)
        if n == k.cpu.lanes:
            b.store(k.maximum(magnitudes, b.load(highest, typ=k.floats)), highest)
        else:
            largest = k.maximum(k.intrinsic(f"llvm.vector.reduce.fmax.v{n}f32", k.f32, magnitudes), largest)
    of_lanes = b.load(highest, typ=k.floats)
    largest = k.maximum(k.intrinsic(f"llvm.vector.reduce.fmax.v{k.cpu.lanes}f32", k.f32, of_lanes), largest)
    factor = b.fdiv(ir.Constant(k.f32, 127.0), largest)
    for at, n in k.runs(layout.n_values, k.cpu.lanes):
        values = b.fmul(_load_floats(k, layout, row, at, n), k.splat(factor, n))
        rounded = k.intrinsic(f"llvm.rint.v{n}f32", values.type, values)
        integers = b.trunc(b.fptosi(rounded, k.vector(k.i32, n)), k.vector(k.i8, n))
        k.store(b.xor(integers, ir.Constant(integers.type, [128] * n)), tile_row, at, 1)
    return b.fdiv(largest, ir.Constant(k.f32, 127.0))


def _rescale(
    k: KernelBuilder, layout: Layout, product: ir.Value, zero_term: ir.Value, row: ir.Value, scale: ir.Value
) -> ir.Value:
    """Turn products of unsigned codes into similarities.

    C: `((float)product - zero_term) * (scale * (float)*(_Float16 *)(row + scale_at))`, without the token's own scale
    where the layout has none
    """
    b = k.builder
    if k.is_integer:
        product = b.sitofp(product, k.floats)
    if layout.scale_at is not None:
        scale = b.fmul(scale, b.fpext(k.load(k.f16, row, k.const(layout.scale_at), 1), k.f32))
    return b.fmul(b.fsub(product, zero_term), k.splat(scale))
