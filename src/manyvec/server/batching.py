"""`Batcher`: answer requests that arrive together in one call, in a bounded number of threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class BusyError(Exception):
    """Too many requests are waiting, or a request waited too long."""


@dataclass(eq=False)
class _Waiting(Generic[Request, Result]):
    request: Request
    result: asyncio.Future[Result]


@dataclass(eq=False)
class Batcher(Generic[Request, Result]):
    """Collects requests of many coroutines and answers several of them with one call in a worker thread.

    A request that arrives alone is answered at once. While all threads are busy, new requests are collected, and the
    next call takes those with the key of the oldest one. All coroutines must run on one event loop.

    Args:
        answer: Function that returns the result of each request, in the same order. An exception as a result is raised
            for that request only. Called in a worker thread.
        key: Function that returns the same value for requests that one call may answer; None if any may be.
        max_batch: Maximum number of requests in one call.
        max_wait: Seconds to wait for more requests, if several have arrived together shortly before.
        max_threads: Maximum number of calls at the same time.
        max_waiting: Maximum number of requests that wait for a call.
        timeout: Seconds after which a request fails.
    """

    answer: Callable[[Sequence[Request]], Sequence[Result | Exception]]
    key: Callable[[Request], Hashable] | None = None
    max_batch: int = 32
    max_wait: float = 0.002
    max_threads: int = 3
    max_waiting: int = 256
    timeout: float = 30.0
    _waiting: deque[_Waiting[Request, Result]] = field(default_factory=deque, init=False)
    _calls: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _last_size: int = field(default=0, init=False)

    async def submit(self, request: Request) -> Result:
        """Return the result of one request.

        A request whose coroutine is cancelled before its call begins is dropped.

        Raises:
            BusyError: Too many requests are waiting, or the result took longer than `timeout`.
        """
        if len(self._waiting) >= self.max_waiting:
            raise BusyError("too many requests are waiting")
        waiting = _Waiting[Request, Result](request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._timer is None:
            # Clients that were answered together come back together, but not at the same instant.
            are_more_expected = bool(self._calls) or self._last_size > 1
            self._schedule(self.max_wait if are_more_expected else 0)
        try:
            return await asyncio.wait_for(waiting.result, self.timeout)
        except asyncio.TimeoutError:
            raise BusyError(f"the request was not answered within {self.timeout:g} seconds") from None
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _schedule(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._start_calls)

    def _start_calls(self) -> None:
        self._timer = None
        while self._waiting and len(self._calls) < self.max_threads:
            batch = self._next_batch()
            self._last_size = len(batch)
            call = asyncio.get_running_loop().create_task(self._call(batch))
            self._calls.add(call)
            call.add_done_callback(self._finish)

    def _next_batch(self) -> list[_Waiting[Request, Result]]:
        """Remove the oldest request from the queue, and others with the same key."""
        keys = [self.key(waiting.request) if self.key else None for waiting in self._waiting]
        batch: list[_Waiting[Request, Result]] = []
        others: deque[_Waiting[Request, Result]] = deque()
        for waiting, key in zip(self._waiting, keys, strict=True):
            is_chosen = len(batch) < self.max_batch and key == keys[0]
            (batch if is_chosen else others).append(waiting)
        self._waiting = others
        return batch

    def _finish(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._waiting and self._timer is None:
            self._start_calls()

    async def _call(self, batch: list[_Waiting[Request, Result]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = await asyncio.to_thread(self.answer, [waiting.request for waiting in batch])
        except Exception as error:
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.result.done():
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)
