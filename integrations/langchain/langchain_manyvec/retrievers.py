"""`ManyvecRetriever`: search a manyvec index as a LangChain retriever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict

from langchain_manyvec._convert import reject_filters, split_place, store, to_langchain, trace_params
from manyvec import Encoder, FilterLike, in_thread
from manyvec.cluster import AnyIndex, open_index, open_or_create

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from typing_extensions import Self


class ManyvecRetriever(BaseRetriever):
    """Retriever over a manyvec index, ranked by exact late-interaction scores, mixed with BM25 where that was measured.

    Returned documents are new objects with the stored id, text and metadata. Two keys are added to the metadata:
    `score`, ColBERT's MaxSim summed over the query's tokens, and `relevance_score`, its mean per query token clipped to
    [0, 1]. Documents are ordered by `score`, or by a third key, `final_score`, if BM25 took part. A stored key of the
    same name is kept instead.

    Every attribute except `index` can be overridden per call:
    `retriever.invoke("late interaction", k=1, filter={"year": 2024})`. `batch` and `abatch` encode and score all
    queries in one pass. Errors of manyvec are raised unchanged.

    Attributes:
        index: Index to search, or a cluster of `manyvec.cluster`. It can be shared with other retrievers and threads.
        k: Maximum number of documents to return.
        depth: Number of candidates to score in an index with centroid lists, see `Index.search`.
        filter: Condition that documents must pass: made with `manyvec.F`, or a dict such as `{"lang": "en"}`.
        lexical_weight: Share of BM25 in the ranking, from 0 to 1; 0 ranks by late interaction alone. "auto" is what was
            measured for the model of the index, see `Index.search`.
        score_threshold: Minimum similarity (score per query token, in [-1, 1]) of a returned document. It is compared
            with late interaction alone, whatever `lexical_weight` is.
        evidence: Whether to add `evidence` to the metadata: which words of the document matched which words of the
            query, in the JSON form of `Evidence.to_dict`.
        passage_chars: Maximum length of the text of a returned document: the passage that matches the query best, with
            `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. The whole text is
            `retriever.index.get(document.id)`. By default the whole text is returned.
        scores: Whether to add these scores to the metadata. Set it to False for retrievers that merge
            the results of several queries: they compare documents with their metadata, and scores differ by query.
    """

    # Without this a misspelled `filter` would be ignored, and every document found.
    model_config = ConfigDict(extra="forbid")

    index: AnyIndex
    k: int = 4
    depth: int | None = None
    filter: FilterLike | None = None
    lexical_weight: float | Literal["auto"] = "auto"
    score_threshold: float | None = None
    evidence: bool = False
    passage_chars: int | None = None
    scores: bool = True

    @classmethod
    def from_uri(
        cls, uri: str | PathLike[str] | None = None, *, encoder: str | Encoder | None = None, **fields: Any
    ) -> Self:
        """Open an existing index or cluster, whichever framework or command created it.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder or its name. Defaults to the one the index was built with.
            **fields: Attributes of the retriever, such as `k` and `filter`; and `storage_options`, `connection` and
                `table_name`, see `manyvec.Index.create`.

        Raises:
            IndexNotFoundError: There is no index at `uri`.
            ManifestError: The index was built with another encoder.
        """
        place, fields = split_place(fields)
        return cls(index=open_index(uri, encoder, **place), **fields)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        uri: str | PathLike[str] | None = None,
        *,
        encoder: str | Encoder = "minilm",
        filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
        dim: int | None = None,
        show_progress: bool = False,
        **fields: Any,
    ) -> Self:
        """Create an index, or open an existing one, and add documents to it.

        Args:
            documents: Documents to add, see `add_documents`.
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder, or a name for `manyvec.load_encoder`. An existing index must have been built with it.
            filter_columns: Metadata keys that filters can use, with their types: `{"year": int, "tags": list[str]}`.
                "infer" declares those of the first batch. An existing index must have the same ones.
            dim: Number of dimensions to keep in a new index; see `manyvec.Index.create`.
            show_progress: Whether to draw a progress bar.
            **fields: Attributes of the retriever, such as `k` and `filter`; and `storage_options`, `connection` and
                `table_name`, see `manyvec.Index.create`.

        Raises:
            InputError: A document cannot be stored.
            ManifestError: The existing index has another encoder or other filter columns.
        """
        reject_filters(fields)
        place, fields = split_place(fields)
        index = open_or_create(uri, encoder, filter_columns=filter_columns, dim=dim, **place)
        retriever = cls(index=index, **fields)
        retriever.add_documents(documents, show_progress=show_progress)
        return retriever

    def add_documents(self, documents: Iterable[Document], *, show_progress: bool = False) -> list[str]:
        """Add documents to the index. A document whose id exists is replaced.

        A document without an id gets one derived from its text and metadata, so adding it twice stores it once. If an
        id occurs more than once in a call, the last document wins.

        Args:
            documents: Documents with text and with metadata that JSON can represent. Documents without text are left
                out and logged.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids of the stored documents, in their order.

        Raises:
            InputError: A document cannot be stored; none is added.
        """
        return store(self.index, list(documents), show_progress=show_progress)

    aadd_documents = in_thread(add_documents)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Run `invoke` for several queries, encoded and scored in one pass. Each has its own run in traces."""
        shared = _SharedSearch(inputs, lambda queries: self._search(queries, **kwargs))
        return super().batch(inputs, config, return_exceptions=return_exceptions, shared=shared, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Run `batch` in a thread."""
        shared = _SharedSearch(inputs, lambda queries: self._search(queries, **kwargs))
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, shared=shared, **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        shared: _SharedSearch | None = None,
        **options: Any,
    ) -> list[Document]:
        documents = shared.take(query) if shared else None
        return documents if documents is not None else self._search([query], **options)[0]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        shared: _SharedSearch | None = None,
        **options: Any,
    ) -> list[Document]:
        documents = await shared.atake(query) if shared else None
        if documents is not None:
            return documents
        return (await self._asearch([query], **options))[0]

    def _search(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        depth: int | None = None,
        filter: FilterLike | None = None,
        lexical_weight: float | Literal["auto"] | None = None,
        score_threshold: float | None = None,
        evidence: bool | None = None,
        passage_chars: int | None = None,
        scores: bool | None = None,
    ) -> list[list[Document]]:
        results = self.index.search_many(
            queries,
            k if k is not None else self.k,
            filter=filter if filter is not None else self.filter,
            depth=depth if depth is not None else self.depth,
            lexical_weight=lexical_weight if lexical_weight is not None else self.lexical_weight,
            evidence=evidence if evidence is not None else self.evidence,
            passage_chars=passage_chars if passage_chars is not None else self.passage_chars,
        )
        threshold = score_threshold if score_threshold is not None else self.score_threshold
        with_scores = scores if scores is not None else self.scores
        return [
            [to_langchain(hit, scores=with_scores) for hit in hits if threshold is None or hit.similarity >= threshold]
            for hits in results
        ]

    _asearch = in_thread(_search)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return trace_params("manyvec", self.index)


class _SharedSearch:
    """The results of one batch, computed together when the first of its runs asks for its own."""

    def __init__(self, queries: Sequence[str], search: Callable[[list[str]], list[list[Document]]]) -> None:
        self._queries = [query for query in queries if isinstance(query, str)]
        self._search = search
        self._results: dict[str, list[list[Document]]] | None = None
        self._lock = threading.Lock()
        # Makes one thread wait for the encoder instead of every thread of the loop's pool.
        self._async_lock = asyncio.Lock()

    def take(self, query: str) -> list[Document] | None:
        """Return a result that no other run has taken, or None if the batch failed and the run must search by itself.

        A failed batch is not an error here: each run repeats its own search, and only the query at fault raises.
        """
        with self._lock:
            if self._results is None:
                self._results = {}
                try:
                    results = self._search(self._queries)
                except Exception:
                    return None
                for text, documents in zip(self._queries, results, strict=True):
                    self._results.setdefault(text, []).append(documents)
            results_left = self._results.get(query) if isinstance(query, str) else None
            return results_left.pop() if results_left else None

    async def atake(self, query: str) -> list[Document] | None:
        async with self._async_lock:
            return await self._atake(query)

    _atake = in_thread(take)
