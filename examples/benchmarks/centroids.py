"""Compare ways to do the first steps in centroid lists: similarities, highest centroids, documents of a filter.

    python examples/benchmarks/centroids.py [--rounds 40] [--documents 100000]

Contenders run in turns; the results are medians in milliseconds, of processor time and of the clock. With
`OMP_NUM_THREADS=1` BLAS and torch use one thread; without it their threads wait for each other, which takes long where
other programs keep the machine busy. So run it both ways, with and without other work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import torch

from manyvec import TokenBatch
from manyvec.retrieval.centroid_lists import _highest
from manyvec.vectors.backend import default_backend

DIM, N_QUERY_TOKENS = 128, 10


def timed(contenders: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of each contender, in milliseconds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(n_rounds):
        for name, run in contenders.items():
            cpu, clock = time.process_time(), time.perf_counter()
            run()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    return {
        name: {
            kind: round(1000 * statistics.median(values), 3)
            for kind, values in zip(("processor", "clock"), zip(*pairs, strict=True), strict=True)
        }
        for name, pairs in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    random, results = np.random.default_rng(0), dict[str, Any]()
    queries = random.standard_normal((N_QUERY_TOKENS, DIM), np.float32)
    for n_centroids in (4_096, 16_384):
        centroids = random.standard_normal((n_centroids, DIM), np.float32)
        documents = TokenBatch.unchecked(centroids, np.arange(n_centroids + 1))
        matcher, ones = default_backend().match_vectors(queries, documents), np.ones(n_centroids, np.int64)
        similarities, products = queries @ centroids.T, default_backend().search_centroids(centroids).similarities
        n_highest = max(16, int(n_centroids**0.5) // 4) + 1
        np.testing.assert_allclose(matcher.best(documents.offsets[:-1], ones).T, similarities, atol=1e-3)
        whole = torch.topk(torch.from_dlpack(similarities), n_highest, dim=1)
        np.testing.assert_array_equal(_highest(similarities, n_highest)[0], whole[0].numpy())
        contenders: dict[str, Callable[[], object]] = {
            "similarities, BLAS": lambda centroids=centroids: queries @ centroids.T,
            "similarities, MaxSim kernel": lambda m=matcher, d=documents, n=ones: m.best(d.offsets[:-1], n),
            "similarities, kernel of products": lambda p=products: p(queries),
            "highest, torch": lambda s=similarities, n=n_highest: torch.topk(torch.from_dlpack(s), n, dim=1),
            "highest, numpy": lambda s=similarities, n=n_highest: _highest(s, n),
        }
        results[f"{n_centroids} centroids"] = timed(contenders, options.rounds)

    n = options.documents
    position_of, passing = random.permutation(n), np.sort(random.choice(n, n // 2, replace=False))
    uncovered = np.empty(0, np.int64)

    def by_table() -> tuple[np.ndarray, np.ndarray]:
        is_passing = np.zeros(n, bool)
        is_passing[passing] = True
        return is_passing[position_of], uncovered[is_passing[uncovered]]

    def by_sets() -> tuple[np.ndarray, np.ndarray]:
        return np.isin(position_of, passing), np.intersect1d(uncovered, passing)

    for one, other in zip(by_table(), by_sets(), strict=True):
        np.testing.assert_array_equal(one, other)
    results[f"a filter that half of {n} documents pass"] = timed({"sets": by_sets, "table": by_table}, options.rounds)
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    report.write(f"centroids-{threads}-threads", {"query_tokens": N_QUERY_TOKENS, "dim": DIM, "milliseconds": results})


if __name__ == "__main__":
    main()
