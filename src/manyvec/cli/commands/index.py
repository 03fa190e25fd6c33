"""`manyvec index`: add files to an index, or keep it in agreement with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manyvec.cli.options import (
    DEFAULT_INDEX,
    ColumnOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    StorageFormatOption,
    place_options,
)
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.cli.estimate import Estimate
    from manyvec.cluster import AnyIndex
    from manyvec.files import FileReport, SyncReport
    from manyvec.models.protocol import Encoder
    from manyvec.storage.ingest.adding import AddReport
    from manyvec.types import Document

EXAMPLES = """Examples:

manyvec index docs/

manyvec index docs/ --sync

manyvec index docs/ --watch

manyvec index papers.jsonl notes/ --index ./papers --column year=int --column 'tags=list\\[str]'

manyvec index docs/ --index s3://bucket/docs --ray auto --shards 8

manyvec index reports/ --encoder vidore/colqwen2.5-v0.2 --estimate

Exit status: 0 all was read, 1 nothing could be read, 3 some files could not be read."""
_SOME_NOT_READ = 3
_SHOWN_PROBLEMS = 50
# Documents that --watch writes before it merges files and extends the lists again; new ones are found all the same.
_OPTIMIZE_AFTER = 1000
_SHARDS_ON_RAY = 8


def run(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files or folders: text of any kind, Markdown, code, CSV, JSON, PDF; "
            "office files, HTML, notebooks and mails with the extra 'files'.",
            show_default=False,
        ),
    ],
    index: IndexOption = DEFAULT_INDEX,
    sync: Annotated[
        bool, typer.Option("--sync", help="Delete documents under PATH whose file, page or passage is gone.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Sync, and again whenever files change, until Ctrl-C (extra 'files').")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would change, and change nothing.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Read only these files of folders.", show_default=False)
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out these files and folders.", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Read hidden and vendored files, and those named by .gitignore files.")
    ] = False,
    pages: Annotated[
        Literal["text", "image", "both"] | None,
        typer.Option(help="Read PDF pages so (default: image if the model reads images).", show_default=False),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or key of the text in tables and JSON.", show_default=False),
    ] = None,
    passage_tokens: Annotated[
        int, typer.Option(metavar="N", help="Split files into passages of at most N tokens; 0 keeps them whole.")
    ] = 128,
    overlap: Annotated[int, typer.Option(metavar="N", help="Tokens that a passage repeats of the one before.")] = 0,
    root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder that ids are relative to (default: the working folder, remembered)."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be read.")] = False,
    column: ColumnOption = None,
    storage: StorageFormatOption = None,
    pool_factor: Annotated[
        float | None,
        typer.Option(metavar="N", help="Keep 1 in N token vectors in a new index (default: all).", show_default=False),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep the first N dimensions in a new index, of a model tuned with --dim (default: all).",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(metavar="N", help="Spread a new index over N shards; see manyvec.cluster.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Encode on a Ray cluster, for an index in shards: its address, auto, or local (extra 'ray').",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="NAME",
            help="Model: minilm, a folder, or a name on the Hugging Face hub (default: the index's own, or minilm).",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    estimate: Annotated[bool, typer.Option("--estimate", help="Print what each storage would need, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the documents of files to an index. Unchanged documents are not encoded again.

    Files that cannot be read are listed at the end, and do not stop the others. Hidden and vendored files of folders
    are left out, and those that .gitignore files name.
    """
    if pool_factor is not None and not pool_factor >= 1:
        raise InputError(f"--pool-factor must be at least 1, got {pool_factor}")
    if passage_tokens < 0:
        raise InputError(f"--passage-tokens must be a non-negative integer, got {passage_tokens}")
    if watch and (dry_run or strict or as_json):
        raise InputError("--watch goes with neither --dry-run nor --strict nor --json")
    if ray is not None and (watch or sync or dry_run):
        raise InputError("--ray goes with neither --sync nor --watch nor --dry-run")
    from manyvec.files.report import FileReport, StrictReport
    from manyvec.files.selection import Selection

    # What can be wrong with paths and options is found before a model is loaded.
    files = list(Selection(include or (), exclude or (), everything).find(paths, FileReport()))
    from manyvec.cli.conditions import parse_columns
    from manyvec.cli.roots import remember_root, remembered_root

    columns = parse_columns(column or [])
    existing = _existing(index, columns, storage, pool_factor, dim, shards)
    if ray is not None and not estimate:
        _join(ray, existing)
    base = remembered_root(index, root)
    from manyvec.cli.estimate import estimate_survey, survey_files
    from manyvec.cli.output import duration, megabytes, print_json, say
    from manyvec.files.reading import Reading, read
    from manyvec.files.splitting import Splitter, tokenizer_of
    from manyvec.files.syncing import sync as sync_files
    from manyvec.models.loading import load_encoder
    from manyvec.models.prefix import with_dim
    from manyvec.models.protocol import ImageReader

    model_name = encoder or (existing.model if existing else "minilm")
    whole_model = load_encoder(model_name, device=device)
    model = with_dim(whole_model, min(existing.info().dim, whole_model.dim) if existing else dim)
    reads_images = isinstance(model, ImageReader)
    splitter = Splitter(passage_tokens, overlap, tokenizer_of(model)) if passage_tokens else None
    reading = Reading(base, pages or ("image" if reads_images else "text"), text_column, splitter)
    survey = survey_files(files, replace(reading, splitter=None))
    if estimate or existing is None:
        expected = estimate_survey(survey, model, pool_factor or 1)
        say(
            f"{expected['documents']:,} documents: about {expected['tokens']:,} token vectors, "
            f"{megabytes(expected['bytes_on_disk'][storage or 'float16'])} on disk, "
            f"{duration(expected['seconds'])} on {whole_model.device}"
        )
        if estimate:
            _print_estimate(expected, as_json=as_json)
            return
    report = StrictReport() if strict else FileReport()
    place = "memory://" if dry_run and existing is None else index
    in_shards = None if place == "memory://" else shards or (_SHARDS_ON_RAY if ray is not None else None)
    opened = _open_or_create(place, model, columns, storage, pool_factor, in_shards, is_new=existing is None)
    if place == index and not dry_run:
        remember_root(index, base)
    options: dict[str, Any] = {
        "root": base,
        "pages": reading.pages,
        "text_key": text_column,
        "splitter": splitter,
        "include": include or (),
        "exclude": exclude or (),
        "everything": everything,
        "report": report,
    }
    prepare = _typed(opened, report, base)
    progress: dict[str, Any] = {"show_progress": True, "expected_characters": survey.expected_characters}
    if watch:
        _watch(opened, paths, report, {**options, "prepare": prepare})
        return
    started = time.monotonic()
    if sync or dry_run:
        done = sync_files(opened, paths, dry_run=dry_run, prepare=prepare, delete=sync, **progress, **options)
        changes = _changes(done)
    else:
        documents = prepare(read(paths, **options))
        if ray is not None:
            added = _build(opened, documents, model_name, device)
        else:
            added = opened.add(documents, on_blank="skip", **progress)
        report.add_repeated(added.repeated)
        changes = {"added": added.added, "updated": added.updated, "unchanged": added.unchanged, "blank": added.blank}
    if not dry_run and any(n for name, n in changes.items() if name not in ("unchanged", "blank")):
        opened.optimize(show_progress=True)
    seconds = round(time.monotonic() - started, 1)
    n_documents = opened.count()
    if as_json:
        counts = {"deleted": 0, **changes, "seconds": seconds, "documents": n_documents}
        print_json({**counts, "files": report.to_dict()})
    else:
        print(f"{_line(changes, would_be=dry_run)}; {n_documents:,} documents in {index}")
        _print_report(report)
    if not report.n_files and not changes.get("deleted"):
        if not as_json:
            say("manyvec: nothing could be read")
        raise typer.Exit(1)
    if report.n_problems:
        raise typer.Exit(_SOME_NOT_READ)


