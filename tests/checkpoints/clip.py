"""Checkpoints of CLIP and SigLIP."""

from __future__ import annotations

import io
import string
from pathlib import Path

import pytest
import torch

from checkpoints import TINY, Golden
from checkpoints.pages import PICTURES, QUERIES


def write_clip(folder: Path) -> Golden:
    """openai/clip-vit-base-patch32."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20)
    crop = {"height": 28, "width": 28}
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop), tokenizer)
    text = TINY | {"vocab_size": len(vocabulary), "max_position_embeddings": 20, "projection_dim": 16}
    text |= {"bos_token_id": len(pieces), "eos_token_id": len(pieces) + 1, "pad_token_id": len(pieces) + 1}
    vision = TINY | {"image_size": 28, "patch_size": 14, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def of_text(text):
        inputs = tokenizer(text, return_tensors="pt")
        return model.text_model(**inputs).last_hidden_state[0, 1:-1] @ model.text_projection.weight.T

    def of_image(image):
        hidden = model.vision_model(**processor.image_processor(image, return_tensors="pt")).last_hidden_state
        return model.vision_model.post_layernorm(hidden)[0, 1:] @ model.visual_projection.weight.T

    return filip_golden(of_text, of_image)


def write_siglip(folder: Path) -> Golden:
    """google/siglip-base-patch16-224: texts padded to the full length, patches through the pooling head one by one."""
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'manyvec[images]'")
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor, SiglipTokenizer

    torch.manual_seed(0)
    folder.mkdir()
    sentences = ["hi there a picture of a page", "the hare and a tortoise", "there is a hit in the air"] * 10
    model_file = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model_file, vocab_size=24, model_type="char",
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model_file.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    processor = SiglipProcessor(SiglipImageProcessor(size={"height": 28, "width": 28}), tokenizer)
    vision = TINY | {"image_size": 28, "patch_size": 14}
    text = TINY | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def of_text(text):
        ids = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
        hidden = model.text_model(input_ids=ids).last_hidden_state[0]
        head = model.text_model.head
        return (hidden @ head.weight.T + head.bias)[ids[0] != tokenizer.pad_token_id]

    def of_image(image):
        patches = model.vision_model(**processor.image_processor(image, return_tensors="pt")).last_hidden_state[0]
        head = model.vision_model.head
        # With one patch to attend to, attention is that patch's value, projected.
        value = patches @ head.attention.in_proj_weight[64:].T + head.attention.in_proj_bias[64:]
        attended = head.attention.out_proj(value)
        return attended + head.mlp(head.layernorm(attended))

    return filip_golden(of_text, of_image)


def filip_golden(of_text, of_image):
    with torch.inference_mode():
        texts, images = [of_text(text) for text in QUERIES], [of_image(image) for image in PICTURES]
        unit = lambda vectors: (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()  # noqa: E731
        return Golden([unit(vectors) for vectors in texts], [unit(vectors) for vectors in images])
