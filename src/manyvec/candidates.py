"""Candidate generators: which documents are worth an exact score.

Each takes one query and answers with rows of one table version. The filter is applied before anything is ranked, so
that no filtered search comes back short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.store import Snapshot


@dataclass(frozen=True)
class Query:
    """A query as its users wrote it and as its encoder read it: `tokens` is (n_tokens, dim)."""

    text: str
    tokens: NDArray[np.floating]


class Candidates(Protocol):
    """A first stage."""

    def find(self, query: Query, snapshot: Snapshot, *, depth: int, where: str | None) -> NDArray[np.int64]:
        """Row ids of at most `depth` documents that pass `where`, best first."""
        ...


@dataclass(frozen=True)
class Exhaustive:
    """Every document: the exact answer, and the reference for every other generator. `depth` does not limit it."""

    def find(self, query: Query, snapshot: Snapshot, *, depth: int, where: str | None) -> NDArray[np.int64]:
        return snapshot.row_ids(where)


@dataclass(frozen=True)
class Lexical:
    """BM25 over the words of the text, from LanceDB's full-text index; rows not indexed yet are scanned."""

    def find(self, query: Query, snapshot: Snapshot, *, depth: int, where: str | None) -> NDArray[np.int64]:
        return np.array([row_id for row_id, _ in snapshot.match(query.text, depth, where)], np.int64)


class Pooled:
    """Cosine of mean token vectors: what a single-vector search with the same model would find.

    The means are made once for each version of the table, from all its token vectors.
    """

    def __init__(self) -> None:
        self._version = -1
        self._row_ids = np.empty(0, np.int64)
        self._vectors = np.empty((0, 0), np.float32)

    def find(self, query: Query, snapshot: Snapshot, *, depth: int, where: str | None) -> NDArray[np.int64]:
        if self._version != snapshot.version:
            self._row_ids = snapshot.row_ids()
            parts = [self._row_ids[start : start + 256] for start in range(0, len(self._row_ids), 256)]
            self._vectors = np.concatenate([snapshot.tokens(part).pooled() for part in parts] or [self._vectors])
            self._version = snapshot.version
        row_ids, vectors = self._row_ids, self._vectors
        if where is not None:
            passing = np.isin(row_ids, snapshot.row_ids(where))
            row_ids, vectors = row_ids[passing], vectors[passing]
        similarities = vectors @ query.tokens.mean(axis=0)
        return row_ids[np.argsort(-similarities, kind="stable")[:depth]]
