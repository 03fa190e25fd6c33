"""How well tools are found, and how fast: BM25, mean token vectors, MaxSim, and the mixes that `ToolIndex` can make.

python examples/benchmarks/tools.py DATA_FOLDER

The folder holds metatool, livemcpbench, stabletoolbench and seal-tools in BEIR layout. 150 queries of each, spread
evenly. MaxSim and pooled are exhaustive; the mixes are what `ToolIndex` answers, candidates and all.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import report

from manyvec import Document, MaxSimScorer, ToolIndex
from manyvec.evaluation import evaluate, load_beir

SETS = ("metatool", "livemcpbench", "stabletoolbench", "seal-tools")
WEIGHTS = (0.5, 0.65, 0.8, 1.0)
MEASURES = ("nDCG@10", "Recall@5")
MAX_QUERIES = 150


def as_tool(document: Document) -> dict[str, Any]:
    """The JSON-schema tool that a document of these sets describes; its id is its name."""
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


def main() -> None:
    results = {}
    for name in SETS:
        dataset = load_beir(Path(sys.argv[1]) / name)
        step = max(1, len(dataset.queries) // MAX_QUERIES)
        queries = dict(list(dataset.queries.items())[::step][:MAX_QUERIES])
        qrels = {query: dataset.qrels[query] for query in queries}
        tools = ToolIndex("minilm", map(as_tool, dataset.documents))
        tokens = tools.encoder.encode_queries(list(queries.values()))

        runs = {"maxsim": {}, "pooled": {}} | {f"mix {weight}": {} for weight in WEIGHTS}
        catalog, scorer, seconds = tools._catalog, MaxSimScorer(), []
        for i, (query, text) in enumerate(queries.items()):
            exact = {"maxsim": scorer.score(tokens[i], catalog.tokens)}
            exact["pooled"] = catalog.pooled @ tokens[i].mean(axis=0)
            for method, scores in exact.items():
                runs[method][query] = catalog.names[np.argsort(-scores, kind="stable")[:10]].tolist()
            one = tokens.select([i])
            for weight in WEIGHTS:
                tools.lexical_weight = weight
                started = time.perf_counter()
                runs[f"mix {weight}"][query] = [hit.name for hit in tools.select_encoded(text, one, 10)]
                seconds.append(time.perf_counter() - started)
        results[name] = {
            "tools": len(tools),
            "tokens": catalog.tokens.n_tokens,
            "queries": len(queries),
            "query tokens": tokens.n_tokens,
            "p50 of a selection in milliseconds": round(1000 * statistics.median(seconds), 1),
            **{m: {k: round(v, 4) for k, v in evaluate(qrels, run, MEASURES).items()} for m, run in runs.items()},
        }
        print(name, json.dumps(results[name], indent=1), flush=True)
    report.write("tools", results)


if __name__ == "__main__":
    main()
