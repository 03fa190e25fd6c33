"""`WindowedEncoder`: what text encoders share, a text of any length to batches for the model and back to its tokens."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError
from manyvec.models.progress import current_listener
from manyvec.models.protocol import LoadedEncoder
from manyvec.models.windows import Spans, Window, batches_of, window_bounds
from manyvec.vectors.backend import in_parallel
from manyvec.vectors.batch import TokenBatch, offsets_of

Task = Literal["query", "document"]
_NO_SPANS = np.empty((0, 2), np.int32)


class TruncationWarning(UserWarning):
    """A query was longer than its model can read, and its end was dropped."""


class WindowedEncoder(LoadedEncoder, ABC):
    """An `Encoder` of texts. Threads may share it.

    Texts are encoded in batches of similar length, a text longer than the model's window in overlapping windows. A
    subclass tokenizes texts and runs the model.

    Args:
        name: The name under which `load_encoder` finds the model. Indexes store it.
        batch_tokens: Maximum number of tokens in a forward pass, padding included. Small batches stay in a CPU's cache:
            2,048 encodes 1.1 times as many documents per second as 8,192 (`examples/benchmarks/encoding.py`).
        overlap: Number of tokens that neighbouring windows of a long text share, so that each token is read in context.
            A token is kept once, from the window in which it is farther from the edge.
        opening: Number of tokens from the start of a long text that are prepended to every later window to tell the
            model what the text is about. They are not kept again. nDCG@10 on Cranfield with `minilm` is .391 with them
            and .389 without (`manyvec eval`).
    """

    def __init__(self, name: str, *, batch_tokens: int, overlap: int = 32, opening: int = 32) -> None:
        super().__init__(name)
        self.batch_tokens = batch_tokens
        self.overlap = overlap
        self.opening = opening

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, dim {self.dim}, on {self.device})"

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the model runs, as torch names it."""

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @abstractmethod
    def _max_tokens(self, task: Task) -> int:
        """Return how many tokens the model reads at a time, markers and special tokens included."""

    @abstractmethod
    def _spans(self, texts: Sequence[str], task: Task) -> Iterator[tuple[str, Spans]]:
        """Yield each text with the (n_tokens, 2) characters of its tokens, untruncated; (-1, -1) for special tokens."""

    @abstractmethod
    def _forward(self, texts: list[str], task: Task) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Run the model on a batch.

        Returns:
            (n_texts, width, dim) token vectors, padded, and (n_texts, width) whether each is one of the text's tokens
            that count.
        """

    def _width(self, window: Window, task: Task) -> int:
        """Return the maximum number of tokens that the model reads for a window."""
        return window.n_tokens

    @property
    def _padding_side(self) -> str:
        return "right"

    @property
    def _n_parallel(self) -> int:
        """Maximum number of batches that the model runs at the same time."""
        return 1

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query; see `Encoder`.

        Warns with `TruncationWarning` if a query is longer than the model can read.
        """
        limit = self._max_tokens("query")
        check_strings(queries, self.name)
        with self._lock:
            windows = [Window(i, query, spans) for i, (query, spans) in enumerate(self._spans(queries, "query"))]
            if n_dropped := {window.text: window.n_tokens - limit for window in windows if window.n_tokens > limit}:
                text, n_tokens = max(n_dropped.items(), key=lambda item: item[1])
                warnings.warn(
                    f"{len(n_dropped)} of {len(queries)} queries are longer than the {limit} tokens {self.name} reads: "
                    f"the last {n_tokens} tokens of {text[:40]!r}… were dropped",
                    TruncationWarning,
                    stacklevel=2,
                )
            return self._encode(windows, len(queries), "query")

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document; see `Encoder`.

        A document longer than the model's window is encoded in overlapping windows.
        """
        limit = self._max_tokens("document")
        check_strings(texts, self.name)
        with self._lock:
            windows: list[Window] = []
            for i, (text, spans) in enumerate(self._spans(texts, "document")):
                whole = Window(i, text, spans)
                windows += [whole] if whole.n_tokens <= limit else self._windows(whole, limit)
            return self._encode(windows, len(texts), "document")

    def _windows(self, whole: Window, limit: int) -> list[Window]:
        """Cut a long text into overlapping windows of at most `limit` tokens."""
        content = whole.spans[whole.spans[:, 0] >= 0]
        room = limit - (whole.n_tokens - len(content))
        opening = whole.text[: content[min(self.opening, room // 4), 0]]
        capacity = room - min(self.opening, room // 4)
        while True:
            bounds = window_bounds(whole.text, content, capacity, min(self.overlap, capacity // 2))
            keep_to = [keep for _, _, keep in bounds[1:]] + [len(whole.text)]
            texts = [f"{opening if begin else ''}{whole.text[begin:end]}" for begin, end, _ in bounds]
            windows = [
                Window(whole.index, text, spans, begin, len(opening) if begin else 0, keep_from, keep_end)
                for (text, spans), (begin, _, keep_from), keep_end in zip(
                    self._spans(texts, "document"), bounds, keep_to, strict=True
                )
            ]
            # A word that is cut in two may have more tokens than the whole word.
            if all(window.n_tokens <= limit for window in windows) or capacity <= 4:
                return windows
            capacity = capacity * 3 // 4

    def _encode(self, windows: list[Window], n_texts: int, task: Task) -> TokenBatch:
        widths = [self._width(window, task) for window in windows]
        buffer, report = _TokenBuffer(widths), current_listener()

        def encode_batch(batch: list[int]) -> None:
            embeddings, masks = self._forward([windows[i].text for i in batch], task)
            for i, embedding, mask in zip(batch, embeddings, masks, strict=True):
                is_kept, spans = windows[i].kept_tokens(len(mask), self._padding_side)
                keep = mask & is_kept
                buffer.put(i, embedding[keep], spans[keep])
            report(int(buffer.lengths[batch].sum()), len(batch) / len(windows))

        in_parallel(encode_batch, list(batches_of(widths, self.batch_tokens)), self._n_parallel)
        lengths = np.bincount([window.index for window in windows], weights=buffer.lengths, minlength=n_texts)
        if not windows:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of(lengths), _NO_SPANS)
        try:
            return TokenBatch(*buffer.to_batch(lengths), allow_empty=True)
        except ShapeError as error:
            raise EncoderError(f"{self.name} returned unusable vectors: {error}") from error


class _TokenBuffer:
    """Token vectors of windows, in one array that is filled in any order.

    Joining one array per window at the end would need twice the memory.

    Args:
        widths: Maximum number of tokens of each window.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._starts = offsets_of(widths)
        self._vectors = np.empty((0, 0), np.float32)
        self._spans = np.empty((int(self._starts[-1]), 2), np.int32)
        self.lengths = np.zeros(len(widths), np.int64)
        self._lock = threading.Lock()

    def put(self, window: int, vectors: NDArray[np.float32], spans: Spans) -> None:
        """Store the tokens of the window at this position."""
        with self._lock:
            if not len(self._vectors):
                self._vectors = np.empty((len(self._spans), vectors.shape[1]), np.float32)
        rows = slice(int(self._starts[window]), int(self._starts[window]) + len(vectors))
        self._vectors[rows], self._spans[rows] = vectors, spans
        self.lengths[window] = len(vectors)

    def to_batch(self, lengths: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64], Spans]:
        """Close the gaps in place and return the vectors, offsets and spans of texts of these lengths."""
        end = 0
        for start, length in zip(self._starts.tolist(), self.lengths.tolist(), strict=False):
            if start > end:
                self._vectors[end : end + length] = self._vectors[start : start + length]
                self._spans[end : end + length] = self._spans[start : start + length]
            end += length
        return self._vectors[:end], offsets_of(lengths), self._spans[:end]


def check_strings(texts: Sequence[Any], name: str) -> None:
    """Raise `InputError` if one of the inputs of the encoder `name` is not a string, for example an image."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{name} reads strings, got {type(text).__name__} at position {i}. For images load a model that reads "
                "them, such as 'vidore/colqwen2-v1.0-hf' (see `manyvec models`)"
            )
