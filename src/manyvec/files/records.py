"""Tables and JSON: each row or object becomes a document."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from manyvec.errors import InputError
from manyvec.files.text import open_text, read_text
from manyvec.types import Document

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
JSON = (".json", ".json.gz")
# Names under which data sets and other tools keep the text, in the order they are tried.
TEXT_KEYS = ("text", "page_content", "content", "body", "passage", "document", "contents")
# A cell or line longer than this is damage: a quote that is never closed.
_MAX_FIELD = 16 * 2**20
_MAX_JSON_BYTES = 256 * 2**20
# As much of a line tells the delimiter.
_SAMPLE = 2**20
# Excel's first line, which names the delimiter.
_SEPARATOR = re.compile(r"\ufeff?sep=(.)\r?\n?$", re.IGNORECASE)

Record = tuple[int, Mapping[str, Any]]
OnProblem = Callable[[str], None]


def read_records(
    path: Path, source: str, text_key: str | None, on_problem: OnProblem, on_note: OnProblem
) -> Iterator[Document]:
    """Yield a document for each row of a table, line of JSON or object of a JSON file.

    A record's `_id` or `id` is the document's id, `SOURCE#line=N` if it has none; `title` is put before the text; all
    other keys become metadata. Records without text are skipped.

    Args:
        path: File to read.
        source: Name of the file in ids and metadata.
        text_key: Key or column of the text; a dot leads into nested objects. By default one of `TEXT_KEYS`; a table
            with none of these is read whole, as lines of `column: value`.
        on_problem: Called with the reason for each record that is skipped because it cannot be read.
        on_note: Called with a sentence about how the file was understood.
    """
    name = path.name.lower()
    if name.endswith(TABLES):
        records = _rows(path, text_key, on_note)
        unit = "line"
    elif name.endswith(JSON_LINES):
        records, unit = _json_lines(path, on_problem), "line"
    else:
        records, unit = _json_objects(path), "item"
    n_without_text = 0
    for number, record in records:
        try:
            document = document_of(record, f"{source}#{unit}={number}" if number else source, text_key)
        except InputError as error:
            on_problem(f"{unit} {number}: {error}")
            continue
        if document is None:
            n_without_text += 1
        else:
            # A record may have a source of its own; `sync` still has to know which file it came from.
            origin = {"file": source} if document.metadata.get("source", source) != source else {}
            metadata = {"source": source, **document.metadata, **origin}
            yield Document(document.id, document.text, metadata)
    if n_without_text:
        on_note(f"{n_without_text:,} records without text were skipped")


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the file and line, and the object, of each line that is not blank; the file may be gzipped.

    Raises:
        InputError: A line is not JSON or not an object, or the file is not text or damaged.
    """

    def refuse(problem: str) -> None:
        raise InputError(f"{path}, {problem}")

    try:
        for number, record in _json_lines(path, refuse):
            yield f"{path}, line {number}", record
    except InputError as error:
        raise (error if str(error).startswith(str(path)) else InputError(f"{path}: {error}")) from None


