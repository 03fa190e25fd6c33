"""Kill writers at random moments: nothing is lost, doubled or half written, and a second run completes the work.

    python examples/campaigns/kills.py [--rounds 1000] [--seed 0]

Each round copies a small index (every storage, with and without centroid lists), lets a process add, update, change
metadata, delete or optimize, kills it with SIGKILL after a random time, and checks the index in another process:

- It opens, and each call that returned is in it; a call that did not return is in it wholly or not at all.
- No id is missing or stored twice, and the exhaustive search returns what numpy computes from the stored vectors.
- A second run of the same work completes it.
- After `optimize(keep=timedelta(0))` the index takes no more space than one whose writer was not killed.

Processes are forked from this one, which has imported everything and has never used LanceDB itself.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lancedb.index  # these are imported once, for all processes that are forked
import lancedb.query  # noqa: F401
import numpy as np
import results
import torch  # noqa: F401
import tqdm.auto  # noqa: F401

from manyvec import Index, TokenBatch
from manyvec.candidates import Auto, Exhaustive
from manyvec.storage.maintenance.optimize import encode_residuals
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import CodedBatch
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.maxsim import MaxSimScorer, maxsim_reference

ENCODER = HashEncoder(16)
N_STORED, N_PER_CALL, N_CALLS = 120, 10, 4
WORKS = ("add", "update", "metadata", "delete", "optimize")
LISTS = Auto(exhaustive_tokens=10, depth_tokens=200, min_depth=20)
# Documents as (text, metadata), by id.
Documents = dict[str, tuple[str, dict[str, Any]]]


def text_of(i: int, version: int = 0) -> str:
    return f"w{i} w{i + 1} w{i % 7} v{version}"


def start() -> Documents:
    return {f"{i:03}": (text_of(i), {"n": 0}) for i in range(N_STORED)}


def calls_of(work: str) -> list[Documents | list[str]]:
    """Return what each call of the work writes, or the ids that it deletes."""
    parts = [range(i * N_PER_CALL, (i + 1) * N_PER_CALL) for i in range(N_CALLS)]
    if work == "add":
        return [{f"new {i:03}": (text_of(1000 + i), {"n": 0}) for i in part} for part in parts]
    if work == "update":
        return [{f"{i:03}": (text_of(i, 1), {"n": 1}) for i in part} for part in parts]
    if work == "metadata":
        return [{f"{i:03}": (text_of(i), {"n": 2}) for i in part} for part in parts]
    if work == "delete":
        return [[f"{i:03}" for i in part] for part in parts]
    return [{}]


def opened(folder: Path, *, has_lists: bool) -> Index:
    index = Index.open(folder, ENCODER)
    index.candidates = LISTS if has_lists else Exhaustive()
    return index


def run(index: Index, work: str, returned: Callable[[], None] = lambda: None) -> None:
    """Do the work, and call `returned` after each call of the library."""
    for call in calls_of(work):
        if isinstance(call, list):
            index.delete(call)
        elif call:
            index.add({"id": id, "text": text, "metadata": metadata} for id, (text, metadata) in call.items())
        else:
            index.optimize(keep=timedelta(0))
        returned()


def applied(documents: Documents, call: Documents | list[str]) -> Documents:
    if isinstance(call, list):
        return {id: document for id, document in documents.items() if id not in call}
    return documents | call


def stored(index: Index) -> Documents:
    return {document.id: (document.text, dict(document.metadata)) for document in index.get(index.ids())}


def check_search(index: Index, storage: str) -> None:
    """Compare a search with numpy."""
    ids = index.ids()
    # On some CPUs codes are compared with query tokens that are rounded to int8.
    tolerance = 1e-3 if storage == "float16" else 0.05
    for query in (text_of(3), text_of(1010)):
        vectors = ENCODER.encode_queries([query]).vectors
        expected = dict(zip(ids, maxsim_reference(vectors, index.token_vectors(ids)).tolist(), strict=True))
        index.candidates = Exhaustive()
        hits = index.search(query, k=10)
        best = sorted(expected.values(), reverse=True)[:10]
        assert np.allclose([hit.score for hit in hits], best, atol=tolerance), (query, hits, best)
        for hit in hits:
            assert abs(hit.score - expected[hit.id]) <= tolerance, (query, hit, expected[hit.id])


def check(folder: Path, work: str, storage: str, n_returned: int, expected_bytes: int, *, has_lists: bool) -> str:
    """Check an index whose writer was killed; return how far that had come."""
    index = opened(folder, has_lists=has_lists)
    calls, now, known = calls_of(work), stored(index), start()
    for call in calls[:n_returned]:
        known = applied(known, call)
    after = applied(known, calls[n_returned]) if n_returned < len(calls) else known
    assert now in (known, after), f"neither {n_returned} nor {n_returned + 1} calls: {len(now)} documents"
    info = index.info()
    assert info.duplicates == 0 and info.documents == len(now), info
    check_search(index, storage)
    if has_lists:
        index.candidates = LISTS
        assert index.search(text_of(80), k=1)[0].id == "080"
    run(index, work)
    final = start()
    for call in calls:
        final = applied(final, call)
    assert stored(index) == final, "the second run did not complete the work"
    check_search(index, storage)
    index.candidates = LISTS if has_lists else Exhaustive()
    index.optimize(keep=timedelta(0))
    taken = index.info().bytes_on_disk or 0
    assert taken <= 1.1 * expected_bytes + 20_000, f"{taken} bytes instead of {expected_bytes}"
    return "nothing" if n_returned == 0 and now == start() else "all" if n_returned == len(calls) else "part"


def make(folder: Path, storage: str, *, has_lists: bool) -> None:
    index = Index.create(folder, ENCODER, storage=storage, filter_columns={"n": int})
    index.candidates = LISTS if has_lists else Exhaustive()
    index.add({"id": id, "text": text, "metadata": metadata} for id, (text, metadata) in start().items())
    encode_residuals(index._store, min_tokens=256)
    index.optimize(keep=timedelta(0))


def forked(work: Callable[[], Any], *, seconds: float = 120) -> Any:
    """Do some work in a process of its own, and return its result, which JSON can hold."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            answer = {"result": work()}
        except BaseException:
            answer = {"error": traceback.format_exc(limit=-3)}
        os.write(writing, json.dumps(answer)[:60_000].encode())
        os._exit(0)
    os.close(writing)
    os.set_blocking(reading, False)
    until, written = time.monotonic() + seconds, b""
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            written = os.read(reading, 65_536)
            break
        time.sleep(0.005)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reading)
    answer = json.loads(written) if written else {"error": f"no answer after {seconds} s, or a crash"}
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["result"]


