"""How `manyvec.tune` ranks held-out questions, by the scale of its loss, the ranks of hard negatives, and its steps.

    python examples/benchmarks/tune_scale.py DATASET --method projection --minutes 2 --scales 12 50 130 --ranks 10 50
    python examples/benchmarks/tune_scale.py DATASET --method full --minutes 50 --learning-rates 2e-5 5e-5 1e-4

DATASET is a folder in BEIR layout with `qrels/train.tsv`. A scale of 12 is about the sum of the similarities of a
question's 12 tokens. Each run trains from `minilm` anew, with one thread, and nothing is kept but its curve.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

import report
import torch

import manyvec
from manyvec.training import losses, pairs


def curve(
    arguments: argparse.Namespace, scale: float, last_rank: int, learning_rate: float | None, batch_size: int
) -> list[dict[str, float]]:
    """Return step, loss, nDCG@10 on the pool and mean similarities at each measurement of a run."""
    losses.SCALE, pairs.LAST_RANK = scale, last_rank
    with tempfile.TemporaryDirectory() as folder:
        found = manyvec.tune(
            "minilm",
            arguments.data,
            Path(folder) / "model",
            method=arguments.method,
            minutes=arguments.minutes,
            learning_rate=learning_rate,
            batch_size=batch_size,
            measure_every=arguments.every,
            holdout=0.2,
            on_progress=lambda point: print(scale, last_rank, learning_rate, batch_size, point, flush=True),
        )
    shown = ("step", "loss", "ndcg", "positive", "negative")
    return [{name: getattr(point, name) for name in shown} for point in found.curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", choices=["full", "projection"], default="projection")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--scales", type=float, nargs="+", default=[50])
    parser.add_argument("--ranks", type=int, nargs="+", default=[10])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[None], help="Default: that of the method.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("scale", "negatives_of_ranks_to", "learning_rate", "batch_size")
    runs = product(arguments.scales, arguments.ranks, arguments.learning_rates, arguments.batch_sizes)
    found = [dict(zip(names, run, strict=True)) | {"curve": curve(arguments, *run)} for run in runs]
    report.write(f"tune-scale-{arguments.data.name}-{arguments.method}", found)


if __name__ == "__main__":
    main()
