"""Do what a newcomer does, and time it: install the built packages where nothing is, and paste the README line by line.

    python scripts/newcomer.py

The wheels are built from this checkout (hatchling must be installed); `pip` gets every other package in the version
of constraints.txt. The blocks of the README down to "What it is better at" are run as they stand, in an empty folder
with the files of `docs/how-to` as `reports/`. `manyvec serve`, which does not end, is stopped once it has shown its
page. The first line that fails ends the script with an error.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import wheels

ROOT = Path(__file__).resolve().parents[1]


def lines() -> Iterator[tuple[str, str]]:
    """Yield what is pasted into a shell or a Python script, with "bash" or "python": one command line, or one block."""
    text = (ROOT / "README.md").read_text(encoding="utf8").partition("\n## What it is better at")[0]
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from [(language, block)] if language == "python" else [(language, line) for line in block.splitlines()]


def serve(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Start a server, wait until it listens, read its page and stop it.

    Raises:
        RuntimeError: It ended before it listened.
    """
    started = ["bash", "-c", f"exec {command}"]
    process = subprocess.Popen(started, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next((line.split()[0] for line in process.stderr if line.startswith("http://")), None)
        if url is None:
            raise RuntimeError(f"{command!r} ended with status {process.wait()} before it listened")
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<title>manyvec</title>" in page.read()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder, work = Path(name), Path(name, "work")
        shutil.copytree(ROOT / "docs" / "how-to", work / "reports")
        for package in wheels.PACKAGES:
            wheels.build(package, folder / "dist")
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MANYVEC_"))},
            "PATH": os.pathsep.join([str(folder / "env" / "bin"), os.environ["PATH"]]),
            "PIP_FIND_LINKS": f"{folder / 'dist'} {os.environ.get('PIP_FIND_LINKS', '')}",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_QUIET": "1",
        }
        total = time.monotonic()
        for language, line in lines():
            started = time.monotonic()
            if line.startswith("manyvec serve"):
                serve(line, work, environment)
            else:
                command = [language, "-c", line]
                subprocess.run(command, cwd=work, env=environment, stdout=subprocess.DEVNULL, check=True)
            shown = next(part for part in line.splitlines() if part.strip())
            print(f"{time.monotonic() - started:7.1f} s  {language}: {shown[:90]}", flush=True)
        print(f"{time.monotonic() - total:7.1f} s  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
