"""Batches of token vectors: `TokenBatch` holds floats, `CodedBatch` holds a codec's bytes.

All rows lie end to end and offsets say where each item starts. There is no padding: libraries that pad ragged documents
with rows of zeros let a zero win over a negative similarity, which changes the ranking.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyvec.errors import ShapeError
from manyvec.vectors.codec import Codec, Codes

if TYPE_CHECKING:
    from typing_extensions import Self


class RaggedBatch(ABC):
    """Base of `TokenBatch` and `CodedBatch`: rows of several documents or queries ("items"), end to end.

    Attributes:
        offsets: (n_items + 1,) int64. The rows of item i are offsets[i] to offsets[i + 1].
    """

    offsets: NDArray[np.int64]

    @property
    @abstractmethod
    def rows(self) -> NDArray[Any]:
        """(n_tokens, width) array of the vectors or codes."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the token vectors."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """How a vector is represented: a float type or the name of a codec."""

    @abstractmethod
    def decoded(self) -> TokenBatch:
        """Return the batch with float vectors."""

    @abstractmethod
    def damage(self) -> dict[int, str]:
        """Find items whose rows this library cannot have written, such as after a bit flip on disk.

        Kernels look up what a row refers to without checking it, so batches that come from disk are checked once.

        Returns:
            What is wrong with each damaged item, by its position.
        """

    @abstractmethod
    def _taken(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> Self:
        """Return a batch of these rows."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, position: int) -> NDArray[Any]:
        """Return a view of the rows of one item."""
        position = range(len(self))[position]
        return self.rows[self.offsets[position] : self.offsets[position + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, {self.n_tokens} tokens, dim {self.dim}, {self.kind})"

    @property
    def n_tokens(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(self.rows.nbytes)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n_items,) number of tokens of each item."""
        return np.diff(self.offsets)

    def select(self, positions: ArrayLike) -> Self:
        """Return a new batch of the items at these positions, in this order; a position may occur more than once."""
        chosen = np.asarray(positions, np.int64)
        lengths = self.lengths[chosen]
        return self._taken(ragged_rows(self.offsets[:-1][chosen], lengths), offsets_of(lengths))

    def emptied(self, positions: ArrayLike) -> Self:
        """Return a batch of the same items in which those at these positions have no rows. They score -inf."""
        lengths = self.lengths
        lengths[np.asarray(positions, np.int64)] = 0
        return self._taken(ragged_rows(self.offsets[:-1], lengths), offsets_of(lengths))

    def checksums(self) -> NDArray[np.uint32]:
        """(n_items,) CRC-32 of the bytes of each item's rows."""
        return checksums(self.rows, self.offsets)

    def _items_of(self, is_damaged: NDArray[np.bool_], reason: str) -> dict[int, str]:
        """Return the items that have these (n_tokens,) rows, with the reason."""
        rows = np.flatnonzero(is_damaged)
        items = np.searchsorted(self.offsets, rows, side="right") - 1
        return dict.fromkeys(np.unique(items).tolist(), reason)


@dataclass(frozen=True, eq=False, repr=False)
class TokenBatch(RaggedBatch):
    """Token vectors of several documents or queries ("items"). Arguments are validated once, on construction.

    Args:
        vectors: (n_tokens, dim) float32 or float16, the vectors of all items end to end.
        offsets: (n_items + 1,) int64. The vectors of item i are rows offsets[i] to offsets[i + 1].
        spans: (n_tokens, 2) int32. For a text: start and end of each token, in characters of that text. For an image:
            row and column of the patch. (-1, -1) for a token that stands for no part of its item. None if unknown.
        allow_empty: Accept items without tokens.

    Raises:
        ShapeError: The shapes or offsets do not fit together, a value is not finite, or an item has no tokens.
    """

    vectors: NDArray[np.floating]
    offsets: NDArray[np.int64]
    spans: NDArray[np.int32] | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        vectors, offsets = self.vectors, self.offsets
        if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
            raise ShapeError(
                f"token vectors must be (n_tokens, dim) float32 or float16, got {vectors.shape} {vectors.dtype}"
            )
        if vectors.shape[1] == 0:
            raise ShapeError("token vectors must have at least one dimension, got dim 0")
        check_offsets(offsets, len(vectors))
        if not self.allow_empty and len(empty := np.flatnonzero(np.diff(offsets) == 0)):
            raise ShapeError(f"item {empty[0]} of the batch has no token vectors")
        if self.spans is not None and self.spans.shape != (len(vectors), 2):
            raise ShapeError(f"spans must be (n_tokens, 2) = ({len(vectors)}, 2), got {self.spans.shape}")
        for item, reason in self.damage().items():
            raise ShapeError(f"item {item} of the batch has {reason}")

    @classmethod
    def unchecked(
        cls, vectors: NDArray[np.floating], offsets: NDArray[np.int64], spans: NDArray[np.int32] | None = None
    ) -> TokenBatch:
        """Return a batch without validating it, for parts of validated batches: checking gigabytes takes seconds."""
        return _made(cls, vectors=vectors, offsets=offsets, spans=spans, allow_empty=True)

    @classmethod
    def from_list(cls, items: Sequence[ArrayLike], *, dim: int | None = None, allow_empty: bool = False) -> TokenBatch:
        """Join one (n_tokens, dim) array per item.

        Args:
            items: Arrays of the same dim. The batch is float16 if all of them are, otherwise float32.
            dim: Dimension of the vectors. Required only if `items` has no array to tell it.
            allow_empty: Accept items without tokens.
        """
        arrays = [np.asarray(item) for item in items]
        dims = {array.shape[1] for array in arrays if array.ndim == 2} | ({dim} if dim else set())
        if len(dims) != 1:
            raise ShapeError(f"the items of a batch must share one dim, got {sorted(dims) or 'none: pass dim=...'}")
        width = dims.pop()
        # An item without tokens, given as [], has lost its second axis.
        arrays = [array.reshape(0, width) if array.size == 0 else array for array in arrays]
        for i, array in enumerate(arrays):
            if array.ndim != 2:
                raise ShapeError(f"item {i}: token vectors must be (n_tokens, dim), got {array.shape}")
        is_half = bool(arrays) and all(array.dtype == np.float16 for array in arrays)
        vectors = np.concatenate([np.empty((0, width), np.float16), *arrays])
        vectors = vectors.astype(np.float16 if is_half else np.float32, copy=False)
        return cls(vectors, offsets_of([len(array) for array in arrays]), allow_empty=allow_empty)

    @classmethod
    def concatenate(cls, batches: Sequence[TokenBatch]) -> TokenBatch:
        """Join the items of one or more batches of the same dim. Spans are kept if every batch has them."""
        if len(batches) == 1:
            return batches[0]
        spans = [batch.spans for batch in batches if batch.spans is not None]
        if len({batch.dim for batch in batches}) > 1:
            raise ShapeError(f"batches must share one dim, got {[batch.dim for batch in batches]}")
        return cls.unchecked(
            np.concatenate([batch.vectors for batch in batches]),
            offsets_of(np.concatenate([batch.lengths for batch in batches])),
            np.concatenate(spans) if len(spans) == len(batches) else None,
        )

    @property
    def rows(self) -> NDArray[np.floating]:
        return self.vectors

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def kind(self) -> str:
        return str(self.vectors.dtype)

    def decoded(self) -> TokenBatch:
        return self

    def damage(self) -> dict[int, str]:
        """See `RaggedBatch`: a value is NaN or infinite."""
        if all_finite(self.vectors):
            return {}
        return self._items_of(~np.isfinite(self.vectors).all(axis=1), "a token vector with NaN or infinity")

    def _taken(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> TokenBatch:
        spans = None if self.spans is None else self.spans[rows]
        return TokenBatch.unchecked(self.vectors[rows], offsets, spans)

    def pooled(self) -> NDArray[np.float32]:
        """(n_items, dim) mean token vector of each item, normalised: what a single-vector model would store."""
        sums = np.zeros((len(self), self.dim), np.float32)
        if len(filled := np.flatnonzero(self.lengths)):
            sums[filled] = np.add.reduceat(self.vectors, self.offsets[filled], axis=0, dtype=np.float32)
        return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True, eq=False, repr=False)
class CodedBatch(RaggedBatch):
    """Token vectors of several documents in the bytes of a codec. Arguments are validated once, on construction.

    Args:
        codes: (n_tokens, codec.width) uint8, the codes of all documents end to end.
        offsets: (n_documents + 1,) int64. The codes of document i are rows offsets[i] to offsets[i + 1], possibly none.
        codec: The codec that made the codes.

    Raises:
        ShapeError: The shapes or offsets do not fit together.
    """

    codes: Codes
    offsets: NDArray[np.int64]
    codec: Codec

    def __post_init__(self) -> None:
        codes, width = self.codes, self.codec.width
        if codes.ndim != 2 or codes.shape[1] != width or codes.dtype != np.uint8:
            raise ShapeError(
                f"{self.codec.name} codes must be (n_tokens, {width}) uint8, got {codes.shape} {codes.dtype}"
            )
        check_offsets(self.offsets, len(codes))

    @classmethod
    def unchecked(cls, codes: Codes, offsets: NDArray[np.int64], codec: Codec) -> CodedBatch:
        """Return a batch without validating it, for parts of validated batches."""
        return _made(cls, codes=codes, offsets=offsets, codec=codec)

    @classmethod
    def concatenate(cls, batches: Sequence[CodedBatch]) -> CodedBatch:
        """Join the documents of one or more batches of the same codec."""
        if len(batches) == 1:
            return batches[0]
        return cls.unchecked(
            np.concatenate([batch.codes for batch in batches]),
            offsets_of(np.concatenate([batch.lengths for batch in batches])),
            batches[0].codec,
        )

    @property
    def rows(self) -> Codes:
        return self.codes

    @property
    def dim(self) -> int:
        return self.codec.dim

    @property
    def kind(self) -> str:
        return self.codec.name

    def decoded(self) -> TokenBatch:
        """Return the vectors that the codes stand for, as float16."""
        vectors = np.empty((self.n_tokens, self.dim), np.float16)
        # In parts, because decoding goes through float32.
        for start in range(0, self.n_tokens, 65_536):
            vectors[start : start + 65_536] = self.codec.decode(self.codes[start : start + 65_536])
        return TokenBatch.unchecked(vectors, self.offsets)

    def damage(self) -> dict[int, str]:
        """See `RaggedBatch`: a scale is NaN or infinite, or a centroid does not exist."""
        codec = self.codec
        found = self._items_of(~np.isfinite(codec.scales(self.codes)), "a token with a scale of NaN or infinity")
        if codec.centroids is not None:
            n_centroids, nearest = len(codec.centroids), codec.nearest(self.codes)
            is_unknown = nearest >= n_centroids
            found |= self._items_of(is_unknown, f"a token that refers to a centroid beyond the {n_centroids} there are")
        return found

    def _taken(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> CodedBatch:
        return CodedBatch.unchecked(self.codes[rows], offsets, self.codec)


def checksums(rows: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(n_items,) CRC-32 of the bytes of each item's rows; see `RaggedBatch` for the arguments."""
    # zlib reads 1.7 GB/s here; sums by numpy's reduceat were three to twenty times as slow.
    bytes_of_row = rows.itemsize * (rows.shape[1] if rows.ndim > 1 else 1)
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    ends = (offsets * bytes_of_row).tolist()
    return np.array([zlib.crc32(data[start:end]) for start, end in pairwise(ends)], np.uint32)


# Token vectors of documents as an index stores them.
StoredBatch = TokenBatch | CodedBatch


def concatenated(older: StoredBatch, newer: StoredBatch) -> StoredBatch:
    """Join two batches of the same kind.

    Raises:
        ShapeError: One holds vectors and the other codes.
    """
    if isinstance(older, TokenBatch) and isinstance(newer, TokenBatch):
        return TokenBatch.concatenate([older, newer])
    if isinstance(older, CodedBatch) and isinstance(newer, CodedBatch):
        return CodedBatch.concatenate([older, newer])
    raise ShapeError(f"{older!r} and {newer!r} cannot be joined: decode the codes first")


def pool(tokens: TokenBatch, factor: float, *, are_pages: bool = False) -> TokenBatch:
    """Average similar token vectors of each item until about 1 in `factor` is left.

    This is the hierarchical pooling of sentence-transformers (https://arxiv.org/abs/2409.14683). The first token is
    kept as it is. A mean gets the span of the token that it is most similar to.

    Args:
        tokens: Token vectors of documents.
        factor: At most 1 to keep all vectors.
        are_pages: Whether the items are page images. The last patch of a page then keeps its span, which tells how
            many rows and columns of patches the page has.
    """
    if factor <= 1:
        return tokens
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    pooling = HierarchicalTokenPooling(pool_factor=factor)
    vectors, spans = [], []
    for item, vectors_of_item in enumerate(tokens):
        means = pooling.pool_one(torch.from_numpy(np.array(vectors_of_item, np.float32))).numpy()
        vectors.append(means)
        if tokens.spans is not None:
            spans_of_item = tokens.spans[tokens.offsets[item] : tokens.offsets[item + 1]]
            nearest = (means @ vectors_of_item.T).argmax(axis=1)
            if are_pages:
                last = np.lexsort(spans_of_item.T[::-1])[-1]
                nearest[(means @ vectors_of_item[last]).argmax()] = last
            spans.append(spans_of_item[nearest])
    return TokenBatch(
        np.concatenate(vectors),
        offsets_of([len(means) for means in vectors]),
        np.concatenate(spans) if tokens.spans is not None else None,
    )


def check_offsets(offsets: NDArray[np.int64], n_rows: int) -> None:
    """Raise ShapeError unless the offsets run from 0 to `n_rows` and never decrease."""
    if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n_rows:
        raise ShapeError(f"offsets must run from 0 to the number of tokens ({n_rows}), got {offsets}")
    if (np.diff(offsets) < 0).any():
        raise ShapeError("offsets must not decrease")


def all_finite(vectors: NDArray[np.floating]) -> bool:
    """Return whether the array has no NaN and no infinity, without making a mask as large as the array."""
    if vectors.dtype == np.float16:
        # NaN and infinity have the largest bit patterns of each sign. Ten times as fast as a sum.
        bits = vectors.view(np.uint16)
        return bool(bits.view(np.int16).max(initial=0) < 0x7C00 and bits.max(initial=0) < 0xFC00)
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is finite only if every value is.
        return bool(np.isfinite(vectors.sum(dtype=np.float32))) or bool(np.isfinite(vectors).all())


def as_float32(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return float16 or float32 vectors as float32; they must be finite."""
    if vectors.dtype != np.float16:
        return np.asarray(vectors, np.float32)
    # Moves the bits of the exponent and scales it, subnormal numbers too: numpy's cast is slower, and torch, which is
    # faster, takes seconds to import.
    bits = np.ascontiguousarray(vectors).view(np.uint16).astype(np.uint32)
    signs = (bits & 0x8000) << 16
    bits &= 0x7FFF
    bits <<= 13
    bits |= signs
    widened = bits.view(np.float32)
    widened *= np.float32(2.0**112)
    return widened


def offsets_of(lengths: ArrayLike) -> NDArray[np.int64]:
    """(n + 1,) offsets of n items of these lengths that lie end to end: where each starts, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def ragged_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the ranges [start, start + length) into one array, without a Python loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def document_blocks(lengths: NDArray[np.int64], max_tokens: int) -> list[slice]:
    """Split documents into runs of at most `max_tokens` tokens each. A longer document is a run of its own.

    Args:
        lengths: (n,) tokens of each document.
        max_tokens: Upper bound of the tokens of a run.

    Returns:
        Slices of the documents, in order. A run without any token is left out.
    """
    ends = np.cumsum(lengths)
    blocks = []
    first = 0
    while first < len(lengths):
        done = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
        if ends[last - 1] > done:
            blocks.append(slice(first, last))
        first = last
    return blocks


def _made(cls: type[Any], **values: Any) -> Any:
    """Return an instance of a frozen dataclass without running its `__post_init__`."""
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
