"""Measure what `manyvec.tune` gains: train on the train split of a set, measure its test split before and after.

    python examples/training/tune_sets.py DATA metatool squad-dev --method projection --dim 128 --minutes 15

`tune` holds out its own queries and never reads the test split. Each result is written to
`results/tune-SET-METHOD.json`, with the minutes that training took, the processor time and the load of the machine;
`--name` names it otherwise, for runs that compare `--negatives` or `--learning-rate`.
With `--vectors`, the folder of `../benchmarks/encoded.py`, documents are not encoded again with `minilm`: `tune` gets
an index of them, and the test knows them before, and after a projection. With `--from-index` the documents themselves
ask what is trained (`manyvec.training.questions`); only the test reads judged queries.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from stored import projected, read

import manyvec
from manyvec.evaluation import Dataset, evaluate, load_beir

MEASURE = "nDCG@10"
RESULTS = Path(__file__).parent / "results"


def filled(folder: str | Path, model: str, data: Dataset, tokens: manyvec.TokenBatch | None = None) -> manyvec.Index:
    """Return an index of the documents, with these token vectors if they are known."""
    documents = data.documents
    if tokens is not None:
        pairs = zip(documents, tokens, strict=True)
        documents = [replace(document, vectors=vectors) for document, vectors in pairs if len(vectors)]
    index = manyvec.Index.create(folder, model)
    index.add(documents, adopt_vectors=tokens is not None)
    return index


def ndcg(model: str, data: Dataset, tokens: manyvec.TokenBatch | None = None) -> dict[str, list[float]]:
    """Return nDCG@10 of each query over all documents: by exact MaxSim, and mixed with BM25 as a default search does.

    Args:
        model: Name of the model, or folder of a tuned one.
        data: Data set.
        tokens: Token vectors of its documents, if they are known.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = filled(folder, model, data, tokens)
        weights = {"maxsim": 0, "default": index.info().lexical_weight}
        ranked = index.rank_mixed(list(data.queries.values()), sorted({*weights.values()}))
    gains = {}
    for name, weight in weights.items():
        run = dict(zip(data.queries, ranked[weight], strict=True))
        gains[name] = [evaluate({query: data.qrels[query]}, run, [MEASURE])[MEASURE] for query in data.queries]
    return gains


def sampled(source: Path, folder: Path, n_queries: int) -> Path:
    """Return a copy of a data set with the judgments of `n_queries` random queries in each split."""
    if not folder.exists():
        shutil.copytree(source, folder)
        for split in folder.glob("qrels/*.tsv"):
            header, *lines = split.read_text(encoding="utf-8").splitlines()
            queries = sorted({line.split("\t")[0] for line in lines})
            chosen = set(np.random.default_rng(0).permutation(queries)[:n_queries].tolist())
            kept = [line for line in lines if line.split("\t")[0] in chosen]
            split.chmod(0o644)
            split.write_text("\n".join([header, *kept, ""]), encoding="utf-8")
    return folder


def some_queries(data: Dataset, n_queries: int | None) -> Dataset:
    """Return a data set with `n_queries` of its queries, a random sample; all by default."""
    if n_queries is None or n_queries >= len(data.queries):
        return data
    names = list(data.queries)
    chosen = sorted(np.random.default_rng(0).permutation(len(names))[:n_queries].tolist())
    return replace(data, queries={names[i]: data.queries[names[i]] for i in chosen})


def ndcg_before(model: str, data: Dataset, work: Path, tokens: manyvec.TokenBatch | None) -> dict[str, list[float]]:
    """Return what `ndcg` does, computed once for a model and a data set and kept in `work`."""
    stored = work / f"ndcg-{data.name}-{model}-{len(data.queries)}.json"
    if not stored.exists():
        stored.write_text(json.dumps(ndcg(model, data, tokens)), encoding="utf-8")
    return json.loads(stored.read_text(encoding="utf-8"))


def matrix_of(model: str) -> np.ndarray:
    """Return the (dim, width) projection of a tuned model."""
    return load_file(f"{model}/1_Dense/model.safetensors")["linear.weight"]


