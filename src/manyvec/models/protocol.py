"""What an index requires of an encoder: `Encoder` for text, `ImageReader` for text and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from PIL.Image import Image


@runtime_checkable
class Encoder(Protocol):
    """Turns queries and documents into token vectors.

    `load_encoder` returns one for a model by name. To write your own, start from `manyvec.testing.HashEncoder`.

    Attributes:
        name: The name under which `load_encoder` finds the model again. An index stores it.
        dim: Number of dimensions of each token vector.
        fingerprint: String that changes whenever the vectors would change: a hash of the weights, the tokenizer, the
            markers and the length limits. An index refuses an encoder whose fingerprint differs from its own.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query, in order. A query without tokens has none."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document, in order, with the characters that each token covers as spans.

        A document longer than the model's window must be encoded in full, for example in overlapping windows.
        """
        ...


@runtime_checkable
class ImageReader(Encoder, Protocol):
    """An `Encoder` that also reads images. `manyvec.testing.ColorEncoder` is a small example.

    Attributes:
        crops_images: Whether the model reads only the central square of an image, as CLIP does.
    """

    @property
    def crops_images(self) -> bool: ...

    def encode_images(self, images: Sequence[Image]) -> TokenBatch:
        """Return one vector per patch of each image, in order.

        Spans are the (row, column) of each patch, or (-1, -1) for tokens that stand for no patch.
        """
        ...
