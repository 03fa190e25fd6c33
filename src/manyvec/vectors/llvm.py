"""`KernelBuilder`: the building blocks of CPU kernels, in LLVM's intermediate representation through llvmlite.

A kernel compares document tokens with other vectors: query tokens or centroids. Document tokens are taken `TILE` at a
time. The other vectors are taken in groups of one per lane of a vector register, so that one instruction multiplies a
value of one document token with that of a whole group.

Methods of `KernelBuilder` append instructions to the kernel and return the value that these will compute. Each
docstring says in C what is appended. `MANYVEC_DUMP_IR=DIR` writes the optimised IR and the assembly of each kernel to
DIR.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError

if TYPE_CHECKING:
    from llvmlite import ir

# Document tokens in a tile. Their sums take one register each and stay there: AVX2 has 16 registers.
TILE = 8
# Parts of a token's values that are unpacked before a loop jumps back.
_UNROLLED = 4


@dataclass(frozen=True)
class Cpu:
    """Instruction sets that kernels may use on a CPU.

    Attributes:
        name: Name of the CPU as LLVM spells it, such as `haswell`.
        features: Its features as LLVM spells them, such as `+avx2,+fma`.
        lanes: float32 values in a vector register.
        has_int8: Whether codes are multiplied as int8. Fast only with AVX-512 VNNI; emulated without it.
    """

    name: str
    features: str
    lanes: int
    has_int8: bool

    @property
    def has_vnni(self) -> bool:
        """Whether it has AVX-512 VNNI, which multiplies int8 and adds up in one instruction."""
        return "+avx512vnni" in self.features.split(",")

    @property
    def has_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 faster than float32, in torch too: AVX-512 BF16 or AMX."""
        return not {"+avx512bf16", "+amx-bf16"}.isdisjoint(self.features.split(","))


@lru_cache(maxsize=1)
def host_cpu() -> Cpu | None:
    """Return this machine's CPU, or None if llvmlite is not installed or kernels are not written for such a CPU."""
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
    return Cpu(binding.get_host_cpu_name(), features.flatten(), lanes, has_int8)


