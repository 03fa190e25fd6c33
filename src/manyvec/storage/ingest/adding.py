"""From documents to stored rows: batches, what has changed in them, and their token vectors."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError, StoreError
from manyvec.filters import ColumnType
from manyvec.filters.values import shown, write_metadata
from manyvec.models.image import encode_pages, image_bytes
from manyvec.models.precomputed import Vectors
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.storage.ingest.progress import Progress
from manyvec.storage.ingest.reuse import StoredContent
from manyvec.storage.schema import Manifest, Row, content_hash, filter_value
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store
from manyvec.types import Document
from manyvec.vectors.batch import TokenBatch, offsets_of, pool

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# One commit holds at most this many documents (or this share of those already stored, if that is more) and at most this
# many characters or bytes of images: an interrupted run loses no more than that. LanceDB looks through all ids at each
# commit, so with batches of a fixed size the time to add n documents would grow with the square of n.
_BATCH_DOCUMENTS = 256
_BATCH_SHARE = 1 / 64
_BATCH_CHARACTERS = 1_000_000
_BATCH_IMAGE_BYTES = 32 * 2**20
_BATCH_VECTOR_BYTES = 256 * 2**20
# Vectors that were stored in 4 or 2 bits are this far from unit length at most.
_LENGTH_TOLERANCE = 0.1


@dataclass(frozen=True)
class AddReport:
    """Result of `Index.add`.

    Attributes:
        added: Documents whose id is new.
        updated: Documents that replaced one with the same id.
        unchanged: Documents that were already stored with the same text, image and metadata.
        blank: Documents without any text or token that were left out (`on_blank="skip"`).
        repeated: Ids that occurred more than once in the call, each once; only the last document of each is stored.
        reused: How many of the added and updated documents got the vectors of a stored one (`reuse_vectors=True`).
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    blank: int = 0
    repeated: tuple[str, ...] = ()
    reused: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.blank + other.blank,
            tuple(dict.fromkeys((*self.repeated, *other.repeated))),
            self.reused + other.reused,
        )

    @property
    def total(self) -> int:
        """All documents of the call."""
        return self.added + self.updated + self.unchanged + self.blank


@dataclass(frozen=True)
class Changes:
    """The rows of a batch that have to be written.

    Attributes:
        metadata: Rows that are stored with the same text and image, but with other metadata.
        content: Rows that are new or have another text or image, which must be encoded.
        n_new: How many of these have an id that is not stored.
    """

    metadata: list[Row]
    content: list[Row]
    n_new: int

    def __len__(self) -> int:
        return len(self.metadata) + len(self.content)

    @classmethod
    def between(cls, rows: Sequence[Row], snapshot: Snapshot) -> Changes:
        """Compare rows with distinct ids with what is stored."""
        stored = snapshot.find([row.id for row in rows])
        metadata, content, n_new = [], [], 0
        for row in rows:
            found = stored.get(row.id)
            n_new += found is None
            if found is None or found.content_hash != row.content_hash:
                content.append(row)
            elif found.metadata != row.metadata:
                metadata.append(row)
        return cls(metadata, content, n_new)


def add_documents(
    store: Store,
    documents: Iterable[Document | Mapping[str, Any]],
    get_encoder: Callable[[], Encoder],
    *,
    on_blank: str = "raise",
    adopt_vectors: bool = False,
    reuse_vectors: bool = False,
    show_progress: bool = False,
    expected_characters: int | None = None,
) -> AddReport:
    """Check, encode and store documents, batch by batch; see `Index.add`."""
    report, checked, seen = AddReport(), Checked(documents, on_blank), set[int]()
    options: dict[str, Any] = {"skips_blank": on_blank == "skip", "adopts_vectors": adopt_vectors, "seen": seen}
    options["content"] = StoredContent(store.snapshot()) if reuse_vectors else None
    with Progress(documents, expected_characters=expected_characters, is_shown=show_progress) as progress:
        try:
            for batch in batches(checked, lambda: store.latest().count()):
                with progress.batch(batch):
                    report += add_batch(store, batch, get_encoder, **options)
        except (InputError, EncoderError, StoreError) as error:
            if not report.total:
                raise
            note = f"{error} (The {report.total} documents before it are stored; add all of them again to resume.)"
            raise type(error)(note) from error
    return report + AddReport(blank=checked.n_blank)


