"""BM25 over a few thousand short documents in memory, which `ToolIndex` adds to MaxSim."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+")
_NAME_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-./:\s]+")
# English words that a request contains whatever it is about.
_STOP_WORDS = frozenset(
    "a about all also am an and any are as at be been but by can could did do does find for from get had has have how "
    "i if in into is it just me my need no not of on or our please should so some such tell than that the their then "
    "there these they this to too us very want was we were what when where which who will with would you your".split()
)


class BM25:
    """BM25 (k1 = 1.2, b = 0.75) over documents given as lists of words. Repeated query words count once."""

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        self._n_documents = len(documents)
        lengths = np.array([len(words) for words in documents], np.float32)
        norms = 1.2 * (0.25 + 0.75 * lengths / max(float(lengths.mean()) if len(lengths) else 0.0, 1e-9))
        counts_of: dict[str, list[tuple[int, int]]] = {}
        for position, words in enumerate(documents):
            for word, count in Counter(words).items():
                counts_of.setdefault(word, []).append((position, count))
        self._postings: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        for word, pairs in counts_of.items():
            positions, counts = np.array(pairs, np.int64).T
            weights = self._idf(len(pairs)) * counts * 2.2 / (counts + norms[positions])
            self._postings[word] = positions, weights.astype(np.float32)

    def scores(self, query: Iterable[str]) -> NDArray[np.float32]:
        """Return (n_documents,) float32 scores; a document that shares no word with the query has 0."""
        scores = np.zeros(self._n_documents, np.float32)
        for word in dict.fromkeys(query):
            if (postings := self._postings.get(word)) is not None:
                positions, weights = postings
                scores[positions] += weights
        return scores

    def _idf(self, document_frequency: int) -> float:
        return math.log1p((self._n_documents - document_frequency + 0.5) / (document_frequency + 0.5))


def words_of(text: str) -> list[str]:
    """Split a string into lower-case words: names at case changes, without stop words and common English endings."""
    words = _WORD.findall(" ".join(split_name(text)).lower())
    return [_stem(word) for word in words if word not in _STOP_WORDS]


def split_name(name: str) -> list[str]:
    """Split an identifier such as `get_user`, `sendMail` or `music.play` into its words."""
    return [part for part in _NAME_BOUNDARY.split(name) if part]


def _stem(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "us", "is")):
            return word[: -len(ending)] + replacement
    return word
