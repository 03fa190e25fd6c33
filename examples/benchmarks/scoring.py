"""MaxSim in machine code against matrix products, which stand in for it where llvmlite has no wheels.

    python examples/benchmarks/scoring.py

Documents of 150 tokens in every storage, a query of 32 tokens. The first call for each kind of vectors and dim makes
the code; what that takes stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import report
from maxsim import coded, unit_vectors

from manyvec import MaxSimScorer, TokenBatch, scoring
from manyvec.vectors.batch import offsets_of
from manyvec.vectors.codec import STORAGES
from manyvec.vectors.llvm import processor


def without_code(score: Callable[[], np.ndarray]) -> np.ndarray:
    """What a machine without llvmlite would do."""
    scoring.processor = lambda: None
    try:
        return score()
    finally:
        scoring.processor = processor


def main() -> None:
    n_documents, n_tokens = 1_000, 150
    vectors, offsets = unit_vectors(n_documents * n_tokens, seed=0), offsets_of([n_tokens] * n_documents)
    documents, query, scorer = TokenBatch(vectors, offsets), unit_vectors(32, seed=1), MaxSimScorer()
    contenders, first = {}, {}
    for storage in STORAGES:
        batch = TokenBatch(vectors.astype(np.float16), offsets) if storage == "float16" else coded(storage, documents)
        score = partial(scorer.score, query, batch)
        started = time.perf_counter()
        scorer.score(query, batch.select([0]))
        first[storage] = round(1000 * (time.perf_counter() - started), 1)
        np.testing.assert_allclose(score(), without_code(score), atol=0.02)
        contenders |= {f"{storage}, machine code": score, f"{storage}, products": partial(without_code, score)}
    report.write("scoring", {"milliseconds": report.medians(contenders, rounds=9, pause=0.03), "of the first": first})


if __name__ == "__main__":
    main()
