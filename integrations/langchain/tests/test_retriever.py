"""`ManyvecRetriever` over a real index: per call, in chains and from event loops."""

import asyncio
import copy
import io
import json
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

import manyvec
from langchain_manyvec import ManyvecReranker, ManyvecRetriever, ManyvecVectorStore
from langchain_manyvec._convert import to_langchain
from manyvec import F
from manyvec.testing import ColorEncoder, HashEncoder

# Each document has other keys, some of them names that a store might use itself.
DOCUMENTS = [
    Document("a late interaction", id="a/1", metadata={"year": 2020, "id": 17}),
    Document("an early interaction", id="b 2", metadata={"year": 2024, "nested": {"tags": ["x", None], "pi": 3.5}}),
    Document("O'Neill; 延迟交互", id="ç'3", metadata={}),
]
# Vectors are stored as float16: a word's similarity to itself is 1 within 2**-10.
FLOAT16 = 2**-10


@pytest.fixture
def retriever(index: manyvec.Index) -> ManyvecRetriever:
    retriever = ManyvecRetriever(index=index)
    retriever.add_documents(DOCUMENTS)
    return retriever


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


def without_scores(document: Document) -> Document:
    metadata = {key: value for key, value in document.metadata.items() if key not in ("score", "relevance_score")}
    return Document(document.page_content, id=document.id, metadata=metadata)


# Results


def test_ids_texts_and_metadata_are_returned_exactly_as_stored(retriever):
    found = {document.id: without_scores(document) for document in retriever.invoke("interaction")}

    assert found == {document.id: document for document in DOCUMENTS}


def test_the_score_counts_the_matched_words_and_the_relevance_score_is_their_share(retriever):
    best = retriever.invoke("late interaction")[0]

    assert best.id == "a/1"
    assert best.metadata["score"] == pytest.approx(2, abs=2 * FLOAT16)
    assert best.metadata["relevance_score"] == pytest.approx(1, abs=FLOAT16)


@pytest.mark.parametrize(("similarity", "relevance"), [(-0.5, 0), (0.25, 0.25), (1.0000001, 1)])
def test_the_relevance_score_is_the_similarity_clipped_to_0_and_1(similarity, relevance):
    hit = manyvec.Hit(id="a", text="text", metadata={}, score=3 * similarity, similarity=similarity, rank=1)

    assert to_langchain(hit).metadata == {"score": 3 * similarity, "relevance_score": relevance}


def test_a_stored_key_named_score_is_not_overwritten(index):
    retriever = ManyvecRetriever(index=index)
    retriever.add_documents([Document("goal", id="a", metadata={"score": "2:1"})])

    metadata = retriever.invoke("goal")[0].metadata

    assert metadata == {"score": "2:1", "relevance_score": pytest.approx(1, abs=FLOAT16)}


def test_changing_a_result_changes_no_later_result(retriever):
    first = retriever.invoke("early")[0]
    first.metadata["nested"]["tags"].clear()
    first.page_content = "changed"

    assert without_scores(retriever.invoke("early")[0]) == DOCUMENTS[1]


def test_an_empty_index_returns_no_documents(index):
    assert ManyvecRetriever(index=index).invoke("late interaction") == []


# k and filter


def test_four_documents_are_returned_by_default(index):
    index.add([{"id": f"d{i}", "text": f"page {i}"} for i in range(7)])

    assert len(ManyvecRetriever(index=index).invoke("page")) == 4


def test_k_of_a_call_overrides_k_of_the_retriever(retriever):
    retriever = ManyvecRetriever(index=retriever.index, k=2)

    assert [len(retriever.invoke("interaction", k=k)) for k in (None, 0, 1, 3, 5)] == [2, 0, 1, 3, 3]


def test_k_of_0_in_the_constructor_returns_no_documents(retriever):
    assert ManyvecRetriever(index=retriever.index, k=0).invoke("interaction") == []


@pytest.mark.parametrize("condition", [F("year") >= 2024, {"year": 2024}])
def test_a_filter_works_in_the_constructor_and_in_a_call(retriever, condition):
    assert ids(ManyvecRetriever(index=retriever.index, filter=condition).invoke("late interaction")) == ["b 2"]
    assert ids(retriever.invoke("late interaction", filter=condition)) == ["b 2"]