class Checked:
    """Documents of one call of `Index.add`, checked one by one as they are read.

    Args:
        documents: Documents, or dicts as `Document.of` takes them.
        on_blank: `raise` an error for a dict without any text or image, or `skip` it.

    Attributes:
        n_blank: Number of dicts that were skipped so far.
    """

    def __init__(self, documents: Iterable[Document | Mapping[str, Any]], on_blank: str) -> None:
        if on_blank not in ("raise", "skip"):
            raise InputError(f"on_blank must be 'raise' or 'skip', got {shown(on_blank)}")
        self.n_blank = 0
        self._documents = documents
        self._skips = on_blank == "skip"

    def __iter__(self) -> Iterator[Document]:
        for position, value in enumerate(self._documents):
            if self._skips and _is_blank(value):
                self.n_blank += 1
                logger.info("document %d is blank and left out: %s", position, shown(value))
                continue
            try:
                yield _with_bytes(Document.of(value))
            except InputError as error:
                metadata = value.get("metadata") if isinstance(value, Mapping) else None
                known = f", metadata {shown(metadata)}" if metadata else ""
                raise type(error)(f"{error} (at position {position}{known})") from error


def _is_blank(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.get("image") is not None:
        return False
    text = value.get("text")
    return text is None or (isinstance(text, str) and not text.strip())


def batches(documents: Iterable[Document], count_stored: Callable[[], int] = int) -> Iterator[list[Document]]:
    """Yield documents in lists that are committed together. An error comes after the batches before it.

    Args:
        documents: Documents with images as bytes.
        count_stored: Returns how many documents the index holds already; large indexes get large batches. It is called
            only if there are documents for more than one batch.
    """
    n_stored: int | None = None
    batch: list[Document] = []
    fill = 0.0
    for document in documents:
        share = len(document.text) / _BATCH_CHARACTERS
        if isinstance(document.image, bytes):
            share += len(document.image) / _BATCH_IMAGE_BYTES
        if document.vectors is not None:
            share += document.vectors.nbytes / _BATCH_VECTOR_BYTES
        if len(batch) >= _BATCH_DOCUMENTS and n_stored is None:
            n_stored = count_stored()
        if batch and (len(batch) >= max(_BATCH_DOCUMENTS, _BATCH_SHARE * (n_stored or 0)) or fill + share > 1):
            yield batch
            n_stored = None if n_stored is None else n_stored + len(batch)
            batch, fill = [], 0.0
        batch.append(document)
        fill += share
    if batch:
        yield batch


def add_batch(
    store: Store,
    documents: Sequence[Document],
    get_encoder: Callable[[], Encoder],
    *,
    skips_blank: bool = False,
    adopts_vectors: bool = False,
    seen: set[int] | None = None,
    content: StoredContent | None = None,
) -> AddReport:
    """Store a batch of documents, encoding only those whose text or image has changed.

    Args:
        store: The index.
        documents: Documents with images as bytes. If an id occurs more than once, the last document wins.
        get_encoder: Returns the index's encoder; called only if a document must be encoded or has an image.
        skips_blank: Leave out documents in which the encoder finds no token, instead of raising an error.
        adopts_vectors: Accept vectors that come with documents, even if a model of this library encodes the index.
        seen: Hashes of the ids of earlier batches of the same call; those of this batch are added to it.
        content: Stored documents whose vectors are taken instead of encoding the same text or image again.

    Raises:
        InputError: A document cannot be encoded or stored. Nothing with another text or image was written.
        StoreError: The database cannot be written, or another index has taken the place of this one meanwhile.
    """
    snapshot = store.latest()
    generation, manifest = snapshot.key.generation, snapshot.manifest
    repeated = _repeated_ids(documents, set() if seen is None else seen)
    latest = {document.id: document for document in documents}
    rows = [to_row(document, manifest.columns) for document in latest.values()]
    if page := next((row for row in rows if row.image is not None), None):
        _check_page(page, get_encoder(), store)
    _check_vectors(rows, store, adopts_vectors=adopts_vectors)
    changes = Changes.between(rows, snapshot)
    changed = changes.content
    n_metadata = len(changes.metadata)
    if n_metadata and store.update_metadata(changes.metadata, generation=generation) < n_metadata:
        # Rows that another process has deleted or changed meanwhile have no token vectors to keep.
        again = Changes.between(changes.metadata, store.latest())
        changed = [*changed, *again.metadata, *again.content]
    if not changed:
        return AddReport(changes.n_new, len(changes) - changes.n_new, len(documents) - len(changes), repeated=repeated)
    known: list[int] = []
    reused: TokenBatch | None = None
    if content is not None and content.generation == generation:
        known, reused = content.find(changed)
    others = sorted(set(range(len(changed))) - set(known))
    parts = [] if reused is None else [reused]
    if others:
        parts.append(encode([changed[i] for i in others], get_encoder, manifest, allow_empty=skips_blank))
    tokens = TokenBatch.concatenate(parts).select(np.argsort([*known, *others]))
    filled = np.flatnonzero(tokens.lengths)
    n_new, n_blank = changes.n_new, len(changed) - len(filled)
    if n_blank:
        blank = [row.id for row, length in zip(changed, tokens.lengths, strict=True) if not length]
        logger.info("documents without tokens are left out: %s", shown(blank))
        n_new -= len(set(blank) - store.find(blank).keys())
        changed, tokens = [changed[i] for i in filled], tokens.select(filled)
    if changed:
        store.upsert(changed, tokens, generation=generation)
    n_unchanged = len(documents) - len(changes)
    return AddReport(n_new, len(changes) - n_blank - n_new, n_unchanged, n_blank, repeated, len(known))


def rows_of(
    store: Store,
    documents: Iterable[Document | Mapping[str, Any]],
    get_encoder: Callable[[], Encoder],
    *,
    adopts_vectors: bool = False,
) -> pa.Table:
    """Return documents as rows of an index, checked and encoded, without writing them; see `Index.rows`."""
    return store.rows(*encoded_rows(store, documents, get_encoder, adopts_vectors=adopts_vectors))


def encoded_rows(
    store: Store,
    documents: Iterable[Document | Mapping[str, Any]],
    get_encoder: Callable[[], Encoder],
    *,
    on_blank: str = "raise",
    adopts_vectors: bool = False,
) -> tuple[list[Row], TokenBatch]:
    """Return documents as rows, checked, and their token vectors, in order. Nothing is written.

    Args:
        store: The index, or any shard of a cluster, whose rows are alike.
        documents: Documents with distinct ids.
        get_encoder: Returns the index's encoder; called only if a document must be encoded or has an image.
        on_blank: `raise` an error for a document without text or tokens, or `skip` it.
        adopts_vectors: Accept vectors that come with documents; see `add_batch`.

    Raises:
        InputError: A document cannot be stored, or an id occurs more than once.
    """
    checked = list(Checked(documents, on_blank))
    if repeated := _repeated_ids(checked, set()):
        raise InputError(f"ids must be distinct, but these occur more than once: {shown(list(repeated))}")
    rows = [to_row(document, store.manifest.columns) for document in checked]
    if page := next((row for row in rows if row.image is not None), None):
        _check_page(page, get_encoder(), store)
    _check_vectors(rows, store, adopts_vectors=adopts_vectors)
    if not rows:
        return [], TokenBatch.from_list([], dim=store.manifest.dim)
    tokens = encode(rows, get_encoder, store.manifest, allow_empty=on_blank == "skip")
    filled = np.flatnonzero(tokens.lengths)
    return [rows[i] for i in filled], tokens.select(filled)


def _repeated_ids(documents: Sequence[Document], seen: set[int]) -> tuple[str, ...]:
    """Return the ids that occurred before, and add the hashes of all to `seen`."""
    repeated = []
    for document in documents:
        # The hashes of a million ids take 64 MB, the ids would take more. Equal hashes of 64 bits are unlikely.
        if (key := hash(document.id)) in seen:
            repeated.append(document.id)
        seen.add(key)
    return tuple(dict.fromkeys(repeated))


def to_row(document: Document, columns: Mapping[str, ColumnType]) -> Row:
    """Return a document as it is stored.

    Raises:
        InputError: The value of a declared filter column has another type.
    """
    filter_values = {name: filter_value(document.metadata, name, kind, document.id) for name, kind in columns.items()}
    image = document.image if isinstance(document.image, bytes) else None
    vectors, spans = document.vectors, document.spans
    hashed = content_hash(document.text, image, None if vectors is None else _as_bytes(vectors, spans))
    metadata = write_metadata(document.metadata, filter_values)
    return Row(document.id, document.text, metadata, hashed, filter_values, image, vectors, spans)


def _as_bytes(vectors: NDArray[np.floating], spans: NDArray[np.int32] | None) -> bytes:
    # float16, so that vectors which come back from an export are the same ones.
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16).tobytes() + (b"" if spans is None else spans.tobytes())


