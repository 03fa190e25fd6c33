"""The contracts of `manyvec.testing`, which the LlamaIndex package passes as well."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.tools import tool

from langchain_manyvec import ManyvecReranker, ManyvecRetriever, ManyvecVectorStore
from manyvec import Index, testing
from manyvec.testing import ScoredDocument


def to_document(found):
    return Document(found.text, id=found.id, metadata=dict(found.metadata))


def to_found(documents):
    return [_found(d, d.metadata["score"]) for d in documents]


class TestRetriever(testing.RetrieverContract):
    def make(self, index, *, k=3, filter=None):
        return ManyvecRetriever(index=index, k=k, filter=filter)

    def retrieve(self, retriever, query):
        return to_found(retriever.invoke(query))

    async def aretrieve(self, retriever, query):
        return to_found(await retriever.ainvoke(query))


class TestReranker(testing.RerankerContract):
    def make(self, *, encoder=None, index=None, top_n=10):
        return ManyvecReranker(encoder=encoder, index=index, top_n=top_n)

    def to_inputs(self, documents):
        return [to_document(document) for document in documents]

    def rerank(self, reranker, given, query):
        return to_found(reranker.compress_documents(given, query))

    async def arerank(self, reranker, given, query):
        return to_found(await reranker.acompress_documents(given, query))


class TestStore(testing.StoreContract):
    def make(self, folder, encoder):
        return ManyvecVectorStore(Index.create(folder, encoder, filter_columns={"year": int}, exist_ok=True))

    def add(self, store, documents):
        return store.add_documents([to_document(document) for document in documents])

    def get(self, store, ids):
        return [_found(document) for document in store.get_by_ids(ids)]

    def delete(self, store, ids):
        store.delete(ids)

    def search(self, store, query, k, filter=None):
        return [_found(*pair) for pair in store.similarity_search_with_score(query, k, filter)]

    async def aadd(self, store, documents):
        return await store.aadd_documents([to_document(document) for document in documents])

    async def asearch(self, store, query, k):
        return [_found(*pair) for pair in await store.asimilarity_search_with_score(query, k)]


class TestToolSelector(testing.ToolRetrieverContract):
    def make(self, tools, k, encoder):
        middleware = pytest.importorskip("langchain_manyvec.middleware", reason="needs langchain-manyvec[agents]")
        # Here and not with each request: LangChain takes its time to read a function's signature.
        given = [tool(function) for function in tools]
        return middleware.ManyvecToolSelector(max_tools=k, encoder=encoder, on_error="raise"), given

    def select(self, retriever, request):
        selector, tools = retriever
        return selector.wrap_model_call(_request(tools, request), _names)

    async def aselect(self, retriever, request):
        selector, tools = retriever

        async def names(request):
            return _names(request)

        return await selector.awrap_model_call(_request(tools, request), names)


def _request(tools, request):
    from langchain.agents.middleware import ModelRequest
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.messages import HumanMessage

    return ModelRequest(
        model=FakeListChatModel(responses=["done"]),
        messages=[HumanMessage(request)],
        tools=tools,
    )


def _names(request):
    return [tool.name for tool in request.tools]


def _found(document, score=None):
    return ScoredDocument(document.id, document.page_content, document.metadata, score)
