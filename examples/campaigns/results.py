"""Write the result of a campaign with the commit, date, machine and versions that it was made with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

_STARTED = time.monotonic()


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every campaign has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / f"{name}.json", help="file of the results"
    )
    return made


def write(path: Path, results: dict[str, Any], *, final: bool = True) -> None:
    """Write a file of results and print them. Partial results are written where `final` is False."""
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    record = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"examples/campaigns/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "complete": final,
        "minutes": round((time.monotonic() - _STARTED) / 60, 1),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("manyvec", "lancedb", "numpy")}},
        "results": results,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results), flush=True)
