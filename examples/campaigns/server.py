"""Attack `manyvec serve` on the loopback interface: malformed, oversized and slow requests, and a vanishing index.

    python examples/campaigns/server.py [--size small|full] [--seed N] [--output FILE]

The server runs in a process of its own, over an index of 200 documents with `HashEncoder`, and gives clients 8 seconds
to send a request. While each phase runs, one patient client searches all the time; every response with hits is compared
with the index that was served. Writes `results/server.json`. Exits with 1 if a response was wrong, told something of
the machine, or never came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import results

from manyvec import Index
from manyvec.testing import HashEncoder

N_DOCUMENTS = 200
SIZES = {"small": {"malformed": 150, "slow": 40, "clients": 40, "rebuilds": 3}, "full": {
    "malformed": 5_000, "slow": 200, "clients": 200, "rebuilds": 20}}  # fmt: skip
# What no response may contain, besides the folder of the index.
PRIVATE = re.compile(r"Traceback|site-packages|\.py\b|\.rs\b|/root|/home|/tmp|cargo|LanceError", re.IGNORECASE)
STATUSES = {200, 400, 403, 404, 405, 406, 408, 411, 413, 414, 415, 421, 422, 431, 501, 503, 505}


@dataclass
class Record:
    """Statuses of responses and what was wrong with them."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def check(self, status: int | None, text: str, what: str) -> None:
        self.statuses[str(status)] += 1
        if status is not None and status not in STATUSES:
            self.faults.append(f"{what}: status {status}")
        if leak := PRIVATE.search(text):
            self.faults.append(f"{what}: the response contains {leak[0]!r}")

    def summary(self) -> dict[str, Any]:
        result: dict[str, Any] = {"responses": dict(sorted(self.statuses.items())), "faults": self.faults[:20]}
        if len(self.seconds) > 1:
            cuts = statistics.quantiles(self.seconds, n=20)
            result |= {"p50, milliseconds": round(1000 * cuts[9], 1), "p95, milliseconds": round(1000 * cuts[18], 1)}
        return result


def corpus(kind: str) -> list[dict[str, Any]]:
    """Documents of one of two indexes, which differ in every text and share all ids."""
    return [{"id": f"d{i}", "text": f"{kind}{i} {kind}{i + 1} document"} for i in range(N_DOCUMENTS)]


def build(folder: Path, kind: str) -> None:
    Index.create(folder, HashEncoder()).add(corpus(kind))


def is_right(hits: list[dict[str, Any]], i: int, kinds: str) -> bool:
    """Whether the hits for the query "KINDi KINDi+1" fit an index of one of these kinds."""
    if len(kinds) > 1 and not hits:
        # The new index was just created.
        return True
    if len(hits) != 3:
        return False
    for kind in kinds:
        best = hits[0]
        if best["id"] == f"d{i}" and best["passage"]["text"].startswith(f"{kind}{i} ") and 1.9 < best["score"] < 2.1:
            return True
    # The query is of the other kind: no word of it occurs in the index.
    return max(hit["score"] for hit in hits) < 1.5


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, __file__, "--serve", str(folder)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        url = next(line.split()[0] for line in process.stderr if line.startswith("http://"))
        # The pipe must be read, or a server that logs much stops.
        threading.Thread(target=shutil.copyfileobj, args=[process.stderr, log], daemon=True).start()
        try:
            yield url, process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def patient_client(url: str, record: Record, kinds: Callable[[], str]) -> Iterator[None]:
    """Search all the time, and count what a user would have seen."""
    is_done = threading.Event()

    def run() -> None:
        with httpx2.Client(base_url=url, timeout=60) as client:
            i = 0
            while not is_done.is_set():
                i = (i + 1) % N_DOCUMENTS
                possible = kinds()
                query = f"{possible[0]}{i} {possible[0]}{i + 1}"
                started = time.perf_counter()
                try:
                    response = client.post("/api/search", json={"query": query, "k": 3})
                except httpx2.HTTPError as error:
                    record.faults.append(f"the patient client got no response: {type(error).__name__}")
                    continue
                record.seconds.append(time.perf_counter() - started)
                record.check(response.status_code, response.text, "patient client")
                if response.status_code == 200 and not is_right(response.json()["hits"], i, possible):
                    record.faults.append(f"wrong hits for {query!r}: {response.text[:300]}")
                if response.status_code != 200 and len(possible) == 1:
                    record.faults.append(f"the patient client got status {response.status_code}")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def exchange(url: str, sent: bytes, *, timeout: float = 30) -> tuple[int | None, str]:
    """Send bytes and return the status and the text of the response; no status if the connection was closed."""
    address = urlsplit(url)
    received = b""
    with suppress(OSError), socket.create_connection((address.hostname, address.port), timeout) as connection:
        with suppress(OSError):
            connection.sendall(sent)
        while part := connection.recv(65536):
            received += part
    match = re.match(rb"HTTP/1\.1 (\d+)", received)
    return (int(match[1]) if match else None), received.decode(errors="replace")


