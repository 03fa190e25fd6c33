"""`in_thread`: the one way in which methods become awaitable, here and in the adapters."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")


@overload
def in_thread(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]: ...


# Matched by methods with **options, beside which mypy takes no `self` for a positional argument.
@overload
def in_thread(method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]: ...  # type: ignore[overload-cannot-match]


def in_thread(method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Return a method to await that runs another one in a thread, so that the event loop goes on meanwhile.

        class Store:
            def add(self, texts): ...
            aadd = in_thread(add)

    Context variables are passed on. A subclass that overrides the method is respected. A task that is cancelled stops
    waiting; what the thread has begun is completed.
    """
    name = method.__name__

    @functools.wraps(method)
    async def twin(self: Any, *args: Any, **kwargs: Any) -> T:
        return await asyncio.to_thread(getattr(self, name), *args, **kwargs)

    twin.__name__ = f"a{name}"
    twin.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.a{name}"
    twin.__doc__ = f"Run `{name}` in a thread, see there."
    return twin
