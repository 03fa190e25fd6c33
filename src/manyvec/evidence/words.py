"""Where the words and sentences of a text are, in any script: what evidence points at and passages are cut at."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bounds = NDArray[np.int64]

# Scripts that put no space between words (Thai to Myanmar, Khmer, Han and kana): each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"
# \0 stands for every character that belongs to the one before it. Letters go on over an apostrophe between them
# (don't), digits over a point or comma (3.14); other signs, an emoji and its parts among them, make words of their own.
_WORD = re.compile(
    rf"[{_UNSPACED}]\0*|(?:{_LETTER}\0*)+(?:(?:['’](?={_LETTER})|(?<=\d)[.,](?=\d))(?:{_LETTER}\0*)+)*|[^\w\s]+"
)
# The same for texts of ASCII alone: without a class of scripts it is faster.
_ASCII_WORD = re.compile(r"\w+(?:(?:'(?=\w)|(?<=\d)[.,](?=\d))\w+)*|[^\w\s\x1c-\x1f]+", re.ASCII)
# A full stop after a single letter is an initial's (U.S., J. Smith); before a small letter, an abbreviation's. Runs are
# looked at from their first character only, or a hundred thousand exclamation marks would take minutes.
_SENTENCE_BREAK = re.compile(r"(?<!\b\w)(?<![.!?…])[.!?…]+[\"'”’)\]]*\s+(?![a-z\s])|[。！？]+\s*|(?<!\s)\s*\n\s*")


def is_extender(character: str) -> bool:
    """Whether it belongs to the character before it: combining marks, joiners, variation selectors, tags."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def words(text: str) -> Bounds:
    """(n_words, 2) first character of each word, and one past its last; every visible character is in one word."""
    if text.isascii():
        return _bounds([match.span() for match in _ASCII_WORD.finditer(text)])
    # Few characters differ, so asking for the category of each costs less than a class of all marks.
    extenders = {ord(c): "\0" for c in set(text) if not c.isascii() and is_extender(c)}
    return _bounds([match.span() for match in _WORD.finditer(text.translate(extenders))])


def sentences(text: str) -> Bounds:
    """(n_sentences, 2) of each sentence, without the space around it; a line break ends one, too."""
    ends = [match.span() for match in _SENTENCE_BREAK.finditer(text)]
    pieces = zip([0, *(end for _, end in ends)], [*(end for _, end in ends), len(text)], strict=True)
    found = []
    for start, end in pieces:
        piece = text[start:end]
        if stripped := piece.strip():
            start += len(piece) - len(piece.lstrip())
            found.append((start, start + len(stripped)))
    return _bounds(found)


def widened(spans: NDArray[Any], bounds: Bounds) -> tuple[Bounds, Bounds]:
    """Spans made to cover whole words.

    Args:
        spans: (n, 2), any number of them (-1, -1).
        bounds: (n_words, 2) the text's words.

    Returns:
        (n, 2) the wider spans, (-1, -1) for those that cover no word; and (n,) the first word of each, or -1.
    """
    # A span may hold the space before its word: only words that it overlaps count.
    first = np.searchsorted(bounds[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(bounds[:, 0], spans[:, 1], side="left") - 1
    found = (spans[:, 0] >= 0) & (first <= last)
    wide = np.full((len(spans), 2), -1, np.int64)
    wide[found, 0], wide[found, 1] = bounds[first[found], 0], bounds[last[found], 1]
    return wide, np.where(found, first, -1)


def _bounds(found: list[tuple[int, int]]) -> Bounds:
    return np.array(found, np.int64).reshape(-1, 2)
