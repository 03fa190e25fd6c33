"""Evidence: which words of a document made it a hit, from stored token vectors and spans; nothing is encoded again.

MaxSim is a sum over query tokens, each of which takes its similarity from one document token. `explain` gathers these
pairs into whole words, and keeps the similarities, so that `Evidence.best_passage` can score any stretch of the text.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError
from manyvec.evidence.render import Mark, has_color, printable, to_html, to_terminal
from manyvec.evidence.words import Bounds, is_extender, sentences, widened, words
from manyvec.timing import stage
from manyvec.vectors.batch import TokenBatch

# A pooled token, or a word of a hundred thousand characters, is cut to this in `to_dict` and in lines of a terminal.
_SHOWN_CHARS = 80
# A whole sentence reads better and more often holds the whole answer; cutting one has to carry this much more.
_WORTH_CUTTING = 0.02
Span = tuple[int, int]


@dataclass(frozen=True)
class WordMatch:
    """A word of the query and what it found.

    Attributes:
        word: as the query has it.
        query_span: its characters in the query.
        text: the matched words of the document; empty if only markers or special tokens of the document were matched,
            and on a page image.
        span: their characters in the document; None in that case.
        similarity: mean over the word's tokens, in [-1, 1].
        share: their sum: what the word adds to the score.
        patch: on a page image, the row and column of the patch most similar to the word, even if a token of the model's
            own prompt, which is on no page, is more so; None in a text.
    """

    word: str
    query_span: Span
    text: str
    span: Span | None
    similarity: float
    share: float
    patch: tuple[int, int] | None = None


@dataclass(frozen=True)
class Passage:
    """A stretch of a document's text: `text` is its characters from `start` to `end`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Explanation(ABC):
    """What evidence on texts and on page images has in common. The shares of all words and `unshown` add up to `score`.

    Attributes:
        text: the document's text as it was when the search scored it.
        words: in the query's order; a word that the query has twice is there twice.
        unshown: what the query's markers, special and expansion tokens add to the score: they stand for no word.
        score: MaxSim of the query and the document.
        problem: why nothing can be shown in the document, and what to do; None where all is well. Similarities and
            shares hold all the same.
    """

    text: str = field(repr=False)
    words: tuple[WordMatch, ...]
    unshown: float
    score: float
    problem: str | None = None

    @abstractmethod
    def best_passage(self, n_chars: int = 300) -> Passage: ...

    @abstractmethod
    def to_html(self) -> str: ...

    @abstractmethod
    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """For JSON and metadata: numbers to four places, and of long matches the beginning; spans are exact."""
        record = {
            "score": round(self.score, 4),
            "unshown": round(self.unshown, 4),
            "words": [
                {
                    "word": _shortened(match.word),
                    "query_span": list(match.query_span),
                    "text": _shortened(match.text),
                    "span": list(match.span) if match.span else None,
                    "similarity": round(match.similarity, 4),
                    "share": round(match.share, 4),
                }
                for match in self.words
            ],
        }
        return record | {"problem": self.problem} if self.problem else record

    def _repr_html_(self) -> str:
        return self.to_html()

    def _found(self, positions: Sequence[str]) -> str:
        """One line: each word of the query with the place that it found."""
        found = [
            f"{_shortened(match.word)} → {position} {match.similarity:.2f}"
            for match, position in zip(self.words, positions, strict=True)
        ]
        if self.problem:
            found.append(self.problem)
        if self.unshown:
            found.append(f"tokens that stand for no word {self.unshown:.2f}")
        return printable(" · ".join(found))


