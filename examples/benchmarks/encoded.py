"""Token vectors of judged data sets, encoded once with `minilm` and kept in a folder for every benchmark to read.

    python examples/benchmarks/encoded.py DATA_FOLDER VECTORS [SET ...]
    python examples/benchmarks/encoded.py DATA_FOLDER VECTORS scifact --dim 128 --to FOLDER

DATA_FOLDER holds sets in BEIR layout. The documents are encoded as an index would (whole, in windows where long) and
kept as float16; encoding is minutes a million tokens on a CPU, so no benchmark does it again. The second form writes
what `Encoded.projected` makes, in the same layout, for programs that cannot share an environment with manyvec.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from manyvec import TokenBatch, load_encoder
from manyvec.evaluation import Dataset, load_beir
from manyvec.vectors.batch import offsets_of


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
        documents = _projected(self.documents, basis, np.float16)
        return Encoded(self.dataset, documents, _projected(self.queries, basis, np.float32))

    def first(self, n_documents: int) -> Encoded:
        """The first documents alone, with all queries."""
        dataset = replace(self.dataset, documents=self.dataset.documents[:n_documents])
        return Encoded(dataset, self.documents.select(np.arange(len(dataset.documents))), self.queries)

    def every(self, n_queries: int) -> Encoded:
        """Return the same documents with about `n_queries` queries, evenly spread."""
        step = max(1, len(self.queries) // n_queries)
        queries = dict(list(self.dataset.queries.items())[::step])
        qrels = {query: self.dataset.qrels[query] for query in queries}
        dataset = replace(self.dataset, queries=queries, qrels=qrels)
        return Encoded(dataset, self.documents, self.queries.select(np.arange(0, len(self.queries), step)))


class Known:
    """An `Encoder` that knows the vectors of a set's texts, so that an index of it is built and searched without any
    encoding. Texts it does not know are a KeyError."""

    def __init__(self, encoded: Encoded) -> None:
        self.name = self.fingerprint = f"minilm on {encoded.dataset.name}, {encoded.documents.dim} dims"
        self.dim = encoded.documents.dim
        self._queries, self._documents = encoded.queries, encoded.documents
        self._query_of = {text: i for i, text in enumerate(encoded.dataset.queries.values())}
        self._document_of = {document.text: i for i, document in enumerate(encoded.dataset.documents)}

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return self._queries.select([self._query_of[text] for text in queries])

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        return self._documents.select([self._document_of[text] for text in texts])


def with_spans(encoded: Encoded) -> Encoded:
    """The same with the characters of each token: as the tokenizer gives them, or, where windows cut a text otherwise,
    as its encoding does."""
    encoder = load_encoder("minilm", device="cpu")

    def spanned(texts: list[str], tokens: TokenBatch, task: str) -> TokenBatch:
        spans = [spans[spans[:, 0] >= 0] for _, spans in encoder._spans(texts, task)]
        for i in np.flatnonzero([len(found) != n for found, n in zip(spans, tokens.lengths, strict=True)]):
            spans[i] = encoder.encode_documents([texts[i]]).spans
        return TokenBatch.unchecked(tokens.vectors, tokens.offsets, np.concatenate(spans))

    documents = spanned([document.text for document in encoded.dataset.documents], encoded.documents, "document")
    return Encoded(
        encoded.dataset, documents, spanned(list(encoded.dataset.queries.values()), encoded.queries, "query")
    )


def _projected(batch: TokenBatch, basis: np.ndarray, dtype: type) -> TokenBatch:
    projected = np.empty((batch.n_tokens, basis.shape[1]), dtype)
    for start in range(0, batch.n_tokens, 65_536):
        rows = batch.vectors[start : start + 65_536].astype(np.float32) @ basis
        projected[start : start + 65_536] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return TokenBatch.unchecked(projected, batch.offsets, batch.spans)


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
    documents = TokenBatch.unchecked(np.concatenate(vectors), offsets_of(np.concatenate(lengths)))
    _save(Encoded(dataset, documents, queries), folder)


def _save(encoded: Encoded, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, batch in (("documents", encoded.documents), ("queries", encoded.queries)):
        np.save(folder / f"{part}.npy", batch.vectors)
        np.save(folder / f"{part}_lengths.npy", batch.lengths)
    (folder / "done").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--to")
    options = parser.parse_args()
    for name in options.sets or sorted(os.listdir(options.data)):
        if (Path(options.data) / name / "queries.jsonl").exists():
            encoded = load(options.data, options.vectors, name)
            print(name, encoded.documents, flush=True)
            if options.to:
                _save(encoded.projected(options.dim or encoded.documents.dim), Path(options.to) / name)


if __name__ == "__main__":
    main()
