"""The `manyvec` command: index files, search them, measure on a judged data set."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from manyvec.errors import FilterError, InputError, ManyvecError, require
from manyvec.filters import AllOf, ColumnType, F, Filter
from manyvec.types import Document, Hit
from manyvec.vectors.codec import STORAGES

_MEASURES = ("nDCG@10", "Recall@10", "Recall@100", "MRR@10", "Success@5")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answers the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ManyvecError as error:
        print(f"manyvec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("manyvec: stopped; what was stored stays, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manyvec", description="Late-interaction search over your documents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    index = commands.add_parser("index", help="add files to an index", description=_index.__doc__)
    index.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=".jsonl, .jsonl.gz, .csv, .txt, .md, .png, .jpg, .webp, .pdf, or a folder",
    )
    index.add_argument("--db", required=True, metavar="DIR", help="where the index is or will be")
    index.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        dest="filters",
        help="metadata to filter on, when the index is new: year=int, tags=list[str]; may be repeated",
    )
    index.add_argument(
        "--storage", choices=STORAGES, help="how token vectors are kept, when the index is new (default float16)"
    )
    index.add_argument(
        "--pool-factor", type=float, metavar="N", help="keep 1 in N token vectors, when the index is new (default all)"
    )
    index.add_argument("--estimate", action="store_true", help="print what each storage would take, and stop")
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="search an index", description=_search.__doc__)
    search.add_argument("query")
    search.add_argument("--db", required=True, metavar="DIR")
    search.add_argument("-k", type=int, default=5, help="how many hits (default 5)")
    search.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="CONDITION",
        dest="conditions",
        help="'year>=2023', 'lang=en', 'tags~ir' (~: contains); all given ones must hold",
    )
    shown = search.add_mutually_exclusive_group()
    shown.add_argument("--evidence", action="store_true", help="show which words matched, and the best passage")
    shown.add_argument(
        "--compare", action="store_true", help="show what BM25, the pooled vector and late interaction each find"
    )
    search.add_argument(
        "--lexical-weight", type=float, default=0, metavar="W", help="of BM25 in the order, 0 (default) to 1"
    )
    search.set_defaults(run=_search)

    evaluate = commands.add_parser("eval", help="measure on a judged data set", description=_eval.__doc__)
    evaluate.add_argument("dataset", metavar="DIR", help="BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv")
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--db", metavar="DIR", help="keep the index here, and use it again")
    evaluate.set_defaults(run=_eval)

    info = commands.add_parser("info", help="what an index holds", description=_info.__doc__)
    info.add_argument("db", metavar="DIR")
    info.set_defaults(run=_info)

    serving = commands.add_parser("serve", help="a web page, JSON API and MCP server", description=_serve.__doc__)
    serving.add_argument("db", metavar="DIR")
    serving.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serving.add_argument("--port", type=int, default=8765, help="0 for any that is free (default 8765)")
    serving.add_argument("--token", help="what clients must send; MANYVEC_TOKEN does the same, unseen by `ps`")
    serving.set_defaults(run=_serve)

    agents = commands.add_parser("mcp", help="an MCP server on standard input and output", description=_mcp.__doc__)
    agents.add_argument("db", metavar="DIR")
    agents.set_defaults(run=_mcp)

    models = commands.add_parser("models", help="which models can be loaded", description=_models.__doc__)
    models.set_defaults(run=_models)

    for command in (index, search, evaluate, info, models):
        command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    for command in (index, evaluate):
        command.add_argument(
            "--encoder", default="minilm", metavar="NAME", help="minilm (default), a folder, a hub name"
        )
    for command in (index, search, evaluate, serving, agents):
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    return parser


def _index(options: argparse.Namespace) -> int:
    """Add the documents of files to an index; documents that are there unchanged are not encoded again. Images and the
    pages of PDFs need a model that reads images."""
    from manyvec.cli.estimate import estimate_files
    from manyvec.files.readers import find_files, read_file
    from manyvec.index import Index
    from manyvec.models.loading import load_encoder

    filters = {name: kind or "str" for name, _, kind in (text.partition("=") for text in options.filters)}
    encoder = load_encoder(options.encoder, device=options.device)
    storage = options.storage if options.storage is not None else "float16"
    pool_factor = options.pool_factor if options.pool_factor is not None else 1
    if not pool_factor >= 1:
        raise InputError(f"--pool-factor must be 1 or more, got {pool_factor}")
    reads_images = hasattr(encoder, "encode_images")
    files = list(find_files(options.paths, pages=reads_images))
    if n_left_out := len(list(find_files(options.paths, pages=True))) - len(files):
        _say(f"{n_left_out:,} images and PDFs are left out: {encoder.name} reads only texts")
    estimate = estimate_files(files, encoder, pool_factor)
    _say(
        f"{estimate['documents']:,} documents: about {estimate['tokens']:,} token vectors, "
        f"{_megabytes(estimate['bytes_on_disk'][storage])} on disk, "
        f"{_duration(estimate['seconds'])} on {encoder.device}"
    )
    if options.estimate:
        if options.json:
            print(json.dumps(estimate))
        else:
            print("\n".join(_storages(estimate)))
        return 0
    try:
        index = Index.open(options.db, encoder)
    except FileNotFoundError:
        index = Index.create(options.db, encoder, filter_columns=filters, storage=storage, pool_factor=pool_factor)
    else:
        if filters and index.filter_columns != filters:
            raise InputError(f"the index {options.db} has the filter columns {index.filter_columns or 'none'} already")
        info = index.info()
        if options.storage not in (None, info.storage) or options.pool_factor not in (None, info.pool_factor):
            raise InputError(
                f"the index {options.db} has the storage {info.storage} and the pool factor {info.pool_factor:g}"
            )
    columns = {name: ColumnType.parse(kind) for name, kind in index.filter_columns.items()}
    started = time.monotonic()
    documents = _Sized((_typed(d, columns) for file in files for d in read_file(file)), estimate["documents"])
    report = index.add(documents, show_progress=True)
    index.optimize(show_progress=True)
    result = {**asdict(report), "seconds": round(time.monotonic() - started, 1), "documents": index.count()}
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged; "
            f"{result['documents']:,} documents in {options.db}"
        )
    return 0


def _search(options: argparse.Namespace) -> int:
    """Print the documents that match a query best, with their scores."""
    index = _opened(options)
    where = _conditions(options.conditions, index.filter_columns)
    if options.compare:
        if options.lexical_weight:
            raise InputError("--compare shows BM25 and late interaction apart: leave out --lexical-weight")
        return _search_compared(index, options, where)
    hits = index.search(
        options.query, options.k, filter=where, lexical_weight=options.lexical_weight, evidence=options.evidence
    )
    if options.json:
        print(json.dumps({"query": options.query, "hits": [_record(hit) for hit in hits]}, ensure_ascii=False))
    else:
        print("\n".join(_lines(hits)) if hits else "nothing found")
    return 0


def _search_compared(index: Any, options: argparse.Namespace, where: Filter | None) -> int:
    """Print where each found document stands with BM25, the pooled vector and late interaction."""
    from manyvec.cli.compare import compare

    compared = compare(index, options.query, options.k, filter=where)
    if options.json:
        print(json.dumps({"query": options.query, **compared.to_dict()}, ensure_ascii=False))
    else:
        print(compared.to_terminal())
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Offer an index as a web page, a JSON API (described at /openapi.json) and an MCP server (at /mcp)."""
    require("fastapi", extra="serve")
    require("mcp", extra="serve")
    from manyvec.server.app import serve

    token = options.token if options.token is not None else os.environ.get("MANYVEC_TOKEN")
    serve(_opened(options), host=options.host, port=options.port, token=token)
    return 0


