"""What BM25, the pooled vector and late interaction each find for one query, and what they miss."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from manyvec.evidence.render import printable
from manyvec.index import FilterLike, Index
from manyvec.retrieval.candidates import Lexical, Pooled

METHODS = ("bm25", "pooled", "late")
_TITLES = {"bm25": "BM25", "pooled": "the pooled vector", "late": "late interaction"}
# Ranks are looked up this far down, to tell a document that was just missed from one that was not seen.
_DEPTH = 100


@dataclass(frozen=True)
class Standing:
    """A document that at least one method found.

    Attributes:
        ranks: its rank in each of `METHODS`; None where it is not among the first 100.
    """

    id: str
    text: str
    ranks: dict[str, int | None]


@dataclass(frozen=True)
class Comparison:
    """The first `k` of each method: late interaction's in its order, then what only the others found."""

    k: int
    standings: tuple[Standing, ...]

    def missed(self, method: str) -> list[str]:
        """Ids that another method has among its first `k`, and this one has not."""
        return [s.id for s in self.standings if not _is_found(s.ranks[method], self.k)]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "missed": {method: self.missed(method) for method in METHODS}}

    def to_terminal(self) -> str:
        """A table with a line a document, ranks beyond `k` in brackets, and a line for what each method missed."""
        if not self.standings:
            return "nothing found"
        width = max(len(_shown_id(standing.id)) for standing in self.standings)
        lines = [f"{'BM25':>6}  {'pooled':>6}  {'late':>6}   {'id':<{width}}  text"]
        for standing in self.standings:
            ranks = "  ".join(f"{_shown_rank(standing.ranks[method], self.k):>6}" for method in METHODS)
            text = textwrap.shorten(printable(standing.text), 100, placeholder=" …")
            lines.append(f"{ranks}   {_shown_id(standing.id):<{width}}  {text}")
        lines.append("")
        for method in METHODS:
            missed = self.missed(method)
            found = len(self.standings) - len(missed)
            ids = f": {', '.join(map(_shown_id, missed))}" if missed else ""
            lines.append(f"{_TITLES[method]} found {found} of these {len(self.standings)}, missed {len(missed)}{ids}")
        return "\n".join(lines)


def compare(index: Index, query: str, k: int = 10, *, filter: FilterLike | None = None) -> Comparison:
    """Rank an index's documents in the three ways, with the index's own model for the latter two.

    The pooled vectors are made from all stored token vectors, which takes a while where these are many.

    Raises:
        InputError, FilterError: as `Index.search`.
    """
    # The search comes first: it refuses what is no query before work is done.
    late = [hit.id for hit in index.search(query, max(k, _DEPTH) if k > 0 else k, filter=filter)]
    if not late:  # no document passes, or the query has no token
        return Comparison(k, ())
    others = [index.rank([query], method, max(k, _DEPTH), filter=filter)[0] for method in (Lexical(), Pooled())]
    rankings = dict(zip(METHODS, [*others, late], strict=True))
    positions = {method: {id: rank for rank, id in enumerate(ids, start=1)} for method, ids in rankings.items()}
    found = list(dict.fromkeys(id for method in reversed(METHODS) for id in rankings[method][:k]))
    texts = {document.id: document.text for document in index.get(found)}
    # A document deleted meanwhile is left out.
    return Comparison(
        k,
        tuple(
            Standing(id, texts[id], {method: positions[method].get(id) for method in METHODS})
            for id in found
            if id in texts
        ),
    )


def _is_found(rank: int | None, k: int) -> bool:
    return rank is not None and rank <= k


def _shown_rank(rank: int | None, k: int) -> str:
    return "–" if rank is None else str(rank) if rank <= k else f"({rank})"


def _shown_id(id: str) -> str:
    return textwrap.shorten(printable(id), 24, placeholder="…") if len(id) > 24 else printable(id)
