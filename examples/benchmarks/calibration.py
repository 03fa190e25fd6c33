"""Measure which share of answerable and unanswerable queries passes a calibrated relevance threshold.

    python examples/benchmarks/calibration.py DATASET

The index holds the relevant documents of 100 queries and 350 other documents. The relevant documents of 100 further
queries are left out, so that nothing in the index answers them.
"""

from __future__ import annotations

import argparse
import random
import tempfile

import report

from langchain_manyvec import Calibration
from manyvec import Index
from manyvec.evaluation import load_beir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    dataset = load_beir(parser.parse_args().dataset)

    queries = sorted(dataset.qrels)
    shuffle = random.Random(0).shuffle
    shuffle(queries)
    evidence = {query: {id for id, grade in dataset.qrels[query].items() if grade > 0} for query in queries}
    absent = set().union(*(evidence[query] for query in queries[100:200]))
    answered = [query for query in queries[:100] if not evidence[query] & absent]
    kept = set().union(*(evidence[query] for query in answered))
    others = [document for document in dataset.documents if document.id not in absent | kept]
    shuffle(others)

    index = Index.create(tempfile.mkdtemp(), "minilm")
    index.add([d for d in dataset.documents if d.id in kept] + others[:350], show_progress=True)
    calibration = Calibration.measure(index)

    def passing(names: list[str], threshold: float) -> float:
        texts = [dataset.queries[name] for name in names]
        best = [hits[0].similarity for hits in index.search_many(texts, 1, lexical_weight=0)]
        return round(sum(calibration.relevance(similarity) >= threshold for similarity in best) / len(best), 2)

    rows = {
        threshold: {"unanswered": passing(queries[100:200], threshold), "answered": passing(answered, threshold)}
        for threshold in (0.25, 0.5, 0.75, 0.9, 0.95)
    }
    report.write(f"calibration-{dataset.name}", {"documents": index.count(), "share_let_through": rows})


if __name__ == "__main__":
    main()
