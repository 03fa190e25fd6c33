"""MaxSim of one query against 100 and 1,000 documents: manyvec from float32 down to single bits, against its peers.

    [OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1] python examples/benchmarks/maxsim.py

Documents of 150 tokens, a query of 32 tokens, 128 dims, unit vectors in memory in each library's preferred form; the
peers take float32. The results are compared first: peers and floats with the reference, codes with the reference on
their decoded vectors. maxsim-cpu is not a dependency of manyvec; run `pip install maxsim-cpu` first.
"""

from __future__ import annotations

import argparse
from functools import partial

import maxsim_cpu
import numpy as np
import report
import torch
from sentence_transformers.util import maxsim

from manyvec import MaxSimScorer, TokenBatch
from manyvec.vectors.batch import CodedBatch, StoredBatch, offsets_of
from manyvec.vectors.codebook import Codebook
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.maxsim import maxsim_reference

N_TOKENS, N_QUERY_TOKENS, DIM = 150, 32, 128
PACKAGES = (*report.PACKAGES, "maxsim-cpu")


def unit_vectors(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coded(storage: str, documents: TokenBatch) -> CodedBatch:
    codebook = Codebook(unit_vectors(4096, seed=2)) if storage == "residual" else None
    codec = Codec(storage, DIM, codebook and codebook.centroids)
    codes = codec.encode(documents.vectors, codebook and codebook.assign(documents.vectors))
    return CodedBatch.unchecked(codes, documents.offsets, codec)


def by_numpy(query: np.ndarray, vectors: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(query @ vectors.T, starts, axis=1).sum(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    query, results = unit_vectors(N_QUERY_TOKENS, seed=1), {}
    for n_documents in (100, 1_000):
        vectors, offsets = unit_vectors(n_documents * N_TOKENS, seed=0), offsets_of([N_TOKENS] * n_documents)
        documents = TokenBatch(vectors, offsets)
        batches: dict[str, StoredBatch] = {
            "float32": documents,
            "float16": TokenBatch(vectors.astype(np.float16), offsets),
        }
        batches |= {name: coded(name, documents) for name in STORAGES if name != "float16"}
        cube, apart = vectors.reshape(n_documents, N_TOKENS, DIM), list(documents)
        tensors, query_tensor = [torch.from_numpy(document) for document in apart], torch.from_numpy(query)
        scorer = MaxSimScorer()
        contenders = {f"manyvec {name}": partial(scorer.score, query, batch) for name, batch in batches.items()} | {
            "maxsim-cpu, maxsim_scores": partial(maxsim_cpu.maxsim_scores, query, cube),
            "maxsim-cpu, maxsim_scores_variable": partial(maxsim_cpu.maxsim_scores_variable, query, apart),
            "sentence-transformers, list": partial(maxsim, [query_tensor], tensors),
            "sentence-transformers, one tensor": partial(maxsim, query_tensor[None], torch.from_numpy(cube)),
            "numpy": partial(by_numpy, query, vectors, offsets[:-1]),
        }
        expected = maxsim_reference(query, documents)
        for name, contender in contenders.items():
            batch = batches.get(name.removeprefix("manyvec "))
            truth = maxsim_reference(query, batch.decoded()) if isinstance(batch, CodedBatch) else expected
            np.testing.assert_allclose(np.asarray(contender()).ravel(), truth, atol=0.02, err_msg=name)
        results[f"{n_documents} documents"] = report.medians(contenders, rounds=options.rounds, pause=0.05)
    threads = torch.get_num_threads()
    report.write(f"maxsim-{threads}-threads", {"threads": threads, "milliseconds": results}, PACKAGES)


if __name__ == "__main__":
    main()
