"""Compare manyvec to LanceDB's own multivector indexes over the same vectors: build, time per query, and overlap.

    python examples/benchmarks/lancedb_native.py DATA_FOLDER VECTORS SET --db DIR [--dim 128] [--indexes IVF_PQ IVF_RQ]

LanceDB gets float32 vectors, because its indexes train 16 times slower on float16, and one table per index. Indexes
that exist in DIR are reused. All return the ids of the 10 best documents, take turns, and are timed without query
encoding. LanceDB ranks by what its index finds for each query token; with `refine_factor` it scores that many times
`limit` documents exactly, and with a larger `limit` it looks for more documents than the 10 that count. CPU seconds are
recorded beside wall-clock seconds, for machines with other load.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import report
from encoded import Encoded, Known, load
from lancedb.index import HnswSq, IvfPq, IvfRq

from manyvec import Index
from manyvec.candidates import Exhaustive
from manyvec.storage.lance import disk_bytes


def indexes(n_tokens: int) -> dict[str, Any]:
    """Return the configurations to compare.

    LanceDB's default number of partitions follows from the number of documents although its indexes hold tokens: the
    5,183 documents of SciFact make one partition, in which every search compares all 1.7 million tokens. So there are
    also configurations with about √n_tokens partitions.
    """
    n_partitions = 2 ** round(math.log2(n_tokens**0.5))
    return {
        "flat": None,
        "IVF_RQ_defaults": IvfRq(distance_type="cosine"),
        "IVF_RQ": IvfRq(distance_type="cosine", num_partitions=n_partitions),
        # Its default of 8 sub-vectors would leave half a bit a dim.
        "IVF_PQ": IvfPq(distance_type="cosine", num_partitions=n_partitions, num_sub_vectors=32),
        "IVF_HNSW_SQ": HnswSq(distance_type="cosine"),
    }


@dataclass(frozen=True)
class Setting:
    """Parameters of a LanceDB search; `nprobes` is the number of partitions searched for each query token."""

    nprobes: int = 20
    refine: int | None = None
    limit: int = 10

    def __str__(self) -> str:
        return f"nprobes={self.nprobes}, refine_factor={self.refine}, limit={self.limit}"


SETTINGS = (
    Setting(),
    Setting(limit=100),
    Setting(refine=10),
    Setting(refine=20),
    Setting(refine=40),
    Setting(nprobes=5),
    Setting(nprobes=5, refine=10),
    Setting(nprobes=1, refine=20),
)


def as_table(encoded: Encoded) -> Iterator[pa.RecordBatch]:
    """Yield ids and token vectors, 500 documents at a time."""
    ids, batch = encoded.ids, encoded.documents
    for start in range(0, len(batch), 500):
        part = batch.select(np.arange(start, min(start + 500, len(batch))))
        vectors = pa.FixedSizeListArray.from_arrays(part.vectors.astype(np.float32).ravel(), batch.dim)
        tokens = pa.ListArray.from_arrays(part.offsets.astype(np.int32), vectors)
        yield pa.record_batch({"id": pa.array(ids[start : start + 500].tolist()), "tokens": tokens})


def built(record: Path, build: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that building took, now or when the record was written."""
    if not record.exists():
        clock, processor = time.perf_counter(), time.process_time()
        build()
        took = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        record.write_text(json.dumps({name: round(value, 1) for name, value in took.items()}))
    return dict(json.loads(record.read_text()))


def opened(folder: Path, kind: str, config: Any, encoded: Encoded) -> tuple[Any, dict[str, float]]:
    """Return a table with this index, and the seconds that the index took to build."""
    database, record = lancedb.connect(str(folder / "lancedb")), folder / f"{kind}.json"
    if not record.exists():
        first, *_ = as_table(encoded)
        database.create_table(kind, as_table(encoded), schema=first.schema, mode="overwrite")
    table = database.open_table(kind)
    return table, built(record, lambda: config and table.create_index("tokens", config=config))


def find(table: Any, vectors: np.ndarray, setting: Setting) -> list[str]:
    query = table.search(vectors, vector_column_name="tokens").distance_type("cosine").nprobes(setting.nprobes)
    if setting.refine:
        query = query.refine_factor(setting.refine)
    return query.limit(setting.limit).select(["id", "_distance"]).to_arrow()["id"].to_pylist()[:10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("set")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--indexes", nargs="+", choices=[*indexes(1)], default=["IVF_PQ", "IVF_RQ"])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--timed", type=int, default=15, help="number of queries that are timed; 2 for flat")
    options = parser.parse_args()
    options.db.mkdir(parents=True, exist_ok=True)

    whole = load(options.data, options.vectors, options.set)
    encoded = whole.projected(options.dim or whole.documents.dim).every(options.queries)
    texts = list(encoded.dataset.queries.values())
    index = Index.create(options.db / "manyvec", Known(encoded), exist_ok=True, cache_bytes=8 * 2**30)
    index.add(encoded.dataset.documents)
    optimized = built(options.db / "manyvec.json", index.optimize)
    exhaustive = Index.open(options.db / "manyvec", Known(encoded), cache_bytes=8 * 2**30)
    exhaustive.candidates = Exhaustive()
    best = [{hit.id for hit in exhaustive.search(text)} for text in texts]

    def measured(search: Callable[[int], list[str]]) -> float:
        return round(float(np.mean([len({*search(i)} & best[i]) / len(best[i]) for i in range(len(texts))])), 4)

    def manyvec(i: int) -> list[str]:
        return [hit.id for hit in index.search(texts[i])]

    results: dict[str, Any] = {}
    for kind in options.indexes:
        config = indexes(encoded.documents.n_tokens)[kind]
        table, build = opened(options.db, kind, config, encoded)
        searches: dict[str, Callable[[int], list[str]]] = {"manyvec": manyvec}
        for setting in SETTINGS if config is not None else (Setting(),):
            searches[str(setting) if config is not None else kind] = partial(
                lambda i, table, setting: find(table, encoded.queries[i], setting), table=table, setting=setting
            )
        n_timed = options.timed if config is not None else 2
        rows = [
            report.medians({name: partial(search, i) for name, search in searches.items()}, rounds=2, pause=0.03)
            for i in range(min(n_timed, len(texts)))
        ]
        results[kind] = {
            "build": build,
            "bytes_on_disk": disk_bytes(str(options.db / "lancedb" / f"{kind}.lance")),
            "searches": {
                name: {
                    "milliseconds_a_query": round(float(np.median([row[name] for row in rows])), 2),
                    "overlap_of_the_top_10": measured(search) if config is not None else None,
                }
                for name, search in searches.items()
            },
        }
        # Written after each index, so that an interrupted run keeps its measurements.
        report.write(
            f"lancedb-{encoded.dataset.name}-{encoded.documents.dim}",
            {
                "documents": len(encoded.documents),
                "tokens": encoded.documents.n_tokens,
                "dim": encoded.documents.dim,
                "queries": len(texts),
                "manyvec": {"optimize": optimized},
                "lancedb": results,
            },
        )


if __name__ == "__main__":
    main()
