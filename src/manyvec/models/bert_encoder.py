"""`BertEncoder`: a BERT checkpoint as an encoder, without transformers and sentence-transformers.

It reads plain checkpoints, Stanford's ColBERT, and what `tune` saves of both. Its vectors and its fingerprint are those
of `SentenceTransformerEncoder` over the same checkpoint, so an index that was made with the one is opened with the
other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.models import colbert
from manyvec.models.adapter import adapted
from manyvec.models.bert import KINDS, PROJECTION, BertConfig, Executor, Weights, load_executor, padded, prepared
from manyvec.models.bert_recipe import Recipe
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.windowed import Task, WindowedEncoder
from manyvec.models.windows import Spans, Window

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_TOKENS = 2048


class BertEncoder(WindowedEncoder):
    """Unit vectors of BERT's last hidden state or of a projection of it, on the CPU. Threads may share it.

    Args:
        tokenizer: With neither truncation nor padding.
        executor: Runs the model.
        recipe: What is done before and after BERT.
        name: The name under which `load_encoder` finds the model.
        max_tokens: Tokens that the model reads at a time, special tokens included.
        weight_samples: See `weight_samples`.
    """

    device = "cpu"

    def __init__(
        self,
        tokenizer: Tokenizer,
        executor: Executor,
        recipe: Recipe,
        *,
        name: str,
        max_tokens: int,
        weight_samples: Sequence[bytes],
    ) -> None:
        super().__init__(name, batch_tokens=_BATCH_TOKENS)
        self._tokenizer = tokenizer
        self._executor = executor
        self._recipe = recipe
        self._max = max_tokens
        self._weight_samples = weight_samples

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str, *, backend: str, family: str) -> BertEncoder | None:
        """Load a checkpoint; return None for one that needs transformers or sentence-transformers.

        Args:
            backend: See `load_executor`.
            family: `last_hidden_state`, `inline_linear` or `sentence_transformers`; see `families`.

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
        recipe = Recipe.saved(checkpoint, tokenizer) if family == "sentence_transformers" else None
        if family == "sentence_transformers" and recipe is None:
            return None
        stored: dict[str, NDArray[Any]] = {}
        for file in files:
            stored |= load_file(checkpoint.path(file))
        weights = {key.removeprefix("bert."): np.asarray(value, np.float32) for key, value in stored.items()}
        if checkpoint.adapter is not None:
            weights = adapted(weights, checkpoint.adapter)
        if family == "inline_linear":
            recipe = Recipe.stanford(checkpoint, tokenizer, weights.pop(colbert.PROJECTION))
            if recipe is None:
                return None
        recipe = recipe or Recipe.plain(tokenizer, weights.get(PROJECTION))
        weights |= recipe.weights
        max_tokens = _max_tokens(checkpoint)
        projection = weights.get(PROJECTION)
        is_misshapen = projection is not None and projection.shape[1:] != (config.dim,)
        if is_misshapen or recipe.filled("query") > max_tokens:
            return None
        executor = load_executor(config, prepared(config, weights), backend=backend)
        samples = weight_samples(config, weights)
        return cls(tokenizer, executor, recipe, name=name, max_tokens=max_tokens, weight_samples=samples)

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
        recipe = self._recipe
        settings = [recipe.prompts, recipe.query_length, recipe.document_length, recipe.query_expansion]
        settings += [self._max_tokens("document"), self.overlap, self.opening, *recipe.configs]
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        tokenizer = json.loads(self._tokenizer.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(tokenizer).encode())
        for sample in self._weight_samples:
            digest.update(sample)
        return digest.hexdigest()

    @property
    def _n_parallel(self) -> int:
        return self._executor.n_threads

    def _max_tokens(self, task: Task) -> int:
        recipe = self._recipe
        length = recipe.query_length if task == "query" else recipe.document_length
        return min(limit for limit in (self._max, length, self._recipe.filled(task)) if limit)

    def _width(self, window: Window, task: Task) -> int:
        return max(window.n_tokens, self._recipe.filled(task))

    def _spans(self, texts: Sequence[str], task: Task) -> Iterator[tuple[str, Spans]]:
        prompt = self._recipe.prompts[task]
        for start in range(0, len(texts), 64):
            part = list(texts[start : start + 64])
            encoded = self._tokenizer.encode_batch([prompt + text for text in part])
            for text, encoding in zip(part, encoded, strict=True):
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2) - len(prompt)
                spans[(spans[:, 0] < 0) | (spans[:, 0] == spans[:, 1])] = -1
                yield text, spans

    def _forward(self, texts: list[str], task: Task) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        recipe, limit, filled = self._recipe, self._max_tokens(task), self._recipe.filled(task)
        encoded = self._tokenizer.encode_batch([recipe.prompts[task] + text for text in texts])
        # A query that is too long loses its end, but not the separator behind it.
        rows = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in (row.ids for row in encoded)]
        whole = [row + [recipe.expansion_token] * (filled - len(row)) for row in rows]
        ids, counts = padded(whole, padding=0)
        attends = filled and recipe.query_expansion and recipe.query_expansion["attend"]
        seen = counts if attends or not filled else np.arange(ids.shape[1]) < np.array([[len(row)] for row in rows])
        states = self._executor.run(ids, seen)
        norms = np.linalg.norm(states, axis=2, keepdims=True)
        return states / np.maximum(norms, 1e-12), counts & ~np.isin(ids, recipe.skipped[task])


def weight_samples(config: BertConfig, weights: Weights) -> list[bytes]:
    """Return the samples of a checkpoint's weights that `text.weight_samples` takes from transformers' model."""
    names = [f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")]
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    parts += ["attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
    layers = [f"encoder.layer.{layer}.{part}" for layer in range(config.n_layers) for part in parts]
    names += ["embeddings.LayerNorm", *layers, "pooler.dense"]
    ordered = [(f"0.model.{name}.{kind}", weights.get(f"{name}.{kind}")) for name in names for kind in KINDS]
    ordered += [(f"1.linear.{kind}", weights.get(f"projection.{kind}")) for kind in KINDS]
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