def read_jsonl_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file as they are written there, without a `source`; those without text are
    skipped.

    Raises:
        InputError: As `read_jsonl`, or a value has the wrong type.
    """
    for where, record in read_jsonl(path):
        try:
            document = document_of(record, where)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if document is not None:
            yield document


def document_of(record: Mapping[str, Any], default_id: str, text_key: str | None = None) -> Document | None:
    """Return the document of a record, or None if it has no text.

    Raises:
        InputError: A value has the wrong type; the message names it.
    """
    rest = dict(record)
    given = [rest.pop(key, None) for key in ("_id", "id")]
    # 0 is an id; an empty cell is none.
    id = next((value for value in given if value is not None and value != ""), default_id)
    if isinstance(id, bool) or not isinstance(id, (str, int, float)):
        raise InputError(f"an id must be a string or a number, got {type(id).__name__}")
    title = rest.pop("title", None) or ""
    text = _popped_text(rest, text_key) or ""
    metadata = rest.pop("metadata", None) or {}
    if not isinstance(title, str) or not isinstance(text, str):
        raise InputError("title and text must be strings")
    if not isinstance(metadata, Mapping):
        raise InputError(f"metadata must be an object, got {type(metadata).__name__}")
    if not (title + text).strip():
        return None
    titled = {"title": title} if title else {}
    return Document(str(id), f"{title} {text}".strip(), {**titled, **rest, **metadata})


def _popped_text(record: dict[str, Any], text_key: str | None) -> Any:
    if text_key is None:
        key = next((key for key in TEXT_KEYS if isinstance(record.get(key), str) and record[key].strip()), None)
        key = key or next((key for key in TEXT_KEYS if key in record), None)
        return None if key is None else record.pop(key)
    if text_key in record:
        return record.pop(text_key)
    value: Any = record
    for part in text_key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"there is no {text_key!r} in it; it has {', '.join(map(repr, record)) or 'nothing'}")
        value = value[part]
    return value


def _rows(path: Path, text_key: str | None, on_note: OnProblem) -> Iterator[Record]:
    csv.field_size_limit(_MAX_FIELD)
    try:
        with open_text(path, newline="") as file:
            dialect = _dialect(file, path)
            file.seek(0)
            if _SEPARATOR.match(file.readline(_SAMPLE)) is None:
                file.seek(0)
            reader = csv.DictReader(_lines(file), dialect=dialect)
            columns = [column.lstrip("\ufeff") for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            if text_key is not None and text_key not in columns:
                raise InputError(f"there is no column {text_key!r}; it has {', '.join(map(repr, columns)) or 'none'}")
            has_text = text_key is not None or any(key in columns for key in TEXT_KEYS)
            if not has_text:
                on_note(f"no column is called {TEXT_KEYS[0]}: each row is read whole (--text-column names one)")
            for row in reader:
                # Cells beyond the last column have no name.
                named = {column: value for column, value in row.items() if column is not None}
                yield reader.line_num, named if has_text else _whole_row(named)
    except csv.Error as error:
        raise InputError(f"not a table: {error}") from error


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file; raise at one that is too long to be held in memory."""
    while line := file.readline(_MAX_FIELD + 1):
        if len(line) > _MAX_FIELD:
            raise InputError(f"a line or field larger than {_MAX_FIELD // 2**20} MB")
        yield line


def _whole_row(row: Mapping[str, str | None]) -> Mapping[str, Any]:
    ids = {key: value for key, value in row.items() if key in ("_id", "id")}
    rest = {key: value for key, value in row.items() if key not in ids}
    text = "\n".join(f"{column}: {value}" for column, value in rest.items() if value)
    return {**ids, "text": text, "metadata": rest}


def _dialect(file: IO[str], path: Path) -> type[csv.Dialect]:
    """Return the delimiter of a table: tabs by its suffix, else the sign that splits its first lines most evenly."""

    class Chosen(csv.excel):
        delimiter = "\t" if ".tsv" in path.name.lower() else ","

    header = file.readline(_SAMPLE)
    if named := _SEPARATOR.match(header):
        Chosen.delimiter = named[1]
        return Chosen
    lines = [header, *(file.readline(_SAMPLE) for _ in range(5))]
    if ".tsv" not in path.name.lower():
        counts = {sign: _n_columns(lines, sign) for sign in (",", ";", "\t", "|")}
        best = max(counts, key=lambda sign: counts[sign])
        if counts[best] > 1:
            Chosen.delimiter = best
    return Chosen


def _n_columns(lines: Sequence[str], delimiter: str) -> int:
    """Return the number of columns of the first line, 1 if no other line of the sample has as many or more."""
    try:
        rows = [len(row) for row in csv.reader([line for line in lines if line.strip()], delimiter=delimiter)]
    except csv.Error:
        return 1
    return rows[0] if rows and (len(rows) == 1 or any(n >= rows[0] for n in rows[1:])) else 1


def _json_lines(path: Path, on_problem: OnProblem) -> Iterator[Record]:
    with open_text(path) as lines:
        for number, line in enumerate(_lines(lines), start=1):
            if not line.strip("\ufeff \t\r\n"):
                continue
            try:
                record = _loads(line.lstrip("\ufeff"))
            except InputError as error:
                on_problem(f"line {number}: {error}")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                on_problem(f"line {number}: expected an object, got {line.strip()!r:.80}")


def _json_objects(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON file: those of its list or of the only list in its object; a lone one as number 0."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"larger than {_MAX_JSON_BYTES // 2**20} MB: write it as .jsonl")
    value = _loads(read_text(path))
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list) and any(isinstance(i, dict) for i in item)]
        has_text = any(isinstance(value.get(key), str) for key in TEXT_KEYS)
        value = lists[0] if len(lists) == 1 and not has_text else [value]
    first = 1 if isinstance(value, list) and len(value) > 1 else 0
    for number, item in enumerate(value if isinstance(value, list) else [value], start=first):
        record = item if isinstance(item, dict) else {"text": item if isinstance(item, str) else _dumps(item)}
        has_text = any(key in record for key in (*TEXT_KEYS, "title"))
        # Configuration and the like is searched as it is written.
        yield number, record if has_text else {"text": _dumps(record)}


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError("nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
