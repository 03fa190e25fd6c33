"""200 `ainvoke` calls at once on one event loop, with the real model: how long the loop is held up, and what they find.

python examples/benchmarks/concurrency.py

A `LoopWatch` on the same loop asks to be woken every 5 ms and measures how much later it is. The same loop with nothing
to do, measured for as long, shows what the machine itself takes.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import report

from langchain_manyvec import ManyvecRetriever
from manyvec import Index
from manyvec.files import read_documents
from manyvec.testing import LoopWatch

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
N_CALLS, N_ROUNDS = 200, 3


async def measure(retriever: ManyvecRetriever, queries: list[str]) -> dict[str, object]:
    expected = [[document.id for document in found] for found in retriever.batch(queries)]
    busy, idle, seconds, right = [], [], [], []
    for _ in range(N_ROUNDS):
        started = time.perf_counter()
        async with LoopWatch() as watch:
            found = await asyncio.gather(*(retriever.ainvoke(query) for query in queries))
        seconds.append(time.perf_counter() - started)
        busy.append(watch.longest)
        right.append([[document.id for document in documents] for documents in found] == expected)
        async with LoopWatch() as watch:
            await asyncio.sleep(seconds[-1])
        idle.append(watch.longest)
    return {
        "calls": len(queries),
        "all right": all(right),
        "seconds": [round(taken, 2) for taken in seconds],
        "longest milliseconds that the loop was held up": [round(1000 * held, 1) for held in busy],
        "the same with nothing to do": [round(1000 * held, 1) for held in idle],
    }


def main() -> None:
    documents = list(read_documents([PASSAGES]))
    # 200 questions, none like another: what stands at different places of the passages.
    words = [document.text.split() for document in documents]
    queries = [" ".join(words[i % len(words)][5 * (i // len(words)) :][:12]) for i in range(N_CALLS)]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", "minilm")
        index.add(documents)
        results = asyncio.run(measure(ManyvecRetriever(index=index, k=5), queries))
    report.write("concurrency", results)


if __name__ == "__main__":
    main()
