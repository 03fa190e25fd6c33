"""From documents to rows: batches, what was changed in them, the report of what was done, rows in fewer bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from manyvec.codebook import Codebook, n_centroids_for
from manyvec.columns import Row
from manyvec.filters import ColumnType
from manyvec.store import BUILD_WINDOW_BYTES, RowStates, Snapshot, Store, Stored, windows
from manyvec.tokens import TokenBatch, offsets_of
from manyvec.types import Document

# One commit holds this many documents, or a share of what there is already, but no more than this many characters: what
# a killed run loses at most. LanceDB looks through all ids at each commit: with batches of one size the time to add n
# documents would grow with the square of n.
_BATCH_DOCUMENTS = 256
_BATCH_SHARE = 1 / 64
_BATCH_CHARACTERS = 1_000_000
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
    """Documents, checked, in lists that are committed together; an error comes after the batches before it."""
    batch: list[Document] = []
    n_characters = 0
    for value in documents:
        document = Document.of(value)
        is_full = len(batch) >= max(_BATCH_DOCUMENTS, _BATCH_SHARE * n_stored)
        if batch and (is_full or n_characters + len(document.text) > _BATCH_CHARACTERS):
            yield batch
            n_stored += len(batch)
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


def pool(tokens: TokenBatch, factor: float) -> TokenBatch:
    """Average token vectors of each text that are near each other, until 1 in `factor` is left.

    sentence-transformers' hierarchical pooling (https://arxiv.org/abs/2409.14683): the first token stays as it is. A
    mean has the span of the token it is nearest to.
    """
    if factor <= 1:
        return tokens
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    pooling = HierarchicalTokenPooling(pool_factor=factor)
    vectors, spans = [], []
    for text, vectors_of_text in enumerate(tokens):
        means = pooling.pool_one(torch.from_numpy(np.array(vectors_of_text, np.float32))).numpy()
        vectors.append(means)
        if tokens.spans is not None:
            own = tokens.spans[tokens.offsets[text] : tokens.offsets[text + 1]]
            spans.append(own[(means @ vectors_of_text.T).argmax(axis=1)])
    return TokenBatch(
        np.concatenate(vectors),
        offsets_of([len(means) for means in vectors]),
        np.concatenate(spans) if tokens.spans is not None else None,
    )


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
            tokens = snapshot.stored_tokens(states.row_ids[rows], is_coded=False, spans=True)
            store.recode(ids, [stored[id].content_hash for id in ids], tokens)
            bar.update(len(rows))
