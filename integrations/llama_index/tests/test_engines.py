"""The retriever in LlamaIndex's fusion retriever, router, query engines and chat engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import AutoMergingRetriever, QueryFusionRetriever, RouterRetriever
from llama_index.core.schema import Document, NodeRelationship, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import RetrieverTool
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec.testing import HashEncoder

TEXTS = {"apple": "red apple", "pie": "green apple pie", "tea": "green tea", "coffee": "black coffee"}


@pytest.fixture
def retriever(tmp_path: Path) -> ManyvecRetriever:
    nodes = [TextNode(id_=id, text=text) for id, text in TEXTS.items()]
    return ManyvecRetriever.from_nodes(nodes, tmp_path / "index", HashEncoder())


def ids(nodes) -> list[str]:
    return [node.node_id for node in nodes]


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
def test_a_fusion_of_retrievers_ranks_nodes_found_by_both_first(retriever: ManyvecRetriever, mode: str) -> None:
    other = retriever.with_options(similarity_top_k=1)
    fusion = QueryFusionRetriever(
        [retriever, other], llm=MockLLM(), num_queries=1, mode=mode, similarity_top_k=2, use_async=False
    )
    assert ids(fusion.retrieve("green apple"))[0] == "pie"
    assert ids(asyncio.run(fusion.aretrieve("green apple")))[0] == "pie"


def test_a_router_uses_the_retriever_that_its_selector_names(tmp_path: Path, retriever: ManyvecRetriever) -> None:
    class ByWord(BaseSelector):
        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

        def _select(self, choices, query):
            (position,) = [i for i, choice in enumerate(choices) if choice.description in query.query_str]
            return SelectorResult(selections=[SingleSelection(index=position, reason="the word is there")])

        async def _aselect(self, choices, query):
            return self._select(choices, query)

    drinks = ManyvecRetriever.from_nodes([TextNode(id_="water", text="cold water")], tmp_path / "drinks", HashEncoder())
    router = RouterRetriever(
        ByWord(),
        [RetrieverTool.from_defaults(r, description=d) for r, d in ((retriever, "fruit"), (drinks, "drink"))],
        llm=MockLLM(),
    )
    assert ids(router.retrieve("cold drink")) == ["water"]
    assert ids(asyncio.run(router.aretrieve("fruit green apple")))[0] == "pie"


def test_citation_and_reranking_engines_answer_from_the_nodes_found(retriever: ManyvecRetriever) -> None:
    cited = CitationQueryEngine.from_args(None, llm=MockLLM(), retriever=retriever)
    assert "Source 1:\ngreen apple pie" in str(cited.query("green apple"))
    engine = RetrieverQueryEngine(
        retriever.with_options(similarity_top_k=4),
        get_response_synthesizer(llm=MockLLM(), response_mode="compact"),
        node_postprocessors=[ManyvecRerank(index=retriever.index, top_n=1)],
    )
    assert ids(engine.query("black coffee").source_nodes) == ["coffee"]


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine], ids=lambda kind: kind.__name__)
def test_a_chat_engine_answers_from_the_nodes_found(retriever: ManyvecRetriever, kind: type) -> None:
    # LlamaIndex's default memory leaves a database connection open.
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
    chat = kind.from_defaults(retriever=retriever, llm=MockLLM(is_chat_model=True), memory=memory)  # type: ignore[attr-defined]
    first = chat.chat("black coffee")
    assert ids(first.source_nodes)[0] == "coffee"
    assert "black coffee" in str(first)
    assert ids(asyncio.run(chat.achat("green tea")).source_nodes)[0] in TEXTS
    assert len(chat.chat_history) == 4


def test_two_of_three_parts_of_a_text_are_merged_into_it(tmp_path: Path) -> None:
    whole = TextNode(id_="whole", text="green tea. black tea. red wine.")
    parts = [TextNode(id_=text, text=text) for text in ("green tea", "black tea", "red wine")]
    for part in parts:
        part.relationships[NodeRelationship.PARENT] = whole.as_related_node_info()
    whole.relationships[NodeRelationship.CHILD] = [part.as_related_node_info() for part in parts]
    store, texts = ManyvecVectorStore.create(tmp_path, HashEncoder()), SimpleDocumentStore()
    texts.add_documents([whole, *parts])
    context = StorageContext.from_defaults(vector_store=store, docstore=texts)
    index = VectorStoreIndex(parts, storage_context=context, embed_model=ManyvecEmbedding(HashEncoder()))
    for first in (index.as_retriever(similarity_top_k=2), ManyvecRetriever(store.client, 2)):
        assert ids(AutoMergingRetriever(first, context).retrieve("tea")) == ["whole"]
        assert set(ids(AutoMergingRetriever(first, context, simple_ratio_thresh=0.7).retrieve("tea"))) == {
            "green tea",
            "black tea",
        }


def test_a_sentence_found_is_replaced_by_the_window_around_it(tmp_path: Path) -> None:
    parser = SentenceWindowNodeParser(sentence_splitter=lambda text: text.splitlines(keepends=True), window_size=1)
    document = Document(text="Apples are red.\nTea is green.\nCoffee is black.\nWine is white.")
    retriever = ManyvecRetriever.from_nodes(parser.get_nodes_from_documents([document]), tmp_path, HashEncoder())
    (found, *_) = retriever.retrieve("coffee")
    assert found.text.strip() == "Coffee is black."
    (shown,) = MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes([found])
    assert [word in shown.text for word in ("Apples", "Tea", "Coffee", "Wine")] == [False, True, True, True]
