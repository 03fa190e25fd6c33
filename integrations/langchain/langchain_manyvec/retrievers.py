"""`ManyvecRetriever`: a manyvec index as a LangChain retriever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig, run_in_executor
from pydantic import ConfigDict

from langchain_manyvec._convert import to_langchain, to_manyvec, trace_params
from manyvec import Encoder, FilterLike, Index, InputError

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from typing_extensions import Self


class ManyvecRetriever(BaseRetriever):
    """Finds the documents of a manyvec index that match a query best, with exact late-interaction scores.

    What it returns are new documents with the stored id, text and metadata. The metadata has two more keys:
    `score`, ColBERT's MaxSim summed over the query's tokens, and `relevance_score`, its mean per query token
    clipped to [0, 1]. A stored key of the same name is kept instead. Nothing found is an empty list.

    Every field but the index can also be given per call and then takes the place of the retriever's own:
    `retriever.invoke("late interaction", k=1, filter={"year": 2024})`. manyvec's errors reach the caller as they are.
    `batch` and `abatch` encode and score all their queries in one pass.

    Attributes:
        index: the index to search; other retrievers and threads may share it.
        k: how many documents to return, at most; 0 gives none.
        depth: how many candidates are scored in an index with centroid lists; see `Index.search`.
        filter: made with `manyvec.F`, or a dict such as `{"lang": "en"}`; only documents that pass are looked at.
        lexical_weight: of BM25 in the order of the documents, 0 to 1: 0.3 where names and rare words decide, see
            `Index.search`. Scores and the threshold stay those of late interaction.
        score_threshold: leave out documents whose similarity, the score per query token in [-1, 1], is below it.
        evidence: put into the metadata, as `evidence`, which words of the document matched which of the query;
            JSON that `Evidence.to_dict` describes.
    """

    # A misspelt `filter` would otherwise be dropped in silence, and everything found.
    model_config = ConfigDict(extra="forbid")

    index: Index
    k: int = 4
    depth: int | None = None
    filter: FilterLike | None = None
    lexical_weight: float = 0
    score_threshold: float | None = None
    evidence: bool = False

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
        index = Index.create(uri, encoder, filter_columns=filters, exist_ok=True)
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

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`invoke` for several queries, encoded and scored in one pass; each is a run of its own in callbacks."""
        together = _Together(inputs, lambda queries: self._search(queries, **kwargs))
        return super().batch(inputs, config, return_exceptions=return_exceptions, together=together, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`batch`, in a thread; the event loop goes on."""
        together = _Together(inputs, lambda queries: self._search(queries, **kwargs))
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, together=together, **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        together: _Together | None = None,
        **options: Any,
    ) -> list[Document]:
        found = together.take(query) if together else None
        return found if found is not None else self._search_one(query, options)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        together: _Together | None = None,
        **options: Any,
    ) -> list[Document]:
        found = await together.atake(query) if together else None
        return found if found is not None else await run_in_executor(None, self._search_one, query, options)

    def _search_one(self, query: str, options: Mapping[str, Any]) -> list[Document]:
        if not isinstance(query, str):
            raise InputError(f"a query is a text, got {type(query).__name__}")
        return self._search([query], **options)[0]

    def _search(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        depth: int | None = None,
        filter: FilterLike | None = None,
        lexical_weight: float | None = None,
        score_threshold: float | None = None,
        evidence: bool | None = None,
    ) -> list[list[Document]]:
        found = self.index.search_many(
            queries,
            k if k is not None else self.k,
            filter=filter if filter is not None else self.filter,
            depth=depth if depth is not None else self.depth,
            lexical_weight=lexical_weight if lexical_weight is not None else self.lexical_weight,
            evidence=evidence if evidence is not None else self.evidence,
        )
        threshold = score_threshold if score_threshold is not None else self.score_threshold
        return [
            [to_langchain(hit) for hit in hits if threshold is None or hit.similarity >= threshold] for hits in found
        ]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return trace_params("manyvec", self.index)


class _Together:
    """The answers of one batch, found together as soon as the first of its runs asks for one."""

    def __init__(self, queries: Sequence[str], search: Callable[[list[str]], list[list[Document]]]) -> None:
        self._queries = [query for query in queries if isinstance(query, str)]
        self._search = search
        self._answers: dict[str, list[list[Document]]] | None = None
        self._finding = threading.Lock()
        # So that one thread waits for the encoder, and not all of the loop's.
        self._asking = asyncio.Lock()

    def take(self, query: str) -> list[Document] | None:
        """An answer that no other run has. None if the batch failed: each run searches alone, and meets its error."""
        with self._finding:
            if self._answers is None:
                self._answers = {}
                try:
                    found = self._search(self._queries)
                # One query that cannot be answered must not cost the others their answers.
                except Exception:
                    return None
                for text, documents in zip(self._queries, found, strict=True):
                    self._answers.setdefault(text, []).append(documents)
            answers = self._answers.get(query) if isinstance(query, str) else None
            return answers.pop() if answers else None

    async def atake(self, query: str) -> list[Document] | None:
        async with self._asking:
            return await run_in_executor(None, self.take, query)
