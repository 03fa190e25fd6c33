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
