"""`Calibration`: what a similarity is worth in one corpus, so that a relevance threshold means something.

Similarities of one model crowd into a narrow range that another model does not share. What a threshold should answer is
how often it lets something through that does not belong: so the similarities are compared with those that the best
document reaches for questions which the corpus does not answer.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyvec import Index, InputError

if TYPE_CHECKING:
    from typing_extensions import Self

# Openings of 12 words are about as long as questions are; the characters are for scripts without spaces.
_QUERY_WORDS, _QUERY_CHARACTERS = 12, 100


@dataclass(frozen=True)
class Calibration:
    """Similarities of the best document to questions without an answer, rising; at least one.

    `Calibration(tuple(numbers))` is the same again after the numbers were kept somewhere.
    """

    background: tuple[float, ...]

    @classmethod
    def measure(cls, index: Index, unanswerable: Sequence[str] | None = None, *, n_samples: int = 200) -> Self:
        """Measure the background in an index.

        Args:
            unanswerable: questions of the kind users ask, to which no document holds the answer; 50 or more are good.
                Without them, openings of `n_samples` documents stand for questions, and the document that each was
                taken from is left out of its hits. On SciFact with all-MiniLM-L6-v2, 439 abstracts, a threshold of
                0.75 so found let through 23 % of the claims whose evidence was left out and 77 % of the others, 0.9 let
                through 6 % and 65 % (`examples/benchmarks/calibration.py`). Near copies make it stricter than it says.

        Raises:
            InputError: nothing was found, as in an index with fewer than two documents.
        """
        if unanswerable is not None:
            background = [hits[0].similarity for hits in index.search_many(unanswerable, 1) if hits]
        else:
            ids = index.ids()
            documents = index.get(random.Random(0).sample(ids, min(n_samples, len(ids))))
            found = index.search_many([_opening(document.text) for document in documents], 2)
            others = [
                [hit.similarity for hit in hits if hit.id != document.id]
                for document, hits in zip(documents, found, strict=True)
            ]
            background = [similarities[0] for similarities in others if similarities]
        if not background:
            raise InputError("calibration needs an index with two documents or more, and questions that find some")
        return cls(tuple(sorted(background)))

    def relevance(self, similarity: float) -> float:
        """Share of the background that is less similar, in [0, 1]: 0.9 lets 1 unanswerable question in 10 through."""
        return bisect_left(self.background, similarity) / len(self.background)


def _opening(text: str) -> str:
    return " ".join(text.split()[:_QUERY_WORDS])[:_QUERY_CHARACTERS]
