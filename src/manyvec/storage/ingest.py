"""From documents to rows: batches, what was changed in them, the report of what was done, rows in fewer bytes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyvec.errors import EncoderError, InputError
from manyvec.filters import ColumnType
from manyvec.models.image import read_image
from manyvec.storage.schema import Manifest, Row
from manyvec.storage.table import BUILD_WINDOW_BYTES, RowStates, Snapshot, Store, Stored, windows
from manyvec.types import Document
from manyvec.vectors.batch import TokenBatch, pool
from manyvec.vectors.codebook import Codebook, n_centroids_for

if TYPE_CHECKING:
    from manyvec.models.loading import Encoder

# One commit holds this many documents, or a share of what there is already, but no more than this many characters or
# bytes of images: what a killed run loses at most. LanceDB looks through all ids at each commit: with batches of one
# size the time to add n documents would grow with the square of n.
_BATCH_DOCUMENTS = 256
_BATCH_SHARE = 1 / 64
_BATCH_CHARACTERS = 1_000_000
_BATCH_IMAGE_BYTES = 32 * 2**20
# Images are decoded so many at a time: about 200 MB of pixels for pages at 150 dots an inch.
_DECODED_PAGES = 32
# Centroids for residuals are drawn once there are so many token vectors; until then these are kept as float16.
MIN_RESIDUAL_TOKENS = 65_536


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


def batches(documents: Iterable[Document | Mapping[str, Any]], n_stored: int = 0) -> Iterator[list[Document]]:
    """Documents, checked, in lists that are committed together; an error comes after the batches before it.

    Their images are bytes, read from the files that they lie in.
    """
    batch: list[Document] = []
    fill = 0.0
    for value in documents:
        document = _with_bytes(Document.of(value))
        share = len(document.text) / _BATCH_CHARACTERS
        if isinstance(document.image, bytes):
            share += len(document.image) / _BATCH_IMAGE_BYTES
        if batch and (len(batch) >= max(_BATCH_DOCUMENTS, _BATCH_SHARE * n_stored) or fill + share > 1):
            yield batch
            n_stored += len(batch)
            batch, fill = [], 0.0
        batch.append(document)
        fill += share
    if batch:
        yield batch


def _with_bytes(document: Document) -> Document:
    if not isinstance(document.image, Path):
        return document
    try:
        return replace(document, image=document.image.read_bytes())
    except OSError as error:
        raise InputError(f"document {document.id!r}: its image cannot be read: {error}") from error


def to_row(document: Document, columns: Mapping[str, ColumnType]) -> Row:
    """A document as it is stored.

    Raises:
        InputError: a value under a declared filter column has another type.
    """
    filter_values = {
        name: kind.convert(document.metadata.get(name), f"document {document.id!r}: metadata[{name!r}]")
        for name, kind in columns.items()
    }
    image = document.image if isinstance(document.image, bytes) else None
    hashed = content_hash(document.text, image)
    return Row(document.id, document.text, document.metadata_json(), hashed, filter_values, image)


def is_same(stored: Stored | None, row: Row, *, with_metadata: bool) -> bool:
    """Whether a row is stored with this text, this image and, if asked, this metadata."""
    if stored is None or stored.content_hash != row.content_hash:
        return False
    return not with_metadata or stored.metadata == row.metadata


def content_hash(text: str, image: bytes | None = None) -> str:
    """A hash of the text; of a page, followed by a colon and that of its image."""
    parts = [text.encode()] if image is None else [text.encode(), image]
    return ":".join(hashlib.blake2b(part, digest_size=16).hexdigest() for part in parts)


def check_page(page: Row, encoder: Encoder, store: Store) -> None:
    """Refuse a row with an image where it cannot be encoded, or not be kept."""
    if not hasattr(encoder, "encode_images"):
        raise InputError(
            f"document {page.id!r} has an image, and {encoder.name} reads only texts: build an index with a model "
            "that reads images (see `manyvec models`), or leave the image out"
        )
    if not store.manifest.images:
        raise InputError(
            f"document {page.id!r} has an image, and the index {store.uri} was made by a manyvec that kept none: "
            "build the index again"
        )


def encode(rows: Sequence[Row], encoder: Encoder, manifest: Manifest) -> TokenBatch:
    """Token vectors of rows, pooled, in their order: of the image where a row has one, else of the text.

    Raises:
        InputError: an image cannot be read, or there is no token in it or in a text; the document is named.
        EncoderError: the encoder gave something else than it was asked for.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].image is None)
    # Not both in one call: a model of pages refuses even an empty list of texts.
    parts = [
        _encode_alike([rows[i] for i in group], encoder, manifest, are_pages=are_pages)
        for are_pages, group in itertools.groupby(order, key=lambda i: rows[i].image is not None)
    ]
    return TokenBatch.concatenate(parts).select(np.argsort(order))


