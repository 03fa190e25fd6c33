"""Checkpoints that PyLate and sentence-transformers save, with a modules.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from checkpoints import TINY, Golden, write_json
from checkpoints.bert import WORDS, colbert, linear, write_plain

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


def write_pylate(folder: Path) -> Golden:
    """mixedbread-ai/mxbai-edge-colbert-v0-17m: ModernBERT, two Dense layers of PyLate's, the first with a residual."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import ModernBertConfig, ModernBertModel

    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", ".", ",", *WORDS, "[Q] ", "[D] "]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $0 [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("unk", "cls", "sep", "pad", "mask")
    settings = {f"{name}_token": f"[{name.upper()}]" for name in names}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    write_json(folder / "tokenizer_config.json", settings)
    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=len(vocabulary), pad_token_id=3, max_position_embeddings=64, **TINY)
    model = ModernBertModel(config).eval()
    model.save_pretrained(folder)
    first, residual, second = linear(32, 48), linear(32, 48), linear(48, 6)
    residual.weight.data *= -0.5
    for name, n_in, n_out, weights in (
        ("1_Dense", 32, 48, {"linear.weight": first.weight.data, "residual.weight": residual.weight.data}),
        ("2_Dense", 48, 6, {"linear.weight": second.weight.data}),
    ):
        dense = {"in_features": n_in, "out_features": n_out, "bias": False, "use_residual": len(weights) == 2}
        write_json(folder / name / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file(weights, folder / name / "model.safetensors")
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules.append(("2_Dense", "pylate.models.Dense.Dense"))
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", entries)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    recipe = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12, "document_length": 20}
    recipe |= {"attend_to_expansion_tokens": False, "skiplist_words": [".", ","], "do_query_expansion": True}
    recipe |= {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim", "model_type": "ColBERT"}
    write_json(folder / "config_sentence_transformers.json", recipe)

    def ids_of(text, task):
        words = text.replace(",", " ,").replace(".", " .").split()
        return [vocabulary.index(w) for w in ["[CLS]", "[Q] " if task == "query" else "[D] ", *words, "[SEP]"]]

    project = lambda vectors: second(first(vectors) + residual(vectors))  # noqa: E731
    return colbert(model, ids_of, 4, project, length=12, skipped=[5, 6])


def write_multi_vector(folder: Path) -> tuple[Path, MultiVectorEncoder]:
    """Save a model with sentence-transformers: Transformer, Dense, mask. Return its folder and the model."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    write_plain(folder / "backbone")
    dense = Dense(32, 6, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    modules = [Transformer(str(folder / "backbone")), dense, MultiVectorMask(), Normalize("token_embeddings")]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved", model
