"""Measure what smaller token vectors cost in quality: nDCG@10 and top 10 of exhaustive search, compared to float16.

    python examples/benchmarks/storage.py DATA_FOLDER VECTORS [SET ...] [--dim 128] [--queries 150]

Covers every storage format, and pooling by 2 and 3 stored as float16. Bytes are those of the vectors, per token before
pooling. SETs are names of judged sets that `encoded.py` has encoded. For the last one, an index of at most 1,000
documents is built in every format to count the bytes of its table on disk: vectors, spans and texts; the bytes of the
texts alone are recorded beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import report
from encoded import Encoded, Known, load, with_spans

from manyvec import Index, MaxSimScorer, TokenBatch
from manyvec.evaluation import evaluate
from manyvec.vectors.batch import CodedBatch, StoredBatch, pool
from manyvec.vectors.codebook import Codebook, n_centroids_for
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.maxsim import top_k


def coded(storage: str, documents: TokenBatch) -> CodedBatch:
    """Return the documents as an index stores them."""
    codebook = None
    if storage == "residual":
        n_centroids = n_centroids_for(documents.n_tokens)
        n_sample = min(documents.n_tokens, max(65_536, 8 * n_centroids))
        sample = np.random.default_rng(0).choice(documents.n_tokens, n_sample, replace=False)
        codebook = Codebook.train(documents.vectors[np.sort(sample)], n_centroids)
    codec = Codec(storage, documents.dim, codebook and codebook.centroids)
    parts = []
    for start in range(0, documents.n_tokens, 65_536):
        vectors = documents.vectors[start : start + 65_536]
        parts.append(codec.encode(vectors, codebook and codebook.assign(vectors)))
    return CodedBatch.unchecked(np.concatenate(parts), documents.offsets, codec)


def pooled(documents: TokenBatch, factor: int) -> TokenBatch:
    batch = pool(TokenBatch.unchecked(documents.vectors, documents.offsets), factor)
    return TokenBatch.unchecked(batch.vectors.astype(np.float16), batch.offsets)


def on_disk(encoded: Encoded) -> dict[str, float]:
    """Return the bytes per token of the table in each storage format, and of the texts."""
    few = with_spans(encoded.first(1000))
    texts = sum(len(document.text.encode()) for document in few.dataset.documents)
    found = {"text": round(texts / few.documents.n_tokens, 2)}
    for storage in STORAGES:
        with tempfile.TemporaryDirectory() as folder:
            index = Index.create(folder, Known(few), storage=storage)
            index.add(few.dataset.documents)
            index.optimize(keep=timedelta(0))
            data = sum(path.stat().st_size for path in Path(folder, "documents.lance", "data").rglob("*.lance"))
            found[storage] = round(data / few.documents.n_tokens, 2)
    return found


WAYS: dict[str, Callable[[TokenBatch], StoredBatch]] = {
    "float16": lambda documents: documents,
    **{storage: partial(coded, storage) for storage in STORAGES if storage != "float16"},
    "float16, pooled by 2": partial(pooled, factor=2),
    "float16, pooled by 3": partial(pooled, factor=3),
}


def best(encoded: Encoded, documents: StoredBatch) -> dict[str, list[str]]:
    """Return the ids of the 10 best documents for each query."""
    ids, scorer, found = encoded.ids, MaxSimScorer(), {}
    queries = list(encoded.dataset.queries)
    for start in range(0, len(queries), 10):
        part = np.arange(start, min(start + 10, len(queries)))
        for query, scores in zip(part, scorer.score_many(encoded.queries.select(part), documents), strict=True):
            found[queries[query]] = [ids[position] for position in top_k(scores, ids, 10)]
    return found


def measured(encoded: Encoded) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    everything = encoded.documents
    for way, change in WAYS.items():
        documents = change(everything)
        found = best(encoded, documents)
        ndcg = evaluate(encoded.dataset.qrels, found, ["nDCG@10"])["nDCG@10"]
        if way == "float16":
            reference, exact = ndcg, found
        rows[way] = {
            "bytes_a_token": round(documents.nbytes / everything.n_tokens, 1),
            "nDCG@10": round(ndcg, 4),
            "percent_of_float16": round(100 * ndcg / reference, 2),
            "overlap_of_the_top_10": round(
                float(np.mean([len({*found[query]} & {*exact[query]}) / len(exact[query]) for query in exact])), 4
            ),
        }
        print(encoded.dataset.name, way, json.dumps(rows[way]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--queries", type=int, default=150)
    options = parser.parse_args()
    names = options.sets or sorted(folder.parent.name for folder in Path(options.vectors).glob("*/done"))

    sets = {}
    for name in names:
        encoded = load(options.data, options.vectors, name)
        encoded = encoded.projected(options.dim or encoded.documents.dim).every(options.queries)
        sets[name] = {
            "documents": len(encoded.documents),
            "tokens": encoded.documents.n_tokens,
            "queries": len(encoded.queries),
            "storages": measured(encoded),
        }
    columns = ("percent_of_float16", "overlap_of_the_top_10", "bytes_a_token")
    mean = {
        way: {
            column: round(float(np.mean([row["storages"][way][column] for row in sets.values()])), 4)
            for column in columns
        }
        for way in WAYS
    }
    disk = {"set": encoded.dataset.name, "bytes a token": on_disk(encoded)}
    report.write(f"storage-{encoded.documents.dim}", {"mean": mean, "on disk": disk, "sets": sets})


if __name__ == "__main__":
    main()