def _mcp(options: argparse.Namespace) -> int:
    """Offer an index to an agent as an MCP server on standard input and output, with `search` and `get_document`."""
    require("mcp", extra="serve")
    from manyvec.server.api import Api
    from manyvec.server.mcp import mcp_server

    mcp_server(Api(_opened(options))).run("stdio")
    return 0


def _opened(options: argparse.Namespace) -> Any:
    """The index, with its encoder on the device asked for."""
    from manyvec.index import Index
    from manyvec.models.loading import load_encoder

    index = Index.open(options.db)
    if options.device != "auto":
        index = Index.open(options.db, load_encoder(index.model, device=options.device, local_files_only=True))
    return index


def _eval(options: argparse.Namespace) -> int:
    """Index a judged data set, search it with all its queries, and compare BM25, mean-pooled vectors and MaxSim."""
    from manyvec.evaluation import load_beir
    from manyvec.models.loading import load_encoder

    dataset = load_beir(options.dataset, options.split)
    encoder = load_encoder(options.encoder, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        results = _compare(dataset, encoder, options.db or folder)
    if options.json:
        print(json.dumps(results))
        return 0
    print(
        f"{options.dataset}: {len(dataset.documents):,} documents, {len(dataset.queries):,} queries, {encoder.name}\n"
    )
    print(f"{'':<24}" + "".join(f"{measure:>12}" for measure in _MEASURES))
    for method, values in results.items():
        print(f"{method:<24}" + "".join(f"{values[measure]:>12.4f}" for measure in _MEASURES))
    return 0


def _info(options: argparse.Namespace) -> int:
    """Print what an index holds."""
    from manyvec.index import Index

    info = asdict(Index.open(options.db).info())
    if options.json:
        print(json.dumps(info))
    else:
        for name, value in info.items():
            written = f"{value:,}" if isinstance(value, int) else json.dumps(value) if value == {} else value
            print(f"{name.replace('_', ' '):<18} {written}")
    return 0


def _models(options: argparse.Namespace) -> int:
    """List models that people use, by family: dims of their token vectors, size, and what each is good for."""
    from manyvec.models.families import FAMILIES, table

    if options.json:
        print(json.dumps(list(table())))
        return 0
    for family in FAMILIES:
        print(f"{family.name} ({family.reads}): {family.recipe}")
        for model in family.published:
            dim = f"{model.dim} dims" if model.dim else ""
            size = f"{model.millions:g}M" if model.millions else ""
            print(f"  {model.name:<66} {dim:>9} {size:>7}  {model.good_for}")
    print("\nA folder with any other checkpoint of these families can be loaded too.")
    return 0


def _compare(dataset: Any, encoder: Any, uri: str) -> dict[str, dict[str, float]]:
    """Measures of each method by its name."""
    from manyvec.evaluation import evaluate
    from manyvec.index import Index
    from manyvec.retrieval.candidates import Exhaustive, Lexical, Pooled

    depth = 100
    index = Index.create(uri, encoder, exist_ok=True)
    index.add(dataset.documents, show_progress=True)
    index.optimize()
    # The model is measured here, not what a candidate stage leaves of it.
    index.candidates = Exhaustive()
    texts = list(dataset.queries.values())
    rankings = {
        "bm25": index.rank(texts, Lexical(), depth),
        "pooled": index.rank(texts, Pooled(), depth),
        "maxsim": [[hit.id for hit in hits] for hits in index.search_many(texts, depth)],
    }
    return {
        method: evaluate(dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)), _MEASURES)
        for method, ranked in rankings.items()
    }


