"""From documents to rows: batches, what was changed in them, and the report of what was done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from manyvec.filters import ColumnType
from manyvec.store import Row, Stored
from manyvec.types import Document

# One commit holds this many documents, or this many characters: what a killed run loses at most.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class AddReport:
    """What `Index.add` did: documents new, replaced, and left alone because they were there as they are."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(self.added + other.added, self.updated + other.updated, self.unchanged + other.unchanged)

    @property
    def total(self) -> int:
        return self.added + self.updated + self.unchanged


def batches(documents: Iterable[Document | Mapping[str, Any]]) -> Iterator[list[Document]]:
    """Documents, checked, in lists that are committed together; an error comes after the batches before it."""
    batch: list[Document] = []
    n_characters = 0
    for value in documents:
        document = Document.of(value)
        if batch and (len(batch) == _BATCH_DOCUMENTS or n_characters + len(document.text) > _BATCH_CHARACTERS):
            yield batch
            batch, n_characters = [], 0
        batch.append(document)
        n_characters += len(document.text)
    if batch:
        yield batch


def to_row(document: Document, columns: Mapping[str, ColumnType]) -> Row:
    """A document as it is stored.

    Raises:
        InputError: a value under a declared filter column has another type.
    """
    filters = {
        name: kind.convert(document.metadata.get(name), f"document {document.id!r}: metadata[{name!r}]")
        for name, kind in columns.items()
    }
    return Row(document.id, document.text, document.metadata_json(), content_hash(document.text), filters)


def is_same(stored: Stored | None, row: Row, *, with_metadata: bool) -> bool:
    """Whether a row is stored with this text and, if asked, this metadata."""
    if stored is None or stored.content_hash != row.content_hash:
        return False
    return not with_metadata or stored.metadata == row.metadata


def content_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
