"""Run every check but the tests, and exit with 1 if one fails: `just check`, pre-commit and CI run this file.

python scripts/check.py          # lint, format, types, structure, versions, wording
python scripts/check.py --fix    # let ruff repair what it can first
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXES = ["-m ruff check --fix .", "-m ruff format ."]
CHECKS = [
    "-m ruff check .",
    "-m ruff format --check .",
    "-m mypy",
    # A run for each folder, since all three are named `tests`.
    "-m mypy --config-file tests/mypy.ini tests",
    "-m mypy --config-file tests/mypy.ini integrations/langchain/tests",
    "-m mypy --config-file tests/mypy.ini integrations/llama_index/tests",
    "scripts/structure.py",
    "scripts/version.py",
    "scripts/docstrings.py --check",
]


def succeeds(command: str) -> bool:
    print(f"$ python {command}", flush=True)
    return subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    commands = [*FIXES, *CHECKS] if "--fix" in sys.argv[1:] else CHECKS
    failed = [command for command in commands if not succeeds(command)]
    print("\n".join(["", *(f"failed: python {command}" for command in failed)]) if failed else "\nall checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
