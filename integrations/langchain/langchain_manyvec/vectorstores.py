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

from langchain_manyvec._convert import as_stored, clipped, to_manyvec, trace_params
from langchain_manyvec.calibration import Calibration
from manyvec import Encoder, FilterLike, Index, InputError, diversify

if TYPE_CHECKING:
    from typing_extensions import Self


class ManyvecVectorStore(VectorStore):
    """Documents in a manyvec index, found by exact late interaction, for everything that takes a `VectorStore`.

        store = ManyvecVectorStore.from_documents(documents, "minilm", uri="./papers", filters={"year": int})
        store.similarity_search("how many vectors does ColBERT keep", k=3, filter={"year": 2024})

    One vector for each token stands in the place of `Embeddings`, so `embeddings` is None and there is no search by a
    single vector. Searches take a `filter` made with `manyvec.F`, or a dict such as `{"lang": "en"}`, on declared
    columns. Documents come back with exactly the metadata they were stored with. Async methods work in a thread.

    Args:
        index: the index; retrievers, other stores and threads may share it.
        calibration: turns similarities into relevance scores; see `calibrate`. Without it, the relevance score is the
            similarity, ColBERT's score per query token, clipped to [0, 1].
    """

    def __init__(self, index: Index, *, calibration: Calibration | None = None) -> None:
        self.index = index
        self.calibration = calibration

    @classmethod
    def from_uri(cls, uri: str | PathLike[str], *, encoder: str | Encoder | None = None) -> Self:
        """Open an index that is there already, by default with the encoder it was built with.

        Raises:
            IndexNotFoundError: there is none.
            ManifestError: the encoder is not the one the index was built with.
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
        filters: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Add texts to the index at `uri`, which is made if there is none yet.

        Args:
            texts: see `add_texts`, also for `metadatas`, `ids` and `kwargs`.
            embedding: a name for `manyvec.load_encoder`, or an encoder.
            uri: a folder, or `s3://`, `gs://`, `az://`. It has to be given.
            filters: metadata keys to filter on, with their types: `{"year": int, "tags": list[str]}`; an index there
                must have these.

        Raises:
            TypeError: no `uri`, or `embedding` makes one vector per text.
            InputError: a text cannot be stored.
            ManifestError: the index there has another encoder or other filters.
        """
        if uri is None:
            raise TypeError("uri is missing: say where the index is to be kept, for example uri='./papers'")
        store = cls(Index.create(uri, _encoder(embedding), filter_columns=filters, exist_ok=True))
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: str | Encoder | Embeddings, **kwargs: Any) -> Self:
        """Add documents to the index at `uri`; arguments as in `from_texts`. Ids given win over the documents' own."""
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
        """Add documents; one whose id is there already replaces the old one.

        Args:
            documents: with text, and metadata that JSON can hold. A document without any id gets one made from its
                text and metadata, so adding it again stores it once. Of equal ids in one call the last wins.
            ids: one for each document, in place of its own; None leaves it its own.
            show_progress: draw a bar with documents per second.
            **kwargs: `batch_size` and others that LangChain passes to every store; they change nothing here.

        Returns:
            The ids, in the order of the documents.

        Raises:
            InputError: a document cannot be stored, or there are more or fewer ids than documents.
        """
        documents = list(documents)
        if ids is not None and len(ids) != len(documents):
            raise InputError(f"got {len(documents)} documents and {len(ids)} ids: give one for each")
        chosen = ids if ids is not None else [None] * len(documents)
        records = [to_manyvec(document, id) for document, id in zip(documents, chosen, strict=True)]
        self.index.add(records, show_progress=show_progress)
        return [record.id for record in records]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_documents` for texts and their metadata, one for each text."""
        texts = list(texts)
        given = metadatas if metadatas is not None else [{}] * len(texts)
        if len(given) != len(texts):
            raise InputError(f"got {len(texts)} texts and {len(given)} metadatas: give one for each")
        documents = [Document(text, metadata=metadata or {}) for text, metadata in zip(texts, given, strict=True)]
        return self.add_documents(documents, ids=ids, **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in this order; unknown ids are left out."""
        return [as_stored(document) for document in self.index.get(ids)]

    def delete(self, ids: list[str] | None = None, *, filter: FilterLike | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, or all that pass a filter; `filter={}` empties the store. Unknown ids do no harm.

        Raises:
            InputError: neither or both are given.
        """
        self.index.delete(ids, filter=filter)
        return True

    def similarity_search(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[Document]:
        """The documents that match best, at most `k`; on an empty store none."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with ColBERT's MaxSim, summed over the query's tokens: higher is better."""
        _refuse(kwargs)
        return [(as_stored(hit), hit.score) for hit in self.index.search(query, k, filter=filter)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _refuse(kwargs)
        hits = self.index.search(query, k, filter=filter)
        relevance = self.calibration.relevance if self.calibration else clipped
        return [(as_stored(hit), relevance(hit.similarity)) for hit in hits]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)

    def calibrate(self, unanswerable: Sequence[str] | None = None) -> Calibration:
        """From now on, let a relevance score say how rarely a question without an answer finds anything as similar.

        A `score_threshold` of 0.9 then lets 1 in 10 of such questions through, whatever the model. Takes about one
        search for each question; see `Calibration.measure`, also for how to keep the result.
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
        """Documents that match the query and are unlike each other, chosen one by one.

        Two documents are as similar as their tokens are: the mean of each token's best match in the other document,
        averaged over both directions. No text is encoded for it.

        Args:
            k: how many documents, at most.
            fetch_k: how many best matches to choose from.
            lambda_mult: 1 minds only the query, 0 only how unlike the documents are.
        """
        _refuse(kwargs)
        hits = self.index.search(query, fetch_k, filter=filter)
        return [as_stored(hit) for hit in diversify(self.index, hits, k, lambda_mult)]

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """LangChain's own retriever on this store; `ManyvecRetriever` has scores and batches of queries on top."""
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return ManyvecVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)


class ManyvecVectorStoreRetriever(VectorStoreRetriever):
    """Tells a trace what LangChain could only read from `Embeddings`."""

    vectorstore: ManyvecVectorStore

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return trace_params("manyvecvectorstore", self.vectorstore.index)


def _encoder(embedding: str | Encoder | Embeddings) -> str | Encoder:
    if isinstance(embedding, (str, Encoder)):
        return embedding
    raise TypeError(
        f"{type(embedding).__name__} makes one vector per text, manyvec keeps one per token. Pass an encoder's name "
        "such as 'minilm' or 'lightonai/LateOn', or an object that is a manyvec.Encoder"
    )


def _refuse(kwargs: Mapping[str, Any]) -> None:
    """An option that is not ours, a misspelt `filter` for one, would otherwise be dropped and everything found."""
    if kwargs:
        raise TypeError(f"a search takes no argument {sorted(kwargs)[0]!r}")
