"""`Index.search` by strings, images, token vectors, and several of these together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyvec import EncoderError, Index, InputError, MaxSimScorer
from manyvec.candidates import CentroidLists, Lexical, Pooled
from manyvec.testing import ColorEncoder, HashEncoder

TEXTS = {"pie": "green apple pie", "tea": "green tea", "wine": "red wine", "sky": "blue sky"}
PIL = pytest.importorskip("PIL.Image", reason="needs manyvec[images]")


def picture(*colors: str) -> Any:
    image = PIL.new("RGB", (16 * len(colors), 16), "white")
    for i, color in enumerate(colors):
        image.paste(color, (16 * i, 0, 16 * i + 16, 16))
    return image


def as_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index.create(tmp_path / "index", ColorEncoder(), filter_columns={"year": int})
    index.add([{"id": id, "text": text, "metadata": {"year": 2020 + i}} for i, (id, text) in enumerate(TEXTS.items())])
    index.add([{"id": "page", "image": as_png(picture("red", "blue"))}])
    return index


def found(hits: Sequence[Any]) -> list[tuple[str, float]]:
    return [(hit.id, round(hit.score, 2)) for hit in hits]


def test_token_vectors_find_what_their_text_finds_whatever_holds_them(index: Index) -> None:
    tokens = ColorEncoder().encode_queries(["green apple"])
    expected = index.search("green apple", 9)
    for query in (
        tokens,
        tokens.vectors,
        tokens.vectors.astype(np.float16),
        tokens.vectors.astype(np.float64),
        tokens.vectors.tolist(),
        np.asfortranarray(tokens.vectors),
    ):
        assert found(index.search(query, 9)) == found(expected)
        assert [hit.id for hit in index.search(query, 9, filter={"year": 2021})] == ["tea"]
    assert [hit.similarity for hit in index.search(tokens, 9)] == [hit.similarity for hit in expected]


def test_an_image_finds_texts_and_pages_and_a_text_finds_pages(index: Index, tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(as_png(picture("red")))
    for query in (tmp_path / "query.png", as_png(picture("red")), picture("red")):
        assert {id for id, score in found(index.search(query, 9)) if score == 1} == {"page", "wine"}
    assert found(index.search("blue red", 1)) == [("page", 2.0)]


def test_the_scores_of_text_image_and_vectors_together_add_up(index: Index) -> None:
    vectors = ColorEncoder().encode_queries(["tea"]).vectors
    expected = {hit.id: hit.score for hit in index.search("green tea blue", 9)}

    for query in (("green", vectors, picture("blue")), (picture("blue"), "green tea"), ("green", "tea", "blue")):
        together = {hit.id: hit.score for hit in index.search(query, 9)}
        assert together == pytest.approx(expected, abs=1e-3)
    assert index.search(("green", picture("blue")), 9)[0].similarity == pytest.approx(0.5, abs=0.2)


def test_queries_of_all_kinds_are_searched_in_one_call(index: Index) -> None:
    queries = ["green tea", picture("red"), ColorEncoder().encode_queries(["sky"]), ("blue", picture("red"))]
    together = index.search_many(queries, 3)

    assert [found(hits) for hits in together] == [found(index.search(query, 3)) for query in queries]


def test_the_centroid_lists_serve_vectors_as_they_serve_strings(index: Index) -> None:
    index.candidates = CentroidLists()
    index.optimize()
    tokens = ColorEncoder().encode_queries(["green apple"])

    assert found(index.search(tokens, 2)) == found(index.search("green apple", 2))


def test_a_first_stage_ranks_token_vectors_as_it_ranks_their_text(index: Index) -> None:
    tokens = ColorEncoder().encode_queries(["green apple"])

    assert index.rank([tokens], Pooled(), 3) == index.rank(["green apple"], Pooled(), 3)
    assert index.rank([tokens], Lexical(), 3) == [[]]


def test_scores_equal_maxsim_of_the_stored_vectors(index: Index) -> None:
    rng = np.random.default_rng(3)
    query = rng.standard_normal((5, 64)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    ids = index.ids()
    scores = dict(zip(ids, MaxSimScorer().score(query, index.token_vectors(ids)).tolist(), strict=True))

    for hit in index.search(query, 9):
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-3)


def test_token_vectors_need_no_model(tmp_path: Path) -> None:
    Index.create(tmp_path / "index", HashEncoder()).add([{"id": "tea", "text": "green tea"}])
    index = Index.open(tmp_path / "index")

    assert found(index.search(HashEncoder().encode_queries(["tea"]))) == [("tea", 1.0)]
    # Its name is no model that could be loaded.
    with pytest.raises(EncoderError):
        index.search("tea")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(64, np.float32), r"shape \(n_tokens, 64\), got one vector of 64 numbers.*search with the text"),
        ([0.5] * 64, "got one vector of 64 numbers"),
        (np.ones((2, 32), np.float32), r"shape \(n_tokens, 64\), got \(2, 32\)"),
        (np.ones((1, 2, 64), np.float32), r"got \(1, 2, 64\)"),
        (np.full((2, 64), np.nan, np.float32), "NaN"),
        (np.full((2, 64), np.inf, np.float32), "finite"),
        ([[0.5] * 64, [0.5] * 63], "equal length"),
        (np.ones((2, 64), np.int64), "a string, an image or token vectors, got ndarray"),
        (ColorEncoder().encode_queries(["a", "b"]), "one item"),
        (5, "a string, an image or token vectors, got int"),
        (None, "got NoneType"),
        ((), "at least one part"),
        (("tea", 5), "got int"),
        (b"no image", r"image"),
        (Path("nowhere.png"), "nowhere.png"),
        ("\ud800", "surrogate"),
        (("tea", "\ud800"), "surrogate"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_query_of_the_wrong_kind_is_an_error_that_says_why(index: Index, query: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.search(query)
    with pytest.raises(InputError, match=message):
        index.search_many(["tea", query])


def test_an_image_is_an_error_if_the_model_reads_no_images(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "texts", HashEncoder())
    with pytest.raises(InputError, match="hash-64 reads no images: search with text"):
        index.search(picture("red"))


@pytest.mark.parametrize("options", [{"lexical_weight": 0.3}, {"evidence": True}])
def test_a_query_without_text_cannot_be_mixed_with_bm25_or_explained(index: Index, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="every query is a string"):
        index.search(ColorEncoder().encode_queries(["tea"]), **options)
    with pytest.raises(InputError, match="every query is a string"):
        index.search_many(["tea", picture("red")], **options)
