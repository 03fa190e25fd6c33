"""Measure fast-plaid on the CPU: the cost of building its index, and the speed and overlap of its settings.

    python examples/benchmarks/encoded.py DATA_FOLDER VECTORS scifact --dim 128 --to FOLDER
    python examples/benchmarks/plaid.py FOLDER/scifact INDEX [--queries 200]

fast-plaid pins torch, so this script runs in an environment of its own, without manyvec, and reads token vectors from
files. An existing INDEX is reused. CPU seconds of the build are recorded beside wall-clock seconds, for machines with
other load. `candidates.py` measures manyvec on the same vectors; run one right after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import report
import torch
from fast_plaid.search import FastPlaid

SETTINGS = {
    "defaults": {},
    "n_full_scores=1024": {"n_full_scores": 1024},
    "n_full_scores=300": {"n_full_scores": 300},
    "n_full_scores=300, n_ivf_probe=16": {"n_full_scores": 300, "n_ivf_probe": 16},
    "n_full_scores=300, n_ivf_probe=4": {"n_full_scores": 300, "n_ivf_probe": 4},
    "n_full_scores=300, n_ivf_probe=2": {"n_full_scores": 300, "n_ivf_probe": 2},
    "n_full_scores=200, n_ivf_probe=4": {"n_full_scores": 200, "n_ivf_probe": 4},
    "n_full_scores=200, n_ivf_probe=2": {"n_full_scores": 200, "n_ivf_probe": 2},
    "n_full_scores=100": {"n_full_scores": 100},
    "n_full_scores=100, n_ivf_probe=2": {"n_full_scores": 100, "n_ivf_probe": 2},
}


def read(folder: Path, part: str) -> list[torch.Tensor]:
    vectors = torch.from_numpy(np.load(folder / f"{part}.npy"))
    return list(vectors.split(np.load(folder / f"{part}_lengths.npy").tolist()))


def exhaustive(documents: list[torch.Tensor], queries: list[torch.Tensor]) -> list[list[int]]:
    """Return the ten documents with the highest MaxSim for each query."""
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]])
    everything = torch.cat(documents)
    best = []
    for query in queries:
        similarities = np.empty((len(query), len(everything)), np.float32)
        for start in range(0, len(everything), 65_536):
            block = everything[start : start + 65_536].float()
            similarities[:, start : start + 65_536] = (query.float() @ block.T).numpy()
        scores = np.maximum.reduceat(similarities, starts, axis=1).sum(axis=0)
        best.append(np.argsort(-scores, kind="stable")[:10].tolist())
    return best


def build(folder: Path, documents: list[torch.Tensor]) -> None:
    clock, processor = time.perf_counter(), time.process_time()
    FastPlaid(index=str(folder), device="cpu").create(documents_embeddings=documents)
    built = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
    (folder / "built.txt").write_text(json.dumps({name: round(value, 1) for name, value in built.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--timed", type=int, default=30, help="number of queries that are timed, with every setting in turn"
    )
    options = parser.parse_args()

    documents = read(options.vectors, "documents")
    # Written last, so that an index whose build was interrupted is built again.
    if not (options.index / "built.txt").exists():
        build(options.index, documents)
    queries = read(options.vectors, "queries")
    queries = queries[:: max(1, len(queries) // options.queries)][: options.queries]
    wanted = exhaustive(documents, queries)

    index = FastPlaid(index=str(options.index), device="cpu")
    search = partial(index.search, top_k=10, show_progress=False)
    overlap = {}
    for name, setting in SETTINGS.items():
        found = search(queries, **setting)
        shared = [
            len({document for document, _ in ranked} & {*best}) for ranked, best in zip(found, wanted, strict=True)
        ]
        overlap[name] = round(sum(shared) / (10 * len(queries)), 4)
    rows = [
        report.medians(
            {name: partial(search, [query], **setting) for name, setting in SETTINGS.items()}, rounds=2, pause=0.03
        )
        for query in queries[: options.timed]
    ]
    report.write(
        f"fast-plaid-{options.vectors.name}",
        {
            "documents": len(documents),
            "tokens": sum(map(len, documents)),
            "dim": documents[0].shape[1],
            "threads": torch.get_num_threads(),
            "build": json.loads((options.index / "built.txt").read_text()),
            "bytes_on_disk": sum(path.stat().st_size for path in options.index.rglob("*") if path.is_file()),
            "queries": len(queries),
            "settings": {
                name: {
                    "milliseconds_a_query": round(statistics.median(row[name] for row in rows), 2),
                    "overlap_of_the_top_10": overlap[name],
                }
                for name in SETTINGS
            },
        },
        packages=("fast_plaid", "torch", "numpy"),
    )


if __name__ == "__main__":
    main()
