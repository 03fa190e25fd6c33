"""Measure a model: nDCG@10 of each query over a corpus, and intervals from a paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError
from manyvec.evaluation import WEIGHTS, Dataset, choose_weight, evaluate
from manyvec.index import Index
from manyvec.models.protocol import Encoder
from manyvec.training.report import Compared, Measured
from manyvec.types import Document
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer, top_k

MEASURE = "nDCG@10"
_BATCH = 64
_ENCODE_BATCH = 1024
_N_RESAMPLES = 2000
_N_AXES_TOKENS = 100_000
# A held-out query is compared with its answers and the documents that the model before training ranks highest.
POOL_SIZE = 600


@dataclass(frozen=True)
class Judged:
    """Queries with their judgments, and the documents to rank.

    Attributes:
        queries: Query id to query.
        qrels: Query id to document id to grade.
        documents: Document id to text.
    """

    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    documents: Mapping[str, str]


@dataclass(frozen=True)
class PoolScores:
    """How a model does on a small pool of documents, during training.

    Attributes:
        ndcg: Mean nDCG@10.
        positive: Mean similarity of queries and their best answers, in [-1, 1].
        negative: Mean similarity of queries and the best other document.
    """

    ndcg: float
    positive: float
    negative: float


def encode_corpus(encoder: Encoder, documents: Mapping[str, str]) -> TokenBatch:
    """Return the token vectors of all documents, in order, as float16."""
    texts, arrays = list(documents.values()), []
    for start in range(0, len(texts), _ENCODE_BATCH):
        arrays += [rows.astype(np.float16) for rows in encoder.encode_documents(texts[start : start + _ENCODE_BATCH])]
    return TokenBatch.from_list(arrays, dim=encoder.dim, allow_empty=True)


def principal_axes(tokens: TokenBatch, dim: int) -> NDArray[np.float32]:
    """Return the (dim, width) axes that keep most of the dot products of token vectors.

    Training starts from the best projection that is known without training.

    Raises:
        InputError: The vectors have fewer dims.
    """
    if dim > tokens.dim:
        raise InputError(f"dim must be at most {tokens.dim}, the dims of this model's token vectors, got {dim}")
    step = max(1, tokens.n_tokens // _N_AXES_TOKENS)
    vectors = tokens.vectors[::step].astype(np.float32)
    return np.ascontiguousarray(np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :dim].T)


def ndcg_of(
    encoder: Encoder, judged: Judged, tokens: TokenBatch, axes: NDArray[np.float32] | None = None
) -> list[float]:
    """Return nDCG@10 of each query, by exact MaxSim over all documents.

    Args:
        encoder: Encodes the queries.
        judged: Queries, judgments and documents.
        tokens: Token vectors of the documents, in their order, from the same encoder.
        axes: (dim, width) axes to compare the vectors along; None for all of them.
    """
    if axes is not None:
        tokens = along(tokens, axes)
    gains: list[float] = []
    for ranked in ranked_ids(encoder, judged, tokens, 10, axes):
        gains += [
            evaluate({query: judged.qrels[query]}, {query: ids}, [MEASURE])[MEASURE] for query, ids in ranked.items()
        ]
    return gains


def ndcg_of_set(encoder: Encoder, dataset: Dataset) -> list[float]:
    """Return nDCG@10 of each query of a data set over its documents."""
    documents = {document.id: document.text for document in dataset.documents}
    return ndcg_of(encoder, Judged(dataset.queries, dataset.qrels, documents), encode_corpus(encoder, documents))


def ranked_ids(
    encoder: Encoder, judged: Judged, tokens: TokenBatch, k: int, axes: NDArray[np.float32] | None = None
) -> list[dict[str, list[str]]]:
    """Return the ids of the k best documents of each query, best first, in batches of queries.

    Queries are turned along `axes`; the documents are already.
    """
    names, ids, ranked = list(judged.queries), list(judged.documents), []
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        queries = encoder.encode_queries([judged.queries[name] for name in part])
        scored = MaxSimScorer().score_many(queries if axes is None else along(queries, axes), tokens)
        ranked.append(
            {name: [ids[i] for i in top_k(scores, ids, k)] for name, scores in zip(part, scored, strict=True)}
        )
    return ranked


def pool_of(encoder: Encoder, judged: Judged, tokens: TokenBatch) -> Judged:
    """Return the same queries over about 600 documents: their answers, and what ranks highest before training.

    Ranking the whole corpus again and again would take longer than training.
    """
    chosen = {id: None for query in judged.queries for id in judged.qrels[query] if id in judged.documents}
    ranked = [ids for batch in ranked_ids(encoder, judged, tokens, 10) for ids in batch.values()]
    for rank in range(10):
        for ids in ranked:
            if len(chosen) < POOL_SIZE and rank < len(ids):
                chosen.setdefault(ids[rank])
    return Judged(judged.queries, judged.qrels, {id: judged.documents[id] for id in sorted(chosen)})


def score_pool(model: Any, pool: Judged) -> PoolScores:
    """Return how a sentence-transformers model ranks a pool. Long documents are cut at its window."""
    encode = {"convert_to_numpy": True, "show_progress_bar": False, "batch_size": 32}
    queries = TokenBatch.from_list(model.encode_query(list(pool.queries.values()), **encode), allow_empty=True)
    documents = TokenBatch.from_list(model.encode_document(list(pool.documents.values()), **encode), allow_empty=True)
    scores = MaxSimScorer(reduction="mean").score_many(queries, documents)
    ids, run, positive, negative = list(pool.documents), {}, [], []
    for query, row in zip(pool.queries, scores, strict=True):
        run[query] = [ids[i] for i in top_k(row, ids, 10)]
        is_answer = np.array([pool.qrels[query].get(id, 0) > 0 for id in ids])
        if np.isfinite(row).all() and is_answer.any() and not is_answer.all():
            positive.append(row[is_answer].max())
            negative.append(row[~is_answer].max())
    ndcg = evaluate({query: pool.qrels[query] for query in pool.queries}, run, [MEASURE])[MEASURE]
    return PoolScores(ndcg, float(np.mean(positive or [0])), float(np.mean(negative or [0])))


def best_lexical_weight(folder: Path, encoder: Encoder, judged: Judged, tokens: TokenBatch) -> float:
    """Return the share of BM25 that an index of the documents should search with; see `choose_weight`.

    Args:
        folder: Where to make the index.
        encoder: Encoder of the documents.
        judged: Queries, judgments and documents.
        tokens: Token vectors of the documents, in their order, from the same encoder.
    """
    documents = [
        Document(id=id, text=text, vectors=vectors)
        for (id, text), vectors in zip(judged.documents.items(), tokens, strict=True)
        if len(vectors)
    ]
    with Index.create(folder, encoder) as index:
        index.add(documents, adopt_vectors=True)
        ranked = index.rank_mixed(list(judged.queries.values()), WEIGHTS)
    runs = {weight: dict(zip(judged.queries, ids, strict=True)) for weight, ids in ranked.items()}
    return choose_weight(judged.qrels, runs).lexical_weight


def along(tokens: TokenBatch, axes: NDArray[np.float32]) -> TokenBatch:
    """Return unit vectors along some axes, of the same float type."""
    rows = [row.astype(np.float32) @ axes.T for row in tokens]
    unit = [row / np.maximum(np.linalg.norm(row, axis=1, keepdims=True), 1e-12) for row in rows]
    arrays = [row.astype(tokens.vectors.dtype) for row in unit]
    return TokenBatch.from_list(arrays, dim=len(axes), allow_empty=True)


def compare(before: Sequence[float], after: Sequence[float]) -> Compared:
    """Return how two models do on the same queries."""
    return Compared(interval(before), interval(after), interval(np.subtract(after, before).tolist()))


def interval(values: Sequence[float], seed: int = 0) -> Measured:
    """Return the mean of values with its 95 % bootstrap interval.

    For differences between two models on the same queries this is the paired bootstrap.
    """
    array: NDArray[np.float64] = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(_N_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Measured(float(array.mean()), float(low), float(high), len(array))
