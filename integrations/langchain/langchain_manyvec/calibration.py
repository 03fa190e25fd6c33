"""`Calibration`: turn similarities into relevance scores that a threshold can be chosen for.

The similarities of a model fall into a narrow range that differs from model to model, so a fixed threshold says little.
A calibration compares a similarity with those that the best document reaches for questions the corpus does not answer:
the threshold then states how often an irrelevant document passes.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyvec import InputError
from manyvec.cluster import AnyIndex

if TYPE_CHECKING:
    from typing_extensions import Self

# The first 12 words of a document are about as long as a question; the character limit is for scripts without spaces.
_QUERY_WORDS, _QUERY_CHARACTERS = 12, 100


@dataclass(frozen=True)
class Calibration:
    """Distribution of the best similarities that unanswerable questions reach in one index, without BM25.

    To keep a calibration, save `background` and pass it to `Calibration(tuple(...))` later.

    Attributes:
        background: Similarities of the best document per question, ascending; at least one.
    """

    background: tuple[float, ...]

    @classmethod
    def measure(cls, index: AnyIndex, unanswerable: Sequence[str] | None = None, *, n_samples: int = 200) -> Self:
        """Measure the background similarities of an index.

        Args:
            index: Index to search; takes about one search per question.
            unanswerable: Questions of the kind users ask which no document answers; 50 or more are recommended.
                By default the first words of `n_samples` documents serve as questions, and the document that a question
                was taken from is removed from its hits. On SciFact with all-MiniLM-L6-v2 (439 abstracts), a
                threshold of 0.75 measured this way accepted 23 % of the claims whose evidence was removed and 77 % of
                the others; 0.9 accepted 6 % and 65 % (`examples/benchmarks/calibration.py`). Near-duplicate documents
                make it stricter.
            n_samples: Number of documents to sample when `unanswerable` is not given.

        Raises:
            InputError: No question finds a document, for example because the index holds fewer than two documents.
        """
        if unanswerable is not None:
            background = [hits[0].similarity for hits in index.search_many(unanswerable, 1, lexical_weight=0) if hits]
        else:
            ids = index.ids()
            documents = index.get(random.Random(0).sample(ids, min(n_samples, len(ids))))
            questions = [_first_words(document.text) for document in documents]
            found = index.search_many(questions, 2, lexical_weight=0)
            others = [
                [hit.similarity for hit in hits if hit.id != document.id]
                for document, hits in zip(documents, found, strict=True)
            ]
            background = [similarities[0] for similarities in others if similarities]
        if not background:
            raise InputError("calibration needs an index with at least two documents, and questions that find some")
        return cls(tuple(sorted(background)))

    def relevance(self, similarity: float) -> float:
        """Return the share of the background below this similarity, in [0, 1].

        A threshold of 0.9 accepts a document for 1 in 10 unanswerable questions.
        """
        return bisect_left(self.background, similarity) / len(self.background)


def _first_words(text: str) -> str:
    return " ".join(text.split()[:_QUERY_WORDS])[:_QUERY_CHARACTERS]
