"""`SentenceTransformerEncoder`: texts of any length to token vectors, and the characters each stands for.

The model is a sentence-transformers `MultiVectorEncoder`, whatever family it comes from. Texts are encoded in batches
of similar length; a long one in overlapping windows whose token vectors are kept as one text's.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

Task = Literal["query", "document"]
Spans = NDArray[np.int32]


class TruncationWarning(UserWarning):
    """A query was longer than its model can read, and its end was dropped."""


class SentenceTransformerEncoder:
    """A sentence-transformers `MultiVectorEncoder` as an `Encoder`. May be shared by threads.

    Args:
        model: any text model; its prompts, lengths, query expansion and skip list are used as they are.
        name: what `load_encoder` finds it by; indexes remember it.
        weights_id: what tells the weights apart where they are not torch's (ONNX, OpenVINO).
        batch_tokens: padded tokens per forward pass. Small passes stay in a CPU's cache: 2,048 encode 1.1 times as
            many documents a second as 8,192 there (`examples/benchmarks/encoding.py`). By default 2,048 on a CPU, else
            32,768.
        overlap: tokens that neighbouring windows of a long text share, so that each token is read in context; it is
            kept once, from the window in which it stands farther from the edge.
        opening: the first tokens of a long text, read again before each later window and not kept again, so that the
            window knows what the text is about: `manyvec eval` gives .391 on Cranfield with it, .389 without.
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

    @cached_property
    def dim(self) -> int:
        return self.encode_queries(["dim"]).dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the recipe, the tokenizer and `weight_samples`."""
        digest = hashlib.blake2b(self.weights_id.encode(), digest_size=16)
        transformer = self._transformer
        recipe = [self.model.prompts, transformer.query_length, transformer.document_length]
        recipe += [transformer.query_expansion, self._max_tokens("document"), self.overlap, self.opening]
        if self._n_masks:
            recipe.append(self._n_masks)
        recipe += [getattr(module, "get_config_dict", dict)() for module in list(self.model)[1:]]
        digest.update(repr(recipe).encode())
        # How to cut and pad is left in a tokenizer by whoever used it last.
        tokenizer = json.loads(transformer.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(tokenizer).encode())
        for sample in weight_samples(self.model):
            digest.update(sample)
        return digest.hexdigest()

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """See `Encoder`. Warns with `TruncationWarning` where a query is too long for the model."""
        limit = self._max_tokens("query")
        check_texts(queries, self.name)
        with self._lock:
            pieces = [_Piece(i, query, spans) for i, (query, spans) in enumerate(self._spans(queries, "query"))]
            if dropped := {piece.text: piece.n_tokens - limit for piece in pieces if piece.n_tokens > limit}:
                text, n_tokens = max(dropped.items(), key=lambda item: item[1])
                warnings.warn(
                    f"{len(dropped)} of {len(queries)} queries are longer than the {limit} tokens {self.name} reads: "
                    f"the last {n_tokens} tokens of {text[:40]!r}… were dropped",
                    TruncationWarning,
                    stacklevel=2,
                )
            return self._encode(pieces, len(queries), "query")

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """See `Encoder`. A text longer than the model reads is encoded in overlapping windows, kept as one text."""
        limit = self._max_tokens("document")
        check_texts(texts, self.name)
        with self._lock:
            pieces: list[_Piece] = []
            for i, (text, spans) in enumerate(self._spans(texts, "document")):
                whole = _Piece(i, text, spans)
                pieces += [whole] if whole.n_tokens <= limit else self._windows(whole, limit)
            return self._encode(pieces, len(texts), "document")

    @property
    def _transformer(self) -> Any:
        return self.model[0]

    @property
    def _n_masks(self) -> int:
        """Mask tokens that the model puts behind every query."""
        return getattr(self._transformer, "n_masks", 0)

    def _max_tokens(self, task: Task) -> int:
        """Tokens the model reads at a time, markers and special tokens counted."""
        transformer = self._transformer
        limits = [transformer.max_seq_length, _positions(transformer)]
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
        """Each text with the (n_tokens, 2) spans of its tokens, untruncated; (-1, -1) for markers and specials."""
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

    def _windows(self, whole: _Piece, limit: int) -> list[_Piece]:
        """Cut a long text into overlapping windows that the model can read, at word starts where there are any."""
        content = whole.spans[whole.spans[:, 0] >= 0]
        room = limit - (whole.n_tokens - len(content))
        opening = whole.text[: content[min(self.opening, room // 4), 0]]
        capacity = room - min(self.opening, room // 4)
        while True:
            cuts = _window_cuts(whole.text, content, capacity, min(self.overlap, capacity // 2))
            keeps = [keep for _, _, keep in cuts] + [len(whole.text)]
            texts = [f"{opening if begin else ''}{whole.text[begin:end]}" for begin, end, _ in cuts]
            pieces = [
                _Piece(whole.index, text, spans, begin, len(opening) if begin else 0, keep_from, keep_to)
                for (text, spans), (begin, _, keep_from), keep_to in zip(
                    self._spans(texts, "document"), cuts, keeps[1:], strict=True
                )
            ]
            # A word cut in two may need more tokens than it had whole.
            if all(piece.n_tokens <= limit for piece in pieces) or capacity <= 4:
                return pieces
            capacity = capacity * 3 // 4

    def _encode(self, pieces: list[_Piece], n_texts: int, task: Task) -> TokenBatch:
        import torch
        from sentence_transformers.util import batch_to_device

        prompt = self._prompt(task)
        expansion = self._transformer.query_expansion if task == "query" else None
        shortest = expansion["length"] if expansion else 0
        widths = [max(piece.n_tokens + (self._n_masks if task == "query" else 0), shortest) for piece in pieces]
        rows = _Rows(widths)
        for batch in batches_of(widths, self.batch_tokens):
            with torch.inference_mode():
                texts = [pieces[i].text for i in batch]
                features = self.model.preprocess(texts, prompt=prompt, task=task)
                width = features["input_ids"].shape[1]
                features = self.model(batch_to_device(features, self.model.device), task=task)
                embeddings = features["token_embeddings"].float().cpu().numpy()
                masks = features["attention_mask"].bool().cpu().numpy()
            for i, embedding, mask in zip(batch, embeddings, masks, strict=True):
                own, spans = pieces[i].own_spans(width, self._transformer.tokenizer.padding_side)
                keep = mask & own
                rows.put(i, embedding[keep], spans[keep])
        lengths = np.bincount([piece.index for piece in pieces], weights=rows.lengths, minlength=n_texts)
        if not pieces:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of(lengths), _NO_SPANS)
        try:
            return TokenBatch(*rows.joined(lengths), allow_empty=True)
        except ShapeError as error:
            raise EncoderError(f"{self.name} gave vectors that cannot be used: {error}") from error


class _Rows:
    """Token vectors of pieces, written where they belong as they are encoded: joining them later would hold all of them
    twice.

    Args:
        widths: the most rows that each piece can have.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._starts = offsets_of(widths)
        self._vectors = np.empty((0, 0), np.float32)
        self._spans = np.empty((int(self._starts[-1]), 2), np.int32)
        self.lengths = np.zeros(len(widths), np.int64)

    def put(self, piece: int, vectors: NDArray[np.float32], spans: Spans) -> None:
        if not len(self._vectors):
            self._vectors = np.empty((len(self._spans), vectors.shape[1]), np.float32)
        rows = slice(int(self._starts[piece]), int(self._starts[piece]) + len(vectors))
        self._vectors[rows], self._spans[rows] = vectors, spans
        self.lengths[piece] = len(vectors)

    def joined(self, lengths: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64], Spans]:
        """Vectors, offsets and spans of texts of these lengths, without the rows that no piece filled."""
        end = 0
        for start, length in zip(self._starts.tolist(), self.lengths.tolist(), strict=False):
            if start > end:
                self._vectors[end : end + length] = self._vectors[start : start + length]
                self._spans[end : end + length] = self._spans[start : start + length]
            end += length
        return self._vectors[:end], offsets_of(lengths), self._spans[:end]


