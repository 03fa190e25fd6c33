"""Office files, web pages, notebooks and mails, converted to Markdown by markitdown. Nothing is executed or fetched."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from email import policy
from email.parser import BytesParser
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from manyvec.errors import InputError, MissingPackageError, require
from manyvec.files.text import encoding_of
from manyvec.types import Document

ZIPPED = (".docx", ".pptx", ".xlsx", ".epub")
SUFFIXES = (*ZIPPED, ".html", ".htm", ".xhtml", ".ipynb", ".msg", ".eml")
# Formats that are not read, and what their programs can save instead.
UNREAD = {".doc": ".docx", ".ppt": ".pptx", ".xls": ".xlsx", ".odt": ".docx", ".odp": ".pptx", ".ods": ".xlsx"}
UNREAD |= {".rtf": ".docx", ".pages": ".docx", ".key": ".pptx", ".numbers": ".xlsx"}
_CONVERTERS = ("Docx", "Pptx", "Xlsx", "Epub", "Html", "Ipynb", "OutlookMsg")
_MAX_BYTES = 256 * 2**20
# Office files hold text that shrinks well: bombs expand a thousandfold.
_MAX_EXPANDED, _MAX_RATIO, _ALWAYS_EXPANDED = 2**30, 200, 32 * 2**20
_SLIDE = re.compile(r"^<!-- Slide number: (\d+) -->$", re.MULTILINE)
_SHEET = re.compile(r"^## (.+)$", re.MULTILINE)


def read_office(path: Path, source: str) -> Iterator[Document]:
    """Yield the documents of a file: one per slide or sheet that has text, else one for the whole file.

    Args:
        path: File with one of `SUFFIXES`.
        source: Name of the file in ids and metadata.

    Raises:
        InputError: The file is damaged, too large, expands too much, or holds no text.
        MissingPackageError: markitdown, or a package it needs for this kind of file, is not installed.
    """
    suffix = path.suffix.lower()
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"larger than {_MAX_BYTES // 2**20} MB")
    if suffix in ZIPPED:
        _check_archive(path)
    elif suffix not in (".msg", ".eml"):
        # A binary file under the name of a web page is refused here.
        encoding_of(path)
    data = path.read_bytes()
    text, title = _mail(data) if suffix == ".eml" else _converted(data, suffix)
    metadata: dict[str, Any] = {"source": source} | ({"title": title} if title else {})
    if suffix == ".pptx":
        yield from _parts(text, _SLIDE, source, metadata, "page")
    elif suffix == ".xlsx":
        yield from _parts(text, _SHEET, source, metadata, "sheet")
    elif text.strip():
        yield Document(source, text, metadata)


def _parts(text: str, mark: re.Pattern[str], source: str, metadata: dict[str, Any], key: str) -> Iterator[Document]:
    marks = list(mark.finditer(text))
    for number, (start, following) in enumerate(zip(marks, [*marks[1:], None], strict=True), start=1):
        part = text[start.end() : following.start() if following else len(text)].strip()
        if part:
            name: Any = int(start[1]) if key == "page" else start[1]
            number = name if key == "page" else number
            yield Document(f"{source}#{key}={number}", part, {**metadata, key: name})
    if not marks and text.strip():
        yield Document(source, text, metadata)


def _check_archive(path: Path) -> None:
    """Refuse a zip file that would expand to fill the memory, by the sizes it states (zipfile reads no more)."""
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(entry.file_size for entry in archive.infolist())
    # zipfile's NotImplementedError: a kind of compression that it does not know.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"the file is damaged or encrypted: {error}") from error
    if expanded > min(_MAX_EXPANDED, max(_ALWAYS_EXPANDED, _MAX_RATIO * path.stat().st_size)):
        raise InputError(f"it expands to {expanded // 2**20:,} MB, more than is safe to read")


@lru_cache(maxsize=1)
def _converter() -> Any:
    markitdown = require("markitdown", extra="files")
    from markitdown import converters

    # Not its built-in set: that opens any zip file, and zip files in it, and has converters that fetch pages.
    converter = markitdown.MarkItDown(enable_builtins=False, enable_plugins=False)
    for name in _CONVERTERS:
        converter.register_converter(getattr(converters, f"{name}Converter")())
    return converter


def _converted(data: bytes, suffix: str) -> tuple[str, str]:
    converter = _converter()
    from markitdown import MissingDependencyException, StreamInfo

    kind = ".html" if suffix in (".htm", ".xhtml") else suffix
    try:
        result = converter.convert_stream(BytesIO(data), stream_info=StreamInfo(extension=kind))
    except Exception as error:
        if "MissingDependency" in repr(error) or isinstance(error, MissingDependencyException):
            raise MissingPackageError(f"reading {suffix} needs: pip install 'manyvec[files]'") from error
        # Its converters raise whatever their parsers do.
        reason = str(error).strip().splitlines()
        raise InputError(f"cannot be converted: {reason[0] if reason else type(error).__name__}"[:300]) from error
    text = str(result.markdown).replace("\0", "")
    return text.encode("utf-8", "replace").decode(), str(result.title or "").strip()


def _mail(data: bytes) -> tuple[str, str]:
    """Return the text and the subject of a mail; attachments are not read."""
    message = BytesParser(policy=policy.default).parsebytes(data)
    heads = [f"{name}: {message[name]}" for name in ("From", "To", "Date", "Subject") if message[name]]
    body = message.get_body(preferencelist=("plain", "html"))
    text = "" if body is None else str(body.get_content())
    if body is not None and body.get_content_subtype() == "html":
        text, _ = _converted(text.encode(), ".html")
    if not heads and not text.strip():
        raise InputError("not a mail: it has neither headers nor a text")
    return "\n".join(heads) + "\n\n" + text.replace("\r\n", "\n"), str(message["Subject"] or "")