def _encode_alike(rows: Sequence[Row], encoder: Encoder, manifest: Manifest, *, are_pages: bool) -> TokenBatch:
    tokens = _encode_pages(rows, encoder) if are_pages else encoder.encode_documents([row.text for row in rows])
    if len(tokens) != len(rows) or tokens.dim != manifest.dim:
        raise EncoderError(f"{encoder.name} gave {tokens!r} for {len(rows)} documents of dim {manifest.dim}")
    if len(empty := np.flatnonzero(tokens.lengths == 0)):
        source = "image" if are_pages else "text"
        raise InputError(f"document {rows[empty[0]].id!r}: {encoder.name} finds no token in its {source}")
    return pool(tokens, manifest.pool_factor, are_pages=are_pages)


def _encode_pages(rows: Sequence[Row], encoder: Any) -> TokenBatch:
    parts = []
    for start in range(0, len(rows), _DECODED_PAGES):
        part = rows[start : start + _DECODED_PAGES]
        # Decoded here, so that an error names the document.
        images = [read_image(row.image or b"", f"document {row.id!r}: its image") for row in part]
        parts.append(encoder.encode_images(images))
    return TokenBatch.concatenate(parts)


def train_codebook(snapshot: Snapshot, states: RowStates, n_centroids: int) -> Codebook:
    """A codebook from about 8 token vectors for each centroid, drawn at random from four times as many.

    Those of a few documents, all taken, would be too much alike.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(states.row_ids))
    n_drawn = max(65_536, 8 * n_centroids)
    n_documents = int(np.searchsorted(np.cumsum(states.n_tokens[order]), 4 * n_drawn)) + 1
    documents = np.sort(order[:n_documents])
    share = min(1.0, n_drawn / max(1, int(states.n_tokens[documents].sum())))
    parts = []
    for window in windows(snapshot.token_bytes(states, documents), BUILD_WINDOW_BYTES):
        vectors = snapshot.tokens(states.row_ids[documents[window]]).vectors
        parts.append(vectors[np.sort(rng.choice(len(vectors), max(1, round(share * len(vectors))), replace=False))])
    return Codebook.train(np.concatenate(parts), n_centroids)


def recode(store: Store, *, show_progress: bool) -> None:
    """Take what `residual` storage still keeps as float16 into codes; the centroids are drawn once there are enough.

    Stopped half-way, the rest stays as it is and is searched.
    """
    if store.manifest.storage != "residual":
        return
    from tqdm.auto import tqdm

    snapshot = store.snapshot()
    states = snapshot.states()
    pending = np.flatnonzero(~states.is_coded)
    n_tokens = int(states.n_tokens.sum())
    if store.codec is None and n_tokens >= MIN_RESIDUAL_TOKENS:
        store.use_codec(train_codebook(snapshot, states, n_centroids_for(n_tokens)))
    if store.codec is None or not len(pending):
        return
    with tqdm(total=len(pending), unit=" documents", desc="codes", disable=not show_progress) as bar:
        for window in windows(snapshot.token_bytes(states, pending), BUILD_WINDOW_BYTES):
            rows = pending[window]
            ids = states.ids[rows].tolist()
            stored = snapshot.find(ids)
            tokens = snapshot.uncoded_tokens(states.row_ids[rows], spans=True)
            store.recode(ids, [stored[id].content_hash for id in ids], tokens)
            bar.update(len(rows))
