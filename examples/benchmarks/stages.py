"""First stages for comparison: LanceDB's own multivector search, BGE-M3's other outputs, and reciprocal rank fusion.

    vectors = M3Vectors(load_encoder("BAAI/bge-m3"))
    index.candidates = Fuse((Lexical(), M3Dense(vectors)))

They are not part of the package: on the judged sets none finds more than `manyvec.candidates.Auto` does in the same
time. This module uses private names of manyvec.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyvec import InputError
from manyvec.candidates import Candidates, Query, Scope
from manyvec.models.m3 import M3Encoder, lexical_score

Positions = NDArray[np.int64]
_BATCH = 64


@dataclass(frozen=True)
class Fuse:
    """Merge several first stages by the sum of 1 / (constant + rank) (reciprocal rank fusion, Cormack et al., 2009).

    Args:
        parts: Stages to merge. If one of them wants every document, so does the whole.
        constant: The larger it is, the more a document counts that several stages found.
    """

    parts: tuple[Candidates, ...]
    constant: float = 60

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        rankings = [part.find(query, scope, depth) for part in self.parts]
        scores: dict[int, float] = {}
        for positions in rankings:
            if positions is None:
                return None
            for rank, position in enumerate(positions.tolist(), start=1):
                scores[position] = scores.get(position, 0.0) + 1 / (self.constant + rank)
        order = sorted(scores, key=lambda position: (-scores[position], position))
        return np.array(order[: scope.n_wanted(depth)], np.int64)


@dataclass(frozen=True)
class NativeMultivector:
    """Search with LanceDB's own multivector search: exact without a vector index, approximate with one.

    Only for indexes with `float16` storage.
    """

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        import lancedb

        snapshot = scope.documents.snapshot
        table = lancedb.connect(snapshot.uri).open_table("documents")
        if "codes" in table.schema.names:
            raise InputError(f"LanceDB searches float16 token vectors; the index {snapshot.uri} stores codes")
        table.checkout(snapshot.version)
        request = table.search(np.asarray(query.tokens, np.float16), vector_column_name="tokens")
        request = request.distance_type("cosine").select(["id"]).with_row_id(True)
        request = request.where(scope.where) if scope.where else request
        rows = request.limit(scope.n_wanted(depth)).to_arrow()
        return scope.documents.positions(rows["_rowid"].to_numpy().astype(np.int64))


class M3Vectors:
    """BGE-M3's dense vectors and lexical weights for the documents of an index.

    The index stores token vectors only. These are computed from the texts when a stage first needs them, once per
    process, and again only for documents that are new or changed.
    """

    def __init__(self, encoder: M3Encoder) -> None:
        self.encoder = encoder
        self._known: dict[tuple[int, int], tuple[NDArray[np.float32], dict[int, float]]] = {}

    def of_documents(self, scope: Scope) -> list[tuple[NDArray[np.float32], dict[int, float]]]:
        """Return (dense vector, lexical weights) of each document of the version in scope."""
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
        """Return (dense vector, lexical weights) of a query."""
        output = self.encoder.encode_all([query.text])
        return output.dense[0], output.lexical[0]


@dataclass(frozen=True)
class M3Dense:
    """Rank documents by the cosine of BGE-M3's dense vectors."""

    vectors: M3Vectors

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        of_query, _ = self.vectors.of_query(query)
        dense = np.array([dense for dense, _ in self.vectors.of_documents(scope)]).reshape(-1, len(of_query))
        return _highest(dense @ of_query, scope, depth)


@dataclass(frozen=True)
class M3Lexical:
    """Rank documents by BGE-M3's lexical weights: learned term weights in place of BM25's counts."""

    vectors: M3Vectors

    def find(self, query: Query, scope: Scope, depth: int | None) -> Positions | None:
        _, of_query = self.vectors.of_query(query)
        scores = [lexical_score(of_query, weights) for _, weights in self.vectors.of_documents(scope)]
        return _highest(np.array(scores), scope, depth)


def _highest(scores: NDArray[np.floating], scope: Scope, depth: int | None) -> Positions:
    positions = np.arange(len(scores)) if scope.passing is None else scope.passing
    order = np.argsort(-scores[positions], kind="stable")
    return positions[order[: scope.n_wanted(depth)]]
