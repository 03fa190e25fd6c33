"""Merge what the shards of a cluster found, in the order in which one index would return it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from manyvec.retrieval.lexical import RowScores, WordMatches, WordStatistics, growth
from manyvec.storage.words import words_of
from manyvec.types import Hit, Hits, IndexInfo
from manyvec.vectors.maxsim import top_k

# A shard is asked for at most this many times the documents wanted. Where more of them nearly tie, LanceDB's own order
# is arbitrary too.
_DEEPEST = 4

# Asks shards for their best matches of queries: shard → for each query, how many; 0 for a query that needs no more.
AskMatches = Callable[[Mapping[int, Sequence[int]]], Mapping[int, Sequence[WordMatches]]]


class ClusterHits(Hits):
    """The hits of a search of a cluster.

    Attributes:
        missing_shards: Names of the shards that could not be searched, with `allow_partial=True`.
    """

    missing_shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClusterInfo(IndexInfo):
    """What a cluster holds: the sums over its shards.

    Attributes:
        version: Sum of the shards' versions; every commit raises it.
        shards: Number of shards.
    """

    shards: int = 1


def merged(parts: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """Return the k best hits of all shards, best first, then by id."""
    hits = sorted(itertools.chain.from_iterable(parts), key=lambda hit: (-hit.final_score, hit.id))[:k]
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]


def best_ids(parts: Sequence[RowScores], k: int) -> list[str]:
    """Return the ids of the k best rows of all shards, best first, then by id."""
    if not parts:
        return []
    ids = np.concatenate([part.ids for part in parts])
    return [str(ids[i]) for i in top_k(np.concatenate([part.scores for part in parts]), ids, k)]


def by_means(tokens: NDArray[np.floating], ids: Sequence[str], means: NDArray[np.float32]) -> list[str]:
    """Return documents in the order of `Pooled`: by the cosine of mean token vectors.

    Args:
        tokens: (n_tokens, dim) token vectors of the query.
        ids: (n,) ids.
        means: (n, dim) mean token vectors, unit length.
    """
    similarities = np.einsum("nd,d->n", means, np.asarray(tokens, np.float32).mean(axis=0))
    return [ids[i] for i in sorted(range(len(ids)), key=lambda i: (-similarities[i], ids[i]))]


def global_matches(
    queries: Sequence[str], limit: int, statistics: Mapping[int, WordStatistics], ask: AskMatches
) -> dict[int, list[RowScores]]:
    """Return the rows of each shard that are among the best documents of all shards, for each query.

    A shard's own index orders documents by its own statistics. So a shard is asked for more than its share, and asked
    again while what it has left out could still be among the best.

    Args:
        queries: Query strings.
        limit: Number of documents in all shards together.
        statistics: Word statistics of each shard for all of the queries.
        ask: Asks shards for their best matches.

    Returns:
        Shard → for each query, rows and their scores by the statistics of all shards.
    """
    of_all = sum(statistics.values(), WordStatistics(0, 0, {}))
    words = [words_of(query) for query in queries]
    share = -(-2 * limit // max(1, len(statistics))) + 16
    deepest = _DEEPEST * limit
    limits = {shard: [share] * len(queries) for shard in statistics}
    found: dict[int, list[WordMatches]] = {shard: list(matches) for shard, matches in ask(limits).items()}
    while True:
        best = [
            _best({shard: found[shard][i] for shard in found}, words[i], of_all, limit) for i in range(len(queries))
        ]
        more: dict[int, list[int]] = {}
        for shard, own in statistics.items():
            lacks = [
                limits[shard][i] < deepest
                # 0 where nothing is left out: then all that the shard has are known, be they fewer than wanted or not.
                and found[shard][i].bound > 0
                and found[shard][i].bound * growth(own, of_all, words[i]) > best[i][1]
                for i in range(len(queries))
            ]
            if any(lacks):
                more[shard] = [min(deepest, 4 * limits[shard][i]) if lacks[i] else 0 for i in range(len(queries))]
        if not more:
            return {shard: [rows[shard] for rows, _ in best] for shard in found}
        for shard, matches in ask(more).items():
            for i, depth in enumerate(more[shard]):
                if depth:
                    found[shard][i], limits[shard][i] = matches[i], depth


def _best(
    found: Mapping[int, WordMatches], words: Sequence[str], statistics: WordStatistics, limit: int
) -> tuple[dict[int, RowScores], float]:
    """Return the rows of each shard that are among the best, and the lowest score of these; -inf if all are."""
    shards = list(found)
    scores = [found[shard].scores(words, statistics) for shard in shards]
    joined = np.concatenate(scores)
    chosen = top_k(joined, np.concatenate([found[shard].ids for shard in shards]), limit)
    is_chosen = np.zeros(len(joined), bool)
    is_chosen[chosen] = True
    lowest = float(joined[chosen[-1]]) if chosen and len(chosen) == limit else -inf
    rows, start = {}, 0
    for shard, of_shard in zip(shards, scores, strict=True):
        kept = is_chosen[start : start + len(of_shard)]
        rows[shard] = RowScores(found[shard].row_ids[kept], found[shard].ids[kept], of_shard[kept])
        start += len(of_shard)
    return rows, lowest
