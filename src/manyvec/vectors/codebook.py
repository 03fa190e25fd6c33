"""`Codebook`: K centroids of token vectors. `Assignments`: the centroids nearest to the vectors of each document."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.vectors.backend import Backend, CentroidSearch, default_backend, in_parallel
from manyvec.vectors.batch import TokenBatch, check_offsets, checksums, offsets_of, ragged_rows

# Vectors that are grouped at a time, and vectors that a thread assigns at a time.
_WINDOW_ROWS = 131_072
_BLOCK_ROWS = 512


def n_centroids_for(n_tokens: int) -> int:
    """Return the power of two nearest to 16·√n_tokens, between 16 and 65,536: 16,384 for a million token vectors."""
    return int(np.clip(2 ** np.round(np.log2(16 * np.sqrt(max(1, n_tokens)))), 16, 65_536))


@dataclass(frozen=True, eq=False)
class Codebook:
    """K centroids of token vectors.

    Args:
        centroids: (n_centroids, dim) float32, unit length.
        backend: Backend that compares vectors with the centroids. Defaults to `default_backend()`.
    """

    centroids: NDArray[np.float32]
    backend: Backend | None = None

    @classmethod
    def train(
        cls,
        vectors: NDArray[np.floating],
        n_centroids: int,
        *,
        iterations: int = 3,
        seed: int = 0,
        backend: Backend | None = None,
    ) -> Codebook:
        """Cluster vectors by spherical k-means, starting from random ones. The same arguments give the same codebook.

        Args:
            vectors: (n, dim) sample of the token vectors. n must be at least `n_centroids`; 8 times as many suffice.
            n_centroids: Number of clusters.
            iterations: Number of times that the centroids move to the mean of their vectors.
            seed: Seed of the random choice.
            backend: As for the constructor.

        Raises:
            InputError: There are fewer vectors than centroids.
        """
        if len(vectors) < n_centroids:
            raise InputError(f"{n_centroids} centroids need at least as many vectors to start from, got {len(vectors)}")
        rng = np.random.default_rng(seed)
        start = np.sort(rng.choice(len(vectors), n_centroids, replace=False))
        codebook = cls(_unit(vectors[start].astype(np.float32)), backend)
        for _ in range(iterations):
            codebook = codebook._moved(vectors)
        return codebook

    @property
    def dim(self) -> int:
        return int(self.centroids.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the centroids."""
        return hashlib.blake2b(np.ascontiguousarray(self.centroids).data, digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.centroids)

    def assign(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """Return the nearest centroid of each vector, by dot product; see `CentroidSearch.nearest`.

        Where there are many vectors and centroids, the centroids are clustered too, and each vector is compared with
        those near its nearest cluster only, 2,048 of 16,384. Most vectors get their nearest centroid, the others one of
        the next.

        Args:
            vectors: (n, dim)

        Returns:
            (n,) int32

        Raises:
            ShapeError: The dims differ.
        """
        if vectors.shape[1] != self.dim:
            raise ShapeError(f"vectors have dim {vectors.shape[1]}, the codebook {self.dim}")
        # For few vectors, clustering would cost more than it saves.
        if len(self) < 2048 or len(vectors) < 4096:
            return self._nearest(vectors)
        parts = [vectors[start : start + _WINDOW_ROWS] for start in range(0, len(vectors), _WINDOW_ROWS)]
        return np.concatenate([self._nearest_in_cluster(part) for part in parts])

    def similarities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_centroids) dot products; see `CentroidSearch.similarities`."""
        return self._search.similarities(vectors)

    def _nearest_in_cluster(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) nearest of the centroids that are near each vector's cluster of centroids."""
        clusters, members = self._clusters
        cluster_of = clusters._nearest(vectors)
        order = np.argsort(cluster_of, kind="stable")
        positions_of = np.split(order, np.searchsorted(cluster_of[order], np.arange(1, len(clusters))))
        nearest = np.empty(len(vectors), np.int32)

        def assign_cluster(cluster: int) -> None:
            if len(positions := positions_of[cluster]):
                search = self._search.subset(members[cluster])
                nearest[positions] = members[cluster][search.nearest(vectors[positions])]

        in_parallel(assign_cluster, range(len(clusters)), self._backend.n_threads)
        return nearest

    def _nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.int32]:
        """(n,) nearest of all centroids."""
        nearest, search = np.empty(len(vectors), np.int32), self._search

        def assign_block(block: slice) -> None:
            nearest[block] = search.nearest(vectors[block])

        blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, len(vectors), _BLOCK_ROWS)]
        in_parallel(assign_block, blocks, self._backend.n_threads)
        return nearest

    @property
    def _backend(self) -> Backend:
        return self.backend or default_backend()

    @cached_property
    def _search(self) -> CentroidSearch:
        return self._backend.search_centroids(self.centroids)

    @cached_property
    def _clusters(self) -> tuple[Codebook, list[NDArray[np.int64]]]:
        """About √K clusters of the centroids, and for each the centroids nearest to it, 16 times its share."""
        clusters = Codebook.train(self.centroids, 2 ** round(np.log2(len(self)) / 2), backend=self.backend)
        n_near = min(len(self) // 8, 16 * len(self) // len(clusters))
        similarities = clusters.centroids @ self.centroids.T
        return clusters, list(np.argpartition(-similarities, n_near, axis=1)[:, :n_near])

    def _moved(self, vectors: NDArray[np.floating]) -> Codebook:
        """Return a codebook of the mean vectors of each centroid. A centroid without vectors stays where it is."""
        import torch

        nearest = self.assign(vectors)
        sums = torch.zeros(self.centroids.shape)
        sums.index_add_(0, torch.from_numpy(nearest), torch.from_dlpack(np.ascontiguousarray(vectors)).float())
        is_alone = np.bincount(nearest, minlength=len(self)) == 0
        return Codebook(_unit(np.where(is_alone[:, None], self.centroids, sums.numpy())), self.backend)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True, eq=False)
