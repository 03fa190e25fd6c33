"""`SentenceTransformerEncoder`: token vectors of texts of any length, with the characters that each token covers.

Every text family becomes a sentence-transformers `MultiVectorEncoder`. Texts are encoded in batches of similar length,
a text longer than the model's window in overlapping windows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError
from manyvec.models.windowed import Task, WindowedEncoder
from manyvec.models.windows import Spans, Window

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from tokenizers import Tokenizer


class SentenceTransformerEncoder(WindowedEncoder):
    """A sentence-transformers `MultiVectorEncoder` as an `Encoder`. Threads may share it.

    Args:
        model: Any text model. Its prompts, lengths, query expansion and skip list are used unchanged.
        name: The name under which `load_encoder` finds the model. Indexes store it.
        batch_tokens: Maximum number of tokens in a forward pass, padding included. Default: 2,048 on a CPU, 32,768
            elsewhere. Small batches stay in the CPU's cache: 2,048 encodes 1.1 times as many documents per second as
            8,192 (`examples/benchmarks/encoding.py`).
        overlap: Number of tokens that neighbouring windows of a long text share, so that each token is read in context.
            A token is kept once, from the window in which it is farther from the edge.
        opening: Number of tokens from the start of a long text that are prepended to every later window to tell the
            model what the text is about. They are not kept again. nDCG@10 on Cranfield with `minilm` is .391 with them
            and .389 without (`manyvec eval`).
        weights_id: Hash of the weights if they are not in torch (ONNX, OpenVINO).
    """

    def __init__(
        self,
        model: MultiVectorEncoder,
        *,
        name: str,
        batch_tokens: int | None = None,
        overlap: int = 32,
        opening: int = 32,
        weights_id: str = "",
    ) -> None:
        on_cpu = model.device.type == "cpu"
        super().__init__(
            name, batch_tokens=batch_tokens or (2048 if on_cpu else 32768), overlap=overlap, opening=opening
        )
        self.model = model
        self.weights_id = weights_id

    @property
    def device(self) -> str:
        return str(self.model.device)

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of the model's tokenizer that neither truncates nor pads, for counting tokens."""
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self._transformer.tokenizer.backend_tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    @cached_property
    def dim(self) -> int:
        return self.encode_queries(["dim"]).dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings, the tokenizer and `weight_samples`."""
        digest = hashlib.blake2b(self.weights_id.encode(), digest_size=16)
        transformer = self._transformer
        recipe = [self.model.prompts, transformer.query_length, transformer.document_length]
        recipe += [transformer.query_expansion, self._max_tokens("document"), self.overlap, self.opening]
        if self._n_masks:
            recipe.append(self._n_masks)
        recipe += [getattr(module, "get_config_dict", dict)() for module in list(self.model)[1:]]
        digest.update(repr(recipe).encode())
        # Truncation and padding are left in a tokenizer by whoever used it last.
        tokenizer = json.loads(transformer.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(tokenizer).encode())
        for sample in weight_samples(self.model):
            digest.update(sample)
        return digest.hexdigest()

    @property
    def _transformer(self) -> Any:
        return self.model[0]

    @property
    def _n_masks(self) -> int:
        """Number of mask tokens that the model appends to every query."""
        return getattr(self._transformer, "n_masks", 0)

    def _max_tokens(self, task: Task) -> int:
        """Return how many tokens the model reads at a time, markers and special tokens included."""
        transformer = self._transformer
        limits = [transformer.max_seq_length, max_positions(transformer)]
        limits.append(transformer.query_length if task == "query" else transformer.document_length)
        if task == "query" and self._n_masks:
            return min(limit for limit in limits if limit) - self._n_masks
        if task == "query" and (expansion := transformer.query_expansion) and expansion["strategy"] == "fixed":
            limits.append(expansion["length"])
        return min(limit for limit in limits if limit)

    def _prompt(self, task: Task) -> str:
        names = ("query",) if task == "query" else ("document", "passage", "corpus")
        return next((self.model.prompts[name] for name in names if self.model.prompts.get(name)), "") or ""

    def _spans(self, texts: Sequence[str], task: Task) -> Iterator[tuple[str, Spans]]:
        """Yield each text with the (n_tokens, 2) characters of its tokens, untruncated; (-1, -1) for special tokens."""
        prompt = self._prompt(task)
        for start in range(0, len(texts), 64):
            part = list(texts[start : start + 64])
            encoded = self._transformer.tokenizer(
                [prompt + text for text in part], return_offsets_mapping=True, truncation=False, verbose=False
            )
            for text, offsets in zip(part, encoded["offset_mapping"], strict=True):
                spans = np.array(offsets, np.int32).reshape(-1, 2) - len(prompt)
                spans[(spans[:, 0] < 0) | (spans[:, 0] == spans[:, 1])] = -1
                yield text, spans

    def _width(self, window: Window, task: Task) -> int:
        if task == "document":
            return window.n_tokens
        expansion = self._transformer.query_expansion
        return max(window.n_tokens + self._n_masks, expansion["length"] if expansion else 0)

    @property
    def _padding_side(self) -> str:
        return str(self._transformer.tokenizer.padding_side)

    def _forward(self, texts: list[str], task: Task) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            features = self.model.preprocess(texts, prompt=self._prompt(task), task=task)
            try:
                features = self.model(batch_to_device(features, self.model.device), task=task)
            except IndexError as error:
                n_vectors = self._transformer.model.get_input_embeddings().num_embeddings
                if int(features["input_ids"].max()) < n_vectors:
                    raise
                raise EncoderError(
                    f"{self.name} has weights for {n_vectors:,} tokens, and its tokenizer knows "
                    f"{len(self._transformer.tokenizer):,}: use the tokenizer that it was trained with"
                ) from error
            embeddings = features["token_embeddings"].float().cpu().numpy()
            return embeddings, features["attention_mask"].bool().cpu().numpy()


def max_positions(transformer: Any) -> int | None:
    """Return for how many tokens the model has position embeddings; None if it has no such limit."""
    import torch

    for name, module in transformer.model.named_modules() if isinstance(transformer.model, torch.nn.Module) else ():
        # RoBERTa and related models count positions from padding_idx + 1.
        if name.endswith("embeddings.position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return getattr(transformer.config, "max_position_embeddings", None)


def weight_samples(model: torch.nn.Module) -> Iterator[bytes]:
    """Yield the name, the shape and up to 127 values of every weight tensor, for a fingerprint."""
    for name, tensor in model.state_dict().items():
        values = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)].float().cpu().numpy()
        # Rounded, so that weights loaded as float16 on another machine have the same fingerprint.
        yield f"{name}{tuple(tensor.shape)}".encode() + values.astype(np.float16).tobytes()