def test_the_filter_of_a_call_replaces_the_one_of_the_retriever(retriever):
    retriever = ManyvecRetriever(index=retriever.index, filter={"year": 2024})

    assert ids(retriever.invoke("late interaction", filter={"year": 2020})) == ["a/1"]
    assert len(retriever.invoke("late interaction", filter={})) == 3


def test_a_retriever_with_a_filter_can_be_printed_and_bound(retriever):
    bound = retriever.bind(filter=F("year") == 2020, k=1)

    assert "2020" in repr(bound)
    assert "2024" in repr(ManyvecRetriever(index=retriever.index, filter=F("year") == 2024))
    assert ids(bound.invoke("interaction")) == ["a/1"]


def test_a_score_threshold_works_in_the_constructor_and_in_a_call(retriever):
    # One document matches both words of "late interaction", the second one word, the third none.
    strict = ManyvecRetriever(index=retriever.index, score_threshold=0.9)

    assert ids(strict.invoke("late interaction")) == ["a/1"]
    assert ids(strict.invoke("late interaction", score_threshold=0.4)) == ["a/1", "b 2"]
    assert len(strict.invoke("late interaction", score_threshold=-1.0)) == 3
    assert ids(retriever.invoke("late interaction", score_threshold=0.9)) == ["a/1"]
    assert retriever.invoke("late interaction", score_threshold=1.1) == []


def test_a_lexical_weight_works_in_the_constructor_and_in_a_call_and_scores_stay_those_of_late_interaction(index):
    texts = {"long": "green juice " + "of many fruits " * 9, "short": "juice juice", "tea": "green tea"}
    index.add([{"id": id, "text": text} for id, text in texts.items()])
    exact, by_words = ManyvecRetriever(index=index, k=1), ManyvecRetriever(index=index, k=1, lexical_weight=1)

    for weight, best in [(None, "long"), (0, "long"), (1, "short")]:
        assert ids(exact.invoke("green juice", lexical_weight=weight)) == [best]
    assert ids(by_words.invoke("green juice", lexical_weight=0)) == ["long"]
    assert ids(by_words.invoke("green juice")) == ["short"]
    assert [ids(found) for found in by_words.batch(["green juice", "fruits"])] == [["short"], ["long"]]
    assert ids(asyncio.run(by_words.ainvoke("green juice"))) == ["short"]
    best = by_words.invoke("green juice")[0]
    assert best.metadata["score"] == {hit.id: hit.score for hit in index.search("green juice")}["short"]  # type: ignore[attr-defined]
    assert ids(by_words.invoke("green juice", k=3, score_threshold=0.9)) == ["long"]
    with pytest.raises(manyvec.InputError, match="lexical_weight"):
        exact.invoke("green juice", lexical_weight=2)


def test_evidence_in_the_metadata_says_which_words_matched_which_and_is_json(retriever):
    explaining = ManyvecRetriever(index=retriever.index, evidence=True)
    for best in (explaining.invoke("late", k=1)[0], retriever.invoke("late", k=1, evidence=True)[0]):
        (word,) = best.metadata["evidence"]["words"]
        start, end = word["span"]
        assert (word["word"], word["text"], best.page_content[start:end]) == ("late", "late", "late")
        assert word["similarity"] == pytest.approx(1, abs=FLOAT16)
        assert json.loads(json.dumps(best.metadata["evidence"])) == best.metadata["evidence"]

    assert "evidence" not in retriever.invoke("late")[0].metadata
    assert "evidence" not in explaining.invoke("late", evidence=False)[0].metadata


def test_page_images_of_an_index_are_found_with_their_text_and_compact_evidence(tmp_path):
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (32, 16), "red").save(buffer, "PNG")
    index = manyvec.Index.create(tmp_path / "pages", ColorEncoder())
    index.add(
        [{"id": "page", "image": buffer.getvalue(), "metadata": {"page": 1}}, {"id": "text", "text": "a caption"}]
    )
    page = ManyvecRetriever(index=index, evidence=True).invoke("red", k=1)[0]
    assert (page.id, page.page_content, page.metadata["page"]) == ("page", "", 1)
    assert page.metadata["score"] == pytest.approx(1, abs=FLOAT16)
    assert page.metadata["evidence"]["grid"] == [1, 2]
    assert json.loads(json.dumps(page.metadata)) == page.metadata
    store = ManyvecVectorStore(index)
    assert ids(store.similarity_search("red", k=2)) == ["page", "text"]
    assert store.get_by_ids(["page"]) == [Document("", id="page", metadata={"page": 1})]
    assert len(store.max_marginal_relevance_search("red", k=2)) == 2
    reranked = ManyvecReranker(index=index).compress_documents(store.similarity_search("red", k=2)[::-1], "red")
    assert ids(reranked) == ["page", "text"]