@dataclass(frozen=True)
class _Piece:
    """A text, or a window of one that starts at character `begin` of text `index`, after `n_opening` characters of that
    text's opening; its own tokens are those that start in [keep_from, keep_to)."""

    index: int
    text: str
    spans: Spans
    begin: int = 0
    n_opening: int = 0
    keep_from: int = 0
    keep_to: int | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.spans)

    def own_spans(self, width: int, padding_side: str) -> tuple[NDArray[np.bool_], Spans]:
        """(width,) which tokens the model got are the window's own, and (width, 2) their spans in the whole text."""
        # The model's tokens may be cut, or padded.
        spans = np.full((width, 2), -1, np.int32)
        n_tokens = min(width, len(self.spans))
        start = width - n_tokens if padding_side == "left" else 0
        spans[start : start + n_tokens] = self.spans[:n_tokens]
        is_content = spans[:, 0] >= 0
        is_window = spans[:, 0] >= self.n_opening
        spans[is_content] += self.begin - self.n_opening
        own = is_window & (spans[:, 0] >= self.keep_from)
        if self.keep_to is not None:
            own &= spans[:, 0] < self.keep_to
        # Markers and special tokens are kept once, from the first window.
        return np.where(is_content, own, self.begin == 0), spans


_NO_SPANS = np.empty((0, 2), np.int32)


