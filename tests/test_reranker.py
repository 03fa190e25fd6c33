"""`Reranker`: any documents in the order of MaxSim, from stored vectors where there are any."""

import io
import json
from collections.abc import Sequence

import numpy as np
import pytest

from manyvec import Document, Index, InputError, Reranker, TokenBatch
from manyvec.testing import ColorEncoder, HashEncoder

# float16 storage: a word's similarity to itself is 1 within 2**-10.
FLOAT16 = 2**-10


class CountingEncoder(HashEncoder):
    """Keeps the documents it was asked to encode."""

    batches: list[list[str]] = []  # noqa: RUF012  # of the class, because the encoder is frozen

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        self.batches.append(list(texts))
        return super().encode_documents(texts)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return HashEncoder(self.dim).encode_documents(queries)


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", CountingEncoder())
    index.add([{"id": "a", "text": "red apple"}, {"id": "b", "text": "green pear"}, {"id": "c", "text": "red pear"}])
    CountingEncoder.batches.clear()
    return index


def test_texts_come_back_in_the_order_of_their_scores_with_their_places_as_ids():
    hits = Reranker(HashEncoder()).rerank("red pear", ["green pear", "blue sky", "a red pear"])
    assert (hits[0].id, hits[0].text, hits[0].rank) == ("2", "a red pear", 1)
    assert hits[0].score == pytest.approx(2, abs=2 * FLOAT16)
    assert hits[0].similarity == pytest.approx(1, abs=FLOAT16)
    assert [hit.id for hit in hits] == ["2", "0", "1"]


def test_stored_documents_are_not_encoded_and_score_as_if_they_were(index):
    documents = [*index.get(["c", "b", "a"]), Document("d", "red red pear")]
    stored = Reranker(index=index).rerank("red pear", documents)
    assert CountingEncoder.batches == [["red red pear"]]
    fresh = Reranker(HashEncoder()).rerank("red pear", documents)
    assert stored == fresh


def test_a_stored_id_with_another_text_is_encoded(index):
    hits = Reranker(index=index).rerank("red apple", [Document("a", "blue sky"), Document("c", "red pear")])
    assert [hit.id for hit in hits] == ["c", "a"]
    assert CountingEncoder.batches == [["blue sky"]]


def test_equal_ids_and_equal_texts_are_all_kept_and_encoded_once(index):
    documents = [
        Document("a", "red apple"),
        Document("a", "red plum"),
        Document("x", "red plum"),
        Document("a", "red apple"),
    ]
    hits = Reranker(index=index).rerank("red apple", documents)
    assert [(hit.id, hit.text) for hit in hits] == [("a", "red apple")] * 2 + [("a", "red plum"), ("x", "red plum")]
    assert hits[0].score == hits[1].score and hits[2].score == hits[3].score
    assert CountingEncoder.batches == [["red plum"]]


def test_equal_scores_keep_the_order_in_which_the_documents_came():
    assert [hit.id for hit in Reranker(HashEncoder()).rerank("sun", ["red", "red", "sun", "red"])] == [
        "2",
        "0",
        "1",
        "3",
    ]


def test_an_empty_text_comes_last_with_the_lowest_score_that_there_is():
    hits = Reranker(HashEncoder()).rerank("red wine", ["", "blue sky", " \n", "red"])
    assert [hit.id for hit in hits] == ["3", "1", "0", "2"]
    # Two query tokens: nothing is less similar, and JSON can hold it.
    assert [(hit.score, hit.similarity) for hit in hits[2:]] == [(-2, -1), (-2, -1)]


def test_a_query_without_tokens_leaves_the_order_as_it_is():
    hits = Reranker(HashEncoder()).rerank("  ", ["b", "a", "c", ""])
    assert [(hit.id, hit.score, hit.similarity) for hit in hits] == [(str(i), 0, 0) for i in range(4)]
    json.dumps([hit.score for hit in hits], allow_nan=False)


@pytest.mark.parametrize(("top_n", "n"), [(None, 3), (0, 0), (2, 2), (9, 3)])
def test_top_n_limits_how_many_come_back(top_n, n):
    assert len(Reranker(HashEncoder()).rerank("red", ["a", "b", "c"], top_n)) == n


def test_no_documents_give_no_hits():
    assert Reranker(HashEncoder()).rerank("red", []) == []


def test_metadata_comes_back_as_a_copy():
    document = Document("a", "red", {"tags": ["x"]})
    hit = Reranker(HashEncoder()).rerank("red", [document])[0]
    hit.metadata["tags"].clear()
    assert document.metadata == {"tags": ["x"]}


@pytest.mark.parametrize(
    ("query", "documents", "top_n", "message"),
    [
        (7, ["a"], None, "query must be a string"),
        ("a", [7], None, "document 0"),
        ("a", ["a"], -1, "top_n"),
        ("a", ["a", "\ud800"], None, "document 1"),
    ],
)
def test_bad_input_is_an_error_that_says_what_came(query, documents, top_n, message):
    with pytest.raises(InputError, match=message):
        Reranker(HashEncoder()).rerank(query, documents, top_n)


def test_an_encoder_beside_an_index_is_an_error(index):
    with pytest.raises(InputError, match="Index.open"):
        Reranker("minilm", index=index)


def test_the_model_is_known_before_it_is_loaded(index):
    assert (Reranker().model, Reranker(index=index).model) == ("minilm", "hash-64")