def killed(folder: Path, work: str, delay: float, *, has_lists: bool) -> int:
    """Let a process work, kill it after `delay` seconds, and return the number of its calls that had returned."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            index = opened(folder, has_lists=has_lists)
            os.write(writing, b"s")
            run(index, work, lambda: os.write(writing, b"."))
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"s", "the index could not be opened"
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    returned = b""
    while part := os.read(reading, 100):
        returned += part
    os.close(reading)
    return len(returned)


def undisturbed(original: Path, copy: Path, work: str, *, has_lists: bool) -> list[float]:
    """Return the seconds that the work takes, and the bytes that the index takes after it."""
    shutil.copytree(original, copy)
    index = opened(copy, has_lists=has_lists)
    started = time.perf_counter()
    run(index, work)
    seconds = time.perf_counter() - started
    run(index, work)
    index.optimize(keep=timedelta(0))
    taken = index.info().bytes_on_disk or 0
    shutil.rmtree(copy)
    return [seconds, taken]


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything was wrong."""
    parser = results.parser(__doc__, "kills")
    parser.add_argument("--rounds", type=int, default=1000)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=RuntimeWarning, message=".*fork.*")
    # Compiles the kernels, which all processes use.
    tokens = ENCODER.encode_documents(["w1", "w2 w3"])
    halves = TokenBatch(tokens.vectors.astype(np.float16), tokens.offsets)
    codecs = [Codec(s, ENCODER.dim, tokens.vectors if s == "residual" else None) for s in STORAGES if s != "float16"]
    coded = [
        CodedBatch(
            codec.encode(tokens.vectors, np.zeros(3, np.int32) if codec.centroids is not None else None),
            tokens.offsets,
            codec,
        )
        for codec in codecs
    ]
    for batch in (halves, *coded):
        MaxSimScorer().score_many(tokens, batch)
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        settings = [(storage, has_lists) for storage in STORAGES for has_lists in (False, True)]
        known: dict[tuple[str, bool, str], list[float]] = {}
        for number in range(options.seed, options.seed + options.rounds):
            rng = random.Random(number)
            storage, has_lists = rng.choice(settings)
            work = rng.choice(WORKS)
            original, copy = root / f"{storage}-{has_lists}", root / "copy"
            if not original.exists():
                forked(partial(make, original, storage, has_lists=has_lists))
            if (setting := (storage, has_lists, work)) not in known:
                known[setting] = forked(partial(undisturbed, original, copy, work, has_lists=has_lists))
            seconds, n_bytes = known[setting]
            shutil.copytree(original, copy)
            try:
                n_returned = killed(copy, work, rng.uniform(0, 1.1 * seconds), has_lists=has_lists)
                came = forked(partial(check, copy, work, storage, n_returned, int(n_bytes), has_lists=has_lists))
                counts[f"{work}: {came} was written"] += 1
            except AssertionError as error:
                faults.append(f"{storage}, lists: {has_lists}, {work} (--rounds 1 --seed {number}): {error}")
                print(faults[-1], flush=True)
            shutil.rmtree(copy)
            if (number + 1 - options.seed) % 50 == 0 or number + 1 == options.seed + options.rounds:
                done = number + 1 - options.seed
                summary = {"rounds": done, "faults": len(faults), "first faults": faults[:5]}
                results.write(options.output, summary | dict(sorted(counts.items())), final=done == options.rounds)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
