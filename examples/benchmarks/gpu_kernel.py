"""The MaxSim kernel of `manyvec.vectors.triton_kernel` by itself, for several sizes of its blocks.

    python examples/benchmarks/gpu_kernel.py

30,000 documents of 300 tokens with 128 dims, and 10,000 with 384, as an index keeps them on the GPU; a query of 32
tokens.
Sizes that need more shared memory than the GPU has are left out.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import report
import torch

from manyvec import TokenBatch
from manyvec.vectors import cuda
from manyvec.vectors.batch import CodedBatch, offsets_of
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.cuda import DeviceDocuments

N_TOKENS, N_DIFFERENT = 300, 2000
# Tokens, warps, stages.
SIZES = [(64, 4, 3), (64, 4, 2), (64, 4, 4), (128, 4, 3), (128, 8, 3), (128, 8, 2), (32, 4, 3), (32, 2, 3), (64, 8, 3)]


def unit_vectors(n: int, dim: int, seed: int) -> np.ndarray:
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def uploaded(n_documents: int, dim: int, storage: str) -> DeviceDocuments:
    """Return 2,000 random documents, again and again."""
    vectors, times = unit_vectors(N_DIFFERENT * N_TOKENS, dim, 0), n_documents // N_DIFFERENT
    offsets = offsets_of([N_TOKENS] * n_documents)
    if storage == "float16":
        return DeviceDocuments.upload(TokenBatch.unchecked(np.tile(vectors.astype(np.float16), (times, 1)), offsets))
    codec, nearest = Codec(storage, dim), None
    if storage == "residual":
        codec = Codec(storage, dim, unit_vectors(4096, dim, 1))
        nearest = np.random.default_rng(0).integers(0, 4096, len(vectors))
    codes = np.tile(codec.encode(vectors, nearest), (times, 1))
    return DeviceDocuments.upload(CodedBatch.unchecked(codes, offsets, codec))


def milliseconds(documents: DeviceDocuments, tokens: int, warps: int, stages: int) -> float | None:
    import triton

    from manyvec.vectors import triton_kernel as kernel

    cuda._REFUSED.clear()
    kernel.BLOCK_TOKENS, kernel.N_WARPS, kernel.MAX_STAGES = tokens, warps, stages
    query = TokenBatch.unchecked(unit_vectors(32, documents.dim, 2), offsets_of([32]))
    search = partial(documents._score_in_kernel, query, None)
    if search() is None:
        return None
    return triton.testing.do_bench(search, warmup=20, rep=60, return_mode="median")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device, and torch finds none here")
    found: list[dict[str, Any]] = []
    for (n_documents, dim), storage in product(((30_000, 128), (10_000, 384)), STORAGES):
        documents = uploaded(n_documents, dim, storage)
        for tokens, warps, stages in SIZES:
            taken = milliseconds(documents, tokens, warps, stages)
            row = {"dim": dim, "storage": storage, "block_tokens": tokens, "warps": warps, "stages": stages}
            found.append(row | {"milliseconds": taken and round(taken, 3)})
            print(found[-1], flush=True)
    report.write("gpu-kernel", {"gpu": torch.cuda.get_device_name(), "milliseconds": found})


if __name__ == "__main__":
    main()
