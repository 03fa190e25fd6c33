"""Write what the image recipes need where no hub can be reached: drawn pages with questions, and tiny untrained models.

    python examples/training/tiny.py DATA/squad-dev --out ./tiny

`./tiny/colpali` and `./tiny/clip` are checkpoints in their published formats, 64 dims wide, with tokens learned from
the data; `train.jsonl`, `seen.jsonl` and `unseen.jsonl` name an image and a question in each line. The questions of
`seen.jsonl` are held out of the training, their pages are not; the pages of `unseen.jsonl` come from the test split.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    GemmaTokenizer,
    SiglipImageProcessor,
)

from manyvec.evaluation import load_beir

SIDE, PATCH, VOCABULARY = 112, 14, 2000
LAYERS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}


def page(text: str) -> Image.Image:
    """Return an image of the first 13 lines of a string, of about 26 letters."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    lines = "\n".join(textwrap.wrap(text, 26)[:13])
    ImageDraw.Draw(image).multiline_text((1, 1), lines, "black", ImageFont.load_default(8), spacing=0)
    return image


def write_colpali(folder: Path, texts: list[str]) -> None:
    """Write an untrained ColPali."""
    tokenizer = GemmaTokenizer().train_new_from_iterator(texts, VOCABULARY, show_progress=False)
    pixels = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    processor = ColPaliProcessor(pixels, tokenizer)
    text = {**LAYERS, "model_type": "gemma", "num_key_value_heads": 4, "head_dim": 16, "vocab_size": len(tokenizer)}
    vision = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
    vlm = {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 64}
    vlm |= {"hidden_size": 64, "image_token_index": processor.image_token_id}
    ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm, embedding_dim=64)).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_clip(folder: Path, texts: list[str]) -> None:
    """Write an untrained CLIP."""
    tokenizer = CLIPTokenizer(model_max_length=32).train_new_from_iterator(texts, VOCABULARY, show_progress=False)
    sides = {"height": SIDE, "width": SIDE}
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sides), tokenizer)
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)).save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder in BEIR layout with qrels/train.tsv and qrels/test.tsv.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=300, help="Pages of each split.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    (arguments.out / "pages").mkdir(parents=True)
    train = load_beir(arguments.data, "train")
    texts = {document.id: document.text for document in train.documents}
    rows: dict[str, list[dict[str, str]]] = {"train": [], "seen": [], "unseen": []}
    for split, data in (("train", train), ("test", load_beir(arguments.data))):
        by_page: dict[str, list[str]] = {}
        for query, judged in data.qrels.items():
            by_page.setdefault(next(iter(judged)), []).append(data.queries[query])
        for number, (id, questions) in enumerate(list(by_page.items())[: arguments.pages]):
            image = f"pages/{split}-{number}.png"
            page(texts[id]).save(arguments.out / image)
            pairs = [{"image": image, "text": question} for question in questions]
            if split == "train":
                rows["train"] += pairs[:-1]
            rows["seen" if split == "train" else "unseen"].append(pairs[-1])
    for name, lines in rows.items():
        written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (arguments.out / f"{name}.jsonl").write_text(written, encoding="utf-8")
    write_colpali(arguments.out / "colpali", list(texts.values()))
    write_clip(arguments.out / "clip", list(texts.values()))


if __name__ == "__main__":
    main()
