"""Train CLIP as FILIP does: patches and words compared one by one, in both directions, with a learned temperature.

    python examples/training/filip.py --model openai/clip-vit-base-patch32 --pairs captions.jsonl --out ./my-clip

Each line of captions.jsonl has `image`, a path beside the file, and `text`. The tuned model is loaded by
`load_encoder`, and its captions and images are searched like any others; `--test` measures that. `tiny.py` writes such
files, and a tiny CLIP, where no hub can be reached.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from recipes import POOLED, measured, pictures, read_pairs, write
from transformers import AutoModel, AutoProcessor

import manyvec
from manyvec.training import FilipLoss, patch_vectors, word_mask, word_vectors


def distinct_batches(texts: Sequence[str], order: list[int], size: int) -> list[list[int]]:
    """Return positions in batches in which no text occurs twice: it would be a negative of itself."""
    batches: list[dict[str, int]] = []
    for position in order:
        fitting = next((batch for batch in batches if len(batch) < size and texts[position] not in batch), None)
        if fitting is None:
            batches.append(fitting := {})
        fitting[texts[position]] = position
    return [list(batch.values()) for batch in batches]


def train(
    model_name: str,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    out: Path,
    *,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 1e-5,
    top_fraction: float = 1.0,
) -> list[float]:
    """Train on images and their texts, save the model, and return the mean loss of each epoch."""
    model, processor = AutoModel.from_pretrained(model_name), AutoProcessor.from_pretrained(model_name)
    pixels = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    tokens = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    is_word = word_mask(processor.tokenizer, tokens["input_ids"])
    loss = FilipLoss(top_fraction)
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=learning_rate)
    torch.manual_seed(0)
    means = []
    for _ in range(epochs):
        total = 0.0
        batches = distinct_batches(texts, torch.randperm(len(pixels)).tolist(), batch_size)
        for batch in batches:
            patches = patch_vectors(model, pixels[batch])
            words = word_vectors(model, tokens["input_ids"][batch], tokens["attention_mask"][batch])
            value = loss(patches, words, is_word[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
        means.append(total / len(batches))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="Files to measure before and after.")
    parser.add_argument("--name", default="filip", help="Name of the file of results.")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.pairs)
    images = [Image.open(path).convert("RGB") for path, _ in pairs]
    settings = {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    losses = train(arguments.model, images, [text for _, text in pairs], arguments.out, **settings)
    results: dict[str, Any] = {"training": {"pairs": len(pairs), **settings, "losses": [round(x, 4) for x in losses]}}
    for test in map(pictures, arguments.test):
        results[test.name] = {"pages": len(test.documents), "queries": len(test.queries)}
        for name, model, variants in (("untrained", arguments.model, POOLED[:1]), ("trained", arguments.out, POOLED)):
            results[test.name][name] = measured(manyvec.load_encoder(str(model)), test, variants)
    write(arguments.name, results)


if __name__ == "__main__":
    main()
