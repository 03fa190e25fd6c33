"""Estimate what indexing files takes: documents, token vectors, bytes and seconds, before anything is written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from manyvec.files.readers import n_pages, read_file
from manyvec.models.image import read_image
from manyvec.types import Document
from manyvec.vectors.codec import STORAGES, bytes_per_token

# Number of documents that are encoded to estimate the others, and of page images, each as slow as many texts.
_N_SAMPLED = 32
_N_SAMPLED_PAGES = 2


class Estimate(TypedDict):
    """What indexing would take; `bytes_on_disk` by storage."""

    documents: int
    tokens: int
    bytes_on_disk: dict[str, int]
    seconds: int


_Parts = tuple[int, float, float, float]
"""Documents, token vectors before pooling, bytes of texts or images, seconds."""


def estimate_files(files: Sequence[Path], encoder: Any, pool_factor: float) -> Estimate:
    """Count the documents of files, and estimate the rest by encoding a few of them.

    Args:
        files: Files that `read_file` can read.
        encoder: Model that would encode them.
        pool_factor: Share of token vectors kept, as for `Index.create`.
    """
    counts = {file: n_pages(file) for file in files}
    texts = (document for file in files if not counts[file] for document in read_file(file))
    first_pages = (next(read_file(file)) for file in files if counts[file])
    parts = (_estimate_texts(texts, encoder), _estimate_pages(first_pages, sum(counts.values()), encoder))
    _, n_vectors, n_plain_bytes, seconds = map(sum, zip(*parts, strict=True))
    n_documents = sum(part[0] for part in parts)
    n_tokens = round(n_vectors / pool_factor)
    # Spans take about one byte per token once compressed.
    n_bytes = {s: round(n_tokens * (bytes_per_token(s, encoder.dim) + 1) + n_plain_bytes) for s in STORAGES}
    return {"documents": n_documents, "tokens": n_tokens, "bytes_on_disk": n_bytes, "seconds": round(seconds)}


def _estimate_pages(documents: Iterator[Document], n_pages: int, encoder: Any) -> _Parts:
    sample = list(itertools.islice(documents, _N_SAMPLED_PAGES))
    if not sample:
        return 0, 0, 0, 0
    images = [read_image(d.image or b"", f"document {d.id!r}: its image") for d in sample]
    started = time.monotonic()
    n_tokens = encoder.encode_images(images).n_tokens
    seconds = time.monotonic() - started
    sizes = [d.image.stat().st_size if isinstance(d.image, Path) else len(d.image or b"") for d in sample]
    times = n_pages / len(sample)
    return n_pages, n_tokens * times, sum(sizes) * times, seconds * times


def _estimate_texts(documents: Iterable[Document], encoder: Any) -> _Parts:
    """Extrapolate from evenly spaced documents."""
    sample: list[str] = []
    n_documents, n_characters, step = 0, 0, 1
    for document in documents:
        if n_documents % step == 0:
            sample.append(document.text)
            if len(sample) == 2 * _N_SAMPLED:
                sample, step = sample[::2], 2 * step
        n_documents += 1
        n_characters += len(document.text)
    if not sample:
        return 0, 0, 0, 0
    started = time.monotonic()
    per_character = encoder.encode_documents(sample).n_tokens / sum(map(len, sample))
    seconds = (time.monotonic() - started) * n_characters / sum(map(len, sample))
    return n_documents, per_character * n_characters, n_characters, seconds
