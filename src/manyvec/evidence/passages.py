"""Find the passage of a text that a query matches best: the stretch to quote and cite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.evidence.words import Bounds, is_extender, sentences, words

# Chosen on every fifth question of squad-dev (`examples/benchmarks/evidence.py passages`). Sentences are cut only for a
# stretch that scores this much more, relatively: whole sentences read better and more often hold the whole answer.
_CUTTING_THRESHOLD = 0.07
# Stretches that score up to this much less than the best one count as equal to it, relatively: the rounding of float16.
_TOLERANCE = 0.001
# Weight of the score of the middle half of a stretch that cuts sentences.
_MIDDLE_WEIGHT = 0.3


@dataclass(frozen=True)
class Passage:
    """A stretch of a document's text: its characters from `start` to `end`."""

    text: str
    start: int
    end: int

    def origin(self, id: str | None, text: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to keep in the metadata of a document whose text is replaced by this passage.

        Args:
            id: Id of the document.
            text: Its whole text.
            metadata: Its metadata. With `start` and `end`, the document is itself a part of a text (`files.split`).

        Returns:
            `start` and `end`, the characters of the passage in the text or in the text that it is a part of; `n_chars`,
            the length of the whole text; and `source`, that of the metadata or else the id.
        """
        offset = metadata.get("start")
        offset = offset if isinstance(offset, int) and "end" in metadata else 0
        where = {"start": offset + self.start, "end": offset + self.end, "n_chars": len(text)}
        return {**where, "source": metadata.get("source", id)}


def best_passage(text: str, n_chars: int, similarities: NDArray[np.float32], starts: NDArray[np.int64]) -> Passage:
    """Return the stretch of a text whose MaxSim score by itself is highest.

    The passage consists of whole sentences, unless a stretch that starts or ends within one scores 7 % higher. Then the
    matched words are in its middle: what answers a question often follows them. A word is cut only if it is longer than
    `n_chars`.

    Args:
        text: Text of the document.
        n_chars: Maximum number of characters.
        similarities: (n_query_tokens, n_tokens) of the document's tokens.
        starts: (n_tokens,) first character of each of these tokens, ascending.
    """

    def scores(stretches: Bounds) -> NDArray[np.float32]:
        first, last = np.searchsorted(starts, stretches.T)
        return maxsim_of_ranges(similarities, first, last)

    whole, cut = _whole_sentences(text, n_chars), _whole_words(text, n_chars)
    whole_scores, cut_scores = scores(whole), scores(cut)
    if len(whole) and whole_scores.max() >= cut_scores.max() - _CUTTING_THRESHOLD * abs(cut_scores.max()):
        start, end = whole[whole_scores.argmax()].tolist()
    else:
        quarter = np.diff(cut, axis=1) // 4
        middle_scores = scores(cut + np.hstack([quarter, -quarter]))
        middle_scores[np.isneginf(middle_scores)] = 0
        centred = cut_scores + np.float32(_MIDDLE_WEIGHT) * middle_scores
        start, end = cut[_middle_of_best(centred)].tolist()
    return Passage(text[start:end], start, end)


def _middle_of_best(scores: NDArray[np.float32]) -> int:
    """Return the middle position of the run of neighbours around the best score that are about as good."""
    best = int(scores.argmax())
    is_worse = scores < scores[best] - _TOLERANCE * abs(scores[best])
    before, after = np.flatnonzero(is_worse[:best]), np.flatnonzero(is_worse[best:])
    first = int(before[-1]) + 1 if len(before) else 0
    last = best + int(after[0]) - 1 if len(after) else len(scores) - 1
    return (first + last) // 2


def maxsim_of_ranges(
    similarities: NDArray[np.float32], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score ranges of columns by themselves.

    The maximum over a range is that over two runs, possibly overlapping, whose length is a power of two. Only one level
    of such runs is held at a time.

    Args:
        similarities: (n_query_tokens, n_tokens).
        first: (n,) first column of each range.
        last: (n,) end of each range.

    Returns:
        (n,) MaxSim score of each range; -inf for an empty one.
    """
    totals = np.full(len(first), -np.inf, np.float32)
    level, width = similarities, 1
    while width <= (last - first).max(initial=0):
        here = np.flatnonzero((last - first >= width) & (last - first < 2 * width))
        totals[here] = np.maximum(level[:, first[here]], level[:, last[here] - width]).sum(axis=0)
        level = np.maximum(level[:, :-width], level[:, width:])
        width *= 2
    return totals


def _whole_sentences(text: str, n_chars: int) -> Bounds:
    """Return the longest run of whole sentences from each sentence that fits into it, (n, 2)."""
    starts, ends = sentences(text).T
    last = np.searchsorted(ends, starts + n_chars, side="right") - 1
    fits = last >= np.arange(len(starts))
    return np.stack([starts[fits], ends[last[fits]]], axis=1)


def _whole_words(text: str, n_chars: int) -> Bounds:
    """Return every longest run of whole words, (n, 2); a word that does not fit is cut."""
    starts, ends = words(text).T
    last = np.searchsorted(ends, starts + n_chars, side="right") - 1
    stops = ends[np.maximum(last, 0)]
    for i in np.flatnonzero(last < np.arange(len(starts))):
        stops[i] = _cut(text, int(starts[i]), n_chars)
    # At the end of the text later runs are parts of the one before.
    is_longest = np.diff(stops, prepend=-1) > 0
    return np.stack([starts, stops], axis=1)[is_longest]


def _cut(text: str, start: int, n_chars: int) -> int:
    """Return where to cut a word that is too long: between a character and its marks only if the marks do not fit."""
    end = start + n_chars
    while end > start and is_extender(text[end]):
        end -= 1
    return end if end > start else start + n_chars
