"""Processor time of a training step of `minilm`: float32 or bfloat16, where the CPU multiplies that, and dropout.

    python examples/benchmarks/training_step.py DATASET

DATASET is a folder in BEIR layout. A step reads 96 documents of up to 256 tokens, as 32 pairs with two negatives each,
without their queries, and computes the gradient of all weights. float32 weights and one thread in all.
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

N_DOCUMENTS, MAX_TOKENS, CHUNK, ROUNDS = 96, 256, 32, 3


def main() -> None:
    torch.set_num_threads(1)
    model = load_trainable("minilm", device="cpu")
    texts = [document.text for document in load_beir(sys.argv[1]).documents][:N_DOCUMENTS]
    chunks = [
        model.preprocess(texts[start : start + CHUNK], task="document", max_length=MAX_TOKENS)
        for start in range(0, N_DOCUMENTS, CHUNK)
    ]

    def step(is_rounded: bool, has_dropout: bool) -> None:
        model.train(has_dropout)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            vectors = [model(dict(chunk), task="document")["token_embeddings"] for chunk in chunks]
        torch.stack([part.float().square().mean() for part in vectors]).sum().backward()
        model.zero_grad()

    taken: dict[tuple[bool, bool], list[float]] = {(r, d): [] for r in (False, True) for d in (True, False)}
    for number in range(ROUNDS + 1):
        for settings, seconds in taken.items():
            started = time.process_time()
            step(*settings)
            if number:
                seconds.append(round(time.process_time() - started, 2))
    medians = {
        f"{'bfloat16' if is_rounded else 'float32'}, {'with' if has_dropout else 'without'} dropout": median
        for (is_rounded, has_dropout), median in ((s, statistics.median(times)) for s, times in taken.items())
    }
    found = {"processor seconds of a step": medians, "the CPU multiplies bfloat16": multiplies_bfloat16("cpu")}
    report.write("training-step", found)


if __name__ == "__main__":
    main()