def _join(address: str, existing: AnyIndex | None) -> None:
    """Connect to a Ray cluster, before anything is written."""
    from manyvec import cluster
    from manyvec.cluster.ray.joining import join

    if existing is not None and not isinstance(existing, cluster.Cluster):
        raise InputError(f"--ray needs an index in shards, and {existing.uri} has none: make another one with --shards")
    join(address)


def _build(index: AnyIndex, documents: Iterator[Document], encoder: str, device: str) -> AddReport:
    """Add documents with the machines of a Ray cluster."""
    from manyvec import cluster

    options = place_options().get("storage_options")
    return cluster.build(index.uri, documents, encoder=encoder, on_blank="skip", device=device, storage_options=options)


def _changes(done: SyncReport) -> dict[str, int]:
    counts = {"added": done.added, "moved": len(done.moved), "updated": done.updated, "unchanged": done.unchanged}
    return {**counts, "deleted": len(done.deleted)}


def _line(changes: dict[str, int], *, would_be: bool = False) -> str:
    """Return counts as words; of those that are seldom, only what there is."""
    verb = "would be " if would_be else ""
    shown = [(name, n) for name, n in changes.items() if n or name in ("added", "updated", "unchanged")]
    return ", ".join(f"{n:,} {verb if name == 'added' else ''}{name}" for name, n in shown)


def _watch(index: AnyIndex, paths: list[str], report: FileReport, options: dict[str, Any]) -> None:
    """Sync, and print a line for each set of changes, until the user interrupts."""
    from manyvec.cli.output import say
    from manyvec.files.syncing import watch

    # Each sync makes a report of its own; `report` has the values that did not fit their columns.
    del options["report"]
    n_written = _OPTIMIZE_AFTER
    for done in watch(index, paths, **options):
        print(f"{time.strftime('%H:%M:%S')} {_line(_changes(done))}; {index.count():,} documents", flush=True)
        for problem in (*done.files.problems, *report.problems):
            say(f"not read: {problem.path}: {problem.reason}")
        report.problems.clear()
        n_written += done.n_changes
        if done.n_changes and n_written >= _OPTIMIZE_AFTER:
            index.optimize()
            n_written = 0


