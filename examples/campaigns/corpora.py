"""Search random corpora and compare every score with numpy: all storages, updates and deletions between searches.

    python examples/campaigns/corpora.py [--checks 10000] [--seed 0]

A corpus has random documents of 1 to 60 token vectors of 3 to 130 dimensions, some of them alike. Each check searches
it, with or without a filter, from memory or from disk, exhaustively or through centroid lists of full depth, and
compares the hits with `maxsim_reference` of the stored vectors, which were compared with the given ones before.
"""

from __future__ import annotations

import collections
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import results
from numpy.typing import NDArray

from manyvec import F, Index, TokenBatch
from manyvec.candidates import Auto, Exhaustive
from manyvec.storage.maintenance.optimize import encode_residuals
from manyvec.vectors.codec import STORAGES
from manyvec.vectors.maxsim import maxsim_reference

CHECKS_OF_CORPUS = 40
# Largest difference of a similarity of unit vectors. Codes are compared as what they decode to: their own error is what
# the storage costs, and not part of this. On some CPUs they are compared with query tokens rounded to int8.
TOLERANCE = {"float16": 2e-3, "int8": 0.012, "int4": 0.012, "residual": 0.012, "binary": 0.012}
# Least cosine of a stored vector and the given one. Random vectors are the worst case for 2 bits around few centroids.
MIN_COSINE = {"float16": 0.999, "int8": 0.999, "int4": 0.95, "residual": 0.7, "binary": 0.5}


class Given:
    """An encoder of vectors that were given: a text is the number of its vectors."""

    name, fingerprint = "given", "given-1"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.vectors: list[NDArray[np.float32]] = []

    def new(self, rng: np.random.Generator) -> str:
        """Draw the vectors of a new text."""
        if self.vectors and rng.random() < 0.2:
            # Much like one that is there, so that scores are close or equal.
            vectors = self.vectors[rng.integers(len(self.vectors))].copy()
            if rng.random() < 0.5:
                vectors += rng.normal(size=vectors.shape).astype(np.float32) * 0.01
        else:
            vectors = rng.normal(size=(rng.integers(1, 61), self.dim)).astype(np.float32)
        self.vectors.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        return str(len(self.vectors) - 1)

    def encode_documents(self, texts: list[str]) -> TokenBatch:
        return TokenBatch.from_list([self.vectors[int(text)] for text in texts], dim=self.dim)

    encode_queries = encode_documents


def check(index: Index, known: dict[str, int], rng: np.random.Generator, dim: int, storage: str) -> str | None:
    """Compare one search with the reference; return what is wrong."""
    query = rng.normal(size=(rng.integers(1, 33), dim)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    below, k = int(rng.integers(0, 11)), int(rng.integers(1, 30))
    options: dict[str, Any] = {} if rng.random() < 0.5 else {"filter": F("n") < below}
    ids = sorted(id for id, n in known.items() if not options or n < below)
    expected = dict(zip(ids, maxsim_reference(query, index.token_vectors(ids)).tolist(), strict=True)) if ids else {}
    if rng.random() < 0.5:
        index.candidates = Exhaustive()
    else:
        index.candidates, options["depth"] = Auto(exhaustive_tokens=10), len(known) + 1
    hits = index.search(query, k=k, **options)
    tolerance = TOLERANCE[storage] * len(query)
    if len(hits) != min(k, len(ids)) or len({hit.id for hit in hits}) != len(hits):
        return f"{len(hits)} hits of {len(ids)} documents for k={k}"
    best = sorted(expected.values(), reverse=True)
    for hit, score in zip(hits, best, strict=False):
        if (
            hit.id not in expected
            or abs(hit.score - expected[hit.id]) > tolerance
            or abs(hit.score - score) > tolerance
        ):
            return f"{hit.id!r} scores {hit.score}, expected {expected.get(hit.id)}, at this rank {score}"
    order = [(-hit.score, hit.id) for hit in hits]
    return None if order == sorted(order) else "hits are not in order of score and id"


def corpus(folder: Path, seed: int, n_checks: int) -> tuple[str, list[str]]:
    """Build one corpus, and search and change it in turns; return its storage and what is wrong."""
    rng = np.random.default_rng(seed)
    storage, dim = STORAGES[seed % len(STORAGES)], int(rng.integers(3, 131))
    encoder = Given(dim)
    index = Index.create(
        folder, encoder, storage=storage, filter_columns={"n": int}, cache_bytes=int(rng.choice([2**30, 200_000, 0]))
    )
    known: dict[str, int] = {}
    wrong = []

    def add(n: int) -> None:
        ids = [f"{rng.integers(120):03}" for _ in range(n)]
        documents = [{"id": id, "text": encoder.new(rng), "metadata": {"n": int(rng.integers(10))}} for id in ids]
        index.add(documents)
        known.update({document["id"]: document["metadata"]["n"] for document in documents})
        last = documents[-1]
        given, stored = encoder.vectors[int(last["text"])], index.token_vectors([last["id"]]).vectors.astype(np.float32)
        stored /= np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-12)
        if given.shape != stored.shape or ((given * stored).sum(axis=1) < MIN_COSINE[storage]).any():
            wrong.append(f"{last['id']!r} is stored as other vectors")

    add(int(rng.integers(20, 200)))
    for number in range(n_checks):
        change = rng.random()
        if change < 0.10:
            add(int(rng.integers(1, 20)))
        elif change < 0.15:
            gone = sorted(known)[: int(rng.integers(1, 5))]
            index.delete(gone)
            known = {id: n for id, n in known.items() if id not in gone}
        elif change < 0.18:
            encode_residuals(index._store, min_tokens=1_000)
        elif change < 0.20 and sum(map(len, encoder.vectors)) > 2_000 and len(known) > 60:
            index.candidates = Auto(exhaustive_tokens=10)
            index.optimize()
        if fault := check(index, known, rng, dim, storage):
            wrong.append(f"check {number} of {storage}, dim {dim}: {fault}")
    return storage, wrong


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything was wrong."""
    parser = results.parser(__doc__, "corpora")
    parser.add_argument("--checks", type=int, default=10_000)
    options = parser.parse_args(arguments)
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    n_corpora = -(-options.checks // CHECKS_OF_CORPUS)
    for number in range(n_corpora):
        seed, n_checks = options.seed + number, min(CHECKS_OF_CORPUS, options.checks - number * CHECKS_OF_CORPUS)
        with tempfile.TemporaryDirectory() as folder:
            storage, wrong = corpus(Path(folder) / "index", seed, n_checks)
        counts[storage] += n_checks
        faults += [f"{fault} (--seed {seed} --checks {CHECKS_OF_CORPUS})" for fault in wrong]
        for fault in wrong:
            print(fault, flush=True)
        if (number + 1) % 25 == 0 or number + 1 == n_corpora:
            summary = {"checks": sum(counts.values()), "wrong": len(faults), "first faults": faults[:5]}
            results.write(options.output, summary | {"by storage": dict(counts)}, final=number + 1 == n_corpora)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
