"""Compare Qdrant Edge with manyvec on the same token vectors: processor time, overlap, disk and memory.

    pip install qdrant-edge-py
    python examples/benchmarks/encoded.py DATA VECTORS scifact
    OMP_NUM_THREADS=1 python examples/benchmarks/qdrant.py DATA VECTORS scifact [--dim 128] [--queries 100]

Both hold float16 and get the vectors of the queries. Qdrant Edge searches exactly: its HNSW graph compares whole
documents with each other while it is built, which takes hours for these. manyvec searches exactly, and with its
centroid lists in float16 and int8. Each contender runs in a process of its own. Figures are processor milliseconds,
medians over the queries; overlap is the share of the exact ten best.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report
from encoded import Encoded, load

CONTENDERS = ("Qdrant Edge, exact", "manyvec, exact", "manyvec, lists", "manyvec, lists, int8")


def qdrant(encoded: Encoded, folder: str) -> Callable[[int], list[int]]:
    """Add everything to a shard, and return a function that finds the positions of the ten best."""
    import qdrant_edge as edge

    config = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    vectors = edge.EdgeVectorParams(
        encoded.documents.dim,
        edge.Distance.Dot,
        multivector_config=config,
        datatype=edge.VectorStorageDatatype.Float16,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10**9),
    )
    Path(folder).mkdir(exist_ok=True)
    shard = edge.EdgeShard.create(folder, edge.EdgeConfig(vectors, max_search_threads=1))
    for start in range(0, len(encoded.documents), 256):
        stop = min(start + 256, len(encoded.documents))
        points = [edge.Point(i, encoded.documents[i].astype(np.float32).tolist()) for i in range(start, stop)]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    exact = edge.SearchParams(exact=True)

    def best(i: int) -> list[int]:
        query = edge.Query.Nearest(encoded.queries[i].astype(np.float32).tolist())
        return [point.id for point in shard.query(edge.QueryRequest(10, query=query, params=exact))]

    return best


def manyvec(encoded: Encoded, folder: str, contender: str) -> Callable[[int], list[int]]:
    """Add everything to an index, and return a function that finds the positions of the ten best."""
    from manyvec import Document, Index, Vectors
    from manyvec.candidates import Exhaustive

    storage = "int8" if "int8" in contender else "float16"
    index = Index.create(folder, Vectors("given", encoded.documents.dim), storage=storage)
    index.add(
        (Document(str(i), f"text {i}", vectors=vectors) for i, vectors in enumerate(encoded.documents)),
        adopt_vectors=True,
    )
    if "exact" in contender:
        index.candidates = Exhaustive()
    else:
        index.optimize(keep=timedelta(0))
    queries = encoded.queries
    return lambda i: [int(hit.id) for hit in index.search(queries[i], 10)]


def resident() -> int:
    """Return the resident memory of this process in kB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def measure(source: tuple[str, str, str], dim: int, n_queries: int, contender: str) -> dict[str, Any]:
    """Measure one contender; called in a process that has done nothing else."""
    encoded = load(*source).projected(dim).every(n_queries)
    with tempfile.TemporaryDirectory() as folder:
        before, started = resident(), time.process_time()
        best = qdrant(encoded, folder) if "Qdrant" in contender else manyvec(encoded, folder, contender)
        built = time.process_time() - started
        for i in range(3):
            best(i)
        # An index with lists reads its vectors behind its first searches.
        time.sleep(20)
        taken, found = [], []
        for i in range(len(encoded.queries)):
            started = time.process_time()
            found.append(best(i))
            taken.append(1000 * (time.process_time() - started))
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return {
            "milliseconds of a query": round(statistics.median(taken), 1),
            "seconds to add and build": round(built, 1),
            "MB on disk": round(on_disk / 2**20),
            "MB of memory beside the vectors given": round((resident() - before) / 2**10),
            "found": found,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs=3, metavar=("DATA", "VECTORS", "SET"))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for contender in CONTENDERS:
        step = partial(measure, tuple(options.source), options.dim, options.queries, contender)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results[contender] = pool.submit(step).result()
    exact = results["manyvec, exact"]["found"]
    for row in results.values():
        found = row.pop("found")
        row["overlap"] = round(float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)])), 4)
    report.write("qdrant-edge", results, [*report.PACKAGES, "qdrant-edge-py"])


if __name__ == "__main__":
    main()
