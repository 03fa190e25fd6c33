"""Measure how long 200 concurrent `ainvoke` calls block the event loop, and check their results.

python examples/benchmarks/concurrency.py

The calls use the real model. A `LoopWatch` on the same loop sleeps for 5 ms at a time and measures the delay. The same
measurement on an idle loop shows the delays caused by other load of the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import report

from langchain_manyvec import ManyvecRetriever
from manyvec import Index, files
from manyvec.testing import LoopWatch

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
N_CALLS, N_ROUNDS = 200, 3


async def measure(retriever: ManyvecRetriever, queries: list[str]) -> dict[str, object]:
    expected = [[document.id for document in found] for found in retriever.batch(queries)]
    busy, idle, seconds, correct = [], [], [], []
    for _ in range(N_ROUNDS):
        started = time.perf_counter()
        async with LoopWatch() as watch:
            found = await asyncio.gather(*(retriever.ainvoke(query) for query in queries))
        seconds.append(time.perf_counter() - started)
        busy.append(watch.longest)
        correct.append([[document.id for document in documents] for documents in found] == expected)
        async with LoopWatch() as watch:
            await asyncio.sleep(seconds[-1])
        idle.append(watch.longest)
    return {
        "calls": len(queries),
        "all results correct": all(correct),
        "seconds": [round(taken, 2) for taken in seconds],
        "longest block of the event loop, milliseconds": [round(1000 * blocked, 1) for blocked in busy],
        "the same on an idle loop": [round(1000 * blocked, 1) for blocked in idle],
    }


def main() -> None:
    documents = list(files.read(PASSAGES))
    # 200 different queries: words at different positions of the passages.
    words = [document.text.split() for document in documents]
    queries = [" ".join(words[i % len(words)][5 * (i // len(words)) :][:12]) for i in range(N_CALLS)]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", "minilm")
        index.add(documents)
        results = asyncio.run(measure(ManyvecRetriever(index=index, k=5), queries))
    report.write("concurrency", results)


if __name__ == "__main__":
    main()
