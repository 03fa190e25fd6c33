"""Token vectors that were computed elsewhere: stored with their documents, searched by, brought in and out as files."""

from dataclasses import replace

import numpy as np
import pytest

from manyvec import Document, Index, InputError, ManifestError, ShapeError, Vectors
from manyvec.storage.check import check
from manyvec.testing import ColorEncoder, CountingEncoder, HashEncoder

TEXTS = {"a": "Bread is made of flour and water.", "b": "The museum is closed on Mondays.", "c": "A tea from Assam."}


def encoded(text):
    """The vectors and spans of a text, as another program might have computed them."""
    batch = HashEncoder().encode_documents([text])
    return batch.vectors, batch.spans


def documents(*, spans=True):
    made = {id: encoded(text) for id, text in TEXTS.items()}
    return [
        Document(id, TEXTS[id], {"n": i}, vectors=vectors, spans=of_text if spans else None)
        for i, (id, (vectors, of_text)) in enumerate(made.items())
    ]


def created(tmp_path, **options):
    index = Index.create(tmp_path / "index", Vectors("jina-colbert-v2", 64), **options)
    index.add(documents())
    return index


# Adding and searching


def test_vectors_from_elsewhere_are_searched_as_if_they_had_been_encoded_here(tmp_path):
    created(tmp_path)
    index = Index.open(tmp_path / "index")  # the index knows that nothing has to be loaded
    here = Index.create(tmp_path / "here", HashEncoder())
    here.add([{"id": id, "text": text} for id, text in TEXTS.items()])
    for query in ("closed museum", "flour", "tea from Assam"):
        vectors = HashEncoder().encode_queries([query])
        (a, b, c), expected = index.search(vectors), here.search(query)
        assert [(hit.id, hit.score) for hit in (a, b, c)] == [(hit.id, hit.score) for hit in expected]
        assert index.search(vectors[0])[0].id == a.id
    assert (index.model, index.info().dim, a.metadata) == ("jina-colbert-v2", 64, {"n": 2})


def test_a_query_of_token_vectors_finds_the_passage_to_quote(tmp_path):
    index = created(tmp_path)
    query = HashEncoder().encode_queries(["museum closed"])
    assert index.search(query, k=1, passage_chars=25)[0].passage.text == "The museum is closed on"
    index.add(documents(spans=False))
    assert index.search(query, k=1, passage_chars=25)[0].passage is None
    with pytest.raises(InputError, match="every query is a string"):
        index.search_many([query, "museum"], passage_chars=25)


def test_strings_and_images_are_refused_with_what_to_pass_instead(tmp_path):
    index = created(tmp_path)
    with pytest.raises(InputError, match=r"jina-colbert-v2 are .* shape \(n_tokens, 64\), got a string"):
        index.search("museum")
    with pytest.raises(InputError, match="got an image alone"):
        index.search(b"image")
    with pytest.raises(InputError, match="document 'd' has no vectors"):
        index.add([{"id": "d", "text": "text alone"}])
    with pytest.raises(InputError, match="non-empty string, got ''"):
        Vectors("", 64)
    with pytest.raises(InputError, match="dim must be a positive integer, got 0"):
        Vectors("m", 0)


def test_unchanged_vectors_are_left_alone_and_changed_ones_replaced(tmp_path):
    index = created(tmp_path)
    report = index.add(documents())
    assert (report.added, report.updated, report.unchanged) == (0, 0, 3)
    half = [replace(document, vectors=document.vectors.astype(np.float16)) for document in documents()]
    assert index.add(half).unchanged == 3
    turned = Document("a", TEXTS["a"], {"n": 0}, vectors=-documents()[0].vectors, spans=documents()[0].spans)
    assert index.add([turned]).updated == 1
    np.testing.assert_allclose(index.token_vectors("a").vectors, turned.vectors, atol=1e-3)
    assert index.add([Document("a", TEXTS["a"], {"n": 9}, vectors=turned.vectors, spans=turned.spans)]).updated == 1
    assert not check(index.uri).problems


