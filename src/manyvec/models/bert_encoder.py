"""`BertEncoder`: a BERT checkpoint as an encoder, without transformers and sentence-transformers.

It reads plain checkpoints and those that `tune` saves, with or without a token projection. Its vectors and its
fingerprint are those of `SentenceTransformerEncoder` over the same checkpoint, so an index that was made with the one
is opened with the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.models.adapter import adapted
from manyvec.models.bert import PROJECTION, BertConfig, Executor, Weights, load_executor, padded, prepared
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.windowed import Task, WindowedEncoder
from manyvec.models.windows import Spans

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_TOKENS = 2048
_KINDS = ("weight", "bias")
# What the files of a model that sentence-transformers saved say if nothing but BERT and a linear layer computes it.
_BACKBONE = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
_DENSE = {"activation_function": "torch.nn.modules.linear.Identity", **_TOKENS}


@dataclass(frozen=True)
class Head:
    """What follows BERT's last hidden state, before the vectors are normalised.

    Attributes:
        skipped: (n,) ids of tokens that have no vector, by task.
        configs: Settings of the modules that sentence-transformers has for it.
        weights: `projection.weight` (dim, hidden size), perhaps `projection.bias` (dim,); empty without a projection.
    """

    skipped: Mapping[Task, NDArray[np.int64]]
    configs: Sequence[Mapping[str, Any]]
    weights: Weights = field(default_factory=dict)

    @classmethod
    def plain(cls, tokenizer: Tokenizer, projection: NDArray[np.float32] | None = None) -> Head:
        """Return the head that leaves out special tokens, and has no more than this (dim, hidden size) projection."""
        unknown = getattr(tokenizer.model, "unk_token", None)
        added = tokenizer.get_added_tokens_decoder()
        skipped = {id: token.content for id, token in added.items() if token.special and token.content != unknown}
        tasks: list[Task] = ["query", "document"]
        mask = {"skiplist_words": sorted(skipped.values()), "skiplist_tasks": tasks, "keep_only_token_ids": None}
        settings: list[Mapping[str, Any]] = [mask, _TOKENS]
        if projection is not None:
            out, width = projection.shape
            settings.insert(0, {"in_features": width, "out_features": out, "bias": False, **_DENSE})
        return cls(dict.fromkeys(tasks, np.array([*skipped], np.int64)), settings)

    @classmethod
    def saved(cls, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Head | None:
        """Return the head of a model that sentence-transformers saved; None for one that has more than this class."""
        backbone = checkpoint.object("sentence_bert_config.json")
        saved = checkpoint.object("config_sentence_transformers.json")
        prompts = saved.get("prompts") or {}
        kinds = [module["type"].rpartition(".")[2] for module in checkpoint.modules]
        is_known = (
            all(module["type"].startswith("sentence_transformers.") for module in checkpoint.modules)
            and kinds in (["Transformer", *dense, "MultiVectorMask", "Normalize"] for dense in ([], ["Dense"]))
            and {name: value for name, value in backbone.items() if name != "max_seq_length"} == _BACKBONE
            and {*prompts} == {"query", "document"}
            and not any(prompts.values())
        )
        if not is_known:
            return None
        *dense, mask, normalize = (checkpoint.object(f"{m['path']}/config.json") for m in checkpoint.modules[1:])
        words, tasks = mask.get("skiplist_words", []), mask.get("skiplist_tasks", ["document"])
        ids = [tokenizer.token_to_id(word) for word in words]
        if normalize != _TOKENS or mask.get("keep_only_token_ids") or None in ids:
            return None
        skipped: dict[Task, NDArray[np.int64]] = {
            task: np.array(ids if task in tasks else [], np.int64) for task in ("query", "document")
        }
        settings = [{"skiplist_words": words, "skiplist_tasks": tasks, "keep_only_token_ids": None}, _TOKENS]
        if not dense:
            return cls(skipped, settings)
        shape = {name: dense[0].get(name) for name in ("in_features", "out_features", "bias")}
        if dense[0] != shape | _DENSE:
            return None
        from safetensors.numpy import load_file

        stored = load_file(checkpoint.path(f"{checkpoint.modules[1]['path']}/model.safetensors"))
        names = _KINDS if shape["bias"] else _KINDS[:1]
        weights = {f"projection.{name}": np.asarray(stored[f"linear.{name}"], np.float32) for name in names}
        return cls(skipped, [shape | _DENSE, *settings], weights)


class BertEncoder(WindowedEncoder):
    """Unit vectors of BERT's last hidden state or of a projection of it, on the CPU. Threads may share it.

    Args:
        tokenizer: With neither truncation nor padding.
        executor: Runs the model.
        head: What follows BERT's last hidden state.
        name: The name under which `load_encoder` finds the model.
        max_tokens: Tokens that the model reads at a time, special tokens included.
        weight_samples: See `weight_samples`.
    """

    device = "cpu"

    def __init__(
        self,
        tokenizer: Tokenizer,
        executor: Executor,
        head: Head,
        *,
        name: str,
        max_tokens: int,
        weight_samples: Sequence[bytes],
    ) -> None:
        super().__init__(name, batch_tokens=_BATCH_TOKENS)
        self._tokenizer = tokenizer
        self._executor = executor
        self._head = head
        self._max = max_tokens
        self._weight_samples = weight_samples

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str, *, backend: str, is_saved: bool = False) -> BertEncoder | None:
        """Load a checkpoint; return None for one that needs transformers or sentence-transformers.

        Args:
            backend: See `load_executor`.
            is_saved: Whether sentence-transformers saved it as a model with token vectors.

        Raises:
            KeyError: A weight is missing.
        """
        config = BertConfig.read(checkpoint.config)
        files = checkpoint.weight_files
        if config is None or not checkpoint.has("tokenizer.json") or not all(f.endswith(".safetensors") for f in files):
            return None
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(checkpoint.path("tokenizer.json")))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        saved = Head.saved(checkpoint, tokenizer) if is_saved else None
        if is_saved and saved is None:
            return None
        stored: dict[str, NDArray[Any]] = {}
        for file in files:
            stored |= load_file(checkpoint.path(file))
        weights = {key.removeprefix("bert."): np.asarray(value, np.float32) for key, value in stored.items()}
        if checkpoint.adapter is not None:
            weights = adapted(weights, checkpoint.adapter)
        head = saved or Head.plain(tokenizer, weights.get(PROJECTION))
        weights |= head.weights
        executor = load_executor(config, prepared(config, weights), backend=backend)
        samples = weight_samples(config, weights)
        return cls(tokenizer, executor, head, name=name, max_tokens=_max_tokens(checkpoint), weight_samples=samples)

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of the model's tokenizer that neither truncates nor pads, for counting tokens."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self._tokenizer.to_str())

    @property
    def backend(self) -> str:
        """What runs the model: `onnx` or `torch`."""
        return self._executor.name

    @cached_property
    def dim(self) -> int:
        return self._executor.dim

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the `SentenceTransformerEncoder` over the same checkpoint."""
        prompts = {"query": "", "document": ""}
        recipe = [prompts, None, None, None, self._max, self.overlap, self.opening, *self._head.configs]
        digest = hashlib.blake2b(repr(recipe).encode(), digest_size=16)
        tokenizer = json.loads(self._tokenizer.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(tokenizer).encode())
        for sample in self._weight_samples:
            digest.update(sample)
        return digest.hexdigest()

    @property
    def _n_parallel(self) -> int:
        return self._executor.n_threads

    def _max_tokens(self, task: Task) -> int:
        return self._max

    def _spans(self, texts: Sequence[str], task: Task) -> Iterator[tuple[str, Spans]]:
        for start in range(0, len(texts), 64):
            part = list(texts[start : start + 64])
            for text, encoding in zip(part, self._tokenizer.encode_batch(part), strict=True):
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
                spans[spans[:, 0] == spans[:, 1]] = -1
                yield text, spans

    def _forward(self, texts: list[str], task: Task) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        # A query that is too long loses its end, but not the separator behind it.
        rows = [ids if len(ids) <= self._max else [*ids[: self._max - 1], ids[-1]] for ids in rows]
        ids, mask = padded(rows, padding=0)
        states = self._executor.run(ids, mask)
        norms = np.linalg.norm(states, axis=2, keepdims=True)
        return states / np.maximum(norms, 1e-12), mask & ~np.isin(ids, self._head.skipped[task])


