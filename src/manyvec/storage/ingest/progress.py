"""`Progress`: a bar that follows the documents of one call of `Index.add`, and the encoder within each batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

from manyvec.models.progress import listening
from manyvec.types import Document


class Progress:
    """Shows documents, token vectors per second and, if their number or length is known, the time left.

    Args:
        documents: All documents of the call. If they have no length, such as a generator, characters are counted.
        expected_characters: Length of all texts together, for documents without a length; an estimate will do.
        is_shown: Whether to draw the bar on standard error.
    """

    def __init__(self, documents: Iterable[Any], *, expected_characters: int | None, is_shown: bool) -> None:
        from tqdm.auto import tqdm

        self._counts_documents = isinstance(documents, Sized)
        total = len(documents) if isinstance(documents, Sized) else expected_characters
        unit = " documents" if self._counts_documents else " characters"
        self._bar = tqdm(total=total, unit=unit, unit_scale=not self._counts_documents, disable=not is_shown)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._n_documents = self._n_tokens = 0
        # Documents or characters of the batches that are done, and of the one that is being encoded.
        self._done = self._size = 0
        self._share = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def batch(self, documents: Sequence[Document]) -> Iterator[None]:
        """Follow a batch while the block encodes and stores it."""
        self._size = len(documents) if self._counts_documents else sum(len(document.text) for document in documents)
        self._share = 0.0
        with listening(self._encoded):
            yield
        self._n_documents += len(documents)
        self._done += self._size
        self._share = self._size = 0
        self._draw()

    def _encoded(self, n_tokens: int, share: float) -> None:
        with self._lock:
            self._n_tokens += n_tokens
            self._share = min(1.0, self._share + share)
            self._draw()

    def _draw(self) -> None:
        rate = self._n_tokens / max(1e-9, time.monotonic() - self._started)
        counted = "" if self._counts_documents else f"{self._n_documents:,} documents, "
        self._bar.set_postfix_str(f"{counted}{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(int(self._done + self._share * self._size) - self._bar.n)