class KernelBuilder:
    """Builds one kernel: a C function without a result, `void run(...)`.

    Args:
        cpu: CPU to compile for.
        name: Name of the kernel, for `MANYVEC_DUMP_IR`.
        n_values: Values per document token.
        is_integer: Whether document tokens are unsigned bytes and the other vectors int8; both are float32 otherwise.
        parameters: One character per parameter of the function: `*` pointer, `n` int64 count, `f` float32.

    Attributes:
        parameters: The function's parameters.
        builder: llvmlite's instruction builder, positioned where the next instruction goes.
        n_steps: Steps that a dot product takes: one per value, or one per four bytes.
        group_bytes: Bytes of one register of 32-bit values.
        floats, integers: Types of a register of float32 or int32 values.
        sums: Type of a register of dot products, one of these two.
    """

    def __init__(self, cpu: Cpu, name: str, n_values: int, *, is_integer: bool, parameters: str) -> None:
        from llvmlite import ir

        self.cpu, self.name, self.ir, self.is_integer = cpu, name, ir, is_integer
        self.n_steps = -(-n_values // 4) if is_integer else n_values
        self.group_bytes = 4 * cpu.lanes
        self._row_bytes = 4 * self.n_steps
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f16, self.f32 = ir.HalfType(), ir.FloatType()
        self.floats, self.integers = self.vector(self.f32), self.vector(self.i32)
        self.sums = self.integers if is_integer else self.floats

        self._module = ir.Module()
        self._parameters = parameters
        pointer = ir.PointerType()
        types = {"*": pointer, "n": self.i64, "f": self.f32}
        signature = ir.FunctionType(ir.VoidType(), [types[parameter] for parameter in parameters])
        function = ir.Function(self._module, signature, "run")
        self.parameters = function.args
        self.builder = ir.IRBuilder(function.append_basic_block())
        # char tile[TILE][row_bytes]: the values of a tile's tokens, unpacked.
        self._tile = self.builder.alloca(ir.ArrayType(self.i8, TILE * self._row_bytes))
        self._tile.align = 64
        # llvmlite sees a pointer to an array here; to LLVM, pointers have no type.
        self._tile.type = pointer
        if is_integer:
            # Bytes that no value is written to are multiplied with 0, but must be defined. Stored as one constant, they
            # would take seconds to compile.
            zero, n_bytes, is_volatile = ir.Constant(self.i8, 0), self.const(TILE * self._row_bytes), ir.IntType(1)(0)
            self.intrinsic("llvm.memset.p0.i64", ir.VoidType(), self._tile, zero, n_bytes, is_volatile)
        self._sums = [self.builder.alloca(self.sums) for _ in range(TILE)]

    @property
    def ir_text(self) -> str:
        """The kernel as it was built, before any optimisation."""
        return str(self._module)

    def compile(self) -> Callable[..., None]:
        """Finish the kernel and compile it.

        Returns:
            A function that takes addresses and numbers. It runs without the GIL.
        """
        from llvmlite import binding

        self.builder.ret_void()
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(cpu=self.cpu.name, features=self.cpu.features, opt=3)
        module = binding.parse_assembly(self.ir_text)
        # The code is written for vector registers already: more passes take longer, and make nothing faster.
        tuning = binding.create_pipeline_tuning_options(speed_level=1)
        # Of the 16 registers of AVX2, LLVM leaves too few for the sums if it unrolls the loop of `dot_products` by 2,
        # as it does where 3 does not divide the steps.
        tuning.loop_unrolling = self.cpu.lanes != 8 or self.n_steps % 3 == 0
        passes = binding.create_pass_builder(machine, tuning)
        passes.getModulePassManager().run(module, passes)
        if directory := os.environ.get("MANYVEC_DUMP_IR"):
            _dump(Path(directory), f"{self.name}-{self.cpu.name}", str(module), machine.emit_assembly(module))
        engine = binding.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        types = {"*": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
        signature = ctypes.CFUNCTYPE(None, *(types[parameter] for parameter in self._parameters))
        run = signature(engine.get_function_address("run"))
        # The machine code is freed with its engine.
        run.engine = engine  # type: ignore[attr-defined]
        return run

    # Dot products

    def tile_row(self, i: int) -> ir.Value:
        """C: `tile[i]`, where the values of the tile's token i are stored."""
        return self.address(self._tile, self.const(i * self._row_bytes))

    def dot_products(self, group: ir.Value, start: ir.Value | None = None) -> list[ir.Value]:
        """Multiply each token of the tile with a group of vectors.

        C, for each token t, with `sum[t]` in a register and a multiplication in all lanes at once:

            for (step = 0; step < n_steps; step++)
                for (lane = 0; lane < lanes; lane++)
                    sum[t][lane] += tile[t][step] * group[step][lane];

        With integers, `tile[t][step]` and `group[step][lane]` are four bytes and their dot product is added.

        Args:
            group: Address of the group, laid out by `pack`.
            start: Register that the sums start from; 0 by default.

        Returns:
            For each token of the tile the register of its dot products.
        """
        b = self.builder
        for total in self._sums:
            b.store(self.ir.Constant(self.sums, None) if start is None else start, total)
        with self.loop(self.const(self.n_steps)) as step:
            vectors = self.load(self.sums, group, b.mul(step, self.const(self.group_bytes)))
            for i, total in enumerate(self._sums):
                at = b.add(b.mul(step, self.const(4)), self.const(i * self._row_bytes))
                value = self.splat(self.load(self.i32 if self.is_integer else self.f32, self._tile, at))
                before = b.load(total, typ=self.sums)
                b.store(self._multiply_add(before, value, vectors), total)
        return [b.load(total, typ=self.sums) for total in self._sums]

    def _multiply_add(self, total: ir.Value, value: ir.Value, vectors: ir.Value) -> ir.Value:
        """C, for each lane: `total + value * vectors`; of integers, of four unsigned and four signed bytes."""
        if not self.is_integer:
            return self.intrinsic(f"llvm.fma.v{self.cpu.lanes}f32", self.sums, value, vectors, total)
        if self.cpu.has_vnni:
            return self.intrinsic("llvm.x86.avx512.vpdpbusd.512", self.sums, total, value, vectors)
        # The same in plain instructions. Slow: it is there to test the integer kernels on any CPU.
        b = self.builder
        for byte in range(4):
            low, high = (self.splat(self.ir.Constant(self.i32, bits)) for bits in (8 * byte, 24 - 8 * byte))
            unsigned = b.and_(b.lshr(value, low), self.splat(self.ir.Constant(self.i32, 255)))
            signed = b.ashr(b.shl(vectors, high), self.splat(self.ir.Constant(self.i32, 24)))
            total = b.add(total, b.mul(unsigned, signed))
        return total

    # Control flow

    @contextmanager
    def loop(self, n: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """Append the instructions of the `with` block as a loop's body.

        C: `for (int64_t i = 0; i < n; i += step) { ... }`, with i as the target of the `with` statement.
        """
        b = self.builder
        before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", self.const(0), n), body, after)
        b.position_at_end(body)
        number = b.phi(self.i64)
        number.add_incoming(self.const(0), before)
        yield number
        following = b.add(number, self.const(step))
        number.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, n), body, after)
        b.position_at_end(after)

    def runs(self, n: int, largest: int) -> Iterator[tuple[ir.Value, int]]:
        """Append the instructions that the caller appends for each part of n values, most of them in a loop.

        Written out for each part, a kernel of 384 dims takes half a second to compile.

        Yields:
            Start of a part and its size: `largest`, then smaller powers of two for what is left.
        """
        at_once = _UNROLLED * largest
        if n >= at_once:
            with self.loop(self.const(n - n % at_once), at_once) as start:
                for i in range(_UNROLLED):
                    yield self.builder.add(start, self.const(i * largest)), largest
        for at, size in chunks(n % at_once, largest):
            yield self.const(n - n % at_once + at), size

    @contextmanager
    def shared_loop(self, n: ir.Value, counter: ir.Value, at_once: int = 8) -> Iterator[ir.Value]:
        """Append a loop that several threads run together: each takes the next few numbers when it has done some.

        C: `while ((first = atomic_fetch_add(counter, at_once)) < n)
                for (int64_t i = first; i < min(first + at_once, n); i++) { ... }`

        Args:
            n: Number of iterations of all threads together.
            counter: Address of the int64 that the threads share, 0 before the loop.
            at_once: Iterations that a thread takes at a time.
        """
        b = self.builder
        take, some, after = (b.append_basic_block() for _ in range(3))
        b.branch(take)
        b.position_at_end(take)
        first = b.atomic_rmw("add", counter, self.const(at_once), "monotonic")
        b.cbranch(b.icmp_signed("<", first, n), some, after)
        b.position_at_end(some)
        with self.loop(self.minimum(self.const(at_once), b.sub(n, first))) as i:
            yield b.add(first, i)
        b.branch(take)
        b.position_at_end(after)

    # Values

    def minimum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """C: `x < y ? x : y`, of integers."""
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def maximum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """C: `x > y ? x : y`, of floats, in each lane: y where x is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def intrinsic(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Call one of LLVM's intrinsic functions (https://llvm.org/docs/LangRef.html#intrinsic-functions)."""
        signature = self.ir.FunctionType(result, [argument.type for argument in arguments])
        function = self._module.globals.get(name) or self.ir.Function(self._module, signature, name)
        return self.builder.call(function, arguments)

    def const(self, number: int) -> ir.Value:
        """C: `(int64_t)number`."""
        return self.ir.Constant(self.i64, number)

    def vector(self, element: ir.Type, n: int | None = None) -> ir.Type:
        """Return the type of n values side by side, by default one per lane."""
        return self.ir.VectorType(element, n or self.cpu.lanes)

    def splat(self, value: ir.Value, n: int | None = None) -> ir.Value:
        """C: `{value, value, ...}`, the value in all of n lanes."""
        ir, kind = self.ir, self.vector(value.type, n)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(self.i32, 0))
        everywhere = ir.Constant(self.vector(self.i32, n), None)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)

    # Memory

    def address(self, pointer: ir.Value, n_bytes: ir.Value) -> ir.Value:
        """C: `(char *)pointer + n_bytes`."""
        return self.builder.gep(pointer, [n_bytes], source_etype=self.i8)

    def load(self, kind: ir.Type, pointer: ir.Value, n_bytes: ir.Value, align: int = 4) -> ir.Value:
        """C: `*(kind *)((char *)pointer + n_bytes)`."""
        return self.builder.load(self.address(pointer, n_bytes), typ=kind, align=align)

    def store(self, value: ir.Value, pointer: ir.Value, n_bytes: ir.Value, align: int = 4) -> None:
        """C: `*(kind *)((char *)pointer + n_bytes) = value`."""
        self.builder.store(value, self.address(pointer, n_bytes), align=align)