@dataclass(frozen=True, kw_only=True)
class Evidence(Explanation):
    """Why a text matched.

    Attributes:
        similarities: (n_query_tokens, n_placed_tokens) float32, of the document's tokens that stand for text, in the
            order of `starts`.
        starts: (n_placed_tokens,) where in the text each of these tokens begins, rising.
    """

    similarities: NDArray[np.float32] = field(repr=False, compare=False)
    starts: NDArray[np.int64] = field(repr=False, compare=False)

    def best_passage(self, n_chars: int = 300) -> Passage:
        """The stretch of the text that carries most of the score: what to quote and cite.

        Stretches are compared by the MaxSim score that each would have by itself. Whole sentences are given unless
        a stretch that begins or ends within one carries 2 % more.

        Args:
            n_chars: at most so many characters. Only where a single word is longer is a word cut.

        Raises:
            InputError: `n_chars` is not a whole number of at least 1; or this document has a `problem`.
        """
        if self.problem:
            raise InputError(self.problem)
        if isinstance(n_chars, bool) or not isinstance(n_chars, int) or n_chars < 1:
            raise InputError(f"n_chars must be a whole number, 1 or more, got {n_chars!r}")
        sentence_bounds = sentences(self.text)
        whole = _whole_sentences(sentence_bounds, n_chars)
        cut = _whole_words(self.text, sentence_bounds, n_chars)
        whole_scores, cut_scores = self._scores(whole), self._scores(cut)
        if len(whole) and whole_scores.max() >= cut_scores.max() - _WORTH_CUTTING * abs(cut_scores.max()):
            start, end = whole[whole_scores.argmax()].tolist()
        else:
            start, end = cut[cut_scores.argmax()].tolist()
        return Passage(self.text[start:end], start, end)

    def to_html(self) -> str:
        """The text with its matched words marked, as an HTML element; everything in it is escaped."""
        note = f"<p><em>{to_html(self.problem, [])}</em></p>" if self.problem else ""
        return f'{note}<div dir="auto" style="white-space: pre-wrap">{to_html(self.text, self._marks())}</div>'

    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str:
        """Two lines: the best passage with its matched words marked, and what each word of the query found.

        Args:
            n_chars: of the passage, at most.
            color: by default, if standard output is a terminal and NO_COLOR is not set.
        """
        color = has_color() if color is None else color
        passage = Passage(self.text[:n_chars], 0, n_chars) if self.problem else self.best_passage(n_chars)
        marks = [
            Mark(max(mark.start - passage.start, 0), min(mark.end, passage.end) - passage.start, mark.strength, "")
            for mark in self._marks()
            if mark.start < passage.end and mark.end > passage.start
        ]
        before, after = "… " if passage.start else "", " …" if passage.end < len(self.text.rstrip()) else ""
        found = self._found([_shortened(match.text) or "(no word)" for match in self.words])
        return f"{before}{to_terminal(passage.text, marks, color=color)}{after}\n{found}"

    def _scores(self, stretches: Bounds) -> NDArray[np.float32]:
        """(n,) the MaxSim score that each stretch of the text would have by itself; -inf if it holds no token."""
        first, last = np.searchsorted(self.starts, stretches.T)
        return _maxsim_of_ranges(self.similarities, first, last)

    def _marks(self) -> list[Mark]:
        return [
            Mark(*match.span, min(max(match.similarity, 0.0), 1.0), f"{match.word} {match.similarity:.2f}")
            for match in self.words
            if match.span
        ]


@stage("evidence")
def explain(query: str, tokens: TokenBatch, texts: Sequence[str], documents: TokenBatch) -> list[Evidence]:
    """Say why each text matches a query.

    Args:
        query: its text.
        tokens: its token vectors with their spans, a batch of one.
        texts: of the documents, at least one.
        documents: their token vectors with spans, in the same order.

    Returns:
        Evidence in the same order. Where a document's spans are missing or cannot be its text's, it points at no words
        and says so in `problem`; that of the others is as it would be without it.

    Raises:
        InputError: the query has no spans.
    """
    compared = compare_tokens(query, tokens, documents)
    return [_explain(text, *one) for text, one in zip(texts, compared, strict=True)]


@dataclass(frozen=True)
class QueryWords:
    """The words of a query: their characters, widened from its tokens, and which of them each token belongs to."""

    query: str
    spans: Bounds
    word_of: NDArray[np.int64]

    @cached_property
    def words(self) -> list[tuple[str, Span, list[int]]]:
        """Each word, in the query's order, its characters, and its tokens."""
        found = []
        for word in np.unique(self.word_of[self.word_of >= 0]):
            own = np.flatnonzero(self.word_of == word)
            start, end = int(self.spans[own, 0].min()), int(self.spans[own, 1].max())
            found.append((self.query[start:end], (start, end), own.tolist()))
        return found

    def matches(self, shares: list[float], position: Callable[[list[int]], dict[str, Any]]) -> dict[str, Any]:
        """`words`, `unshown` and `score` of an `Explanation`.

        Args:
            shares: (n_query_tokens,) the best similarity of each token.
            place: of a word's tokens, where in the document they found it: `text`, `span` and `patch` of `WordMatch`.
        """
        found = []
        for word, span, own in self.words:
            share = sum(shares[token] for token in own)
            where = {"text": "", "span": None} | position(own)
            found.append(WordMatch(word, span, similarity=share / len(own), share=share, **where))
        unshown = sum(shares[token] for token in np.flatnonzero(self.word_of < 0).tolist())
        return {"words": tuple(found), "unshown": float(unshown), "score": sum(shares)}


