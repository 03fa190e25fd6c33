"""Find the passage of a text that a query matches best: the stretch to quote and cite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyvec.evidence.words import Bounds, is_extender, sentences, words

# A stretch that cuts a sentence must score this much more than whole sentences, relatively: whole sentences read better
# and more often hold the whole answer.
_CUTTING_THRESHOLD = 0.02


@dataclass(frozen=True)
class Passage:
    """A stretch of a document's text: its characters from `start` to `end`."""

    text: str
    start: int
    end: int


def best_passage(text: str, n_chars: int, similarities: NDArray[np.float32], starts: NDArray[np.int64]) -> Passage:
    """Return the stretch of a text whose MaxSim score by itself is highest.

    The passage consists of whole sentences, unless a stretch that starts or ends within one scores 2 % higher. A word
    is cut only if it is longer than `n_chars`.

    Args:
        text: Text of the document.
        n_chars: Maximum number of characters.
        similarities: (n_query_tokens, n_tokens) of the document's tokens.
        starts: (n_tokens,) first character of each of these tokens, ascending.
    """

    def scores(stretches: Bounds) -> NDArray[np.float32]:
        first, last = np.searchsorted(starts, stretches.T)
        return maxsim_of_ranges(similarities, first, last)

    sentence_bounds = sentences(text)
    whole = _whole_sentences(sentence_bounds, n_chars)
    cut = _whole_words(text, sentence_bounds, n_chars)
    whole_scores, cut_scores = scores(whole), scores(cut)
    if len(whole) and whole_scores.max() >= cut_scores.max() - _CUTTING_THRESHOLD * abs(cut_scores.max()):
        start, end = whole[whole_scores.argmax()].tolist()
    else:
        start, end = cut[cut_scores.argmax()].tolist()
    return Passage(text[start:end], start, end)


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


def _whole_sentences(sentence_bounds: Bounds, n_chars: int) -> Bounds:
    """Return the longest run of whole sentences from each sentence that fits into it, (n, 2)."""
    starts, ends = sentence_bounds.T
    last = np.searchsorted(ends, starts + n_chars, side="right") - 1
    fits = last >= np.arange(len(starts))
    return np.stack([starts[fits], ends[last[fits]]], axis=1)


def _whole_words(text: str, sentence_bounds: Bounds, n_chars: int) -> Bounds:
    """Return stretches of as many whole words as fit, (n, 2).

    They begin at the start of each sentence or stop at its end. In a sentence longer than `n_chars` one begins at each
    word.
    """
    sentence_starts, sentence_ends = sentence_bounds.T
    starts, ends = words(text).T
    sentence_of = np.searchsorted(sentence_starts, starts, side="right") - 1
    is_long = (sentence_ends - sentence_starts > n_chars)[sentence_of]
    first = np.flatnonzero(is_long | np.isin(starts, sentence_starts))
    last = np.searchsorted(ends, starts[first] + n_chars, side="right") - 1
    stops = np.where(last >= first, ends[last], 0)
    for i in np.flatnonzero(last < first):
        stops[i] = _cut(text, int(starts[first[i]]), n_chars)
    forward = np.stack([starts[first], stops], axis=1)

    last = np.searchsorted(ends, sentence_ends, side="right") - 1
    first = np.searchsorted(starts, ends[last] - n_chars)
    fits = first <= last
    return np.concatenate([forward, np.stack([starts[first[fits]], ends[last[fits]]], axis=1)])


def _cut(text: str, start: int, n_chars: int) -> int:
    """Return where to cut a word that is too long: between a character and its marks only if the marks do not fit."""
    end = start + n_chars
    while end > start and is_extender(text[end]):
        end -= 1
    return end if end > start else start + n_chars
