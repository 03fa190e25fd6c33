"""`StaticEncoder`: token vectors from a lookup table (model2vec), without a transformer.

The vector of a token does not depend on its context, so long texts need no windows, and a CPU encodes thousands of
documents per second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, ShapeError
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.protocol import LoadedEncoder
from manyvec.models.windowed import check_strings
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class StaticEncoder(LoadedEncoder):
    """A model2vec table as an `Encoder`. Threads may share it.

    The length of a model2vec token vector (`StaticModel.encode_as_sequence`) is the weight of the token: large for a
    rare word, small for a stop word. Document vectors are scaled to unit length, so that a match is a cosine. Query
    vectors keep their weights, scaled to a mean of 1 so that `similarity` stays within [-1, 1].

    Args:
        vectors: Table of vectors times weights, (n_tokens, dim).
        tokenizer: Tokenizer whose token ids are the rows of the table.
        name: The name under which `load_encoder` finds the model. Indexes store it.
    """

    device = "cpu"

    def __init__(self, vectors: NDArray[np.float32], tokenizer: Tokenizer, *, name: str) -> None:
        if vectors.ndim != 2 or len(vectors) < tokenizer.get_vocab_size():
            raise EncoderError(
                f"its table of vectors must have a row for each of the {tokenizer.get_vocab_size()} tokens of its "
                f"tokenizer, got the shape {vectors.shape}"
            )
        super().__init__(name)
        self._vectors = vectors
        self._weights = np.linalg.norm(vectors, axis=1)
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown = tokenizer.token_to_id(unknown) if unknown else None

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str) -> StaticEncoder:
        """Read a checkpoint in the layout of model2vec or of sentence-transformers' `StaticEmbedding`."""
        from tokenizers import Tokenizer

        folder = checkpoint.modules[0].get("path", "") if checkpoint.modules else ""
        prefix = f"{folder}/" if folder not in ("", ".") else ""
        tensors = {
            name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in checkpoint.tensors(f"{prefix}model.safetensors").items()
        }
        table = tensors.get("embeddings", tensors.get("embedding.weight"))
        if table is None:
            raise checkpoint.error(f"model.safetensors must hold model2vec's `embeddings`, got {sorted(tensors)}")
        vectors = np.asarray(table, np.float32)
        if (rows := tensors.get("mapping")) is not None:
            vectors = vectors[rows.astype(np.int64)]
        if (weights := tensors.get("weights")) is not None:
            if weights.shape != vectors.shape[:1]:
                raise checkpoint.error(f"its weights must have the shape {vectors.shape[:1]}, got {weights.shape}")
            vectors = vectors * weights[:, None].astype(np.float32)
        if not checkpoint.has(f"{prefix}tokenizer.json"):
            raise checkpoint.error(f"{prefix}tokenizer.json does not exist")
        return cls(vectors, Tokenizer.from_file(str(checkpoint.path(f"{prefix}tokenizer.json"))), name=name)

    def __repr__(self) -> str:
        return f"StaticEncoder({self.name!r}, dim {self.dim})"

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer and of every 997th value of the table."""
        digest = hashlib.blake2b(self._tokenizer.to_str().encode(), digest_size=16)
        digest.update(f"{self._vectors.shape}".encode() + self._vectors.ravel()[::997].astype(np.float16).tobytes())
        return digest.hexdigest()

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query; the length of a vector is the weight of its token."""
        batch, ids = self._encode(queries)
        weights = self._weights[ids]
        lengths = batch.lengths
        means = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights, len(lengths)) / np.maximum(lengths, 1)
        scales = weights / np.repeat(np.maximum(means, 1e-12), lengths)
        return TokenBatch.unchecked(batch.vectors * scales[:, None].astype(np.float32), batch.offsets, batch.spans)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the unit token vectors of each document, of any length."""
        return self._encode(texts)[0]

    def _encode(self, texts: Sequence[str]) -> tuple[TokenBatch, NDArray[np.int64]]:
        """Return unit vectors of all known tokens, and the ids of these tokens."""
        check_strings(texts, self.name)
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        spans: list[NDArray[np.int32]] = [np.empty((0, 2), np.int32)]
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            token_ids = np.array(encoding.ids, np.int64)
            is_known = token_ids != (-1 if self._unknown is None else self._unknown)
            ids.append(token_ids[is_known])
            spans.append(np.array(encoding.offsets, np.int32).reshape(-1, 2)[is_known])
        rows = np.concatenate(ids)
        vectors = self._vectors[rows] / np.maximum(self._weights[rows, None], 1e-12)
        try:
            lengths = [len(part) for part in ids[1:]]
            return TokenBatch(vectors, offsets_of(lengths), np.concatenate(spans), allow_empty=True), rows
        except ShapeError as error:
            raise EncoderError(f"{self.name} returned unusable vectors: {error}") from error
