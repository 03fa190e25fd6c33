"""Compare exact search over a whole corpus to LanceDB's own multivector search over the same vectors.

    python examples/benchmarks/exhaustive.py DATA_FOLDER VECTORS SET [--dim 128] [--db DIR]

The index is built from token vectors that `encoded.py` stored. Both read its table and return the 10 best documents,
manyvec with a filled cache; query encoding is not timed. LanceDB ranks by cosine, which equals the dot product
of unit vectors.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import lancedb
import numpy as np
import report
from encoded import Known, load

from manyvec import Index
from manyvec.candidates import Exhaustive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("vectors")
    parser.add_argument("set")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--db", default=None)
    parser.add_argument("--queries", type=int, default=3, help="number of queries; LanceDB takes many seconds for each")
    options = parser.parse_args()

    encoded = load(options.data, options.vectors, options.set)
    encoded = encoded.projected(options.dim or encoded.documents.dim)
    uri = options.db or tempfile.mkdtemp()
    index = Index.create(uri, Known(encoded), exist_ok=True, cache_bytes=8 * 2**30)
    index.add(encoded.dataset.documents, show_progress=True)
    index.candidates = Exhaustive()
    table = lancedb.connect(uri).open_table("documents")
    texts = list(encoded.dataset.queries.values())[: options.queries]
    found: dict[tuple[str, int], list[str]] = {}

    def manyvec(i: int) -> None:
        found["manyvec", i] = [hit.id for hit in index.search(texts[i])]

    def lance(i: int) -> None:
        vectors = encoded.queries[i].astype(np.float16)
        search = table.search(vectors, vector_column_name="tokens").distance_type("cosine")
        found["lancedb", i] = search.limit(10).select(["id", "_distance"]).to_arrow()["id"].to_pylist()

    rows = [
        report.medians({"manyvec": partial(manyvec, i), "lancedb": partial(lance, i)}, rounds=2)
        for i in range(len(texts))
    ]
    typical = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    same = [len({*found["manyvec", i]} & {*found["lancedb", i]}) / 10 for i in range(len(texts))]
    info = index.info()
    report.write(
        f"exhaustive-{encoded.dataset.name}-{info.dim}",
        {
            "documents": info.documents,
            "tokens": info.tokens,
            "dim": info.dim,
            "query_tokens": encoded.queries.lengths[: len(texts)].tolist(),
            "milliseconds_a_query": typical,
            "times_faster_than_lancedb": round(typical["lancedb"] / typical["manyvec"], 1),
            "same_top_10": round(float(np.mean(same)), 3),
        },
    )


if __name__ == "__main__":
    main()
