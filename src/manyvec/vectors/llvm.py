"""Machine code that LLVM makes for this very processor, what its loops are written with, and threads to run it in.

Loops are written in LLVM's own language through llvmlite: they compare document tokens, a tile of a few at a time, with
other vectors, one in each lane of a register.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llvmlite import ir

Item = TypeVar("Item")

# Document tokens in a tile: their sums, one register each, stay in registers.
TILE = 8


@dataclass(frozen=True)
class Cpu:
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


@lru_cache(maxsize=1)
def processor() -> Cpu | None:
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
    return Cpu(binding.get_host_cpu_name(), features.flatten(), lanes, has_int8)


def in_threads(work: Callable[[], None], most: int) -> None:
    """Let as many threads as torch would use, and at most so many, do what is left of the work until all is done.

    Where there is no machine code, this thread alone: torch, which works then, has threads of its own.
    """
    import torch

    n_threads = torch.get_num_threads() if processor() else 1
    helpers = [_pool(os.getpid(), n_threads).submit(work) for _ in range(min(n_threads, most) - 1)]
    work()
    for helper in helpers:
        # One that has not begun has nothing left to do.
        if not helper.cancel():
            helper.result()


def in_parallel(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Work on all items `in_threads`; each thread takes the next item when it has done one."""
    numbers = itertools.count()

    def work_on() -> None:
        while (number := next(numbers)) < len(items):
            work(items[number])

    in_threads(work_on, len(items))


@lru_cache(maxsize=1)
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process; one that was forked has none of its parent's, and makes its own."""
    return ThreadPoolExecutor(n_threads, "manyvec")


