"""Images of every LlamaIndex class are stored as pages, and blank nodes are left out."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.indices.multi_modal import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.manyvec import ManyvecEmbedding, ManyvecMultiModalEmbedding
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

import manyvec
from manyvec.testing import ColorEncoder, HashEncoder


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (32, 16), color).save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(picture("red"))
    return path


def nodes_of(path: Path) -> dict[str, BaseNode]:
    """The same image in each of LlamaIndex's classes."""
    data = as_base64(path.read_bytes())
    return {
        "image node, base64": ImageNode(id_="x", image=data),
        "image node, path": ImageNode(id_="x", image_path=str(path)),
        "image document, base64": ImageDocument(id_="x", image=data),
        "image document, path": ImageDocument(id_="x", image_path=str(path)),
        "node, bytes": Node(id_="x", image_resource=MediaResource(data=path.read_bytes())),
        "node, base64": Node(id_="x", image_resource=MediaResource(data=data.encode())),
        "node, path": Node(id_="x", image_resource=MediaResource(path=path)),
        "node with text": Node(
            id_="x", text_resource=MediaResource(text="a caption"), image_resource=MediaResource(path=path)
        ),
        "document": Document(id_="x", image_resource=MediaResource(path=path), metadata={"page": 1}),
    }


KINDS = [
    "image node, base64",
    "image node, path",
    "image document, base64",
    "image document, path",
    "node, bytes",
    "node, base64",
    "node, path",
    "node with text",
    "document",
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_stored_as_a_page_and_restored_in_its_class(tmp_path: Path, red: Path, kind: str) -> None:
    node = nodes_of(red)[kind]
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    store.add([node, TextNode(id_="text", text="a blue text")])
    red.unlink()

    (stored,) = store.client.get("x")
    assert stored.image == picture("red") and as_base64(picture("red")) not in str(stored.metadata)
    result = store.query(VectorStoreQuery(query_str="red", similarity_top_k=1))
    assert result.ids == ["x"] and result.similarities == [pytest.approx(1, abs=0.01)]
    (found,) = result.nodes
    assert type(found) is type(node)
    assert found.metadata == node.metadata
    assert found.get_content() == node.get_content()
    image = found.image if isinstance(found, ImageNode) else found.image_resource.data.decode()  # type: ignore[attr-defined]
    assert image == as_base64(picture("red"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_alone_is_an_error_in_an_index_that_reads_no_images(tmp_path: Path, red: Path, kind: str) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder())
    node = nodes_of(red)[kind]
    if node.get_content():
        store.add([node])
        assert store.get_nodes(["x"]) == [node]
    else:
        with pytest.raises(manyvec.InputError, match="'x' has an image but no text, and hash-64 reads no images"):
            store.add([node])


def test_image_bytes_survive_in_an_index_that_reads_no_images(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder())
    node = Node(
        id_="x",
        text_resource=MediaResource(text="a caption"),
        image_resource=MediaResource(data=picture("red"), mimetype="image/png"),
    )
    store.add([node])

    (found,) = store.get_nodes(["x"])
    assert found.image_resource.data == node.image_resource.data  # type: ignore[attr-defined]
    assert found == node


def test_a_url_in_an_image_resource_is_never_fetched(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    node = Node(id_="x", image_resource=MediaResource(url="http://127.0.0.1:9/page.png"))
    with pytest.raises(manyvec.InputError, match="its image is the URL http://127"):
        store.add([node])


def test_from_documents_and_from_nodes_store_image_documents_as_pages(tmp_path: Path, red: Path) -> None:
    # LlamaIndex itself skips documents without any text or metadata.
    document = ImageDocument(id_="x", image_path=str(red), metadata={"file_name": "red.png"})
    store = ManyvecVectorStore.create(tmp_path / "llama", ColorEncoder())
    VectorStoreIndex.from_documents(
        [document],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=ManyvecEmbedding(ColorEncoder()),
    )
    retriever = ManyvecRetriever.from_nodes([document], tmp_path / "manyvec", ColorEncoder())

    for index in (store.client, retriever.index):
        (id,) = index.ids()
        assert index.get(id)[0].image == picture("red")


def test_image_nodes_of_an_index_are_reranked_by_their_images(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", ColorEncoder())
    pages = [ImageNode(id_=color, image=as_base64(picture(color))) for color in ("red", "green", "blue")]
    store.add(pages)

    given = [NodeWithScore(node=page, score=0.5) for page in pages]
    found = ManyvecRerank(index=store.client, top_n=1).postprocess_nodes(given, query_str="blue")
    assert [(n.node_id, n.score) for n in found] == [("blue", pytest.approx(1, abs=0.01))]


@pytest.fixture
def colors(tmp_path: Path) -> ManyvecVectorStore:
    store = ManyvecVectorStore.create(tmp_path / "colors", ColorEncoder(), filter_columns={"year": int})
    store.add([ImageNode(id_=f"page-{color}", image=as_base64(picture(color))) for color in ("red", "green", "blue")])
    store.add([TextNode(id_="wine", text="red wine", metadata={"year": 2020}), TextNode(id_="tea", text="green tea")])
    return store


async def test_a_query_with_an_image_is_searched_by_the_image(colors: ManyvecVectorStore, red: Path) -> None:
    retriever = ManyvecRetriever(colors.client, similarity_top_k=2)
    query = QueryBundle("", image_path=str(red))

    assert {node.node_id for node in retriever.retrieve(query)} == {"page-red", "wine"}
    assert {node.node_id for node in await retriever.aretrieve(query)} == {"page-red", "wine"}
    filtered = retriever.with_options(filters={"year": 2020})
    assert [node.node_id for node in filtered.retrieve(query)] == ["wine"]
    assert retriever.with_options(similarity_top_k=0).retrieve(query) == []


def test_a_query_with_text_and_image_is_searched_by_both(colors: ManyvecVectorStore, red: Path) -> None:
    (found,) = ManyvecRetriever(colors.client, 1).retrieve(QueryBundle("wine", image_path=str(red)))

    assert found.node_id == "wine"
    # The word, and two patches of the image.
    assert found.score == pytest.approx(3, abs=0.01)


def test_an_image_query_is_an_error_for_options_that_need_words(colors: ManyvecVectorStore, red: Path) -> None:
    with pytest.raises(manyvec.InputError, match="evidence"):
        ManyvecRetriever(colors.client, evidence=True).retrieve(QueryBundle("", image_path=str(red)))


def test_images_are_embedded_as_the_mean_of_their_patches(red: Path) -> None:
    embedding = ManyvecMultiModalEmbedding(ColorEncoder())
    expected = embedding.get_text_embedding("red")

    assert embedding.get_image_embedding(str(red)) == pytest.approx(expected, abs=1e-6)
    assert embedding.get_image_embedding(io.BytesIO(red.read_bytes())) == pytest.approx(expected, abs=1e-6)
    assert asyncio.run(embedding.aget_image_embedding(str(red))) == pytest.approx(expected, abs=1e-6)
    assert len(embedding.get_image_embedding_batch([str(red), str(red)])) == 2
    with pytest.raises(manyvec.InputError, match="hash-64 reads no images"):
        ManyvecMultiModalEmbedding(HashEncoder()).get_image_embedding(str(red))


def test_a_multi_modal_index_finds_texts_and_images(tmp_path: Path) -> None:
    texts = ManyvecVectorStore.create(tmp_path / "texts", ColorEncoder())
    images = ManyvecVectorStore.create(tmp_path / "images", ColorEncoder())
    embedding = ManyvecMultiModalEmbedding(ColorEncoder())
    index = MultiModalVectorStoreIndex(
        [
            TextNode(id_="wine", text="red wine"),
            TextNode(id_="tea", text="green tea"),
            ImageNode(id_="page-red", image=as_base64(picture("red")), metadata={"page": 1}),
            ImageNode(id_="page-blue", image=as_base64(picture("blue")), metadata={"page": 1}),
        ],
        storage_context=StorageContext.from_defaults(vector_store=texts),
        image_vector_store=images,
        embed_model=embedding,
        image_embed_model=embedding,
    )
    retriever = index.as_retriever(similarity_top_k=1, image_similarity_top_k=1)

    assert [node.node_id for node in retriever.retrieve("red wine")] == ["wine", "page-red"]
    assert [node.node_id for node in retriever.text_to_image_retrieve("blue")] == ["page-blue"]
    assert texts.client.ids() == ["tea", "wine"] and images.client.ids() == ["page-blue", "page-red"]


@pytest.mark.parametrize("blank", ["", " \n", "\u00a0"])
def test_blank_nodes_are_left_out_and_logged_with_file_and_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blank: str
) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder())
    page = TextNode(id_="p7", text=blank, metadata={"file_name": "report.pdf", "page_label": "7"})
    with caplog.at_level(logging.WARNING):
        assert store.add([TextNode(id_="one", text="one"), page, TextNode(id_="two", text="two")]) == [
            "one",
            "p7",
            "two",
        ]
        ManyvecRetriever(store.client).add_nodes([Node(id_="n", text_resource=MediaResource(text=blank))])

    expected = "left out 1 of 3 nodes, which have no text and no image: position 1 id='p7' file_name='report.pdf'"
    assert caplog.messages[0] == f"{expected} page_label='7'"
    assert "position 0 id='n'" in caplog.messages[1]
    assert store.client.ids() == ["one", "two"]


def test_ids_of_image_nodes_stay_with_their_nodes_when_a_blank_node_comes_before(tmp_path: Path) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder())
    image = ImageNode(id_="image", text="a caption")
    index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding(HashEncoder()))
    index.insert_nodes([TextNode(id_="blank", text=" "), image])

    assert index.index_struct.nodes_dict == {"image": "image"}


def test_pages_that_no_index_holds_are_reranked_by_their_images(tmp_path):
    red = tmp_path / "red.png"
    red.write_bytes(picture("red"))
    pages = [
        ImageNode(id_="red", image_path=str(red)),
        ImageNode(id_="green", image=as_base64(picture("green"))),
        Node(id_="blue", image_resource=MediaResource(data=picture("blue"))),
        TextNode(id_="text", text="white"),
    ]
    given = [NodeWithScore(node=page, score=0.5) for page in pages]
    rerank = ManyvecRerank(ColorEncoder(), top_n=1)
    for color, id in (("red", "red"), ("green", "green"), ("blue", "blue"), ("white", "text")):
        assert rerank.postprocess_nodes(given, query_str=color)[0].node.node_id == id
    bundle = QueryBundle("", image_path=str(red))
    assert rerank.postprocess_nodes(given, query_bundle=bundle)[0].node.node_id == "red"
    with pytest.raises(manyvec.InputError, match="reads no images"):
        ManyvecRerank(HashEncoder()).postprocess_nodes(given, query_bundle=bundle)
