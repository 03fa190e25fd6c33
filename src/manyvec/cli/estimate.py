"""Estimate what indexing files takes: documents, token vectors, bytes and seconds, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from manyvec.files.reading import Reading
from manyvec.files.report import FileReport
from manyvec.models.image import read_image
from manyvec.types import Document
from manyvec.vectors.codec import STORAGES, bytes_per_token

# Files are read up to this many bytes; of more, evenly spaced ones.
_READ_BYTES = 16 * 2**20
# Pieces of text that are encoded, their length in characters, and page images, each of which is as slow as many texts.
_N_PIECES, _MIN_PIECES = 48, 8
_PIECE = 600
_N_IMAGES = 2


class Estimate(TypedDict):
    """What indexing would take; `bytes_on_disk` by storage."""

    documents: int
    tokens: int
    bytes_on_disk: dict[str, int]
    seconds: int


@dataclass
class Survey:
    """What was read of the files; pieces of text are evenly spaced over all documents.

    Attributes:
        times: How many times as much there is in all files.
    """

    n_texts: int = 0
    n_characters: int = 0
    n_images: int = 0
    pieces: list[str] = field(default_factory=list)
    images: list[Document] = field(default_factory=list)
    times: float = 1.0
    _step: int = 1

    def add(self, document: Document) -> None:
        if document.image is not None:
            self.n_images += 1
            if len(self.images) < _N_IMAGES:
                self.images.append(document)
            return
        for start in range(0, len(document.text), _PIECE):
            if (self.n_characters + start) // _PIECE % self._step == 0:
                self.pieces.append(document.text[start : start + _PIECE])
            if len(self.pieces) == 2 * _N_PIECES:
                self.pieces, self._step = self.pieces[::2], 2 * self._step
        self.n_texts += 1
        self.n_characters += len(document.text)

    @property
    def expected_characters(self) -> int:
        """Length of all texts."""
        return round(self.n_characters * self.times)

    def sample(self) -> list[str]:
        """Return pieces of about a tenth of the texts, or a few of little text."""
        pieces = [piece for piece in self.pieces if piece.strip()]
        n_wanted = min(_N_PIECES, max(_MIN_PIECES, self.n_characters // _PIECE // 10))
        return pieces[:: max(1, -(-len(pieces) // n_wanted))]


def survey_files(files: Sequence[Path], reading: Reading) -> Survey:
    """Read files, or some of them if they are large, and keep pieces of their texts.

    Args:
        files: Files to index. Those that cannot be read count for nothing.
        reading: How they are read, without splitting.
    """
    sizes = [_size(file) for file in files]
    step = max(1, -(-sum(sizes) // _READ_BYTES))
    survey = Survey()
    n_read = 0
    for file, size in list(zip(files, sizes, strict=True))[::step]:
        n_before = survey.n_characters
        for document in reading.documents(file, FileReport()):
            survey.add(document)
            if survey.n_characters - n_before > _READ_BYTES:
                break
        n_read += max(1, min(size, survey.n_characters - n_before) if size > _READ_BYTES else size)
    survey.times = max(1.0, (sum(sizes) or 1) / max(1, n_read)) if step > 1 else 1.0
    return survey


def estimate_survey(survey: Survey, encoder: Any, pool_factor: float) -> Estimate:
    """Estimate what indexing takes, by encoding a small part of what was read.

    Args:
        survey: What was read of the files.
        encoder: Model that would encode them.
        pool_factor: Share of token vectors kept, as for `Index.create`.
    """
    text_tokens, text_seconds = _encode_pieces(survey, encoder)
    image_tokens, image_bytes, image_seconds = _encode_images(survey, encoder)
    n_tokens = round((text_tokens + image_tokens) * survey.times / pool_factor)
    n_plain_bytes = (survey.n_characters + image_bytes) * survey.times
    # Spans take about one byte per token once compressed.
    n_bytes = {s: round(n_tokens * (bytes_per_token(s, encoder.dim) + 1) + n_plain_bytes) for s in STORAGES}
    return {
        "documents": round((survey.n_texts + survey.n_images) * survey.times),
        "tokens": n_tokens,
        "bytes_on_disk": n_bytes,
        "seconds": round((text_seconds + image_seconds) * survey.times),
    }


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _encode_pieces(survey: Survey, encoder: Any) -> tuple[float, float]:
    """Return token vectors and seconds for all texts of a survey."""
    pieces = survey.sample()
    if not pieces:
        return 0, 0
    started = time.monotonic()
    n_tokens = encoder.encode_documents(pieces).n_tokens
    times = survey.n_characters / sum(map(len, pieces))
    return n_tokens * times, (time.monotonic() - started) * times


def _encode_images(survey: Survey, encoder: Any) -> tuple[float, float, float]:
    """Return token vectors, bytes and seconds for all images of a survey."""
    if not survey.images:
        return 0, 0, 0
    data = [d.image.read_bytes() if isinstance(d.image, Path) else d.image or b"" for d in survey.images]
    names = [f"document {document.id!r}: its image" for document in survey.images]
    images = [read_image(image, name) for image, name in zip(data, names, strict=True)]
    started = time.monotonic()
    n_tokens = encoder.encode_images(images).n_tokens
    times = survey.n_images / len(images)
    return n_tokens * times, sum(map(len, data)) * times, (time.monotonic() - started) * times
