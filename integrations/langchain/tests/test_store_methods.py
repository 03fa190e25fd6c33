"""`ManyvecVectorStore`: methods and arguments that users know from the vector stores of Chroma, Qdrant and Postgres."""

import logging

import lancedb
import pytest
from langchain_core.documents import Document
from langchain_core.example_selectors import (
    MaxMarginalRelevanceExampleSelector,
    SemanticSimilarityExampleSelector,
)

import manyvec
from langchain_manyvec import (
    Calibration,
    ManyvecEmbeddings,
    ManyvecRecordManager,
    ManyvecRetriever,
    ManyvecVectorStore,
)
from manyvec import F
from manyvec.testing import CountingEncoder, HashEncoder

TEXTS = {"long": "green juice " + "of many fruits " * 9, "short": "juice juice", "tea": "green tea"}


@pytest.fixture
def store(index: manyvec.Index) -> ManyvecVectorStore:
    store = ManyvecVectorStore(index)
    store.add_texts(list(TEXTS.values()), [{"year": 2020 + i} for i in range(3)], ids=list(TEXTS))
    return store


def ids(documents):
    return [document.id for document in documents]


# Options of a search


@pytest.mark.parametrize(
    ("method", "options"), [("similarity_search", {"k": 1}), ("max_marginal_relevance_search", {"fetch_k": 1})]
)
def test_a_lexical_weight_can_be_set_for_the_store_and_for_a_search(store, method, options):
    by_words = ManyvecVectorStore(store.index, lexical_weight=1)

    assert ids(getattr(store, method)("green juice", **options)) == ["long"]
    assert ids(getattr(store, method)("green juice", **options, lexical_weight=1)) == ["short"]
    assert ids(getattr(by_words, method)("green juice", **options)) == ["short"]
    assert ids(getattr(by_words, method)("green juice", **options, lexical_weight=0)) == ["long"]


async def test_a_hybrid_search_ranks_as_the_index_does_with_the_same_weight(store):
    for weight in (0.1, manyvec.LEXICAL_WEIGHT, 1):
        expected = [hit.id for hit in store.index.search("green juice", 3, lexical_weight=weight)]
        assert ids(store.hybrid_search("green juice", 3, lexical_weight=weight)) == expected
        assert ids(await store.ahybrid_search("green juice", 3, lexical_weight=weight)) == expected
    assert ids(store.hybrid_search("green juice", filter=F("year") > 2021)) == ["tea"]


def test_scores_of_a_hybrid_search_are_those_that_order_it(store):
    found = store.similarity_search_with_score("green juice", 3, lexical_weight=0.5)
    expected = [(hit.id, hit.final_score) for hit in store.index.search("green juice", 3, lexical_weight=0.5)]

    assert [(document.id, score) for document, score in found] == expected
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_a_score_with_bm25_has_maxsim_beside_it_in_the_metadata(store):
    pure = {hit.id: hit for hit in store.index.search("green juice", 3, lexical_weight=0)}
    for document, score in store.similarity_search_with_score("green juice", 3, lexical_weight=0.5):
        hit = pure[document.id]
        assert document.metadata["score"] == hit.score != score
        assert document.metadata["relevance_score"] == pytest.approx(min(max(hit.similarity, 0), 1))
    # The score is MaxSim already.
    for document, score in store.similarity_search_with_score("green juice", 3):
        assert (score, set(document.metadata)) == (pure[document.id].score, {"year"})


def test_stores_and_retrievers_mix_by_what_was_measured_for_the_model():
    class Measured(HashEncoder):
        @property
        def name(self):
            return "minilm"

    store = ManyvecVectorStore.from_texts(list(TEXTS.values()), Measured(), ids=list(TEXTS))
    hits = store.index.search("green juice", 3)
    assert all(hit.final_score != hit.score for hit in hits[:2])
    found = store.similarity_search_with_score("green juice", 3)
    assert [(document.id, score) for document, score in found] == [(hit.id, hit.final_score) for hit in hits]
    for document, hit in zip(ManyvecRetriever(index=store.index, k=3).invoke("green juice"), hits, strict=True):
        assert (document.metadata["final_score"], document.metadata["score"]) == (hit.final_score, hit.score)
    # Relevance and thresholds are those of late interaction.
    for document, relevance in store.similarity_search_with_relevance_scores("green juice", k=3):
        (hit,) = (hit for hit in hits if hit.id == document.id)
        assert relevance == pytest.approx(min(max(hit.similarity, 0), 1))


def test_options_of_a_search_pass_through_as_retriever(store):
    retriever = store.as_retriever(search_kwargs={"k": 1, "lexical_weight": 1, "evidence": True, "depth": 5})
    (found,) = retriever.invoke("juice")

    assert found.id == "short"
    assert [word["text"] for word in found.metadata["evidence"]["words"]] == ["juice"]


