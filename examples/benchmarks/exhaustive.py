"""Exact search over a whole corpus: manyvec, warm, against LanceDB's own multivector search over the same vectors.

    python examples/benchmarks/exhaustive.py DATASET [--db DIR]

Both read one table, made by `manyvec eval DATASET --db DIR` if it is there. Queries are encoded beforehand, and both
answer with ids of the 10 best. LanceDB measures cosine, which equals MaxSim's dot product for unit vectors.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import lancedb
import numpy as np
import report

from manyvec import Index, MaxSimScorer, load_encoder
from manyvec.evaluation import load_beir
from manyvec.resident import Resident
from manyvec.scoring import top_k
from manyvec.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--db", default=None)
    parser.add_argument("--queries", type=int, default=3, help="LanceDB takes many seconds for each")
    options = parser.parse_args()

    dataset = load_beir(options.dataset)
    encoder = load_encoder("minilm", device="cpu")
    uri = options.db or tempfile.mkdtemp()
    Index.create(uri, encoder, exist_ok=True).add(dataset.documents, show_progress=True)

    table = lancedb.connect(uri).open_table("documents")
    resident = Resident.load(Store.open(uri).snapshot(), encoder.dim, budget=8 * 2**30)
    scorer = MaxSimScorer()
    queries = encoder.encode_queries(list(dataset.queries.values())[: options.queries])

    found: dict[tuple[str, int], list[str]] = {}

    def manyvec(i: int) -> None:
        scores = resident.score(scorer, queries.select([i]))[0]
        found["manyvec", i] = [resident.states.ids[place] for place in top_k(scores, resident.states.ids, 10)]

    def lance(i: int) -> None:
        search = table.search(queries[i].astype(np.float16), vector_column_name="tokens").distance_type("cosine")
        found["lancedb", i] = search.limit(10).select(["id"]).to_arrow()["id"].to_pylist()

    def index_search(i: int) -> None:
        index.search(texts[i], k=10)

    index, texts = Index.open(uri, encoder, cache_bytes=8 * 2**30), list(dataset.queries.values())
    rows = []
    for i in range(options.queries):
        contenders = {"manyvec": partial(manyvec, i), "lancedb": partial(lance, i)}
        contenders["Index.search with encoding"] = partial(index_search, i)
        rows.append(report.medians(contenders, rounds=2))
    typical = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    same = [len({*found["manyvec", i]} & {*found["lancedb", i]}) / 10 for i in range(len(queries))]
    report.write(
        f"exhaustive-{dataset.name}",
        {
            "documents": len(resident),
            "tokens": int(resident.states.n_tokens.sum()),
            "dim": encoder.dim,
            "query_tokens": queries.lengths.tolist(),
            "milliseconds_a_query": typical,
            "times_faster_than_lancedb": round(typical["lancedb"] / typical["manyvec"], 1),
            "same_top_10": round(float(np.mean(same)), 3),
        },
    )


if __name__ == "__main__":
    main()
