"""Options that several commands share, and opening the index they name."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from manyvec.errors import IndexNotFoundError

if TYPE_CHECKING:
    from manyvec.cluster import AnyIndex

DEFAULT_INDEX = "./.manyvec"
# The values that the library accepts, written out so that `--help` and completion import neither numpy nor torch.
Storage: TypeAlias = Literal["float16", "int8", "int4", "residual", "binary"]
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
ScoreDevice: TypeAlias = Literal["cpu", "cuda"]


IndexOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--index",
        "-i",
        metavar="DIR",
        envvar="MANYVEC_INDEX",
        help="Folder of the index, or its URI in a bucket (s3://, gs://, az://).",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
EncoderOption: TypeAlias = Annotated[
    str,
    typer.Option("--encoder", "-e", metavar="NAME", help="Model: minilm, a folder, or a name on the Hugging Face hub."),
]
DeviceOption: TypeAlias = Annotated[
    Device, typer.Option("--device", help="Where the model runs; with cuda, documents are scored there as well.")
]
ScoreDeviceOption: TypeAlias = Annotated[
    ScoreDevice | None,
    typer.Option("--score-device", help="Where documents are scored, if elsewhere than --device.", show_default=False),
]
WhereOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Condition on a filter column: 'year>=2023', 'lang=en', or 'tags~ir' for contains. "
        "May be repeated: all conditions must hold.",
        show_default=False,
    ),
]
KOption: TypeAlias = Annotated[int, typer.Option("-k", metavar="N", help="Maximum number of hits.")]
ColumnOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=TYPE",
        help="Metadata to filter on: year=int, lang=str, 'tags=list\\[str]'. May be repeated.",
        show_default=False,
    ),
]
StorageFormatOption: TypeAlias = Annotated[
    Storage | None,
    typer.Option("--storage", help="How a new index stores token vectors (default: float16).", show_default=False),
]
StorageOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        envvar="MANYVEC_STORAGE_OPTIONS",
        show_envvar=True,
        help="LanceDB's option for a bucket, such as region or endpoint. May be repeated. Put credentials into the "
        "environment: other users of this machine see what a command line says.",
        show_default=False,
    ),
]
TableOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--table-name", metavar="NAME", help="Table of the index, if several share a database.", show_default=False
    ),
]
# Where the index of the running command lies, beside its URI: every command has the two options above.
_place: ContextVar[dict[str, Any]] = ContextVar("_place", default={})  # noqa: B039  # never changed


def set_place(storage_options: Sequence[str] | None, table_name: str | None) -> None:
    """Keep where the index of this command lies, for `place_options`."""
    pairs = [option.partition("=") for option in storage_options or ()]
    if wrong := [key for key, equals, _ in pairs if not key or not equals]:
        # Not the whole option, which may hold a password.
        raise typer.BadParameter(f"--storage-option takes KEY=VALUE, got no value for {wrong[0][:20]!r}")
    _place.set({"storage_options": {key: value for key, _, value in pairs}, "table_name": table_name})


def place_options() -> dict[str, Any]:
    """Return the arguments of `Index.open` and `Index.create` that say where the index lies, beside its URI."""
    return _place.get()


def check_exists(uri: str) -> None:
    """Raise `IndexNotFoundError` if `uri` is a local folder that does not exist, before anything heavy is imported."""
    if "://" not in uri and not Path(uri).expanduser().is_dir():
        raise IndexNotFoundError(
            f"there is no index at {uri}: make one with `manyvec index PATH`, or name another with --index DIR"
        )


def open_index(uri: str, device: Device = "auto", score_device: ScoreDevice | None = None, **options: Any) -> AnyIndex:
    """Open an existing index; its model is loaded on `device` when it is first needed."""
    check_exists(uri)
    from manyvec import cluster

    return cluster.open_index(uri, device=device, score_device=score_device, **place_options(), **options)
