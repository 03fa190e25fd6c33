"""The contracts of `manyvec.testing`, which the LangChain package passes as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever, ManyvecToolRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec import testing
from manyvec.testing import ScoredDocument


def to_node(found: ScoredDocument) -> TextNode:
    return TextNode(id_=found.id, text=found.text, metadata=found.metadata)


def to_found(nodes: Sequence[NodeWithScore]) -> list[ScoredDocument]:
    return [ScoredDocument(n.node_id, n.text, n.metadata, n.score) for n in nodes]


class TestRetriever(testing.RetrieverContract):
    def make(self, index, *, k=3, filter=None):
        return ManyvecRetriever(index, k, filter)

    def retrieve(self, retriever, query):
        return to_found(retriever.retrieve(query))

    async def aretrieve(self, retriever, query):
        return to_found(await retriever.aretrieve(query))


class TestVectorStoreAsRetriever(TestRetriever):
    """The vector store, used as a retriever."""

    def make(self, index, *, k=3, filter=None):
        return ManyvecVectorStore(index), k, filter

    def retrieve(self, retriever, query):
        store, k, filter = retriever
        result = store.query(VectorStoreQuery(query_str=query, similarity_top_k=k, filters=filter))
        return _of_result(result)

    async def aretrieve(self, retriever, query):
        store, k, filter = retriever
        result = await store.aquery(VectorStoreQuery(query_str=query, similarity_top_k=k, filters=filter))
        return _of_result(result)


class TestReranker(testing.RerankerContract):
    def make(self, *, encoder=None, index=None, top_n=10):
        return ManyvecRerank(encoder, top_n, index=index)

    def to_inputs(self, documents):
        return [NodeWithScore(node=to_node(document), score=0.25) for document in documents]

    def rerank(self, reranker, given, query):
        return to_found(reranker.postprocess_nodes(given, query_str=query))

    async def arerank(self, reranker, given, query):
        return to_found(await reranker.apostprocess_nodes(given, query_str=query))


class TestStore(testing.StoreContract):
    def make(self, folder, encoder):
        return ManyvecVectorStore.create(folder, encoder, filter_columns={"year": int})

    def add(self, store, documents):
        return store.add([to_node(document) for document in documents])

    def get(self, store, ids):
        return [ScoredDocument(node.node_id, node.text, node.metadata) for node in store.get_nodes(ids)]

    def delete(self, store, ids):
        store.delete_nodes(ids)

    def search(self, store, query, k, filter=None):
        return _of_result(store.query(VectorStoreQuery(query_str=query, similarity_top_k=k, filters=filter)))

    async def aadd(self, store, documents):
        return await store.async_add([to_node(document) for document in documents])

    async def asearch(self, store, query, k):
        return _of_result(await store.aquery(VectorStoreQuery(query_str=query, similarity_top_k=k)))


class TestToolRetriever(testing.ToolRetrieverContract):
    def make(self, tools, k, encoder):
        return ManyvecToolRetriever(tools, k, encoder=encoder)

    def select(self, retriever, request):
        return [tool.metadata.name for tool in retriever.retrieve(request)]

    async def aselect(self, retriever, request):
        return [tool.metadata.name for tool in await retriever.aretrieve(request)]


def _of_result(result: Any) -> list[ScoredDocument]:
    return to_found([NodeWithScore(node=n, score=s) for n, s in zip(result.nodes, result.similarities, strict=True)])
