"""Training pairs from documents that nobody has judged: headings, titles and first sentences ask for the rest.

A passage and one of its own sentences are the pairs of the Inverse Cloze Task (Lee et al. 2019,
https://arxiv.org/abs/1906.00300).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from manyvec.errors import InputError
from manyvec.index import Index
from manyvec.tools.bm25 import BM25, words_of
from manyvec.training.data import TrainingData, documents_of, normalised
from manyvec.types import Document

Ask: TypeAlias = Callable[[str], Iterable[str]]

# What asks must say something, and what answers must say more.
_MIN_QUESTION, _MIN_ANSWER = 3, 12
_FIRST_SENTENCE = re.compile(r"\s*(.{20,300}?[.!?])\s+(?=\S)", re.DOTALL)
# A question whose answer BM25 ranks below this is hardly about it.
_LAST_RANK = 100
# One whose answer has this many times the BM25 score of every other document teaches nothing.
_TOO_EASY = 2.0


def pairs_from_documents(index: Index, ask: Ask | None = None) -> TrainingData:
    """Make training pairs from the documents of an index, and drop those that teach nothing.

    Each document asks one question: its `heading`, else its `title` (both as metadata), else its first sentence. The
    question is taken out of the text that answers it. A pair is dropped if BM25 alone finds the answer with twice the
    score of every other document, or not among its first 100. Questions that `ask` returns are kept as they are, and
    the same rules apply.

    Args:
        index: Index of the documents.
        ask: Returns questions that a text answers, for example those that a language model writes.

    Raises:
        InputError: `ask` returned something else than strings.
    """
    data = TrainingData(str(index.uri), {}, {}, {})
    for document in documents_of(index):
        asked = [_own_pair(document)] if ask is None else _asked_pairs(document.text, ask)
        for question, answer in filter(None, asked):
            data.documents[document.id] = answer
            key = normalised(question)
            data.queries.setdefault(key, question)
            data.positives.setdefault(key, {})[document.id] = 1
        # What answers no question is still there to be told apart from what does.
        data.documents.setdefault(document.id, document.text)
    _drop_useless(data)
    return data


def _own_pair(document: Document) -> tuple[str, str] | None:
    """Return what a document asks and what answers it; None if it is too short for both."""
    text = document.text
    for key in ("heading", "title"):
        question = document.metadata.get(key)
        if isinstance(question, str):
            # Splitters leave the heading at the start of its passage, readers the title at the start of the text.
            answer = re.sub(rf"^[\s#]*{re.escape(question)}\W*", "", text, count=1)
            if _says(question, _MIN_QUESTION) and _says(answer, _MIN_ANSWER):
                return question, answer
    if (found := _FIRST_SENTENCE.match(text)) is not None:
        question, answer = found[1], text[found.end() :]
        if _says(question, _MIN_QUESTION) and _says(answer, _MIN_ANSWER):
            return question, answer
    return None


def _asked_pairs(text: str, ask: Ask) -> Iterator[tuple[str, str]]:
    questions = ask(text)
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise InputError(f"ask must return a list of questions, got {type(questions).__name__}")
    for question in questions:
        if not isinstance(question, str):
            raise InputError(f"ask must return questions as strings, got {type(question).__name__}")
        if question.strip():
            yield question, text


def _says(text: str, n_words: int) -> bool:
    return len(text.split()) >= n_words


def _drop_useless(data: TrainingData) -> None:
    ids = list(data.documents)
    position_of = {id: position for position, id in enumerate(ids)}
    bm25 = BM25([words_of(text) for text in data.documents.values()])
    for key in list(data.queries):
        scores = bm25.scores(words_of(data.queries[key]))
        positions = [position_of[id] for id in data.positives[key]]
        best = float(scores[positions].max())
        scores[positions] = 0
        n_above = int(np.count_nonzero(scores >= best))
        if best == 0 or n_above >= _LAST_RANK:
            reason = "BM25 does not find what answers it"
        elif best > _TOO_EASY * float(scores.max(initial=0)):
            reason = "BM25 alone finds what answers it"
        else:
            continue
        data.dropped[reason] += 1
        del data.queries[key], data.positives[key]
