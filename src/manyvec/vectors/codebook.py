"""Codebooks: every token vector by the nearest of K centroids, and documents by the centroids of theirs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.vectors.batch import TokenBatch, offsets_of
from manyvec.vectors.kernels import CentroidKernel
from manyvec.vectors.llvm import in_parallel, processor

# float32 bytes of similarities between vectors and centroids at a time, where there is no machine code.
_BLOCK_BYTES = 4 * 2**20
_ROWS_AT_A_TIME = 131_072
_ROWS_A_BLOCK = 512


def n_centroids_for(n_tokens: int) -> int:
    """The power of two nearest to 16·√n_tokens, between 16 and 65,536: 16,384 for a million token vectors."""
    return int(np.clip(2 ** np.round(np.log2(16 * np.sqrt(max(1, n_tokens)))), 16, 65_536))


@dataclass(frozen=True, eq=False)
class Codebook:
    """K centroids of token vectors.

    Args:
        centroids: (n_centroids, dim) float32, unit length.
    """

    centroids: NDArray[np.float32]

    @classmethod
    def train(cls, vectors: NDArray[np.floating], n_centroids: int, *, iterations: int = 3, seed: int = 0) -> Codebook:
        """Spherical k-means from random rows. Repeats: the same vectors and seed give the same codebook.

        Args:
            vectors: (n, dim) a sample of the token vectors, n at least `n_centroids`; 8 times as many do well.
        """
        if len(vectors) < n_centroids:
            raise InputError(f"{n_centroids} centroids need as many vectors to start from, got {len(vectors)}")
        rng = np.random.default_rng(seed)
        start = np.sort(rng.choice(len(vectors), n_centroids, replace=False))
        codebook = cls(_unit(vectors[start].astype(np.float32)))
        for _ in range(iterations):
            codebook = codebook._moved(vectors)
        return codebook

    @property
    def dim(self) -> int:
        return int(self.centroids.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.blake2b(np.ascontiguousarray(self.centroids).data, digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.centroids)

    def assign(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) a nearest centroid of each of (n, dim) vectors, by dot product.

        Where both are many, only the centroids near the nearest of a few centroids of centroids are looked at, 2,048 of
        16,384: most vectors get their nearest, the others one of the next.
        """
        if vectors.shape[1] != self.dim:
            raise ShapeError(f"vectors have dim {vectors.shape[1]}, the codebook {self.dim}")
        # For few vectors the detour would cost more than it saves.
        if len(self) < 2048 or len(vectors) < 4096:
            return self._nearest(vectors)
        parts = [vectors[start : start + _ROWS_AT_A_TIME] for start in range(0, len(vectors), _ROWS_AT_A_TIME)]
        return np.concatenate([self._near_their_group(part) for part in parts])

    def _near_their_group(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) of the centroids near each vector's centroid of centroids the nearest."""
        groups, members = self._groups
        group_of = groups._nearest(vectors)
        order = np.argsort(group_of, kind="stable")
        positions_of = np.split(order, np.searchsorted(group_of[order], np.arange(1, len(groups))))
        nearest = np.empty(len(vectors), np.int32)

        def assign_group(group: int) -> None:
            if len(positions := positions_of[group]):
                among = self._kernel_of(members[group])
                nearest[positions] = members[group][among.nearest(vectors[positions])]

        in_parallel(assign_group, range(len(groups)))
        return nearest

    def _nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) the nearest of all centroids; see `CentroidKernel`."""
        nearest, kernel = np.empty(len(vectors), np.int32), self._kernel

        def assign_block(block: slice) -> None:
            nearest[block] = kernel.nearest(vectors[block])

        in_parallel(assign_block, [slice(i, i + _ROWS_A_BLOCK) for i in range(0, len(vectors), _ROWS_A_BLOCK)])
        return nearest

    def similarities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_centroids) dot products; of unit vectors off by less than 0.02 where the processor has int8."""
        import torch

        own = processor()
        if own is None or not own.has_int8:
            return np.asarray(vectors @ self.centroids.T, np.float32)
        steps = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-30) / 127
        integers = torch.from_dlpack(np.rint(vectors / steps).astype(np.int8))
        products = torch._int_mm(integers, torch.from_dlpack(self._integers).T).float().numpy()
        products *= (steps * self._step).astype(np.float32)
        return products

    @cached_property
    def _step(self) -> float:
        """What 1 is worth in `_integers`."""
        return max(float(np.abs(self.centroids).max()), 1e-30) / 127

    @cached_property
    def _integers(self) -> NDArray[np.int8]:
        """(n_centroids, dim), all with one scale."""
        return np.rint(self.centroids / self._step).astype(np.int8)

    @cached_property
    def _kernel(self) -> CentroidKernel | _Products:
        return self._kernel_of(slice(None))

    def _kernel_of(self, some: slice | NDArray[np.int64]) -> CentroidKernel | _Products:
        """What finds the nearest of some centroids."""
        own = processor()
        if own is None:
            return _Products(self.centroids[some])
        return CentroidKernel(own, (self._integers if own.has_int8 else self.centroids)[some])

    @cached_property
    def _groups(self) -> tuple[Codebook, list[NDArray[np.int64]]]:
        """Centroids of the centroids, and for each of these the centroids nearest to it: sixteen times its share."""
        groups = Codebook.train(self.centroids, 2 ** round(np.log2(len(self)) / 2))
        n_near = min(len(self) // 8, 16 * len(self) // len(groups))
        similarities = groups.centroids @ self.centroids.T
        return groups, list(np.argpartition(-similarities, n_near, axis=1)[:, :n_near])

    def _moved(self, vectors: NDArray[np.floating]) -> Codebook:
        """Each centroid moved to the mean of the vectors nearest to it; one without any stays."""
        import torch

        nearest = self.assign(vectors)
        moved = torch.zeros(self.centroids.shape)
        moved.index_add_(0, torch.from_numpy(nearest), torch.from_dlpack(np.ascontiguousarray(vectors)).float())
        is_alone = np.bincount(nearest, minlength=len(self)) == 0
        return Codebook(_unit(np.where(is_alone[:, None], self.centroids, moved.numpy())))


class _Products:
    """What `CentroidKernel` does, by matrix products: where there is no llvmlite."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self._centroids = centroids

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) the nearest centroid of each of (n, dim) vectors, the first of equals."""
        import torch

        nearest, step = np.empty(len(vectors), np.int32), max(1, _BLOCK_BYTES // (4 * len(self._centroids)))
        for start in range(0, len(vectors), step):
            block = torch.from_dlpack(np.ascontiguousarray(vectors[start : start + step])).float()
            # numpy finds the place of a maximum ten times faster than torch does on a CPU.
            nearest[start : start + step] = (block @ torch.from_dlpack(self._centroids).T).numpy().argmax(axis=1)
        return nearest


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True, eq=False)
class Assignments:
    """The distinct centroids of each document's token vectors, for rows as they were when they were assigned.

    Attributes:
        row_ids: (n,) rising, each once.
        updated: (n,) table version that had last written the row; a row written since is no longer this one.
        offsets: (n + 1,) where each document's centroids start in `centroids`.
        centroids: (n_postings,) uint16.
    """

    codebook: Codebook
    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    offsets: NDArray[np.int64]
    centroids: NDArray[np.uint16]

    @classmethod
    def of(
        cls, codebook: Codebook, row_ids: NDArray[np.int64], updated: NDArray[np.int64], tokens: TokenBatch
    ) -> Assignments:
        """Assign the token vectors of documents; row ids rise."""
        nearest = codebook.assign(tokens.vectors).astype(np.int64)
        # One number for each pair of document and centroid, so that one sort finds the distinct ones.
        document = np.repeat(np.arange(len(tokens)), tokens.lengths)
        pairs = np.unique(document * len(codebook) + nearest)
        lengths = np.bincount(pairs // len(codebook), minlength=len(tokens))
        return cls(codebook, row_ids, updated, offsets_of(lengths), (pairs % len(codebook)).astype(np.uint16))

    def __len__(self) -> int:
        return len(self.row_ids)

    def positions_in(self, row_ids: NDArray[np.int64], updated: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) where each row stands among these rising row ids, -1 if it is gone or was written since."""
        if not len(row_ids):
            return np.full(len(self), -1, np.int64)
        positions = np.searchsorted(row_ids, self.row_ids).clip(max=len(row_ids) - 1)
        is_same = (row_ids[positions] == self.row_ids) & (updated[positions] == self.updated)
        return np.where(is_same, positions, -1)
