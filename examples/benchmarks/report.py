"""Helpers of every benchmark: medians of alternating runs, and a results file that states where they were measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("manyvec", "numpy", "torch", "lancedb", "sentence-transformers", "transformers", "flash-maxsim")


def medians(contenders: Mapping[str, Callable[[], Any]], *, rounds: int, pause: float = 0) -> dict[str, float]:
    """Return the median milliseconds of each contender.

    Contenders take turns, so that other load on the machine slows all of them alike.

    Args:
        contenders: Functions to time, by name.
        rounds: Number of timed runs of each.
        pause: Seconds to wait before each turn, and then to run the contender without timing it. Threads of OpenBLAS
            and OpenMP keep a core busy for a while after their work, and a core that has slept starts slowly; without
            a pause, the order of the contenders would decide who pays for that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            time.sleep(pause)
            begun = time.perf_counter()
            while pause and time.perf_counter() < begun + pause:
                contender()
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    return {name: round(1000 * statistics.median(taken), 3) for name, taken in seconds.items()}


def write(name: str, results: Any, packages: Sequence[str] = PACKAGES) -> None:
    """Print the results and write them to `results/NAME.json` with date, command, hardware and versions."""
    record = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"examples/benchmarks/{Path(sys.argv[0]).name}", *map(_shown, sys.argv[1:])]),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{p: v for p in packages if (v := _version(p))}},
        "results": results,
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def _shown(argument: str) -> str:
    """Return the last part of a path: the folders above it differ between machines."""
    return Path(argument).name if os.sep in argument else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
