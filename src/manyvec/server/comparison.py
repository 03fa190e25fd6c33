"""Compare what BM25, the pooled vector and late interaction find for one query, and what each misses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from manyvec.candidates import Lexical, Pooled
from manyvec.cluster import AnyIndex
from manyvec.filters import FilterLike

METHODS = ("bm25", "pooled", "late")
# Ranks are determined down to this depth, to tell a near miss from a document that a method does not find at all.
_DEPTH = 100


@dataclass(frozen=True)
class Standing:
    """A document that at least one method found.

    Attributes:
        ranks: Rank of the document by method (see `METHODS`); None if it is not among the first 100.
    """

    id: str
    text: str
    ranks: dict[str, int | None]


@dataclass(frozen=True)
class Comparison:
    """The first `k` documents of each method: those of late interaction in its order, then those only others found."""

    k: int
    standings: tuple[Standing, ...]

    def missed(self, method: str) -> list[str]:
        """Return the ids that another method ranks among its first `k`, and this one does not."""
        return [s.id for s in self.standings if not _is_found(s.ranks[method], self.k)]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as values that JSON can hold."""
        return {**asdict(self), "missed": {method: self.missed(method) for method in METHODS}}


def compare(index: AnyIndex, query: str, k: int = 10, *, filter: FilterLike | None = None) -> Comparison:
    """Rank the documents of an index in all three ways; the latter two use the index's model.

    Pooled vectors are computed from all stored token vectors, which takes a while for a large index.

    Args:
        index: Index or cluster to search.
        query: Query string.
        k: Number of documents that count as found by a method.
        filter: Condition on documents, as for `Index.search`.

    Raises:
        InputError, FilterError: As `Index.search`.
    """
    # The search comes first because it checks the arguments.
    hits = index.search(query, max(k, _DEPTH) if k > 0 else k, filter=filter, lexical_weight=0)
    late = [hit.id for hit in hits]
    if not late:  # no document passes the filter, or the query has no tokens
        return Comparison(k, ())
    others = [index.rank([query], method, max(k, _DEPTH), filter=filter)[0] for method in (Lexical(), Pooled())]
    rankings = dict(zip(METHODS, [*others, late], strict=True))
    positions = {method: {id: rank for rank, id in enumerate(ids, start=1)} for method, ids in rankings.items()}
    found = list(dict.fromkeys(id for method in reversed(METHODS) for id in rankings[method][:k]))
    texts = {document.id: document.text for document in index.get(found)}
    # A document that was deleted in the meantime is left out.
    return Comparison(
        k,
        tuple(
            Standing(id, texts[id], {method: positions[method].get(id) for method in METHODS})
            for id in found
            if id in texts
        ),
    )


def _is_found(rank: int | None, k: int) -> bool:
    """Return whether a rank is among the first `k`."""
    return rank is not None and rank <= k
