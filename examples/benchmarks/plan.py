"""Plan a cluster on paper: disk, memory, shards, hours of encoding and the time of a search, by number of passages.

    python examples/benchmarks/plan.py [--passages 10000000 100000000 1000000000] [--tokens 150] ...

Every assumption is an argument. Its defaults come from `growth.py`, which measured shards of 10,000, 100,000 and
1,000,000 synthetic documents of 30 tokens on two shared cores; what the same formulas say of those three shards is
written beside the measurements. The speed of a GPU was not measured: pass that of yours. A search waits for the slowest
shard, so its time is drawn: the slowest of as many log-normal times as there are shards.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import report

from manyvec.vectors.codec import STORAGES, bytes_per_token

MEASURED = Path(__file__).parent / "results" / "growth-float16.json"
N_DRAWN = 20_000


def disk_bytes(passages: int, tokens: float, storage: str, options: argparse.Namespace) -> float:
    """Return the bytes of an index on disk: vectors, spans, centroids, text, search indexes and metadata."""
    of_token = bytes_per_token(storage, options.dim) + options.bytes_beside_a_token
    return passages * (tokens * of_token + options.characters * options.bytes_a_character + options.bytes_a_passage)


def memory_bytes(passages: float, tokens: float, storage: str, cached: float, options: argparse.Namespace) -> float:
    """Return the bytes that a process with a shard needs, of which `cached` are a share of the token vectors."""
    vectors = cached * tokens * bytes_per_token(storage, options.dim)
    return 1e6 * options.process_mb + passages * (options.memory_a_passage + tokens * 6 + vectors)


def search_ms(n_tokens: float, cached: float, options: argparse.Namespace) -> float:
    """Return the median milliseconds of a search of one shard. There are 16·√tokens centroids to compare."""
    return options.search_ms + options.search_ms_a_root_token * math.sqrt(n_tokens) + options.uncached_ms * (1 - cached)


def passages_a_shard(storage: str, options: argparse.Namespace) -> int:
    """Return how many passages a process holds in the memory that it has."""
    fixed, two = (memory_bytes(n, options.tokens, storage, options.cached, options) for n in (0, 1))
    return int((1e9 * options.memory_gb - fixed) / (two - fixed))


def plan(passages: int, storage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a cluster of this many passages takes."""
    shards = max(1, math.ceil(passages / passages_a_shard(storage, options)))
    median = search_ms(passages / shards * options.tokens, options.cached, options)
    random = np.random.default_rng(0)
    slowest = np.max(
        [random.lognormal(math.log(median), options.spread, N_DRAWN) for _ in range(shards)], axis=0, initial=0
    )
    processor_seconds = shards * median / 1000
    return {
        "GB on disk": round(disk_bytes(passages, options.tokens, storage, options) / 1e9),
        "shards": shards,
        "passages a shard": math.ceil(passages / shards),
        "GB of memory in all": round(
            shards * memory_bytes(passages / shards, options.tokens, storage, options.cached, options) / 1e9
        ),
        "milliseconds of a search": {f"p{p}": round(float(np.percentile(slowest, p)), 1) for p in (50, 95, 99)},
        "processor seconds of a search": round(processor_seconds, 3),
        "dollars a million searches": round(1e6 * processor_seconds / 3600 * options.dollars_a_core_hour, 2),
        "requests of a search to a bucket": 3 * shards,
    }


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the formulas with measured shards: what was predicted divided by what was measured."""
    compared = {}
    results = json.loads(MEASURED.read_text())["results"]
    for name, measured in results.items():
        if not name.endswith(" documents"):
            continue
        n, shard = int(name.split()[0]), measured["default cache"]
        tokens = shard["tokens"] / n
        cached = min(1.0, 1e6 * shard["cache_used_MB"] / (shard["tokens"] * bytes_per_token("float16", results["dim"])))
        small = argparse.Namespace(**{**vars(options), "characters": options.characters * tokens / options.tokens})
        memory = memory_bytes(n, tokens, "float16", cached, options)
        compared[name] = {
            "disk": round(disk_bytes(n, tokens, "float16", small) / shard["bytes_on_disk"], 2),
            "memory": round(memory / (1e6 * shard["peak_MB"]), 2),
            "milliseconds": round(search_ms(shard["tokens"], cached, options) / shard["p50_milliseconds"], 2),
        }
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000_000, 100_000_000, 1_000_000_000])
    for name, default, meaning in (
        ("--tokens", 150, "token vectors of a passage"),
        ("--dim", 128, "dimensions of a token vector"),
        ("--characters", 700, "characters of a passage"),
        ("--memory-gb", 64, "memory for the process of a shard"),
        ("--cached", 1.0, "share of the token vectors in memory"),
        ("--gpus", 8, "GPUs that encode"),
        ("--tokens-a-second", 100_000, "token vectors that a GPU computes in a second; not measured"),
        ("--dollars-a-core-hour", 0.04, "price of a core for an hour"),
        ("--bytes-beside-a-token", 6, "spans and centroid lists, on disk"),
        ("--bytes-a-character", 2.0, "text, words and full-text index, on disk"),
        ("--bytes-a-passage", 300, "id, metadata, hashes and the index of ids, on disk"),
        ("--process-mb", 480, "imports, machine code and LanceDB"),
        ("--memory-a-passage", 520, "ids and words in memory; 6 bytes a token for centroid lists come on top"),
        ("--search-ms", 10.2, "milliseconds of a search of one shard, whatever its size"),
        ("--search-ms-a-root-token", 0.0034, "milliseconds of a search for the root of the number of token vectors"),
        ("--uncached-ms", 10.0, "milliseconds more if no token vectors are in memory"),
        ("--spread", 0.54, "standard deviation of the logarithm of a shard's milliseconds: p95 is 2.4 times p50"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (default: {default})")
    options = parser.parse_args()
    hours = {
        f"{n:,} passages": round(n * options.tokens / options.tokens_a_second / options.gpus / 3600, 1)
        for n in options.passages
    }
    plans = {f"{n:,} passages": {s: plan(n, s, options) for s in STORAGES} for n in options.passages}
    report.write(
        "plan",
        {
            "assumptions": {name: value for name, value in vars(options).items() if name != "passages"},
            "predicted / measured": check(options),
            "hours of encoding": hours,
            "plans": plans,
        },
    )


if __name__ == "__main__":
    main()
