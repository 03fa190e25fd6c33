"""Damage indexes on disk at random and search them: no crash, no hang, no error but manyvec's own.

    python examples/campaigns/damage.py [--rounds 500] [--seed 0]

Each round copies a small index (every storage, with and without centroid lists), damages one of its files (flips bits,
sets bytes to 0, cuts it short, removes it), and lets a worker process open and search it. What happened is counted:

    same       the hits of the undamaged index
    error      a ManyvecError that names the index
    logged     other hits, and a warning that names what is damaged
    silent, raw error, crash, hang: must not happen. The options that repeat the round are printed.

A silent round has other hits without a warning.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import results

from manyvec import Index, ManyvecError
from manyvec.candidates import Auto
from manyvec.storage.maintenance.optimize import encode_residuals
from manyvec.testing import HashEncoder
from manyvec.vectors.codec import STORAGES

ENCODER = HashEncoder(32)
TEXTS = [f"w{i} w{i + 1} w{i + 2} w{i % 7}" for i in range(150)]
QUERIES = [TEXTS[3], TEXTS[70], "w5 w100", "w1"]
LISTS = Auto(exhaustive_tokens=10, depth_tokens=100, min_depth=20)
SECONDS = 60
FAULTS = ("raw error", "crash", "hang")


def make(folder: Path, storage: str, *, has_lists: bool) -> None:
    """Make an index of 150 documents."""
    index = Index.create(folder, ENCODER, storage=storage, filter_columns={"n": int})
    for part in (slice(0, 100), slice(100, 150)):
        index.add({"id": str(i), "text": TEXTS[i], "metadata": {"n": i}} for i in range(len(TEXTS))[part])
    encode_residuals(index._store, min_tokens=256)
    if has_lists:
        index.candidates = LISTS
        index.optimize()


def searched(folder: str) -> dict[str, Any]:
    """Open an index and search it; return the hits, or the error, and what was logged."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("manyvec").addHandler(handler)
    try:
        index = Index.open(folder, ENCODER)
        index.candidates = LISTS
        found = [index.search_many(QUERIES, k=10, **options) for options in ({}, {"lexical_weight": 0.3})]
        hits = [
            [[hit.id, hit.text, hit.metadata, round(hit.score, 3)] for hit in hits] for part in found for hits in part
        ]
        return {"hits": hits, "log": messages}
    except ManyvecError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except BaseException as error:  # a panic in LanceDB's Rust is no Exception
        return {"raw error": f"{type(error).__name__}: {error}"}
    finally:
        logging.getLogger("manyvec").removeHandler(handler)


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "zero", "cut", "remove"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 4, 16])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        start = rng.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    path.unlink()
    if kind != "remove":
        path.write_bytes(content)
    return f"{kind} {path.relative_to(folder)}"


class Worker:
    """A process that searches; it is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def search(self, folder: Path) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, __file__, "--worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        process = self._process
        assert process.stdin and process.stdout
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            process.kill()
            process.wait()
            return {"hang": f"no answer after {SECONDS} s"}
        line = process.stdout.readline()
        return json.loads(line) if line else {"crash": f"exit status {process.wait()}"}


def outcome(answer: dict[str, Any], expected: dict[str, Any], folder: Path) -> str:
    for kind in FAULTS:
        if kind in answer:
            return kind
    if "error" in answer:
        return "error" if str(folder) in answer["error"] else "raw error"
    if answer["hits"] == expected["hits"]:
        return "same"
    return "logged" if answer["log"] else "silent"


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything was wrong."""
    parser = results.parser(__doc__, "damage")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        for line in sys.stdin:
            print(json.dumps(searched(line.strip())), flush=True)
        return 0
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root, worker = Path(temporary), Worker()
        settings = [(storage, has_lists) for storage in STORAGES for has_lists in (False, True)]
        expected: dict[Path, dict[str, Any]] = {}
        for number in range(options.seed, options.seed + options.rounds):
            rng = random.Random(number)
            storage, has_lists = rng.choice(settings)
            original, copy = root / f"{storage}{'-lists' if has_lists else ''}", root / "damaged" / str(number)
            if original not in expected:
                make(original, storage, has_lists=has_lists)
                expected[original] = worker.search(original)
                assert "hits" in expected[original], expected[original]
            shutil.copytree(original, copy)
            what = damage(copy, rng)
            answer = worker.search(copy)
            kind = outcome(answer, expected[original], copy)
            counts[kind] += 1
            if kind in (*FAULTS, "silent"):
                detail = next((answer[k] for k in (*FAULTS, "error") if k in answer), "")
                print(f"{kind}: {original.name}, {what}: {detail[:300]} (--rounds 1 --seed {number})", flush=True)
            shutil.rmtree(copy)
        worker.close()
    summary = {"rounds": options.rounds, "seed": options.seed, **dict.fromkeys((*FAULTS, "silent"), 0)}
    results.write(options.output, summary | dict(sorted(counts.items())))
    return int(any(counts[kind] for kind in (*FAULTS, "silent")))


if __name__ == "__main__":
    sys.exit(main())