def test_evidence_can_be_set_for_the_store(store):
    explaining = ManyvecVectorStore(store.index, evidence=True)

    assert "evidence" in explaining.similarity_search("tea", k=1)[0].metadata
    assert "evidence" not in explaining.similarity_search("tea", k=1, evidence=False)[0].metadata
    assert store.similarity_search("tea", k=1)[0].metadata == {"year": 2022}


def test_a_function_can_map_similarities_to_relevance_scores(store):
    halved = ManyvecVectorStore(store.index, relevance_score_fn=lambda similarity: similarity / 2)

    assert halved.similarity_search_with_relevance_scores("green tea", k=1)[0][1] == pytest.approx(0.5, abs=2**-10)
    with pytest.raises(manyvec.InputError, match="not both"):
        ManyvecVectorStore(store.index, relevance_score_fn=abs, calibration=Calibration((0.5,)))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.similarity_search("tea", filters={"year": 2020}),
        lambda store: store.hybrid_search("tea", where={"year": 2020}),
        lambda store: store.delete(["tea"], filters={"year": 2020}),
        lambda store: store.add_documents([Document("x")], filter={"year": 2020}),
        lambda _: ManyvecVectorStore.from_texts(["x"], HashEncoder(), collection_name="x"),
    ],
)
def test_an_unknown_argument_is_an_error_and_changes_nothing(store, call):
    with pytest.raises(TypeError, match=r"filter|where|collection_name"):
        call(store)
    assert store.index.ids() == ["long", "short", "tea"]


# Reading and changing documents


async def test_get_returns_columns_by_id_filter_limit_and_offset(store):
    everything = store.get()
    assert everything == {
        "ids": ["long", "short", "tea"],
        "documents": list(TEXTS.values()),
        "metadatas": [{"year": 2020}, {"year": 2021}, {"year": 2022}],
    }
    assert store.get(["tea", "nobody", "long"])["ids"] == ["tea", "long"]
    assert store.get("tea", include=[]) == {"ids": ["tea"]}
    assert store.get("tea", include="documents") == {"ids": ["tea"], "documents": ["green tea"]}
    assert store.get(where=F("year") > 2020, limit=1)["ids"] == ["short"]
    assert store.get(where={"year": [2020, 2022]}, offset=1)["ids"] == ["tea"]
    assert store.get(["tea", "short"], where={"year": 2021})["ids"] == ["short"]
    assert (await store.aget(limit=0)) == {"ids": [], "documents": [], "metadatas": []}
    (vectors,) = store.get("tea", include=["embeddings"])["embeddings"]
    assert vectors.shape == (2, 64)


@pytest.mark.parametrize(
    "arguments", [{"include": ["uris"]}, {"limit": -1}, {"offset": -1}, {"where": {"undeclared": 1}}]
)
def test_wrong_arguments_of_get_are_errors(store, arguments):
    with pytest.raises(manyvec.InputError):
        store.get(**arguments)


async def test_updated_documents_replace_the_old_ones_and_unchanged_texts_are_not_encoded(tmp_path):
    encoder = CountingEncoder()
    store = ManyvecVectorStore(manyvec.Index.create(tmp_path / "index", encoder))
    store.add_texts(["one", "two"], ids=["1", "2"])

    store.update_documents(["1", "2"], [Document("one", metadata={"new": True}), Document("second")])
    await store.aupdate_documents(["2"], [Document("second", metadata={"new": 2})])

    assert store.get_by_ids(["1", "2"]) == [
        Document("one", id="1", metadata={"new": True}),
        Document("second", id="2", metadata={"new": 2}),
    ]
    assert encoder.texts == ["one", "two", "second"]


async def test_a_deleted_collection_is_empty_and_usable(store):
    store.delete_collection()
    assert store.get() == {"ids": [], "documents": [], "metadatas": []}
    assert store.similarity_search("tea") == []
    store.add_texts(["green tea"], [{"year": 2020}], ids=["again"])
    assert ids(store.similarity_search("tea", filter={"year": 2020})) == ["again"]
    await store.adelete_collection()
    assert store.index.count() == 0


# Blank documents


@pytest.mark.parametrize("blank", ["", " \n\t", "\u00a0"])
async def test_blank_documents_are_left_out_and_logged_with_source_and_page(index, caplog, blank):
    store = ManyvecVectorStore(index)
    page = Document(blank, metadata={"source": "report.pdf", "page": 7})
    with caplog.at_level(logging.WARNING):
        assert store.add_documents([Document("one", id="1"), page, Document("two", id="2")]) == ["1", "2"]
        assert await store.aadd_texts([blank, "three"], ids=["b", "3"]) == ["3"]
        assert store.add_documents([page]) == []

    assert "left out 1 of 3 documents, which have no text: position 1 source='report.pdf' page=7" in caplog.messages[0]
    assert "position 0 id='b'" in caplog.messages[1]
    assert index.ids() == ["1", "2", "3"]


