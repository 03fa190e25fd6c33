"""Let one process write, search and optimize for half an hour: its memory, threads and files must stay as they are.

    python examples/campaigns/soak.py [--minutes 30] [--optimizes 100] [--seed 0]

The process adds, updates and deletes documents of an index whose size stays the same, searches it with lists, filters
and BM25, and optimizes it at even intervals. After each optimize it is measured. The means of the second quarter of the
run and of the last quarter are compared: growth between them is a leak. The whole series is in the result. Threads are
judged once, at the end: LanceDB starts one for each read at the same time, and ends it after ten seconds without work.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import results

from manyvec import F, Index
from manyvec.candidates import Auto
from manyvec.testing import HashEncoder

N_DOCUMENTS = 400
# Optimizes after which growth is judged.
MIN_OPTIMIZES = 40
IDLE_SECONDS = 13
# Growth from the second quarter to the last that counts as none: memory in MB, and counts.
ALLOWED = {"memory_MB": 10.0, "descriptors": 3.0, "deleted_open": 2.0, "files": 20.0, "disk_MB": 1.0}


def measured(folder: Path) -> dict[str, float]:
    """Return what this process and the index take now. What the system does not tell is left out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = {"files": float(len(files)), "disk_MB": round(sum(path.stat().st_size for path in files) / 2**20, 3)}
    if not Path("/proc/self/fd").is_dir():
        return taken
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return taken | {
        "memory_MB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "threads": float(len(os.listdir("/proc/self/task"))),
        "descriptors": float(len(opened)),
        "deleted_open": float(sum(name.endswith("(deleted)") for name in opened)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything was wrong."""
    parser = results.parser(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--optimizes", type=int, default=100)
    options = parser.parse_args(arguments)
    grown: list[str] = []
    rng, series, wrong, counts = random.Random(options.seed), [], [], {"writes": 0, "searches": 0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        index = Index.create(folder, HashEncoder(32), filter_columns={"n": int})
        index.candidates = Auto(exhaustive_tokens=500, depth_tokens=1_000)

        def document(i: int) -> dict[str, object]:
            words = " ".join(f"w{rng.randrange(3_000)}" for _ in range(12))
            return {"id": str(i), "text": f"d{i} {words}", "metadata": {"n": i}}

        index.add(document(i) for i in range(N_DOCUMENTS))
        started = time.monotonic()
        for number in range(1, options.optimizes + 1):
            until = started + 60 * options.minutes * number / options.optimizes
            while True:
                i = rng.randrange(N_DOCUMENTS)
                if rng.random() < 0.2:
                    index.delete(str(i))
                changed = document(i)
                index.add([changed])
                lexical_weight = rng.choice([0, 0.3])
                (hit,) = index.search(str(changed["text"]), k=1, filter=F("n") >= i, lexical_weight=lexical_weight)
                counts["writes"] += 1
                counts["searches"] += 1
                if hit.id != str(i) or hit.text != changed["text"]:
                    wrong.append(f"write {counts['writes']}: {hit.id} instead of {i}")
                if time.monotonic() >= until:
                    break
            index.optimize(keep=timedelta(0))
            series.append({"minute": round((time.monotonic() - started) / 60, 1)} | measured(folder))
            print(series[-1], flush=True)
            if index.count() != N_DOCUMENTS:
                wrong.append(f"{index.count()} documents after optimize {number}")
            quarter = max(1, number // 4)
            growth = {
                name: round(
                    statistics.mean(taken[name] for taken in series[-quarter:])
                    - statistics.mean(taken[name] for taken in series[quarter : 2 * quarter] or series),
                    2,
                )
                for name in ALLOWED
                if name in series[0]
            }
            # Before, the process is still warming up.
            grown = [name for name, value in growth.items() if value > ALLOWED[name] and number >= MIN_OPTIMIZES]
            idle = None
            if number == options.optimizes >= MIN_OPTIMIZES:
                time.sleep(IDLE_SECONDS)
                idle = measured(folder)
                grown += ["threads"] if idle.get("threads", 0) > series[0].get("threads", 0) else []
            if number % 10 == 0 or number == options.optimizes:
                summary = {"minutes": options.minutes, "optimizes": number, **counts, "wrong": len(wrong)}
                summary |= {"first faults": wrong[:5], "growth": growth, "grown": grown}
                summary |= {"after idling": idle, "series": series}
                results.write(options.output, summary, final=number == options.optimizes)
    return int(bool(wrong or grown))


if __name__ == "__main__":
    sys.exit(main())
