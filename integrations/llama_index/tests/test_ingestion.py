"""LlamaIndex's ingestion pipeline with the store: nodes are stored once, changed documents replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec.testing import CountingEncoder, HashEncoder


def documents(*numbers: int, text: str = "One sentence about number {}. ") -> list[Document]:
    return [Document(id_=f"doc-{i}", text=text.format(i) * 20, metadata={"number": i}) for i in numbers]


def pipeline(store: ManyvecVectorStore, **options: object) -> IngestionPipeline:
    splitter = SentenceSplitter(
        chunk_size=64, chunk_overlap=0, include_metadata=False, id_func=lambda i, document: f"{document.id_}-{i}"
    )
    return IngestionPipeline(transformations=[splitter, ManyvecEmbedding(HashEncoder())], vector_store=store, **options)


@pytest.fixture
def store(tmp_path: Path) -> ManyvecVectorStore:
    return ManyvecVectorStore.create(tmp_path / "index", HashEncoder(), filter_columns={"number": int})


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_two_runs_store_and_encode_each_node_once(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    store = ManyvecVectorStore.create(tmp_path, encoder)
    nodes = pipeline(store).run(documents=documents(1, 2))
    assert len(nodes) > 4
    assert len(encoder.texts) == store.client.count() == len(nodes)
    pipeline(store).run(documents=documents(1, 2))
    assert len(encoder.texts) == store.client.count() == len(nodes)


async def test_two_runs_of_the_async_pipeline_store_each_node_once(store: ManyvecVectorStore) -> None:
    nodes = await pipeline(store).arun(documents=documents(1, 2))
    await pipeline(store).arun(documents=documents(1, 2))
    assert store.client.count() == len(nodes)


def test_nodes_with_random_ids_are_stored_once_if_the_pipeline_has_a_docstore(store: ManyvecVectorStore) -> None:
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    docstore = SimpleDocumentStore()
    for _ in range(2):
        steps = [splitter, ManyvecEmbedding(HashEncoder())]
        IngestionPipeline(transformations=steps, vector_store=store, docstore=docstore).run(documents=documents(1))
    ids = store.client.ids()
    assert len(ids) == len({node.text + str(node.start_char_idx) for node in store.get_nodes()})  # type: ignore[attr-defined]


def test_a_changed_document_replaces_its_old_nodes(store: ManyvecVectorStore) -> None:
    docstore = SimpleDocumentStore()
    pipeline(store, docstore=docstore).run(documents=documents(1, 2))
    n_before = store.client.count()
    (shorter,) = documents(2, text="Something new. ")
    pipeline(store, docstore=docstore).run(documents=[*documents(1), shorter])
    assert store.client.count() < n_before
    texts = {node.text for node in store.get_nodes() if node.ref_doc_id == "doc-2"}  # type: ignore[attr-defined]
    assert texts
    assert all("new" in text for text in texts)


def test_the_nodes_of_a_removed_document_are_deleted(store: ManyvecVectorStore) -> None:
    docstore, strategy = SimpleDocumentStore(), DocstoreStrategy.UPSERTS_AND_DELETE
    pipeline(store, docstore=docstore, docstore_strategy=strategy).run(documents=documents(1, 2))
    pipeline(store, docstore=docstore, docstore_strategy=strategy).run(documents=documents(2))
    assert {node.ref_doc_id for node in store.get_nodes()} == {"doc-2"}


def test_documents_that_are_not_split_are_upserted_and_deleted(store: ManyvecVectorStore) -> None:
    docstore = SimpleDocumentStore()
    for given in (documents(1, 2), documents(2, 3)):
        IngestionPipeline(
            transformations=[ManyvecEmbedding(HashEncoder())],
            vector_store=store,
            docstore=docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        ).run(documents=given)
    assert store.client.ids() == ["doc-2", "doc-3"]


def test_a_persisted_cache_avoids_encoding_again(tmp_path: Path, store: ManyvecVectorStore) -> None:
    encoder = CountingEncoder()
    n_encoded = []
    for _ in range(2):
        cache = IngestionCache.from_persist_path(str(tmp_path / "cache")) if n_encoded else IngestionCache()
        run = IngestionPipeline(transformations=[ManyvecEmbedding(encoder)], vector_store=store, cache=cache)
        run.run(documents=documents(1, 2))
        cache.persist(str(tmp_path / "cache"))
        n_encoded.append(len(encoder.texts))
    assert n_encoded == [2, 2]
    assert store.client.count() == 2


def test_nodes_of_a_pipeline_keep_their_source_document(store: ManyvecVectorStore) -> None:
    nodes = pipeline(store).run(documents=documents(7))
    stored = {node.node_id: node for node in store.get_nodes()}
    for node in nodes:
        assert stored[node.node_id] == node.model_copy(update={"embedding": None})
        assert stored[node.node_id].ref_doc_id == "doc-7"
