"""What an index requires of an encoder: `Encoder`, `ImageReader`; and the base of those that `load_encoder` returns."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from manyvec.errors import EncoderError
from manyvec.models.checkpoints import LoadOptions
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


class LoadedEncoder:
    """Base of the encoders that `load_encoder` returns: they can be pickled, deep-copied and used after a fork.

    A pickle holds the name, the options and the fingerprint, not the weights; unpickling loads the model again.

    Attributes:
        load_options: Options that the model was loaded with; None if it was not loaded by `load_encoder`.
    """

    name: str
    load_options: LoadOptions | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        # Fast tokenizers fail ("Already borrowed") when two threads use one, and a GPU gains nothing from two.
        self._lock = threading.RLock()
        _encoders.add(self)

    def __reduce__(self) -> tuple[Callable[..., LoadedEncoder], tuple[Any, ...]]:
        if self.load_options is None:
            raise EncoderError(
                f"cannot pickle the encoder {self.name!r}: it was not loaded by name. Load it with load_encoder, or "
                "pass its name instead of the object"
            )
        return _reload, (self.name, self.load_options, getattr(self, "fingerprint"))  # noqa: B009


def _reload(name: str, options: LoadOptions, fingerprint: str) -> LoadedEncoder:
    from manyvec.models.loading import load_encoder

    # The other machine may have another accelerator, or none.
    device = "cpu" if options.device == "cpu" else "auto"
    encoder = load_encoder(name, **(asdict(options) | {"device": device}))
    if encoder.fingerprint != fingerprint:
        raise EncoderError(f"the model {name!r} has other weights or settings here than where it was pickled")
    return encoder


_encoders: weakref.WeakSet[LoadedEncoder] = weakref.WeakSet()


def _after_fork() -> None:
    """Make encoders usable in a forked child, for example a worker of gunicorn --preload.

    The OpenMP threads of torch do not exist in the child, and its first operation with several threads would wait for
    them forever. With one thread torch needs none. A lock may have been held by a thread that does not exist either.
    """
    for encoder in _encoders:
        encoder._lock = threading.RLock()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
