"""`Asker`: the same question to many shards at once, with an error that names the shard."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from manyvec.cluster.shards import Shard, Shards
from manyvec.errors import IndexNotFoundError, ManifestError, MissingShardError, StoreError, WriteConflictError

T = TypeVar("T")
P = TypeVar("P")

# Shards that are asked at the same time by one process.
_MAX_THREADS = 32


# By shard.
Missing = dict[int, MissingShardError]


class Asker:
    """Runs work on shards, in threads if there is more than one. May be shared by threads.

    Args:
        shards: The shards.
        allow_partial: Whether `some` leaves out shards that cannot be reached or read.

    Every method raises:
        MissingShardError: A shard cannot be reached or read.
        ManyvecError: The work raised another error, such as an `InputError`.
    """

    def __init__(self, shards: Shards, *, allow_partial: bool) -> None:
        self.shards = shards
        self.allow_partial = allow_partial
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def close(self) -> None:
        """End the threads."""
        with self._starting:
            if self._threads is not None:
                self._threads.shutdown(wait=False)
                self._threads = None

    def all(self, work: Callable[[Shard], T]) -> dict[int, T]:
        """Run work on all shards."""
        return self._whole(dict.fromkeys(range(self.shards.layout.n_shards), work))

    def one(self, number: int, work: Callable[[Shard], T]) -> T:
        """Run work on one shard."""
        return self._whole({number: work})[number]

    def parts(self, parts: Mapping[int, P], work: Callable[[Shard, P], T]) -> dict[int, T]:
        """Run work on the shards that something belongs to, each with its part."""

        def of(part: P) -> Callable[[Shard], T]:
            return lambda shard: work(shard, part)

        return self._whole({number: of(part) for number, part in parts.items()})

    def some(self, work: Mapping[int, Callable[[Shard], T]], missing: Missing) -> dict[int, T]:
        """Run work on shards; those that cannot be read are added to `missing` if some may be left out."""
        answers, failed = self._ask(work)
        if failed and (not self.allow_partial or not answers):
            raise failed[min(failed)]
        missing.update(failed)
        return answers

    def _whole(self, work: Mapping[int, Callable[[Shard], T]]) -> dict[int, T]:
        answers, failed = self._ask(work)
        if failed:
            raise failed[min(failed)]
        return answers

    def _ask(self, work: Mapping[int, Callable[[Shard], T]]) -> tuple[dict[int, T], Missing]:
        layout, uri = self.shards.layout, self.shards.uri
        answers: dict[int, T] = {}
        failed: Missing = {}
        for number, wait in self._started(work).items():
            try:
                answers[number] = wait()
            except WriteConflictError:
                raise
            except (StoreError, IndexNotFoundError, ManifestError) as error:
                failed[number] = MissingShardError(
                    f"{layout.name(number)} of the cluster {uri} cannot be used: {error}"
                )
                failed[number].__cause__ = error
        if failed and self.shards.refresh():
            raise MissingShardError(f"the shards of the cluster {uri} have just been changed: try again")
        return answers, failed

    def _started(self, work: Mapping[int, Callable[[Shard], T]]) -> dict[int, Callable[[], T]]:
        """Start work in threads, and return functions that wait for it; in this thread if it is for one shard."""

        def question(number: int) -> Callable[[], T]:
            return lambda: work[number](self.shards.shard(number))

        if len(work) < 2:
            return {number: question(number) for number in work}
        with self._starting:
            if self._threads is None:
                n_threads = min(_MAX_THREADS, self.shards.layout.n_shards)
                self._threads = ThreadPoolExecutor(n_threads, "manyvec-shard")
            # In copies of the context, because `timings` keeps its sums there.
            return {
                number: self._threads.submit(contextvars.copy_context().run, question(number)).result for number in work
            }
