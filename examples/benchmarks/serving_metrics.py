"""Let 32 clients search `manyvec serve` for some seconds, and compare /metrics with what the clients counted.

    python examples/benchmarks/serving_metrics.py --seconds 60

The server is a process of its own over the same passages with the real model. Each client sends its next query when it
has the response to the last; every tenth request of a client is one that the server refuses. A count that differs ends
the script with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2
import report

from manyvec import Index
from manyvec.files import read

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
N_CLIENTS = 32


async def load(url: str, token: str, queries: list[str], seconds: float) -> tuple[Counter[int], list[float]]:
    """Send queries until the time is over; return the number of responses by status, and the seconds each took."""
    counts: Counter[int] = Counter()
    taken: list[float] = []
    end = time.monotonic() + seconds

    async def run(client: httpx2.AsyncClient, number: int) -> None:
        n_sent = 0
        while time.monotonic() < end:
            n_sent += 1
            k = 0 if n_sent % 10 == 0 else 5
            started = time.perf_counter()
            query = queries[(number + N_CLIENTS * n_sent) % len(queries)]
            response = await client.post("/api/search", json={"query": query, "k": k})
            taken.append(time.perf_counter() - started)
            counts[response.status_code] += 1

    headers, limits = {"Authorization": f"Bearer {token}"}, httpx2.Limits(max_connections=N_CLIENTS)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:
        await asyncio.gather(*(run(client, number) for number in range(N_CLIENTS)))
    return counts, taken


def numbers(url: str, token: str) -> dict[str, float]:
    text = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=120).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    documents = list(read(PASSAGES))
    queries = [" ".join(document.text.split()[:10]) for document in documents]
    token = secrets.token_urlsafe()
    with tempfile.TemporaryDirectory() as folder:
        Index.create(folder, "minilm", exist_ok=True).add(documents)
        command = [sys.executable, "-m", "manyvec", "serve", "--index", folder, "--port", "0"]
        environment = {**os.environ, "MANYVEC_TOKEN": token}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            url = next(line.split()[0] for line in process.stderr if line.startswith("http://")).rstrip("/")
            counts, taken = asyncio.run(load(url, token, queries, seconds))
            after = numbers(url, token)
        finally:
            process.terminate()
            process.communicate()
    by_status = {
        int(found[1]): int(value)
        for name, value in after.items()
        if (found := re.fullmatch(r'manyvec_requests_total\{route="/api/search",status="(\d+)"\}', name))
    }
    if by_status != dict(counts) or after["manyvec_searches_total"] != counts[200]:
        raise SystemExit(f"the clients counted {dict(counts)}, the server {by_status}")
    passes = after["manyvec_search_passes_total"]
    result = {
        "clients": N_CLIENTS,
        "seconds": seconds,
        "responses by status, counted by clients and by the server": {str(key): n for key, n in sorted(counts.items())},
        "searches in /metrics": int(after["manyvec_searches_total"]),
        "passes over the index": int(passes),
        "p50, milliseconds": round(1000 * statistics.median(taken), 1),
        "milliseconds of each stage of a pass": {
            stage: round(1000 * after[f'manyvec_search_stage_seconds_sum{{stage="{stage}"}}'] / passes, 2)
            for stage in ("encode", "candidates", "fetch", "score", "evidence", "total")
        },
    }
    print(result)
    report.write("serving-metrics", result)


if __name__ == "__main__":
    main()
