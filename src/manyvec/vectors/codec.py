"""Codecs: token vectors in fewer bytes than float16, and back.

A codec rounds each dimension to a few integers and stores one scale per token. `int8` uses all integers from -127 to
127; `int4`, `residual` (2 bits) and `binary` (1 bit) use odd ones only. `residual` encodes the difference to the
nearest centroid (ColBERTv2, https://arxiv.org/abs/2112.01488, here with a scale for every token, so that those near
their centroid lose little). `int4` and `residual` rotate vectors first, so that no dimension is larger than the others.
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
# Value of the integer 1 for tokens whose values are normally distributed with standard deviation 1: the even steps that
# leave the least squared error (Max, Quantizing for minimum distortion, 1960).
_UNIT = {4: 0.1676, 2: 0.498, 1: 0.798}
# The smallest number that rounds to infinity in float16.
_FLOAT16_OVERFLOW = 65_520
Codes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Codec:
    """Encodes token vectors as rows of bytes: centroid (uint16), scale (float16), then packed integers.

    A vector is decoded as `scale * integers`, rotated back, plus its centroid. `binary` has no scale, and only
    `residual` has centroids.

    Args:
        name: One of `STORAGES` except `float16`, which needs no codec.
        dim: Dimension of the vectors.
        centroids: (n_centroids, dim) float32 for `residual`, at most 65,536. None for the others.
    """

    name: str
    dim: int
    centroids: NDArray[np.float32] | None = None

    @property
    def bits(self) -> int:
        """Bits per dimension."""
        return _BITS[self.name]

    @property
    def width(self) -> int:
        """Bytes per token."""
        return bytes_per_token(self.name, self.dim)

    @property
    def integers_at(self) -> int:
        """Byte offset of a token's integers."""
        return self.width - _packed_width(self.dim, self.bits)

    @property
    def scale_at(self) -> int | None:
        """Byte offset of a token's float16 scale; None for `binary`."""
        return None if self.name == "binary" else self.integers_at - 2

    @property
    def is_rotated(self) -> bool:
        """Whether vectors are rotated before they are rounded."""
        # Not for `binary`: rotated signs are closer to the vector, but rank documents worse.
        return self.name in ("int4", "residual")

    def encode(self, vectors: NDArray[np.floating], nearest: NDArray[np.integer] | None = None) -> Codes:
        """Encode vectors.

        Args:
            vectors: (n, dim)
            nearest: (n,) nearest centroid of each vector. Required for `residual`.

        Returns:
            (n, width) uint8

        Raises:
            InputError: The vectors are so far from unit length that float16 could not hold them either.
        """
        values = np.asarray(vectors, np.float32)
        check_range(values, self.name)
        parts: list[Codes] = []
        if self.centroids is not None:
            assert nearest is not None
            values = values - self.centroids[nearest]
            parts.append(_bytes_of(nearest.astype(np.uint16)))
        if self.is_rotated:
            values = values @ rotation(self.dim)
        integers = self._rounded(values)
        if self.name != "binary":
            # The scale that leaves the least squared error, given the integers.
            scales = np.einsum("ij,ij->i", values, integers) / np.maximum(np.einsum("ij,ij->i", integers, integers), 1)
            check_range(scales, self.name)
            parts.append(_bytes_of(scales.astype(np.float16)))
        parts.append(integers.astype(np.int8).view(np.uint8) if self.bits == 8 else _packed(integers, self.bits))
        return np.concatenate(parts, axis=1)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """Return the (n, dim) vectors that (n, width) codes stand for."""
        vectors = self.integers(codes).astype(np.float32)
        vectors *= self.scales(codes)[:, None]
        if self.is_rotated:
            vectors = vectors @ rotation(self.dim).T
        return vectors if self.centroids is None else vectors + self.centroids[self.nearest(codes)]

    def nearest(self, codes: Codes) -> NDArray[np.int64]:
        """(n,) centroid of each token; only for `residual`."""
        return codes[:, :2].view(np.uint16)[:, 0].astype(np.int64)

    def scales(self, codes: Codes) -> NDArray[np.float32]:
        """(n,) scale of each token."""
        if self.scale_at is None:
            return np.full(len(codes), self.dim**-0.5, np.float32)
        return codes[:, self.scale_at : self.scale_at + 2].view(np.float16)[:, 0].astype(np.float32)

    def integers(self, codes: Codes) -> NDArray[np.int8]:
        """(n, dim) integers of each token."""
        if self.bits == 8:
            return codes[:, self.integers_at :].view(np.int8)
        packed = np.ascontiguousarray(codes[:, self.integers_at :])
        # All 8 / bits integers of a byte are looked up at once, as one larger integer.
        return self._integers_of_byte.take(packed, mode="clip").view(np.int8)[:, : self.dim]

    def _rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round values to the codec's integers."""
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
    """Return the bytes of one token vector: its integers or floats, its scale if it has one, and its centroid.

    Args:
        storage: One of `STORAGES`.
        dim: Dimension of the vector.

    Raises:
        InputError: There is no such storage.
    """
    if storage not in STORAGES:
        raise InputError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
    if storage == "float16":
        return 2 * dim
    return _packed_width(dim, _BITS[storage]) + {"binary": 0, "residual": 4}.get(storage, 2)


def check_range(values: NDArray[np.floating], storage: str) -> None:
    """Raise InputError unless all values are in the range of float16. All storages have this limit in common."""
    # Python's floats, because the limit itself overflows in float16. Both comparisons are false for NaN.
    if not (float(values.max(initial=0)) < _FLOAT16_OVERFLOW and float(values.min(initial=0)) > -_FLOAT16_OVERFLOW):
        raise InputError(
            f"token vectors hold values beyond 65,504, which {storage} storage cannot hold: normalise them"
        )


@lru_cache(maxsize=4)
def rotation(dim: int) -> NDArray[np.float32]:
    """Return a (dim, dim) orthogonal matrix: random signs from a hash, then a cosine transform.

    It is the same on every machine, because stored codes depend on it.
    """
    signs = np.unpackbits(np.frombuffer(hashlib.shake_128(b"manyvec").digest(-(-dim // 8)), np.uint8))[:dim]
    frequency, position = np.mgrid[:dim, :dim]
    transform = np.cos(np.pi * (2 * position + 1) * frequency / (2 * dim)) * np.sqrt(2 / dim)
    transform[0] *= np.sqrt(0.5)
    return ((2.0 * signs - 1)[:, None] * transform.T).astype(np.float32)


def _packed_width(dim: int, bits: int) -> int:
    return -(-dim * bits // 8)


def _packed(integers: NDArray[np.float32], bits: int) -> Codes:
    """(n, ceil(dim * bits / 8)) several integers per byte, the first in its lowest bits."""
    n, dim = integers.shape
    per_byte = 8 // bits
    codes = np.zeros((n, _packed_width(dim, bits) * per_byte), np.uint8)
    codes[:, :dim] = (integers + (2**bits - 1)) / 2
    shifted = codes.reshape(n, _packed_width(dim, bits), per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2), np.uint8)


def _bytes_of(numbers: NDArray[np.generic]) -> Codes:
    """(n, 2) bytes of (n,) two-byte numbers."""
    return np.ascontiguousarray(numbers[:, None]).view(np.uint8)