def compare_tokens(
    query: str, tokens: TokenBatch, documents: TokenBatch
) -> Iterator[tuple[QueryWords, NDArray[np.float32], NDArray[np.int32]]]:
    """For each document the query's words, (n_query_tokens, n_tokens) similarities, and (n_tokens, 2) spans, all -1
    where it has none.

    Raises:
        InputError: the query has no spans.
    """
    import torch

    if tokens.spans is None:
        raise InputError("the encoder gives no spans for its query tokens, which evidence needs: see TokenBatch.spans")
    spans = documents.spans
    if spans is None or len(spans) != documents.n_tokens:
        spans = np.full((documents.n_tokens, 2), -1, np.int32)
    vectors = torch.from_dlpack(documents.vectors).float()
    similarities = (torch.from_dlpack(tokens[0].astype(np.float32)) @ vectors.T).numpy()
    query_words = QueryWords(query, *widened(tokens.spans, words(query)))
    for start, end in itertools.pairwise(documents.offsets.tolist()):
        yield query_words, similarities[:, start:end], spans[start:end]


def _problem(text: str, spans: NDArray[np.int32]) -> str | None:
    """Why these spans cannot point at words of the text: they would point at wrong ones."""
    if spans.max(initial=-1) < 0:
        return (
            f"the document {text[:40]!r} was stored without the characters of its token vectors, by another tool or "
            "with an encoder that gives no spans (see TokenBatch.spans): add it again with one that does"
        )
    if spans.max() > len(text):
        return (
            f"the document {text[:40]!r} has {len(text)} characters, and a token stored with it ends at character "
            f"{spans.max()}: its spans are another text's, or count bytes. Add it again"
        )
    return None


def _explain(
    text: str, query_words: QueryWords, similarities: NDArray[np.float32], spans: NDArray[np.int32]
) -> Evidence:
    problem = _problem(text, spans)
    if problem:
        spans = np.full_like(spans, -1)
    best = similarities.argmax(axis=1)
    # Lists: a word has a token or three, and numpy takes longer to look at these than to add up hundreds.
    shares: list[float] = similarities[np.arange(len(best)), best].tolist()
    matched: list[list[int]] = widened(spans[best], words(text))[0].tolist()

    def position(own: list[int]) -> dict[str, Any]:
        totals: dict[Span, float] = {}
        for token in own:
            start, end = matched[token]
            if start >= 0:
                totals[start, end] = totals.get((start, end), 0.0) + shares[token]
        # Where the tokens of the word found the most similarity together.
        span = max(totals, key=totals.__getitem__, default=None)
        return {"text": text[slice(*span)], "span": span} if span else {}

    placed = np.flatnonzero(spans[:, 0] >= 0)
    # Pooling leaves tokens out of the text's order.
    placed = placed[np.argsort(spans[placed, 0], kind="stable")]
    return Evidence(
        text=text,
        similarities=similarities[:, placed],
        starts=spans[placed, 0].astype(np.int64),
        problem=problem,
        **query_words.matches(shares, position),
    )


def _whole_sentences(sentence_bounds: Bounds, n_chars: int) -> Bounds:
    """(n, 2) from each sentence on, as many as `n_chars` hold, where they hold one."""
    starts, ends = sentence_bounds.T
    last = np.searchsorted(ends, starts + n_chars, side="right") - 1
    fits = last >= np.arange(len(starts))
    return np.stack([starts[fits], ends[last[fits]]], axis=1)


def _whole_words(text: str, sentence_bounds: Bounds, n_chars: int) -> Bounds:
    """(n, 2) as many words as `n_chars` hold: from the start of each sentence and up to its end, and, in sentences that
    are longer, from each word on."""
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
    """Where to cut a word that is too long: not between a character and its marks, unless these alone are too many."""
    end = start + n_chars
    while end > start and is_extender(text[end]):
        end -= 1
    return end if end > start else start + n_chars


def _maxsim_of_ranges(
    similarities: NDArray[np.float32], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n,) the score that the columns [first, last) have by themselves, -inf for none.

    The maximum over a range is that over two, possibly overlapping, runs of a power of two; one level of such runs is
    held at a time.
    """
    totals = np.full(len(first), -np.inf, np.float32)
    level, width = similarities, 1
    while width <= (last - first).max(initial=0):
        here = np.flatnonzero((last - first >= width) & (last - first < 2 * width))
        totals[here] = np.maximum(level[:, first[here]], level[:, last[here] - width]).sum(axis=0)
        level = np.maximum(level[:, :-width], level[:, width:])
        width *= 2
    return totals


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
