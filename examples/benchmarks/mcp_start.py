"""Measure how long `manyvec mcp` takes from its start to the end of the handshake, and from there to the first answer.

    python examples/benchmarks/mcp_start.py

The official client starts the server over standard input and output, each time as a new process; files are in the
operating system's cache after the first. The model is loaded before the handshake ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mcp
import report

from manyvec import Index
from manyvec.files import read

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


async def start(folder: str) -> tuple[float, float]:
    """Return the seconds of the handshake and of the first answer."""
    arguments = ["-m", "manyvec", "mcp", "--index", folder]
    command = mcp.StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    started = time.perf_counter()
    async with mcp.Client(command) as client:
        ready = time.perf_counter()
        result = await client.call_tool("search", {"query": "who discovered oxygen"})
        answered = time.perf_counter()
    assert result.structured_content and result.structured_content["hits"]
    return ready - started, answered - ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        Index.create(folder, "minilm", exist_ok=True).add(read(PASSAGES))
        taken = [asyncio.run(start(folder)) for _ in range(rounds)]
    handshakes, answers = zip(*taken, strict=True)
    result = {
        "rounds": rounds,
        "seconds from the start to the handshake, median": round(statistics.median(handshakes), 2),
        "seconds from the handshake to the first answer, median": round(statistics.median(answers), 3),
        "seconds from the handshake to the first answer, worst": round(max(answers), 3),
    }
    print(result)
    report.write("mcp-start", result)


if __name__ == "__main__":
    main()
