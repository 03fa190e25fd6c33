"""Assemble the commands, and translate errors into messages and exit statuses.

Exit statuses: 0 success, 1 failure, 2 wrong usage, 3 some files could not be read (`index`), 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from manyvec import __version__
from manyvec.cli.commands import (
    check,
    columns,
    delete,
    evaluate,
    export,
    import_,
    index,
    info,
    mcp,
    models,
    search,
    serve,
    tune,
)
from manyvec.cli.options import StorageOption, TableOption, set_place
from manyvec.errors import ManyvecError

app = typer.Typer(
    name="manyvec",
    help="Late-interaction search over your documents: many vectors per document, one exact score.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: manyvec index FOLDER && manyvec search 'a question'",
)


# What scripts may still use of version 0.1.0, and what it is called now.
_RENAMED = {
    "--db": "--db is now --index DIR",
    "--filter": "--filter is now --where CONDITION (search) or --column NAME=TYPE (index)",
}
_NAMED_INDEX_BY_POSITION = ("info", "serve", "mcp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: Command and options; those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if advice := _renamed(given):
        print(f"manyvec: {advice}", file=sys.stderr)
        return 2
    try:
        app(args=given, prog_name="manyvec")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _renamed(arguments: Sequence[str]) -> str | None:
    """Return which option replaces an old one among the arguments, or None if there is none."""
    if len(arguments) > 1 and arguments[0] in _NAMED_INDEX_BY_POSITION and not arguments[1].startswith("-"):
        return f"the index is now named by an option: manyvec {arguments[0]} --index {arguments[1]}"
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    return next((_RENAMED[name] for name in (option.partition("=")[0] for option in options) if name in _RENAMED), None)


def _with_status(run: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that expected errors become one line on standard error and an exit status.

    A command with the option `--index` also gets the options that say where else an index may lie.
    """

    @functools.wraps(run)
    def wrapped(
        *args: Any, storage_option: list[str] | None = None, table_name: str | None = None, **kwargs: Any
    ) -> None:
        set_place(storage_option, table_name)
        try:
            run(*args, **kwargs)
        except ManyvecError as error:
            print(f"manyvec: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("manyvec: interrupted; what is stored is kept, run the same command to resume", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of a pipe, such as `head`, has seen enough.
            raise typer.Exit(0) from None

    if "index" not in (signature := inspect.signature(run, eval_str=True)).parameters:
        return wrapped
    # typer reads the signature.
    place = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("storage_option", StorageOption), ("table_name", TableOption))
    ]
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *place]
    )
    wrapped.__annotations__ = {**wrapped.__annotations__, "storage_option": StorageOption, "table_name": TableOption}
    return wrapped


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"manyvec {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of `manyvec` itself."""


for _module, _name in (
    (index, "index"),
    (search, "search"),
    (info, "info"),
    (delete, "delete"),
    (export, "export"),
    (import_, "import"),
    (check, "check"),
    (columns, "columns"),
    (serve, "serve"),
    (mcp, "mcp"),
    (evaluate, "eval"),
    (tune, "tune"),
    (models, "models"),
):
    app.command(_name, help=_module.run.__doc__, epilog=_module.EXAMPLES, no_args_is_help=False)(
        _with_status(_module.run)
    )
