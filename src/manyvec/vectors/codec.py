"""Codecs: token vectors in fewer bytes, and back.

A codec rounds each dimension to a few odd whole numbers (int8: to all of them) and keeps one scale a token; `residual`
does so with what is left after the nearest centroid is taken away (ColBERTv2, https://arxiv.org/abs/2112.01488, but
with a scale for every token: those close to their centroid are kept almost as they are). int4 and residual rotate
vectors first, so that no dimension is larger than the others. A token is one row of bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError

STORAGES = ("float16", "int8", "int4", "residual", "binary")
_BITS = {"int8": 8, "int4": 4, "residual": 2, "binary": 1}
# What the number 1 is worth where a token's values are normally distributed with standard deviation 1: the even steps
# that leave the least squared error (Max, Quantizing for minimum distortion, 1960).
_UNIT = {4: 0.1676, 2: 0.498, 1: 0.798}
Codes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Codec:
    """How token vectors are kept in bytes. A vector is read as `scale * integers`, rotated back, plus its centroid.

    Args:
        name: one of `STORAGES`, but for float16, which needs no codec.
        dim: of the vectors.
        centroids: (n_centroids, dim) float32 for `residual`, at most 65,536 of them; None for the others.
    """

    name: str
    dim: int
    centroids: NDArray[np.float32] | None = None

    @property
    def bits(self) -> int:
        """Bits a dimension."""
        return _BITS[self.name]

    @property
    def width(self) -> int:
        """Bytes a token."""
        return bytes_per_token(self.name, self.dim)

    @property
    def numbers_at(self) -> int:
        """The byte of a token's code at which its whole numbers start, behind its centroid and its scale."""
        return self.width - _packed_width(self.dim, self.bits)

    @property
    def scale_at(self) -> int | None:
        """The byte at which its float16 scale stands; None for `binary`, which has none."""
        return None if self.name == "binary" else self.numbers_at - 2

    @property
    def is_rotated(self) -> bool:
        # Signs alone order documents better as they are, though rotated they are closer to the vector.
        return self.name in ("int4", "residual")

    def encode(self, vectors: NDArray[np.floating], nearest: NDArray[np.integer] | None = None) -> Codes:
        """(n, width) of (n, dim) vectors; `residual` also takes their (n,) nearest centroids."""
        values = np.asarray(vectors, np.float32)
        parts: list[Codes] = []
        if self.centroids is not None:
            assert nearest is not None
            values = values - self.centroids[nearest]
            parts.append(_bytes_of(nearest.astype(np.uint16)))
        if self.is_rotated:
            values = values @ rotation(self.dim)
        integers = self._rounded(values)
        if self.name != "binary":
            # The scale that leaves the least error, now that the numbers are known.
            scales = np.einsum("ij,ij->i", values, integers) / np.maximum(np.einsum("ij,ij->i", integers, integers), 1)
            parts.append(_bytes_of(scales.astype(np.float16)))
        parts.append(integers.astype(np.int8).view(np.uint8) if self.bits == 8 else _packed(integers, self.bits))
        return np.concatenate(parts, axis=1)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """(n, dim) of (n, width) codes."""
        vectors = self.integers(codes).astype(np.float32)
        vectors *= self.scales(codes)[:, None]
        if self.is_rotated:
            vectors = vectors @ rotation(self.dim).T
        return vectors if self.centroids is None else vectors + self.centroids[self.nearest(codes)]

    def nearest(self, codes: Codes) -> NDArray[np.int64]:
        """(n,) the centroids of `residual` codes."""
        return codes[:, :2].view(np.uint16)[:, 0].astype(np.int64)

    def scales(self, codes: Codes) -> NDArray[np.float32]:
        """(n,)"""
        if self.scale_at is None:
            return np.full(len(codes), self.dim**-0.5, np.float32)
        return codes[:, self.scale_at : self.scale_at + 2].view(np.float16)[:, 0].astype(np.float32)

    def integers(self, codes: Codes) -> NDArray[np.int8]:
        """(n, dim) whole numbers."""
        if self.bits == 8:
            return codes[:, self.numbers_at :].view(np.int8)
        packed = np.ascontiguousarray(codes[:, self.numbers_at :])
        # The 8 / bits numbers of a byte are looked up at once, as one larger integer.
        return self._integers_of_byte.take(packed, mode="clip").view(np.int8)[:, : self.dim]

    def _rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values in whole numbers."""
        if self.bits == 8:
            largest = np.abs(values).max(axis=1, keepdims=True)
            return np.rint(values * (127 / np.maximum(largest, 1e-30)))
        unit = _UNIT[self.bits] * self.dim**-0.5 * np.linalg.norm(values, axis=1, keepdims=True)
        odd = 2 * np.floor(values * (0.5 / np.maximum(unit, 1e-30))) + 1
        return np.clip(odd, 1 - 2**self.bits, 2**self.bits - 1)

    @cached_property
    def _integers_of_byte(self) -> NDArray[np.unsignedinteger]:
        codes = (np.arange(256)[:, None] >> np.arange(0, 8, self.bits)) & (2**self.bits - 1)
        integers = (2 * codes - (2**self.bits - 1)).astype(np.int8)
        return integers.view(f"u{8 // self.bits}")[:, 0]


def bytes_per_token(storage: str, dim: int) -> int:
    """Bytes of one token vector: a code for each dim, and but for `float16` and `binary` a scale; for `residual` also a
    centroid's number.

    Raises:
        InputError: there is no such storage.
    """
    if storage not in STORAGES:
        raise InputError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
    if storage == "float16":
        return 2 * dim
    return _packed_width(dim, _BITS[storage]) + {"binary": 0, "residual": 4}.get(storage, 2)


@lru_cache(maxsize=4)
def rotation(dim: int) -> NDArray[np.float32]:
    """(dim, dim) an orthogonal matrix, the same on every machine: signs drawn by a hash, then a cosine transform."""
    signs = np.unpackbits(np.frombuffer(hashlib.shake_128(b"manyvec").digest(-(-dim // 8)), np.uint8))[:dim]
    frequency, position = np.mgrid[:dim, :dim]
    transform = np.cos(np.pi * (2 * position + 1) * frequency / (2 * dim)) * np.sqrt(2 / dim)
    transform[0] *= np.sqrt(0.5)
    return ((2.0 * signs - 1)[:, None] * transform.T).astype(np.float32)


def _packed_width(dim: int, bits: int) -> int:
    return -(-dim * bits // 8)


def _packed(integers: NDArray[np.float32], bits: int) -> Codes:
    """(n, ceil(dim * bits / 8)): several numbers a byte, the first in its lowest bits."""
    n, dim = integers.shape
    per_byte = 8 // bits
    codes = np.zeros((n, _packed_width(dim, bits) * per_byte), np.uint8)
    codes[:, :dim] = (integers + (2**bits - 1)) / 2
    shifted = codes.reshape(n, _packed_width(dim, bits), per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2), np.uint8)


def _bytes_of(numbers: NDArray[np.generic]) -> Codes:
    """(n, 2) bytes of (n,) two-byte numbers."""
    return np.ascontiguousarray(numbers[:, None]).view(np.uint8)
