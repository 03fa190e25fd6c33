"""Deterministic encoders for tests that need no model: equal input gets equal vectors."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.batch import TokenBatch, offsets_of

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class HashEncoder:
    """Map equal words to equal unit vectors, ignoring case, and different words to nearly orthogonal ones.

    A document that contains every word of a query scores the number of query tokens, so expected scores can be counted
    by hand. A word is a run of letters and digits; each punctuation mark is one token.

    Args:
        dim: Dimension of the vectors.
    """

    dim: int = 64

    @property
    def name(self) -> str:
        return f"hash-{self.dim}"

    @property
    def fingerprint(self) -> str:
        return f"hash-{self.dim}-1"

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return self.encode_documents(queries)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        matches = [list(_WORD.finditer(text)) for text in texts]
        words = [match for matches_of_text in matches for match in matches_of_text]
        vectors = [_vector(match.group().lower(), self.dim) for match in words]
        return TokenBatch(
            np.array(vectors, np.float32).reshape(-1, self.dim),
            offsets_of([len(matches_of_text) for matches_of_text in matches]),
            np.array([match.span() for match in words], np.int32).reshape(-1, 2),
            allow_empty=True,
        )


@dataclass(frozen=True)
class ColorEncoder(HashEncoder):
    """A `HashEncoder` that also reads page images: each square of 16 x 16 pixels is a token, the name of its color.

    A page with a red patch scores 1 for the query "red", and its heat map shows which patch that is. Pixels beyond the
    last whole square are ignored.
    """

    @property
    def name(self) -> str:
        return f"color-{self.dim}"

    @property
    def fingerprint(self) -> str:
        return f"color-{self.dim}-1"

    @property
    def crops_images(self) -> bool:
        return False

    def encode_images(self, images: Sequence[Any]) -> TokenBatch:
        from manyvec.models.image import read_image

        names, spans = [], []
        for i, image in enumerate(images):
            pixels = np.asarray(read_image(image, f"image {i}"), np.int64)
            rows, columns = (max(1, side // _PATCH) for side in pixels.shape[:2])
            grid = [(row, column) for row in range(rows) for column in range(columns)]
            names.append(" ".join(_color(pixels[_PATCH * row :, _PATCH * column :]) for row, column in grid))
            spans += grid
        tokens = self.encode_documents(names)
        return TokenBatch(tokens.vectors, tokens.offsets, np.array(spans, np.int32).reshape(-1, 2), allow_empty=True)


_PATCH = 16
_COLORS = {"white": (255, 255, 255), "black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


def _color(pixels: NDArray[np.int64]) -> str:
    """Return the color name nearest to the mean of the first patch."""
    mean = pixels[:_PATCH, :_PATCH].mean(axis=(0, 1))
    return min(_COLORS, key=lambda name: float(np.abs(mean - _COLORS[name]).sum()))


@lru_cache(maxsize=65536)
def _vector(word: str, dim: int) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(dim)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@dataclass(frozen=True)
class SlowEncoder(HashEncoder):
    """Sleep while encoding, so that a blocked event loop can be measured."""

    seconds: ClassVar[float] = 0.5

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        time.sleep(self.seconds)
        return super().encode_documents(texts)


@dataclass(frozen=True)
class CountingEncoder(HashEncoder):
    """Record the documents it encodes.

    Attributes:
        texts: Every document encoded so far, in order.
    """

    texts: list[str] = field(default_factory=list, compare=False)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return super().encode_documents(queries)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        self.texts.extend(texts)
        return super().encode_documents(texts)
