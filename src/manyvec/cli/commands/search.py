"""`manyvec search`: find documents."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyvec.cli.options import (
    DEFAULT_INDEX,
    DeviceOption,
    IndexOption,
    JsonOption,
    KOption,
    ScoreDeviceOption,
    WhereOption,
    open_index,
)
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.types import Hit

EXAMPLES = """Examples:

manyvec search 'how many vectors' -k 3

manyvec search 'late interaction' --where 'year>=2020' --where 'tags~ir' --evidence

manyvec search 'late interaction' --index ./papers --compare"""


def run(
    query: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    index: IndexOption = DEFAULT_INDEX,
    k: KOption = 5,
    where: WhereOption = None,
    per_source: Annotated[
        int | None,
        typer.Option(metavar="N", help="Show at most N passages of the same file.", show_default=False),
    ] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help="Show matched words and the best passage.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what BM25, the pooled vector and late interaction each find.")
    ] = False,
    lexical_weight: Annotated[
        str,
        typer.Option(
            "--lexical-weight",
            metavar="W",
            help="Share of BM25 in the ranking, from 0 to 1. auto is what was measured for the model (manyvec info).",
        ),
    ] = "auto",
    device: DeviceOption = "auto",
    score_device: ScoreDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index and print the best documents with their scores, in the order of the first of these."""
    if evidence and compare:
        raise typer.BadParameter("--evidence and --compare cannot be combined")
    if compare and lexical_weight != "auto":
        raise InputError("--compare ranks BM25 and late interaction separately: leave out --lexical-weight")
    # One search reads what it needs, and has no use for the rest.
    opened = open_index(index, device, score_device, **({} if compare else {"cache_bytes": 0}))
    from manyvec.cli.conditions import parse_where
    from manyvec.cli.output import print_json

    condition = parse_where(where or [], opened.filter_columns)
    if compare:
        from manyvec.cli.compare import print_comparison
        from manyvec.server.comparison import compare as compare_methods

        comparison = compare_methods(opened, query, k, filter=condition)
        if as_json:
            print_json({"query": query, **comparison.to_dict()})
        else:
            print_comparison(comparison)
        return
    hits = opened.search(
        query,
        k,
        filter=condition,
        lexical_weight="auto" if lexical_weight == "auto" else _number(lexical_weight),
        evidence=evidence,
        group_by=None if per_source is None else "source",
        group_size=1 if per_source is None else per_source,
    )
    if as_json:
        print_json({"query": query, "ordered_by": "final_score", "hits": [_record(hit) for hit in hits]})
    else:
        _print_hits(hits)


def _print_hits(hits: Sequence[Hit]) -> None:
    from rich.text import Text

    from manyvec.cli.output import console, print_indented
    from manyvec.evidence.render import printable

    if not hits:
        print("nothing found")
    for hit in hits:
        line = Text(f"{hit.rank:>3}. ").append(printable(hit.id), style="bold")
        # First the number that hits are ordered by.
        first = f"   with BM25 {hit.final_score:.3f}" if hit.is_mixed else ""
        line.append(f"{first}   score {hit.score:.3f}   similarity {hit.similarity:.3f}", style="dim")
        console().print(line)
        text = f"page image: {hit.text}" if hit.is_page else hit.text
        shortened = textwrap.shorten(printable(text), 240, placeholder=" …")
        print_indented(hit.evidence.to_terminal() if hit.evidence else shortened, 5)


def _number(written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise InputError(f"--lexical-weight takes auto or a number from 0 to 1, got {written!r}") from None


def _record(hit: Hit) -> dict[str, Any]:
    record = {name: value for name, value in vars(hit).items() if name not in ("evidence", "passage")}
    return record | {"evidence": hit.evidence.to_dict()} if hit.evidence else record
