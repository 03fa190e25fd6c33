"""MaxSim's inner loop in machine code, which LLVM makes for this very processor when it is first wanted.

Matrix products write every similarity to memory and read it again for the maxima. Here a few document tokens at a time
are multiplied with the query and only their maxima are kept. Vectors are read from where they lie: float16 and a
codec's bytes become numbers in the processor, documents anywhere in memory need no gathering.

A token's similarities come from the same instructions wherever it stands and whatever else is scored, so equal vectors
get equal similarities.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.codec import Codec, rotation

if TYPE_CHECKING:
    from llvmlite import ir

# Document tokens that are multiplied with one register of query tokens at a time: so many sums are kept in registers.
_TILE = 8


@dataclass(frozen=True)
class Processor:
    """What of a processor's instructions the loop is made of.

    Attributes:
        name: as LLVM has it.
        features: as LLVM has them.
        lanes: float32 numbers in a register.
        has_int8: whether it adds up products of int8 (x86's VNNI for 512 bits).
    """

    name: str
    features: str
    lanes: int
    has_int8: bool


@dataclass(frozen=True)
class Layout:
    """How the bytes of a document token are to be read.

    Attributes:
        dim: of the vector.
        bits: a dimension; 32 and 16 are floats, the others a codec's whole numbers.
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
        has_centroid, has_scale = codec.centroids is not None, codec.name != "binary"
        scale_at = 2 * has_centroid
        numbers_at = scale_at + 2 * has_scale
        return cls(
            codec.dim, codec.bits, row_bytes, numbers_at, scale_at if has_scale else None, 0 if has_centroid else None
        )

    @property
    def n_planes(self) -> int:
        """Numbers in a byte. The loop reads the first of each byte, then the second of each, …"""
        return max(1, 8 // self.bits)

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
        queries: (n, dim) float32 tokens, of one query or of several.
        vectors: (n_rows, dim) float32 or float16 of all documents, or their (n_rows, width) codes.
        codec: whose codes they are.
    """

    def __init__(
        self, own: Processor, queries: NDArray[np.float32], vectors: NDArray[Any], codec: Codec | None
    ) -> None:
        vectors = np.ascontiguousarray(vectors)
        layout = Layout.of(vectors, codec)
        is_integer = codec is not None and own.has_int8
        self._n, self._lanes = len(queries), own.lanes
        self._n_groups = -(-len(queries) // own.lanes)
        self._vectors = vectors
        self._run, self._made = _compiled(own, layout)
        self.factors = np.ones(len(queries), np.float32)

        numbers = queries @ rotation(layout.dim) if codec is not None and codec.is_rotated else queries
        if is_integer:
            self.factors = np.maximum(np.abs(numbers).max(axis=1), 1e-30) / np.float32(127)
            numbers = np.rint(numbers / self.factors[:, None])
        ordered = np.zeros((self._n_groups * own.lanes, -(-layout.n_read // 4) * 4), np.float32)
        in_dim = layout.order < layout.dim
        ordered[: self._n, : layout.n_read][:, in_dim] = numbers[:, layout.order[in_dim]]
        by_lane = ordered.reshape(self._n_groups, own.lanes, -1)
        if is_integer:
            fours = by_lane.astype(np.int8).reshape(self._n_groups, own.lanes, -1, 4)
            self._query = np.ascontiguousarray(fours.transpose(0, 2, 1, 3))
        else:
            self._query = np.ascontiguousarray(by_lane.transpose(0, 2, 1)[:, : layout.n_read])
        # Codes are read as whole numbers from 0 on; what that adds to a product is the same for all documents.
        self._less = ordered.sum(axis=1) * np.float32(layout.zero)
        self._to_centroids = np.zeros((1, len(ordered)), np.float32)
        if codec is not None and codec.centroids is not None:
            self._to_centroids = np.zeros((len(codec.centroids), len(ordered)), np.float32)
            self._to_centroids[:, : self._n] = codec.centroids @ queries.T / self.factors
        self._unit = ctypes.c_float(layout.step * (layout.dim**-0.5 if layout.scale_at is None else 1))

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n_documents, n) for each query token the highest similarity among `lengths` rows from `starts` on.

        No length is 0. The interpreter is free meanwhile.
        """
        best = np.full((len(starts), self._n_groups * self._lanes), -np.inf, np.float32)
        starts, lengths = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths, np.int64)
        arrays = (self._vectors, starts, lengths, self._query, self._less, self._to_centroids, best)
        self._run(*(array.ctypes.data for array in arrays), len(starts), self._n_groups, self._unit)
        return best[:, : self._n] * self.factors


@lru_cache(maxsize=1)
def processor() -> Processor | None:
    """This machine's processor; None if llvmlite is not there or has no use of it."""
    try:
        from llvmlite import binding
    except ModuleNotFoundError as error:
        if error.name != "llvmlite":
            raise
        return None
    features = binding.get_host_cpu_features()
    has = {name for name, is_there in features.items() if is_there}
    if has >= {"avx2", "fma", "f16c"}:
        lanes = 16 if has >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"} else 8
        has_int8 = lanes == 16 and "avx512vnni" in has
    elif platform.machine() in ("aarch64", "arm64"):
        lanes, has_int8 = 4, False
    else:
        return None
    return Processor(binding.get_host_cpu_name(), features.flatten(), lanes, has_int8)


@lru_cache(maxsize=32)
def _compiled(own: Processor, layout: Layout) -> tuple[Callable[..., None], Any]:
    """The loop for documents of this layout, and what has to stay alive for it."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=own.name, features=own.features, opt=3)
    module = binding.parse_assembly(str(_Loop(own, layout).module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    n_pointers, n_counts = 7, 2
    arguments = [ctypes.c_void_p] * n_pointers + [ctypes.c_int64] * n_counts + [ctypes.c_float]
    return ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address("best")), engine


class _Loop:
    """Writes the loop in LLVM's language:

    for each document:
        for each tile of its tokens (the last token fills up the last tile):
            read the tokens' numbers
            for each group of query tokens, one a lane:
                for each number: add query * document to the sum of each token of the tile
                best = max(best, similarities made of the sums)
    """

    def __init__(self, own: Processor, layout: Layout) -> None:
        from llvmlite import ir

        self._own, self._layout, self._ir = own, layout, ir
        self._is_integer = own.has_int8 and layout.bits <= 8
        # Numbers of a token in the tile, and how many of them are multiplied at once in one lane.
        self._at_once = 4 if self._is_integer else 1
        self._n_steps = -(-layout.n_read // self._at_once)
        self._row_bytes = 4 * self._n_steps
        self._i8, self._i32, self._i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        self._f16, self._f32, self._pointer = ir.HalfType(), ir.FloatType(), ir.PointerType()
        self._floats = ir.VectorType(self._f32, own.lanes)
        self._sums = ir.VectorType(self._i32, own.lanes) if self._is_integer else self._floats
        self.module = ir.Module()
        self._write()

    def _write(self) -> None:
        ir, pointer = self._ir, self._pointer
        kind = ir.FunctionType(ir.VoidType(), [pointer] * 7 + [self._i64] * 2 + [self._f32])
        function = ir.Function(self.module, kind, "best")
        rows, starts, lengths, query, less, to_centroids, best, n_documents, n_groups, unit = function.args
        b = self._b = ir.IRBuilder(function.append_basic_block())
        tile = b.alloca(ir.ArrayType(self._i8, _TILE * self._row_bytes))
        tile.align = 64
        if self._is_integer:
            # What no number is written to is multiplied with 0, but has to be a number.
            b.store(ir.Constant(tile.allocated_type, None), tile)
        # To llvmlite it points to an array, to LLVM a pointer points to anything.
        tile.type = pointer
        sums = [b.alloca(self._sums) for _ in range(_TILE)]
        group_bytes = self._int(4 * self._own.lanes)
        with self._each(n_documents) as document:
            start, length = (self._load(self._i64, array, b.mul(document, self._int(8))) for array in (starts, lengths))
            own_best = self._at(best, b.mul(document, b.mul(n_groups, group_bytes)))
            with self._each(length, _TILE) as first:
                tokens = [self._row(rows, start, length, first, i) for i in range(_TILE)]
                for i, token in enumerate(tokens):
                    self._read(token, self._at(tile, self._int(i * self._row_bytes)))
                with self._each(n_groups) as group:
                    for own_sum in sums:
                        b.store(ir.Constant(self._sums, None), own_sum)
                    of_group = self._at(query, b.mul(group, self._int(self._n_steps * 4 * self._own.lanes)))
                    with self._each(self._int(self._n_steps)) as step:
                        self._add_products(of_group, tile, step, sums)
                    here = b.mul(group, group_bytes)
                    highest = self._load(self._floats, own_best, here)
                    for token, own_sum in zip(tokens, sums, strict=True):
                        similarities = self._similarities(
                            b.load(own_sum, typ=self._sums), token, less, to_centroids, n_groups, here, unit
                        )
                        highest = b.select(b.fcmp_ordered(">", similarities, highest), similarities, highest)
                    b.store(highest, self._at(own_best, here), align=4)
        b.ret_void()

    def _row(self, rows: ir.Value, start: ir.Value, length: ir.Value, first: ir.Value, i: int) -> ir.Value:
        """Where token first + i of a document lies, or its last one if there are not so many."""
        b = self._b
        wanted, last = b.add(first, self._int(i)), b.sub(length, self._int(1))
        place = b.select(b.icmp_signed("<", wanted, last), wanted, last)
        return self._at(rows, b.mul(b.add(start, place), self._int(self._layout.row_bytes)))

    def _read(self, token: ir.Value, into: ir.Value) -> None:
        """The token's numbers: as float32, or as bytes if integers are multiplied."""
        b, ir, layout = self._b, self._ir, self._layout
        if layout.bits > 8:
            source, n_bytes = (self._f32, 4) if layout.bits == 32 else (self._f16, 2)
            for at, n in _chunks(layout.n_read, self._own.lanes):
                numbers = self._load(ir.VectorType(source, n), token, self._int(n_bytes * at), n_bytes)
                if layout.bits == 16:
                    numbers = b.fpext(numbers, ir.VectorType(self._f32, n))
                b.store(numbers, self._at(into, self._int(4 * at)), align=4)
            return
        width = layout.n_read // layout.n_planes
        for at, n in _chunks(width, 64 if self._is_integer else self._own.lanes):
            kind = ir.VectorType(self._i8, n)
            codes = self._load(kind, token, self._int(layout.numbers_at + at), 1)
            for plane in range(layout.n_planes):
                if layout.bits == 8:
                    numbers = b.xor(codes, ir.Constant(kind, [128] * n))
                else:
                    numbers = b.lshr(codes, ir.Constant(kind, [plane * layout.bits] * n))
                    numbers = b.and_(numbers, ir.Constant(kind, [2**layout.bits - 1] * n))
                place = plane * width + at
                if self._is_integer:
                    b.store(numbers, self._at(into, self._int(place)), align=1)
                else:
                    numbers = b.uitofp(numbers, ir.VectorType(self._f32, n))
                    b.store(numbers, self._at(into, self._int(4 * place)), align=4)

    def _add_products(self, query: ir.Value, tile: ir.Value, step: ir.Value, sums: Sequence[ir.Value]) -> None:
        """Add to each token's sums its products with the query's number, or four numbers, of this step."""
        b, ir = self._b, self._ir
        of_query = self._load(self._sums, query, b.mul(step, self._int(4 * self._own.lanes)))
        kind = self._i32 if self._is_integer else self._f32
        name = "llvm.x86.avx512.vpdpbusd.512" if self._is_integer else f"llvm.fma.v{self._own.lanes}f32"
        product = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(self._sums, [self._sums] * 3), name
        )
        for i, own_sum in enumerate(sums):
            at = b.add(b.mul(step, self._int(4)), self._int(i * self._row_bytes))
            number = self._splat(self._load(kind, tile, at))
            total = b.load(own_sum, typ=self._sums)
            factors = (total, number, of_query) if self._is_integer else (number, of_query, total)
            b.store(b.call(product, factors), own_sum)

    def _similarities(
        self,
        total: ir.Value,
        token: ir.Value,
        less: ir.Value,
        to_centroids: ir.Value,
        n_groups: ir.Value,
        group: ir.Value,
        unit: ir.Value,
    ) -> ir.Value:
        """What a token's sums mean."""
        b, layout = self._b, self._layout
        if layout.bits > 8:
            return total
        if self._is_integer:
            total = b.sitofp(total, self._floats)
        scale = unit
        if layout.scale_at is not None:
            scale = b.fmul(unit, b.fpext(self._load(self._f16, token, self._int(layout.scale_at), 1), self._f32))
        similarities = b.fmul(b.fsub(total, self._load(self._floats, less, group)), self._splat(scale))
        if layout.centroid_at is not None:
            centroid = b.zext(self._load(self._ir.IntType(16), token, self._int(layout.centroid_at), 1), self._i64)
            at = b.mul(centroid, b.mul(n_groups, self._int(4 * self._own.lanes)))
            similarities = b.fadd(similarities, self._load(self._floats, to_centroids, b.add(at, group)))
        return similarities

    @contextmanager
    def _each(self, n: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """What is written inside is done for 0, step, 2 * step, … below n."""
        b = self._b
        before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", self._int(0), n), body, after)
        b.position_at_end(body)
        number = b.phi(self._i64)
        number.add_incoming(self._int(0), before)
        yield number
        following = b.add(number, self._int(step))
        number.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, n), body, after)
        b.position_at_end(after)

    def _int(self, number: int) -> ir.Value:
        return self._ir.Constant(self._i64, number)

    def _at(self, pointer: ir.Value, n_bytes: ir.Value) -> ir.Value:
        return self._b.gep(pointer, [n_bytes], source_etype=self._i8)

    def _load(self, kind: ir.Type, pointer: ir.Value, n_bytes: ir.Value, align: int = 4) -> ir.Value:
        return self._b.load(self._at(pointer, n_bytes), typ=kind, align=align)

    def _splat(self, number: ir.Value) -> ir.Value:
        """The number in every lane."""
        b, ir = self._b, self._ir
        lanes = ir.VectorType(number.type, self._own.lanes)
        first = b.insert_element(ir.Constant(lanes, ir.Undefined), number, ir.Constant(self._i32, 0))
        everywhere = ir.Constant(ir.VectorType(self._i32, self._own.lanes), None)
        return b.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), everywhere)


def _chunks(n: int, largest: int) -> Iterator[tuple[int, int]]:
    """Start and size of parts of n things, the sizes powers of two: registers are read at once, and nothing behind."""
    at, size = 0, largest
    while at < n:
        while size > n - at:
            size //= 2
        yield at, size
        at += size
