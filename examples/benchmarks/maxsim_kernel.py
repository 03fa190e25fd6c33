"""How long the MaxSim kernel takes to be ready, which every process waits for, and to score, by dims and storage.

    python examples/benchmarks/maxsim_kernel.py [--rounds 15] [--name maxsim-kernel]

Processor milliseconds, medians: to compile a kernel, and to score 400 documents of 150 tokens by a query of
20 tokens in one thread. To compare two versions, run it with PYTHONPATH naming each, and with another `--name`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import report

from manyvec import TokenBatch
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import CodedBatch, offsets_of
from manyvec.vectors.codec import Codec
from manyvec.vectors.kernels import Layout, maxsim_builder
from manyvec.vectors.llvm import host_cpu

DIMS, STORAGES = (32, 48, 64, 96, 128, 256, 384, 768), ("float16", "int8", "int4", "binary")
N_DOCUMENTS, N_TOKENS, N_QUERY_TOKENS = 400, 150, 20


def milliseconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def documents(dim: int, random: np.random.Generator) -> dict[str, TokenBatch | CodedBatch]:
    vectors = random.standard_normal((N_DOCUMENTS * N_TOKENS, dim), np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    offsets = offsets_of(np.full(N_DOCUMENTS, N_TOKENS))
    batches: dict[str, TokenBatch | CodedBatch] = {"float16": TokenBatch.unchecked(vectors, offsets)}
    for codec in (Codec(name, dim) for name in STORAGES[1:]):
        batches[codec.name] = CodedBatch.unchecked(codec.encode(vectors), offsets, codec)
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", default="maxsim-kernel")
    options = parser.parse_args()
    # Before the first call of a kernel reads it.
    os.environ["OMP_NUM_THREADS"] = "1"
    cpu, random, results = host_cpu(), np.random.default_rng(0), {}
    assert cpu is not None, "no kernels are compiled for this CPU"
    maxsim_builder(cpu, Layout.of_floats(np.zeros((1, 8), np.float16))).compile()
    for dim in DIMS:
        layout = Layout.of_floats(np.zeros((1, dim), np.float16))
        row = {"ready": [milliseconds(maxsim_builder(cpu, layout).compile) for _ in range(3)]}
        queries = random.standard_normal((N_QUERY_TOKENS, dim), np.float32)
        for storage, batch in documents(dim, random).items():
            matcher, lengths = default_backend().match_vectors(queries, batch), np.full(N_DOCUMENTS, N_TOKENS)
            score = partial(matcher.best, batch.offsets[:-1], lengths)
            score()
            row[storage] = [milliseconds(score) for _ in range(options.rounds)]
        results[f"{dim} dims"] = {name: round(statistics.median(times), 2) for name, times in row.items()}
    report.write(options.name, results)


if __name__ == "__main__":
    main()
