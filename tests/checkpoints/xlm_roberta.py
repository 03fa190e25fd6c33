"""Checkpoints over a tiny XMOD or XLM-RoBERTa: ColBERT-XM and BGE-M3."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from checkpoints import TINY, Golden, write_json
from checkpoints.bert import DOCUMENTS, QUERIES, WORDS, colbert, embed, linear


def write_xlm_r_tokenizer(folder: Path) -> Any:
    """tokenizer.json and tokenizer_config.json of an XLM-RoBERTa; answers with the tokenizer."""
    from transformers import XLMRobertaTokenizer

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = ["▁" + word for word in WORDS] + ["▁.", ".", "▁,", "▁", ","]
    vocabulary = [(piece, 0.0) for piece in specials] + [(piece, -float(i + 1)) for i, piece in enumerate(pieces)]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=64)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_colbert_xm(folder: Path) -> Golden:
    """antoinelouis/colbert-xm: XMOD, whose vocabulary has neither marker: colbert-ai puts in the id of <unk>."""
    from transformers import XmodConfig, XmodModel

    tokenizer = write_xlm_r_tokenizer(folder)
    torch.manual_seed(0)
    languages = {"languages": ["en_XX", "de_DE"], "default_language": "en_XX", "pad_token_id": 1}
    config = XmodConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **languages, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": ["HF_ColBERT"]})
    model, projection = XmodModel(config).eval(), linear(32, 8)
    weights = {f"roberta.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection.weight.data}, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "artifact.metadata", {"query_maxlen": 12, "doc_maxlen": 20, "dim": 8})

    def ids_of(text, _):
        ids = tokenizer(text)["input_ids"]
        return [ids[0], tokenizer.unk_token_id, *ids[1:]]

    skipped = {tokenizer(symbol, add_special_tokens=False)["input_ids"][0] for symbol in string.punctuation}
    return colbert(model, ids_of, tokenizer.mask_token_id, projection, length=12, skipped=skipped)


def write_bge_m3(folder: Path) -> Golden:
    """BAAI/bge-m3: XLM-RoBERTa as a pickle, colbert_linear.pt and sparse_linear.pt, and modules.json for one vector."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = write_xlm_r_tokenizer(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": ["XLMRobertaModel"]})
    model, projection, sparse = XLMRobertaModel(config).eval(), linear(32, 32, bias=True), linear(32, 1, bias=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(projection.state_dict(), folder / "colbert_linear.pt")
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    vectors = [
        [embed(model, ids, [projection], keep=range(1, len(ids))) for ids in tokenizer(texts)["input_ids"]]
        for texts in (QUERIES, DOCUMENTS)
    ]
    return Golden(*vectors)
