"""`ManyvecVectorStore`: search by token vectors and by images, and page images added by path."""

import base64
import io

import numpy as np
import pytest
from langchain_core.documents import Document

import manyvec
from langchain_manyvec import ManyvecEmbeddings, ManyvecReranker, ManyvecVectorStore
from manyvec.testing import ColorEncoder, HashEncoder

Image = pytest.importorskip("PIL.Image", reason="needs manyvec[images]")


@pytest.fixture
def store(tmp_path) -> ManyvecVectorStore:
    texts = ["green apple pie", "green tea", "red wine"]
    store = ManyvecVectorStore.from_texts(
        texts,
        ColorEncoder(),
        [{"year": 2020 + i} for i in range(3)],
        ids=["pie", "tea", "wine"],
        uri=tmp_path / "index",
        filter_columns={"year": int},
    )
    store.add_images([save(tmp_path, "red"), save(tmp_path, "blue")], [{"year": 2023}, {}], ["p-red", None])
    return store


def save(folder, color):
    path = folder / f"{color}.png"
    Image.new("RGB", (32, 16), color).save(path)
    return path


def picture(color):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), color).save(buffer, "PNG")
    return buffer.getvalue()


def ids(documents):
    return [document.id for document in documents]


# Token vectors


async def test_token_vectors_find_what_their_text_finds(store):
    tokens = ColorEncoder().encode_queries(["green apple"])
    expected = store.similarity_search_with_score("green apple", 3)
    for vectors in (tokens, tokens.vectors, tokens.vectors.tolist()):
        assert store.similarity_search_by_vector(vectors, 3) == [document for document, _ in expected]
        assert await store.asimilarity_search_by_vector(vectors, 3) == [document for document, _ in expected]
        assert store.similarity_search_with_score_by_vector(vectors, 3) == expected
        assert await store.asimilarity_search_with_score_by_vector(vectors, 3) == expected
        assert ids(store.similarity_search_by_vector(vectors, 3, filter={"year": 2021})) == ["tea"]
    assert ids(store.max_marginal_relevance_search_by_vector(tokens, 2)) == ids(
        store.max_marginal_relevance_search("green apple", 2)
    )


def test_stored_token_vectors_find_their_own_document(store):
    columns = store.get(["pie", "tea", "wine"], include=["embeddings"])
    for id, vectors in zip(columns["ids"], columns["embeddings"], strict=True):
        assert ids(store.similarity_search_by_vector(vectors, 1)) == [id]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (ManyvecEmbeddings(HashEncoder()).embed_query("tea"), "got one vector of 64 numbers"),
        (np.ones((2, 3), np.float32), r"shape \(n_tokens, 64\), got \(2, 3\)"),
        (np.full((2, 64), np.nan), "NaN"),
        ([], "n_tokens"),
    ],
    ids=["one vector", "dim", "nan", "empty"],
)
def test_vectors_of_another_shape_are_errors_that_say_what_is_needed(store, vectors, message):
    with pytest.raises(manyvec.InputError, match=message):
        store.similarity_search_by_vector(vectors)


def test_defaults_of_the_store_that_need_words_do_not_apply_to_vectors(store):
    mixing = ManyvecVectorStore(store.index, lexical_weight=0.3, evidence=True)
    tokens = ColorEncoder().encode_queries(["tea"])

    assert ids(mixing.similarity_search_by_vector(tokens, 1)) == ["tea"]
    with pytest.raises(manyvec.InputError, match="lexical_weight"):
        mixing.similarity_search_by_vector(tokens, 1, lexical_weight=0.3)


# Images


async def test_an_image_finds_pages_and_texts_and_a_text_finds_pages(store, tmp_path):
    red = save(tmp_path, "red")
    assert set(ids(store.similarity_search_by_image(red, 2))) == {"p-red", "wine"}
    assert set(ids(await store.asimilarity_search_by_image(str(red), 2))) == {"p-red", "wine"}
    assert ids(store.similarity_search_by_image(red, filter={"year": 2023})) == ["p-red"]
    (page,) = store.similarity_search("blue", 1)
    assert page.page_content == "" and page.metadata == {}
    assert store.index.get(page.id)[0].image == (tmp_path / "blue.png").read_bytes()


async def test_images_are_added_with_texts_metadata_and_ids(store, tmp_path):
    paths = [save(tmp_path, color) for color in ("green", "black")]
    columns = [{"page": 1}, {"page": 2}], ["a", None]
    given = store.add_images(paths, *columns, texts=["a caption", ""])
    again = await store.aadd_images(list(map(str, paths)), *columns, texts=["a caption", ""])

    assert given == again and given[0] == "a" and store.index.count() == 7
    assert store.get_by_ids(["a"]) == [Document("a caption", id="a", metadata={"page": 1})]


def test_images_without_ids_differ_by_image_and_metadata(store, tmp_path):
    red = save(tmp_path, "red")
    added = store.add_images([red, save(tmp_path, "blue"), red], [{}, {}, {"copy": True}])

    assert len(set(added)) == 3


def test_what_is_no_image_or_cannot_be_read_is_an_error_and_adds_nothing(store, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    n_before = store.index.count()
    for paths, message in [
        ([tmp_path / "nowhere.png"], "nowhere.png cannot be read"),
        ([save(tmp_path, "red"), tmp_path / "text.png"], "image"),
    ]:
        with pytest.raises(manyvec.InputError, match=message):
            store.add_images(paths)
    with pytest.raises(manyvec.InputError, match="got 1 images"):
        store.add_images([save(tmp_path, "red")], [{}, {}])
    assert store.index.count() == n_before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7 not an image", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
        ("bomb", "pixels"),
    ],
    ids=["a lie about its type", "damaged", "bomb"],
)
def test_an_image_of_a_stranger_is_refused_in_searches_and_when_it_is_added(store, tmp_path, content, message):
    path = tmp_path / "page.png"
    if content == "bomb":
        Image.new("1", (30_000, 30_000)).save(path)
    else:
        path.write_bytes(content)
    for call in (store.similarity_search_by_image, lambda path: store.add_images([path])):
        with pytest.raises(manyvec.InputError, match=message):
            call(path)
    assert store.index.count() == 5


def test_a_model_that_reads_no_images_is_an_error(index, tmp_path):
    store = ManyvecVectorStore(index)
    with pytest.raises(manyvec.InputError, match="images"):
        store.add_images([save(tmp_path, "red")])
    with pytest.raises(manyvec.InputError, match="hash-64 reads no images"):
        store.similarity_search_by_image(save(tmp_path, "red"))


def test_pages_are_reranked_by_their_images_stored_or_not(tmp_path):
    def as_url(color):
        return "data:image/png;base64," + base64.b64encode(picture(color)).decode()

    index = manyvec.Index.create(tmp_path / "i", ColorEncoder())
    index.add([{"id": "red", "image": picture("red")}])
    documents = [
        Document("", id="red"),
        Document("", id="green", metadata={"image": picture("green")}),
        Document("", id="blue", metadata={"image": as_url("blue")}),
        Document("white", id="white", metadata={"image": "/etc/passwd"}),
    ]
    reranker = ManyvecReranker(index=index, top_n=1)
    for color in ("red", "green", "blue", "white"):
        assert reranker.compress_documents(documents, color)[0].id == color
    with pytest.raises(manyvec.InputError, match="document 'x': its image is not base64"):
        reranker.compress_documents([Document("", id="x", metadata={"image": "data:image/png;base64,?"})], "red")
