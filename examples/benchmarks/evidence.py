"""Evidence on real data: is it right, what does it cost, and does the best passage hold the answer?

    python examples/benchmarks/evidence.py cost DATA_FOLDER VECTORS scifact
    python examples/benchmarks/evidence.py passages DATA_FOLDER VECTORS squad-dev

VECTORS are those of `encoded.py`. `passages` takes each test query's judged document, whose answers
`metadata.answers` in queries.jsonl names, and compares its best passage with what BM25's weights of the query's words
choose: the best window of that length that begins and ends with a word, and the best passage with the same borders.
Every fifth query is the part that the method was chosen on. "without sentence marks" means: the marks that end
sentences are replaced by spaces, and the vectors of their tokens are left out.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import report
from encoded import Encoded, Known, load, with_spans

from manyvec import Index, load_encoder
from manyvec.evaluation import Dataset
from manyvec.evidence.passages import maxsim_of_ranges
from manyvec.evidence.text import Evidence, explain
from manyvec.evidence.words import sentences, words
from manyvec.tools.bm25 import words_of

_MARKS = re.compile(r"[.!?…]+(?=[\"'”’)\]]*(?:\s|$))")


def cost(encoded: Encoded) -> None:
    dataset, encoder = encoded.dataset, Known(with_spans(encoded))
    minilm = load_encoder("minilm", device="cpu")
    queries = list(dataset.queries.values())[:300]
    index = Index.create(tempfile.mkdtemp(), encoder)
    index.add(dataset.documents, show_progress=True)
    index.optimize()
    hits = [hit for query in queries for hit in index.search(query, evidence=True)]
    matches = [(hit, match) for hit in hits for match in hit.evidence.words]
    inside = [m.span is not None and hit.text[slice(*m.span)] == m.text and m.text.strip() != "" for hit, m in matches]
    sums = [sum(m.share for m in hit.evidence.words) + hit.evidence.unattributed for hit in hits]
    again = {hit.id: minilm.encode_documents([hit.text]) for hit in hits[::100]}
    snapshot = index._store.snapshot()
    stored_rows = [row.row_id for row in snapshot.find(list(again)).values()]
    stored = {row["id"]: row["spans"] for row in snapshot.texts(stored_rows, spans=True)}
    milliseconds = []
    for query in queries[:60]:
        contenders = {"without": partial(index.search, query), "with": partial(index.search, query, evidence=True)}
        milliseconds.append(report.medians(contenders, rounds=5))
    typical = {name: round(float(np.median([row[name] for row in milliseconds])), 2) for name in ("without", "with")}
    report.write(
        f"evidence-{dataset.name}",
        {
            "documents": len(dataset.documents),
            "hits": len(hits),
            "words": len(matches),
            "of_these_matched_text_lies_in_the_document": sum(inside),
            "largest_difference_of_shares_and_score": max(abs(s - h.score) for s, h in zip(sums, hits, strict=True)),
            "documents_encoded_again": len(again),
            "of_these_with_the_same_spans": sum(np.array_equal(again[i].spans, stored[i]) for i in again),
            "milliseconds_a_search_after_encoding": typical,
            "times_the_cost": round(typical["with"] / typical["without"], 2),
        },
    )


def passages(encoded: Encoded, folder: Path) -> None:
    dataset = encoded.dataset
    answers = {row["_id"]: row["metadata"]["answers"] for row in map(json.loads, (folder / "queries.jsonl").open())}
    rarity = _rarity(dataset)
    judged = {query: next(id for id, grade in grades.items() if grade > 0) for query, grades in dataset.qrels.items()}
    texts = {d.id: d.text for d in dataset.documents if d.id in set(judged.values())}
    encoder = Known(with_spans(encoded))
    results = {}
    for n_chars, has_marks in itertools.product((200, 300, 600), (True, False)):
        counts: dict[str, Counter[str]] = {"part": Counter(), "all": Counter()}
        for i, (query, text) in enumerate(dataset.queries.items()):
            document = texts[judged[query]]
            by_maxsim = explain(text, encoder.encode_queries([text]), [document], encoder.encode_documents([document]))[
                0
            ]
            answer = max(answers[query], key=len)
            if not has_marks:
                by_maxsim, document, answer = _unmarked(by_maxsim), _without_marks(document), _without_marks(answer)
            by_words = _by_words(text, document, rarity)
            passage = by_maxsim.best_passage(n_chars)
            words_passage = by_words.best_passage(n_chars)
            found = {
                "best_passage": (passage.start, passage.end),
                "bm25_window": _best_window(by_words, passage.end - passage.start),
                "bm25_passage": (words_passage.start, words_passage.end),
            }
            for part in ("part", "all") if i % 5 == 0 else ("all",):
                counts[part] += Counter({"queries": 1})
                for name, span in found.items():
                    counts[part] += _judged(name, span, document, answer)
        results[f"{n_chars} characters" + ("" if has_marks else ", without sentence marks")] = {
            part: {
                name: round(n / count["queries"], 4) if name != "queries" else n for name, n in sorted(count.items())
            }
            for part, count in counts.items()
        }
    report.write(f"passages-{dataset.name}", results)


def _without_marks(text: str) -> str:
    return _MARKS.sub(lambda marks: " " * len(marks.group()), text)


def _unmarked(evidence: Evidence) -> Evidence:
    text = _without_marks(evidence.text)
    kept = np.array([not text[start].isspace() for start in evidence.starts.tolist()])
    return replace(evidence, text=text, similarities=evidence.similarities[:, kept], starts=evidence.starts[kept])


def _judged(name: str, span: tuple[int, int], document: str, answer: str) -> Counter[str]:
    start, end = span
    positions = [(m.start(), m.end()) for m in re.finditer(re.escape(answer), document)]
    marked = [
        (a, b) for a, b in sentences(document).tolist() if any(a < last and b > first for first, last in positions)
    ]
    return Counter(
        {
            f"{name} overlaps the answer's sentence": int(any(start < b and end > a for a, b in marked)),
            f"{name} holds the answer": int(any(start <= a and b <= end for a, b in positions)),
            f"{name} characters": end - start,
        }
    )


def _rarity(dataset: Dataset) -> dict[str, float]:
    """BM25's weight of each word."""
    n_found = Counter(word for document in dataset.documents for word in set(words_of(document.text)))
    n = len(dataset.documents)
    return {word: float(np.log1p((n - found + 0.5) / (found + 0.5))) for word, found in n_found.items()}