def encode(
    rows: Sequence[Row], get_encoder: Callable[[], Encoder], manifest: Manifest, *, allow_empty: bool = False
) -> TokenBatch:
    """Return the pooled token vectors of rows, in order: those they came with, else of the image, else of the text.

    Raises:
        InputError: An image cannot be read, or an image or text has no tokens and `allow_empty` is False; the document
            is named.
        EncoderError: The encoder returned another number of items, or another dim.
    """
    kinds = [(row.vectors is not None, row.image is not None) for row in rows]
    order = sorted(range(len(rows)), key=kinds.__getitem__)
    parts = []
    # Separate calls: models that read images refuse even an empty list of texts.
    for (is_given, are_pages), positions in itertools.groupby(order, key=kinds.__getitem__):
        group = [rows[i] for i in positions]
        if is_given:
            parts.append(pool(_given_tokens(group), manifest.pool_factor, are_pages=are_pages))
        else:
            parts.append(_encode_group(group, get_encoder(), manifest, are_pages=are_pages, allow_empty=allow_empty))
    return TokenBatch.concatenate(parts).select(np.argsort(order))


def _given_tokens(rows: Sequence[Row]) -> TokenBatch:
    """Return the vectors that came with rows; tokens of rows without spans cover no characters."""
    vectors = [np.asarray(row.vectors, np.float32) for row in rows]
    spans = [row.spans for row in rows]
    filled = [np.full((len(v), 2), -1, np.int32) if s is None else s for s, v in zip(spans, vectors, strict=True)]
    return TokenBatch(np.concatenate(vectors), offsets_of([*map(len, vectors)]), np.concatenate(filled))


