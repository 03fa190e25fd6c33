"""Read judged queries for training, hold some out, and drop pairs that would leak what is measured."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from manyvec.errors import InputError
from manyvec.evaluation import Dataset, load_beir
from manyvec.files.records import read_jsonl
from manyvec.index import Index
from manyvec.types import Document

Judgments: TypeAlias = Mapping[str, Iterable[str]]
_MARKS = re.compile(r"\W+")
_PAGE = 1000
# The gain of a projection on SQuAD had an interval of ±.014 nDCG@10 on 250 queries and of ±.011 on 500.
MAX_VALIDATION, MAX_REPORT = 250, 500
MIN_HELD_OUT = 20


@dataclass
class TrainingData:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: Name for messages and the report.
        documents: Document id to text.
        queries: Query id to query.
        positives: Query id to document id to grade above 0, for every query.
        groups: Document id to group. Documents of a group are on the same side of a split.
        negatives: Query id to ids of documents that do not answer it, where the data has them.
        scores: Query id to a teacher's scores of its best positive and of its negatives, where the data has them.
        dropped: Reason to number of queries or judgments that cannot be used.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    positives: dict[str, dict[str, int]]
    groups: dict[str, str] = field(default_factory=dict)
    negatives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def best_positive(self, query: str) -> str:
        """Return the id of the document with the highest grade; of equal grades the first id."""
        return min(self.positives[query].items(), key=lambda item: (-item[1], item[0]))[0]

    def group(self, document: str) -> str:
        """Return the group of a document: by default all documents with the same normalised text."""
        return self.groups.get(document) or normalised(self.documents[document])

    def digest(self) -> str:
        """Return a hash of all that training reads."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.documents, self.queries, self.positives, self.groups, self.negatives, self.scores):
            digest.update(repr(sorted(part.items())).encode())
        return digest.hexdigest()


def read_training(train: str | Path | Index | TrainingData, judged: Judgments | None = None) -> TrainingData:
    """Read training data, and drop what cannot be used.

    Args:
        train: Folder in BEIR layout with `qrels/train.tsv`; file of JSON lines (see `read_pairs`); an index with
            `judged`; or training data that was made otherwise.
        judged: Query to ids of the documents that answer it, for an index.

    Raises:
        InputError: The data cannot be read, or nothing usable is left.
    """
    if isinstance(train, TrainingData):
        data = train
    elif isinstance(train, Index):
        data = _from_index(train, judged or {})
    elif judged is not None:
        raise InputError("judged belongs to an index; a folder or file holds its own judgments")
    elif Path(train).is_dir():
        data = _from_beir(Path(train))
    elif Path(train).is_file():
        data = read_pairs(Path(train))
    else:
        raise InputError(f"{train}: there is no such folder or file to train on")
    return _usable(data)


