"""Convert between LangChain documents and manyvec documents.

Every function returns new objects and leaves the caller's documents and metadata unchanged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import LangSmithRetrieverParams

import manyvec

_PLACE = ("storage_options", "connection", "table_name")
logger = logging.getLogger(__name__)
# Blank documents that a warning describes one by one.
_MAX_NAMED = 5


def to_langchain(hit: manyvec.Hit, *, scores: bool = True) -> Document:
    """Convert a hit. If it has a passage, that is the text of the document, with where it is from in the metadata.

    Args:
        hit: Hit of a search.
        scores: Whether to add `score` and `relevance_score` to the metadata, and `final_score` if BM25 took part.
            Evidence is always added. Stored keys of the same name are kept instead.
    """
    added: dict[str, Any] = {"score": hit.score, "relevance_score": clipped(hit.similarity)} if scores else {}
    if scores and hit.is_mixed:
        added["final_score"] = hit.final_score
    if hit.evidence is not None:
        added["evidence"] = hit.evidence.to_dict()
    document = Document(page_content=hit.text, id=hit.id, metadata={**added, **hit.metadata})
    return with_passage(document, hit.passage)


def as_stored(document: manyvec.Document | manyvec.Hit) -> Document:
    """Convert a stored document or a hit, with exactly the metadata it was stored with."""
    return Document(page_content=document.text, id=document.id, metadata=dict(document.metadata))


def with_passage(document: Document, passage: manyvec.Passage | None) -> Document:
    """Copy a document with a passage in place of its text, and with where that is from in the metadata."""
    if passage is None:
        return document
    metadata = {**document.metadata, **passage.origin(document.id, document.page_content, document.metadata)}
    return document.model_copy(update={"page_content": passage.text, "metadata": metadata})


def with_scores(document: Document, score: float, similarity: float) -> Document:
    """Copy a document with these scores in the metadata, replacing those of an earlier stage."""
    scores = {"score": score, "relevance_score": clipped(similarity)}
    # What an earlier stage has ordered by.
    kept = {key: value for key, value in document.metadata.items() if key != "final_score"}
    return document.model_copy(update={"metadata": {**kept, **scores}})


def to_manyvec(document: Document, id: str | None = None) -> manyvec.Document:
    """Convert a document to be stored.

    Args:
        document: Document with text and metadata.
        id: Id to store it under. Defaults to the document's own id, and without one to a hash of its text and metadata.

    Raises:
        InputError: The document cannot be stored; the message calls a document without an id `(no id)`.
    """
    id = id if id is not None else document.id
    if id is not None:
        return manyvec.Document(id, document.page_content, document.metadata)
    # Validate under a placeholder first: what passes can be written as JSON, which the id is a hash of.
    unnamed = manyvec.Document("(no id)", document.page_content, document.metadata)
    return replace(unnamed, id=_content_id(unnamed))


def page_document(path: Path, text: str, metadata: dict[str, Any], id: str | None) -> manyvec.Document:
    """Make a document of an image file.

    Args:
        path: Path of the file, which is read here.
        text: Text to store with the image.
        metadata: Metadata to store.
        id: Id to store it under. Defaults to a hash of image, text and metadata.

    Raises:
        InputError: The file cannot be read, or the document cannot be stored.
    """
    try:
        image = path.read_bytes()
    except OSError as error:
        raise manyvec.InputError(f"the image {path} cannot be read: {error.strerror}") from error
    if id is not None:
        return manyvec.Document(id, text, metadata, image=image)
    unnamed = manyvec.Document("(no id)", text, metadata, image=image)
    return replace(unnamed, id=_content_id(unnamed))


def image_of(document: Document, key: str) -> bytes | Path | None:
    """Return the image of a page from its metadata: bytes, a path, or what a data URL holds; None for anything else.

    A plain string is no image: it may come from a stranger, who must not choose which file is read.

    Raises:
        InputError: A data URL is not base64.
    """
    image = document.metadata.get(key)
    if isinstance(image, (bytes, Path)):
        return image
    if not isinstance(image, str) or not image.startswith("data:image/"):
        return None
    try:
        return base64.b64decode(image.partition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise manyvec.InputError(f"document {document.id!r}: its image is not base64: {error}") from error


def store(
    index: manyvec.cluster.AnyIndex,
    documents: Sequence[Document],
    ids: Sequence[str | None] | None = None,
    *,
    show_progress: bool = False,
) -> list[str]:
    """Add documents to an index and return their ids, in the order of the documents.

    Documents without text are left out and logged as a warning: one blank page must not stop an ingestion.

    Args:
        index: Index to add to.
        documents: Documents with text and metadata.
        ids: One id per document, None for the document's own. Defaults to the documents' own ids.
        show_progress: Whether to draw a progress bar.

    Raises:
        InputError: A document cannot be stored, or the numbers of ids and documents differ; nothing is added.
    """
    if ids is not None and len(ids) != len(documents):
        raise manyvec.InputError(f"got {len(documents)} documents and {len(ids)} ids: pass one id per document")
    chosen = ids if ids is not None else [None] * len(documents)
    positions = [position for position, document in enumerate(documents) if document.page_content.strip()]
    if len(positions) < len(documents):
        _log_blank(documents, chosen)
    records = [to_manyvec(documents[position], chosen[position]) for position in positions]
    index.add(records, show_progress=show_progress)
    return [record.id for record in records]


def clipped(similarity: float) -> float:
    """Clip a similarity in [-1, 1] to a relevance score in [0, 1]."""
    return min(max(similarity, 0.0), 1.0)


def trace_params(name: str, index: manyvec.cluster.AnyIndex) -> LangSmithRetrieverParams:
    """Describe a search in this index for a trace."""
    return LangSmithRetrieverParams(
        ls_retriever_name=name,
        ls_vector_store_provider="LanceDB",
        ls_embedding_provider="manyvec",
        ls_embedding_model=index.model,
    )


def split_place(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that say where an index lies, see `manyvec.Index.create`, and the others."""
    place = {name: value for name, value in options.items() if name in _PLACE}
    return place, {name: value for name, value in options.items() if name not in _PLACE}


def reject_filters(options: dict[str, Any]) -> None:
    """Raise if `filters` is among the options: it was the name of `filter_columns`.

    Raises:
        TypeError: `filters` is given.
    """
    if "filters" in options:
        raise TypeError("filters= is now called filter_columns=: pass for example filter_columns={'year': int}")


def _log_blank(documents: Sequence[Document], ids: Sequence[str | None]) -> None:
    """Log how many documents have no text, and position, id, source and page of the first of them."""
    blank = []
    for position, (document, id) in enumerate(zip(documents, ids, strict=True)):
        if not document.page_content.strip():
            known = {"id": id if id is not None else document.id}
            known |= {key: document.metadata.get(key) for key in ("source", "page")}
            fields = [f"{key}={value!r}" for key, value in known.items() if value is not None]
            blank.append(" ".join([f"position {position}", *fields]))
    named = ", ".join(blank[:_MAX_NAMED]) + (", ..." if len(blank) > _MAX_NAMED else "")
    logger.warning("left out %d of %d documents, which have no text: %s", len(blank), len(documents), named)


def _content_id(document: manyvec.Document) -> str:
    content = json.dumps([document.text, document.metadata], sort_keys=True, default=str)
    if isinstance(document.image, bytes):
        content += hashlib.blake2b(document.image, digest_size=16).hexdigest()
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
