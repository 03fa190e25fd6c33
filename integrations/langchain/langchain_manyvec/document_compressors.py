"""`ManyvecReranker`: sort the documents of any retriever by exact MaxSim scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import ConfigDict, Field, PrivateAttr

from langchain_manyvec._convert import image_of, with_passage, with_scores
from manyvec import Encoder, Reranker, in_thread
from manyvec.cluster import AnyIndex


class ManyvecReranker(BaseDocumentCompressor):
    """Document compressor that sorts documents by exact late-interaction scores and keeps the best.

    Returned documents are copies with `score` and `relevance_score` in the metadata, as those of `ManyvecRetriever`. A
    document without text has the lowest score there is and the relevance 0, and comes last. Equal scores keep their
    order.

    LangChain does not trace compressors, so this class opens a run named `ManyvecReranker` under `callbacks`. The run
    records the query, the model and the ids as input, and the ids and scores in the new order as output.

    Attributes:
        encoder: Encoder, or a name for `manyvec.load_encoder`. Defaults to the encoder of `index`, or to `minilm`.
        index: Index or cluster whose stored vectors are used for documents that it holds with the same id and text.
        top_n: Maximum number of documents to return. Defaults to all.
        scores: Whether to add `score` and `relevance_score` to the metadata.
        passage_chars: Maximum length of the text of a returned document: the passage that matches the query best, with
            `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. Documents that the index does
            not hold are encoded once more for that.
        image_key: Metadata key of the image of a page: bytes, a `Path`, or a data URL. If the model reads images, such
            a document is scored by its image. A page that the index holds needs none: its stored vectors are used.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    encoder: str | Encoder | None = None
    index: AnyIndex | None = None
    top_n: int | None = Field(default=None, ge=0)
    scores: bool = True
    passage_chars: int | None = Field(default=None, ge=1)
    image_key: str = "image"
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        self._reranker = Reranker(self.encoder, index=self.index)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Sort documents by their scores for the query and return the best `top_n`."""
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start(None, self._inputs(documents, query), name=type(self).__name__)
        try:
            ranked, scores = self._rerank(documents, query)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_outputs(ranked, scores))
        return ranked

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Run `compress_documents` with the scoring in a thread."""
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start(None, self._inputs(documents, query), name=type(self).__name__)
        try:
            ranked, scores = await self._arerank(documents, query)
        except BaseException as error:
            # A cancelled task could be cancelled again while it awaits, and the run would stay open.
            await asyncio.shield(run.on_chain_error(error))
            raise
        await run.on_chain_end(_outputs(ranked, scores))
        return ranked

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """Return the reranker as a runnable that maps `{"query": ..., "documents": [...]}` to documents."""

        def rerank(inputs: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return list(self.compress_documents(inputs["documents"], inputs["query"], config.get("callbacks")))

        async def arerank(inputs: dict[str, Any], config: RunnableConfig) -> list[Document]:
            documents = await self.acompress_documents(inputs["documents"], inputs["query"], config.get("callbacks"))
            return list(documents)

        return RunnableLambda(rerank, arerank, name="rerank")

    def _rerank(self, documents: Sequence[Document], query: str) -> tuple[list[Document], list[float]]:
        texts = [document.page_content for document in documents]
        ids = [document.id for document in documents]
        images = [image_of(document, self.image_key) for document in documents]
        best = self._reranker.order(query, texts, self.top_n, ids=ids, images=images)
        chosen, scores = [documents[position] for position, _, _ in best], [score for _, score, _ in best]
        if self.passage_chars is not None:
            of_best = [ids[position] for position, _, _ in best]
            passages = self._reranker.passages(query, [d.page_content for d in chosen], self.passage_chars, ids=of_best)
            chosen = [
                document if images[position] is not None else with_passage(document, passage)
                for document, passage, (position, _, _) in zip(chosen, passages, best, strict=True)
            ]
        if not self.scores:
            return [document.model_copy(deep=True) for document in chosen], scores
        both = zip(chosen, best, strict=True)
        return [with_scores(document, score, similarity) for document, (_, score, similarity) in both], scores

    _arerank = in_thread(_rerank)

    def _inputs(self, documents: Sequence[Document], query: str) -> dict[str, Any]:
        ids = [document.id for document in documents]
        return {"query": query, "model": self._reranker.model, "top_n": self.top_n, "ids": ids}


class ManyvecRerankRetriever(BaseRetriever):
    """Retriever that reranks the documents of another retriever.

    Attributes:
        retriever: First stage. It should return more documents than `reranker.top_n`. Arguments of a call, such as `k`,
            are passed to it.
        reranker: Second stage, for example `ManyvecReranker(index=index, top_n=5)`.
    """

    model_config = ConfigDict(extra="forbid")

    retriever: BaseRetriever
    reranker: ManyvecReranker = Field(default_factory=ManyvecReranker)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        callbacks = run_manager.get_child()
        found = self.retriever.invoke(query, {"callbacks": callbacks}, **kwargs)
        return list(self.reranker.compress_documents(found, query, callbacks))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        callbacks = run_manager.get_child()
        found = await self.retriever.ainvoke(query, {"callbacks": callbacks}, **kwargs)
        return list(await self.reranker.acompress_documents(found, query, callbacks))


def _outputs(ranked: Sequence[Document], scores: list[float]) -> dict[str, Any]:
    return {"ids": [document.id for document in ranked], "scores": scores, "documents": list(ranked)}