class KernelBuilder:
    """What every loop is written with: numbers of a tile of tokens, multiplied with vectors in lanes.

    Args:
        own: the processor.
        n_numbers: of a token.
        is_integer: whether tokens are read as bytes from 0 to 255 and multiplied with int8, four at a time; float32
            otherwise.
        arguments: of the function: `*` for a pointer, `n` for a count, `f` for a float32.
    """

    def __init__(self, own: Cpu, n_numbers: int, *, is_integer: bool, arguments: str) -> None:
        from llvmlite import ir

        self.own, self.ir, self.is_integer = own, ir, is_integer
        self.n_steps = -(-n_numbers // 4) if is_integer else n_numbers
        self.row_bytes = 4 * self.n_steps
        self.group_bytes = 4 * own.lanes
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f16, self.f32 = ir.HalfType(), ir.FloatType()
        self.floats, self.integers = self.lanes(self.f32), self.lanes(self.i32)
        self.sums = self.integers if is_integer else self.floats

        self._module = ir.Module()
        self._arguments = arguments
        pointer = ir.PointerType()
        kinds = {"*": pointer, "n": self.i64, "f": self.f32}
        kind = ir.FunctionType(ir.VoidType(), [kinds[argument] for argument in arguments])
        function = ir.Function(self._module, kind, "run")
        self.arguments = function.args
        self.b = ir.IRBuilder(function.append_basic_block())
        self.tile = self.b.alloca(ir.ArrayType(self.i8, TILE * self.row_bytes))
        self.tile.align = 64
        if is_integer:
            # What no number is written to is multiplied with 0, but has to be a number.
            self.b.store(ir.Constant(self.tile.allocated_type, None), self.tile)
        # To llvmlite it points to an array, to LLVM a pointer points to anything.
        self.tile.type = pointer
        self._sums = [self.b.alloca(self.sums) for _ in range(TILE)]

    def compiled(self) -> Callable[..., None]:
        """The function: it takes addresses and numbers, and leaves the interpreter free meanwhile."""
        from llvmlite import binding

        self.b.ret_void()
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(cpu=self.own.name, features=self.own.features, opt=3)
        module = binding.parse_assembly(str(self._module))
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        engine = binding.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        kinds = {"*": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
        kind = ctypes.CFUNCTYPE(None, *(kinds[argument] for argument in self._arguments))
        run = kind(engine.get_function_address("run"))
        # The code lives as long as its engine does.
        run.engine = engine  # type: ignore[attr-defined]
        return run

    def products(self, vectors: ir.Value, start: ir.Value | None = None) -> list[ir.Value]:
        """For each token of the tile its dot products with a group of vectors, one a lane.

        Args:
            vectors: the group, as `packed` lays it out.
            start: what to add them to; 0 by default.
        """
        b = self.b
        for own_sum in self._sums:
            b.store(self.ir.Constant(self.sums, None) if start is None else start, own_sum)
        name = "llvm.x86.avx512.vpdpbusd.512" if self.is_integer else f"llvm.fma.v{self.own.lanes}f32"
        with self.each(self.whole(self.n_steps)) as step:
            of_vectors = self.load(self.sums, vectors, b.mul(step, self.whole(self.group_bytes)))
            for i, own_sum in enumerate(self._sums):
                at = b.add(b.mul(step, self.whole(4)), self.whole(i * self.row_bytes))
                number = self.splat(self.load(self.i32 if self.is_integer else self.f32, self.tile, at))
                total = b.load(own_sum, typ=self.sums)
                factors = (total, number, of_vectors) if self.is_integer else (number, of_vectors, total)
                b.store(self.call(name, self.sums, *factors), own_sum)
        return [b.load(own_sum, typ=self.sums) for own_sum in self._sums]

    def row(self, i: int) -> ir.Value:
        """Where the numbers of the tile's token i are."""
        return self.at(self.tile, self.whole(i * self.row_bytes))

    @contextmanager
    def each(self, n: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """What is written inside is done for 0, step, 2 * step, … below n."""
        b = self.b
        before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", self.whole(0), n), body, after)
        b.position_at_end(body)
        number = b.phi(self.i64)
        number.add_incoming(self.whole(0), before)
        yield number
        following = b.add(number, self.whole(step))
        number.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, n), body, after)
        b.position_at_end(after)

    @contextmanager
    def each_shared(self, n: ir.Value, counter: ir.Value, at_once: int = 8) -> Iterator[ir.Value]:
        """As `each`, where several threads run the loop: each takes the next few numbers when it has done some.

        Args:
            counter: a pointer to the number, first 0, that the threads share.
        """
        b = self.b
        take, some, after = (b.append_basic_block() for _ in range(3))
        b.branch(take)
        b.position_at_end(take)
        first = b.atomic_rmw("add", counter, self.whole(at_once), "monotonic")
        b.cbranch(b.icmp_signed("<", first, n), some, after)
        b.position_at_end(some)
        with self.each(self.smaller(self.whole(at_once), b.sub(n, first))) as i:
            yield b.add(first, i)
        b.branch(take)
        b.position_at_end(after)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of floats."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """The result of one of LLVM's own functions."""
        kind = self.ir.FunctionType(result, [argument.type for argument in arguments])
        function = self._module.globals.get(name) or self.ir.Function(self._module, kind, name)
        return self.b.call(function, arguments)

    def whole(self, number: int) -> ir.Value:
        """A whole number that is known now."""
        return self.ir.Constant(self.i64, number)

    def lanes(self, kind: ir.Type, n: int | None = None) -> ir.Type:
        """The type of n such values, by default as many as the processor has lanes."""
        return self.ir.VectorType(kind, n or self.own.lanes)

    def at(self, pointer: ir.Value, n_bytes: ir.Value) -> ir.Value:
        """What lies so many bytes behind."""
        return self.b.gep(pointer, [n_bytes], source_etype=self.i8)

    def load(self, kind: ir.Type, pointer: ir.Value, n_bytes: ir.Value, align: int = 4) -> ir.Value:
        return self.b.load(self.at(pointer, n_bytes), typ=kind, align=align)

    def store(self, value: ir.Value, pointer: ir.Value, n_bytes: ir.Value, align: int = 4) -> None:
        self.b.store(value, self.at(pointer, n_bytes), align=align)

    def splat(self, number: ir.Value, n: int | None = None) -> ir.Value:
        """The number in every lane."""
        ir, kind = self.ir, self.lanes(number.type, n)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(self.i32, 0))
        everywhere = ir.Constant(self.lanes(self.i32, n), None)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)


def packed(vectors: NDArray[np.float32] | NDArray[np.int8], lanes: int, *, is_integer: bool) -> NDArray[np.generic]:
    """Vectors as `KernelBuilder.products` takes them: groups of `lanes`, in each of them number by number.

    Args:
        vectors: (n, n_numbers); whole numbers between -128 and 127 if `is_integer`.

    Returns:
        (n_groups, n_numbers, lanes) float32, or (n_groups, n_numbers / 4, lanes, 4) int8; zeros fill it up.
    """
    n, n_numbers = vectors.shape
    n_groups, at_once = -(-n // lanes), 4 if is_integer else 1
    padded = np.zeros((n_groups * lanes, -(-n_numbers // at_once) * at_once), np.int8 if is_integer else np.float32)
    padded[:n, :n_numbers] = vectors
    if is_integer:
        return np.ascontiguousarray(padded.reshape(n_groups, lanes, -1, 4).transpose(0, 2, 1, 3))
    return np.ascontiguousarray(padded.reshape(n_groups, lanes, -1).transpose(0, 2, 1))


def chunks(n: int, largest: int) -> Iterator[tuple[int, int]]:
    """Start and size of parts of n things, the sizes powers of two: registers are read at once, and nothing behind."""
    at, size = 0, largest
    while at < n:
        while size > n - at:
            size //= 2
        yield at, size
        at += size


def addresses(*arrays: NDArray[np.generic]) -> tuple[int, ...]:
    """Where arrays lie, which have to be contiguous."""
    return tuple(array.ctypes.data for array in arrays)
