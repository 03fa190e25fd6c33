"""Cut documents that are longer than a model's window into overlapping windows, and group inputs into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """A text, or one window of a longer text.

    Attributes:
        index: Position of the text among those being encoded.
        text: What the model reads: the opening of the text, if this is a later window, and the window itself.
        spans: (n_tokens, 2) characters of each token in this window's `text`; (-1, -1) for markers and special tokens.
        begin: Character of the whole text at which the window starts.
        n_opening: Number of characters of the opening.
        keep_from: First character of the whole text whose tokens are kept from this window.
        keep_to: End of these characters; None for the last window.
    """

    index: int
    text: str
    spans: Spans
    begin: int = 0
    n_opening: int = 0
    keep_from: int = 0
    keep_to: int | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.spans)

    def kept_tokens(self, width: int, padding_side: str) -> tuple[NDArray[np.bool_], Spans]:
        """Return which tokens to keep from this window, and their spans in the whole text.

        Args:
            width: Number of tokens in the padded batch.
            padding_side: `left` or `right`.

        Returns:
            (width,) whether each token is kept, and (width, 2) its characters in the whole text.
        """
        # The batch may be truncated or padded relative to `spans`.
        spans = np.full((width, 2), -1, np.int32)
        n_tokens = min(width, len(self.spans))
        start = width - n_tokens if padding_side == "left" else 0
        spans[start : start + n_tokens] = self.spans[:n_tokens]
        is_content = spans[:, 0] >= 0
        is_window = spans[:, 0] >= self.n_opening
        spans[is_content] += self.begin - self.n_opening
        is_kept = is_window & (spans[:, 0] >= self.keep_from)
        if self.keep_to is not None:
            is_kept &= spans[:, 0] < self.keep_to
        # Markers and special tokens are kept once, from the first window.
        return np.where(is_content, is_kept, self.begin == 0), spans


def window_bounds(text: str, content: Spans, capacity: int, overlap: int) -> list[tuple[int, int, int]]:
    """Choose the windows of a long text, starting at words where possible.

    Args:
        text: The whole text.
        content: (n_tokens, 2) characters of its tokens, without markers and special tokens.
        capacity: Maximum number of tokens in a window.
        overlap: Number of tokens that neighbouring windows share.

    Returns:
        For each window its first character, its end, and the first character whose tokens are kept from it: the middle
        of the overlap, so that each token is kept from the window in which it is farther from the edge.
    """
    starts_word = np.array([begin == 0 or text[begin - 1].isspace() for begin in content[:, 0]])

    def word_start(token: int, lowest: int) -> int:
        """Return the last token at or before `token`, and above `lowest`, that starts a word; else `token`."""
        above = np.flatnonzero(starts_word[lowest + 1 : token + 1])
        return int(above[-1]) + lowest + 1 if len(above) else token

    bounds = []
    first, keep = 0, 0
    while True:
        end = min(first + capacity, len(content))
        if end < len(content):
            end = word_start(end, first + capacity // 2)
        bounds.append((int(content[first, 0]), int(content[end - 1, 1]), keep))
        if end == len(content):
            return bounds
        following = word_start(end - overlap, max(first, end - 2 * overlap))
        keep = int(content[word_start((following + end) // 2, following), 0])
        first = following


def batches_of(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group inputs of similar length into batches.

    Args:
        lengths: Number of tokens of each input.
        batch_tokens: Maximum number of tokens in a batch, padding included. A longer input is a batch by itself.

    Yields:
        The positions of the inputs of one batch, longest first.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # In descending order the first input of a batch is the longest and so sets its width.
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
