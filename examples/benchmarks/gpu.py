"""Exhaustive search on a GPU: `DeviceDocuments` in all storages but `residual`, flash-maxsim, and plain torch.

    python examples/benchmarks/gpu.py

Documents are random and have 300 tokens of 128 dims each, so that padding costs the others nothing. The query has 32
tokens. Every contender has its documents on the GPU and returns the positions of the 10 best to the host. The larger
corpus is the smaller one ten times over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import report
import torch

from manyvec import TokenBatch
from manyvec.vectors.batch import CodedBatch, offsets_of
from manyvec.vectors.codec import Codec
from manyvec.vectors.cuda import DeviceDocuments

N_TOKENS, DIM, K = 300, 128, 10


class WithoutKernel(DeviceDocuments):
    """Scores as where Triton is missing."""

    def _score_in_kernel(self, queries: TokenBatch, subset: np.ndarray | None) -> None:
        return None


def unit_vectors(n: int, seed: int) -> np.ndarray:
    vectors = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def encoded(vectors: np.ndarray, storage: str) -> np.ndarray:
    if storage == "float16":
        return vectors.astype(np.float16)
    codec = Codec(storage, DIM)
    return np.concatenate([codec.encode(vectors[i : i + 2**18]) for i in range(0, len(vectors), 2**18)])


def padded_torch(query: torch.Tensor, documents: torch.Tensor) -> list[int]:
    """Score in plain torch: all similarities in float16, summed in float32."""
    best = (documents @ query.T).amax(dim=1)
    return best.sum(dim=1, dtype=torch.float32).topk(K).indices.tolist()


def flash_maxsim(query: torch.Tensor, documents: DeviceDocuments) -> list[int]:
    from flash_maxsim import flash_maxsim_packed

    return flash_maxsim_packed(query, documents.packed, documents.device_offsets).topk(K).indices.tolist()


def positions(documents: DeviceDocuments, query: TokenBatch) -> list[int]:
    best = documents.top_k(query, K)[0]
    return best.positions[np.argsort(-best.scores, kind="stable")][:K].tolist()


def measure(vectors: np.ndarray, times: int, device: str) -> dict[str, dict[str, float]]:
    n_documents = times * len(vectors) // N_TOKENS
    query = TokenBatch.unchecked(unit_vectors(32, 1), offsets_of([32]))
    query_there = torch.from_numpy(query.vectors).half().to(device)
    held = {}
    contenders: dict[str, Callable[[], list[int]]] = {}
    for storage in ("float16", "int8", "int4", "binary"):
        codec = None if storage == "float16" else Codec(storage, DIM)
        rows = np.tile(encoded(vectors, storage), (times, 1))
        offsets = offsets_of([N_TOKENS] * n_documents)
        documents = CodedBatch.unchecked(rows, offsets, codec) if codec else TokenBatch.unchecked(rows, offsets)
        there = DeviceDocuments.upload(documents, device)
        held[storage] = there.bytes_held
        contenders[f"manyvec, {storage}"] = partial(positions, there, query)
        if storage in ("float16", "int8"):
            bare = WithoutKernel(**vars(there))
            contenders[f"manyvec, {storage} without the kernel"] = partial(positions, bare, query)
        if storage == "float16":
            by_document = there.packed[: documents.n_tokens].view(n_documents, N_TOKENS, DIM)
            contenders["torch, padded"] = partial(padded_torch, query_there, by_document)
            if find_spec("flash_maxsim") and device == "cuda":
                contenders["flash-maxsim"] = partial(flash_maxsim, query_there, there)
    results: dict[str, dict[str, float]] = {
        "milliseconds": report.medians(contenders, rounds=20),
        "bytes_on_the_gpu": held,
    }
    if times == 1:  # copies of one document would fill the 10 best
        exact = set(contenders["manyvec, float16 without the kernel"]())
        results["same_top_10"] = {name: len(exact & set(search())) / K for name, search in contenders.items()}
    return results


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device, and torch finds none here")
    vectors = unit_vectors(10_000 * N_TOKENS, 0)
    results = {f"{10_000 * times} documents": measure(vectors, times, "cuda") for times in (1, 10)}
    report.write("gpu", {"gpu": torch.cuda.get_device_name(), **results})


if __name__ == "__main__":
    main()
