"""Maximal marginal relevance on token vectors: hits that match the query and differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import check_count, check_fraction
from manyvec.types import Hit, Hits
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer, Scores

if TYPE_CHECKING:
    from manyvec.cluster import AnyIndex


def diversify(index: AnyIndex, hits: Sequence[Hit], k: int, balance: float = 0.5) -> list[Hit]:
    """Choose hits one by one: each time the one that matches the query most and the hits chosen before least.

    The similarity of two documents is the mean of each token's best match in the other document, averaged over both
    directions. Stored vectors are compared; nothing is encoded.

    Args:
        index: Index or cluster that returned the hits. Hits deleted from it since are left out.
        hits: Hits of one search.
        k: Maximum number of hits to choose.
        balance: 1 ranks by similarity to the query only, 0 only by how much the documents differ.

    Returns:
        The chosen hits, unchanged, in the order they were chosen; the best match first.

    Raises:
        InputError: `k` is not a non-negative integer, or `balance` not between 0 and 1.
    """
    k, balance = check_count(k, "k"), check_fraction(balance, "balance")
    tokens = index.token_vectors([hit.id for hit in hits])
    kept = np.flatnonzero(tokens.lengths).tolist()
    relevance = np.array([hits[i].similarity for i in kept])
    chosen = _marginally_relevant(relevance, _mutual_similarities(tokens.select(kept)), k, balance)
    return Hits(hits[kept[i]] for i in chosen)


def _mutual_similarities(documents: TokenBatch) -> Scores:
    """Return the (n, n) mean MaxSim of every two documents, averaged over both directions."""
    scorer = MaxSimScorer(reduction="mean")
    # One document at a time: all against all would hold every pair of tokens in memory.
    one_way = [scorer.score(document, documents) for document in documents]
    similarities = np.array(one_way, np.float32).reshape(len(documents), len(documents))
    return np.asarray((similarities + similarities.T) / 2, np.float32)


def _marginally_relevant(relevance: NDArray[np.floating], mutual: Scores, k: int, balance: float) -> list[int]:
    """Choose positions by maximal marginal relevance (Carbonell and Goldstein, 1998), the most relevant one first."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        redundancy = mutual[:, chosen].max(axis=1) if chosen else np.zeros(len(relevance))
        gain = balance * relevance - (1 - balance) * redundancy
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain if chosen else relevance)))
    return chosen
