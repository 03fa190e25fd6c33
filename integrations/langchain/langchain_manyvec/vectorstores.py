"""`ManyvecVectorStore`: a manyvec index as a LangChain vector store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_manyvec._convert import clipped, reject_filters, split_place, to_langchain, trace_params
from langchain_manyvec.calibration import Calibration
from langchain_manyvec.collection import DocumentCollection
from langchain_manyvec.embeddings import ManyvecEmbeddings
from manyvec import LEXICAL_WEIGHT, Encoder, FilterLike, Hit, InputError, diversify, in_thread
from manyvec.cluster import AnyIndex, open_index, open_or_create

if TYPE_CHECKING:
    from typing_extensions import Self


class ManyvecVectorStore(DocumentCollection):
    """Vector store over a manyvec index, searched by exact late interaction.

        store = ManyvecVectorStore.from_documents(documents, "minilm", uri="./papers", filter_columns={"year": int})
        store.similarity_search("how many vectors does ColBERT keep", k=3, filter={"year": 2024})

    The index keeps one vector per token, so `embeddings` is None. Searches take a `filter` on declared columns: made
    with `manyvec.F`, or a dict such as `{"lang": "en"}`. Documents are returned with exactly the metadata they were
    stored with. Async methods run in a thread.

    A query without words finds nothing. With a filter it returns the first `k` documents by id that pass, with score 0,
    as a `SelfQueryRetriever` asks for "papers of 2024".

    `depth`, `lexical_weight`, `evidence` and `passage_chars` are defaults for all searches. They can be given per
    search as well, also through `as_retriever(search_kwargs={"lexical_weight": 0.3})`.

    Args:
        index: Index or cluster to search and write. It can be shared with retrievers, other stores and threads.
        calibration: Maps similarities to relevance scores, see `calibrate`. By default the relevance score is the
            similarity (ColBERT's score per query token) clipped to [0, 1].
        relevance_score_fn: Function from a similarity in [-1, 1] to a relevance score, instead of a calibration.
        depth: Number of candidates to score in an index with centroid lists, see `Index.search`.
        lexical_weight: Share of BM25 in the ranking, from 0 to 1; 0 ranks by late interaction alone. "auto" is what was
            measured for the model of the index, see `Index.search`.
        evidence: Whether to add `evidence` to the metadata: which words of the document matched which words of the
            query.
        passage_chars: Maximum length of the text of a document that a search returns: the passage that matches best,
            with `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. `get_by_ids` returns the
            whole text. By default searches return it, too.

    Raises:
        InputError: Both `calibration` and `relevance_score_fn` are given.
    """

    def __init__(
        self,
        index: AnyIndex,
        *,
        calibration: Calibration | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
        depth: int | None = None,
        lexical_weight: float | Literal["auto"] = "auto",
        evidence: bool = False,
        passage_chars: int | None = None,
    ) -> None:
        if calibration is not None and relevance_score_fn is not None:
            raise InputError("pass either calibration or relevance_score_fn, not both")
        super().__init__(index)
        self.calibration = calibration
        self.depth = depth
        self.lexical_weight = lexical_weight
        self.evidence = evidence
        self.passage_chars = passage_chars
        self._relevance_score_fn = relevance_score_fn

    @classmethod
    def from_uri(
        cls,
        uri: str | PathLike[str] | None = None,
        *,
        encoder: str | Encoder | Embeddings | None = None,
        **options: Any,
    ) -> Self:
        """Open an existing index or cluster.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder or its name. Defaults to the one the index was built with.
            **options: Options of the store, such as `lexical_weight`; and `storage_options`, `connection` and
                `table_name`, see `manyvec.Index.create`.

        Raises:
            IndexNotFoundError: There is no index at `uri`.
            ManifestError: The index was built with another encoder.
        """
        place, options = split_place(options)
        return cls(open_index(uri, None if encoder is None else _encoder(encoder), **place), **options)

    @classmethod
    def from_existing_index(
        cls,
        embedding: str | Encoder | Embeddings | None = None,
        *,
        uri: str | PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Open an existing index: `from_uri` under the name that other vector stores use."""
        return cls.from_uri(uri, encoder=embedding, **options)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: str | Encoder | Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        uri: str | PathLike[str] | None = None,
        filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
        dim: int | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> Self:
        """Create an index, or open an existing one, and add texts to it.

        Args:
            texts: Texts to add, see `add_texts`.
            embedding: Encoder, or a name for `manyvec.load_encoder`, or `ManyvecEmbeddings`, whose encoder is used.
            metadatas: Metadata, one dict per text.
            ids: Ids, one per text.
            uri: Folder, or `s3://`, `gs://`, `az://` URI. By default the index is kept in memory and lost with the
                store.
            filter_columns: Metadata keys that filters can use, with their types: `{"year": int, "tags": list[str]}`.
                "infer" declares those of the first batch. An existing index must have the same ones.
            dim: Number of dimensions to keep in a new index; see `manyvec.Index.create`.
            show_progress: Whether to draw a progress bar.
            **options: Options of the store, such as `lexical_weight`; and `storage_options`, `connection` and
                `table_name`, see `manyvec.Index.create`.

        Raises:
            TypeError: `embedding` makes one vector per text, or an option is unknown.
            InputError: A text cannot be stored.
            ManifestError: The existing index has another encoder or other filter columns.
        """
        reject_filters(options)
        place, options = split_place(options)
        if uri is None and "connection" not in place:
            uri = "memory://"
        index = open_or_create(uri, _encoder(embedding), filter_columns=filter_columns, dim=dim, **place)
        store = cls(index, **options)
        store.add_texts(texts, metadatas, ids=ids, show_progress=show_progress)
        return store

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: str | Encoder | Embeddings, **kwargs: Any) -> Self:
        """Create an index, or open an existing one, and add documents to it.

        Args:
            documents: Documents to add.
            embedding: Encoder, or a name for `manyvec.load_encoder`, or `ManyvecEmbeddings`.
            **kwargs: Further arguments of `from_texts`. `ids` takes precedence over the documents' own ids.
        """
        ids = kwargs.pop("ids", None) or [document.id for document in documents]
        texts = [document.page_content for document in documents]
        return cls.from_texts(texts, embedding, [document.metadata for document in documents], ids=ids, **kwargs)

    def similarity_search(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[Document]:
        """Return up to `k` documents that match the query best.

        Args:
            query: Text to search for.
            k: Maximum number of documents.
            filter: Condition that documents must pass.
            **options: `depth`, `lexical_weight`, `evidence` and `passage_chars`, see the class.
        """
        return [self._document(hit) for hit in self._hits(query, k, filter, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return up to `k` documents with the scores they are ranked by; higher is better.

        The score is the mix of late interaction and BM25, or ColBERT's MaxSim summed over the query's tokens if BM25
        takes no part. If it does, MaxSim is in the metadata: `score`, and `relevance_score`, its mean per query token
        clipped to [0, 1]. Arguments are those of `similarity_search`.
        """
        hits = self._hits(query, k, filter, **options)
        return [(to_langchain(hit, scores=hit.is_mixed), hit.final_score) for hit in hits]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        # Of late interaction alone: a mix with BM25 has no scale that a threshold could be compared with.
        relevance = self._select_relevance_score_fn()
        return [(self._document(hit), relevance(hit.similarity)) for hit in self._hits(query, k, filter, **options)]

    _asimilarity_search_with_relevance_scores = in_thread(_similarity_search_with_relevance_scores)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance_score_fn is not None:
            return self._relevance_score_fn
        return self.calibration.relevance if self.calibration else clipped

    def hybrid_search(
        self,
        query: str,
        k: int = 4,
        filter: FilterLike | None = None,
        *,
        lexical_weight: float | Literal["auto"] = LEXICAL_WEIGHT,
        **options: Any,
    ) -> list[Document]:
        """Return up to `k` documents ranked by late interaction mixed with BM25.

        Args:
            query: Text to search for.
            k: Maximum number of documents.
            filter: Condition that documents must pass.
            lexical_weight: Share of BM25, from 0 to 1, whichever model the index has. The default measured best with
                `minilm`.
            **options: `depth`, `evidence` and `passage_chars`, see the class.
        """
        return self.similarity_search(query, k, filter, lexical_weight=lexical_weight, **options)

    ahybrid_search = in_thread(hybrid_search)

    def similarity_search_by_vector(
        self, embedding: Any, k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[Document]:
        """Return up to `k` documents that match token vectors best. No model is needed.

        Args:
            embedding: Token vectors of one query, shape (n_tokens, dim): an array, a list of lists, or a
                `manyvec.TokenBatch`. One vector per text is an error, because the index holds one vector per token.
            k: Maximum number of documents.
            filter: Condition that documents must pass.
            **options: `depth`, see the class.
        """
        return [self._document(hit) for hit in self._hits(embedding, k, filter, **options)]

    def similarity_search_with_score_by_vector(
        self, embedding: Any, k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return up to `k` documents that match token vectors best, with scores, see `similarity_search_by_vector`."""
        return [(self._document(hit), hit.final_score) for hit in self._hits(embedding, k, filter, **options)]

    asimilarity_search_with_score_by_vector = in_thread(similarity_search_with_score_by_vector)

    def similarity_search_by_image(
        self, uri: str | PathLike[str], k: int = 4, filter: FilterLike | None = None, **options: Any
    ) -> list[Document]:
        """Return up to `k` documents, pages or texts, that match an image best. The model must read images.

        Args:
            uri: Path of the image file.
            k: Maximum number of documents.
            filter: Condition that documents must pass.
            **options: `depth`, see the class.
        """
        return [self._document(hit) for hit in self._hits(Path(uri), k, filter, **options)]

    asimilarity_search_by_image = in_thread(similarity_search_by_image)

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
        **options: Any,
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
            **options: `depth` and `evidence`, see the class, and `lexical_weight`, which decides only which `fetch_k`
                documents to choose from.
        """
        hits = self._hits(query, fetch_k, filter, **options)
        return [self._document(hit) for hit in diversify(self.index, hits, k, lambda_mult)]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Any,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterLike | None = None,
        **options: Any,
    ) -> list[Document]:
        """Run `max_marginal_relevance_search` for token vectors, see `similarity_search_by_vector`."""
        return self.max_marginal_relevance_search(embedding, k, fetch_k, lambda_mult, filter, **options)

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """Return LangChain's own retriever over this store; `ManyvecRetriever` adds scores and batched queries."""
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return ManyvecVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)

    def _hits(
        self,
        query: Any,
        k: int,
        filter: FilterLike | None,
        *,
        depth: int | None = None,
        lexical_weight: float | Literal["auto"] | None = None,
        evidence: bool | None = None,
        passage_chars: int | None = None,
    ) -> list[Hit]:
        if isinstance(query, str):
            passage_chars = passage_chars if passage_chars is not None else self.passage_chars
        else:
            # BM25 and evidence need words; the defaults of the store are for queries that have them.
            lexical_weight = "auto" if lexical_weight is None else lexical_weight
            evidence = False if evidence is None else evidence
        hits = self.index.search(
            query,
            k,
            filter=filter,
            depth=depth if depth is not None else self.depth,
            lexical_weight=lexical_weight if lexical_weight is not None else self.lexical_weight,
            evidence=evidence if evidence is not None else self.evidence,
            passage_chars=passage_chars,
        )
        if not hits and filter is not None and isinstance(query, str) and not query.strip():
            return self._first(k, filter)
        return hits

    def _first(self, k: int, filter: FilterLike) -> list[Hit]:
        """Return the first `k` documents by id that pass a filter, for a query without words."""
        documents = self.index.get(self.index.ids(filter)[:k])
        shared: dict[str, Any] = {"score": 0.0, "similarity": 0.0}
        return [
            Hit(id=found.id, text=found.text, metadata=dict(found.metadata), rank=rank, **shared)
            for rank, found in enumerate(documents, 1)
        ]

    def _document(self, hit: Hit) -> Document:
        return to_langchain(hit, scores=False)


class ManyvecVectorStoreRetriever(VectorStoreRetriever):
    """LangChain's retriever over a `ManyvecVectorStore`, with provider and model in traces."""

    vectorstore: ManyvecVectorStore

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return trace_params("manyvecvectorstore", self.vectorstore.index)


def _encoder(embedding: str | Encoder | Embeddings) -> str | Encoder:
    if isinstance(embedding, ManyvecEmbeddings):
        return embedding.encoder
    if isinstance(embedding, (str, Encoder)):
        return embedding
    raise TypeError(
        f"{type(embedding).__name__} makes one vector per text, manyvec needs one per token. Pass an encoder's name "
        "such as 'minilm' or 'lightonai/LateOn', a manyvec.Encoder or ManyvecEmbeddings"
    )
