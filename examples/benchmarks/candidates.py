"""What a search finds by itself, against scoring everything: overlap, nDCG@10, and time, query encoding left out.

    python examples/benchmarks/candidates.py DATA_FOLDER VECTORS SET [--dim 128] [--db DIR]

The index is made from token vectors that `encoded.py` keeps, in DIR if given, where it is found again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial

import numpy as np
import report
from encoded import Known, load

from manyvec import Index
from manyvec.candidates import Auto, Candidates, Exhaustive
from manyvec.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("set")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--db", default=None)
    parser.add_argument("--timed", type=int, default=30, help="queries that are timed")
    options = parser.parse_args()

    encoded = load(options.data, options.vectors, options.set)
    encoded = encoded.projected(options.dim or encoded.documents.dim)
    dataset, encoder = encoded.dataset, Known(encoded)
    queries = list(dataset.queries.values())
    uri = options.db or tempfile.mkdtemp()
    index = Index.create(uri, encoder, exist_ok=True)
    index.add(dataset.documents, show_progress=True)
    started = time.perf_counter()
    index.optimize(show_progress=True)
    built = time.perf_counter() - started

    def opened(candidates: Candidates) -> Index:
        index = Index.open(uri, encoder, cache_bytes=8 * 2**30)
        index.candidates = candidates
        return index

    contenders = {"default": opened(Auto()), "exhaustive": opened(Exhaustive())}
    found = {name: [[h.id for h in index.search(q)] for q in queries] for name, index in contenders.items()}
    overlap = [len({*a} & {*b}) / len(b) for a, b in zip(found["default"], found["exhaustive"], strict=True)]
    rows = [
        report.medians({name: partial(index.search, query) for name, index in contenders.items()}, rounds=3)
        for query in queries[:: max(1, len(queries) // options.timed)][: options.timed]
    ]
    typical = {name: round(float(np.median([row[name] for row in rows])), 2) for name in contenders}
    info = contenders["default"].info()
    ndcg = {
        name: round(evaluate(dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)), ["nDCG@10"])["nDCG@10"], 4)
        for name, ranked in found.items()
    }
    report.write(
        f"candidates-{dataset.name}-{info.dim}",
        {
            "documents": info.documents,
            "tokens": info.tokens,
            "dim": info.dim,
            "overlap_of_the_top_10": round(float(np.mean(overlap)), 4),
            "nDCG@10": ndcg,
            "milliseconds_a_query": typical,
            "times_faster": round(typical["exhaustive"] / typical["default"], 1),
            "seconds_to_optimize": round(built, 1),
        },
    )


if __name__ == "__main__":
    main()