def pack(vectors: NDArray[np.float32] | NDArray[np.int8], lanes: int, *, is_integer: bool) -> NDArray[np.generic]:
    """Lay vectors out as `KernelBuilder.dot_products` reads them.

    Args:
        vectors: (n, n_values); integers from -128 to 127 if `is_integer`.
        lanes: Vectors in a group.
        is_integer: Whether the kernel multiplies integers.

    Returns:
        (n_groups, n_values, lanes) float32, or (n_groups, n_values / 4, lanes, 4) int8, padded with zeros.
    """
    n, n_values = vectors.shape
    n_groups, at_once = -(-n // lanes), 4 if is_integer else 1
    n_steps = -(-n_values // at_once)
    padded = np.zeros((n_groups * lanes, n_steps * at_once), np.int8 if is_integer else np.float32)
    padded[:n, :n_values] = vectors
    if is_integer:
        return np.ascontiguousarray(padded.reshape(n_groups, lanes, n_steps, 4).transpose(0, 2, 1, 3))
    return np.ascontiguousarray(padded.reshape(n_groups, lanes, n_steps).transpose(0, 2, 1))


def chunks(n: int, largest: int) -> Iterator[tuple[int, int]]:
    """Split n values into parts of power-of-two sizes, so that whole registers are loaded and nothing beyond the end.

    Yields:
        Start and size of each part, at most `largest` values.
    """
    at, size = 0, largest
    while at < n:
        while size > n - at:
            size //= 2
        yield at, size
        at += size


def addresses(*arrays: NDArray[np.generic]) -> tuple[int, ...]:
    """Return the addresses of C-contiguous arrays."""
    return tuple(array.ctypes.data for array in arrays)


def _dump(directory: Path, name: str, ir_text: str, assembly: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.ll").write_text(ir_text, encoding="utf8")
        (directory / f"{name}.s").write_text(assembly, encoding="utf8")
    except OSError as error:
        raise InputError(f"MANYVEC_DUMP_IR must name a folder that can be written to: {error}") from error
