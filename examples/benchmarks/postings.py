"""Measure BM25 from words in memory against LanceDB's full-text index: the 300 best documents for a query.

    python examples/benchmarks/postings.py DATA [SET ...] [--documents 100000]

`--documents` repeats the texts, shuffled word by word and cut to 30 words, up to this number. Figures are processor
milliseconds, medians over the queries. The first query of a process reads what it needs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report

from manyvec import Index, Vectors
from manyvec.evaluation import load_beir
from manyvec.retrieval.lexical import Lexicon
from manyvec.storage.words import coded

N_BEST = 300


def milliseconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def measure(texts: list[str], queries: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        index: Any = Index.create(folder, Vectors("none", dim=8))
        one = np.eye(1, 8, dtype=np.float16)
        index.add({"id": f"{i:07}", "text": text, "vectors": one} for i, text in enumerate(texts))
        index.optimize()
        version = index._reader.current()
        contenders = {"LanceDB": Lexicon(0), "words in memory": Lexicon(2**40)}
        first, taken, found = {}, {name: [] for name in contenders}, {}
        for name, lexicon in contenders.items():
            first[name] = milliseconds(lambda lexicon=lexicon: lexicon.match(version, queries[0], N_BEST))
        for query in queries:
            for name, lexicon in contenders.items():
                taken[name].append(
                    milliseconds(lambda lexicon=lexicon, query=query: lexicon.match(version, query, N_BEST))
                )
        for name, lexicon in contenders.items():
            found[name] = lexicon.match(version, queries[0], N_BEST)
        by_lancedb = dict(zip(found["LanceDB"].positions.tolist(), found["LanceDB"].scores.tolist(), strict=True))
        ours = found["words in memory"]
        pairs = zip(ours.positions.tolist(), ours.scores.tolist(), strict=True)
        differences = [abs(by_lancedb[p] / s - 1) for p, s in pairs if p in by_lancedb]
        after = []
        for i in range(5):
            index.add([{"id": f"new {i}", "text": f"a new text {i}", "vectors": one}])
            newer = index._reader.current()
            words = contenders["words in memory"]
            after.append(milliseconds(lambda newer=newer, words=words: words.match(newer, queries[0], N_BEST)))
    return {
        "milliseconds of a query": {name: round(statistics.median(values), 2) for name, values in taken.items()},
        "milliseconds of the first query": {name: round(value, 1) for name, value in first.items()},
        "milliseconds after adding a document": round(statistics.median(after), 2),
        "milliseconds of adding a document's words": round(milliseconds(lambda: coded(texts[:1000])) / 1000, 3),
        "MB in memory": round(contenders["words in memory"].bytes_held / 2**20, 1),
        "MB on disk": round(coded(texts)[0].nbytes / 2**20, 1),
        "largest relative difference of a score": float(f"{max(differences):.1e}"),
        "in both": len(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="*", default=["scifact"])
    parser.add_argument("--documents", type=int, nargs="*", default=[], help="Sizes beside that of the set.")
    options = parser.parse_args()
    results = {}
    for name, size in ((name, size) for name in options.sets for size in (0, *options.documents)):
        data = load_beir(options.data / name)
        texts = [document.text for document in data.documents]
        if size:
            rng = np.random.default_rng(0)
            chosen = [texts[i].split() for i in rng.integers(0, len(texts), size)]
            texts = [" ".join(rng.permutation(words)[:30]) for words in chosen]
        results[f"{name}, {len(texts)} documents"] = measure(texts, list(data.queries.values())[:100])
        print(results, flush=True)
    report.write("postings", results)


if __name__ == "__main__":
    main()
