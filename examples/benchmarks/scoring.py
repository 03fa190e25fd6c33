"""MaxSim by compiled kernels against matrix products, which replace them where llvmlite has no wheels.

    python examples/benchmarks/scoring.py

Scores one query of 32 tokens against 1,000 documents of 150 tokens in every storage. The first call for each storage
and dim compiles a kernel; its duration is reported separately.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import report
from maxsim import coded, unit_vectors

from manyvec import MaxSimScorer, TokenBatch
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import StoredBatch, offsets_of
from manyvec.vectors.codec import STORAGES
from manyvec.vectors.torch_backend import TorchBackend


def main() -> None:
    n_documents, n_tokens = 1_000, 150
    vectors, offsets = unit_vectors(n_documents * n_tokens, seed=0), offsets_of([n_tokens] * n_documents)
    documents, query = TokenBatch(vectors, offsets), unit_vectors(32, seed=1)
    kernels, products = MaxSimScorer(backend=default_backend()), MaxSimScorer(backend=TorchBackend())
    contenders, first = {}, {}
    for storage in STORAGES:
        batch: StoredBatch
        batch = TokenBatch(vectors.astype(np.float16), offsets) if storage == "float16" else coded(storage, documents)
        started = time.perf_counter()
        kernels.score(query, batch.select([0]))
        first[storage] = round(1000 * (time.perf_counter() - started), 1)
        np.testing.assert_allclose(kernels.score(query, batch), products.score(query, batch), atol=0.02)
        contenders[f"{storage}, kernel"] = partial(kernels.score, query, batch)
        contenders[f"{storage}, matrix products"] = partial(products.score, query, batch)
    results = {
        "milliseconds": report.medians(contenders, rounds=9, pause=0.03),
        "milliseconds of the first call": first,
    }
    report.write("scoring", results)


if __name__ == "__main__":
    main()
