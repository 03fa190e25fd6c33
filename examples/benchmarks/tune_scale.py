"""How `manyvec.tune` ranks held-out questions, by the scale of its contrastive loss and by the ranks of hard negatives.

    python examples/benchmarks/tune_scale.py DATASET --method projection --minutes 2 --scales 12 50 130 --ranks 10 50

DATASET is a folder in BEIR layout with `qrels/train.tsv`. A scale of 12 is about the sum of the similarities of a
question's 12 tokens. Each run trains from `minilm` anew, with one thread, and nothing is kept but its curve.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import report
import torch

import manyvec
from manyvec.training import losses, pairs


def curve(arguments: argparse.Namespace, scale: float, last_rank: int) -> list[dict[str, float]]:
    """Return step, loss, nDCG@10 on the pool and mean similarities at each measurement of a run."""
    losses.SCALES[arguments.method], pairs.LAST_RANK = scale, last_rank
    with tempfile.TemporaryDirectory() as folder:
        found = manyvec.tune(
            "minilm",
            arguments.data,
            Path(folder) / "model",
            method=arguments.method,
            minutes=arguments.minutes,
            measure_every=arguments.every,
            holdout=0.2,
            on_progress=lambda point: print(scale, last_rank, point, flush=True),
        )
    shown = ("step", "loss", "ndcg", "positive", "negative")
    return [{name: getattr(point, name) for name in shown} for point in found.curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", choices=["full", "projection"], default="projection")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--scales", type=float, nargs="+", default=[12, 50, 130])
    parser.add_argument("--ranks", type=int, nargs="+", default=[10, 50])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [(scale, last_rank) for scale in arguments.scales for last_rank in arguments.ranks]
    found = [{"scale": s, "negatives_of_ranks_to": r, "curve": curve(arguments, s, r)} for s, r in runs]
    report.write(f"tune-scale-{arguments.data.name}-{arguments.method}", found)


if __name__ == "__main__":
    main()
