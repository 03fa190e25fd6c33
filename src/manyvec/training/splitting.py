"""Hold out queries whose documents no training pair has, and drop pairs that would leak what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manyvec.errors import InputError
from manyvec.evaluation import Dataset
from manyvec.training.data import TrainingData, normalised

# Two halves of 250: an interval of about ±.03 nDCG@10, and minutes to measure.
MAX_HELD_OUT = 500
MIN_HELD_OUT = 20


@dataclass(frozen=True)
class Split:
    """Query ids by what they are for.

    Attributes:
        train: Queries to train on.
        validation: Held-out queries that choose the step and the interpolation.
        report: Held-out queries that are measured once before and once after, and choose nothing.
    """

    train: list[str]
    validation: list[str]
    report: list[str]


def hold_out(data: TrainingData, fraction: float, seed: int) -> Split:
    """Split the queries, so that no document or group of a held-out query answers a training query.

    Groups are held out in random order until they are all that answers the wanted share of queries (at most 500). A
    query that is answered by both sides is used by neither.

    Raises:
        InputError: Too few queries would be held out, or none would be left to train on.
    """
    groups_of = {query: {data.group(id) for id in ids} for query, ids in data.positives.items()}
    groups = sorted(set().union(*groups_of.values()))
    wanted = min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(fraction * len(groups_of))))
    queries_of: dict[str, list[str]] = {}
    for query, its_groups in groups_of.items():
        for group in its_groups:
            queries_of.setdefault(group, []).append(query)
    rng = np.random.default_rng(seed)
    out: set[str] = set()
    held: list[str] = []
    for position in rng.permutation(len(groups)).tolist():
        if len(held) >= wanted:
            break
        out.add(groups[position])
        held += [query for query in queries_of[groups[position]] if groups_of[query] <= out]
    train = [query for query, its_groups in groups_of.items() if not its_groups & out]
    data.dropped["answered by a held-out and another document"] += len(groups_of) - len(train) - len(held)
    data.dropped = +data.dropped
    if len(held) < MIN_HELD_OUT or len(train) < len(held):
        raise InputError(
            f"{data.name}: {len(groups_of):,} queries about {len(groups):,} groups of documents leave {len(held)} "
            f"queries to hold out and {len(train)} to train on. At least {MIN_HELD_OUT} must be held out, by documents "
            "that answer no training query: judge more queries about more documents"
        )
    chosen = [held[position] for position in rng.permutation(len(held))[:MAX_HELD_OUT].tolist()]
    return Split(train, sorted(chosen[::2]), sorted(chosen[1::2]))


def drop_leaks(data: TrainingData, split: Split, unseen: Sequence[Dataset]) -> Split:
    """Return the split without training pairs that occur in a held-out or an unseen set; count them in the data.

    A pair leaks if its query, or a document that answers it, has the same words as one that is measured.
    """
    queries = {normalised(data.queries[query]) for query in (*split.validation, *split.report)}
    answers = {
        normalised(data.documents[id]) for query in (*split.validation, *split.report) for id in data.positives[query]
    }
    for dataset in unseen:
        queries |= {normalised(query) for query in dataset.queries.values()}
        judged = {id for grades in dataset.qrels.values() for id, grade in grades.items() if grade > 0}
        answers |= {normalised(document.text) for document in dataset.documents if document.id in judged}
    kept = [
        query
        for query in split.train
        if normalised(data.queries[query]) not in queries
        and not any(normalised(data.documents[id]) in answers for id in data.positives[query])
    ]
    if n_leaks := len(split.train) - len(kept):
        data.dropped["occurs in a held-out or unseen set"] += n_leaks
    if not kept:
        raise InputError(f"{data.name}: every training pair occurs in a held-out or unseen set")
    return Split(kept, split.validation, split.report)
