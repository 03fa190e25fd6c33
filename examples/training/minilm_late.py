"""Train the adapter of `minilm-late`: LoRA in every layer of `minilm`, and a projection to 128 dims.

    python examples/training/minilm_late.py --data DATA --run /tmp/late --minutes 60

DATA holds `train-pairs` and the train splits of five sets; only sources whose licence allows it are read. A batch has
two sources with 16 pairs each, at most one of a group, so that there are negatives from the same source. The loss
is the sum of the in-batch contrastive losses at 384 and at 128 dims. Every `--save` steps the state is written, and
the same command goes on from there. Held-out groups of the training sources are measured, nothing else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores

from manyvec import MaxSimScorer, TokenBatch, load_encoder
from manyvec.evaluation import load_beir

# Without a licence of their own, or with text of many vendors.
UNPUBLISHABLE = {"debian", "qasc", "ropes", "openapi"}
SPLITS = {"nq-passages": "train", "squad-dev": "train", "medquad-qa": "train", "metatool": "train", "seal-tools": "dev"}
DIM, N_SOURCES, N_PAIRS, N_TOKENS = 128, 2, 16, 128
Pair = tuple[str, str, str]


def read_pairs(data: Path) -> dict[str, list[Pair]]:
    """Return (query, passage, group) by source."""
    pairs: dict[str, list[Pair]] = defaultdict(list)
    with gzip.open(data / "train-pairs" / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["source"] not in UNPUBLISHABLE:
                pairs[row["source"]].append((row["query"], row["positive"], row["group"]))
    for name, split in SPLITS.items():
        judged = load_beir(data / name, split)
        texts = {document.id: document.text for document in judged.documents}
        for query, grades in judged.qrels.items():
            best = max(grades, key=lambda document: (grades[document], document))
            if best in texts:
                pairs[name].append((judged.queries[query], texts[best], best))
    return pairs


def split_groups(pairs: dict[str, list[Pair]], rng: np.random.Generator) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Hold out 5 % of the groups of each source (at most 15 pairs each); return the training pairs and the held-out."""
    train, held = {}, []
    for source, rows in sorted(pairs.items()):
        groups = sorted({group for *_, group in rows})
        out = set(rng.permutation(groups)[: max(1, len(groups) // 20)].tolist())
        train[source] = [row for row in rows if row[2] not in out]
        candidates = [row for row in rows if row[2] in out]
        held += [candidates[i] for i in rng.permutation(len(candidates))[:15]]
    enough = {source for source, rows in train.items() if len({group for *_, group in rows}) >= N_PAIRS}
    return {source: train[source] for source in sorted(enough)}, held


def draw_batch(pairs: dict[str, list[Pair]], step: int) -> list[Pair]:
    """Return the batch of a step: sources by the square root of their size, pairs of different groups."""
    rng = np.random.default_rng([17, step])
    names = list(pairs)
    weights = np.sqrt([len(pairs[name]) for name in names])
    batch: list[Pair] = []
    for source in rng.choice(len(names), N_SOURCES, replace=False, p=weights / weights.sum()):
        rows, groups = pairs[names[source]], set()
        for i in rng.permutation(len(rows)):
            if rows[i][2] not in groups:
                groups.add(rows[i][2])
                batch.append(rows[i])
            if len(groups) == N_PAIRS:
                break
    return batch


def principal_axes(model, texts: list[str]) -> torch.Tensor:
    """Return the (DIM, width) axes that keep most of the dot products of the texts' token vectors."""
    rows = torch.cat(model.encode_document(texts, convert_to_numpy=False))
    return torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :DIM].T.contiguous()


def add_adapter(model, rank: int) -> None:
    """Add LoRA to every layer."""
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(config, model[0].model)


def encode(model, texts: list[str], task: str) -> tuple[torch.Tensor, torch.Tensor]:
    features = model(model.preprocess(texts, task=task), task=task)
    return features["token_embeddings"], features["attention_mask"].bool()


def losses(model, projection: torch.Tensor, batch: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the contrastive loss of full vectors, and of projected ones."""
    queries, query_mask = encode(model, [query for query, *_ in batch], "query")
    documents, document_mask = encode(model, [passage for _, passage, _ in batch], "document")
    labels, result = torch.arange(len(batch)), []
    for shrink in (lambda x: x, lambda x: torch.nn.functional.normalize(x @ projection.T, dim=-1)):
        scores = colbert_scores(
            shrink(queries), shrink(documents)[:, None], queries_mask=query_mask, documents_mask=document_mask[:, None]
        )
        result.append(torch.nn.functional.cross_entropy(scores, labels))
    return result[0], result[1]


def held_out_ndcg(model, projection: torch.Tensor, held: list[Pair]) -> dict[str, float]:
    """Return nDCG@10 at 384 and at 128 dims over all held-out passages; one passage is relevant to each query."""
    passages = list(dict.fromkeys(passage for _, passage, _ in held))
    position = {passage: i for i, passage in enumerate(passages)}
    vectors = {
        "documents": model.encode_document(passages, batch_size=16, convert_to_numpy=False),
        "queries": model.encode_query([query for query, *_ in held], batch_size=32, convert_to_numpy=False),
    }
    result = {}
    for dim in (384, DIM):
        batches = {
            side: TokenBatch.from_list(
                [
                    (row if dim == 384 else torch.nn.functional.normalize(row @ projection.T, dim=-1)).numpy()
                    for row in rows
                ]
            )
            for side, rows in vectors.items()
        }
        gains = []
        scored = MaxSimScorer().score_many(batches["queries"], batches["documents"])
        for scores, (_, passage, _) in zip(scored, held, strict=True):
            rank = int((scores > scores[position[passage]]).sum()) + 1
            gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
        result[str(dim)] = float(np.mean(gains))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="Folder of the checkpoints.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--save", type=int, default=25, help="Steps between checkpoints.")
    parser.add_argument("--measure", type=int, default=150, help="Steps between measurements.")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    train, held = split_groups(read_pairs(arguments.data), np.random.default_rng(0))
    model = load_encoder("minilm", backend="torch").model
    model[0].max_seq_length = N_TOKENS
    sample = [passage for rows in train.values() for _, passage, _ in rows[:20]]
    with torch.no_grad():
        axes = principal_axes(model, sample).clone()
    projection = torch.nn.Parameter(axes.clone())
    add_adapter(model, arguments.rank)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    adapter = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW([*adapter.values(), projection], lr=arguments.rate, weight_decay=0.0)
    state_file, start, curve = arguments.run / "state.pt", 0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, weight in adapter.items():
            weight.data.copy_(state["adapter"][name])
        projection.data.copy_(state["projection"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], json.loads(state["curve"])
    model.eval()
    if not curve:
        with torch.no_grad():
            curve.append({"step": 0, "held_out": held_out_ndcg(model, projection, held)})
        print(len(held), "held out", {source: len(rows) for source, rows in train.items()}, curve[-1], flush=True)
    deadline, recent, began = time.monotonic() + 60 * arguments.minutes, [], time.monotonic()
    step = start
    while time.monotonic() < deadline:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1.0, step / 50)
        parts = losses(model, projection, draw_batch(train, step))
        optimizer.zero_grad()
        (parts[0] + parts[1]).backward()
        torch.nn.utils.clip_grad_norm_([*adapter.values(), projection], 1.0)
        optimizer.step()
        recent.append([float(part.detach()) for part in parts])
        if step % arguments.save == 0:
            rate = (step - start) * N_SOURCES * N_PAIRS / (time.monotonic() - began)
            print(step, np.mean(recent[-25:], axis=0).round(4), f"{rate:.1f} pairs/s", flush=True)
            if step % arguments.measure == 0:
                with torch.no_grad():
                    curve.append({"step": step, "held_out": held_out_ndcg(model, projection, held)})
                print(curve[-1], flush=True)
                torch.save(
                    {"adapter": adapter, "projection": projection.data}, arguments.run / f"weights-{step:05d}.pt"
                )
            part = state_file.with_suffix(".part")
            torch.save(
                {
                    "adapter": {name: weight.data for name, weight in adapter.items()},
                    "projection": projection.data,
                    "axes": axes,
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "curve": json.dumps(curve),
                },
                part,
            )
            part.replace(state_file)


if __name__ == "__main__":
    main()
