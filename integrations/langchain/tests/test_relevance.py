"""Calibrated relevance scores and maximal marginal relevance of `ManyvecVectorStore`."""

import pytest
from langchain_core.documents import Document

import manyvec
from langchain_manyvec import Calibration, ManyvecVectorStore
from manyvec.testing import CountingEncoder


@pytest.fixture
def store(index: manyvec.Index) -> ManyvecVectorStore:
    store = ManyvecVectorStore(index)
    store.add_documents(
        [Document("a late interaction"), Document("an early interaction"), Document("O'Neill; 延迟交互")]
    )
    return store


def ids(documents):
    return [document.id for document in documents]


# Calibrated relevance


def test_a_calibrated_relevance_is_the_share_of_unanswerable_questions_that_find_nothing_as_similar(store):
    # The best documents match 0, 1, 1 and 2 of 2 words.
    calibration = store.calibrate(["quite unrelated", "late train", "early bird", "late interaction"])
    relevances = dict.fromkeys(["early interaction", "early or", "neither nor"])
    for query in relevances:
        relevances[query] = store.similarity_search_with_relevance_scores(query, k=1)[0][1]

    assert [calibration.relevance(similarity) for similarity in (-1, 0.4, 0.9, 1.1)] == [0, 0.25, 0.75, 1]
    assert relevances["early interaction"] >= 0.75 > relevances["early or"] >= 0.25 > relevances["neither nor"]


def test_calibration_uses_the_first_words_of_documents_as_questions_and_ignores_their_own_document(index):
    store = ManyvecVectorStore(index)
    # Of the four words of each, the most similar other document has three, three and one.
    store.add_texts(["a b c d", "a b c e", "d x y z"], ids=["1", "2", "3"])

    background = store.calibrate().background

    assert [round(4 * similarity) for similarity in background] == [1, 3, 3]


def test_a_calibration_can_be_saved_and_preserves_the_order_of_similarities(store):
    kept = Calibration(tuple(store.calibrate().background))
    again = ManyvecVectorStore(store.index, calibration=kept)
    found = again.similarity_search_with_relevance_scores("an early interaction")

    assert [document for document, _ in found] == again.similarity_search("an early interaction")
    assert [relevance for _, relevance in found] == sorted((relevance for _, relevance in found), reverse=True)


def test_an_index_with_one_document_cannot_be_calibrated_from_itself(index):
    store = ManyvecVectorStore(index)
    store.add_texts(["alone"])

    with pytest.raises(manyvec.InputError, match="two documents"):
        store.calibrate()
    assert store.calibration is None


# Maximal marginal relevance


@pytest.fixture
def copies(index):
    """A store with two copies of the best match for "late interaction model" and two other documents."""
    store = ManyvecVectorStore(index)
    texts = ["late interaction model", "late interaction model", "late interaction", "model"]
    store.add_texts(texts, ids=["copy 1", "copy 2", "half", "other"])
    return store


async def test_marginal_relevance_skips_a_copy_of_a_chosen_document(copies):
    query = "late interaction model"

    assert ids(copies.similarity_search(query, k=3)) == ["copy 1", "copy 2", "half"]
    # Relevance and similarity to copy 1: "half" 2/3 and (1 + 2/3) / 2, "other" 1/3 and (1 + 1/3) / 2, copy 2 both 1.
    # 0.2 * relevance - 0.8 * similarity is -0.53, -0.47 and -0.6.
    assert ids(copies.max_marginal_relevance_search(query, k=2, lambda_mult=0.2)) == ["copy 1", "other"]
    assert ids(await copies.amax_marginal_relevance_search(query, k=2, lambda_mult=0.2)) == ["copy 1", "other"]


def test_marginal_relevance_with_lambda_1_is_the_plain_search(copies):
    found = copies.max_marginal_relevance_search("late interaction model", k=4, lambda_mult=1)

    assert found == copies.similarity_search("late interaction model", k=4)


def test_marginal_relevance_chooses_from_fetch_k_documents(copies):
    query = "late interaction model"

    assert ids(copies.max_marginal_relevance_search(query, k=4, fetch_k=2, lambda_mult=0)) == ["copy 1", "copy 2"]
    assert ids(copies.max_marginal_relevance_search(query, k=0)) == []


def test_marginal_relevance_encodes_no_document_again(tmp_path):
    encoder = CountingEncoder()
    store = ManyvecVectorStore(manyvec.Index.create(tmp_path / "index", encoder))
    store.add_texts(["late interaction", "late", "interaction"])
    before = list(encoder.texts)

    assert len(store.max_marginal_relevance_search("late interaction", k=2)) == 2
    assert before == encoder.texts and len(before) == 3