def check_texts(texts: Sequence[Any], name: str) -> None:
    """Refuse what is no text, an image above all."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"text {i} is a {type(text).__name__}: {name} reads text given as str. For images load a model that "
                "reads them, such as 'vidore/colqwen2-v1.0-hf' (see `manyvec models`)"
            )


def _positions(transformer: Any) -> int | None:
    """Tokens for which a model has positions; None where they are not counted out."""
    import torch

    for name, module in transformer.model.named_modules() if isinstance(transformer.model, torch.nn.Module) else ():
        # RoBERTa and its kin count from behind the padding token's id.
        if name.endswith("embeddings.position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return getattr(transformer.config, "max_position_embeddings", None)


def _window_cuts(text: str, content: Spans, capacity: int, overlap: int) -> list[tuple[int, int, int]]:
    """(first character, end, first character to keep) of each window over a text with these token spans."""
    starts_word = np.array([begin == 0 or text[begin - 1].isspace() for begin in content[:, 0]])

    def word_start(token: int, lowest: int) -> int:
        """The nearest token at or before this one that starts a word, if one lies above `lowest`."""
        above = np.flatnonzero(starts_word[lowest + 1 : token + 1])
        return int(above[-1]) + lowest + 1 if len(above) else token

    cuts = []
    first, keep = 0, 0
    while True:
        end = min(first + capacity, len(content))
        if end < len(content):
            end = word_start(end, first + capacity // 2)
        cuts.append((int(content[first, 0]), int(content[end - 1, 1]), keep))
        if end == len(content):
            return cuts
        following = word_start(end - overlap, max(first, end - 2 * overlap))
        keep = int(content[word_start((following + end) // 2, following), 0])
        first = following


def batches_of(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of texts of similar length, so many that the padded batch holds at most `batch_tokens`; at least one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Sorted by falling length: the first of a batch is its width.
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def weight_samples(model: torch.nn.Module) -> Iterator[bytes]:
    """Name, shape and up to 127 values of every weight tensor, for a fingerprint."""
    for name, tensor in model.state_dict().items():
        values = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)].float().cpu().numpy()
        # Rounded, so that the same weights loaded as float16 on another machine are the same model.
        yield f"{name}{tuple(tensor.shape)}".encode() + values.astype(np.float16).tobytes()
