"""Token vectors of judged data sets, encoded once with `minilm` and kept in a folder for every benchmark to read.

    python examples/benchmarks/encoded.py DATA_FOLDER VECTORS [SET ...]

DATA_FOLDER holds sets in BEIR layout. The documents are encoded as an index would (whole, in windows where long) and
kept as float16; encoding is minutes a million tokens on a CPU, so no benchmark does it again.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyvec import TokenBatch, load_encoder
from manyvec.evaluation import Dataset, load_beir
from manyvec.tokens import offsets_of


@dataclass(frozen=True)
class Encoded:
    """A data set with the token vectors of its documents (in the order of `dataset.documents`) and queries."""

    dataset: Dataset
    documents: TokenBatch
    queries: TokenBatch

    @property
    def ids(self) -> np.ndarray:
        return np.array([document.id for document in self.dataset.documents], object)

    def projected(self, dim: int) -> Encoded:
        """Cut to `dim` by the principal components of a sample of token vectors (not centred), unit length again."""
        if dim == self.documents.dim:
            return self
        rows = np.random.default_rng(0).choice(
            len(self.documents.vectors), min(200_000, self.documents.n_tokens), False
        )
        sample = self.documents.vectors[np.sort(rows)].astype(np.float32)
        _, vectors = np.linalg.eigh(sample.T @ sample)
        basis = np.ascontiguousarray(vectors[:, ::-1][:, :dim])
        return Encoded(
            self.dataset, _projected(self.documents, basis, np.float16), _projected(self.queries, basis, np.float32)
        )


def _projected(batch: TokenBatch, basis: np.ndarray, dtype: type) -> TokenBatch:
    projected = np.empty((batch.n_tokens, basis.shape[1]), dtype)
    for start in range(0, batch.n_tokens, 65_536):
        rows = batch.vectors[start : start + 65_536].astype(np.float32) @ basis
        projected[start : start + 65_536] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return TokenBatch.unchecked(projected, batch.offsets)


def load(data: str | Path, vectors: str | Path, name: str) -> Encoded:
    """Read a set's token vectors (mapped, not copied), encoding it first if need be."""
    dataset = load_beir(Path(data) / name)
    folder = Path(vectors) / name
    if not (folder / "done").exists():
        _encode(dataset, folder)
    read = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("documents", "queries")}
    offsets = {part: offsets_of(np.load(folder / f"{part}_lengths.npy")) for part in read}
    return Encoded(dataset, *(TokenBatch.unchecked(read[part], offsets[part]) for part in ("documents", "queries")))


def _encode(dataset: Dataset, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder("minilm", device="cpu")
    started = time.perf_counter()
    texts = [document.text for document in dataset.documents]
    vectors, lengths = [], []
    for start in range(0, len(texts), 512):
        batch = encoder.encode_documents(texts[start : start + 512])
        vectors.append(batch.vectors.astype(np.float16))
        lengths.append(batch.lengths)
        rate = sum(map(int, map(np.sum, lengths))) / (time.perf_counter() - started)
        print(f"{dataset.name}: {start + len(batch):,} of {len(texts):,} documents, {rate:,.0f} tokens/s", flush=True)
    queries = encoder.encode_queries(list(dataset.queries.values()))
    for part, rows, counts in (
        ("documents", np.concatenate(vectors), np.concatenate(lengths)),
        ("queries", queries.vectors, queries.lengths),
    ):
        np.save(folder / f"{part}.npy", rows)
        np.save(folder / f"{part}_lengths.npy", counts)
    (folder / "done").touch()


def main() -> None:
    data, vectors, *names = sys.argv[1:]
    for name in names or sorted(os.listdir(data)):
        if (Path(data) / name / "queries.jsonl").exists():
            print(name, load(data, vectors, name).documents, flush=True)


if __name__ == "__main__":
    main()
