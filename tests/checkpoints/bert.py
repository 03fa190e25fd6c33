"""Checkpoints over a tiny BERT: Stanford's ColBERT and its descendants, margin-MSE, a plain transformer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from checkpoints import TINY, Golden, write_json

WORDS = "late interaction keeps one vector for each token of the text a query".split()
BERT_VOCABULARY = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *WORDS]
QUERIES = ["a query", "the text"]
DOCUMENTS = ["late interaction , one vector.", "keeps each token of the text", "one"]


def embed(model, ids, projections, *, attended=None, keep=None, unit=True):
    """Token vectors by hand: `attended` tokens are seen by the others, those in `keep` come out."""
    mask = torch.tensor([[int(i < (len(ids) if attended is None else attended)) for i in range(len(ids))]])
    with torch.inference_mode():
        vectors = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
        for project in projections:
            vectors = project(vectors)
    vectors = vectors[range(len(ids)) if keep is None else keep]
    return (torch.nn.functional.normalize(vectors, dim=-1) if unit else vectors).numpy()


def linear(n_in, n_out, *, bias=False):
    torch.manual_seed(n_in + n_out)
    return torch.nn.Linear(n_in, n_out, bias=bias).eval()


def bert_ids(text, *, marker=None):
    words = text.replace(",", " ,").replace(".", " .").split()
    return [BERT_VOCABULARY.index(word) for word in ["[CLS]", *([marker] if marker else []), *words, "[SEP]"]]


def tiny_bert(folder, architecture, vocabulary=BERT_VOCABULARY):
    """config.json, vocab.txt and tokenizer_config.json of a BERT, and its model."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 64})
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": [architecture]})
    return BertModel(config).eval()


def colbert(model, ids_of, mask_id, projection, *, length=32, skipped=()):
    """Stanford's arithmetic: queries filled up with [MASK]s that nothing attends to, documents without punctuation."""
    queries, documents = [], []
    for text in QUERIES:
        ids = ids_of(text, "query")
        queries.append(embed(model, ids + [mask_id] * (length - len(ids)), [projection], attended=len(ids)))
    for text in DOCUMENTS:
        ids = ids_of(text, "document")
        keep = [i for i, id in enumerate(ids) if id not in skipped]
        documents.append(embed(model, ids, [projection], keep=keep))
    return Golden(queries, documents)


def bert_colbert(model, projection, *, length=32):
    markers = {"query": "[unused0]", "document": "[unused1]"}
    # Of the characters in string.punctuation the vocabulary has two; colbert-ai skips [UNK] for the others.
    skipped = [BERT_VOCABULARY.index(word) for word in (".", ",", "[UNK]")]
    ids_of = lambda text, task: bert_ids(text, marker=markers[task])  # noqa: E731
    return colbert(model, ids_of, BERT_VOCABULARY.index("[MASK]"), projection, length=length, skipped=skipped)


def write_stanford(folder: Path) -> Golden:
    """colbert-ir/colbertv2.0: HF_ColBERT, bert.* and linear.weight in one file, artifact.metadata beside it."""
    model, projection = tiny_bert(folder, "HF_ColBERT"), linear(32, 8)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection.weight.data}, folder / "model.safetensors", {"format": "pt"})
    settings = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    settings |= {"query_maxlen": 12, "doc_maxlen": 20, "dim": 8, "mask_punctuation": True, "similarity": "cosine"}
    settings |= {"attend_to_mask_tokens": False, "checkpoint": "/future/u/someone/colbert.dnn", "root": "/etc"}
    write_json(folder / "artifact.metadata", settings)
    return bert_colbert(model, projection, length=12)


def write_vespa(folder: Path) -> Golden:
    """vespa-engine/col-minilm: ColBERT's first version as a pickle, 32 dims, vocab.txt, no artifact.metadata."""
    model, projection = tiny_bert(folder, "ColBERT"), linear(32, 16)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    torch.save(weights | {"linear.weight": projection.weight.data}, folder / "pytorch_model.bin")
    return bert_colbert(model, projection)


def write_dnn(folder: Path) -> Golden:
    """ColBERT's first version as its training wrote it: a .dnn file with the weights and the training's state."""
    model, projection = tiny_bert(folder, "BertForMaskedLM"), linear(32, 8)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    state = {"epoch": 0, "batch": 150000, "arguments": {"model": "bert-base-multilingual-uncased", "dim": 8}}
    state["model_state_dict"] = weights | {"linear.weight": projection.weight.data}
    torch.save(state, folder / "mColBERT.dnn")
    return bert_colbert(model, projection)


def write_margin_mse(folder: Path) -> Golden:
    """sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco: bert_model.* and compressor over a named base."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(BERT_VOCABULARY), dim=32, n_layers=1, n_heads=2, hidden_dim=48, max_position_embeddings=64
    )
    model, compressor = DistilBertModel(config).eval(), linear(32, 8, bias=True)
    # What the hub's cache keeps of distilbert-base-uncased.
    base = folder / "distilbert-base-uncased"
    base.mkdir(parents=True)
    write_json(base / "config.json", config.to_dict() | {"architectures": ["DistilBertForMaskedLM"]})
    (base / "vocab.txt").write_text("\n".join(BERT_VOCABULARY))
    write_json(base / "tokenizer_config.json", {"tokenizer_class": "DistilBertTokenizer", "model_max_length": 64})
    settings = {"architectures": ["ColBERT"], "model_type": "ColBERT", "bert_model": "distilbert-base-uncased"}
    settings |= {"compression_dim": 8, "dropout": 0.0, "return_vecs": False, "trainable": True}
    write_json(folder / "config.json", settings)
    weights = {f"bert_model.{name}": value for name, value in model.state_dict().items()}
    weights |= {f"compressor.{name}": value.data for name, value in compressor.named_parameters()}
    torch.save(weights, folder / "pytorch_model.bin")
    masks = [BERT_VOCABULARY.index("[MASK]")] * 8
    return Golden(
        [embed(model, bert_ids(text) + masks, [compressor], unit=False) for text in QUERIES],
        [embed(model, bert_ids(text), [compressor], unit=False) for text in DOCUMENTS],
    )


def write_plain(folder: Path) -> Golden:
    """Any other transformer: its last hidden state, without [CLS] and [SEP]."""
    model = tiny_bert(folder, "BertModel")
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    inner = [
        [embed(model, bert_ids(text), [], keep=range(1, len(bert_ids(text)) - 1)) for text in texts]
        for texts in (QUERIES, DOCUMENTS)
    ]
    return Golden(*inner)
