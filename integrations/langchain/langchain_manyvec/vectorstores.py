"""`ManyvecVectorStore`: a manyvec index as a LangChain vector store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import LangSmithRetrieverParams
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_manyvec._convert import as_stored, clipped, reject_filters, store, trace_params
from langchain_manyvec.calibration import Calibration
from manyvec import Encoder, FilterLike, Index, InputError, diversify

if TYPE_CHECKING:
    from typing_extensions import Self


class ManyvecVectorStore(VectorStore):
    """Vector store over a manyvec index, searched by exact late interaction.

        store = ManyvecVectorStore.from_documents(documents, "minilm", uri="./papers", filter_columns={"year": int})
        store.similarity_search("how many vectors does ColBERT keep", k=3, filter={"year": 2024})

    The index keeps one vector per token, so `embeddings` is None and there is no search by a single vector. Searches
    take a `filter` on declared columns: made with `manyvec.F`, or a dict such as `{"lang": "en"}`. Documents are
    returned with exactly the metadata they were stored with. Async methods run in a thread.

    Args:
        index: Index to search and write. It can be shared with retrievers, other stores and threads.
        calibration: Maps similarities to relevance scores, see `calibrate`. By default the relevance score is the
            similarity (ColBERT's score per query token) clipped to [0, 1].
    """

    def __init__(self, index: Index, *, calibration: Calibration | None = None) -> None:
        self.index = index
        self.calibration = calibration

    @classmethod
    def from_uri(cls, uri: str | PathLike[str], *, encoder: str | Encoder | None = None) -> Self:
        """Open an existing index.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder or its name. Defaults to the one the index was built with.

        Raises:
            IndexNotFoundError: There is no index at `uri`.
            ManifestError: The index was built with another encoder.
        """
        return cls(Index.open(uri, encoder))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: str | Encoder | Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        uri: str | PathLike[str] | None = None,
        filter_columns: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create an index, or open an existing one, and add texts to it.

        Args:
            texts: Texts to add, see `add_texts`.
            embedding: Encoder, or a name for `manyvec.load_encoder`.
            metadatas: Metadata, one dict per text.
            ids: Ids, one per text.
            uri: Folder, or `s3://`, `gs://`, `az://` URI. Required.
            filter_columns: Metadata keys that filters can use, with their types: `{"year": int, "tags": list[str]}`.
                An existing index must have the same ones.
            **kwargs: Further arguments of `add_texts`.

        Raises:
            TypeError: `uri` is missing, or `embedding` makes one vector per text.
            InputError: A text cannot be stored.
            ManifestError: The existing index has another encoder or other filter columns.
        """
        reject_filters(kwargs)
        if uri is None:
            raise TypeError("uri is missing: pass the folder to store the index in, for example uri='./papers'")
        index = Index.create(uri, _encoder(embedding), filter_columns=filter_columns, exist_ok=True)
        store = cls(index)
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: str | Encoder | Embeddings, **kwargs: Any) -> Self:
        """Create an index, or open an existing one, and add documents to it.

        Args:
            documents: Documents to add.
            embedding: Encoder, or a name for `manyvec.load_encoder`.
            **kwargs: Further arguments of `from_texts`. `ids` takes precedence over the documents' own ids.
        """
        ids = kwargs.pop("ids", None) or [document.id for document in documents]
        texts = [document.page_content for document in documents]
        return cls.from_texts(texts, embedding, [document.metadata for document in documents], ids=ids, **kwargs)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Add documents. A document whose id exists is replaced.

        A document without an id gets one derived from its text and metadata, so adding it twice stores it once. If an
        id occurs more than once in a call, the last document wins.

        Args:
            documents: Documents with text and with metadata that JSON can represent.
            ids: One id per document, None for the document's own.
            show_progress: Whether to draw a progress bar.
            **kwargs: Ignored. LangChain passes `batch_size` and others to every vector store.

        Returns:
            The ids, in the order of the documents.

        Raises:
            InputError: A document cannot be stored, or the numbers of ids and documents differ; nothing is added.
        """
        return store(self.index, list(documents), ids, show_progress=show_progress)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts with their metadata, see `add_documents`.

        Args:
            texts: Texts to add.
            metadatas: One dict per text. Defaults to no metadata.
            ids: One id per text, None for an id derived from text and metadata.
            **kwargs: Further arguments of `add_documents`.
        """
        texts = list(texts)
        given = metadatas if metadatas is not None else [{}] * len(texts)
        if len(given) != len(texts):
            raise InputError(f"got {len(texts)} texts and {len(given)} metadatas: pass one dict per text")
        documents = [Document(text, metadata=metadata or {}) for text, metadata in zip(texts, given, strict=True)]
        return self.add_documents(documents, ids=ids, **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in this order. Unknown ids are skipped."""
        return [as_stored(document) for document in self.index.get(ids)]

    def delete(self, ids: list[str] | None = None, *, filter: FilterLike | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, or all that pass a filter.

        Args:
            ids: Ids to delete; unknown ids are ignored.
            filter: Condition on the documents to delete; `{}` deletes all.
            **kwargs: Ignored.

        Returns:
            Always True.

        Raises:
            InputError: Neither or both are given.
        """
        self.index.delete(ids, filter=filter)
        return True

    def similarity_search(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return up to `k` documents that match the query best."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return up to `k` documents with ColBERT's MaxSim summed over the query's tokens; higher is better."""
        _reject(kwargs)
        return [(as_stored(hit), hit.score) for hit in self.index.search(query, k, filter=filter)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _reject(kwargs)
        hits = self.index.search(query, k, filter=filter)
        relevance = self.calibration.relevance if self.calibration else clipped
        return [(as_stored(hit), relevance(hit.similarity)) for hit in hits]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)

    def calibrate(self, unanswerable: Sequence[str] | None = None) -> Calibration:
        """Measure and set `calibration`, so that relevance scores have a meaning a threshold can be chosen for.

        Afterwards a `score_threshold` of 0.9 accepts a document for 1 in 10 questions without an answer, whichever
        model is used.

        Args:
            unanswerable: Questions that no document answers, see `Calibration.measure`.
        """
        self.calibration = Calibration.measure(self.index, unanswerable)
        return self.calibration

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterLike | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that match the query and differ from each other.

        The similarity of two documents is the mean of each token's best match in the other document, averaged over both
        directions. It is computed from stored vectors; nothing is encoded.

        Args:
            query: Text to search for.
            k: Maximum number of documents to return.
            fetch_k: Number of best matches to choose from.
            lambda_mult: Weight of the query: 1 ranks by the query alone, 0 by how different the documents are.
            filter: Condition that documents must pass.
            **kwargs: Not accepted.
        """
        _reject(kwargs)
        hits = self.index.search(query, fetch_k, filter=filter)
        return [as_stored(hit) for hit in diversify(self.index, hits, k, lambda_mult)]

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """Return LangChain's own retriever over this store; `ManyvecRetriever` adds scores and batched queries."""
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return ManyvecVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)


class ManyvecVectorStoreRetriever(VectorStoreRetriever):
    """LangChain's retriever over a `ManyvecVectorStore`, with provider and model in traces."""

    vectorstore: ManyvecVectorStore

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return trace_params("manyvecvectorstore", self.vectorstore.index)


def _encoder(embedding: str | Encoder | Embeddings) -> str | Encoder:
    if isinstance(embedding, (str, Encoder)):
        return embedding
    raise TypeError(
        f"{type(embedding).__name__} makes one vector per text, manyvec needs one per token. Pass an encoder's name "
        "such as 'minilm' or 'lightonai/LateOn', or a manyvec.Encoder"
    )


def _reject(kwargs: Mapping[str, Any]) -> None:
    """Raise on unknown search options: a misspelled `filter` would otherwise be ignored, and every document found."""
    if kwargs:
        raise TypeError(f"a search takes no argument {sorted(kwargs)[0]!r}")
