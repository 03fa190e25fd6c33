"""Let whoever waits for an encoder follow it within one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

# Called with the number of token vectors that were computed, and with the share of the call's work that this was.
Listener: TypeAlias = Callable[[int, float], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have encoders that this thread calls in the block report to a function; their own threads may call it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> Listener:
    """Return the function to report to; one that does nothing if nobody listens."""
    return _listener.get() or _ignore


def _ignore(n_tokens: int, share: float) -> None:
    pass
