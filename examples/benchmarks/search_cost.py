"""Compare what searches cost, from a warm one to a whole process, between two versions of manyvec.

    git worktree add ../before COMMIT
    python examples/benchmarks/encoded.py DATA VECTORS cranfield
    python examples/benchmarks/search_cost.py DATA VECTORS cranfield ../before/src src [--rounds 3]

The model is `minilm`; vectors of the documents come from VECTORS, so that adding takes no time. Each round runs every
measurement in a process of its own for each version, in turns. The figures are processor milliseconds, medians of the
rounds; the ratio is the median of each round's ratio. A server's processor time is read from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

N_QUERIES, N_SMALL, N_SERVED = 100, 300, 96


class Known:
    """`minilm`, whose documents are encoded already."""

    name, dim = "minilm", 384

    def __init__(self, data: str, vectors: str, name: str) -> None:
        from manyvec import TokenBatch, load_encoder
        from manyvec.evaluation import load_beir

        self._queries, self.dataset = load_encoder("minilm", device="cpu"), load_beir(Path(data) / name)
        folder = Path(vectors) / name
        ends = np.cumsum(np.load(folder / "documents_lengths.npy"))[:-1]
        rows = np.split(np.load(folder / "documents.npy").astype(np.float32), ends)
        self._documents, self.fingerprint = TokenBatch.from_list(rows), self._queries.fingerprint
        # Query strings whose token vectors are known are not encoded.
        self.known: dict[str, np.ndarray] = {}
        self._positions = {document.text: i for i, document in enumerate(self.dataset.documents)}

    def encode_queries(self, queries: Sequence[str]) -> Any:
        from manyvec import TokenBatch

        if all(query in self.known for query in queries):
            return TokenBatch.from_list([self.known[query] for query in queries])
        return self._queries.encode_queries(queries)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        if not all(text in self._positions for text in texts):
            return self._queries.encode_documents(texts)
        return self._documents.select([self._positions[text] for text in texts])


def build(encoder: Known, folder: Path) -> None:
    """Make an index with all documents and centroid lists, and one with a few."""
    from manyvec import Index

    documents = [{"id": document.id, "text": document.text} for document in encoder.dataset.documents]
    index: Any = Index.create(folder / "all", encoder)
    index.add(documents)
    index.optimize()
    # Encoded here, because evidence needs to know which characters each vector belongs to.
    Index.create(folder / "few", "minilm").add(documents[:N_SMALL])


def measure(encoder: Known, folder: Path) -> dict[str, float]:
    """Return processor milliseconds of searches, and the memory of this process beyond its vectors in MB."""
    import torch  # noqa: F401

    from manyvec import Index

    taken: dict[str, float] = {}
    queries = list(encoder.dataset.queries.values())[:N_QUERIES]
    index: Any = Index.open(folder / "all", encoder)
    known = dict(zip(queries, encoder.encode_queries(queries), strict=True))

    def milliseconds(work: Callable[[], Any], n: int = 1) -> float:
        started = time.process_time()
        work()
        return 1000 * (time.process_time() - started) / n

    encoder.known = known
    taken["first search after open"] = milliseconds(lambda: index.search(queries[0], lexical_weight=0))
    if (filling := getattr(index._reader, "_filling", None)) if hasattr(index, "_reader") else None:
        filling.join()
    single = {
        "search, vectors known": lambda i: index.search(queries[i], lexical_weight=0),
        "search, mixed with BM25, vectors known": lambda i: index.search(queries[i], lexical_weight=0.27),
        "encode a query": lambda i: encoder.encode_queries([queries[i]]),
        "search": lambda i: index.search(queries[i], lexical_weight=0),
        "search, mixed with BM25": lambda i: index.search(queries[i], lexical_weight=0.27),
    }
    for name, search in single.items():
        encoder.known = known if "known" in name else {}
        search(0)
        taken[name] = statistics.median(milliseconds(lambda i=i, search=search: search(i)) for i in range(len(queries)))
    for name, weight in (("MaxSim alone", 0), ("mixed", 0.27)):
        index.search_many(queries, lexical_weight=weight)
        taken[f"search_many of {N_QUERIES}, {name}"] = milliseconds(
            lambda weight=weight: index.search_many(queries, lexical_weight=weight), len(queries)
        )
    after = []
    for i in range(9):
        index.add([{"id": f"new {i}", "text": f"a new text {i}"}])
        encoder.known = known
        after.append(milliseconds(lambda i=i: index.search(queries[i], lexical_weight=0)))
        encoder.known = {}
    taken["search after adding a document, vectors known"] = statistics.median(after)
    index.delete([f"new {i}" for i in range(9)])
    return taken


def lists_and_scoring(encoder: Known, folder: Path) -> list[float]:
    """Return processor milliseconds of finding candidates in the lists and scoring them, and of a search with that."""
    from manyvec import Index
    from manyvec.candidates import Auto

    index: Any = Index.open(folder / "all", encoder)
    queries = list(encoder.dataset.queries.values())[:N_QUERIES]
    tokens = encoder.encode_queries(queries)
    reader, auto = index._reader, Auto()
    reader.current()
    if reader._filling is not None:
        reader._filling.join()
    version = reader.current()
    lists, n_tokens = reader.lists.over(version), version.states.n_tokens
    depth = max(auto.min_depth, -(-auto.depth_tokens * len(n_tokens) // int(n_tokens.sum())))
    taken, searches = [], []
    for i in range(len(queries)):
        started = time.process_time()
        index.search(tokens[i])
        searches.append(1000 * (time.process_time() - started))
        started = time.process_time()
        found = lists.find(tokens[i], None, depth, auto.max_depth, k=10, margin=auto.margin)
        found.sort()
        version.score(reader.scorer, tokens.select([i]), found)
        taken.append(1000 * (time.process_time() - started))
    return [statistics.median(taken), statistics.median(searches)]


def whole_process(folder: Path, query: str, environment: dict[str, str]) -> float:
    """Return the processor milliseconds of `manyvec search` on the small index."""
    started = os.times()
    command = [sys.executable, "-m", "manyvec", "search", query]
    place = ["--db" if "before" in environment["MANYVEC_VERSION"] else "--index", str(folder / "few")]
    subprocess.run([*command, *place], env=environment, check=True, capture_output=True)
    ended = os.times()
    return 1000 * (ended.children_user + ended.children_system - started.children_user - started.children_system)


def served(
    folder: Path, queries: Sequence[str], environment: dict[str, str], n_clients: int, **options: Any
) -> tuple[float, float]:
    """Return the processor milliseconds of a search of `manyvec serve`, and the memory of the server in MB."""
    from serving import cpu_seconds, megabytes, search

    command = [sys.executable, "-m", "manyvec", "serve"]
    place = [str(folder / "few")] if "before" in environment["MANYVEC_VERSION"] else ["--index", str(folder / "few")]
    with subprocess.Popen([*command, *place, "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stderr is not None
            lines = iter(run.stderr)
            url = next(word for line in lines for word in line.split() if word.startswith("http://"))
            asyncio.run(search(url, list(queries[:8]), 8, **options))
            cpu = cpu_seconds(run)
            asyncio.run(search(url, list(queries), n_clients, **options))
            return 1000 * (cpu_seconds(run) - cpu) / len(queries), megabytes(run)
        finally:
            run.terminate()


def worker(step: str, sources: Sequence[str], folder: Path) -> Any:
    encoder = Known(*sources)
    steps: dict[str, Callable[[Known, Path], Any]] = {
        "build": build,
        "measure": measure,
        "lists": lists_and_scoring,
    }
    return steps[step](encoder, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs=3, metavar=("DATA", "VECTORS", "SET"))
    parser.add_argument("versions", nargs="*", metavar="SRC")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker[0], options.sources, Path(options.worker[1]))))
        return
    import report

    from manyvec.evaluation import load_beir

    queries = list(load_beir(Path(options.sources[0]) / options.sources[2]).queries.values())
    taken: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        places = {}
        for name, source in zip(("before", "after"), options.versions, strict=True):
            environment = os.environ | {"PYTHONPATH": str(Path(source).absolute()), "OMP_NUM_THREADS": "1"}
            places[name] = Path(temporary) / name, environment | {"MANYVEC_VERSION": name}

        def run(name: str, step: str) -> Any:
            folder, environment = places[name]
            command = [sys.executable, __file__, *options.sources, "--worker", step, str(folder)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            return json.loads(done.stdout.splitlines()[-1])

        def note(name: str, row: str, value: float) -> None:
            taken.setdefault(row, {"before": [], "after": []})[name].append(value)

        for name in places:
            run(name, "build")
        for number in range(options.rounds):
            for row, value in zip(("lists and scoring alone", "search by vectors"), run("after", "lists"), strict=True):
                note("after", row, value)
            for name, (folder, environment) in places.items():
                for row, value in run(name, "measure").items():
                    note(name, row, value)
                note(name, "manyvec search, whole process", whole_process(folder, queries[number], environment))
                for n_clients in (1, 8, 32):
                    cost, memory = served(folder, queries[:N_SERVED], environment, n_clients)
                    note(name, f"a search of manyvec serve, {n_clients} clients", cost)
                    note(name, f"memory of the server in MB, {n_clients} clients", memory)
                    row = f"a search of manyvec serve, {n_clients} clients, without evidence"
                    if name == "before":  # It always has evidence.
                        note(name, row, cost)
                    else:
                        note(name, row, served(folder, queries[:N_SERVED], environment, n_clients, evidence=False)[0])
            print(json.dumps(taken), flush=True)
    rows = {}
    for row, values in taken.items():
        rows[row] = {name: round(statistics.median(of_rounds), 2) for name, of_rounds in values.items() if of_rounds}
        if values["before"]:
            ratios = [after / before for before, after in zip(values["before"], values["after"], strict=True)]
            rows[row]["ratio"] = round(statistics.median(ratios), 3)
        print(f"{row:50} {rows[row]}", flush=True)
    report.write("search-cost", {"set": options.sources[2], "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
