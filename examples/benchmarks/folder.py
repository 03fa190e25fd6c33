"""A folder of many small files and a large one, by command: time, peak memory, a killed run, an unchanged sync.

    python examples/benchmarks/folder.py [--files 10000] [--megabytes 200] [--minilm-files 300]

Files are made of random words. A table of vectors in model2vec's layout, made here, encodes so fast that the time is
that of reading, splitting, storing and comparing; `minilm` encodes some small files. `seconds` leave out the start,
`cpu_seconds` include it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import report
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from manyvec import Index, ManyvecError

DIM, N_WORDS = 32, 5000


def make_words() -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(3, 9))) for _ in range(N_WORDS)]


def make_files(folder: Path, words: list[str], n_files: int, megabytes: float) -> None:
    generator = random.Random(1)
    for n in range(n_files):
        (folder / f"{n % 100}").mkdir(parents=True, exist_ok=True)
        (folder / f"{n % 100}" / f"{n}.txt").write_text(f"File {n}. {' '.join(generator.choices(words, k=40))}.")
    if megabytes:
        with (folder / "large.txt").open("w") as file:
            n_bytes = 0
            while n_bytes < megabytes * 1e6:
                n_bytes += file.write(" ".join(generator.choices(words, k=60)) + ".\n\n")


def make_model(folder: Path, words: list[str]) -> Path:
    """Write a table of random vectors in the layout of model2vec."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[UNK]", *dict.fromkeys(words)])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    vectors = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), DIM)).astype(np.float32)
    save_file({"embeddings": vectors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"]}))
    kind = "sentence_transformers.models.StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": ".", "type": kind}]))
    return folder


def run(folder: Path, index: Path, *options: str, kill_at: int | None = None) -> dict[str, Any]:
    """Run `manyvec index`; return what it reports, its time from start to end, and its peak memory.

    Args:
        folder: Folder of the files.
        index: Where the index lies.
        options: Further options of the command.
        kill_at: Number of stored documents at which the command is killed.
    """
    command = [sys.executable, "-m", "manyvec", "index", str(folder), "--index", str(index), "--json", *options]
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        while kill_at is not None and is_running(process.pid) and n_stored(index) < kill_at:
            time.sleep(1)
        if kill_at is not None:
            os.kill(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        written = output.read()
    shown = {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
    }
    if kill_at is not None:
        return {**shown, "documents": n_stored(index)}
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}: {written.decode()}")
    counts = json.loads(written)
    names = ("added", "updated", "unchanged", "deleted", "documents", "seconds")
    return {**shown, **{name: counts[name] for name in names}}


def is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def n_stored(index: Path) -> int:
    try:
        return Index.open(index).count()
    except ManyvecError:
        return 0


def measure(top: Path, folder: Path, encoder: str, *, is_killed: bool) -> dict[str, Any]:
    results = {"first_run": run(folder, top / "index", "--encoder", encoder)}
    print(results, file=sys.stderr)
    results["unchanged_sync"] = run(folder, top / "index", "--sync")
    share = results["unchanged_sync"]["seconds"] / results["first_run"]["seconds"]
    results["sync_takes_of_the_first_run"] = round(share, 3)
    print(results, file=sys.stderr)
    if is_killed:
        half = results["first_run"]["documents"] // 2
        results["killed_at_half"] = run(folder, top / "killed", "--encoder", encoder, kill_at=half)
        results["run_again"] = run(folder, top / "killed", "--encoder", encoder)
        results["has_the_same_documents"] = Index.open(top / "killed").ids() == Index.open(top / "index").ids()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--minilm-files", type=int, default=300)
    options = parser.parse_args()
    words = make_words()
    results: dict[str, Any] = {"files": options.files, "megabytes_of_the_large_file": options.megabytes}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        make_files(top / "files", words, options.files, options.megabytes)
        results["table_of_vectors"] = measure(top, top / "files", str(make_model(top / "model", words)), is_killed=True)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        make_files(top / "files", words, options.minilm_files, 0)
        results["minilm"] = {"files": options.minilm_files, **measure(top, top / "files", "minilm", is_killed=False)}
    report.write("folder", results)


if __name__ == "__main__":
    main()
