"""Threads that share out work done in machine code, which leaves the interpreter free meanwhile."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from manyvec.machine import processor

Item = TypeVar("Item")


def in_parallel(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Work on all items, in as many threads as torch would use; each takes the next item when it has done one.

    Where there is no machine code, one after another: torch, which works then, has threads of its own.
    """
    import torch

    numbers = itertools.count()

    def work_on() -> None:
        while (number := next(numbers)) < len(items):
            work(items[number])

    n_threads = min(torch.get_num_threads(), len(items)) if processor() else 1
    helpers = [_pool(os.getpid(), torch.get_num_threads()).submit(work_on) for _ in range(n_threads - 1)]
    work_on()
    for helper in helpers:
        # One that has not begun has nothing left to do.
        if not helper.cancel():
            helper.result()


@lru_cache(maxsize=1)
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process; one that was forked has none of its parent's, and makes its own."""
    return ThreadPoolExecutor(n_threads, "manyvec")
