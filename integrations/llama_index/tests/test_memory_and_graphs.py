"""The vector store as long-term memory of a chat, and as the vector store of a property graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core import PropertyGraphIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.graph_stores import SimplePropertyGraphStore
from llama_index.core.graph_stores.types import EntityNode, Relation
from llama_index.core.llms import MockLLM
from llama_index.core.memory import Memory, VectorMemoryBlock
from llama_index.core.schema import TextNode, TransformComponent
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec.testing import HashEncoder


def message(role: str, text: str, session: str | None = None) -> ChatMessage:
    return ChatMessage(role=role, content=text, additional_kwargs={"session_id": session} if session else {})


@pytest.fixture
def block(tmp_path: Path) -> VectorMemoryBlock:
    store = ManyvecVectorStore.create(tmp_path / "memory", HashEncoder(), filter_columns={"session_id": str})
    return VectorMemoryBlock(vector_store=store, embed_model=ManyvecEmbedding(HashEncoder()), similarity_top_k=1)


async def test_a_memory_block_recalls_messages_of_its_session(block: VectorMemoryBlock) -> None:
    await block.aput([message("user", "my cat is called Tom", "a")], from_short_term_memory=True)
    await block.aput([message("user", "my cat is called Kit", "b")], from_short_term_memory=True)
    await block.aput([message("user", "the weather is fine", "a")], from_short_term_memory=True)

    recalled = await block.aget([message("user", "how is my cat called")], session_id="b")
    assert "Kit" in recalled and "Tom" not in recalled


async def test_a_memory_recalls_what_no_longer_fits_into_the_chat_history(block: VectorMemoryBlock) -> None:
    memory = Memory.from_defaults(
        session_id="a", token_limit=60, chat_history_token_ratio=0.5, token_flush_size=10, memory_blocks=[block]
    )
    await memory.aput(message("user", "my cat is called Tom"))
    for i in range(12):
        await memory.aput(message("user", f"message number {i} about the weather"))
    # LlamaIndex leaves the connection to its chat store open.
    await memory.sql_store._async_engine.dispose()  # type: ignore[attr-defined]

    assert block.vector_store.client.count() > 0
    assert "Tom" in await block.aget([message("user", "my cat is called")])


class People(TransformComponent):
    """Extracts fixed entities, in place of a language model."""

    def __call__(self, nodes, **kwargs):
        alice, acme = EntityNode(name="Alice Smith"), EntityNode(name="Acme Tools")
        bob, tea = EntityNode(name="Bob Miller"), EntityNode(name="green tea")
        for node in nodes:
            node.metadata["nodes"] = [alice, acme, bob, tea]
            node.metadata["relations"] = [
                Relation(label="WORKS_AT", source_id=alice.id, target_id=acme.id),
                Relation(label="DRINKS", source_id=bob.id, target_id=tea.id),
            ]
        return nodes


def test_a_property_graph_finds_its_entities_by_embedding(tmp_path: Path) -> None:
    embedding = ManyvecEmbedding(HashEncoder())
    index = PropertyGraphIndex(
        nodes=[TextNode(id_="text", text="Alice Smith works at Acme Tools; Bob Miller drinks green tea.")],
        llm=MockLLM(),
        kg_extractors=[People()],
        property_graph_store=SimplePropertyGraphStore(),
        vector_store=ManyvecVectorStore.create(tmp_path / "entities", HashEncoder()),
        embed_model=embedding,
        embed_kg_nodes=True,
        use_async=False,
    )
    retriever = index.as_retriever(include_text=False, similarity_top_k=1, sub_retrievers=None)
    (found,) = [node for node in retriever.sub_retrievers if type(node).__name__ == "VectorContextRetriever"]  # type: ignore[attr-defined]
    texts = [node.text for node in found.retrieve("where does Alice Smith work")]

    assert texts == ["Alice Smith -> WORKS_AT -> Acme Tools"]
