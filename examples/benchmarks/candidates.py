"""Compare the default search to scoring every document: overlap, nDCG@10 and time without query encoding.

    python examples/benchmarks/candidates.py DATA_FOLDER VECTORS --db DIR [--sets SET ...] [--dim 128]

Builds indexes in DIR from token vectors that `encoded.py` stored, or reuses those that are there; without --sets, for
all sets that it has encoded. By default small indexes are scored exhaustively, so their overlap is 1.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report
from encoded import Encoded, Known, load

from manyvec import Index
from manyvec.candidates import Candidates, Exhaustive
from manyvec.evaluation import evaluate


def measured(encoded: Encoded, uri: Path, n_timed: int) -> dict[str, Any]:
    dataset, encoder = encoded.dataset, Known(encoded)
    index = Index.create(uri, encoder, exist_ok=True)
    index.add(dataset.documents, show_progress=True)
    started = time.perf_counter()
    index.optimize(show_progress=True)
    built = time.perf_counter() - started

    def opened(candidates: Candidates | None = None) -> Index:
        index = Index.open(uri, encoder, cache_bytes=8 * 2**30)
        index.candidates = candidates or index.candidates
        return index

    contenders = {"default": opened(), "exhaustive": opened(Exhaustive())}
    queries = list(dataset.queries.values())
    found = {name: [[h.id for h in index.search(q)] for q in queries] for name, index in contenders.items()}
    overlap = [len({*a} & {*b}) / len(b) for a, b in zip(found["default"], found["exhaustive"], strict=True)]
    rows = [
        report.medians({name: partial(index.search, query) for name, index in contenders.items()}, rounds=3, pause=0.03)
        for query in queries[:: max(1, len(queries) // n_timed)][:n_timed]
    ]
    typical = {name: round(float(np.median([row[name] for row in rows])), 2) for name in contenders}
    ndcg = {
        name: round(evaluate(dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)), ["nDCG@10"])["nDCG@10"], 4)
        for name, ranked in found.items()
    }
    info = contenders["default"].info()
    return {
        "documents": info.documents,
        "tokens": info.tokens,
        "queries": len(queries),
        "overlap_of_the_top_10": round(float(np.mean(overlap)), 4),
        "nDCG@10": ndcg,
        "percent_of_exhaustive": round(100 * ndcg["default"] / ndcg["exhaustive"], 2),
        "milliseconds_a_query": typical,
        "times_faster": round(typical["exhaustive"] / typical["default"], 1),
        "seconds_to_optimize": round(built, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--queries", type=int, default=300, help="queries of each set, evenly spread")
    parser.add_argument("--timed", type=int, default=30, help="number of these queries that are timed")
    options = parser.parse_args()

    results = {}
    for name in options.sets or sorted(folder.parent.name for folder in Path(options.vectors).glob("*/done")):
        encoded = load(options.data, options.vectors, name)
        encoded = encoded.projected(options.dim or encoded.documents.dim).every(options.queries)
        results[name] = measured(encoded, options.db / f"{name}-{encoded.documents.dim}", options.timed)
        print(name, json.dumps(results[name]), flush=True)
    report.write(f"candidates-{encoded.documents.dim}", results)


if __name__ == "__main__":
    main()
