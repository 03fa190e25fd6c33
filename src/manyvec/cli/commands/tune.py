"""`manyvec tune`: adapt a model to judged queries, and measure what that gained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from manyvec.cli.options import Device, JsonOption
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.training import TuneReport

EXAMPLES = "Example: manyvec tune minilm --train ./my-data --out ./my-model"
Method: TypeAlias = Literal["full", "lora", "projection"]


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model to start from: minilm, a folder, or a name on the hub.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the tuned model.")],
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="PATH",
            help="Folder in BEIR layout with qrels/train.tsv, or a file of JSON lines with query, positive and "
            "optionally negatives, scores and group.",
            show_default=False,
        ),
    ] = None,
    from_index: Annotated[
        str | None,
        typer.Option(
            "--from-index",
            metavar="DIR",
            help="Index whose headings, titles and first sentences ask, instead of --train.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="full trains all weights, lora small matrices that are merged, projection only the token projection."
        ),
    ] = "full",
    dim: Annotated[
        int | None,
        typer.Option(metavar="N", help="Dimensions of the tuned token vectors (default: the model's).", min=1),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="N", help="Time for training.")] = 60,
    negatives: Annotated[int, typer.Option(metavar="N", help="Hard negatives for each pair.", min=0)] = 2,
    holdout: Annotated[float, typer.Option(metavar="SHARE", help="Share of the queries to hold out.")] = 0.1,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Folder in BEIR layout whose test split is measured before and after. May be repeated.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="Cross-encoder whose scores are distilled.", show_default=False)
    ] = None,
    interpolate: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Share of the tuned weights in the result: 0 to 1, or auto to measure it."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split, the negatives and the order of pairs.")] = 0,
    device: Annotated[Device, typer.Option("--device", help="Where to train.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Adapt a model to your own judged queries. Nothing is written, with exit status 1, if nothing was gained."""
    from manyvec.cli.output import print_json, say
    from manyvec.index import Index
    from manyvec.training import tune

    if (train is None) == (from_index is None):
        raise InputError("tune needs either --train or --from-index")
    report = tune(
        model,
        train or Index.open(from_index),
        out,
        method=method,
        dim=dim,
        minutes=minutes,
        negatives=negatives,
        holdout=holdout,
        unseen=unseen or (),
        teacher=teacher,
        interpolate=_share(interpolate),
        seed=seed,
        device=device,
        on_progress=lambda point: say(str(point)),
    )
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if report.out is None:
        raise typer.Exit(1)


def _share(value: str) -> Any:
    if value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise InputError(f"--interpolate must be a number from 0 to 1 or 'auto', got {value!r}") from None


def _print(report: TuneReport) -> None:
    from manyvec.cli.output import print_table

    rows = [("held out", str(report.before), str(report.after), str(report.gain))]
    rows += [(name, str(one.before), str(one.after), str(one.gain)) for name, one in report.unseen.items()]
    print_table(["nDCG@10", "before", "after", "gain"], rows, right=range(1, 4))
    for reason, n in report.dropped.items():
        print(f"dropped: {n:,} × {reason}")
    if report.out is not None:
        print(f"Indexes with it search with lexical_weight={report.lexical_weight:g}, which ranked these queries best.")
        print(f"The tuned model is in {report.out}: manyvec index FOLDER --encoder {report.out}")