@pytest.mark.parametrize("storage", ["int8", "int4", "binary"])
def test_vectors_from_elsewhere_are_coded_pooled_and_optimized_like_others(tmp_path, storage):
    index = created(tmp_path, storage=storage, pool_factor=2)
    index.optimize()
    assert index.search(HashEncoder().encode_queries(["closed museum"]), k=1)[0].id == "b"
    assert index.info().tokens == sum((len(d.vectors) + 1) // 2 for d in documents())


def test_pages_bring_their_patches_along(tmp_path, png):
    encoder = ColorEncoder()
    from PIL import Image

    patches = encoder.encode_images([Image.new("RGB", (32, 16), "red")])
    index = Index.create(tmp_path / "index", Vectors("colpali-api", 64))
    index.add([Document("p", image=png, vectors=patches.vectors, spans=patches.spans), *documents()])
    (hit,) = index.search(encoder.encode_queries(["red"]), k=1)
    assert (hit.id, hit.is_page, round(hit.score, 3)) == ("p", True, 1.0)
    assert [hit.is_page for hit in index.search(encoder.encode_queries(["museum"]), k=1)] == [False]
    assert index.get("p")[0].image == png


@pytest.fixture
def png():
    image = pytest.importorskip("PIL.Image")
    import io

    buffer = io.BytesIO()
    image.new("RGB", (32, 16), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_vectors_go_under_the_name_of_a_model_only_if_that_is_said(tmp_path):
    encoder = CountingEncoder()
    index = Index.create(tmp_path / "index", encoder)
    with pytest.raises(InputError, match="document 'a' comes with vectors, but hash-64 encodes.*adopt_vectors=True"):
        index.add(documents())
    assert index.add([*documents(), {"id": "d", "text": "text alone"}], adopt_vectors=True).added == 4
    assert encoder.texts == ["text alone"]
    assert index.search("closed museum", k=1, passage_chars=25)[0].passage.text == "The museum is closed on"


def test_an_index_of_vectors_is_not_opened_with_a_model_of_the_same_name(tmp_path):
    Index.create(tmp_path / "index", Vectors("hash-64", 64))
    with pytest.raises(ManifestError, match="other weights or settings"):
        Index.open(tmp_path / "index", HashEncoder())
    with pytest.raises(ManifestError):
        Index.open(tmp_path / "index", Vectors("hash-64", 64, normalized=False))


# What is refused

UNIT = np.eye(3, 4, dtype=np.float32)


def filled(position, value):
    vectors = UNIT.copy()
    vectors[position] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (UNIT[0], r"\(n_tokens, dim\) floats with at least one row, got \(4,\) float32"),
        (UNIT[None], r"got \(1, 3, 4\)"),
        (UNIT[:0], r"got \(0, 4\)"),
        (UNIT.astype(np.int8), "got .* int8"),
        ([[1.0, 0.0], [1.0]], "rows of equal length"),
        (np.array([["a"]]), "floats"),
        (filled(1, np.nan), "position 1 holds NaN or infinity"),
        (filled(2, np.inf), "position 2 holds NaN or infinity"),
        (filled(2, 0), "position 2 is zero: leave padding out"),
    ],
)
def test_vectors_that_cannot_be_right_are_named_with_their_position(vectors, message):
    with pytest.raises(ShapeError, match=f"document 'x': .*{message}"):
        Document("x", "some text", vectors=vectors)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 1], [1, 2]], r"\(n_tokens, 2\) = \(3, 2\) integers, got \(2, 2\)"),
        (np.zeros((3, 2)), "float64"),
        ([[0, 1], [1, 2], [8, 10]], r"the span \[8, 10\] at position 2 does not lie in its text of 9 characters"),
        ([[0, 1], [5, 4], [-1, -1]], "position 1"),
        ([[-1, 3], [1, 2], [1, 2]], "position 0"),
    ],
)
def test_spans_that_do_not_fit_are_named_with_their_position(spans, message):
    with pytest.raises(ShapeError, match=f"document 'x': .*{message}"):
        Document("x", "some text", vectors=UNIT, spans=spans)


def test_spans_without_vectors_and_other_dims_and_lengths_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="spans without vectors"):
        Document("x", "text", spans=[[0, 4]])
    index = Index.create(tmp_path / "index", Vectors("m", 4))
    with pytest.raises(ShapeError, match="document 'x': its vectors have 3 dimensions, those of the index .* have 4"):
        index.add([Document("x", "text", vectors=np.eye(3))])
    with pytest.raises(ShapeError, match="document 'x': the vector at position 1 has the length 7, not 1: normalise"):
        index.add([Document("x", "text", vectors=filled(1, [7, 0, 0, 0]))])
    assert index.count() == 0
    loose = Index.create(tmp_path / "loose", Vectors("m", 4, normalized=False))
    loose.add([{"id": "x", "text": "text", "vectors": 7 * UNIT, "spans": [[0, 4], [-1, -1], [0, 4]]}])
    assert Index.open(tmp_path / "loose").search(UNIT[:1])[0].score == 7
