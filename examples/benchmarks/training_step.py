"""Processor time of a training step of `minilm`, in float32 and in bfloat16, where the CPU multiplies that.

    python examples/benchmarks/training_step.py DATASET

DATASET is a folder in BEIR layout. A step reads 96 documents of up to 128 tokens, as 32 pairs with two negatives each,
without their queries, and computes the gradient of all weights. float32 weights and one thread in both.
"""

from __future__ import annotations

import statistics
import sys
import time

import report
import torch

from manyvec.evaluation import load_beir
from manyvec.training.loop import multiplies_bfloat16
from manyvec.training.preparing import load_trainable

N_DOCUMENTS, MAX_TOKENS, ROUNDS = 96, 128, 5


def main() -> None:
    torch.set_num_threads(1)
    model = load_trainable("minilm", device="cpu")
    model.train()
    texts = [document.text for document in load_beir(sys.argv[1]).documents][:N_DOCUMENTS]
    features = model.preprocess(texts, task="document", max_length=MAX_TOKENS)

    def step(is_rounded: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            vectors = model(dict(features), task="document")["token_embeddings"]
        vectors.float().square().mean().backward()
        model.zero_grad()

    taken: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for number in range(ROUNDS + 1):
        for name, seconds in taken.items():
            started = time.process_time()
            step(name == "bfloat16")
            if number:
                seconds.append(round(time.process_time() - started, 2))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    found = {"processor seconds of a step": medians, "the CPU multiplies bfloat16": multiplies_bfloat16("cpu")}
    report.write("training-step", found)


if __name__ == "__main__":
    main()
