"""Decode text files: UTF-8, UTF-16 and UTF-32 with or without a mark, else what charset-normalizer recognizes."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from manyvec.errors import InputError

# Larger single texts would be held in memory several times over.
MAX_TEXT_BYTES = 512 * 2**20
# A gzip file may expand to this many bytes, or to this many times its size if that is less once it passes 64 MB.
_MAX_EXPANDED, _MAX_RATIO, _ALWAYS_EXPANDED = 4 * 2**30, 200, 64 * 2**20
_CHUNK = 2**20
# So many bytes are enough to recognize an encoding.
_SAMPLE = 64 * 2**10
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Return the text of a file, line ends as `\\n`.

    Raises:
        InputError: The file is binary, in an unknown encoding, damaged or too large.
        OSError: The file cannot be read.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"larger than {MAX_TEXT_BYTES // 2**20} MB")
    with open_text(path) as file:
        parts: list[str] = []
        n_characters = 0
        while part := file.read(_CHUNK):
            parts.append(part)
            n_characters += len(part)
            if n_characters > MAX_TEXT_BYTES:
                raise InputError(f"larger than {MAX_TEXT_BYTES // 2**20} MB")
    return "".join(parts).removeprefix("\ufeff")


@contextmanager
def open_text(path: Path, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a text file, gzipped or not, in the encoding it is in. Characters are never replaced silently.

    Args:
        path: Path of the file.
        newline: As for `open`; "" leaves line ends as they are.

    Raises:
        InputError: As `read_text`.
    """
    encoding = encoding_of(path)
    try:
        with _opened(path) as binary, io.TextIOWrapper(binary, encoding, newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"changed while it was read, or not {encoding}: {error.reason}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"the gzip file is damaged: {error}") from error


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file.

    Raises:
        InputError: The file is binary, or its encoding is not recognized.
    """
    try:
        with _opened(path) as file:
            start = file.read(_SAMPLE)
            for mark, encoding in _MARKS:
                if start.startswith(mark):
                    return encoding
            if b"\0" in start:
                return _encoding_with_zeros(start)
            # All of the file is looked at: one byte that is not UTF-8 may stand at its end.
            decoder = codecs.getincrementaldecoder("utf-8")()
            chunk = start
            try:
                while chunk:
                    decoder.decode(chunk)
                    chunk = file.read(_CHUNK)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                # What is not UTF-8 tells the encoding; the plain letters before it do not.
                around = error.object[max(0, error.start - _SAMPLE) : error.start + _SAMPLE]
                return _guess(around)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"the gzip file is damaged: {error}") from error
    return "utf-8"


def _encoding_with_zeros(start: bytes) -> str:
    """Return which UTF-16 a text without a mark is in: every other byte of European text is zero."""
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > 0.3 * len(start) / 2 and min(even, odd) < 0.05 * len(start) / 2:
        encoding = "utf-16-be" if even > odd else "utf-16-le"
        text = start.decode(encoding, "replace")
        if sum(c.isprintable() or c.isspace() for c in text) > 0.9 * len(text):
            return encoding
    raise InputError("a binary file")


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(sample)
    best = matches.best()
    if best is None or best.chaos > 0.3:
        raise InputError("neither text in a known encoding nor a known binary format")
    # Western European encodings share most letters, and short texts fit many: the common one is preferred.
    western = next((match for match in matches if match.encoding == "cp1252"), None)
    if western is not None and western.chaos <= best.chaos + 0.12:
        return "cp1252"
    return best.encoding


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that stops when it expands beyond reason."""

    n_read = 0
    limit = _MAX_EXPANDED

    def read(self, size: int | None = -1) -> bytes:
        return self._counted(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._counted(super().read1(size))

    def _counted(self, data: bytes) -> bytes:
        self.n_read += len(data)
        if self.n_read > self.limit:
            raise InputError(f"expands to more than {self.limit // 2**20} MB")
        return data


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            yield file
        return
    with _BoundedGzip(path) as packed:
        packed.limit = min(_MAX_EXPANDED, max(_ALWAYS_EXPANDED, _MAX_RATIO * path.stat().st_size))
        yield cast("IO[bytes]", packed)
