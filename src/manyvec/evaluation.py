"""How good a ranking is: data sets in BEIR layout, and nDCG, Recall, MRR and Success at k over all their queries.

A run is what a retriever answered: for each query id the document ids found, best first. The order itself is measured,
so equal scores stay as the retriever ordered them. A query that the run lacks found nothing and counts as zero.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from manyvec.errors import InputError
from manyvec.types import Document

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Run: TypeAlias = Mapping[str, Sequence[str]]
_T = TypeVar("_T")

DEFAULT_MEASURES = ("nDCG@10", "Recall@10", "MRR@10", "Success@10")


@dataclass(frozen=True)
class Dataset:
    """Documents, queries and which of them belong together.

    Attributes:
        name: of the folder.
        documents: the text is the title and the text, a space between; the title is also in the metadata.
        queries: id to text, only those with at least one positive judgment.
        qrels: query id to document id to grade, for the same queries; above 0 is positive, as a grade a gain.
        n_blank: documents left out because they have neither title nor text.
    """

    name: str
    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    n_blank: int = 0


def load_beir(path: str | Path, split: str = "test") -> Dataset:
    """Read a folder in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    The two `.jsonl` files may be gzipped (`.jsonl.gz`). Where an id, or a pair in the qrels, comes twice, the last
    one counts. Judgments of documents that the corpus lacks are kept: nobody can find these.

    Raises:
        InputError: a file is missing, a line cannot be read (the message names both), or a judged query has no text.
    """
    folder = Path(path)
    grades = _read_qrels(folder, split)
    qrels = {query: judged for query, judged in grades.items() if max(judged.values()) > 0}
    texts = {query: text for query, text in _read_jsonl(folder, "queries", _query) if text and query in qrels}
    if missing := qrels.keys() - texts.keys():
        raise InputError(
            f"{folder}: {len(missing)} of {len(qrels)} queries judged in qrels/{split}.tsv have no text in "
            f"queries.jsonl, such as {min(missing)!r}"
        )
    corpus = list(_read_jsonl(folder, "corpus", _document))
    documents = {document.id: document for document in corpus if document is not None}
    return Dataset(folder.resolve().name, list(documents.values()), texts, qrels, n_blank=corpus.count(None))


def evaluate(qrels: Qrels, run: Run, measures: Iterable[str] = DEFAULT_MEASURES) -> dict[str, float]:
    """Mean of each measure over the queries with at least one positive judgment.

    Args:
        qrels: query id to document id to grade. Above 0 is positive; documents without a grade are not.
        run: query id to document ids, best first. Queries without judgments are ignored.
        measures: `nDCG@k` (gain = grade, as trec_eval has it), `Recall@k`, `MRR@k` or `Success@k`.

    Returns:
        Measure to mean in [0, 1], in the order asked for.

    Raises:
        InputError: an unknown measure, no positive judgment at all, or a document found twice for one query.
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
            raise InputError(f"query {query!r}: a document comes twice in its ranking, and would count twice")
        best = sorted(positive.values(), reverse=True)
        for name, (measure, k) in parsed.items():
            found = [positive.get(document, 0) for document in ranking[:k]]
            totals[name] += measure(found + [0] * (k - len(found)), best)
    return {name: total / len(grades) for name, total in totals.items()}


# For one query: the gains of ranks 1 to k, 0 where nothing was found or wanted; and all positive grades, highest first.
_Measure: TypeAlias = Callable[[Sequence[int], Sequence[int]], float]


def _ndcg(found: Sequence[int], best: Sequence[int]) -> float:
    return _dcg(found) / _dcg(best[: len(found)])


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _recall(found: Sequence[int], best: Sequence[int]) -> float:
    return sum(gain > 0 for gain in found) / len(best)


def _mrr(found: Sequence[int], _best: Sequence[int]) -> float:
    return next((1 / rank for rank, gain in enumerate(found, start=1) if gain), 0.0)


def _success(found: Sequence[int], _best: Sequence[int]) -> float:
    return float(any(found))


_MEASURES: dict[str, _Measure] = {"nDCG": _ndcg, "Recall": _recall, "MRR": _mrr, "Success": _success}


def _parse(name: str) -> tuple[_Measure, int]:
    measure, _, k = name.partition("@")
    if measure not in _MEASURES or not k.isdecimal() or int(k) < 1:
        raise InputError(f"unknown measure {name!r}; known are {', '.join(f'{m}@k' for m in _MEASURES)}, with k from 1")
    return _MEASURES[measure], int(k)


def _document(record: dict[str, Any]) -> Document | None:
    """The document of a line of the corpus; None where it is blank."""
    title, text = (record.get("title") or "").strip(), (record.get("text") or "").strip()
    if not (title or text):
        return None
    metadata = record.get("metadata") or {}
    return Document(record["_id"], f"{title} {text}".strip(), {**metadata, "title": title} if title else metadata)


def _query(record: dict[str, Any]) -> tuple[str, str]:
    return record["_id"], record["text"]


def _read_jsonl(folder: Path, name: str, read: Callable[[dict[str, Any]], _T]) -> Iterator[_T]:
    """Read each line that is not blank of `name`.jsonl, or else of `name`.jsonl.gz."""
    path = folder / f"{name}.jsonl"
    packed = folder / f"{name}.jsonl.gz"
    if not path.exists() and not packed.exists():
        raise InputError(f"{folder} is not a data set in BEIR layout: it has no {name}.jsonl or {name}.jsonl.gz")
    source = path if path.exists() else packed
    try:
        # Bytes, so that a line that is not UTF-8 is reported like one that is not JSON.
        with path.open("rb") if source == path else gzip.open(packed) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield _read_line(line, read, f"{source}, line {number}")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{source} is damaged: {error}") from error


def _read_line(line: bytes, read: Callable[[dict[str, Any]], _T], where: str) -> _T:
    try:
        return read(json.loads(line))
    except KeyError as error:
        raise InputError(f"{where}: {error} is missing") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{where}: expected an object with texts under _id, title and text, got {line!r:.80}"
        ) from error


def _read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        splits = ", ".join(sorted(file.stem for file in folder.glob("qrels/*.tsv"))) or "none"
        raise InputError(f"{folder} has no qrels/{split}.tsv; splits there: {splits}")
    grades: dict[str, dict[str, int]] = {}
    # The first line is a header. Fields are parted by tabs alone: ids may hold spaces.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[1:], start=2):
        if not line.strip():
            continue
        try:
            query, document, grade = line.rstrip("\r").split("\t")
            grades.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: expected a query id, a document id and a whole number with tabs between, "
                f"got {line!r}"
            ) from error
    return grades
