"""Prepare a model for training: which weights are trained, its dims, and frozen layers computed once.

This imports torch and sentence-transformers, so import it only when a model is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, InputModule, Transformer

from manyvec.errors import EncoderError, InputError, require
from manyvec.models.checkpoints import LoadOptions
from manyvec.models.layouts.modules import Backbone, token_projection
from manyvec.models.loading import build_encoder
from manyvec.models.text import SentenceTransformerEncoder

Method: TypeAlias = Literal["full", "lora", "projection"]
Task: TypeAlias = Literal["query", "document"]
Features: TypeAlias = dict[str, Any]

# The rank of LoRA's matrices: 3 % of the weights of `minilm`.
LORA_RANK = 16


def load_trainable(name: str, *, device: str) -> MultiVectorEncoder:
    """Load a model of which every class is sentence-transformers' own, so that what is saved loads anywhere.

    Raises:
        EncoderError: The model has no layers that can be trained here.
    """
    encoder = build_encoder(name, LoadOptions(device=device, backend="torch"))
    if type(encoder) is not SentenceTransformerEncoder:
        raise EncoderError(
            f"cannot train {name!r}: it is a {type(encoder).__name__}, and tune trains text models that "
            "sentence-transformers runs in torch, such as 'minilm' or a ColBERT"
        )
    model = encoder.model
    backbone: Any = model[0]
    if not isinstance(backbone, Transformer) or getattr(backbone, "n_masks", False):
        raise EncoderError(
            f"cannot train {name!r}: no class of sentence-transformers appends mask tokens to queries as this "
            "checkpoint does, so nothing else could load the result"
        )
    if isinstance(backbone, Backbone):
        # The subclass differs in how weights are loaded, which is done.
        backbone.__class__ = Transformer
    return model


def add_projection(model: MultiVectorEncoder, axes: NDArray[np.float32] | None) -> None:
    """Give a model a token projection, or multiply the one it has.

    Args:
        model: Changed in place.
        axes: (dim, width) matrix that its token vectors are multiplied with; None for a square one that changes
            nothing, unless the model has a projection already.
    """
    projection = projection_of(model)
    if axes is None and projection is not None:
        return
    weight = torch.eye(int(model.get_embedding_dimension() or 0)) if axes is None else torch.from_numpy(axes)
    bias = None
    if projection is not None:
        bias = None if projection.linear.bias is None else weight @ projection.linear.bias.detach().cpu()
        weight = weight @ projection.linear.weight.detach().cpu()
    dense = token_projection(weight, bias).to(model.device)
    modules = [module for module in model if module is not projection]
    _replace_modules(model, [modules[0], dense, *modules[1:]])


def projection_of(model: MultiVectorEncoder) -> Dense | None:
    """Return the last token projection, or None if the model has none."""
    return next((module for module in reversed(list(model)) if isinstance(module, Dense)), None)


def projection_weight(model: MultiVectorEncoder) -> NDArray[np.float32]:
    """Return the (dim, width) matrix of the last token projection.

    Raises:
        ValueError: There is none.
    """
    projection = projection_of(model)
    if projection is None:
        raise ValueError("the model has no token projection")
    weight: NDArray[np.float32] = projection.linear.weight.detach().float().cpu().numpy()
    return weight


def prefixes(dim: int) -> list[int]:
    """Return the prefixes of a vector that are trained to be compared by themselves: 32, 64, … and the whole."""
    return [2**power for power in range(5, 10) if 2**power < dim] + [dim]


def choose_weights(model: MultiVectorEncoder, method: Method) -> None:
    """Mark which weights are trained; with `lora`, add the small matrices."""
    if method == "lora":
        peft = require("peft", extra="train")
        transformer: Any = model[0].model
        names = [
            name
            for name, module in transformer.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith("pooler")
        ]
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=names)
        peft.inject_adapter_in_model(config, transformer)
    projection = projection_of(model)
    trained = set(map(id, projection.parameters())) if projection is not None else set()
    for name, weight in model.named_parameters():
        is_head = id(weight) in trained
        weight.requires_grad_({"full": ".pooler." not in name, "lora": "lora_" in name or is_head}.get(method, is_head))
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError("method 'projection' needs a model with a token projection, or a dim to make one")


def merge_lora(model: MultiVectorEncoder) -> None:
    """Add the product of LoRA's matrices to the weights they belong to, and remove them. Vectors stay the same."""
    from peft.tuners.lora import LoraLayer

    transformer: Any = model[0].model
    layers = [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        transformer.set_submodule(name, layer.get_base_layer())
    # A model that has held adapters would otherwise be saved as an adapter.
    transformer._hf_peft_config_loaded = False


class FrozenStates(InputModule):
    """Takes the place of a backbone that is not trained: its token states are computed once for each text.

    Args:
        model: Model whose first module is replaced.
        texts: Texts to compute the states of, by task. They take 2 bytes a dimension and token.
    """

    def __init__(self, model: MultiVectorEncoder, texts: dict[Task, Sequence[str]], *, max_tokens: int) -> None:
        super().__init__()
        self.tokenizer = model.tokenizer
        backbone: Any = model[0]
        self._width = backbone.get_embedding_dimension()
        self._states: dict[tuple[str, str], Features] = {}
        for task, some in texts.items():
            # Texts of similar length are padded little.
            for batch in _batches(sorted(set(some), key=len), 32):
                features = model.preprocess(batch, prompt=prompt_of(model, task), task=task, max_length=max_tokens)
                with torch.inference_mode():
                    features = backbone(_on_device(features, model.device))
                for row, text in enumerate(batch):
                    self._states[task, text] = _row(features, row)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> Features:
        rows = [self._states[kwargs["task"], text] for text in inputs]
        return {key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True) for key in rows[0]}

    def forward(self, features: Features, **kwargs: Any) -> Features:
        return {**features, "token_embeddings": features["token_embeddings"].float()}

    def get_embedding_dimension(self) -> int:
        return int(self._width)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        raise EncoderError("a model whose layers are frozen cannot be saved: leave `frozen` first")


