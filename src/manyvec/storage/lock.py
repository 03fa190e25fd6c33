"""`Turns`: writers of one index in a folder take turns, whatever process they are in, and so do its optimizers.

Commits are correct without it: LanceDB detects conflicting commits and does one of them again. But it gives up after a
while, a compaction loses against every small commit, and of many writers some never get their turn. In a bucket there
is no lock, and only LanceDB's retries.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Seconds that a writer waits for its turn before it writes without: the one before it may have been suspended.
_PATIENCE = 120.0


class Turns:
    """A lock on the folder of an index. A process that dies releases it.

    Args:
        folder: Folder of the database; None for a bucket, where the lock does nothing.
        kind: Who takes turns: `writer` or `optimizer`.
        patience: Seconds to wait for a turn.
    """

    def __init__(self, folder: Path | None, kind: str = "writer", *, patience: float = _PATIENCE) -> None:
        self._folder = folder
        # Beside the tables; LanceDB ignores them.
        self._next, self._now = f".manyvec-next-{kind}", f".manyvec-{kind}"
        self._patience = patience
        # Threads of this process queue here, so that only one of them polls the files.
        self._threads = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Hold the lock during the block, which runs without it if it cannot be had in time.

        Yields:
            Whether nobody else who uses this lock is in such a block.

        Raises:
            OSError: The folder cannot be written.
        """
        if self._folder is None:
            yield False
            return
        until = time.monotonic() + self._patience
        with (
            self._threads,
            (self._folder / self._next).open("ab") as following,
            (self._folder / self._now).open("ab") as writing,
        ):
            # Whoever is next holds a lock of its own while it waits, so that a writer that has just had its turn and
            # comes again at once cannot take the next turn too.
            is_next = _wait_for(following, until)
            is_held = _wait_for(writing, until)
            # One that writes without its turn stays next, so that nobody takes itself for the only one.
            if is_next and is_held:
                _unlock(following)
            try:
                yield is_next and is_held
            finally:
                if is_held:
                    _unlock(writing)


def _wait_for(file: BinaryIO, until: float) -> bool:
    """Lock a file, and return whether it could be locked in time."""
    while True:
        try:
            _lock(file)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            # Random, so that writers that came together do not keep colliding.
            time.sleep(random.uniform(0.001, 0.01))
        except OSError:
            # A file system without locks.
            return False
        else:
            return True


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error

    def _unlock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
