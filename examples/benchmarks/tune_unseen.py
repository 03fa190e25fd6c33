"""What training on one data set does to others: nDCG@10 by MaxSim alone, before and after some steps of `tune`.

    python examples/benchmarks/tune_unseen.py DATA nq-passages --steps 37 --unseen cranfield cisi livemcpbench

`tune` writes nothing where the gain is not safe, and measures `--unseen` only for what it writes. This trains all
weights of `minilm` with its loss, negatives and settings on random training questions, and measures whatever comes out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from manyvec.evaluation import load_beir
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.training import data, losses, pairs, preparing
from manyvec.training.loop import LoopSettings, multiplies_bfloat16, train
from manyvec.training.measuring import PoolScores, encode_corpus, interval, ndcg_of_set
from manyvec.training.starting import corpus_of
from manyvec.training.tuning import LEARNING_RATES

BATCH, N_NEGATIVES, MAX_TOKENS = 32, 2, 256


def training_rows(folder: Path, encoder: SentenceTransformerEncoder, steps: int) -> list[dict[str, Any]]:
    """Return random rows, with hard negatives, that fill `steps` batches."""
    read = data.read_training(folder, None)
    split = data.drop_leaks(read, data.hold_out(read, 0.2, 0), [])
    held_out = {id for query in (*split.validation, *split.report) for id in read.positives[query]}
    corpus = corpus_of(read, split, 0)
    chosen = np.random.default_rng(0).permutation(list(split.train))[: BATCH * steps].tolist()
    tokens = encode_corpus(encoder, corpus)
    mined = pairs.mine_negatives(
        read, chosen, corpus, tokens, encoder, excluded=held_out, n_negatives=N_NEGATIVES, seed=0
    )
    return pairs.training_rows(read, chosen, mined, n_negatives=N_NEGATIVES, batch_size=BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("set")
    parser.add_argument("--steps", type=int, default=37)
    parser.add_argument("--unseen", nargs="+", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = preparing.load_trainable("minilm", device="cpu")
    encoder = SentenceTransformerEncoder(model, name="minilm")
    sets = {name: load_beir(arguments.data / name) for name in arguments.unseen}
    before = {name: ndcg_of_set(encoder, dataset) for name, dataset in sets.items()}
    rows = training_rows(arguments.data / arguments.set, encoder, arguments.steps)
    preparing.choose_weights(model, "full")
    loss = losses.loss_for(model, has_teacher=False, dims=[0], n_rows=BATCH * (1 + N_NEGATIVES), n_tokens=MAX_TOKENS)
    never, forever = 10**9, 10**9
    settings = LoopSettings(
        forever, BATCH, LEARNING_RATES["full"], MAX_TOKENS, 1, never, 1, 0, multiplies_bfloat16("cpu")
    )
    with tempfile.TemporaryDirectory() as work:
        # The measurement at the end only keeps the last weights.
        measured = iter([PoolScores(0, 0, 0), PoolScores(1, 0, 0)])
        trained = train(model, loss, rows, settings, lambda: next(measured), Path(work), print)
    model.eval()
    found = {}
    for name, dataset in sets.items():
        after = ndcg_of_set(encoder, dataset)
        gain = interval(np.subtract(after, before[name]).tolist())
        found[name] = {
            "before": np.mean(before[name]),
            "after": np.mean(after),
            "gain": [gain.mean, gain.low, gain.high],
        }
        print(name, found[name], flush=True)
    report.write(f"tune-unseen-{arguments.set}", {"steps": trained.best_step, "sets": found})


if __name__ == "__main__":
    main()
