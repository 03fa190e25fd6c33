"""Candidate stages from what BGE-M3 gives beside token vectors: its dense vector and its lexical weights.

vectors = M3Vectors(load_encoder("BAAI/bge-m3"))
index.candidates = M3Dense(vectors)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyvec.models.m3 import M3Encoder, lexical_score
from manyvec.retrieval.candidates import Positions, Query, Scope

_BATCH = 64


class M3Vectors:
    """Dense vectors and lexical weights of an index's documents.

    The index keeps token vectors alone: these are made from the texts when a stage first needs them, once per process,
    and then only for documents that are new or changed.
    """

    def __init__(self, encoder: M3Encoder) -> None:
        self.encoder = encoder
        self._known: dict[tuple[int, int], tuple[NDArray[np.float32], dict[int, float]]] = {}

    def of_documents(self, scope: Scope) -> list[tuple[NDArray[np.float32], dict[int, float]]]:
        """(dense vector, lexical weights) of each document of the version in scope."""
        states = scope.documents.states
        keys = list(zip(states.row_ids.tolist(), states.updated.tolist(), strict=True))
        new = [key for key in keys if key not in self._known]
        known = {key: self._known[key] for key in keys if key in self._known}
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            rows = scope.documents.snapshot.texts([row_id for row_id, _ in part])
            output = self.encoder.encode_all([row["text"] for row in rows])
            known |= dict(zip(part, zip(output.dense, output.lexical, strict=True), strict=True))
        self._known = known
        return [known[key] for key in keys]

    def of_query(self, query: Query) -> tuple[NDArray[np.float32], dict[int, float]]:
        output = self.encoder.encode_all([query.text])
        return output.dense[0], output.lexical[0]


@dataclass(frozen=True)
class M3Dense:
    """Documents by the cosine of BGE-M3's dense vectors."""

    vectors: M3Vectors

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        wanted, _ = self.vectors.of_query(query)
        dense = np.array([dense for dense, _ in self.vectors.of_documents(scope)]).reshape(-1, len(wanted))
        return _best(dense @ wanted, scope, depth)


@dataclass(frozen=True)
class M3Lexical:
    """Documents by BGE-M3's lexical weights: learned term weights, where BM25 counts."""

    vectors: M3Vectors

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        _, wanted = self.vectors.of_query(query)
        scores = [lexical_score(wanted, weights) for _, weights in self.vectors.of_documents(scope)]
        return _best(np.array(scores), scope, depth)


def _best(scores: NDArray[np.floating], scope: Scope, depth: int | None) -> Positions:
    positions = np.arange(len(scores)) if scope.passing is None else scope.passing
    order = np.argsort(-scores[positions], kind="stable")
    return positions[order[: scope.n_wanted(depth)]]
