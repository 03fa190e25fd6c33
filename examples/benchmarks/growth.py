"""Measure how search grows with the corpus: time, memory and disk for 10,000 to 1,000,000 documents of 30 tokens.

    python examples/benchmarks/growth.py DATA_FOLDER VECTORS SET --db DIR [--sizes 10000 100000] [--storage int8]

A document is a run of real token vectors of SET with added noise, and words drawn by Zipf's law. A query is a third of
the tokens and words of one document, with noise of its own, so that there is something to find. Each step runs in a new
process, and peak memory is that of the whole process, including Python, torch and LanceDB. Every index is searched
twice: with the default cache, and with one for a quarter of its vectors, which has to stay within cache + 500 MB.
Indexes that exist in DIR are reused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report

from manyvec import Document, Index, TokenBatch
from manyvec.index import DEFAULT_CACHE_BYTES
from manyvec.vectors.batch import offsets_of

N_QUERIES, N_WARM_UP, N_COMPARED = 120, 20, 20
# Added to each token vector, as a share of its length: 0.5 leaves a cosine of 0.89 with the real one.
NOISE = 0.5
N_WORDS = 50_000


@dataclass(frozen=True)
class Corpus:
    """Synthetic documents and queries; a number yields the same document whatever the size of the corpus.

    Also the encoder of the process that adds documents, which does not search.
    """

    vectors: np.ndarray

    name = fingerprint = "synthetic"

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def document(self, number: int) -> Document:
        length, _, random = self._location(number)
        words = np.minimum(random.zipf(1.2, length), N_WORDS)
        return Document(f"d{number}", f"d{number} " + " ".join(f"w{word}" for word in words))

    def query(self, number: int, random: np.random.Generator) -> tuple[str, np.ndarray]:
        """Return a third of the words and tokens of a document."""
        length, start, _ = self._location(number)
        kept = np.sort(random.choice(length, length // 3, replace=False))
        words = self.document(number).text.split()[1:]
        return " ".join(words[position] for position in kept), noisy(self.vectors[start + kept], random)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        parts = []
        for text in texts:
            length, start, random = self._location(int(text.split()[0][1:]))
            parts.append(noisy(self.vectors[start : start + length], random))
        return TokenBatch.unchecked(np.concatenate(parts), offsets_of([len(part) for part in parts]))

    def _location(self, number: int) -> tuple[int, int, np.random.Generator]:
        random = np.random.default_rng([0, number])
        length = int(random.integers(15, 46))
        return length, int(random.integers(len(self.vectors) - length)), random


def noisy(vectors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    dim = vectors.shape[1]
    moved = vectors.astype(np.float32) + random.standard_normal(vectors.shape, np.float32) * (NOISE / dim**0.5)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


class KnownQueries:
    """Encoder of the process that searches: it holds the vectors of the known queries and nothing else."""

    name = fingerprint = "synthetic"

    def __init__(self, folder: Path) -> None:
        self.texts = json.loads((folder / "queries.json").read_text())
        vectors = np.load(folder / "queries.npy")
        self._tokens = TokenBatch.unchecked(vectors, offsets_of(np.load(folder / "queries_lengths.npy")))
        self.dim = self._tokens.dim

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return self._tokens.select([self.texts.index(query) for query in queries])


def build(source: tuple[str, str, str], dim: int, folder: Path, size: int, storage: str) -> dict[str, Any]:
    """Build the index and its queries, and return the seconds that took."""
    from encoded import load

    corpus = Corpus(load(*source).projected(dim).documents.vectors)
    random = np.random.default_rng(1)
    queries = dict(corpus.query(int(random.integers(size)), random) for _ in range(N_QUERIES))
    folder.mkdir(parents=True)
    (folder / "queries.json").write_text(json.dumps(list(queries)))
    np.save(folder / "queries.npy", np.concatenate(list(queries.values())))
    np.save(folder / "queries_lengths.npy", [len(tokens) for tokens in queries.values()])

    index = Index.create(folder / "index", corpus, **({} if storage == "float16" else {"storage": storage}))
    started = time.perf_counter()
    index.add(map(corpus.document, range(size)))
    added = time.perf_counter() - started
    index.optimize(keep=timedelta(0))
    optimized = time.perf_counter() - started - added
    return {
        "seconds_to_add": round(added, 1),
        "seconds_to_optimize": round(optimized, 1),
        "peak_MB_of_the_build": peak(),
    }


def search(folder: Path, cache_bytes: int) -> dict[str, Any]:
    """Measure searches; called in a process that has done nothing else."""
    import lancedb  # noqa: F401
    import torch  # noqa: F401

    imported = peak()
    encoder = KnownQueries(folder)
    index = Index.open(folder / "index", encoder, cache_bytes=cache_bytes)
    started = time.perf_counter()
    index.search(encoder.texts[0])
    first = time.perf_counter() - started
    # Versions before this answered the first search from the cache; now it is filled meanwhile.
    if (filling := getattr(getattr(index, "_reader", None), "_filling", None)) is not None:
        filling.join()
    milliseconds = []
    for text in encoder.texts:
        started = time.perf_counter()
        index.search(text)
        milliseconds.append(1000 * (time.perf_counter() - started))
    warm = milliseconds[N_WARM_UP:]
    info = index.info()
    return {
        "tokens": info.tokens,
        "bytes_on_disk": info.bytes_on_disk,
        "seconds_of_the_first_search": round(first, 1),
        "p50_milliseconds": round(statistics.median(warm), 2),
        "p95_milliseconds": round(float(np.percentile(warm, 95)), 2),
        "cache_MB": round(cache_bytes / 2**20),
        "cache_used_MB": round(info.bytes_in_memory / 2**20),
        "peak_MB": peak(),
        "peak_MB_of_imports": imported,
    }


def overlap(folder: Path, cache_bytes: int) -> float:
    """Return the share of the exhaustive top 10 that a search finds."""
    from manyvec.candidates import Exhaustive

    encoder = KnownQueries(folder)
    index, exhaustive = (Index.open(folder / "index", encoder, cache_bytes=cache_bytes) for _ in range(2))
    exhaustive.candidates = Exhaustive()
    texts = encoder.texts[:N_COMPARED]
    found, best = ([{hit.id for hit in hits} for hits in i.search_many(texts)] for i in (index, exhaustive))
    return round(float(np.mean([len(a & b) / len(b) for a, b in zip(found, best, strict=True)])), 4)


def peak() -> int:
    """Return the peak memory of this process in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 2**20 if sys.platform == "darwin" else most / 2**10)


