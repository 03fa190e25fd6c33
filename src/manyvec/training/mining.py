"""Find hard negatives: documents that BM25 and exact MaxSim rank high for a query they do not answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from manyvec.models.protocol import Encoder
from manyvec.tools.bm25 import BM25, words_of
from manyvec.training.data import TrainingData
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer

# Above these ranks many documents answer the query although nobody judged them; below, they are easy.
FIRST_RANK, LAST_RANK = 10, 50
# A document that scores almost as high as the answer probably is one.
LIKELY_POSITIVE = 0.95
# Documents that each of BM25 and the pooled vectors propose.
_DEPTH = 60
_BATCH = 256


def mine_negatives(
    data: TrainingData,
    queries: Sequence[str],
    documents: Mapping[str, str],
    tokens: TokenBatch,
    encoder: Encoder,
    n_negatives: int,
    seed: int,
) -> dict[str, tuple[str, ...]]:
    """Return up to `n_negatives` ids of documents for each query, drawn from ranks 10 to 50.

    BM25 and mean-pooled vectors propose 60 documents each, and exact MaxSim ranks these. Judged answers, and documents
    with more than 95 % of the score of the best answer, are left out. In a small corpus the ranks start earlier: at a
    tenth of the corpus.

    Args:
        queries: Query ids.
        documents: Id to text of the documents to draw from.
        tokens: Their token vectors, in the same order.
        encoder: Model before training.
    """
    ids = list(documents)
    position_of = {id: position for position, id in enumerate(ids)}
    bm25 = BM25([words_of(text) for text in documents.values()])
    pooled = _pooled(tokens)
    first = min(FIRST_RANK, len(ids) // 10)
    rng, scorer = np.random.default_rng(seed), MaxSimScorer()
    mined: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(queries), _BATCH):
        part = queries[start : start + _BATCH]
        encoded = encoder.encode_queries([data.queries[query] for query in part])
        close = _pooled(encoded) @ pooled.T
        for query, vectors, similarities in zip(part, encoded, close, strict=True):
            by_words = bm25.scores(words_of(data.queries[query]))
            positives = [position_of[id] for id in data.positives[query] if id in position_of]
            proposed = np.unique(
                np.concatenate([_largest(by_words), _largest(similarities), positives]).astype(np.int64)
            )
            scores = scorer.score(vectors, tokens, proposed)
            is_positive = np.isin(proposed, positives)
            limit = LIKELY_POSITIVE * float(scores[is_positive].max(initial=-np.inf)) if positives else np.inf
            ranked = proposed[np.argsort(-scores, kind="stable")]
            order = np.sort(-scores, kind="stable")
            is_negative = ~np.isin(ranked, positives) & (-order <= limit)
            window = ranked[is_negative][first:LAST_RANK]
            if len(window) < n_negatives:
                window = ranked[is_negative][-max(n_negatives, 1) :]
            chosen = rng.permutation(window)[:n_negatives].tolist()
            mined[query] = tuple(ids[position] for position in chosen)
    return mined


def _largest(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the positions of the highest scores, in no order."""
    if len(scores) <= _DEPTH:
        return np.arange(len(scores))
    return np.argpartition(-scores, _DEPTH)[:_DEPTH]


def _pooled(tokens: TokenBatch) -> NDArray[np.float32]:
    """Return (n_items, dim) unit means of the token vectors; zero for an item without tokens."""
    means = np.zeros((len(tokens), tokens.dim), np.float32)
    for position, vectors in enumerate(tokens):
        if len(vectors):
            means[position] = vectors.mean(axis=0, dtype=np.float32)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.maximum(norms, 1e-12)
