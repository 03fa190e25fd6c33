"""How long each stage of a search took, for whoever wants to know.

    with timings() as seconds:
        index.search("…")
    seconds  # {"encode": 0.01, "candidates": 0.002, "fetch": 0.004, "score": 0.003}

A stage within another counts for itself only, so the stages add up to no more than the whole. Where nobody asks, a
stage costs a look at a context variable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class _Watch:
    seconds: dict[str, float] = field(default_factory=dict)
    # Time spent in stages within the one that is running.
    inner: float = 0.0


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def timings() -> Iterator[dict[str, float]]:
    """Seconds by stage, of all that this thread or task does within the block; complete when it ends."""
    watch = _Watch()
    token = _watch.set(watch)
    try:
        yield watch.seconds
    finally:
        _watch.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block, or as a decorator the function, as a stage of this name."""
    watch = _watch.get()
    if watch is None:
        yield
        return
    outer, watch.inner = watch.inner, 0.0
    started = time.perf_counter()
    try:
        yield
    finally:
        taken = time.perf_counter() - started
        watch.seconds[name] = watch.seconds.get(name, 0.0) + taken - watch.inner
        watch.inner = outer + taken