def read_pairs(path: Path) -> TrainingData:
    """Read a file of JSON lines: `query` and `positive`, optionally `negatives`, `scores` and `group`.

    `negatives` is a list of strings (`negative` is one string). `scores` are those of a teacher for the positive and
    each negative, in this order. Pairs of one `group` stay on one side of the split. The file may be gzipped.

    Raises:
        InputError: A line cannot be read; the message names the file and the line.
    """
    data = TrainingData(path.name, {}, {}, {})
    for where, record in read_jsonl(path):
        query, positive, negatives, scores = _checked_pair(where, record)
        if not query.strip() or not positive.strip():
            data.dropped["empty query or document"] += 1
            continue
        # Documents with the same text are one document, so that none can be its own negative.
        ids = [normalised(text) for text in (positive, *negatives)]
        data.documents.update(zip(ids, (positive, *negatives), strict=True))
        key = normalised(query)
        data.queries.setdefault(key, query)
        if ids[0] in data.positives.setdefault(key, {}):
            data.dropped["duplicate pair"] += 1
        data.positives[key][ids[0]] = 1
        if record.get("group") is not None:
            data.groups[ids[0]] = str(record["group"])
        if negatives and key not in data.negatives:
            data.negatives[key] = tuple(ids[1:])
            if scores is not None:
                data.scores[key] = scores
    return data


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

    Groups are held out in random order until they are all that answers the wanted share of queries (at most 750). A
    query that is answered by both sides is used by neither. Half of the queries, at most 250, are for validation.

    Raises:
        InputError: Too few queries would be held out, or none would be left to train on.
    """
    groups_of = {query: {data.group(id) for id in ids} for query, ids in data.positives.items()}
    groups = sorted(set().union(*groups_of.values()))
    wanted = min(MAX_VALIDATION + MAX_REPORT, max(MIN_HELD_OUT, round(fraction * len(groups_of))))
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
    chosen = [held[position] for position in rng.permutation(len(held))[: MAX_VALIDATION + MAX_REPORT].tolist()]
    validation = chosen[::2][:MAX_VALIDATION]
    return Split(train, sorted(validation), sorted(set(chosen) - set(validation)))


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


def normalised(text: str) -> str:
    """Return the words of a string in lower case: strings with the same words in the same order count as equal."""
    return _MARKS.sub(" ", text.casefold()).strip() or text.strip()


def _checked_pair(where: str, record: Mapping[str, Any]) -> tuple[str, str, list[str], tuple[float, ...] | None]:
    query, positive = record.get("query"), record.get("positive")
    if not isinstance(query, str) or not isinstance(positive, str):
        raise InputError(f"{where}: a pair needs the strings 'query' and 'positive', got the keys {sorted(record)}")
    negatives = record.get("negatives", [record["negative"]] if "negative" in record else [])
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise InputError(f"{where}: 'negatives' must be a list of strings")
    scores = record.get("scores")
    if scores is None:
        return query, positive, negatives, None
    if not isinstance(scores, list) or len(scores) != 1 + len(negatives) or not negatives:
        raise InputError(f"{where}: 'scores' must be a list with one number for the positive and one for each negative")
    return query, positive, negatives, tuple(float(score) for score in scores)


def _from_beir(folder: Path) -> TrainingData:
    data = load_beir(folder, "train")
    documents = {document.id: document.text for document in data.documents}
    groups = {document.id: str(group) for document in data.documents if (group := document.metadata.get("group"))}
    positives = {
        query: {id: grade for id, grade in judged.items() if grade > 0} for query, judged in data.qrels.items()
    }
    # Documents that people judged as not relevant are the best negatives there are.
    negatives = {
        query: tuple(sorted(id for id, grade in judged.items() if grade <= 0 and id in documents))
        for query, judged in data.qrels.items()
    }
    return TrainingData(
        data.name, documents, dict(data.queries), positives, groups, {q: ids for q, ids in negatives.items() if ids}
    )


def documents_of(index: Index) -> Iterator[Document]:
    """Yield the documents of an index that have text, by id."""
    ids = sorted(index.ids())
    for start in range(0, len(ids), _PAGE):
        yield from (document for document in index.get(ids[start : start + _PAGE]) if document.text)


def _from_index(index: Index, judged: Judgments) -> TrainingData:
    documents = {document.id: document.text for document in documents_of(index)}
    positives = {query: dict.fromkeys(found, 1) for query, found in judged.items()}
    return TrainingData(str(index.uri), documents, {query: query for query in judged}, positives)


def _usable(data: TrainingData) -> TrainingData:
    """Drop queries that are empty, equal to another, or answered by no document that exists."""
    seen: dict[str, str] = {}
    for query in list(data.queries):
        known = {id: grade for id, grade in data.positives[query].items() if id in data.documents}
        data.dropped["judged document is missing"] += len(data.positives[query]) - len(known)
        words = normalised(data.queries[query])
        if words in seen:
            # The same question asked twice: what answers one answers the other.
            data.positives[seen[words]] |= known
        reason = (
            "empty query or document"
            if not words
            else "duplicate query"
            if words in seen
            else "no judged document exists"
            if not known
            else None
        )
        if reason is None:
            seen[words] = query
            data.positives[query] = known
            continue
        data.dropped[reason] += 1
        for part in (data.queries, data.positives, data.negatives, data.scores):
            part.pop(query, None)
    data.dropped = +data.dropped
    if not data.queries:
        counts = ", ".join(f"{n} × {reason}" for reason, n in data.dropped.items()) or "no query"
        raise InputError(f"{data.name}: nothing to train on ({counts})")
    return data
