"""Measure how well and how fast tools are found: BM25, mean token vectors, MaxSim, and the mix that `ToolIndex` uses.

python examples/benchmarks/tools.py DATA_FOLDER VECTORS [--times] [SET ...]

DATA_FOLDER holds metatool, livemcpbench, stabletoolbench and seal-tools in BEIR layout; all test queries are used.
Vectors encoded with `minilm` are kept in the folder VECTORS for the next run.

- `bm25, LanceDB`: LanceDB's full-text index over the plain text of the data set, as `manyvec eval` measures it.
- `bm25, ToolIndex` and `pooled`: BM25 and mean vectors over the text of a tool, as `ToolIndex` computes them.
- `ToolIndex`: the default settings, with candidates. `weight ...` reorders the exactly scored tools with another
  `bm25_weight`; weight 0 is MaxSim alone.

With `--times`, only the time of a selection for an encoded request is measured; run that on a quiet machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import report

from manyvec import Document, Index, TokenBatch, ToolIndex
from manyvec.candidates import Lexical
from manyvec.evaluation import Dataset, Run, evaluate, load_beir
from manyvec.testing import HashEncoder
from manyvec.tools.bm25 import words_of
from manyvec.tools.catalog import BM25_WEIGHT, DEPTH
from manyvec.vectors.batch import offsets_of

SETS = ("metatool", "livemcpbench", "stabletoolbench", "seal-tools")
WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06)
MEASURES = ("nDCG@10", "Recall@5")


def as_tool(document: Document) -> dict[str, Any]:
    """Return the JSON-schema tool that a document of these data sets describes; its id becomes the name."""
    _, _, written = document.text.rpartition(" Parameters: {")
    parameters = json.loads("{" + written) if written.endswith("}") else {}
    if "properties" not in parameters:
        lists = [parameters.get(key, []) for key in ("required", "optional")]
        if all(isinstance(arguments, list) for arguments in lists):
            listed = [argument for arguments in lists for argument in arguments if isinstance(argument, dict)]
            parameters = {"properties": {argument["name"]: argument for argument in listed} or parameters}
        else:
            parameters = {"properties": parameters}
    category = document.metadata.get("category")
    description = document.metadata.get("description") or ""
    return {
        "name": document.id,
        "description": f"{description} Category: {category}" if category else description,
        "input_schema": parameters,
    }


def tool_index(dataset: Dataset, folder: Path) -> ToolIndex:
    file, tools = folder / f"{dataset.name}.safetensors", map(as_tool, dataset.documents)
    index = ToolIndex.load(file, tools=tools) if file.exists() else ToolIndex("minilm", tools)
    index.save(file)
    # The file keeps the settings it was written with; measure today's defaults.
    index.bm25_weight, index.depth = BM25_WEIGHT, DEPTH
    return index


def query_tokens(dataset: Dataset, index: ToolIndex, folder: Path) -> TokenBatch:
    file = folder / f"{dataset.name}-queries.npz"
    if not file.exists():
        tokens = index.encoder.encode_queries(list(dataset.queries.values()))
        np.savez(file, vectors=tokens.vectors.astype(np.float16), lengths=tokens.lengths)
    kept = np.load(file)
    return TokenBatch(kept["vectors"], offsets_of(kept["lengths"]))


def full_text(dataset: Dataset) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(folder, HashEncoder(8))
        index.add(dataset.documents)
        index.optimize()
        return dict(zip(dataset.queries, index.rank(list(dataset.queries.values()), Lexical(), 10), strict=True))


def measure(dataset: Dataset, folder: Path) -> dict[str, Any]:
    index = tool_index(dataset, folder)
    tokens = query_tokens(dataset, index, folder)
    catalog = index._catalog
    runs: dict[str, Run] = {"bm25, LanceDB": full_text(dataset), "bm25, ToolIndex": {}, "pooled": {}, "ToolIndex": {}}
    runs |= {f"weight {weight}": {} for weight in WEIGHTS}
    for i, (query, text) in enumerate(dataset.queries.items()):
        scores = {
            "bm25, ToolIndex": catalog.bm25.scores(words_of(text)),
            "pooled": catalog.pooled @ tokens[i].astype(np.float32).mean(axis=0),
        }
        for method, of_all in scores.items():
            runs[method][query] = catalog.names[np.argsort(-of_all, kind="stable")[:10]].tolist()
        hits = index.select_encoded(text, tokens.select([i]), DEPTH)
        runs["ToolIndex"][query] = [hit.name for hit in hits[:10]]
        for weight in WEIGHTS:
            mixed = {
                hit.name: hit.similarity + weight * (hit.score - hit.similarity) / index.bm25_weight for hit in hits
            }
            runs[f"weight {weight}"][query] = sorted(mixed, key=mixed.__getitem__, reverse=True)[:10]
    return {
        "tools": len(index),
        "tokens": catalog.tokens.n_tokens,
        "queries": len(dataset.queries),
        "query tokens": tokens.n_tokens,
        **{
            method: {name: round(value, 4) for name, value in evaluate(dataset.qrels, run, MEASURES).items()}
            for method, run in runs.items()
        },
    }


def measure_times(dataset: Dataset, folder: Path) -> dict[str, Any]:
    index = tool_index(dataset, folder)
    tokens = query_tokens(dataset, index, folder)
    wall, processor = [], []
    for i, text in enumerate(dataset.queries.values()):
        started = time.perf_counter(), time.process_time()
        index.select_encoded(text, tokens.select([i]), 10)
        wall.append(1000 * (time.perf_counter() - started[0]))
        processor.append(1000 * (time.process_time() - started[1]))
    return {
        "tools": len(index),
        "selections": len(wall),
        "p50, milliseconds": round(statistics.median(wall), 1),
        "p95, milliseconds": round(statistics.quantiles(wall, n=20)[-1], 1),
        "p50, CPU milliseconds": round(statistics.median(processor), 1),
    }


def main() -> None:
    data, vectors, *names = sys.argv[1:]
    only_times = "--times" in names
    names = [name for name in names if name != "--times"]
    folder = Path(vectors) / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in names or SETS:
        results[name] = (measure_times if only_times else measure)(load_beir(Path(data) / name), folder)
        print(name, json.dumps(results[name], indent=1), flush=True)
    report.write("tools-times" if only_times else "tools", results)


if __name__ == "__main__":
    main()
