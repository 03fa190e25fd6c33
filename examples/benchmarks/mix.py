"""Compare rankings by MaxSim blended with BM25 to each of them alone and to pooled vectors, on texts and tools.

    python examples/benchmarks/mix.py DATA_FOLDER VECTORS [--keep FOLDER] [--sets SET ...] [--queries 300]

DATA_FOLDER and VECTORS are those of `encoded.py`. Uses all queries of each set, or N of them, evenly spread. Candidates
are the 300 best documents by the store's BM25 and the 300 best by exhaustive MaxSim. FOLDER caches the scores of MaxSim
and of pooled vectors, which take minutes for each set.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import encoded
import numpy as np
import report

from manyvec import MaxSimScorer, TokenBatch
from manyvec.evaluation import Dataset, evaluate
from manyvec.retrieval.mixing import mixed
from manyvec.storage.schema import Manifest, Row
from manyvec.storage.table import Store
from manyvec.vectors.maxsim import top_k

SETS = (
    "scifact", "cranfield", "cisi", "medquad-liveqa", "medquad-qa", "nq-passages", "squad-dev", "limit-small",
    "metatool", "seal-tools", "stabletoolbench", "livemcpbench",
)  # fmt: skip
WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.27, 0.28, 0.29, 0.3, 0.35, 0.4, 0.5)
DEPTH = 300
SINGLE = ("bm25", "pooled", "maxsim")

Mix = Callable[[np.ndarray, np.ndarray], np.ndarray]
Run = dict[str, list[str]]


def min_max(weight: float) -> Mix:
    """Return a blend of both scores, each scaled to [0, 1] over the candidates."""
    return lambda similarity, bm25: (1 - weight) * scaled(similarity) + weight * scaled(bm25)


def scaled(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / max(float(np.ptp(scores)), 1e-9)


def reciprocal_ranks(similarity: np.ndarray, bm25: np.ndarray) -> np.ndarray:
    by_vectors, by_words = ((-scores).argsort().argsort() for scores in (similarity, bm25))
    return 1 / (61 + by_vectors) + (bm25 > 0) / (61 + by_words)


MIXES: dict[str, Mix] = {f"mixed {w}": lambda similarity, bm25, w=w: mixed(similarity, bm25, w) for w in WEIGHTS}
MIXES |= {f"min-max {w}": min_max(w) for w in (0.2, 0.3, 0.5)} | {"reciprocal ranks": reciprocal_ranks}


def vector_scores(data: encoded.Encoded, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return (n_queries, n_documents) exhaustive MaxSim, summed, and cosines of pooled vectors."""
    queries, documents = data.queries.select(chosen), data.documents
    few = [queries.select(range(i, min(i + 16, len(queries)))) for i in range(0, len(queries), 16)]
    blocks = [range(i, min(i + 256, len(documents))) for i in range(0, len(documents), 256)]
    pooled = np.concatenate([documents.select(block).pooled() for block in blocks])
    return {
        "maxsim": np.concatenate([MaxSimScorer().score_many(part, documents) for part in few]),
        "pooled": queries.pooled() @ pooled.T,
    }


