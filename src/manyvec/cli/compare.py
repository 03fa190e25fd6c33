"""Print what BM25, the pooled vector and late interaction find for one query, and what each misses."""

from __future__ import annotations

import textwrap

from manyvec.cli.output import print_table
from manyvec.evidence.render import printable
from manyvec.server.comparison import METHODS, Comparison

_TITLES = {"bm25": "BM25", "pooled": "the pooled vector", "late": "late interaction"}


def print_comparison(comparison: Comparison) -> None:
    """Print a row per document, with ranks beyond `k` in brackets, then what each method missed."""
    if not comparison.standings:
        print("nothing found")
        return
    rows = [
        (
            *(_shown_rank(standing.ranks[method], comparison.k) for method in METHODS),
            _shown_id(standing.id),
            textwrap.shorten(printable(standing.text), 100, placeholder=" …"),
        )
        for standing in comparison.standings
    ]
    print_table(["BM25", "pooled", "late", "id", "text"], rows, right=(0, 1, 2))
    print()
    n = len(rows)
    for method in METHODS:
        missed = comparison.missed(method)
        ids = f": {', '.join(map(_shown_id, missed))}" if missed else ""
        print(f"{_TITLES[method]} found {n - len(missed)} of these {n}, missed {len(missed)}{ids}")


def _shown_rank(rank: int | None, k: int) -> str:
    return "–" if rank is None else str(rank) if rank <= k else f"({rank})"


def _shown_id(id: str) -> str:
    return textwrap.shorten(printable(id), 24, placeholder="…") if len(id) > 24 else printable(id)
