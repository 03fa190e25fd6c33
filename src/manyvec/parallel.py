"""Threads that share out work, each of which torch works alone in, and memory of their own."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def in_parallel(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Work on all items; each thread takes the next one when it has done one.

    The calling thread waits. It would have to turn off torch's own threads meanwhile, and threads that others start in
    that time would have none for good.
    """
    numbers = itertools.count()

    def work_on() -> None:
        while (number := next(numbers)) < len(items):
            work(items[number])

    pool, n_threads = _workers(os.getpid())
    for running in [pool.submit(work_on) for _ in range(min(n_threads, len(items)))]:
        running.result()


def scratch(name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread's own, not cleared, that is used again by the next call with this name.

    Fresh memory for every block would cost more than what is done in it: the system clears each page of it.
    """
    import torch

    n_bytes = shape[0] * shape[1] * dtype.itemsize
    held: torch.Tensor | None = getattr(_HELD, name, None)
    if held is None or len(held) < n_bytes:
        held = torch.empty(n_bytes, dtype=torch.uint8)
        if n_bytes <= _MAX_HELD_BYTES:
            setattr(_HELD, name, held)
    return held[:n_bytes].view(dtype).view(shape)


_HELD = threading.local()
_MAX_HELD_BYTES = 16 * 2**20


@lru_cache(maxsize=1)
def _workers(_process: int) -> tuple[ThreadPoolExecutor, int]:
    """As many threads as torch would use, in each of which it works alone, and their number.

    Torch's own threads meet after every step of every block. Where another process holds one core, all wait for the
    one that waits for it, hundreds of times a search: ten times the time on a busy machine.

    Args:
        _process: the process's id; one that was forked has none of its parent's threads, and makes its own.
    """
    import torch

    n_threads = torch.get_num_threads()
    all_there = threading.Barrier(n_threads)
    pool = ThreadPoolExecutor(n_threads, "maxsim", initializer=torch.set_num_threads, initargs=(1,))
    for waiting in [pool.submit(all_there.wait) for _ in range(n_threads)]:
        waiting.result()
    # The setting is each thread's own, but new threads start with the one that was made last.
    torch.set_num_threads(n_threads)
    return pool, n_threads