def _encode_group(
    rows: Sequence[Row], encoder: Encoder, manifest: Manifest, *, are_pages: bool, allow_empty: bool
) -> TokenBatch:
    if are_pages:
        # `_check_page` has made sure of the type.
        names = [f"document {row.id!r}: its image" for row in rows]
        tokens = encode_pages(cast("ImageReader", encoder), [row.image or b"" for row in rows], names)
    else:
        tokens = encoder.encode_documents([row.text for row in rows])
    if len(tokens) != len(rows) or tokens.dim != manifest.dim:
        raise EncoderError(f"{encoder.name} returned {tokens!r} for {len(rows)} documents of dim {manifest.dim}")
    if len(empty := np.flatnonzero(tokens.lengths == 0)) and not allow_empty:
        row, source = rows[empty[0]], "image" if are_pages else "text"
        raise InputError(
            f"document {row.id!r}: {encoder.name} finds no token in its {source} (metadata {shown(row.metadata)})"
        )
    return pool(tokens, manifest.pool_factor, are_pages=are_pages)


def _check_vectors(rows: Sequence[Row], store: Store, *, adopts_vectors: bool) -> None:
    """Refuse vectors that this index cannot take, and documents without vectors if nothing can encode them."""
    manifest = store.manifest
    outside = Vectors.of(manifest.model, manifest.dim, manifest.fingerprint)
    for row in rows:
        if row.vectors is None:
            if outside is not None:
                raise InputError(
                    f"document {row.id!r} has no vectors: the index {store.uri} holds token vectors of "
                    f"{manifest.model} that are computed elsewhere, and cannot encode it"
                )
            continue
        if outside is None and not adopts_vectors:
            raise InputError(
                f"document {row.id!r} comes with vectors, but {manifest.model} encodes the index {store.uri}: leave "
                "them out, or store them as vectors of that model with adopt_vectors=True"
            )
        if row.vectors.shape[1] != manifest.dim:
            raise ShapeError(
                f"document {row.id!r}: its vectors have {row.vectors.shape[1]} dimensions, those of the index "
                f"{store.uri} have {manifest.dim}"
            )
        if outside is not None and outside.normalized:
            lengths = np.linalg.norm(np.asarray(row.vectors, np.float32), axis=1)
            if len(wrong := np.flatnonzero(abs(lengths - 1) > _LENGTH_TOLERANCE)):
                raise ShapeError(
                    f"document {row.id!r}: the vector at position {wrong[0]} has the length {lengths[wrong[0]]:.3g}, "
                    "not 1: normalise the vectors, or create the index with Vectors(..., normalized=False)"
                )


def _check_page(page: Row, encoder: Encoder, store: Store) -> None:
    """Refuse a row with an image that cannot be encoded or stored."""
    if not isinstance(encoder, ImageReader):
        raise InputError(
            f"document {page.id!r} has an image, and {encoder.name} reads only texts: build an index with a model "
            "that reads images (see `manyvec models`), or leave the image out"
        )
    if not store.manifest.images:
        raise InputError(
            f"document {page.id!r} has an image, and the index {store.uri} was made by a manyvec that kept none: "
            "build the index again"
        )


def _with_bytes(document: Document) -> Document:
    if not isinstance(document.image, Path):
        return document
    return replace(document, image=image_bytes(document.image, f"document {document.id!r}: its image"))
