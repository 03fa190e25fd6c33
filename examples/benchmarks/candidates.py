"""What the centroid lists find, against scoring everything: overlap, nDCG@10, and time after encoding.

    python examples/benchmarks/candidates.py DATASET --db DIR

DIR is an index of the data set, made by `manyvec eval DATASET --db DIR`; its lists are made here if it has none.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import report

from manyvec import Index, load_encoder
from manyvec.candidates import Auto, Candidates, Exhaustive
from manyvec.evaluation import evaluate, load_beir


class Encoded:
    """The encoder, its answers to the data set's queries known beforehand: only the search is timed."""

    def __init__(self, queries: list[str]) -> None:
        self._encoder = load_encoder("minilm", device="cpu")
        self.name, self.dim, self.fingerprint = self._encoder.name, self._encoder.dim, self._encoder.fingerprint
        self.encode_documents = self._encoder.encode_documents
        tokens = self._encoder.encode_queries(queries)
        self._known = {query: tokens.select([i]) for i, query in enumerate(queries)}

    def encode_queries(self, queries):
        return self._known[queries[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--db", required=True)
    options = parser.parse_args()

    dataset = load_beir(options.dataset)
    queries = list(dataset.queries.values())
    encoder = Encoded(queries)
    started = time.perf_counter()
    Index.open(options.db, encoder).optimize(show_progress=True)
    built = time.perf_counter() - started

    def opened(candidates: Candidates) -> Index:
        index = Index.open(options.db, encoder, cache_bytes=8 * 2**30)
        index.candidates = candidates
        return index

    lists, everything = opened(Auto()), opened(Exhaustive())
    found = {name: [[h.id for h in index.search(q)] for q in queries] for name, index in
             (("lists", lists), ("exhaustive", everything))}  # fmt: skip
    overlap = [len({*a} & {*b}) / len(b) for a, b in zip(found["lists"], found["exhaustive"], strict=True)]
    milliseconds = []
    for query in queries[:15]:
        contenders = {"lists": partial(lists.search, query), "exhaustive": partial(everything.search, query)}
        milliseconds.append(report.medians(contenders, rounds=3))
    typical = {name: float(np.median([row[name] for row in milliseconds])) for name in ("lists", "exhaustive")}
    info = lists.info()
    ndcg = {
        name: round(evaluate(dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)), ["nDCG@10"])["nDCG@10"], 4)
        for name, ranked in found.items()
    }
    report.write(
        f"candidates-{dataset.name}",
        {
            "documents": info.documents,
            "tokens": info.tokens,
            "dim": info.dim,
            "overlap_of_the_top_10": round(float(np.mean(overlap)), 4),
            "nDCG@10": ndcg,
            "milliseconds_a_query": typical,
            "times_faster": round(typical["exhaustive"] / typical["lists"], 1),
            "seconds_to_optimize": round(built, 1),
        },
    )


if __name__ == "__main__":
    main()
