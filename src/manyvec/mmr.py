"""Maximal marginal relevance on token vectors: hits that match the query and are unlike each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyvec.index import Index
from manyvec.types import Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer, Scores


def diversify(index: Index, hits: Sequence[Hit], k: int, balance: float = 0.5) -> list[Hit]:
    """Choose hits one by one: each time the one that matches the query most and those chosen before least.

    Two documents are as similar as their tokens are: the mean of each token's best match in the other document,
    averaged over both directions. Stored vectors are compared; nothing is encoded.

    Args:
        index: where the hits come from; hits that were deleted from it since are left out.
        k: how many, at most.
        balance: 1 minds only the query, 0 only how unlike the documents are.

    Returns:
        Hits as they are, in the order they were chosen; the best match first.
    """
    tokens = index.token_vectors([hit.id for hit in hits])
    kept = np.flatnonzero(tokens.lengths).tolist()
    relevance = np.array([hits[i].similarity for i in kept])
    return [hits[kept[i]] for i in _chosen(relevance, _likeness(tokens.select(kept)), k, balance)]


def _likeness(documents: TokenBatch) -> Scores:
    """(n, n) mean MaxSim of every two documents, averaged over both directions."""
    scorer = MaxSimScorer(reduction="mean")
    # One document at a time: all against all would hold every pair of tokens in memory.
    one_way = [scorer.score(document, documents) for document in documents]
    likeness = np.array(one_way, np.float32).reshape(len(documents), len(documents))
    return np.asarray((likeness + likeness.T) / 2, np.float32)


def _chosen(relevance: NDArray[np.floating], likeness: Scores, k: int, balance: float) -> list[int]:
    """Places chosen by maximal marginal relevance (Carbonell and Goldstein, 1998), the most relevant one first."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        redundancy = likeness[:, chosen].max(axis=1) if chosen else np.zeros(len(relevance))
        gain = balance * relevance - (1 - balance) * redundancy
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain if chosen else relevance)))
    return chosen