def test_stored_scores_come_by_id_in_the_order_asked_for(index):
    scores = index.score("red pear", ["b", "nobody", "c", "b"])
    assert np.isnan(scores[1]) and scores[0] == scores[3]
    searched = {hit.id: hit.score for hit in index.search("red pear")}
    np.testing.assert_array_equal(scores[[0, 2]], np.float32([searched["b"], searched["c"]]))
    np.testing.assert_array_equal(np.isnan(index.score("red", ["a", "b"], texts=["red apple", "pear"])), [False, True])
    assert len(index.score("red", [])) == 0


def test_scores_are_the_same_whether_vectors_are_in_memory_or_on_disk(index):
    on_disk = Index.open(index.uri, HashEncoder(), cache_bytes=0)
    np.testing.assert_array_equal(on_disk.score("red pear", ["c", "a"]), index.score("red pear", ["c", "a"]))


def test_a_document_that_was_replaced_is_scored_by_what_it_is_now(index):
    index.score("red", ["a"])
    index.add([{"id": "a", "text": "blue sky"}])
    assert index.score("blue sky", ["a"])[0] == pytest.approx(2, abs=2 * FLOAT16)


def test_stored_documents_of_a_real_model_come_in_the_order_that_encoding_them_gives(tmp_path):
    words = "river stone cloud engine paper violin market winter garden signal doctor island metal story bridge".split()
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i:02}", " ".join(rng.choice(words, 40))) for i in range(30)]
    index = Index.create(tmp_path / "index", "minilm")
    index.add(documents)
    query = "a doctor on an island in winter"
    fast, slow = Reranker(index=index).rerank(query, documents), Reranker("minilm").rerank(query, documents)
    assert [hit.id for hit in fast] == [hit.id for hit in slow]
    np.testing.assert_allclose([hit.score for hit in fast], [hit.score for hit in slow], atol=8 * 2**-10)


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (32, 16), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_pages_are_scored_by_their_images_whether_or_not_an_index_holds_them(tmp_path):
    pages = [Document(color, "a page", image=picture(color)) for color in ("red", "green", "blue")]
    given = [*pages, Document("text", "a green text")]
    index = Index.create(tmp_path / "pages", ColorEncoder())
    index.add(pages[:2])
    (tmp_path / "blue.png").write_bytes(picture("blue"))
    given[2] = Document("blue", "a page", image=tmp_path / "blue.png")
    expected = Reranker(ColorEncoder()).rerank("green", given)
    assert [hit.id for hit in expected[:2]] == ["green", "text"]
    assert expected[0].score == pytest.approx(1, abs=FLOAT16)
    for reranker in (Reranker(index=index), Reranker(ColorEncoder())):
        assert [(hit.id, hit.score) for hit in reranker.rerank("green", given)] == [
            (hit.id, pytest.approx(hit.score, abs=FLOAT16)) for hit in expected
        ]
        assert reranker.rerank((picture("blue"), "a"), given, 1)[0].id == "blue"
    # A page that the index holds needs no image, and one with another image is encoded anew.
    assert Reranker(index=index).rerank("red", [Document("red", "a page"), Document("x", "a page")])[0].id == "red"
    changed = [Document("red", "a page", image=picture("blue")), Document("green", "a page")]
    assert [hit.id for hit in Reranker(index=index).rerank("blue", changed)] == ["red", "green"]


def test_an_image_that_cannot_be_read_is_an_error_and_a_text_model_goes_by_the_text(tmp_path):
    pages = [Document("a", "red", image=b"no image"), Document("b", "green", image=b"no image")]
    assert [hit.id for hit in Reranker(HashEncoder()).rerank("green", pages)] == ["b", "a"]
    with pytest.raises(InputError, match="the image of a document"):
        Reranker(ColorEncoder()).rerank("green", pages)
    with pytest.raises(InputError, match="document 0: its image cannot be read"):
        Reranker(ColorEncoder()).rerank("green", [Document("a", image=tmp_path / "missing.png")])


LONG = "Cheese is made of milk. The red apple fell from the tree. Nobody saw it fall, because it was night."


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_passage_of_each_best_document_can_be_returned(tmp_path, is_stored):
    encoder = CountingEncoder()
    documents = [Document("a", LONG, {"source": "fruit.md"}), Document("b", "green pear"), Document("c", "blue")]
    index = Index.create(tmp_path / "i", encoder)
    index.add(documents)
    CountingEncoder.batches.clear()
    reranker = Reranker(index=index) if is_stored else Reranker(encoder)
    hits = reranker.rerank("red apple", documents, 2, passage_chars=40)
    assert [hit.id for hit in hits] == ["a", "b"]
    passage = hits[0].passage
    assert passage is not None and passage.text == "The red apple fell from the tree."
    assert LONG[passage.start : passage.end] == passage.text
    assert passage.origin("a", LONG, {"source": "fruit.md"}) == {
        "start": 24, "end": 57, "n_chars": len(LONG), "source": "fruit.md",
    }  # fmt: skip
    # A part of a file says where in the file its passage is.
    assert passage.origin("a", LONG, {"start": 1000, "end": 1100})["start"] == 1024
    assert not is_stored or not CountingEncoder.batches
    assert index.search("red apple", 1, passage_chars=40)[0].passage == passage


def test_passages_of_pages_and_blank_texts_are_none(tmp_path):
    page = Document("p", "red", image=picture("red"))
    index = Index.create(tmp_path / "i", ColorEncoder())
    index.add([page])
    (hit,) = Reranker(index=index).rerank("red", [page], passage_chars=10)
    assert hit.passage is None
    assert Reranker(HashEncoder()).passages("red", ["", " "], 10) == [None, None]
    with pytest.raises(InputError, match="passage_chars must be a positive integer"):
        Reranker(HashEncoder()).passages("red", ["x"], 0)