def request(body: bytes, path: str = "/api/search", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    simple = [
        "",
        "a",
        "' OR 1=1 --",
        "\x00",
        "🍎" * 99,
        "x" * 5_000,
        0,
        -1,
        2**63,
        10**400,
        1.5,
        True,
        None,
        float("nan"),
    ]
    if depth < 3 and rng.random() < 0.3:
        return [hostile_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and rng.random() < 0.2:
        return {rng.choice(["query", "k", "column", "$gt", "a"]): hostile_value(rng, depth + 1)}
    return rng.choice(simple)


def malformed(rng: random.Random) -> bytes:
    """Return a request with wrong values, or a valid one with damaged bytes."""
    keys = ["query", "k", "filter", "passage_chars", "depth", "column", "op", "value"]
    fields = {key: hostile_value(rng) for key in rng.sample(keys, rng.randrange(1, 5))}
    if rng.random() < 0.5:
        condition = {key: hostile_value(rng) for key in ("column", "op", "value")}
        dialect = {rng.choice(["year", "$and", "$not", "column"]): hostile_value(rng)}
        fields |= {"query": "a1", "filter": rng.choice([[condition], dialect])}
    whole = bytearray(
        request(json.dumps(fields).encode(), rng.choice(["/api/search", "/mcp", "/api/documents/x", "/"]))
    )
    if rng.random() < 0.5:
        for _ in range(rng.randrange(1, 8)):
            position = rng.randrange(len(whole))
            whole[position : position + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(whole)


def oversized() -> Iterator[tuple[str, bytes]]:
    yield "body of 1 MB", request(b'{"query": "' + b"a" * 2**20 + b'"}')
    yield "body of 1 MB to /mcp", request(b" " * 2**20, "/mcp", "Accept: application/json\r\n")
    chunks = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    yield "chunks without end", head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 50
    yield "header of 1 MB", head + b"X: " + b"a" * 2**20 + b"\r\n\r\n"
    yield "10,000 headers", head + b"X: a\r\n" * 10_000 + b"\r\n"
    yield "path of 1 MB", b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield "nested JSON", request(b"[" * 60_000)
    yield "2,000 words, 100 hits", request(json.dumps({"query": "a " * 2_000, "k": 100}).encode())
    yield "200 words, 100 hits", request(json.dumps({"query": "a1 b2 " * 100, "k": 100}).encode())
    yield "id of 60,000 characters", b"GET /api/documents/" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def run_slow(url: str, n: int, rng: random.Random) -> Record:
    """Open connections, send part of a request on each, and wait until the server closes them."""
    record, address, whole = Record(), urlsplit(url), request(b'{"query": "a1 a2", "k": 3}')
    connections = [socket.create_connection((address.hostname, address.port), 60) for _ in range(n)]
    for connection in connections:
        connection.sendall(whole[: rng.randrange(len(whole))])
    for connection in connections:
        received = b""
        with suppress(OSError):
            while part := connection.recv(65536):
                received += part
        connection.close()
        record.check(int(received[9:12]) if received else None, received.decode(), "slow client")
        if not received.startswith(b"HTTP/1.1 408"):
            record.faults.append(f"a slow client got {received[:40]!r}")
    return record


async def run_clients(url: str, n_clients: int, n_searches: int) -> Record:
    record = Record()

    async def run(client: httpx2.AsyncClient, number: int) -> None:
        for step in range(n_searches):
            i = (number + 7 * step) % N_DOCUMENTS
            started = time.perf_counter()
            try:
                response = await client.post("/api/search", json={"query": f"a{i} a{i + 1}", "k": 3})
            except httpx2.HTTPError as error:
                record.faults.append(f"a client got no response: {type(error).__name__}")
                continue
            record.seconds.append(time.perf_counter() - started)
            record.check(response.status_code, response.text, "client")
            if response.status_code == 200 and not is_right(response.json()["hits"], i, "a"):
                record.faults.append(f"wrong hits for document {i}: {response.text[:300]}")

    limits = httpx2.Limits(max_connections=n_clients)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(run(client, number) for number in range(n_clients)))
    return record


def resources(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return the memory and the open files of the server, on Linux."""
    folder = Path(f"/proc/{process.pid}")
    if not folder.exists():
        return {}
    pages = int((folder / "statm").read_text().split()[1])
    return {"memory, MB": pages * 4096 // 2**20, "open files": len(list((folder / "fd").iterdir()))}


def run(size: dict[str, int], seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        build(folder, "a")
        with served(folder) as (url, process):
            phases: dict[str, Any] = {}

            def phase(name: str, work: Callable[[], Record], kinds: str = "a") -> None:
                patient = Record()
                started = time.monotonic()
                with patient_client(url, patient, lambda: kinds):
                    record = work()
                seconds = round(time.monotonic() - started, 1)
                phases[name] = {**record.summary(), "seconds": seconds, "patient client": patient.summary()}
                phases[name] |= resources(process)
                print(name, json.dumps(phases[name]), flush=True)

            def send_all(requests: Iterator[tuple[str, bytes]]) -> Record:
                record = Record()
                with ThreadPoolExecutor(16) as pool:
                    listed = list(requests)
                    replies = pool.map(lambda named: exchange(url, named[1]), listed)
                    for (what, _), (status, text) in zip(listed, replies, strict=True):
                        record.check(status, text, what)
                return record

            def rebuild() -> Record:
                record = Record()
                for i in range(size["rebuilds"]):
                    shutil.rmtree(folder, ignore_errors=True)
                    time.sleep(rng.random() / 2)
                    build(folder, "ba"[i % 2])
                    time.sleep(rng.random())
                return record

            async def many() -> Record:
                return await run_clients(url, size["clients"], 5)

            phase("warm-up", lambda: asyncio.run(run_clients(url, 8, 5)))
            phase("malformed", lambda: send_all(("malformed", malformed(rng)) for _ in range(size["malformed"])))
            phase("oversized", lambda: send_all(oversized()))
            phase("slow", lambda: run_slow(url, size["slow"], rng))
            phase("clients", lambda: asyncio.run(many()))
            phase("rebuilt", rebuild, "ab")
            shutil.rmtree(folder, ignore_errors=True)
            build(folder, "a")
            phase("recovered", lambda: asyncio.run(run_clients(url, 8, 5)))
            if process.poll() is not None:
                phases["recovered"]["faults"].append(f"the server exited with {process.returncode}")
    return phases


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__, "server")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        from manyvec.server.app import serve
        from manyvec.server.connections import TimedProtocol

        TimedProtocol.request_seconds = 8
        serve(Index.open(options.serve, HashEncoder()), port=0)
        return 0
    phases = run(SIZES[options.size], options.seed)
    n_faults = sum(len(phase["faults"]) + len(phase["patient client"]["faults"]) for phase in phases.values())
    results.write(options.output, {"faults": n_faults, **phases})
    return n_faults > 0


if __name__ == "__main__":
    sys.exit(main())
