"""Measure a search with `minilm` and nothing set against BM25, pooled vectors and MaxSim alone, on judged sets.

    python examples/benchmarks/default_search.py DATA_FOLDER VECTORS [SET ...]

DATA_FOLDER and VECTORS are those of `encoded.py`. Unlike `mix.py`, which computes the formula, this asks an index, by
all queries of each set. The figures of the other methods are those of `mix.py`, on the same queries. Processor time is
that of one query after another, 50 of each set, encoding included. Figures of other sets stay in the file of results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import encoded
import report
from mix import SETS, SINGLE

from manyvec import Document, Index
from manyvec.evaluation import evaluate

N_TIMED = 50


def filled(data: encoded.Encoded, folder: str) -> Index:
    """Return an index of a data set, with the token vectors that were encoded before."""
    index = Index.create(folder, "minilm")
    documents = zip(data.dataset.documents, data.documents, strict=True)
    given = (Document(d.id, d.text, d.metadata, vectors=vectors) for d, vectors in documents if len(vectors))
    index.add(given, adopt_vectors=True)
    index.optimize()
    return index


def milliseconds(index: Index, texts: Sequence[str]) -> dict[str, float]:
    """Return the median processor time of a search, by default and without BM25, taken in turns."""
    taken: dict[str, list[float]] = {"default": [], "lexical_weight=0": []}
    for text in [texts[0], *texts[:: max(1, len(texts) // N_TIMED)]]:
        for name, options in (("default", {}), ("lexical_weight=0", {"lexical_weight": 0})):
            started = time.process_time()
            index.search(text, **options)
            taken[name].append(time.process_time() - started)
    # The first of each has loaded the model and compiled kernels.
    return {name: round(1000 * statistics.median(seconds[1:]), 1) for name, seconds in taken.items()}


def measure(data: encoded.Encoded, others: dict[str, float]) -> dict[str, object]:
    """Return the nDCG@10 of each method on all queries, and the time of a search."""
    texts = list(data.dataset.queries.values())
    with tempfile.TemporaryDirectory() as folder:
        index = filled(data, folder)
        found = index.search_many(texts)
        times = milliseconds(index, texts)
    run = {query: [hit.id for hit in hits] for query, hits in zip(data.dataset.queries, found, strict=True)}
    default = round(evaluate(data.dataset.qrels, run, ["nDCG@10"])["nDCG@10"], 4)
    return {
        "queries": len(texts),
        **{method: others[method] for method in SINGLE},
        "default": default,
        "default against the best of the others": round(default - max(others[method] for method in SINGLE), 4),
        "processor ms per search": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("sets", nargs="*", default=SETS)
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    others = json.loads((results / "mix.json").read_text())["results"]["nDCG@10"]
    earlier = results / "default-search.json"
    rows = json.loads(earlier.read_text())["results"]["sets"] if earlier.exists() else {}
    for name in options.sets:
        rows[name] = measure(encoded.load(options.data, options.vectors, name), others[name])
        methods = (*SINGLE, "default")
        means = {method: round(statistics.mean(row[method] for row in rows.values()), 4) for method in methods}
        least = min(row["default against the best of the others"] for row in rows.values())
        report.write("default-search", {"sets": rows, "mean": means, "least against the best of the others": least})


if __name__ == "__main__":
    main()
