"""Evaluate rankings: read data sets in BEIR layout, and compute nDCG, Recall, MRR and Success at k.

A run maps each query id to the document ids that a retriever returned, best first. The order itself is measured, so
equal scores stay as the retriever ordered them. A query that is missing in the run counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from manyvec.errors import InputError
from manyvec.files.records import read_jsonl, read_jsonl_documents
from manyvec.types import Document

__all__ = ["DEFAULT_MEASURES", "Dataset", "Qrels", "Run", "evaluate", "load_beir"]

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Run: TypeAlias = Mapping[str, Sequence[str]]
_T = TypeVar("_T")

DEFAULT_MEASURES = ("nDCG@10", "Recall@10", "MRR@10", "Success@10")
# Shares of BM25 to choose from.
WEIGHTS = (0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1)


@dataclass(frozen=True)
class Dataset:
    """Documents, queries, and judgments of which documents are relevant to which query.

    Attributes:
        name: Name of the folder.
        documents: Documents. Their text is the title, a space and the text; the title is also in the metadata.
        queries: Query id to query string, only queries with at least one positive judgment.
        qrels: Query id to document id to grade, for the same queries. Grades above 0 are positive and serve as gains.
    """

    name: str
    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load_beir(path: str | Path, split: str = "test") -> Dataset:
    """Read a folder in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    The two `.jsonl` files may be gzipped (`.jsonl.gz`). If an id, or a pair in the qrels, occurs twice, the last one
    counts. Judgments of documents that are missing in the corpus are kept and can never be found.

    Args:
        path: The folder.
        split: Name of the judgments to read: `train`, `dev` or `test`.

    Raises:
        InputError: A file is missing, a line cannot be read (the message names both), or a judged query has no text.
    """
    folder = Path(path)
    grades = _read_qrels(folder, split)
    qrels = {query: judged for query, judged in grades.items() if max(judged.values()) > 0}
    texts = {query: text for query, text in _read_queries(folder) if text and query in qrels}
    if missing := qrels.keys() - texts.keys():
        raise InputError(
            f"{folder}: {len(missing)} of {len(qrels)} queries judged in qrels/{split}.tsv have no text in "
            f"queries.jsonl, such as {min(missing)!r}"
        )
    documents = {document.id: document for document in read_jsonl_documents(_find(folder, "corpus"))}
    return Dataset(folder.resolve().name, list(documents.values()), texts, qrels)


def evaluate(qrels: Qrels, run: Run, measures: Iterable[str] = DEFAULT_MEASURES) -> dict[str, float]:
    """Return the mean of each measure over the queries with at least one positive judgment.

    Args:
        qrels: Query id to document id to grade. Grades above 0 are positive; documents without a grade are not.
        run: Query id to document ids, best first. Queries without judgments are ignored.
        measures: `nDCG@k` (gain = grade, as in trec_eval), `Recall@k`, `MRR@k` or `Success@k`.

    Returns:
        Measure to mean in [0, 1], in the order of `measures`.

    Raises:
        InputError: A measure is unknown, there is no positive judgment, or a document occurs twice for one query.
    """
    parsed = {name: _parse(name) for name in measures}
    grades = {query: {d: grade for d, grade in judged.items() if grade > 0} for query, judged in qrels.items()}
    grades = {query: positive for query, positive in grades.items() if positive}
    if not grades:
        raise InputError("no query has a positive judgment, so there is nothing to measure")
    totals = dict.fromkeys(parsed, 0.0)
    for query, positive in grades.items():
        ranking = run.get(query, ())
        if len(set(ranking)) < len(ranking):
            raise InputError(f"query {query!r}: a document occurs twice in its ranking, and would count twice")
        best = sorted(positive.values(), reverse=True)
        for name, (measure, k) in parsed.items():
            gains = [positive.get(document, 0) for document in ranking[:k]]
            totals[name] += measure(gains + [0] * (k - len(gains)), best)
    return {name: total / len(grades) for name, total in totals.items()}


@dataclass(frozen=True)
class WeightChoice:
    """A share of BM25 that was chosen on one half of the queries and measured on the other.

    Attributes:
        lexical_weight: Share of BM25 to search with; 0 if a mix was not better than MaxSim on the other half.
        best: Share that was best on the first half.
        chosen_on: Weight to nDCG@10 on the first half: the first query, the third, and so on.
        measured_on: Weight to nDCG@10 on the other half.
    """

    lexical_weight: float
    best: float
    chosen_on: dict[float, float]
    measured_on: dict[float, float]


def choose_weight(qrels: Qrels, runs: Mapping[float, Run]) -> WeightChoice:
    """Choose the share of BM25 to search with by judged queries.

    Queries are taken in the order of their ids, so that the halves do not depend on the order of the files.

    Args:
        qrels: Judgments as for `evaluate`.
        runs: Run for each weight, such as from `Index.rank_mixed`; one of them for the weight 0.

    Raises:
        InputError: Fewer than two queries have a positive judgment, or there is no run for the weight 0.
    """
    if 0 not in runs:
        raise InputError("the runs must include one for the weight 0, MaxSim alone, to compare with")
    judged = sorted(query for query, grades in qrels.items() if max(grades.values(), default=0) > 0)
    if len(judged) < 2:
        raise InputError(f"choosing a weight needs two judged queries or more, got {len(judged)}")
    measure = "nDCG@10"
    first, other = (
        {weight: evaluate({q: qrels[q] for q in half}, run, [measure])[measure] for weight, run in sorted(runs.items())}
        for half in (judged[::2], judged[1::2])
    )
    # Of equal ones the smallest.
    best = max(first, key=lambda weight: first[weight])
    return WeightChoice(best if other[best] > other[0] else 0, best, first, other)


# Arguments for one query: the gains of ranks 1 to k, 0 where nothing relevant was found; all positive grades, highest
# first.
_Measure: TypeAlias = Callable[[Sequence[int], Sequence[int]], float]


def _ndcg(gains: Sequence[int], best: Sequence[int]) -> float:
    return _dcg(gains) / _dcg(best[: len(gains)])


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _recall(gains: Sequence[int], best: Sequence[int]) -> float:
    return sum(gain > 0 for gain in gains) / len(best)


def _mrr(gains: Sequence[int], _best: Sequence[int]) -> float:
    return next((1 / rank for rank, gain in enumerate(gains, start=1) if gain), 0.0)


def _success(gains: Sequence[int], _best: Sequence[int]) -> float:
    return float(any(gains))


_MEASURES: dict[str, _Measure] = {"nDCG": _ndcg, "Recall": _recall, "MRR": _mrr, "Success": _success}


def _parse(name: str) -> tuple[_Measure, int]:
    measure, _, k = name.partition("@")
    if measure not in _MEASURES or not k.isdecimal() or int(k) < 1:
        raise InputError(
            f"unknown measure {name!r}; the measures are {', '.join(f'{m}@k' for m in _MEASURES)}, with k from 1"
        )
    return _MEASURES[measure], int(k)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.exists():
            return path
    raise InputError(f"{folder} is not a data set in BEIR layout: it has no {name}.jsonl or {name}.jsonl.gz")


def _read_queries(folder: Path) -> Iterator[tuple[str, str]]:
    for where, record in read_jsonl(_find(folder, "queries")):
        try:
            yield record["_id"], record["text"]
        except KeyError as error:
            raise InputError(f"{where}: {error} is missing") from error


def _read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        splits = ", ".join(sorted(file.stem for file in folder.glob("qrels/*.tsv"))) or "none"
        raise InputError(f"{folder} has no qrels/{split}.tsv; splits there: {splits}")
    grades: dict[str, dict[str, int]] = {}
    # The first line is a header. Only tabs separate fields: ids may contain spaces.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[1:], start=2):
        if not line.strip():
            continue
        try:
            query, document, grade = line.rstrip("\r").split("\t")
            grades.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: expected a query id, a document id and an integer, separated by tabs, "
                f"got {line!r}"
            ) from error
    return grades
