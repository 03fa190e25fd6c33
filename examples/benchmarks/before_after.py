"""Compare the processor time of adding and searching between two versions of manyvec.

    git worktree add ../before COMMIT
    python examples/benchmarks/before_after.py ../before/src src [--rounds 5] [--documents 5000]

Each round runs one process for each version, in turns, with that version's `src` as PYTHONPATH. The processes add
documents with given vectors and search them. The results are medians of the processor time, and the ratio of the second
version to the first. Processor time is less sensitive to other load than seconds, and counts every thread.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

DIM, N_TOKENS, N_QUERIES = 64, 24, 40
FILTER_SHARE = 10


class Given:
    """An encoder whose vectors are given: text and query number i have the vectors i."""

    name, fingerprint, dim = "given", "given-1", DIM

    def __init__(self, n_documents: int) -> None:
        from manyvec import TokenBatch

        vectors = np.random.default_rng(0).normal(size=(n_documents * N_TOKENS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        spans = np.tile(np.arange(N_TOKENS, dtype=np.int32)[:, None] + [0, 1], (n_documents, 1)).astype(np.int32)
        self._tokens = TokenBatch(vectors, np.arange(n_documents + 1, dtype=np.int64) * N_TOKENS, spans)

    def encode_documents(self, texts: list[str]) -> Any:
        return self._tokens.select([int(text.split()[0]) for text in texts])

    encode_queries = encode_documents


def measure(n_documents: int) -> dict[str, float]:
    """Return milliseconds of processor time: of the whole call for writes, per search for searches."""
    # Versions import it at different times, which is no part of what is compared.
    import torch  # noqa: F401

    from manyvec import F, Index
    from manyvec.candidates import Auto, Exhaustive

    encoder, taken = Given(n_documents), {}
    rng = np.random.default_rng(1)
    words = [" ".join(f"w{n}" for n in rng.zipf(1.3, 20) % 10_000) for _ in range(n_documents)]
    documents = [{"id": str(i), "text": f"{i} {words[i]}", "metadata": {"n": i}} for i in range(n_documents)]
    queries = [f"{i} {words[i]}" for i in rng.integers(0, n_documents, N_QUERIES)]

    def timed(name: str, work: Callable[[], Any], n_calls: int = 1) -> None:
        started = time.process_time()
        work()
        taken[name] = 1000 * (time.process_time() - started) / n_calls

    def searches(name: str, index: Index, **options: Any) -> None:
        index.search(queries[0], k=10, **options)
        timed(name, lambda: [index.search(query, k=10, **options) for query in queries], N_QUERIES)

    columns = "filter_columns" if "filter_columns" in inspect.signature(Index.create).parameters else "filters"
    with tempfile.TemporaryDirectory() as folder:
        # The first index pays for imports and for threads that start.
        warm = Index.create(Path(folder) / "warm", encoder)
        warm.add(documents[:300])
        warm.search(queries[0])
        index: Index
        index = Index.create(Path(folder) / "index", encoder, **{columns: {"n": int}})
        timed("add all documents", lambda: index.add(documents))
        timed("add all again, unchanged", lambda: index.add(documents))
        timed(
            "update 20 documents, one by one",
            lambda: [index.add([d | {"text": d["text"] + " x"}]) for d in documents[:20]],
        )
        timed("first search", lambda: index.search(queries[0]))
        index.candidates = Exhaustive()
        searches("search, exhaustive", index)
        index.candidates = Auto(exhaustive_tokens=1_000)
        timed("optimize, with centroid lists", lambda: index.optimize(keep=timedelta(0)))
        searches("search, centroid lists", index)
        searches("search, filtered", index, filter=F("n") < n_documents // FILTER_SHARE)
        searches("search, mixed with BM25", index, lexical_weight=0.3)
        timed("get 20 documents, one by one", lambda: [index.get(str(i)) for i in range(20)])
    return taken


def run(source: str, n_documents: int) -> dict[str, float]:
    """Measure one version in a process of its own."""
    command = [sys.executable, __file__, "--worker", "--documents", str(n_documents)]
    environment = os.environ | {"PYTHONPATH": str(Path(source).absolute()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=5_000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.documents)))
        return
    import report

    taken: dict[str, list[dict[str, float]]] = {options.before: [], options.after: []}
    for _ in range(options.rounds):
        for source, rounds in taken.items():
            rounds.append(run(source, options.documents))
    results = {}
    for name in taken[options.before][0]:
        before, after = (statistics.median(round[name] for round in rounds) for rounds in taken.values())
        ratio = statistics.median(
            b[name] / a[name] for a, b in zip(taken[options.before], taken[options.after], strict=True)
        )
        results[name] = {"before_ms": round(before, 2), "after_ms": round(after, 2), "ratio": round(ratio, 3)}
        print(f"{name:34} {before:9.2f} {after:9.2f} {ratio:6.3f}", flush=True)
    report.write("before-after", {"rounds": options.rounds, "documents": options.documents, "rows": results})


if __name__ == "__main__":
    main()
