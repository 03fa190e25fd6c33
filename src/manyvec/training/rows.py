"""Turn training pairs into rows of texts for the trainer, with hard negatives and a teacher's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

from manyvec.errors import InputError
from manyvec.training.data import TrainingData


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
