"""`TokenBatch`: the token vectors of many texts, end to end, with no padding between them.

Peers that pad ragged documents with zero rows let a zero beat a negative similarity, and the order flips. Here no such
row exists, and what is checked when a batch is built is not checked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyvec.errors import ShapeError
from manyvec.vectors.codec import Codec


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token vectors of several texts.

    Args:
        vectors: (n_tokens, dim) float32 or float16, all texts end to end.
        offsets: (n_texts + 1,) int64; text i owns rows offsets[i] to offsets[i + 1].
        spans: (n_tokens, 2) int32: first character and one past the last of each token in its text, counted in
            Python's characters; of an image, row and column of the patch. (-1, -1) for tokens that stand for no text or
            patch. None where the encoder knows none.
        allow_empty: texts without any token are accepted.
        codec: where `vectors` holds the (n_tokens, width) bytes of this codec instead; see `unchecked` and `decoded`.

    Raises:
        ShapeError: not two axes, offsets that do not fit, a value that is not finite, or a text without tokens.
    """

    vectors: NDArray[np.floating]
    offsets: NDArray[np.int64]
    spans: NDArray[np.int32] | None = None
    allow_empty: bool = False
    codec: Codec | None = None

    def __post_init__(self) -> None:
        vectors, offsets = self.vectors, self.offsets
        if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
            raise ShapeError(
                f"token vectors must be (n_tokens, dim) float32 or float16, got {vectors.shape} {vectors.dtype}"
            )
        if vectors.shape[1] == 0:
            raise ShapeError("token vectors must have at least one dimension, got dim 0")
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(vectors):
            raise ShapeError(f"offsets must run from 0 to the number of tokens ({len(vectors)}), got {offsets}")
        shortest = int(np.diff(offsets).min(initial=1))
        if shortest < 0:
            raise ShapeError("offsets must not fall")
        if shortest == 0 and not self.allow_empty:
            raise ShapeError(f"text {int(np.diff(offsets).argmin())} of the batch has no token vectors")
        if self.spans is not None and self.spans.shape != (len(vectors), 2):
            raise ShapeError(f"spans must be (n_tokens, 2) = ({len(vectors)}, 2), got {self.spans.shape}")
        if not all_finite(vectors):
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            text = int(np.searchsorted(offsets, row, side="right")) - 1
            raise ShapeError(f"text {text} of the batch has a token vector with NaN or infinity")

    @classmethod
    def unchecked(
        cls,
        vectors: NDArray[Any],
        offsets: NDArray[np.int64],
        spans: NDArray[np.int32] | None = None,
        codec: Codec | None = None,
    ) -> TokenBatch:
        """A batch of parts that come from a checked one; looking through gigabytes again would cost a search."""
        batch = object.__new__(cls)
        values = {"vectors": vectors, "offsets": offsets, "spans": spans, "allow_empty": True, "codec": codec}
        for name, value in values.items():
            object.__setattr__(batch, name, value)
        return batch

    @classmethod
    def from_list(cls, texts: Sequence[ArrayLike], *, dim: int | None = None, allow_empty: bool = False) -> TokenBatch:
        """Join arrays of (n_tokens, dim), one a text; `dim` is needed only where there is no text at all."""
        arrays = [np.asarray(text) for text in texts]
        dims = {array.shape[1] for array in arrays if array.ndim == 2} | ({dim} if dim else set())
        if len(dims) != 1:
            raise ShapeError(f"the texts of a batch must share one dim, got {sorted(dims) or 'none: say dim=...'}")
        width = dims.pop()
        # [] for a text without tokens has lost its second axis.
        arrays = [array.reshape(0, width) if array.size == 0 else array for array in arrays]
        for i, array in enumerate(arrays):
            if array.ndim != 2:
                raise ShapeError(f"text {i}: token vectors must be (n_tokens, dim), got {array.shape}")
        is_half = bool(arrays) and all(array.dtype == np.float16 for array in arrays)
        vectors = np.concatenate([np.empty((0, width), np.float16), *arrays])
        vectors = vectors.astype(np.float16 if is_half else np.float32, copy=False)
        return cls(vectors, offsets_of([len(array) for array in arrays]), allow_empty=allow_empty)

    @classmethod
    def concatenate(cls, batches: Sequence[TokenBatch]) -> TokenBatch:
        """Put the texts of several batches, at least one, behind each other."""
        if len(batches) == 1:
            return batches[0]
        spans = [batch.spans for batch in batches if batch.spans is not None]
        if len({batch.dim for batch in batches}) > 1:
            raise ShapeError(f"batches must share one dim, got {[batch.dim for batch in batches]}")
        return cls.unchecked(
            np.concatenate([batch.vectors for batch in batches]),
            offsets_of(np.concatenate([batch.lengths for batch in batches])),
            np.concatenate(spans) if len(spans) == len(batches) else None,
            batches[0].codec,
        )

    def decoded(self) -> TokenBatch:
        """The same with float16 vectors, as far as they can be had back, where a codec's bytes are held."""
        if self.codec is None:
            return self
        vectors = np.empty((self.n_tokens, self.dim), np.float16)
        for start in range(0, self.n_tokens, 65_536):
            codes: NDArray[Any] = self.vectors[start : start + 65_536]
            vectors[start : start + 65_536] = self.codec.decode(codes)
        return TokenBatch.unchecked(vectors, self.offsets, self.spans)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> NDArray[np.floating]:
        """(n_tokens, dim) of one text, a view."""
        text = range(len(self))[text]
        return self.vectors[self.offsets[text] : self.offsets[text + 1]]

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        kind = self.vectors.dtype if self.codec is None else self.codec.name
        return f"TokenBatch({len(self)} texts, {self.n_tokens} tokens, dim {self.dim}, {kind})"

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1]) if self.codec is None else self.codec.dim

    @property
    def n_tokens(self) -> int:
        return len(self.vectors)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n_texts,) tokens of each text."""
        return np.diff(self.offsets)

    def rows(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of these texts' token vectors, in the texts' order."""
        return ragged_rows(self.offsets[texts], self.lengths[texts])

    def select(self, texts: ArrayLike) -> TokenBatch:
        """A new batch of these texts, in this order; a text may come twice."""
        chosen = np.asarray(texts, np.int64)
        rows = self.rows(chosen)
        spans = None if self.spans is None else self.spans[rows]
        return TokenBatch.unchecked(self.vectors[rows], offsets_of(self.lengths[chosen]), spans, self.codec)

    def pooled(self) -> NDArray[np.float32]:
        """(n_texts, dim) mean token vector of each text, unit length: what a single-vector model would keep."""
        sums = np.add.reduceat(self.vectors, self.offsets[:-1], axis=0, dtype=np.float32)
        return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), np.float32)


def all_finite(vectors: NDArray[np.floating]) -> bool:
    """Whether there is no NaN and no infinity."""
    # A sum is finite only if every value is, and needs no mask as large as the vectors.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(vectors.sum(dtype=np.float32)))


def offsets_of(lengths: ArrayLike) -> NDArray[np.int64]:
    """(n + 1,) where each of n texts of these lengths starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def ragged_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranges [start, start + length) end to end, without a Python loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
