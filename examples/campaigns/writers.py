"""Let many processes write one index at once: nothing is lost, doubled or stale, and no conflict reaches a caller.

    python examples/campaigns/writers.py [--writers 8] [--upserts 1000] [--seed 0]

Each writer upserts documents under keys of its own and under keys that all writers share, and reads each one back at
once: it must be its own, or for a shared key one that another writer wrote later. One more process searches all the
time, and another optimizes. The result states how evenly the writers progressed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import results

from manyvec import Index
from manyvec.candidates import Auto
from manyvec.testing import HashEncoder

ENCODER = HashEncoder(16)
N_SHARED = 20


def write(index: Index, writer: int, n_upserts: int, seed: int) -> dict[str, Any]:
    """Upsert documents one by one; return what the writer found wrong and how long its upserts took."""
    rng, wrong, seconds = random.Random(1000 * seed + writer), [], []
    for i in range(n_upserts):
        is_shared = rng.random() < 0.5
        id = f"shared {rng.randrange(N_SHARED)}" if is_shared else f"writer {writer} {rng.randrange(n_upserts)}"
        text = f"w{writer} u{i} written {time.time_ns()}"
        started = time.perf_counter()
        index.add([{"id": id, "text": text, "metadata": {"writer": writer, "i": i}}])
        seconds.append(time.perf_counter() - started)
        (read,) = index.get([id])
        is_own = read.text == text
        is_newer = is_shared and read.metadata["writer"] != writer
        if not is_own and not is_newer:
            wrong.append(f"{id}: wrote {text!r}, read {read.text!r}")
        if not is_shared and index.search(text, k=1)[0].id != id:
            wrong.append(f"{id}: a search does not find what was written before it")
    seconds.sort()
    return {"wrong": wrong, "total": sum(seconds), "median": seconds[len(seconds) // 2], "longest": seconds[-1]}


def search(index: Index, until: Path) -> dict[str, Any]:
    """Search until the writers are done; every hit must be whole: text and metadata of one upsert."""
    wrong, n_searches = [], 0
    while not until.exists():
        wrong += [
            f"{hit.id}: {hit.text!r} with {dict(hit.metadata)!r}"
            for hit in index.search(f"w{n_searches % 8} written", k=20)
            if hit.text.split()[:2] != [f"w{hit.metadata['writer']}", f"u{hit.metadata['i']}"]
        ]
        n_searches += 1
    return {"wrong": wrong, "n": n_searches}


def optimize(index: Index, until: Path) -> dict[str, Any]:
    """Optimize until the writers are done."""
    n_optimized = 0
    while not until.exists():
        index.optimize()
        n_optimized += 1
        time.sleep(0.5)
    return {"wrong": [], "n": n_optimized}


def worker(options: argparse.Namespace) -> None:
    index = Index.open(options.folder, ENCODER)
    index.candidates = Auto(exhaustive_tokens=1_000, depth_tokens=2_000)
    until = Path(f"{options.folder}-done")
    try:
        if options.role == "search":
            answer = search(index, until)
        elif options.role == "optimize":
            answer = optimize(index, until)
        else:
            answer = write(index, int(options.role), options.upserts, options.seed)
    except Exception:
        answer = {"error": traceback.format_exc(limit=-3)}
    print(json.dumps(answer))


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything was wrong."""
    parser = results.parser(__doc__, "writers")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--upserts", type=int, default=1000, help="of each writer")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        worker(options)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        index = Index.create(folder, ENCODER)
        index.add(
            {"id": f"shared {i}", "text": f"w0 u{i} first", "metadata": {"writer": 0, "i": i}} for i in range(N_SHARED)
        )
        processes = {}
        for role in [*map(str, range(options.writers)), "search", "optimize"]:
            command = [sys.executable, __file__, "--role", role, "--folder", str(folder)]
            command += ["--upserts", str(options.upserts), "--seed", str(options.seed)]
            processes[role] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started, finished = time.perf_counter(), {}
        while len(finished) < options.writers:
            time.sleep(0.2)
            for role, process in processes.items():
                if role.isdecimal() and role not in finished and process.poll() is not None:
                    finished[role] = time.perf_counter() - started
        (Path(temporary) / "index-done").touch()
        answers: dict[str, dict[str, Any]] = {}
        for role, process in processes.items():
            printed = process.communicate()[0].splitlines()
            answers[role] = json.loads(printed[-1]) if printed else {"error": f"exit status {process.returncode}"}
        errors = [f"{role}: {answer['error']}" for role, answer in answers.items() if "error" in answer]
        wrong = [f"{role}: {fault}" for role, answer in answers.items() for fault in answer.get("wrong", [])]
        ids = index.ids()
        expected = {f"shared {i}" for i in range(N_SHARED)}
        for writer in range(options.writers):
            # The same choices as in `write`.
            rng = random.Random(1000 * options.seed + writer)
            for _ in range(options.upserts):
                if rng.random() < 0.5:
                    rng.randrange(N_SHARED)
                else:
                    expected.add(f"writer {writer} {rng.randrange(options.upserts)}")
        writers = [answers[role] for role in finished if "error" not in answers[role]]
        summary = {
            "writers": options.writers,
            "upserts of each": options.upserts,
            "lost": len(expected - set(ids)),
            "doubled": len(ids) - len(set(ids)),
            "unknown": len(set(ids) - expected),
            "stale or mixed": len(wrong),
            "errors": len(errors),
            "first faults": [*errors, *wrong][:5],
            "searches": answers["search"].get("n"),
            "optimized": answers["optimize"].get("n"),
            "seconds": round(max(finished.values()), 1),
            "seconds of the first writer to finish": round(min(finished.values()), 1),
            "seconds of an upsert, median of each writer": [round(w["median"], 3) for w in writers],
            "longest upsert of each writer": [round(w["longest"], 1) for w in writers],
        }
    results.write(options.output, summary)
    return int(any(summary[name] for name in ("lost", "doubled", "unknown", "stale or mixed", "errors")))


if __name__ == "__main__":
    sys.exit(main())
