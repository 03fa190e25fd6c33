"""Images of every LlamaIndex class are stored as pages, and blank nodes are left out."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    TextNode,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.manyvec import ManyvecEmbedding
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
    image = found.image if isinstance(found, ImageNode) else found.image_resource.data.decode()
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
    assert found.image_resource.data == node.image_resource.data
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