class Depths:
    """First stage that records the depth it was called with and passes every document on."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def find(self, query: Any, scope: Any, depth: int | None) -> None:
        self.asked.append(depth)


def test_a_depth_works_in_the_constructor_and_in_a_call(retriever):
    retriever.index.candidates = depths = Depths()
    deep = ManyvecRetriever(index=retriever.index, depth=7)

    assert ids(deep.invoke("late", k=1)) == ids(deep.invoke("late", k=1, depth=5)) == ["a/1"]
    retriever.invoke("late")
    deep.batch(["late", "early"], depth=3)
    assert depths.asked == [7, 5, None, 3, 3]
    with pytest.raises(manyvec.InputError, match="depth"):
        retriever.invoke("late", depth=0)


# Adding


def test_adding_does_not_modify_the_documents(index):
    documents = [*copy.deepcopy(DOCUMENTS), Document("no id", metadata={"year": 2021})]
    before = copy.deepcopy(documents)

    ManyvecRetriever(index=index).add_documents(documents)

    assert documents == before


def test_a_document_without_an_id_is_stored_once_however_often_it_is_added(index):
    retriever = ManyvecRetriever(index=index)
    once = retriever.add_documents([Document("text", metadata={"a": 1, "b": 2})])
    again = retriever.add_documents([Document("text", metadata={"b": 2, "a": 1})])

    assert once == again
    assert index.count() == 1


def test_documents_without_ids_differ_by_text_and_by_metadata(index):
    documents = [Document("text"), Document("text", metadata={"a": 1}), Document("other text")]

    assert len(set(ManyvecRetriever(index=index).add_documents(documents))) == index.count() == 3


def test_adding_returns_the_ids_in_the_order_of_the_documents(index):
    documents = iter([Document("one", id="z"), Document("two"), Document("three", id="a"), Document("two")])

    given = ManyvecRetriever(index=index).add_documents(documents)

    assert [given[0], given[2]] == ["z", "a"]
    assert given[1] == given[3]
    assert [document.text for document in index.get(given[:3])] == ["one", "two", "three"]


def test_the_last_of_several_documents_with_the_same_id_is_stored(index):
    given = ManyvecRetriever(index=index).add_documents([Document("old", id="a"), Document("new", id="a")])

    assert given == ["a", "a"]
    assert [document.text for document in index.get(["a"])] == ["new"]


def test_adding_an_id_again_replaces_the_document(index):
    retriever = ManyvecRetriever(index=index)
    retriever.add_documents([Document("old", id="a", metadata={"year": 2020})])
    retriever.add_documents([Document("new", id="a", metadata={"note": "no year"})])

    assert [without_scores(document) for document in retriever.invoke("new")] == [
        Document("new", id="a", metadata={"note": "no year"})
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("text", metadata={"object": object()}), r"\(no id\).*'object'"),
        (Document("text", metadata={1: "one", "two": 2}), r"\(no id\).*keys must be strings"),
        (Document("text", id="early", metadata={"year": "soon"}), "'early'.*'year'"),
        (Document("text", id=""), "non-empty string"),
    ],
)
def test_a_document_that_cannot_be_stored_is_an_error_that_names_it(index, document, message):
    with pytest.raises(manyvec.InputError, match=message):
        ManyvecRetriever(index=index).add_documents([DOCUMENTS[0], document])

    assert index.count() == 0


def test_blank_documents_are_left_out_and_logged(index, caplog):
    blank = Document("   ", id="blank", metadata={"source": "a.pdf", "page": 3})

    assert ManyvecRetriever(index=index).add_documents([DOCUMENTS[0], blank]) == ["a/1"]
    assert "position 1 id='blank' source='a.pdf' page=3" in caplog.text
    assert index.ids() == ["a/1"]


def test_scores_can_be_left_out_of_the_metadata(retriever):
    plain = ManyvecRetriever(index=retriever.index, scores=False)
    for found in (plain.invoke("interaction"), retriever.invoke("interaction", scores=False)):
        assert {document.id: document for document in found} == {document.id: document for document in DOCUMENTS}
    assert "score" in plain.invoke("late", scores=True)[0].metadata
    assert "evidence" in plain.invoke("late", evidence=True)[0].metadata
    assert plain.batch(["interaction"])[0] == plain.invoke("interaction")


async def test_documents_can_be_added_from_an_event_loop(index):
    assert await ManyvecRetriever(index=index).aadd_documents(DOCUMENTS) == ["a/1", "b 2", "ç'3"]
    assert index.count() == 3


# Creating and opening


def test_from_documents_creates_an_index_and_opens_it_the_next_time(tmp_path):
    def make(documents: list[Document]) -> ManyvecRetriever:
        return ManyvecRetriever.from_documents(
            documents, tmp_path / "new", encoder=HashEncoder(), filter_columns={"year": int}, k=2, filter={"year": 2024}
        )

    make(DOCUMENTS)
    retriever = make([*DOCUMENTS[1:], Document("late", id="d", metadata={"year": 2024})])

    assert retriever.index.count() == 4
    assert ids(retriever.invoke("early interaction")) == ["b 2", "d"]


def test_from_documents_with_another_encoder_than_the_index_has_is_an_error(index):
    with pytest.raises(manyvec.ManifestError, match="hash-64"):
        ManyvecRetriever.from_documents(DOCUMENTS, index.uri, encoder=HashEncoder(dim=32), filter_columns={"year": int})


@pytest.mark.parametrize("create", [ManyvecRetriever.from_documents, ManyvecVectorStore.from_documents])
def test_dim_keeps_the_first_dims_of_each_vector_and_the_next_call_finds_them(tmp_path, create):
    encoder = {"encoder": HashEncoder()} if create.__self__ is ManyvecRetriever else {"embedding": HashEncoder()}
    for dim in (16, None):
        adapter = create(DOCUMENTS, uri=tmp_path / "new", dim=dim, **encoder)
        assert adapter.index.info().dim == 16
    assert ManyvecRetriever.from_uri(tmp_path / "new", encoder=HashEncoder(), k=1).invoke("late")[0].id == "a/1"
    with pytest.raises(manyvec.ManifestError, match="has 16 dims, not 8"):
        create(DOCUMENTS, uri=tmp_path / "new", dim=8, **encoder)


def test_from_uri_reads_what_the_core_wrote(index):
    index.add([{"id": "a", "text": "late interaction", "metadata": {"year": 2024}}])

    retriever = ManyvecRetriever.from_uri(index.uri, encoder=HashEncoder(), k=1)

    assert [without_scores(document) for document in retriever.invoke("late")] == [
        Document("late interaction", id="a", metadata={"year": 2024})
    ]


def test_from_uri_without_an_index_is_an_error(tmp_path):
    with pytest.raises(manyvec.IndexNotFoundError):
        ManyvecRetriever.from_uri(tmp_path / "nothing")


def test_a_misspelled_field_is_an_error(index):
    with pytest.raises(ValidationError, match="filters"):
        ManyvecRetriever(index=index, filters={"year": 2024})  # type: ignore[call-arg]


# Chains and traces


def test_it_is_the_first_step_of_a_chain(retriever):
    chain = retriever | RunnableLambda(ids)

    assert chain.invoke("early interaction") == ["b 2", "a/1", "ç'3"]


async def test_it_is_the_first_step_of_an_async_chain(retriever):
    chain = retriever | RunnableLambda(ids)

    assert await chain.ainvoke("early interaction") == ["b 2", "a/1", "ç'3"]


TRACED = {
    "ls_retriever_name": "manyvec",
    "ls_vector_store_provider": "LanceDB",
    "ls_embedding_provider": "manyvec",
    "ls_embedding_model": "hash-64",
}


async def test_a_trace_holds_the_query_the_documents_the_provider_and_the_model(retriever, new_recorder):
    recorder = new_recorder()
    retriever.invoke("late", {"callbacks": [recorder]}, k=1)
    await retriever.ainvoke("early", {"callbacks": [recorder]}, k=1)

    assert [query for query, _ in recorder.started] == ["late", "early"]
    assert all(metadata.items() >= TRACED.items() for _, metadata in recorder.started)
    assert recorder.ended == [["a/1"], ["b 2"]]


async def test_a_filter_on_an_undeclared_column_is_an_error_that_is_traced(retriever, new_recorder):
    recorder = new_recorder()
    config = {"callbacks": [recorder]}

    with pytest.raises(manyvec.FilterError, match="'lang'"):
        retriever.invoke("late", config, filter=F("lang") == "en")
    with pytest.raises(manyvec.FilterError, match="'lang'"):
        await retriever.ainvoke("late", config, filter={"lang": "en"})

    assert [type(error) for error in recorder.errors] == [manyvec.FilterError] * 2


def test_a_negative_k_is_an_error(retriever):
    with pytest.raises(manyvec.InputError, match="-1"):
        retriever.invoke("late", k=-1)


def test_an_unknown_argument_of_a_call_is_an_error(retriever):
    with pytest.raises(TypeError, match="filters"):
        retriever.invoke("late", filters={"year": 2024})


async def test_an_index_deleted_from_disk_is_an_error_and_not_an_empty_answer(retriever):
    retriever.invoke("late")
    shutil.rmtree(retriever.index.uri)

    with pytest.raises(manyvec.ManyvecError):
        retriever.invoke("late")
    with pytest.raises(manyvec.ManyvecError):
        await retriever.abatch(["late", "early"])
    with pytest.raises(manyvec.ManyvecError):
        retriever.add_documents([Document("one")])
    with pytest.raises(manyvec.ManyvecError):
        ManyvecReranker(index=retriever.index).compress_documents(DOCUMENTS, "late")


LONG = "Cheese is made of milk. The red apple fell from the tree. Nobody saw it fall, because it was night."


def test_passages_are_returned_in_place_of_texts_by_retriever_store_and_reranker(index):
    index.add([{"id": "a", "text": LONG, "metadata": {"source": "fruit.pdf", "page": 3}}])
    expected = {"start": 24, "end": 57, "n_chars": len(LONG), "source": "fruit.pdf", "page": 3}
    store = ManyvecVectorStore(index, passage_chars=40)
    base = ManyvecRetriever(index=index, k=1)
    found = [
        ManyvecRetriever(index=index, k=1, passage_chars=40, scores=False).invoke("red apple")[0],
        base.invoke("red apple", passage_chars=40, scores=False)[0],
        store.similarity_search("red apple", k=1)[0],
        ManyvecVectorStore(index).as_retriever(search_kwargs={"k": 1, "passage_chars": 40}).invoke("red apple")[0],
        store.max_marginal_relevance_search("red apple", k=1)[0],
        ManyvecReranker(index=index, passage_chars=40, scores=False).compress_documents(
            base.invoke("red apple", scores=False), "red apple"
        )[0],
        ManyvecReranker(encoder=HashEncoder(), passage_chars=40, scores=False).compress_documents(
            [Document(LONG, metadata={"source": "fruit.pdf", "page": 3})], "red apple"
        )[0],
    ]
    for document in found:
        assert document.page_content == "The red apple fell from the tree." == LONG[24:57]
        assert document.metadata == expected
    assert store.get_by_ids(["a"])[0].page_content == LONG
    assert base.invoke("red apple")[0].page_content == LONG


def test_half_an_emoji_in_a_query_is_an_input_error(index):
    reranker = ManyvecReranker(encoder=HashEncoder())
    calls = [
        lambda query: ManyvecRetriever(index=index).invoke(query),
        lambda query: ManyvecVectorStore(index=index).similarity_search(query),
        lambda query: reranker.compress_documents(DOCUMENTS, query),
    ]
    for call in calls:
        for query in ("\ud83d", "red \udc00 apple"):
            with pytest.raises(manyvec.InputError, match="lone surrogate"):
                call(query)


def test_documents_that_share_one_metadata_dict_keep_what_it_held_when_they_were_yielded(tmp_path):
    def pages():
        shared = {"page": 0}
        for page in range(3):
            shared["page"] = page
            yield Document("text", id=str(page), metadata=shared)

    retriever = ManyvecRetriever.from_documents(pages(), tmp_path / "index", encoder=HashEncoder())
    assert [document.metadata["page"] for document in retriever.index.get(["0", "1", "2"])] == [0, 1, 2]