def bm25_scores(dataset: Dataset, chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (n_queries, n_documents) BM25, 0 beyond the best documents, and the median milliseconds per query."""
    texts = list(dataset.queries.values())
    scores, seconds = np.zeros((len(chosen), len(dataset.documents)), np.float32), []
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(folder, Manifest("none", "none", 1))
        for start in range(0, len(dataset.documents), 4096):
            rows = [Row(d.id, d.text, "{}", "", {}) for d in dataset.documents[start : start + 4096]]
            store.upsert(rows, TokenBatch(np.ones((len(rows), 1), np.float32), np.arange(len(rows) + 1)))
        store.optimize(timedelta(days=1))
        snapshot = store.snapshot()
        states = snapshot.states()
        position = {document.id: i for i, document in enumerate(dataset.documents)}
        positions = {row_id: position[id] for row_id, id in zip(states.row_ids.tolist(), states.ids, strict=True)}
        for row, query in enumerate(chosen):
            started = time.perf_counter()
            matches = snapshot.match(texts[query], DEPTH)
            seconds.append(time.perf_counter() - started)
            for row_id, score in zip(*matches, strict=True):
                scores[row, positions[int(row_id)]] = score
    return scores, 1000 * statistics.median(seconds)


def runs_of(data: encoded.Encoded, chosen: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, Run]:
    """Return the ten best documents of each query by each method."""
    names = list(data.dataset.queries)
    runs: dict[str, Run] = {method: {} for method in (*SINGLE, *MIXES)}
    for row, query in enumerate(chosen):
        bm25, pooled, maxsim = (scores[method][row] for method in SINGLE)
        found = np.where(bm25 > 0, bm25, -np.inf)
        for method, alone in zip(SINGLE, (found, pooled, maxsim), strict=True):
            runs[method][names[query]] = data.ids[top_k(alone, data.ids, 10)].tolist()
        candidates = np.union1d(top_k(maxsim, data.ids, DEPTH), np.flatnonzero(bm25))
        ids = data.ids[candidates]
        similarity = maxsim[candidates] / data.queries.lengths[query]
        for method, mix in MIXES.items():
            runs[method][names[query]] = ids[top_k(mix(similarity, bm25[candidates]), ids, 10)].tolist()
    return runs


def ndcg(dataset: Dataset, run: Run, part: slice = slice(None)) -> float:
    return evaluate({query: dataset.qrels[query] for query in list(run)[part]}, run, ["nDCG@10"])["nDCG@10"]


def summary(sets: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return for each mix on how many sets it beats all three single methods, its worst difference and its mean."""
    result = {}
    for mix in MIXES:
        above = {name: row[mix] - max(row[single] for single in SINGLE) for name, row in sets.items()}
        result[mix] = {
            "sets above all three": sum(gain > 0 for gain in above.values()),
            "of": len(sets),
            "least against the best of the three": round(min(above.values()), 4),
            "mean": round(statistics.mean(row[mix] for row in sets.values()), 4),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("--keep")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--queries", type=int, help="maximum number of queries of each set")
    parser.add_argument("--name", default="mix", help="name of the result, for vectors of another model")
    options = parser.parse_args()

    # A weight that is chosen on one half of the queries is checked on the other.
    parts = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
    measured: dict[str, dict[str, dict[str, float]]] = {part: {} for part in parts}
    about = {}
    for name in options.sets:
        data = encoded.load(options.data, options.vectors, name)
        n_queries = len(data.dataset.queries)
        chosen = np.unique(
            np.linspace(0, n_queries - 1, min(n_queries, options.queries or n_queries)).round().astype(int)
        )
        kept = Path(options.keep) / f"{name}.npz" if options.keep else None
        if kept and kept.exists():
            scores = dict(np.load(kept))
        else:
            scores = vector_scores(data, chosen)
            if kept:
                np.savez(kept, **scores)
        scores["bm25"], milliseconds = bm25_scores(data.dataset, chosen)
        runs = runs_of(data, chosen, scores)
        about[name] = {"queries": len(chosen), "documents": len(data.documents), "bm25 ms": round(milliseconds, 1)}
        for part, queries in parts.items():
            measured[part][name] = {method: round(ndcg(data.dataset, run, queries), 4) for method, run in runs.items()}
        print(name, about[name], measured["all"][name], flush=True)
    odd = summary(measured["odd"])
    weight = max(WEIGHTS, key=lambda w: odd[f"mixed {w}"]["mean"])
    report.write(
        options.name,
        {
            "nDCG@10": {name: about[name] | measured["all"][name] for name in about},
            "summary": summary(measured["all"]),
            "chosen on the odd queries, measured on the even ones": {
                "weight": weight, **summary(measured["even"])[f"mixed {weight}"]
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
