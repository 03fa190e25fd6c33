"""Measure what stored token vectors save a reranker of 100 documents, compared to encoding them again.

python examples/benchmarks/reranking.py DATASET

DATASET is a folder in BEIR layout. Two `ManyvecReranker`s rank the same documents for its first queries, one with the
index and one with its encoder alone; both encode the query. Their orders must be equal.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import report
from langchain_core.documents import Document

from langchain_manyvec import ManyvecReranker
from manyvec import Index
from manyvec.evaluation import load_beir

N_DOCUMENTS, N_QUERIES = 100, 3


def main() -> None:
    dataset = load_beir(sys.argv[1])
    queries = list(dataset.queries.values())[:N_QUERIES]
    stored = dataset.documents[:N_DOCUMENTS]
    documents = [Document(document.text, id=document.id) for document in stored]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", "minilm")
        index.add(stored)
        rerankers = {"stored": ManyvecReranker(index=index), "encoded": ManyvecReranker(encoder=index.encoder)}
        rerankers["stored"].compress_documents(documents, queries[0])
        seconds: dict[str, list[float]] = {name: [] for name in rerankers}
        orders: dict[str, list[list[str | None]]] = {name: [] for name in rerankers}
        for query in queries:
            for name, reranker in rerankers.items():
                started = time.perf_counter()
                found = reranker.compress_documents(documents, query)
                seconds[name].append(time.perf_counter() - started)
                orders[name].append([document.id for document in found])
        milliseconds = {name: round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()}
        results = {
            "documents": len(documents),
            "tokens": index.info().tokens,
            "queries": len(queries),
            "milliseconds": milliseconds,
            "times faster": round(milliseconds["encoded"] / milliseconds["stored"], 1),
            "identical order": orders["stored"] == orders["encoded"],
        }
    report.write(f"reranking-{dataset.name}", results)


if __name__ == "__main__":
    main()
