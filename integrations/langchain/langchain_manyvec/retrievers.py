"""`ManyvecRetriever`: a manyvec index as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict

from langchain_manyvec._convert import to_langchain, to_manyvec
from manyvec import Encoder, Filter, Index

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from typing_extensions import Self

Where: TypeAlias = Filter | Mapping[str, Any]


class ManyvecRetriever(BaseRetriever):
    """Finds the documents of a manyvec index that match a query best, with exact late-interaction scores.

    What it returns are new documents with the stored id, text and metadata. The metadata has two more keys:
    `score`, ColBERT's MaxSim summed over the query's tokens, and `relevance_score`, its mean per query token
    clipped to [0, 1]. A stored key of the same name is kept instead. Nothing found is an empty list.

    `k` and `filter` can also be given per call and then take the place of the retriever's own:
    `retriever.invoke("late interaction", k=1, filter={"year": 2024})`. manyvec's errors reach the caller as they are.

    Attributes:
        index: the index to search; other retrievers and threads may share it.
        k: how many documents to return, at most; 0 gives none.
        filter: made with `manyvec.F`, or a dict such as `{"lang": "en"}`; only documents that pass are looked at.
    """

    # A misspelt `filter` would otherwise be dropped in silence, and everything found.
    model_config = ConfigDict(extra="forbid")

    index: Index
    k: int = 4
    filter: Where | None = None

    @classmethod
    def from_uri(cls, uri: str | PathLike[str], *, encoder: str | Encoder | None = None, **fields: Any) -> Self:
        """Open an index that is there already, whatever wrote it.

        Args:
            uri: a folder, or `s3://`, `gs://`, `az://`.
            encoder: by default the one the index was built with.
            **fields: `k`, `filter` and the other fields of a retriever.

        Raises:
            IndexNotFoundError: there is none.
            ManifestError: the encoder is not the one the index was built with.
        """
        return cls(index=Index.open(uri, encoder), **fields)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        uri: str | PathLike[str],
        *,
        encoder: str | Encoder = "minilm",
        filters: Mapping[str, Any] | None = None,
        show_progress: bool = False,
        **fields: Any,
    ) -> Self:
        """Add documents to the index at `uri`, which is made if there is none yet.

        Args:
            documents: see `add_documents`.
            uri: a folder, or `s3://`, `gs://`, `az://`.
            encoder: a name for `manyvec.load_encoder`, or an encoder; an index there must have been built with it.
            filters: metadata keys to filter on, with their types: `{"year": int, "tags": list[str]}`; an index there
                must have these.
            show_progress: draw a bar with documents per second.
            **fields: `k`, `filter` and the other fields of a retriever.

        Raises:
            InputError: a document cannot be stored.
            ManifestError: the index there has another encoder or other filters.
        """
        index = Index.create(uri, encoder, filters=filters, exist_ok=True)
        retriever = cls(index=index, **fields)
        retriever.add_documents(documents, show_progress=show_progress)
        return retriever

    def add_documents(self, documents: Iterable[Document], *, show_progress: bool = False) -> list[str]:
        """Add documents to the index; one whose id is there already replaces the old one.

        A document without an id gets one made from its text and metadata, so adding it again stores it once; if either
        has changed it is another document. Of equal ids in one call the last wins.

        Args:
            documents: with text, and metadata that JSON can hold.
            show_progress: draw a bar with documents per second.

        Returns:
            The ids, in the order of the documents.

        Raises:
            InputError: a document cannot be stored.
        """
        records = [to_manyvec(document) for document in documents]
        self.index.add(records, show_progress=show_progress)
        return [record.id for record in records]

    async def aadd_documents(self, documents: Iterable[Document], *, show_progress: bool = False) -> list[str]:
        """`add_documents` in a thread; the event loop goes on."""
        return await run_in_executor(None, self.add_documents, documents, show_progress=show_progress)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
    ) -> list[Document]:
        return self._search(query, k, filter)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
    ) -> list[Document]:
        return await run_in_executor(None, self._search, query, k, filter)

    def _search(self, query: str, k: int | None, filter: Where | None) -> list[Document]:
        hits = self.index.search(
            query,
            k if k is not None else self.k,
            filter=filter if filter is not None else self.filter,
        )
        return [to_langchain(hit) for hit in hits]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return LangSmithRetrieverParams(
            ls_retriever_name="manyvec",
            ls_vector_store_provider="LanceDB",
            ls_embedding_provider="manyvec",
            ls_embedding_model=self.index.model,
        )