class Assignments:
    """The distinct centroids of each document's token vectors, for rows as they were when they were assigned.

    Attributes:
        codebook: The centroids.
        row_ids: (n,) row of each document, strictly increasing.
        updated: (n,) table version that had last written each row. A row written since then has other vectors.
        offsets: (n + 1,) start of each document's centroids in `centroids`.
        centroids: (n_postings,) uint16 numbers of centroids.

    Raises:
        ShapeError: The arrays do not fit together, or a centroid does not exist. Kernels rely on this check.
    """

    codebook: Codebook
    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    offsets: NDArray[np.int64]
    centroids: NDArray[np.uint16]

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.row_ids) + 1 or len(self.updated) != len(self.row_ids):
            raise ShapeError(
                f"{len(self.row_ids)} rows need as many versions and one more offset, "
                f"got {len(self.updated)} and {len(self.offsets)}"
            )
        check_offsets(self.offsets, len(self.centroids))
        if (np.diff(self.row_ids) <= 0).any():
            raise ShapeError("row ids must increase")
        if int(self.centroids.max(initial=0)) >= max(1, len(self.codebook)):
            raise ShapeError(
                f"a document refers to centroid {self.centroids.max()}, but there are {len(self.codebook)}"
            )

    @classmethod
    def of(
        cls, codebook: Codebook, row_ids: NDArray[np.int64], updated: NDArray[np.int64], tokens: TokenBatch
    ) -> Assignments:
        """Assign the token vectors of documents, which are in the order of their row ids."""
        nearest = codebook.assign(tokens.vectors).astype(np.int64)
        # One number for each pair of document and centroid, so that one sort finds the distinct ones.
        document = np.repeat(np.arange(len(tokens)), tokens.lengths)
        pairs = np.unique(document * len(codebook) + nearest)
        lengths = np.bincount(pairs // len(codebook), minlength=len(tokens))
        return cls(codebook, row_ids, updated, offsets_of(lengths), (pairs % len(codebook)).astype(np.uint16))

    def __len__(self) -> int:
        return len(self.row_ids)

    def select(self, positions: NDArray[np.int64]) -> Assignments:
        """Return the assignments of some documents.

        Args:
            positions: Strictly increasing.
        """
        lengths = np.diff(self.offsets)[positions]
        centroids = self.centroids[ragged_rows(self.offsets[positions], lengths)]
        return Assignments(
            self.codebook, self.row_ids[positions], self.updated[positions], offsets_of(lengths), centroids
        )

    def checksums(self) -> NDArray[np.uint32]:
        """(n,) checksum of each document's row id and centroids."""
        return checksums(self.centroids, self.offsets) ^ self.row_ids.astype(np.uint32)

    def positions_in(self, row_ids: NDArray[np.int64], updated: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of each row in a version of the table.

        Args:
            row_ids: Rows of that version, strictly increasing.
            updated: Table version that last wrote each of them.

        Returns:
            (n,) positions in `row_ids`; -1 for a row that was deleted or written since it was assigned.
        """
        return positions_of_rows(self.row_ids, self.updated, row_ids, updated)


def positions_of_rows(
    row_ids: NDArray[np.int64], updated: NDArray[np.int64], among: NDArray[np.int64], among_updated: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the position of each row among the rows of a version of the table.

    Args:
        row_ids: (n,) rows.
        updated: (n,) table version that last wrote each of them.
        among: Rows of the version, strictly increasing.
        among_updated: Table version that last wrote each of these.

    Returns:
        (n,) positions in `among`; -1 for a row that is not there or was written at another version.
    """
    if not len(among):
        return np.full(len(row_ids), -1, np.int64)
    positions = np.arange(len(row_ids))
    # New rows have the highest ids, so most versions begin alike, and 100,000 rows need not be looked up.
    n_alike = min(len(row_ids), len(among))
    if not np.array_equal(row_ids[:n_alike], among[:n_alike]):
        n_alike = 0
    positions[n_alike:] = np.searchsorted(among, row_ids[n_alike:])
    np.minimum(positions, len(among) - 1, out=positions)
    is_same = (among[positions] == row_ids) & (among_updated[positions] == updated)
    return np.where(is_same, positions, -1)