def _by_words(query: str, document: str, rarity: dict[str, float]) -> Evidence:
    """Evidence as BM25 has it: a word is as similar to its equal as it is rare, and to no other."""
    bounds = words(document)
    stems = [(words_of(document[start:end]) or [""])[0] for start, end in bounds.tolist()]
    wanted = list(dict.fromkeys(words_of(query)))
    similarities = np.array([[rarity.get(w, 0) * (w == stem) for stem in stems] for w in wanted], np.float32)
    by_words = similarities.reshape(len(wanted), len(stems))
    return Evidence(text=document, words=(), unattributed=0, score=0, similarities=by_words, starts=bounds[:, 0])


def _best_window(evidence: Evidence, n_chars: int) -> tuple[int, int]:
    """Of all runs of whole words the best; the middle one where several are."""
    starts, ends = words(evidence.text).T
    last = np.searchsorted(ends, starts + n_chars, side="right") - 1
    runs = np.stack([starts, ends[last]], axis=1)[last >= np.arange(len(starts))]
    first, last = np.searchsorted(evidence.starts, runs.T)
    scores = maxsim_of_ranges(evidence.similarities, first, last)
    best = np.flatnonzero(scores >= scores.max() - 1e-6)
    return tuple(runs[best[len(best) // 2]].tolist())


def main() -> None:
    what, data, vectors, name = sys.argv[1:]
    encoded = load(data, vectors, name)
    if what == "cost":
        cost(encoded)
    else:
        passages(encoded, Path(data) / name)


if __name__ == "__main__":
    main()
