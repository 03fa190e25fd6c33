"""`ManyvecDocumentIndex`: a retriever with upsert, get and delete by id."""

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
    """A `ManyvecRetriever` that implements LangChain's `DocumentIndex`, so that `langchain_core.indexing.index` can
    write to it.

    LangChain marks this interface as beta. `ManyvecVectorStore` can be filled the same way and is stable.
    """

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Add or replace documents, see `add_documents`. A document that cannot be stored raises an error."""
        return UpsertResponse(succeeded=self.add_documents(items), failed=[])

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents by id. Unknown ids are ignored and not listed in `succeeded`.

        Raises:
            InputError: `ids` is None.
        """
        if ids is None:
            raise InputError("delete needs a list of ids; delete([]) deletes nothing")
        known = [document.id for document in self.index.get(ids)]
        return DeleteResponse(num_deleted=self.index.delete(known), succeeded=known, num_failed=0, failed=[])

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Return the documents with these ids, in this order, as they were stored. Unknown ids are skipped."""
        return [as_stored(document) for document in self.index.get(ids)]
