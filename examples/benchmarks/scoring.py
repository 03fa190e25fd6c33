"""How large a block of document vectors to convert and multiply at a time, and what float16 storage costs.

python examples/benchmarks/scoring.py
"""

from __future__ import annotations

from functools import partial

import numpy as np
import report
import torch

from manyvec import MaxSimScorer, TokenBatch
from manyvec.tokens import offsets_of


def unit_vectors(n: int, dim: int) -> np.ndarray:
    vectors = torch.nn.functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    return vectors.numpy()


def main() -> None:
    results = {}
    for dim in (128, 384):
        n_documents, n_tokens = 2_000, 200
        vectors, offsets = unit_vectors(n_documents * n_tokens, dim), offsets_of([n_tokens] * n_documents)
        query = unit_vectors(16, dim)
        single, half = TokenBatch(vectors, offsets), TokenBatch(vectors.astype(np.float16), offsets)
        contenders = {}
        for megabytes in (1, 2, 4, 8, 16, 64):
            scorer = MaxSimScorer(block_bytes=megabytes * 2**20)
            contenders[f"float16, {megabytes} MB"] = partial(scorer.score, query, half)
            contenders[f"float32, {megabytes} MB"] = partial(scorer.score, query, single)
        results[f"{n_documents} documents of {n_tokens} tokens, dim {dim}"] = report.medians(contenders, rounds=7)
    report.write("scoring", {"milliseconds": results})


if __name__ == "__main__":
    main()
