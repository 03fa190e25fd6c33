"""Measure what `minilm_late.py` has trained: how much of the adapter to take, then the sets that it never saw.

    python examples/training/minilm_late_sets.py --data DATA --run /tmp/late cranfield cisi livemcpbench

The adapter is added with a share between 0 (`minilm` itself) and 1, chosen on the held-out groups of the training
sources: interpolated weights keep more of what the model knew (https://arxiv.org/abs/2109.01903). Every figure is
nDCG@10 by exact MaxSim over all documents.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from minilm_late import DIM, N_TOKENS, add_adapter, held_out_ndcg, principal_axes, read_pairs, split_groups
from peft.tuners.lora import LoraLayer

from manyvec import MaxSimScorer, TokenBatch, load_encoder
from manyvec.evaluation import evaluate, load_beir

MEASURE, SHARES = "nDCG@10", (0.0, 0.3, 0.5, 0.7, 1.0)
RESULTS = Path(__file__).parent / "results"


def share(model, amount: float) -> None:
    """Add this share of the adapter to the layers."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # `lora_alpha` is twice the rank.
            module.scaling["default"] = 2.0 * amount


def encoded(model, texts: list[str], task: str) -> list[np.ndarray]:
    encode = model.encode_query if task == "query" else model.encode_document
    return encode(texts, batch_size=32, convert_to_numpy=True, show_progress_bar=False)


def measured(model, projection: np.ndarray, folder: Path) -> dict[str, float]:
    """Return nDCG@10 of a set with all dims, and with those of the projection."""
    data = load_beir(folder)
    sides = {
        "documents": encoded(model, [document.text for document in data.documents], "document"),
        "queries": encoded(model, list(data.queries.values()), "query"),
    }
    result = {}
    ids = np.array([document.id for document in data.documents], object)
    for dim in (384, DIM):
        batches = {}
        for side, rows in sides.items():
            if dim == DIM:
                rows = [row @ projection.T for row in rows]
                rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
            batches[side] = TokenBatch.from_list([row.astype(np.float16) for row in rows], allow_empty=True)
        runs = {}
        for i, query in enumerate(data.queries):
            scores = MaxSimScorer().score_many(batches["queries"].select([i]), batches["documents"])[0]
            best = np.lexsort((ids.astype(str), -scores))[:10]
            runs[query] = ids[best].tolist()
        result[str(dim)] = evaluate(data.qrels, runs, [MEASURE])[MEASURE]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train, held = split_groups(read_pairs(arguments.data), np.random.default_rng(0))
    model = load_encoder("minilm", backend="torch").model
    model[0].max_seq_length = N_TOKENS
    model.eval()
    sample = [passage for rows in train.values() for _, passage, _ in rows[:20]]
    with torch.no_grad():
        before = principal_axes(model, sample).clone()
    add_adapter(model, arguments.rank)
    state = torch.load(arguments.run / "state.pt", weights_only=True)
    parameters = dict(model.named_parameters())
    for name, weight in state["adapter"].items():
        parameters[name].data.copy_(weight)
    result: dict = {"step": state["step"], "curve": json.loads(state["curve"]), "held_out": {}, "sets": {}}

    def projection(amount: float) -> torch.Tensor:
        return (1 - amount) * before + amount * state["projection"]

    with torch.no_grad():
        for amount in SHARES:
            share(model, amount)
            result["held_out"][str(amount)] = held_out_ndcg(model, projection(amount), held)
            print(amount, result["held_out"][str(amount)], flush=True)
        result["share"] = max(SHARES, key=lambda amount: result["held_out"][str(amount)][str(DIM)])
        model[0].max_seq_length = 256
        for name in arguments.sets:
            began = time.process_time()
            result["sets"][name] = {}
            for amount in (0.0, result["share"]):
                share(model, amount)
                axes = projection(amount).numpy()
                result["sets"][name][str(amount)] = measured(model, axes, arguments.data / name)
            print(name, result["sets"][name], round(time.process_time() - began), "s", flush=True)
            (RESULTS / "minilm-late.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
