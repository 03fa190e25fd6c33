"""Measure what fewer dimensions cost: `minilm` cut as it is, and tuned for the prefixes of its vectors.

    python examples/benchmarks/prefixes.py DATA/metatool --queries 1500 --minutes 4

A projection to 128 dims is trained on a sample of the train split (`manyvec.tune(method="projection", dim=128)`), whose
prefixes of 32 and 64 dims are trained, too. nDCG@10 of a sample of the test split is that of indexes made with
`Index.create(dim=...)`, by exact MaxSim.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report

import manyvec
from manyvec.evaluation import Dataset, evaluate, load_beir


def sample(names: list[str], n: int) -> list[str]:
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))[:n]]


def ndcg(model: str, data: Dataset, queries: list[str], dim: int | None) -> float:
    index = manyvec.Index.create("memory://", model, dim=dim, device="cpu")
    index.add(data.documents)
    index.candidates = manyvec.candidates.Exhaustive()
    found = index.search_many([data.queries[query] for query in queries], 10, lexical_weight=0)
    run = {query: [hit.id for hit in hits] for query, hits in zip(queries, found, strict=True)}
    return round(evaluate({query: data.qrels[query] for query in queries}, run, ["nDCG@10"])["nDCG@10"], 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=1500, help="Training queries.")
    parser.add_argument("--test-queries", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=4)
    arguments = parser.parse_args()
    train, test = load_beir(arguments.data, "train"), load_beir(arguments.data)
    texts = {document.id: document.text for document in train.documents}
    queries = sample(sorted(test.queries), arguments.test_queries)
    with tempfile.TemporaryDirectory() as folder:
        pairs, out = Path(folder) / "pairs.jsonl", Path(folder) / "model"
        lines = [
            json.dumps({"query": train.queries[query], "positive": texts[max(judged, key=judged.__getitem__)]})
            for query in sample(sorted(train.queries), arguments.queries)
            if (judged := train.qrels[query])
        ]
        pairs.write_text("\n".join(lines), encoding="utf-8")
        options: dict[str, Any] = {"method": "projection", "dim": 128, "minutes": arguments.minutes}
        tuned = manyvec.tune("minilm", pairs, out, device="cpu", **options)
        rows: dict[str, Any] = {"minilm": {dim: ndcg("minilm", test, queries, dim) for dim in (384, 128, 64, 32)}}
        if tuned.out:
            rows["tuned"] = {dim: ndcg(str(out), test, queries, dim) for dim in (128, 64, 32)}
    counts = {"training_queries": len(lines), "test_queries": len(queries)}
    report.write(f"prefixes-{test.name}", {"set": test.name, **counts, "warnings": tuned.warnings, "ndcg@10": rows})


if __name__ == "__main__":
    main()
