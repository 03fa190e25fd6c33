"""What computes on the CPU: kernels compiled by LLVM, or matrix products by torch.

Also the threads that they run in, and whether there is a GPU to compute instead.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError
from manyvec.vectors.batch import StoredBatch

Item = TypeVar("Item")
_VARIABLE = "MANYVEC_BACKEND"
# Devices of a GPU's driver on Linux: NVIDIA, AMD, and either one under Windows' subsystem.
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Matcher(Protocol):
    """Query tokens, prepared to be compared with documents."""

    def best(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the highest similarity of each query token in each document.

        Args:
            starts: (n_documents,) first row of each document.
            lengths: (n_documents,) number of rows of each document, at least 1.

        Returns:
            (n_documents, n_query_tokens)
        """
        ...


class CentroidSearch(Protocol):
    """Centroids, prepared to be compared with vectors."""

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) the centroid with the highest dot product for each of (n, dim) vectors, the first of equal ones."""
        ...

    def similarities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_centroids) dot products of (n, dim) vectors with all centroids."""
        ...

    def subset(self, positions: NDArray[np.int64]) -> CentroidSearch:
        """Return the same for the centroids at these positions."""
        ...


class Backend(Protocol):
    """A way to compute MaxSim and nearest centroids on the CPU. `LlvmBackend` and `TorchBackend` are the two."""

    @property
    def n_threads(self) -> int:
        """Threads that may call it at the same time with profit."""
        ...

    def match_vectors(self, queries: NDArray[np.float32], documents: StoredBatch) -> Matcher:
        """Prepare (n, dim) tokens of one or more queries to be compared with documents' vectors or codes."""
        ...

    def products(self, vectors: NDArray[np.float32]) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
        """Prepare (n, dim) vectors; the result returns the (n_others, n) dot products of float16 or float32 others."""
        ...

    def match_centroids(self, similarities: NDArray[np.float32], centroids: NDArray[np.uint16]) -> Matcher:
        """Prepare query tokens to be compared with documents of which only the centroids are known.

        Args:
            similarities: (n, n_centroids) of n query tokens and all centroids.
            centroids: (n_rows,) the centroid of each row. A document is a run of rows.
        """
        ...

    def search_centroids(self, centroids: NDArray[np.float32]) -> CentroidSearch:
        """Prepare (n_centroids, dim) centroids to be compared with vectors."""
        ...


def default_backend() -> Backend:
    """Return the backend that the environment variable `MANYVEC_BACKEND` names.

    `llvm` compiles kernels with llvmlite, and `torch` multiplies matrices. `auto`, the default, is `llvm` where
    llvmlite is installed and the CPU is supported (x86-64 with AVX2, or ARM64), and `torch` elsewhere.

    Raises:
        InputError: The variable has another value, or is `llvm` where that cannot be used.
    """
    return _backend(os.environ.get(_VARIABLE) or "auto")


@lru_cache(maxsize=4)
def _backend(choice: str) -> Backend:
    # Imported here, because both build on the names above.
    from manyvec.vectors.llvm import host_cpu
    from manyvec.vectors.llvm_backend import LlvmBackend
    from manyvec.vectors.torch_backend import TorchBackend

    if choice not in ("auto", "llvm", "torch"):
        raise InputError(f"{_VARIABLE} must be auto, llvm or torch, got {choice!r}")
    cpu = None if choice == "torch" else host_cpu()
    if cpu is not None:
        return LlvmBackend(cpu)
    if choice == "llvm":
        raise InputError(
            f"{_VARIABLE} is 'llvm', but llvmlite is not installed or this CPU has neither AVX2 nor ARM64's "
            "instructions: use 'auto' or 'torch'"
        )
    return TorchBackend()


def n_threads() -> int:
    """Return how many threads may compute at the same time: as many as torch is configured to use.

    torch takes seconds to import. Where nothing else has imported it, its default is computed here: `OMP_NUM_THREADS`,
    or the CPUs that this process may use.
    """
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    if (configured := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(configured) > 0:
        return int(configured)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[], None], max_threads: int) -> None:
    """Run `work` in up to `max_threads` threads, this one among them, and wait for all of them.

    There are never more threads than `n_threads`. `work` has to take its share from something that the
    calls have in common, such as a counter, and return when nothing is left.
    """
    helpers = []
    if max_threads > 1:
        pool = _pool(os.getpid(), n_threads())
        helpers = [pool.submit(work) for _ in range(min(n_threads(), max_threads) - 1)]
    work()
    for helper in helpers:
        # A helper that has not started has nothing left to do.
        if not helper.cancel():
            helper.result()


def in_parallel(work: Callable[[Item], None], items: Sequence[Item], max_threads: int) -> None:
    """Call `work` for each item in up to `max_threads` threads; each takes the next item when it has done one."""
    numbers = itertools.count()

    def work_on_items() -> None:
        while (number := next(numbers)) < len(items):
            work(items[number])

    in_threads(work_on_items, min(max_threads, len(items)))


@lru_cache(maxsize=1)
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process. After a fork the child has none of its parent's, so it makes its own."""
    return ThreadPoolExecutor(n_threads, "manyvec")


def may_have_gpu() -> bool:
    """Return False if this machine certainly has no GPU: torch, which takes seconds to import, need not be asked."""
    return sys.platform != "linux" or any(Path(file).exists() for file in _GPU_FILES)


def has_cuda() -> bool:
    """Whether torch can use a CUDA device."""
    if not may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()
