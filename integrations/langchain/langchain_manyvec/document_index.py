"""`ManyvecDocumentIndex`: a retriever that documents can be put into and taken out of by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.indexing import UpsertResponse
from langchain_core.indexing.base import DeleteResponse, DocumentIndex

from langchain_manyvec._convert import as_stored
from langchain_manyvec.retrievers import ManyvecRetriever
from manyvec import InputError


class ManyvecDocumentIndex(ManyvecRetriever, DocumentIndex):
    """A `ManyvecRetriever` that is also LangChain's `DocumentIndex`, so `langchain_core.indexing.index` can fill it.

    LangChain marks the interface as beta; `ManyvecVectorStore` does the same job behind an older one.
    """

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Add documents; see `add_documents`, whose ids this answers with. A document that cannot be stored raises."""
        return UpsertResponse(succeeded=self.add_documents(items), failed=[])

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents by id; unknown ids do no harm and are not among those that `succeeded`.

        Raises:
            InputError: no ids are given.
        """
        if ids is None:
            raise InputError("delete needs ids; delete([]) deletes nothing")
        known = [document.id for document in self.index.get(ids)]
        return DeleteResponse(num_deleted=self.index.delete(known), succeeded=known, num_failed=0, failed=[])

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """The documents with these ids, in this order, as they were stored; unknown ids are left out."""
        return [as_stored(document) for document in self.index.get(ids)]
