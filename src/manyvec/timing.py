"""Measure how long each stage of a search takes.

    with timings() as seconds:
        index.search("…")
    seconds  # {"encode": 0.01, "candidates": 0.002, "fetch": 0.004, "score": 0.003}

The time of a nested stage is not counted again for the stage around it, so the stages never add up to more than the
whole. Outside of `timings`, a stage costs one lookup of a context variable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Watch:
    seconds: dict[str, float] = field(default_factory=dict)
    # Time spent in stages nested in the one that is running.
    nested: float = 0.0


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def timings() -> Iterator[dict[str, float]]:
    """Collect the seconds that this thread or task spends in each stage; complete when the block ends."""
    watch = _Watch()
    token = _watch.set(watch)
    try:
        yield watch.seconds
    finally:
        _watch.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count a block, or as a decorator a function, as a stage of this name."""
    watch = _watch.get()
    if watch is None:
        yield
        return
    outer, watch.nested = watch.nested, 0.0
    started = time.perf_counter()
    try:
        yield
    finally:
        taken = time.perf_counter() - started
        watch.seconds[name] = watch.seconds.get(name, 0.0) + taken - watch.nested
        watch.nested = outer + taken


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """Record a block as a span of OpenTelemetry, if its API is installed. It never gets a query or a text.

    Yields:
        Dict for attributes that are known only when the block ends.
    """
    try:
        from opentelemetry import trace
    except ImportError:
        yield {}
        return
    with trace.get_tracer("manyvec").start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        later: dict[str, Any] = {}
        yield later
        current.set_attributes(later)
