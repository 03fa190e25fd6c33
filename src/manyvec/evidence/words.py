"""Find the words and sentences of a text in any script. Evidence points at words, passages are cut at both."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bounds = NDArray[np.int64]
# Texts whose words and sentences are remembered, and how many characters they may have: about 50 MB at most.
_N_KEPT, _MAX_KEPT_CHARS = 512, 20_000

# Scripts without spaces between words (Thai to Myanmar, Khmer, Han and kana): each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"
# \0 stands for a character that extends the one before it. A word continues over an apostrophe between letters (don't)
# and over a point or comma between digits (3.14). A run of other signs, such as an emoji, is a word.
_WORD = re.compile(
    rf"[{_UNSPACED}]\0*|(?:{_LETTER}\0*)+(?:(?:['’](?={_LETTER})|(?<=\d)[.,](?=\d))(?:{_LETTER}\0*)+)*|[^\w\s]+"
)
# The same for ASCII texts: faster without the class of scripts.
_ASCII_WORD = re.compile(r"\w+(?:(?:'(?=\w)|(?<=\d)[.,](?=\d))\w+)*|[^\w\s\x1c-\x1f]+", re.ASCII)
# A full stop after a single letter belongs to initials (U.S., J. Smith), one before a small letter to an abbreviation.
# Runs are matched from their first character only, or 100,000 exclamation marks would take minutes.
_SENTENCE_BREAK = re.compile(r"(?<!\b\w)(?<![.!?…])[.!?…]+[\"'”’)\]]*\s+(?![a-z\s])|[。！？]+\s*|(?<!\s)\s*\n\s*")


def is_extender(character: str) -> bool:
    """Whether a character extends the one before it: combining marks, joiners, variation selectors, tags."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def words(text: str) -> Bounds:
    """Return the start and end of each word, (n_words, 2). Every visible character is in exactly one word."""
    return _kept_words(text) if len(text) <= _MAX_KEPT_CHARS else _words(text)


def sentences(text: str) -> Bounds:
    """Return the start and end of each sentence, (n_sentences, 2), without surrounding space. A line break ends one."""
    return _kept_sentences(text) if len(text) <= _MAX_KEPT_CHARS else _sentences(text)


def _words(text: str) -> Bounds:
    if text.isascii():
        return _bounds([match.span() for match in _ASCII_WORD.finditer(text)])
    # A text has few distinct characters: looking up their categories is faster than a regex class of all marks.
    extenders = {ord(c): "\0" for c in set(text) if not c.isascii() and is_extender(c)}
    return _bounds([match.span() for match in _WORD.finditer(text.translate(extenders))])


def _sentences(text: str) -> Bounds:
    ends = [match.span() for match in _SENTENCE_BREAK.finditer(text)]
    pieces = zip([0, *(end for _, end in ends)], [*(end for _, end in ends), len(text)], strict=True)
    bounds = []
    for start, end in pieces:
        piece = text[start:end]
        if stripped := piece.strip():
            start += len(piece) - len(piece.lstrip())
            bounds.append((start, start + len(stripped)))
    return _bounds(bounds)


def widened(spans: NDArray[Any], bounds: Bounds) -> tuple[Bounds, Bounds]:
    """Extend spans to whole words.

    Args:
        spans: Start and end of each span, (n, 2), or (-1, -1) for none.
        bounds: Start and end of each word of the text, (n_words, 2).

    Returns:
        The extended spans, (n, 2), and the first word of each, (n,). A span that covers no word is (-1, -1) and -1.
    """
    # A span may include the space before its word, so only words that it overlaps count.
    first = np.searchsorted(bounds[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(bounds[:, 0], spans[:, 1], side="left") - 1
    has_word = (spans[:, 0] >= 0) & (first <= last)
    wide = np.full((len(spans), 2), -1, np.int64)
    wide[has_word, 0], wide[has_word, 1] = bounds[first[has_word], 0], bounds[last[has_word], 1]
    return wide, np.where(has_word, first, -1)


def _bounds(pairs: list[tuple[int, int]]) -> Bounds:
    bounds = np.array(pairs, np.int64).reshape(-1, 2)
    bounds.flags.writeable = False
    return bounds


# Evidence and its passage need the same words, and documents are found again.
_kept_words, _kept_sentences = lru_cache(_N_KEPT)(_words), lru_cache(_N_KEPT)(_sentences)
