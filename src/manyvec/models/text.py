"""`SentenceTransformerEncoder`: token vectors of texts of any length, with the characters that each token covers.

Every text family becomes a sentence-transformers `MultiVectorEncoder`. Texts are encoded in batches of similar length,
a text longer than the model's window in overlapping windows.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError
from manyvec.models.windows import Spans, Window, batches_of, window_bounds
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from tokenizers import Tokenizer

Task = Literal["query", "document"]
_NO_SPANS = np.empty((0, 2), np.int32)


class TruncationWarning(UserWarning):
    """A query was longer than its model can read, and its end was dropped."""


class SentenceTransformerEncoder:
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
        self.name = name
        self.model = model
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 32768)
        self.overlap = overlap
        self.opening = opening
        self.weights_id = weights_id
        # Fast tokenizers fail ("Already borrowed") when two threads use one, and a GPU gains nothing from two.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SentenceTransformerEncoder({self.name!r}, dim {self.dim}, on {self.model.device})"

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

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query; see `Encoder`.

        Warns with `TruncationWarning` if a query is longer than the model can read.
        """
        limit = self._max_tokens("query")
        check_strings(queries, self.name)
        with self._lock:
            windows = [Window(i, query, spans) for i, (query, spans) in enumerate(self._spans(queries, "query"))]
            if n_dropped := {window.text: window.n_tokens - limit for window in windows if window.n_tokens > limit}:
                text, n_tokens = max(n_dropped.items(), key=lambda item: item[1])
                warnings.warn(
                    f"{len(n_dropped)} of {len(queries)} queries are longer than the {limit} tokens {self.name} reads: "
                    f"the last {n_tokens} tokens of {text[:40]!r}… were dropped",
                    TruncationWarning,
                    stacklevel=2,
                )
            return self._encode(windows, len(queries), "query")

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document; see `Encoder`.

        A document longer than the model's window is encoded in overlapping windows.
        """
        limit = self._max_tokens("document")
        check_strings(texts, self.name)
        with self._lock:
            windows: list[Window] = []
            for i, (text, spans) in enumerate(self._spans(texts, "document")):
                whole = Window(i, text, spans)
                windows += [whole] if whole.n_tokens <= limit else self._windows(whole, limit)
            return self._encode(windows, len(texts), "document")

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
        limits = [transformer.max_seq_length, _max_positions(transformer)]
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

    def _windows(self, whole: Window, limit: int) -> list[Window]:
        """Cut a long text into overlapping windows of at most `limit` tokens."""
        content = whole.spans[whole.spans[:, 0] >= 0]
        room = limit - (whole.n_tokens - len(content))
        opening = whole.text[: content[min(self.opening, room // 4), 0]]
        capacity = room - min(self.opening, room // 4)
        while True:
            bounds = window_bounds(whole.text, content, capacity, min(self.overlap, capacity // 2))
            keep_to = [keep for _, _, keep in bounds[1:]] + [len(whole.text)]
            texts = [f"{opening if begin else ''}{whole.text[begin:end]}" for begin, end, _ in bounds]
            windows = [
                Window(whole.index, text, spans, begin, len(opening) if begin else 0, keep_from, keep_end)
                for (text, spans), (begin, _, keep_from), keep_end in zip(
                    self._spans(texts, "document"), bounds, keep_to, strict=True
                )
            ]
            # A word that is cut in two may have more tokens than the whole word.
            if all(window.n_tokens <= limit for window in windows) or capacity <= 4:
                return windows
            capacity = capacity * 3 // 4

    def _encode(self, windows: list[Window], n_texts: int, task: Task) -> TokenBatch:
        import torch
        from sentence_transformers.util import batch_to_device

        prompt = self._prompt(task)
        expansion = self._transformer.query_expansion if task == "query" else None
        shortest = expansion["length"] if expansion else 0
        widths = [max(window.n_tokens + (self._n_masks if task == "query" else 0), shortest) for window in windows]
        buffer = _TokenBuffer(widths)
        for batch in batches_of(widths, self.batch_tokens):
            with torch.inference_mode():
                texts = [windows[i].text for i in batch]
                features = self.model.preprocess(texts, prompt=prompt, task=task)
                width = features["input_ids"].shape[1]
                features = self.model(batch_to_device(features, self.model.device), task=task)
                embeddings = features["token_embeddings"].float().cpu().numpy()
                masks = features["attention_mask"].bool().cpu().numpy()
            for i, embedding, mask in zip(batch, embeddings, masks, strict=True):
                is_kept, spans = windows[i].kept_tokens(width, self._transformer.tokenizer.padding_side)
                keep = mask & is_kept
                buffer.put(i, embedding[keep], spans[keep])
        lengths = np.bincount([window.index for window in windows], weights=buffer.lengths, minlength=n_texts)
        if not windows:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of(lengths), _NO_SPANS)
        try:
            return TokenBatch(*buffer.to_batch(lengths), allow_empty=True)
        except ShapeError as error:
            raise EncoderError(f"{self.name} returned unusable vectors: {error}") from error


class _TokenBuffer:
    """Token vectors of windows, in one array that is filled in any order.

    Joining one array per window at the end would need twice the memory.

    Args:
        widths: Maximum number of tokens of each window.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._starts = offsets_of(widths)
        self._vectors = np.empty((0, 0), np.float32)
        self._spans = np.empty((int(self._starts[-1]), 2), np.int32)
        self.lengths = np.zeros(len(widths), np.int64)

    def put(self, window: int, vectors: NDArray[np.float32], spans: Spans) -> None:
        """Store the tokens of the window at this position."""
        if not len(self._vectors):
            self._vectors = np.empty((len(self._spans), vectors.shape[1]), np.float32)
        rows = slice(int(self._starts[window]), int(self._starts[window]) + len(vectors))
        self._vectors[rows], self._spans[rows] = vectors, spans
        self.lengths[window] = len(vectors)

    def to_batch(self, lengths: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64], Spans]:
        """Close the gaps in place and return the vectors, offsets and spans of texts of these lengths."""
        end = 0
        for start, length in zip(self._starts.tolist(), self.lengths.tolist(), strict=False):
            if start > end:
                self._vectors[end : end + length] = self._vectors[start : start + length]
                self._spans[end : end + length] = self._spans[start : start + length]
            end += length
        return self._vectors[:end], offsets_of(lengths), self._spans[:end]


def check_strings(texts: Sequence[Any], name: str) -> None:
    """Raise `InputError` if one of the inputs of the encoder `name` is not a string, for example an image."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{name} reads strings, got {type(text).__name__} at position {i}. For images load a model that reads "
                "them, such as 'vidore/colqwen2-v1.0-hf' (see `manyvec models`)"
            )


def _max_positions(transformer: Any) -> int | None:
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
