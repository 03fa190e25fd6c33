"""`PrefixEncoder`: the first dimensions of a model's token vectors, for models trained to be cut (Matryoshka)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from manyvec.errors import InputError, check_count
from manyvec.models.precomputed import Vectors
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PrefixEncoder:
    """Keeps the first `dim` dimensions of each token vector, scaled to the length of the whole vector.

    Unit vectors stay unit vectors. `manyvec.tune(dim=...)` trains models for this
    (https://arxiv.org/abs/2205.13147).

    Args:
        encoder: Model that returns the whole vectors.
        dim: Number of dimensions to keep.
    """

    encoder: Encoder
    dim: int

    @property
    def name(self) -> str:
        """Name of the model, which `load_encoder` finds; the dim is kept beside it wherever it is stored."""
        return self.encoder.name

    @property
    def fingerprint(self) -> str:
        """See `Encoder`."""
        return f"{self.encoder.fingerprint}:{self.dim}"

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None if it shows none."""
        return getattr(self.encoder, "tokenizer", None)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query; see `Encoder`."""
        return _prefix(self.encoder.encode_queries(queries), self.dim)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document; see `Encoder`."""
        return _prefix(self.encoder.encode_documents(texts), self.dim)


@dataclass(frozen=True)
class PrefixImageReader(PrefixEncoder):
    """A `PrefixEncoder` of a model that reads images, too."""

    @property
    def crops_images(self) -> bool:
        """See `ImageReader`."""
        return cast("ImageReader", self.encoder).crops_images

    def encode_images(self, images: Sequence[Image]) -> TokenBatch:
        """Return one vector per patch of each image; see `ImageReader`."""
        return _prefix(cast("ImageReader", self.encoder).encode_images(images), self.dim)


def with_dim(encoder: Encoder, dim: int | None) -> Encoder:
    """Return an encoder of the first `dim` dimensions; the same one if it has this dim, or `dim` is None.

    Raises:
        InputError: `dim` is not a positive integer, it is above the dim of the model, or the vectors are computed
            elsewhere and would have to be cut there.
    """
    if dim is None:
        return encoder
    dim = check_count(dim, "dim", minimum=1)
    if dim > encoder.dim:
        raise InputError(f"dim must be at most {encoder.dim}, the dim of {encoder.name}, got {dim}")
    if dim == encoder.dim:
        return encoder
    if isinstance(encoder, Vectors):
        raise InputError(
            f"the token vectors of {encoder.name} are computed outside manyvec and cannot be cut here: cut and "
            f"normalise them yourself, and pass Vectors({encoder.name!r}, dim={dim})"
        )
    whole = encoder.encoder if isinstance(encoder, PrefixEncoder) else encoder
    return (PrefixImageReader if isinstance(whole, ImageReader) else PrefixEncoder)(whole, dim)


def _prefix(tokens: TokenBatch, dim: int) -> TokenBatch:
    whole = np.asarray(tokens.vectors, np.float32)
    prefix = whole[:, :dim]
    # A prefix of zeros stays one.
    lengths = np.maximum(np.linalg.norm(prefix, axis=1, keepdims=True), 1e-12)
    scaled = prefix * (np.linalg.norm(whole, axis=1, keepdims=True) / lengths)
    return TokenBatch.unchecked(np.asarray(scaled, np.float32), tokens.offsets, tokens.spans)