def test_the_log_names_the_first_blank_documents_and_counts_all(index, caplog):
    ManyvecVectorStore(index).add_documents([Document(" ", id=f"b{i}") for i in range(9)])

    assert "left out 9 of 9" in caplog.text
    assert "b4" in caplog.text and "b5" not in caplog.text


# Creating and opening


def test_an_existing_index_is_opened_by_either_name(store):
    for opened in (
        ManyvecVectorStore.from_existing_index(HashEncoder(), uri=store.index.uri, lexical_weight=1),
        ManyvecVectorStore.from_uri(store.index.uri, encoder=ManyvecEmbeddings(HashEncoder()), lexical_weight=1),
    ):
        assert ids(opened.similarity_search("green juice", k=1)) == ["short"]


def test_without_a_uri_each_store_has_its_own_index_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = ManyvecVectorStore.from_texts(["one"], HashEncoder(), [{"year": 2020}], filter_columns={"year": int})
    second = ManyvecVectorStore.from_documents([Document("two", id="2")], ManyvecEmbeddings(HashEncoder()))

    assert [document.page_content for document in first.similarity_search("one", filter={"year": 2020})] == ["one"]
    assert ids(second.similarity_search("one")) == ["2"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("selector", [SemanticSimilarityExampleSelector, MaxMarginalRelevanceExampleSelector])
def test_example_selectors_need_no_uri(selector):
    examples = [{"input": "happy", "output": "sad"}, {"input": "tall", "output": "short"}]
    chosen = selector.from_examples(examples, ManyvecEmbeddings(HashEncoder()), ManyvecVectorStore, k=1)

    assert chosen.select_examples({"input": "tall"}) == [examples[1]]
    chosen.add_example({"input": "wide", "output": "narrow"})
    assert chosen.select_examples({"input": "wide"}) == [{"input": "wide", "output": "narrow"}]


def test_embeddings_are_normalized_means_and_zeros_for_a_text_without_tokens():
    embeddings = ManyvecEmbeddings(HashEncoder())
    (one, blank) = embeddings.embed_documents(["green apple", " "])

    assert one == pytest.approx(embeddings.embed_query("apple green"))
    assert sum(x * x for x in one) == pytest.approx(1)
    assert blank == [0.0] * 64 and embeddings.embed_documents([]) == []
    assert isinstance(one[0], float)


def test_several_stores_share_a_database_by_table_name_or_connection(tmp_path):
    connection = lancedb.connect(tmp_path / "db")
    a = ManyvecVectorStore.from_texts(["red"], HashEncoder(), uri=tmp_path / "db", table_name="a")
    b = ManyvecVectorStore.from_texts(["blue"], HashEncoder(), connection=connection, table_name="b", depth=5)
    retriever = ManyvecRetriever.from_documents(
        [Document("green")], encoder=HashEncoder(), connection=connection, table_name="c"
    )
    assert [store.similarity_search("red blue", k=5)[0].page_content for store in (a, b)] == ["red", "blue"]
    assert [document.page_content for document in retriever.invoke("red")] == ["green"]
    again = ManyvecVectorStore.from_existing_index(HashEncoder(), uri=tmp_path / "db", table_name="b")
    assert again.index.table_name == "b" and again.index.count() == 1
    assert ManyvecRetriever.from_uri(tmp_path / "db", encoder=HashEncoder(), table_name="c").index.count() == 1


def test_a_second_store_with_other_columns_is_an_error_and_one_without_sees_those_that_the_first_adds(store):
    with pytest.raises(manyvec.ManifestError, match=r"add_filter_columns.*author"):
        ManyvecVectorStore.from_texts([], HashEncoder(), uri=store.index.uri, filter_columns={"author": str})
    second = ManyvecVectorStore.from_uri(store.index.uri, encoder=HashEncoder())
    store.index.add_filter_columns({"author": str})
    store.add_texts(["white tea"], [{"author": "Ann"}], ids=["white"])
    assert ids(second.similarity_search("tea", filter={"author": "Ann", "year": None})) == ["white"]


def test_storage_options_are_not_shown(tmp_path):
    options = {"aws_secret_access_key": "s3cr3t"}
    store = ManyvecVectorStore.from_texts(["red"], HashEncoder(), uri=tmp_path / "i", storage_options=options)
    retriever = ManyvecRetriever(index=store.index)
    records = ManyvecRecordManager("x", store.index.uri, storage_options=options)
    shown = [repr(store), repr(store.as_retriever()), repr(retriever), str(retriever.model_dump()), repr(records)]
    assert not [text for text in shown if "s3cr3t" in text]