@dataclass(frozen=True)
class _Sized:
    """Documents that are read as they are needed, and whose number is known: a progress bar can say how long."""

    documents: Iterator[Document]
    n: int

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Document]:
        return self.documents


def _storages(estimate: dict[str, Any]) -> Iterator[str]:
    """A line for each way to keep token vectors: bytes a document, and in all."""
    for storage, n_bytes in estimate["bytes_on_disk"].items():
        each = round(n_bytes / max(1, estimate["documents"]))
        yield f"{storage:<10} {each:>12,} bytes a document {_megabytes(n_bytes):>12} in all"


def _typed(document: Document, columns: dict[str, ColumnType]) -> Document:
    """The document with numbers where a CSV file has their digits, as far as filter columns declare them."""
    metadata = dict(document.metadata)
    for name, kind in columns.items():
        if isinstance(value := metadata.get(name), str) and not kind.is_list:
            metadata[name] = _parsed(value, kind, f"document {document.id!r}: {name!r}") if value else None
    return replace(document, metadata=metadata)


def _parsed(value: str, kind: ColumnType, what: str) -> Any:
    if kind.scalar is bool:
        if value.lower() not in ("true", "false"):
            raise InputError(f"{what} must be true or false, got {value!r}")
        return value.lower() == "true"
    if kind.scalar in (int, float):
        try:
            return kind.scalar(value)
        except ValueError:
            raise InputError(f"{what} must be a number, got {value!r}") from None
    return value


def _conditions(texts: Sequence[str], filters: dict[str, str]) -> Filter | None:
    """The filter that the options write; values are read as the declared types say."""
    parts: list[Filter] = []
    for text in texts:
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|!=|==|=|<|>|~)\s*(.*?)\s*", text, re.DOTALL)
        if not match:
            raise FilterError(f"{text!r} is no condition: write 'year>=2023', 'lang=en' or 'tags~ir'")
        name, operator, written = match.groups()
        kind = ColumnType.parse(filters[name]) if name in filters else ColumnType(str)
        column, value = F(name), _parsed(written, kind, f"the filter value of {name!r}")
        parts.append(
            {
                ">=": column >= value,
                "<=": column <= value,
                "<": column < value,
                ">": column > value,
                "!=": column != value,
                "=": column == value,
                "==": column == value,
                "~": column.contains(value),
            }[operator]
        )
    return AllOf(tuple(parts)) if parts else None


def _lines(hits: Sequence[Hit]) -> Iterator[str]:
    for hit in hits:
        yield f"{hit.rank:>3}. {hit.id}   score {hit.score:.3f}   similarity {hit.similarity:.3f}"
        text = f"page image: {hit.text}" if hit.is_page else hit.text
        shown = hit.evidence.to_terminal() if hit.evidence else textwrap.shorten(text, 240, placeholder=" …")
        yield textwrap.indent(shown, "     ")


def _record(hit: Hit) -> dict[str, Any]:
    record = {name: value for name, value in vars(hit).items() if name != "evidence"}
    return record | {"evidence": hit.evidence.to_dict()} if hit.evidence else record


def _say(text: str) -> None:
    """Progress goes to standard error, so that results alone are on standard output."""
    print(text, file=sys.stderr)


def _megabytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
