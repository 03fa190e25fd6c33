"""Training pairs as rows of texts: hard negatives that BM25 and exact MaxSim rank high, and a teacher's scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError
from manyvec.models.protocol import Encoder
from manyvec.tools.bm25 import BM25, words_of
from manyvec.training.data import TrainingData
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer

# Of the documents that remain without answers and likely answers, as many are drawn from: those below are easy.
LAST_RANK = 10
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
    *,
    excluded: Collection[str] = (),
    n_negatives: int,
    seed: int,
) -> dict[str, tuple[str, ...]]:
    """Return up to `n_negatives` ids of documents for each query, drawn from the 10 that rank highest.

    BM25 and mean-pooled vectors propose 60 documents each, and exact MaxSim ranks these. Judged answers, and documents
    with more than 95 % of the score of the best answer, are left out before.

    Args:
        queries: Query ids.
        documents: Id to text of the documents to draw from.
        tokens: Their token vectors, in the same order.
        encoder: Model before training.
        excluded: Ids of documents that are no negatives, such as those that answer held-out queries.
        n_negatives: Maximum number of documents for each query.
        seed: Seed of the draw.
    """
    ids = list(documents)
    position_of = {id: position for position, id in enumerate(ids)}
    bm25 = BM25([words_of(text) for text in documents.values()])
    pooled = _pooled(tokens)
    is_allowed = np.array([id not in excluded for id in ids], np.bool_)
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
            is_negative = is_allowed[ranked] & ~np.isin(ranked, positives) & (-np.sort(-scores, kind="stable") <= limit)
            window = ranked[is_negative][: max(LAST_RANK, n_negatives)]
            chosen = rng.permutation(window)[:n_negatives].tolist()
            mined[query] = tuple(ids[position] for position in chosen)
    return mined


def training_rows(
    data: TrainingData,
    queries: Sequence[str],
    negatives: Mapping[str, Sequence[str]],
    *,
    n_negatives: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return a row for each training pair: `query`, `positive`, `negative_1`, …; all have the same keys.

    A batch must not hold a document twice, so a small corpus gets fewer negatives than wanted. Where the data has
    recorded scores, rows also have `scores`, those of the positive and each negative, and other queries are left out.

    Args:
        data: Texts, judgments and recorded scores.
        queries: Ids of the queries to train on.
        negatives: Query id to ids of documents that do not answer it.
        n_negatives: Number of negatives wanted for each pair.
        batch_size: Number of pairs in a batch.

    Raises:
        InputError: The pairs do not fill one batch.
    """
    if data.scores:
        queries = [query for query in queries if query in data.scores]
        n_negatives = min((len(data.scores[query]) - 1 for query in queries), default=0)
    else:
        n_answers = len({id for query in queries for id in data.positives[query]})
        while n_negatives and 2 * batch_size * (1 + n_negatives) > n_answers:
            n_negatives -= 1
        queries = [query for query in queries if not n_negatives or negatives.get(query)]
    rows = []
    for query in queries:
        row: dict[str, Any] = {"query": data.queries[query], "positive": data.documents[data.best_positive(query)]}
        # A query that has too few repeats them.
        for number, id in enumerate(islice(cycle(negatives.get(query, ())), n_negatives), start=1):
            row[f"negative_{number}"] = data.documents[id]
        if data.scores:
            row["scores"] = list(data.scores[query][: 1 + n_negatives])
        rows.append(row)
    if len({(row["query"], row["positive"]) for row in rows}) < batch_size:
        raise InputError(
            f"{data.name}: {len(rows)} pairs are left to train on, fewer than one batch of {batch_size}: "
            "judge more queries, or set a smaller batch_size"
        )
    return rows


def n_documents(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of documents in each row: the positive and its negatives."""
    return sum(name not in ("query", "scores") for name in rows[0])


def with_teacher(rows: Sequence[Mapping[str, Any]], teacher: str, device: str) -> list[dict[str, Any]]:
    """Return the rows with `scores`: what a cross-encoder says about the query and each document.

    Raises:
        InputError: The rows have no negatives, so there is nothing to compare.
    """
    from sentence_transformers import CrossEncoder

    width = n_documents(rows)
    if width < 2:
        raise InputError("a teacher needs at least one negative for each pair, and this corpus is too small for any")
    judge = CrossEncoder(teacher, device=device, local_files_only=Path(teacher).exists())
    pairs = [(row["query"], text) for row in rows for name, text in row.items() if name != "query"]
    scores = judge.predict(pairs, show_progress_bar=False).tolist()
    return [{**row, "scores": scores[i * width : (i + 1) * width]} for i, row in enumerate(rows)]


def texts_of(
    rows: Sequence[Mapping[str, Any]], queries: Iterable[str], documents: Iterable[str]
) -> dict[Literal["query", "document"], Sequence[str]]:
    """Return all texts that training reads, by task: those of the rows, and these."""
    texts = [text for row in rows for name, text in row.items() if name not in ("query", "scores")]
    return {"query": [*(row["query"] for row in rows), *queries], "document": [*texts, *documents]}


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
