"""`ManyvecVectorStore` over a real index, alone and in LlamaIndex's `VectorStoreIndex`."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
from pathlib import Path

import lancedb
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

import manyvec
from manyvec.testing import ColorEncoder, HashEncoder


def split_from(document: str, id: str, text: str, **metadata: object) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(id_=id, text=text, metadata=metadata, relationships=source)


MENU = [
    split_from("menu", "m1", "red apple pie", year=2021),
    split_from("menu", "m2", "green tea", year=2022),
    split_from("o'brien's list", "o1", "green apple", year=2023),
    TextNode(id_="alone", text="black coffee"),
]


@pytest.fixture
def store(tmp_path: Path) -> ManyvecVectorStore:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder(), filter_columns={"year": int})
    store.add(MENU)
    return store


def found(store: ManyvecVectorStore, text: str | None = "green apple", k: int = 9, **options: object) -> list[str]:
    return store.query(VectorStoreQuery(query_str=text, similarity_top_k=k, **options)).ids


def year(op: str, value: int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="year", operator=FilterOperator(op), value=value)])


NODES = [
    *MENU,
    Document(id_="d", text="a whole document", metadata={"file": "a.txt"}),
    Node(id_="n", text_resource=MediaResource(text="a node", path=Path("a.md"))),
    ImageNode(id_="i", text="a caption", image_path="a.png", image_mimetype="image/png"),
    IndexNode(id_="x", text="ask the other index", index_id="other"),
]


def test_nodes_are_restored_unchanged(tmp_path: Path) -> None:
    given = copy.deepcopy(NODES)
    store = ManyvecVectorStore.create(tmp_path, HashEncoder())
    assert store.add(given) == [node.node_id for node in NODES]
    assert given == NODES
    assert store.get_nodes([node.node_id for node in NODES]) == NODES
    result = store.query(VectorStoreQuery(query_str="anything", similarity_top_k=99))
    assert {node.node_id: node for node in result.nodes} == {node.node_id: node for node in NODES}
    assert [type(node) for node in store.get_nodes(["d", "n", "i", "x"])] == [Document, Node, ImageNode, IndexNode]
    assert result.ids == [node.node_id for node in result.nodes]
    assert result.similarities == sorted(result.similarities, reverse=True)


def test_dim_keeps_the_first_dims_of_each_vector_and_the_next_call_finds_them(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path, HashEncoder(), dim=16)
    store.add([TextNode(id_="a", text="late interaction")])
    retriever = ManyvecRetriever.from_nodes([TextNode(id_="b", text="early")], tmp_path, HashEncoder(), dim=16)
    assert store.client.info().dim == retriever.index.info().dim == 16
    reopened = ManyvecRetriever.from_nodes([], tmp_path, HashEncoder(), similarity_top_k=1)
    assert [found.node.node_id for found in reopened.retrieve("late")] == ["a"]
    with pytest.raises(manyvec.ManifestError, match="has 16 dims, not 8"):
        ManyvecVectorStore.create(tmp_path, HashEncoder(), dim=8)


def test_the_last_of_several_nodes_with_the_same_id_is_stored(store: ManyvecVectorStore) -> None:
    assert store.add([TextNode(id_="m1", text="first"), TextNode(id_="m1", text="second")]) == ["m1", "m1"]
    assert [node.text for node in store.get_nodes(["m1"])] == ["second"]  # type: ignore[attr-defined]


def test_a_node_that_cannot_be_stored_is_named_in_the_error_and_nothing_is_stored(store: ManyvecVectorStore) -> None:
    fine = TextNode(id_="fine", text="fine")
    for bad, message in [
        (ImageNode(id_="bad", image_path="a.png"), "'bad' has an image but no text"),
        (TextNode(id_="bad", text="x", metadata={"at": object()}), r"'bad': metadata\['at'\]"),
        (TextNode(id_="bad", text="x", metadata={"year": "soon"}), r"'bad': metadata\['year'\]"),
        (TextNode(id_="bad", text="x", metadata={"_ref_doc_id": "y"}), "'_ref_doc_id' is reserved"),
    ]:
        with pytest.raises(manyvec.InputError, match=message):
            store.add([fine, bad])
    assert store.get_nodes(["fine"]) == []


def test_delete_removes_the_nodes_of_a_document(store: ManyvecVectorStore) -> None:
    store.delete("menu")
    store.delete("unknown")
    assert found(store) == ["o1", "alone"]
    store.delete("o'brien's list")
    # A document that was stored whole is its own source.
    store.delete("alone")
    assert found(store) == []


def test_delete_works_in_an_index_without_a_column_for_source_documents(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path, HashEncoder())
    ManyvecRetriever(index).add_nodes(MENU)
    store = ManyvecVectorStore(index)
    assert found(store, doc_ids=["menu", "alone"]) == ["m1", "m2", "alone"]
    store.delete("menu")
    assert index.ids() == ["alone", "o1"]


def test_nodes_are_deleted_by_id_by_filter_or_by_both(store: ManyvecVectorStore) -> None:
    store.delete_nodes([])
    store.delete_nodes(["m1", "m2"], year(">", 2021))
    assert store.client.ids() == ["alone", "m1", "o1"]
    store.delete_nodes(filters=year("<", 2022))
    store.delete_nodes(["alone", "unknown"])
    assert store.client.ids() == ["o1"]
    with pytest.raises(manyvec.InputError, match="clear"):
        store.delete_nodes()
    store.clear()
    assert store.client.ids() == []
    assert store.client.filter_columns["year"] == "int"


def test_nodes_are_returned_by_id_by_filter_or_by_both(store: ManyvecVectorStore) -> None:
    assert store.get_nodes(["o1", "unknown", "m1"]) == [MENU[2], MENU[0]]
    assert store.get_nodes(filters=year(">=", 2022)) == [MENU[1], MENU[2]]
    assert store.get_nodes(["o1", "m1"], year("<", 2023)) == [MENU[0]]
    assert store.get_nodes([]) == []
    assert {node.node_id for node in store.get_nodes()} == {node.node_id for node in MENU}


def test_a_query_is_restricted_to_the_nodes_and_documents_it_names(store: ManyvecVectorStore) -> None:
    assert found(store, node_ids=["m2", "alone", "unknown"]) == ["m2", "alone"]
    assert found(store, doc_ids=["menu"]) == ["m1", "m2"]
    assert found(store, doc_ids=["o'brien's list", "alone"]) == ["o1", "alone"]
    assert found(store, doc_ids=["menu"], node_ids=["m2", "o1"]) == ["m2"]
    assert found(store, doc_ids=["menu"], filters=year("!=", 2021)) == ["m2"]
    assert len(found(store, node_ids=[], doc_ids=[])) == 4


def test_the_best_nodes_are_returned_first_and_at_most_similarity_top_k(store: ManyvecVectorStore) -> None:
    result = store.query(VectorStoreQuery(query_str="green apple", similarity_top_k=2))
    assert result.ids == ["o1", "m1"]
    assert result.similarities == [hit.score for hit in store.client.search("green apple", 2)]
    assert found(store, k=0) == []


def test_a_text_search_finds_only_nodes_that_share_a_word_with_the_query(store: ManyvecVectorStore) -> None:
    assert set(found(store, "green juice", mode=VectorStoreQueryMode.TEXT_SEARCH)) == {"m2", "o1"}
    assert found(store, "green juice", mode=VectorStoreQueryMode.TEXT_SEARCH, filters=year(">", 2022)) == ["o1"]
    assert found(store, "water", mode=VectorStoreQueryMode.TEXT_SEARCH) == []


def test_a_hybrid_search_mixes_bm25_into_late_interaction(store: ManyvecVectorStore) -> None:
    hybrid = {"mode": VectorStoreQueryMode.HYBRID}
    store.add([TextNode(id_="long", text="green juice " + "of many fruits " * 9)])
    # The long text holds both words among many others, so BM25 prefers the short one.
    store.add([TextNode(id_="short", text="juice juice")])
    by_words = found(store, "green juice", **hybrid, alpha=0)
    assert set(by_words[:4]) == {"long", "short", "m2", "o1"}
    assert found(store, "green juice", **hybrid, alpha=1) == found(store, "green juice") != by_words
    for alpha, weight in [(None, 0.3), (0.7, 0.3), (0.25, 0.75), (0, 1)]:
        result = store.query(VectorStoreQuery(query_str="green juice", similarity_top_k=9, **hybrid, alpha=alpha))
        hits = store.client.search("green juice", 9, lexical_weight=weight)
        assert result.ids == [hit.id for hit in hits]
        assert result.similarities == pytest.approx([hit.final_score for hit in hits])
        assert result.similarities == sorted(result.similarities, reverse=True)
    assert len(found(store, "green juice", **hybrid, hybrid_top_k=1)) == 1
    assert found(store, "green juice", **hybrid, filters=year(">", 2022)) == ["o1"]
    assert found(store, "", **hybrid) == []
    with pytest.raises(manyvec.InputError, match="alpha"):
        found(store, "green juice", **hybrid, alpha=2)


def test_mmr_skips_a_copy_of_a_chosen_node(store: ManyvecVectorStore) -> None:
    store.add([TextNode(id_="o2", text="green apple"), TextNode(id_="o3", text="a red apple")])
    assert found(store, "green apple", 2) == ["o1", "o2"]
    mmr = {"mode": VectorStoreQueryMode.MMR}
    assert found(store, "green apple", 2, **mmr)[0] == "o1"
    assert found(store, "green apple", 2, **mmr)[1] != "o2"
    assert found(store, "green apple", 2, **mmr, mmr_threshold=1) == ["o1", "o2"]
    query = VectorStoreQuery(query_str="green apple", similarity_top_k=2, **mmr)
    assert store.query(query, mmr_threshold=1.0, mmr_prefetch_factor=1).ids == ["o1", "o2"]
    assert store.query(query, mmr_prefetch_factor=1).ids == ["o1", "o2"]


@pytest.mark.parametrize("mode", ["sparse", "semantic_hybrid", "svm", "linear_regression", "logistic_regression"])
def test_an_unsupported_mode_is_an_error(store: ManyvecVectorStore, mode: str) -> None:
    with pytest.raises(manyvec.InputError, match=f"{mode}.*use default"):
        found(store, mode=VectorStoreQueryMode(mode))


@pytest.mark.parametrize(("query_type", "mode"), [("vector", "default"), ("fts", "text_search"), ("hybrid", "hybrid")])
async def test_a_query_type_of_lancedb_selects_the_mode(store: ManyvecVectorStore, query_type: str, mode: str) -> None:
    query = VectorStoreQuery(query_str="green juice", similarity_top_k=9)
    expected = VectorStoreQuery(query_str="green juice", similarity_top_k=9, mode=VectorStoreQueryMode(mode))

    assert store.query(query, query_type=query_type).ids == store.query(expected).ids
    assert (await store.aquery(query, query_type=query_type)).ids == store.query(expected).ids
    index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding(HashEncoder()))
    retriever = index.as_retriever(similarity_top_k=9, vector_store_kwargs={"query_type": query_type})
    assert [node.node_id for node in retriever.retrieve("green juice")] == store.query(expected).ids


def test_evidence_and_depth_can_be_asked_of_a_query(store: ManyvecVectorStore) -> None:
    query = VectorStoreQuery(query_str="green apple", similarity_top_k=1)
    (node,) = store.query(query, evidence=True, depth=5).nodes
    assert [word["text"] for word in node.metadata["evidence"]["words"]] == ["green", "apple"]
    assert store.query(query).nodes == [MENU[2]]


def test_unknown_arguments_are_errors_and_change_nothing(store: ManyvecVectorStore) -> None:
    query = VectorStoreQuery(query_str="green apple")
    for call, message in [
        (lambda: store.query(query, query_type="dense"), "'dense'; use vector, fts, hybrid"),
        (lambda: store.query(query, nprobes=20), "query takes no argument 'nprobes'; known are depth"),
        (lambda: store.query(query, where="year > 2020"), "'where'"),
        (lambda: store.delete("menu", filters=year("<", 2022)), "delete takes no argument 'filters'"),
        (lambda: store.delete_nodes(["m1"], where="true"), "'where'"),
        (lambda: store.add([TextNode(text="x")], mode="overwrite"), "add takes no argument 'mode'"),
    ]:
        with pytest.raises(manyvec.InputError, match=message):
            call()
    assert store.client.ids() == ["alone", "m1", "m2", "o1"]


def test_a_store_survives_to_dict_and_from_dict(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", "minilm")
    store.add(MENU)
    again = ManyvecVectorStore.from_dict(store.to_dict())
    assert again.get_nodes() == store.get_nodes()
    assert again.to_dict() == store.to_dict()
    assert ManyvecVectorStore.from_json(store.to_json()).client.ids() == ["alone", "m1", "m2", "o1"]
    with pytest.raises(manyvec.InputError, match="uri"):
        ManyvecVectorStore()


def test_a_query_without_text_is_an_error_and_an_empty_text_finds_nothing(store: ManyvecVectorStore) -> None:
    with pytest.raises(manyvec.InputError, match="an embedding of 2 dimensions where the index has 64"):
        store.query(VectorStoreQuery(query_embedding=[0.5, 0.5], similarity_top_k=1))
    with pytest.raises(manyvec.InputError, match="neither query_str nor query_embedding"):
        store.query(VectorStoreQuery(similarity_top_k=1))
    assert found(store, "") == []


async def test_a_query_with_an_embedding_alone_is_compared_with_mean_token_vectors(store: ManyvecVectorStore) -> None:
    embedding = ManyvecEmbedding(HashEncoder())
    query = VectorStoreQuery(query_embedding=embedding.get_query_embedding("green apple"), similarity_top_k=2)
    result = store.query(query)

    assert result.ids == ["o1", "m2"] and result.nodes == [MENU[2], MENU[1]]
    assert result.similarities[0] == pytest.approx(1, abs=1e-3)
    # The means of two words each, one of which they share; other words are nearly orthogonal.
    assert result.similarities[1] == pytest.approx(0.5, abs=0.2)
    assert (await store.aquery(query)).ids == result.ids
    query.filters = year("<", 2022)
    assert store.query(query).ids == ["m1"]
    query.similarity_top_k = 0
    assert store.query(query).ids == []
    store.clear()
    query.similarity_top_k = 2
    assert store.query(query).nodes == []


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([0.1] * 3, "an embedding of 3 dimensions where the index has 64: pass query_str"),
        ([float("nan")] * 64, "NaN"),
        (["a"] * 64, "query_embedding must be a list of numbers"),
    ],
    ids=["dim", "nan", "strings"],
)
def test_an_embedding_that_cannot_be_compared_is_an_error(
    store: ManyvecVectorStore, embedding: list[float], message: str
) -> None:
    with pytest.raises(manyvec.InputError, match=message):
        store.query(VectorStoreQuery(query_embedding=embedding, similarity_top_k=2))


def test_the_embedding_of_a_text_without_tokens_finds_nothing(store: ManyvecVectorStore) -> None:
    blank = ManyvecEmbedding(HashEncoder()).get_query_embedding(" ")
    assert blank == [0.0] * 64
    assert store.query(VectorStoreQuery(query_embedding=blank, similarity_top_k=2)).nodes == []


def test_async_methods_do_the_same(store: ManyvecVectorStore) -> None:
    async def calls() -> None:
        query = VectorStoreQuery(query_str="green apple", similarity_top_k=2)
        assert (await store.aquery(query)).ids == ["o1", "m1"]
        assert await store.async_add([TextNode(id_="new", text="new")]) == ["new"]
        assert [node.node_id for node in await store.aget_nodes(["new"])] == ["new"]
        await store.adelete("menu")
        await store.adelete_nodes(["new"])
        assert store.client.ids() == ["alone", "o1"]
        await store.adelete_nodes(filters=year("==", 2023))
        await store.aclear()
        assert store.client.ids() == []

    asyncio.run(calls())


def test_an_existing_index_is_opened_and_keeps_its_columns(tmp_path: Path) -> None:
    ManyvecVectorStore.create(tmp_path / "index", HashEncoder(), filter_columns={"year": int}).add(MENU)
    assert len(ManyvecVectorStore.create(tmp_path / "index", HashEncoder()).get_nodes()) == 4
    assert len(ManyvecVectorStore.from_uri(tmp_path / "index", HashEncoder()).get_nodes()) == 4
    again = ManyvecRetriever.from_nodes(MENU, tmp_path / "index", HashEncoder(), filter_columns={"year": int})
    assert again.index.count() == 4
    with pytest.raises(manyvec.ManifestError, match="has the filter columns"):
        ManyvecVectorStore.create(tmp_path / "index", HashEncoder(), filter_columns={"lang": str})
    with pytest.raises(manyvec.ManifestError):
        ManyvecVectorStore.create(tmp_path / "index", HashEncoder(8))
    with pytest.raises(manyvec.IndexNotFoundError):
        ManyvecVectorStore.from_uri(tmp_path / "nowhere", HashEncoder())


def test_an_index_of_another_writer_is_opened_with_its_own_columns(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path, HashEncoder(), filter_columns={"year": int})
    index.add([{"id": "a", "text": "green apple"}])
    store = ManyvecVectorStore.create(tmp_path, HashEncoder(), filter_columns={"year": int})
    assert store.get_nodes() == [TextNode(id_="a", text="green apple")]


def test_a_vector_store_index_can_be_built_searched_and_changed_without_an_api_key(
    store: ManyvecVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    embedding = ManyvecEmbedding(HashEncoder())
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=2, filters=year("<", 2023))
    assert [node.node_id for node in retriever.retrieve("green apple")] == ["m1", "m2"]
    assert [node.node_id for node in asyncio.run(retriever.aretrieve("green apple"))] == ["m1", "m2"]
    index.insert(Document(id_="new", text="yellow banana"))
    assert index.as_retriever(similarity_top_k=1).retrieve("yellow banana")[0].node.ref_doc_id == "new"
    index.delete_ref_doc("new")
    index.delete_nodes(["o1"])
    assert store.client.ids() == ["alone", "m1", "m2"]


def test_a_storage_context_fills_the_store(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path, HashEncoder())
    context = StorageContext.from_defaults(vector_store=store)
    for _ in range(2):
        VectorStoreIndex(MENU, storage_context=context, embed_model=ManyvecEmbedding(HashEncoder()))
    assert store.client.count() == 4
    assert store.get_nodes(["m2"]) == [MENU[1]]


def test_the_embedding_is_the_mean_of_the_token_vectors() -> None:
    embedding = ManyvecEmbedding(HashEncoder())
    one, two = embedding.get_text_embedding("green apple"), embedding.get_query_embedding("apple green")
    assert one == pytest.approx(two)
    assert sum(x * x for x in one) == pytest.approx(1)
    assert embedding.get_text_embedding_batch(["", "green apple", ""]) == [[0.0] * 64, one, [0.0] * 64]
    assert asyncio.run(embedding.aget_text_embedding_batch(["green apple"])) == [one]
    assert asyncio.run(embedding.aget_query_embedding("")) == [0.0] * 64
    assert asyncio.run(embedding.aget_text_embedding("green apple")) == one
    assert embedding.to_dict()["model_name"] == "hash-64"


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    image = pytest.importorskip("PIL.Image").new("RGB", (48, 32), "white")
    image.paste(color, (16, 0, 32, 16))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_an_image_node_is_restored_with_its_image_by_store_and_retriever(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    node = ImageNode(id_="red", image=as_base64(picture("red")), image_mimetype="image/png", metadata={"page": 3})
    text = TextNode(id_="text", text="a blue text")
    given = copy.deepcopy(node)
    assert store.add([node, text]) == ["red", "text"]
    assert node == given and store.get_nodes(["red", "text"]) == [node, text]
    # The image is stored outside the metadata.
    (stored,) = store.client.get("red")
    assert stored.image == picture("red") and "image" not in stored.metadata["_llama_index"]
    result = store.query(VectorStoreQuery(query_str="red", similarity_top_k=1))
    assert result.nodes == [node] and result.similarities[0] == pytest.approx(1, abs=0.01)
    (found,) = ManyvecRetriever(store.client, similarity_top_k=1, evidence=True).retrieve("red")
    assert isinstance(found.node, ImageNode)
    assert found.node.resolve_image().read() == picture("red")
    assert found.node.metadata["evidence"]["grid"] == [2, 3]
    assert found.node.metadata["evidence"]["words"][0]["patch"] == [0, 1]


def test_the_image_at_the_path_of_an_image_node_is_stored(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(picture("blue"))
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    store.add([ImageNode(id_="blue", text="caption", image_path=str(tmp_path / "page.png"))])
    (tmp_path / "page.png").unlink()
    (found,) = store.get_nodes(["blue"])
    assert (found.text, found.image, found.image_mimetype) == ("caption", as_base64(picture("blue")), "image/png")  # type: ignore[attr-defined]
    assert found.image_path == str(tmp_path / "page.png")  # type: ignore[attr-defined]


def test_a_page_of_another_writer_is_an_image_node(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path / "index", ColorEncoder())
    index.add([{"id": "red", "image": picture("red"), "text": "report.pdf, page 1"}, {"id": "t", "text": "red"}])
    page, text = ManyvecVectorStore(index).get_nodes(["red", "t"])
    assert (type(page), page.text, page.image) == (ImageNode, "report.pdf, page 1", as_base64(picture("red")))  # type: ignore[attr-defined]
    assert type(text) is TextNode
    ManyvecVectorStore(index).delete("red")
    assert index.ids() == ["t"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_url": "http://127.0.0.1:9/page.png", "text": "caption"},
            "node 'bad': its image is the URL http://127.0",
        ),
        ({"image": "no base64!"}, "node 'bad': its image is not base64"),
        ({"image": as_base64(b"no image")}, "document 'bad': its image is damaged or not an image"),
        ({"image_path": "nowhere.png"}, "document 'bad': its image cannot be read"),
    ],
    ids=["url", "base64", "damaged", "path"],
)
def test_an_unreadable_image_is_an_error_that_names_the_node(
    tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    with pytest.raises(manyvec.InputError, match=message):
        store.add([ImageNode(id_="bad", **fields)])
    assert store.get_nodes() == []


def test_a_store_names_its_table_in_a_shared_database(tmp_path):
    options = {"aws_secret_access_key": "s3cr3t"}
    store = ManyvecVectorStore.create(tmp_path, HashEncoder(), table_name="menu", storage_options=options)
    store.add(MENU)
    other = ManyvecVectorStore.create(connection=lancedb.connect(tmp_path), encoder=HashEncoder(), table_name="other")
    assert len(other.get_nodes()) == 0
    assert "s3cr3t" not in repr(store) + store.to_json()
    assert len(ManyvecVectorStore.from_dict(store.to_dict()).get_nodes()) == 4
    assert len(ManyvecVectorStore.from_uri(tmp_path, HashEncoder(), table_name="menu").get_nodes()) == 4
    retriever = ManyvecRetriever.from_nodes(MENU, tmp_path, HashEncoder(), table_name="third", similarity_top_k=1)
    assert ManyvecRetriever.from_uri(tmp_path, HashEncoder(), table_name="third").index.count() == 4
    assert ManyvecRerank.from_dict(ManyvecRerank(index=retriever.index).to_dict())._index.table_name == "third"
