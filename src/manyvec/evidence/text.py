"""Evidence on texts: which words of a document matched which words of the query.

MaxSim is a sum over query tokens, each of which takes its similarity from one document token. `explain` groups these
pairs by word, from the stored token vectors and spans; nothing is encoded again. It keeps the similarities, so that
`Evidence.best_passage` can score any stretch of the text.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, check_count
from manyvec.evidence.passages import Passage, best_passage
from manyvec.evidence.render import Mark, has_color, printable, to_html, to_terminal
from manyvec.evidence.words import Bounds, widened, words
from manyvec.timing import stage
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import TokenBatch

# `to_dict` and the terminal shorten matches to this many characters: a pooled token or a "word" can be very long.
_SHOWN_CHARS = 80
_SHOWN_SPANS = 20
Span = tuple[int, int]


@dataclass(frozen=True)
class WordMatch:
    """A word of the query and what it matched in the document.

    Attributes:
        word: The word as written in the query.
        query_span: Its characters in the query.
        text: The matched words of the document. Empty if only markers or special tokens matched, and on a page image.
        span: The characters of the matched words in the document; None if `text` is empty.
        similarity: Mean similarity of the word's tokens, in [-1, 1].
        share: Sum of these similarities: the part of the score that is due to the word.
        patch: On a page image, the (row, column) of the patch that is most similar to the word. Tokens of the model's
            prompt, which are on no page, are not considered. None in a text.
    """

    word: str
    query_span: Span
    text: str
    span: Span | None
    similarity: float
    share: float
    patch: tuple[int, int] | None = None


@dataclass(frozen=True)
class CountedWord:
    """A word of the query that BM25 counted in the document, where BM25 took part in the order of the hits.

    Attributes:
        word: The word as written in the query.
        spans: The characters of each occurrence in the text of the document, in any form that BM25 takes for the same
            word, such as the plural.
    """

    word: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation(ABC):
    """Base of `Evidence` and `PageEvidence`. `score` is the sum of the shares of all words and `unattributed`.

    Attributes:
        text: Text of the document in the version that was searched.
        words: One match for each word of the query, in order. A repeated word is listed each time.
        unattributed: Part of the score that is due to markers, special and expansion tokens, which belong to no word.
        score: MaxSim score of the query and the document.
        problem: Why no place in the document can be shown, and what to do about it; None if there is no problem.
            Similarities and shares are correct in either case.
        counted: The words of the query that BM25 counted in the document, in order; none if it took no part.
    """

    text: str = field(repr=False)
    words: tuple[WordMatch, ...]
    unattributed: float
    score: float
    problem: str | None = None
    counted: tuple[CountedWord, ...] = ()

    @abstractmethod
    def best_passage(self, n_chars: int = 300) -> Passage: ...

    @abstractmethod
    def to_html(self) -> str: ...

    @abstractmethod
    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON and metadata: numbers with four decimals, long matches shortened, spans exact.

        `counted` is left out if it is empty. Of each word it holds `n`, the number of occurrences, and the first 20.
        """
        record = {
            "score": round(self.score, 4),
            "unattributed": round(self.unattributed, 4),
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
        if self.counted:
            record["counted"] = [
                {"word": _shortened(c.word), "n": len(c.spans), "spans": [*map(list, c.spans[:_SHOWN_SPANS])]}
                for c in self.counted
            ]
        return record | {"problem": self.problem} if self.problem else record

    def _repr_html_(self) -> str:
        return self.to_html()

    def _summary(self, targets: Sequence[str]) -> str:
        """Return one line with each word of the query and its target in the document."""
        parts = [
            f"{_shortened(match.word)} → {target} {match.similarity:.2f}"
            for match, target in zip(self.words, targets, strict=True)
        ]
        if self.problem:
            parts.append(self.problem)
        if self.unattributed:
            parts.append(f"tokens that belong to no word {self.unattributed:.2f}")
        if self.counted:
            parts.append(self._counted_words())
        return printable(" · ".join(parts))

    def _counted_words(self) -> str:
        return f"BM25 counted {', '.join(f'{_shortened(c.word)} × {len(c.spans)}' for c in self.counted)}"


@dataclass(frozen=True, kw_only=True)
class Evidence(Explanation):
    """Why a text matched.

    Attributes:
        similarities: (n_query_tokens, n_text_tokens) float32, for the document's tokens that have characters.
        starts: (n_text_tokens,) first character of each of these tokens, ascending.
    """

    similarities: NDArray[np.float32] = field(repr=False, compare=False)
    starts: NDArray[np.int64] = field(repr=False, compare=False)

    def best_passage(self, n_chars: int = 300) -> Passage:
        """Return the stretch of the text that matches the query best: the passage to quote and cite.

        Stretches are compared by the MaxSim score that each has by itself. The passage consists of whole sentences,
        unless a stretch that starts or ends within one scores 7 % higher; then the matched words are in its middle.

        Args:
            n_chars: Maximum number of characters. A word is cut only if it is longer than that.

        Raises:
            InputError: `n_chars` is not a positive integer, or this document has a `problem`.
        """
        if self.problem:
            raise InputError(self.problem)
        return best_passage(self.text, check_count(n_chars, "n_chars", minimum=1), self.similarities, self.starts)

    def to_html(self) -> str:
        """Return the text as an HTML element. The text is escaped.

        Matched words are highlighted, and words that BM25 counted are underlined.
        """
        note = f"<p><em>{to_html(self.problem, [])}</em></p>" if self.problem else ""
        return f'{note}<div dir="auto" style="white-space: pre-wrap">{to_html(self.text, self._marks())}</div>'

    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str:
        """Return two lines: the best passage with the matched words highlighted, and the match of each query word.

        With colours, words that BM25 counted are underlined; the second line names them in either case.

        Args:
            n_chars: Maximum number of characters of the passage.
            color: Whether to use colours. Default: if standard output is a terminal and NO_COLOR is not set.
        """
        color = has_color() if color is None else color
        passage = Passage(self.text[:n_chars], 0, n_chars) if self.problem else self.best_passage(n_chars)
        marks = [
            replace(
                mark, start=max(mark.start - passage.start, 0), end=min(mark.end, passage.end) - passage.start, label=""
            )
            for mark in self._marks()
            if mark.start < passage.end and mark.end > passage.start
        ]
        before, after = "… " if passage.start else "", " …" if passage.end < len(self.text.rstrip()) else ""
        summary = self._summary([_shortened(match.text) or "(no word)" for match in self.words])
        return f"{before}{to_terminal(passage.text, marks, color=color)}{after}\n{summary}"

    def _marks(self) -> list[Mark]:
        matched = [
            Mark(*match.span, min(max(match.similarity, 0.0), 1.0), f"{match.word} {match.similarity:.2f}")
            for match in self.words
            if match.span
        ]
        counted = [(span, f"BM25 counted {c.word}") for c in self.counted for span in c.spans]
        return matched + [Mark(*span, 0, label, is_underlined=True) for span, label in counted]


@stage("evidence")
def explain(query: str, tokens: TokenBatch, texts: Sequence[str], documents: TokenBatch) -> list[Evidence]:
    """Explain why each text matches a query.

    Args:
        query: Text of the query; empty if it is token vectors alone, which have no words.
        tokens: Token vectors of the query as a batch of one, with spans unless the query has no text.
        texts: Texts of the documents, at least one.
        documents: Token vectors of the documents with spans, in the same order.

    Returns:
        Evidence for each text, in order. If the spans of a document are missing or cannot belong to its text, its
        evidence has a `problem` and points at no words.

    Raises:
        InputError: The query has a text but no spans.
    """
    compared = compare_tokens(query, tokens, documents)
    return [_explain(text, *one) for text, one in zip(texts, compared, strict=True)]


@stage("evidence")
def best_passages(
    tokens: TokenBatch, texts: Sequence[str], documents: TokenBatch, n_chars: int
) -> list[Passage | None]:
    """Return what `Evidence.best_passage` returns of each text, without the rest of the evidence; None for a problem.

    Args:
        tokens: As for `explain`.
        texts: Texts of the documents, at least one.
        documents: As for `explain`.
        n_chars: Maximum number of characters of a passage.
    """
    passages: list[Passage | None] = []
    for text, (_, similarities, spans) in zip(texts, compare_tokens("", tokens, documents), strict=True):
        has_text = _in_order(spans)
        passages.append(
            None
            if _problem(text, spans)
            else best_passage(text, n_chars, similarities[:, has_text], spans[has_text, 0].astype(np.int64))
        )
    return passages


@dataclass(frozen=True)
class QueryWords:
    """Words of a query, grouped from its tokens.

    Attributes:
        query: Text of the query.
        spans: (n_tokens, 2) characters of each token, extended to whole words.
        word_of: (n_tokens,) the word that each token belongs to; -1 for none.
    """

    query: str
    spans: Bounds
    word_of: NDArray[np.int64]

    @cached_property
    def words(self) -> list[tuple[str, Span, list[int]]]:
        """Each word in order, with its characters and the positions of its tokens."""
        groups = []
        for word in np.unique(self.word_of[self.word_of >= 0]):
            tokens = np.flatnonzero(self.word_of == word)
            start, end = int(self.spans[tokens, 0].min()), int(self.spans[tokens, 1].max())
            groups.append((self.query[start:end], (start, end), tokens.tolist()))
        return groups

    def matches(self, shares: list[float], locate: Callable[[list[int]], dict[str, Any]]) -> dict[str, Any]:
        """Return `words`, `unattributed` and `score` of an `Explanation`.

        Args:
            shares: (n_query_tokens,) the best similarity of each token.
            locate: Function of the positions of a word's tokens. It returns their target in the document: `text`,
                `span` or `patch` of `WordMatch`.
        """
        matches = []
        for word, span, word_tokens in self.words:
            share = sum(shares[token] for token in word_tokens)
            target = {"text": "", "span": None} | locate(word_tokens)
            matches.append(WordMatch(word, span, similarity=share / len(word_tokens), share=share, **target))
        unattributed = sum(shares[token] for token in np.flatnonzero(self.word_of < 0).tolist())
        return {"words": tuple(matches), "unattributed": float(unattributed), "score": sum(shares)}


def compare_tokens(
    query: str, tokens: TokenBatch, documents: TokenBatch
) -> Iterator[tuple[QueryWords, NDArray[np.float32], NDArray[np.int32]]]:
    """Compare the query with each document, token by token.

    Yields:
        The query's words, similarities (n_query_tokens, n_tokens), and spans of the document (n_tokens, 2), which are
        all -1 if it has none.

    Raises:
        InputError: The query has a text but no spans.
    """
    if tokens.spans is None and query:
        raise InputError(
            "evidence needs the spans of the query's tokens, which this encoder does not return: see TokenBatch.spans"
        )
    spans = documents.spans
    if spans is None or len(spans) != documents.n_tokens:
        spans = np.full((documents.n_tokens, 2), -1, np.int32)
    query_vectors = tokens[0].astype(np.float32)
    query_spans = np.full((tokens.n_tokens, 2), -1, np.int32) if tokens.spans is None else tokens.spans
    query_words = QueryWords(query, *widened(query_spans, words(query)))
    products = default_backend().products(query_vectors)
    for start, end in itertools.pairwise(documents.offsets.tolist()):
        yield query_words, products(documents.vectors[start:end]).T, spans[start:end]


def _in_order(spans: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the tokens that have characters, in the order of the text, which is not that of pooled tokens."""
    has_text = np.flatnonzero(spans[:, 0] >= 0)
    return has_text[np.argsort(spans[has_text, 0], kind="stable")]


def _problem(text: str, spans: NDArray[np.int32]) -> str | None:
    """Return why these spans cannot belong to the text, or None if they can."""
    if spans.max(initial=-1) < 0:
        return (
            f"the document {text[:40]!r} was stored without the characters of its tokens, by another tool or with an "
            "encoder that returns no spans (see TokenBatch.spans): add it again with one that does"
        )
    if spans.max() > len(text):
        return (
            f"the document {text[:40]!r} has {len(text)} characters, but one of its tokens ends at character "
            f"{spans.max()}: its spans belong to another text, or count bytes. Add it again"
        )
    return None


def _explain(
    text: str, query_words: QueryWords, similarities: NDArray[np.float32], spans: NDArray[np.int32]
) -> Evidence:
    problem = _problem(text, spans)
    if problem:
        spans = np.full_like(spans, -1)
    best = similarities.argmax(axis=1)
    # Lists: a word has one to three tokens, for which numpy is slower than plain Python.
    shares: list[float] = similarities[np.arange(len(best)), best].tolist()
    matched: list[list[int]] = widened(spans[best], words(text))[0].tolist()

    def locate(word_tokens: list[int]) -> dict[str, Any]:
        totals: dict[Span, float] = {}
        for token in word_tokens:
            start, end = matched[token]
            if start >= 0:
                totals[start, end] = totals.get((start, end), 0.0) + shares[token]
        # Where the tokens of the word match most, taken together.
        span = max(totals, key=totals.__getitem__, default=None)
        return {"text": text[slice(*span)], "span": span} if span else {}

    has_text = _in_order(spans)
    return Evidence(
        text=text,
        similarities=similarities[:, has_text],
        starts=spans[has_text, 0].astype(np.int64),
        problem=problem,
        **query_words.matches(shares, locate),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