def interval(differences: np.ndarray) -> list[float]:
    """Return the mean and the ends of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [differences[rng.integers(0, len(differences), len(differences))].mean() for _ in range(2000)]
    return [float(differences.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]


def tested(arguments: argparse.Namespace, folder: Path, tuned: str, work: Path) -> dict[str, object]:
    """Return nDCG@10 of the test queries of a set before and after, by MaxSim alone and by a default search."""
    test = some_queries(load_beir(folder), arguments.test_queries)
    known = read(arguments.vectors / test.name)["documents"] if arguments.vectors else None
    before = ndcg_before(arguments.model, test, work, known)
    is_linear = known is not None and arguments.method == "projection"
    after = ndcg(tuned, test, projected(known, matrix_of(tuned)) if is_linear else None)
    found: dict[str, object] = {"queries": len(test.queries)}
    for name in before:
        gain = interval(np.subtract(after[name], before[name]))
        found[name] = {"before": np.mean(before[name]), "after": np.mean(after[name]), "gain": gain}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--method", choices=["full", "lora", "projection"], default="full")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--negatives", type=int, default=2)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--name", help="Name of the result, after `tune-`.")
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--queries", type=int, help="Train on, and test on, a random sample of at most N queries each.")
    parser.add_argument("--test-queries", type=int, help="Test on a random sample of at most N queries.")
    parser.add_argument("--unseen", nargs="*", default=[], help="Sets that nothing is trained on, measured as well.")
    parser.add_argument("--also", nargs="*", default=[], help="Other sets to test in the same way.")
    parser.add_argument("--work", type=Path, help="Folder for the tuned models; a temporary one by default.")
    parser.add_argument("--vectors", type=Path, help="Folder of token vectors of `minilm`.")
    parser.add_argument("--from-index", action="store_true", help="Train on what the documents themselves ask.")
    arguments = parser.parse_args()
    if arguments.vectors and arguments.model != "minilm":
        parser.error("--vectors are those of minilm")
    work = arguments.work or Path(tempfile.mkdtemp())
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.sets:
        wall, processor = time.monotonic(), time.process_time()
        title = arguments.name or f"{name}-{arguments.method}{'-from-index' if arguments.from_index else ''}"
        out = work / title
        folder = arguments.data / name
        if arguments.queries:
            folder = sampled(folder, work / f"{name}-sample", arguments.queries)
        known = read(arguments.vectors / name)["documents"] if arguments.vectors else None
        source: Path | manyvec.Index = folder
        judged = None
        if known is not None or arguments.from_index:
            data = load_beir(folder, "test" if arguments.from_index else "train")
            shutil.rmtree(work / f"{title}-index", ignore_errors=True)
            source = filled(work / f"{title}-index", arguments.model, data, known)
            if not arguments.from_index:
                judged = {data.queries[query]: list(grades) for query, grades in data.qrels.items()}
        report = manyvec.tune(
            arguments.model,
            source,
            out,
            judged=judged,
            method=arguments.method,
            dim=arguments.dim,
            minutes=arguments.minutes,
            negatives=arguments.negatives,
            learning_rate=arguments.learning_rate,
            holdout=arguments.holdout,
            unseen=[arguments.data / other for other in arguments.unseen],
            on_progress=lambda point: print(point, flush=True),
        )
        spent = {"wall_minutes": (time.monotonic() - wall) / 60, "cpu_minutes": (time.process_time() - processor) / 60}
        result = {"set": name, "report": report.as_dict(), "load": os.getloadavg(), **spent}
        result |= {"sample_of_queries": arguments.queries, "holdout": arguments.holdout}
        if report.out:
            result["test"] = tested(arguments, folder, report.out, work)
            others = [arguments.data / other for other in arguments.also]
            result["also"] = {other.name: tested(arguments, other, report.out, work) for other in others}
        print(json.dumps({key: result.get(key) for key in ("set", "test", *spent)}), report.warnings, flush=True)
        # Without the folders of this machine.
        text = json.dumps(result, indent=1).replace(json.dumps(f"{work}{os.sep}")[1:-1], "")
        (RESULTS / f"tune-{title}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