def weight_samples(config: BertConfig, weights: Weights) -> list[bytes]:
    """Return the samples of a checkpoint's weights that `text.weight_samples` takes from transformers' model."""
    names = [f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")]
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    parts += ["attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
    layers = [f"encoder.layer.{layer}.{part}" for layer in range(config.n_layers) for part in parts]
    names += ["embeddings.LayerNorm", *layers, "pooler.dense"]
    ordered = [(f"0.model.{name}.{kind}", weights.get(f"{name}.{kind}")) for name in names for kind in _KINDS]
    ordered += [(f"1.linear.{kind}", weights.get(f"projection.{kind}")) for kind in _KINDS]
    samples = []
    for name, weight in ordered:
        if weight is not None:
            values = weight.ravel()[:: max(1, weight.size // 64)]
            samples.append(f"{name}{weight.shape}".encode() + values.astype(np.float16).tobytes())
    return samples


def _max_tokens(checkpoint: Checkpoint) -> int:
    """Return the smallest limit that the checkpoint states."""
    limits = [
        checkpoint.config.get("max_position_embeddings"),
        checkpoint.object("sentence_bert_config.json").get("max_seq_length"),
        checkpoint.object("tokenizer_config.json").get("model_max_length"),
    ]
    return int(min(limit for limit in limits if limit))
