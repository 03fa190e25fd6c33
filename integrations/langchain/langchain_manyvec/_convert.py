"""Between LangChain's documents and manyvec's: new objects both ways, the caller's stay as they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import LangSmithRetrieverParams

import manyvec


def to_langchain(hit: manyvec.Hit) -> Document:
    """A hit as a document with scores and evidence in the metadata; a key of that name that was stored there stays."""
    added: dict[str, Any] = {"score": hit.score, "relevance_score": clipped(hit.similarity)}
    if hit.evidence is not None:
        added["evidence"] = hit.evidence.to_dict()
    return Document(page_content=hit.text, id=hit.id, metadata={**added, **hit.metadata})


def as_stored(document: manyvec.Document | manyvec.Hit) -> Document:
    """A document with exactly the metadata it was stored with."""
    return Document(page_content=document.text, id=document.id, metadata=dict(document.metadata))


def with_scores(document: Document, score: float, similarity: float) -> Document:
    """A copy with these scores in the metadata, in the place of a first stage's."""
    scores = {"score": score, "relevance_score": clipped(similarity)}
    return document.model_copy(update={"metadata": {**document.metadata, **scores}})


def to_manyvec(document: Document, id: str | None = None) -> manyvec.Document:
    """A document to store: under `id`, else under its own id, else under an id made from its content.

    Raises:
        InputError: it cannot be stored; a document without an id is called `(no id)`.
    """
    id = id if id is not None else document.id
    if id is not None:
        return manyvec.Document(id, document.page_content, document.metadata)
    # Checked under a stand-in first: what passes is JSON, so the id can be made from it.
    unnamed = manyvec.Document("(no id)", document.page_content, document.metadata)
    return replace(unnamed, id=_content_id(unnamed))


def clipped(similarity: float) -> float:
    """A similarity in [-1, 1] as a relevance score in [0, 1]."""
    return min(max(similarity, 0.0), 1.0)


def trace_params(name: str, index: manyvec.Index) -> LangSmithRetrieverParams:
    """What a trace says of a search in this index."""
    return LangSmithRetrieverParams(
        ls_retriever_name=name,
        ls_vector_store_provider="LanceDB",
        ls_embedding_provider="manyvec",
        ls_embedding_model=index.model,
    )


def _content_id(document: manyvec.Document) -> str:
    content = json.dumps([document.text, document.metadata], sort_keys=True, default=dict)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
