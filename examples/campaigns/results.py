"""Write the result of a campaign with the commit, date, machine and versions that it was made with."""

from __future__ import annotations

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


def write(name: str, results: dict[str, Any], *, final: bool = True) -> None:
    """Write `results/NAME.json` and print the results. Partial results are written where `final` is False."""
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    record = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"examples/campaigns/{name}.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "complete": final,
        "minutes": round((time.monotonic() - _STARTED) / 60, 1),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("manyvec", "lancedb", "numpy")}},
        "results": results,
    }
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results), flush=True)
