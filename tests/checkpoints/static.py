"""Checkpoints of static token vectors: model2vec's layouts and sentence-transformers' own."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[UNK]", "late", "interaction", "keeps", "one", "vector", "the"]
# Directions times weights: "the" is light.
VECTORS = np.array([[9, 9], [3, 4], [0, 2], [1, 0], [2, 2], [5, 0], [0.06, 0.08]], np.float32)


def write_tokenizer(path):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def write_model2vec(folder, tensors):
    """minishlab/potion-*: `embeddings`, and in newer models `weights` and `mapping`."""
    write_tokenizer(folder / "tokenizer.json")
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True, "seq_length": 1000000}
    (folder / "config.json").write_text(json.dumps(config))
    modules = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def write_static_embedding(folder):
    """sentence-transformers' own static models, such as static-retrieval-mrl-en-v1."""
    write_tokenizer(folder / "0_StaticEmbedding" / "tokenizer.json")
    save_file({"embedding.weight": VECTORS}, folder / "0_StaticEmbedding" / "model.safetensors")
    kind = "sentence_transformers.models.StaticEmbedding"
    modules = [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": kind}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def weighted():
    """The same vectors as directions, weights, and rows that a mapping looks up."""
    weights = np.linalg.norm(VECTORS, axis=1)
    order = np.array([2, 0, 1, 3, 4, 6, 5])
    return {
        "embeddings": (VECTORS / weights[:, None])[order],
        "weights": weights,
        "mapping": np.argsort(order).astype(np.int64),
    }


LAYOUTS = {
    "plain": lambda folder: write_model2vec(folder, {"embeddings": VECTORS}),
    "float16": lambda folder: write_model2vec(folder, {"embeddings": VECTORS.astype(np.float16)}),
    "weights and mapping": lambda folder: write_model2vec(folder, weighted()),
    "sentence-transformers": write_static_embedding,
}
