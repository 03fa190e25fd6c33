"""Run every check but the tests, and exit with 1 if one fails: `just check`, pre-commit and CI run this file.

python scripts/check.py          # lint, format, types, structure, versions, wording
python scripts/check.py --fix    # let ruff repair what it can first
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXES = ["-m ruff check --fix .", "-m ruff format ."]
_TESTS = "-m mypy --cache-dir .mypy_cache/tests --config-file tests/mypy.ini"
# Two lists that run beside each other, since mypy uses one core.
CHECKS = [
    [
        "-m ruff check .",
        "-m ruff format --check .",
        "scripts/structure.py",
        "scripts/version.py",
        "scripts/docstrings.py --check",
        "-m mypy",
    ],
    # A run for each folder, since all three are named `tests`.
    [f"{_TESTS} tests", f"{_TESTS} integrations/langchain/tests", f"{_TESTS} integrations/llama_index/tests"],
]


def failures(commands: list[str]) -> list[str]:
    """Run commands one after another, and return those that fail."""
    failed = []
    for command in commands:
        ran = subprocess.run(
            [sys.executable, *command.split()],
            cwd=ROOT,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(f"$ python {command}\n{ran.stdout}", end="", flush=True)
        if ran.returncode:
            failed.append(command)
    return failed


def main() -> int:
    failed = failures(FIXES) if "--fix" in sys.argv[1:] else []
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        failed += [command for part in pool.map(failures, CHECKS) for command in part]
    print("\n".join(["", *(f"failed: python {command}" for command in failed)]) if failed else "\nall checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
