"""Measure what `minilm_late.py` has trained: how much of the adapter to take, then the sets that it never saw.

    python examples/training/minilm_late_sets.py --data DATA --run /tmp/late cranfield cisi [--vectors VECTORS]
    python examples/training/minilm_late_sets.py --data DATA --run /tmp/late --share 0.7 --export FILE

The adapter is added with a share between 0 (`minilm` itself) and 1, chosen on the held-out groups of the training
sources: interpolated weights keep more of what the model knew (https://arxiv.org/abs/2109.01903). Every figure is
nDCG@10 by exact MaxSim over all documents: with all dims, and with 128. Token vectors of the tuned layers are kept in
the folder of the run. The figure of `minilm` with all dims is that of `../benchmarks/mix.py`; with VECTORS, the folder
of `../benchmarks/encoded.py`, its vectors are measured along their first principal axes, too.

The second form writes the file that manyvec packages.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from minilm_late import DIM, N_TOKENS, add_adapter, held_out_ndcg, read_pairs, split_groups
from peft.tuners.lora import LoraLayer
from safetensors.numpy import save_file
from stored import Sides, projected, read

from manyvec import MaxSimScorer, SentenceTransformerEncoder, TokenBatch, load_encoder
from manyvec.evaluation import Dataset, evaluate, load_beir

MEASURE, SHARES = "nDCG@10", (0.0, 0.3, 0.5, 0.7, 1.0)
RESULTS = Path(__file__).parent / "results"
MIX = Path(__file__).parents[1] / "benchmarks" / "results" / "mix.json"


def share(model, amount: float) -> None:
    """Add this share of the adapter to the layers."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # `lora_alpha` is twice the rank.
            module.scaling["default"] = 2.0 * amount


def tuned_model(state: dict, rank: int):
    """Return `minilm` with the adapter, and all dims."""
    model = load_encoder("minilm", backend="torch").model
    model.eval()
    add_adapter(model, rank)
    parameters = dict(model.named_parameters())
    for name, weight in state["adapter"].items():
        parameters[name].data.copy_(weight)
    return model


def projection_of(state: dict, amount: float) -> torch.Tensor:
    return (1 - amount) * state["axes"] + amount * state["projection"]


def by_share(model, state: dict, data: Path) -> dict[str, dict[str, float]]:
    """Return nDCG@10 of the held-out groups for each share of the adapter."""
    _, held = split_groups(read_pairs(data), np.random.default_rng(0))
    length, result = model[0].max_seq_length, {}
    model[0].max_seq_length = N_TOKENS
    with torch.no_grad():
        for amount in SHARES:
            share(model, amount)
            result[str(amount)] = held_out_ndcg(model, projection_of(state, amount), held)
            print(amount, result[str(amount)], flush=True)
    model[0].max_seq_length = length
    return result


def export(state: dict, amount: float, file: Path) -> None:
    """Write a share of the adapter as `manyvec.models.adapter` reads it."""
    parts = {"projection.weight": projection_of(state, amount).numpy().astype(np.float16)}
    for name, weight in state["adapter"].items():
        layer, kind = name[name.index("encoder.layer") :].split(".lora_")
        is_up = kind.startswith("B")
        # `lora_alpha` is twice the rank.
        parts[f"{layer}.{'up' if is_up else 'down'}"] = (weight.numpy() * (2 * amount if is_up else 1)).astype(
            np.float16
        )
    save_file(parts, file)


def encode(encoder: SentenceTransformerEncoder, data: Dataset, folder: Path) -> Sides:
    """Return the token vectors of a set, encoded once and kept in a folder."""
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        sides = {
            "documents": encoder.encode_documents([document.text for document in data.documents]),
            "queries": encoder.encode_queries(list(data.queries.values())),
        }
        for side, tokens in sides.items():
            np.save(folder / f"{side}.npy", tokens.vectors.astype(np.float16))
            np.save(folder / f"{side}_lengths.npy", tokens.lengths)
        (folder / "done").touch()
    return read(folder)


def axes_of(tokens: TokenBatch) -> np.ndarray:
    """Return the (DIM, width) axes that keep most of the dot products."""
    sample = tokens.vectors[:: max(1, tokens.n_tokens // 200_000)].astype(np.float32)
    return np.ascontiguousarray(np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :DIM].T)


def ndcg(data: Dataset, sides: Sides) -> float:
    ids, runs = np.array([document.id for document in data.documents]), {}
    documents = TokenBatch.unchecked(np.asarray(sides["documents"].vectors), sides["documents"].offsets)
    for i, query in enumerate(data.queries):
        scores = MaxSimScorer().score_many(sides["queries"].select([i]), documents)[0]
        runs[query] = ids[np.lexsort((ids, -scores))[:10]].tolist()
    return evaluate(data.qrels, runs, [MEASURE])[MEASURE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--share", type=float, help="Share of the adapter; chosen on the held-out groups by default.")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    state, result = torch.load(arguments.run / "state.pt", weights_only=True), RESULTS / "minilm-late.json"
    model, rows = tuned_model(state, arguments.rank), json.loads(result.read_text()) if result.exists() else {}
    if arguments.share is None:
        rows |= {"step": state["step"], "curve": json.loads(state["curve"])}
        rows["held_out"] = by_share(model, state, arguments.data)
        rows["share"] = max(SHARES, key=lambda amount: rows["held_out"][str(amount)][str(DIM)])
    amount = rows["share"] if arguments.share is None else arguments.share
    if arguments.export:
        export(state, amount, arguments.export)
    share(model, amount)
    encoder, projection = SentenceTransformerEncoder(model, name="tuned"), projection_of(state, amount).numpy()
    known = json.loads(MIX.read_text())["results"][MEASURE]
    for name in arguments.sets:
        began, data = time.process_time(), load_beir(arguments.data / name)
        tuned = encode(encoder, data, arguments.run / "vectors" / name)
        measured = {"before, 384 dims": known[name]["maxsim"]}
        if arguments.vectors is not None:
            before = read(arguments.vectors / name)
            axes = axes_of(before["documents"])
            measured["before, 128 dims"] = ndcg(data, {side: projected(of, axes) for side, of in before.items()})
        measured["tuned, 384 dims"] = ndcg(data, tuned)
        measured["tuned, 128 dims"] = ndcg(data, {side: projected(of, projection) for side, of in tuned.items()})
        sets = rows.setdefault("sets", {})
        sets[name] = measured
        rows["mean"] = {
            key: round(float(np.mean([of_set[key] for of_set in sets.values()])), 4)
            for key in ("before, 384 dims", "tuned, 128 dims", "tuned, 384 dims")
        }
        print(name, measured, round(time.process_time() - began), "s", flush=True)
        result.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