def _existing(
    uri: str,
    columns: dict[str, str],
    storage: str | None,
    pool_factor: float | None,
    dim: int | None,
    shards: int | None,
) -> AnyIndex | None:
    """Return the index if there is one, after checking that it was created with these options."""
    if "://" not in uri and not Path(uri).expanduser().is_dir():
        return None
    from manyvec import cluster
    from manyvec.errors import IndexNotFoundError
    from manyvec.models.precomputed import Vectors

    try:
        index = cluster.open_index(uri, **place_options())
    except IndexNotFoundError:
        return None
    if columns and index.filter_columns != columns:
        raise InputError(
            f"the index {uri} already has the filter columns {index.filter_columns or 'none'}: "
            f"add others with `manyvec columns --index {uri} --column NAME=TYPE`"
        )
    info = index.info()
    if shards not in (None, getattr(info, "shards", 1)):
        raise InputError(
            f"the index {uri} has {getattr(info, 'shards', 1)} shards: manyvec.cluster.reshard changes that"
        )
    if Vectors.of(info.model, info.dim, index.fingerprint) is not None:
        raise InputError(
            f"the index {uri} holds token vectors of {info.model} that are computed elsewhere: add documents with "
            "`manyvec import`"
        )
    if storage not in (None, info.storage) or pool_factor not in (None, info.pool_factor):
        raise InputError(
            f"the index {uri} already has the storage {info.storage} and the pool factor {info.pool_factor:g}"
        )
    if dim not in (None, info.dim):
        raise InputError(f"the index {uri} already has {info.dim} dims")
    return index


def _open_or_create(
    uri: str,
    encoder: Encoder,
    columns: dict[str, str],
    storage: str | None,
    pool_factor: float | None,
    shards: int | None,
    *,
    is_new: bool,
) -> AnyIndex:
    from manyvec import cluster
    from manyvec.index import Index

    if not is_new:
        return cluster.open_index(uri, encoder, **place_options())
    options: dict[str, Any] = {"storage": storage or "float16", "pool_factor": pool_factor or 1}
    if shards is None:
        return Index.create(uri, encoder, filter_columns=columns, **options, **place_options())
    place = place_options()
    if place.get("table_name") is not None:
        raise InputError("--shards goes without --table-name: each shard has a database of its own")
    options["storage_options"] = place.get("storage_options")
    return cluster.create_local(uri, encoder, shards=shards, filter_columns=columns, **options)


def _typed(index: AnyIndex, report: FileReport, root: Path) -> Callable[[Iterator[Document]], Iterator[Document]]:
    """Return a function that converts the strings of filter columns to their types; what cannot be is reported."""
    from manyvec.cli.conditions import typed
    from manyvec.filters import ColumnType

    columns = {name: ColumnType.parse(kind) for name, kind in index.filter_columns.items()}

    def convert(documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            try:
                yield replace(document, metadata=typed(document.metadata, columns, f"document {document.id!r}"))
            except InputError as error:
                source = document.metadata.get("file", document.metadata.get("source", ""))
                report.add_problem((root / str(source)).as_posix(), str(error), is_whole_file=False)

    return convert


def _print_report(report: FileReport) -> None:
    from manyvec.cli.output import print_table
    from manyvec.evidence.render import printable

    if report.files:
        rows = [(kind, f"{n:,}", f"{report.documents[kind]:,}") for kind, n in sorted(report.files.items())]
        print()
        print_table(["files", "read", "documents"], rows, right=(1, 2))
    for note in report.notes:
        print(printable(f"note: {note}"))
    if report.left_out:
        print("left out: " + ", ".join(f"{n:,} {reason}" for reason, n in report.left_out.items()))
    if report.problems:
        print(f"\nnot read ({report.n_problems:,}):")
        print_table(["", ""], [(p.path, p.reason) for p in report.problems[:_SHOWN_PROBLEMS]])
        if len(report.problems) > _SHOWN_PROBLEMS:
            print(f"and {report.n_problems - _SHOWN_PROBLEMS:,} more: --json lists them")


def _print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    from manyvec.cli.output import megabytes, print_json, print_table

    if as_json:
        print_json(estimate)
        return
    n_documents = max(1, estimate["documents"])
    rows = [
        (storage, f"{round(n_bytes / n_documents):,}", megabytes(n_bytes))
        for storage, n_bytes in estimate["bytes_on_disk"].items()
    ]
    print_table(["storage", "bytes per document", "total"], rows, right=(1, 2))