@contextmanager
def frozen(model: MultiVectorEncoder, texts: dict[Task, Sequence[str]], *, max_tokens: int) -> Iterator[None]:
    """Replace the backbone by its states for these texts, and put it back at the end."""
    backbone = model[0]
    states = FrozenStates(model, texts, max_tokens=max_tokens)
    _replace_modules(model, [states, *list(model)[1:]])
    try:
        yield
    finally:
        _replace_modules(model, [backbone, *list(model)[1:]])


def prompt_of(model: MultiVectorEncoder, task: Task) -> str:
    """Return the marker or prompt that the model puts before a query or a document."""
    names = ("query",) if task == "query" else ("document", "passage", "corpus")
    return next((prompt for name in names if (prompt := model.prompts.get(name))), "")


def activation_bytes(model: MultiVectorEncoder, n_rows: int, n_tokens: int) -> float:
    """Estimate the memory of a step's activations.

    68 bytes for each hidden unit; 20 for each head and pair of tokens, unless attention is fused.
    """
    config: Any = model[0].config
    is_fused = getattr(config, "_attn_implementation", "eager") != "eager"
    keys = 0 if is_fused else 20 * getattr(config, "num_attention_heads", 1) * n_tokens
    return float(n_rows * n_tokens * config.num_hidden_layers * (68 * config.hidden_size + keys))


def _replace_modules(model: MultiVectorEncoder, modules: Sequence[torch.nn.Module]) -> None:
    model._modules.clear()
    for position, module in enumerate(modules):
        model._modules[str(position)] = module


def _on_device(features: Features, device: Any) -> Features:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in features.items()}


def _row(features: Features, row: int) -> Features:
    """Return the features of one text without padding, on the CPU; states as float16."""
    is_token = features["attention_mask"][row].bool()
    if (expansion := features.get("query_expansion_positions")) is not None:
        is_token = is_token | expansion[row].bool()
    kept = {
        key: value[row][is_token].cpu()
        for key, value in features.items()
        if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[:2] == features["attention_mask"].shape
    }
    # A copy: a view would keep the states of the whole batch.
    kept["token_embeddings"] = kept["token_embeddings"].to(torch.float16, copy=True)
    return {key: value.clone() for key, value in kept.items()}


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    return (list(texts[start : start + size]) for start in range(0, len(texts), size))
