"""Measure searches per CPU second of `manyvec serve` with 1, 8 and 32 clients, answered together and one by one.

    python examples/benchmarks/serving.py

Each contender is a server process of its own over the same passages with the real model, and all take turns. Each
client sends its next query when it has the response to the last. CPU time and memory are those of the server process,
which is read from /proc: Linux only.

- `alone`: each search is answered by itself.
- `together`: searches that wait when a thread becomes free are answered in one pass.
- `together, 2 ms`: the default; while others are being answered, the first also waits 2 ms for more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import report

from manyvec import Index
from manyvec.files import read

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
CONTENDERS = {
    "alone": {"max_batch": 1, "max_wait": 0},
    "together": {"max_wait": 0},
    "together, 2 ms": {"max_wait": 0.002},
}
N_CLIENTS, N_SEARCHES, N_ROUNDS = (1, 8, 32), 64, 3


def serve(folder: str, contender: str) -> None:
    """Run a server whose searches are collected with the options of a contender."""
    from manyvec.server import app

    app.Searches = partial(app.Searches, **CONTENDERS[contender])
    app.serve(Index.open(folder), port=0)


@contextmanager
def served(folder: str, contender: str):
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", folder, contender], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, next(line.split()[0] for line in process.stderr if line.startswith("http://"))
    finally:
        process.terminate()
        process.communicate()


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


async def search(url: str, queries: list[str], n_clients: int, **options: Any) -> list[float]:
    """Send all queries, and return the seconds that each response took."""
    remaining, seconds = iter(queries), []

    async def run(client: httpx2.AsyncClient) -> None:
        for query in remaining:
            started = time.perf_counter()
            response = await client.post("/api/search", json={"query": query, "k": 5, **options})
            response.raise_for_status()
            seconds.append(time.perf_counter() - started)

    limits = httpx2.Limits(max_connections=n_clients)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(run(client) for _ in range(n_clients)))
    return seconds


def measure(folder: str, queries: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(folder, name)) for name in CONTENDERS}
        for n_clients in N_CLIENTS:
            taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
            for _ in range(N_ROUNDS):
                for name, (process, url) in servers.items():
                    asyncio.run(search(url, queries[:n_clients], n_clients))
                    started, cpu = time.perf_counter(), cpu_seconds(process)
                    seconds = asyncio.run(search(url, queries, n_clients))
                    wall, cpu = time.perf_counter() - started, cpu_seconds(process) - cpu
                    taken[name].append((len(queries) / cpu, len(queries) / wall, statistics.median(seconds)))
            results[f"{n_clients} clients"] = {
                name: {
                    "searches per CPU second": round(statistics.median(per_cpu for per_cpu, _, _ in rounds), 1),
                    "searches per second": round(statistics.median(per_second for _, per_second, _ in rounds), 1),
                    "p50, milliseconds": round(1000 * statistics.median(p50 for _, _, p50 in rounds), 1),
                    "memory so far, MB": megabytes(servers[name][0]),
                }
                for name, rounds in taken.items()
            }
            print(n_clients, results[f"{n_clients} clients"], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    documents = list(read(PASSAGES))
    # Different queries: words at different positions of the passages.
    words = [document.text.split() for document in documents]
    queries = [" ".join(words[i % len(words)][5 * (i // len(words)) :][:12]) for i in range(N_SEARCHES)]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(folder, "minilm", exist_ok=True)
        index.add(documents)
        report.write("serving", measure(folder, queries))


if __name__ == "__main__":
    main()