def alone(step: partial[Any]) -> Any:
    """Run a step in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("set")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--storage", default="float16")
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()

    results: dict[str, Any] = {}
    for size in options.sizes:
        folder = options.db / f"{options.storage}-{size}"
        record = folder / "built.json"
        if not record.exists():
            source = (options.data, options.vectors, options.set)
            built = alone(partial(build, source, options.dim, folder, size, options.storage))
            record.write_text(json.dumps(built))
        whole = alone(partial(search, folder, DEFAULT_CACHE_BYTES))
        quarter = whole["cache_used_MB"] * 2**20 // 4
        results[f"{size} documents"] = {
            **json.loads(record.read_text()),
            "default cache": whole,
            "cache for a quarter": alone(partial(search, folder, quarter)),
            "overlap_of_the_top_10": alone(partial(overlap, folder, DEFAULT_CACHE_BYTES)),
        }
        print(size, json.dumps(results[f"{size} documents"], indent=1), flush=True)
    p50 = [row["default cache"]["p50_milliseconds"] for row in results.values()]
    growth = {
        f"{a} to {b} documents": round(after / before, 2)
        for a, b, before, after in zip(options.sizes, options.sizes[1:], p50, p50[1:], strict=False)
    }
    report.write(f"growth-{options.storage}", {"dim": options.dim, "p50_grows": growth, **results})


if __name__ == "__main__":
    main()
