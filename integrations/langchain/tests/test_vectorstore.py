"""`ManyvecVectorStore` over a real index: what LangChain's standard suite does not test."""

import copy
import shutil

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStoreRetriever

import manyvec
from langchain_manyvec import ManyvecRetriever, ManyvecVectorStore
from manyvec import F
from manyvec.testing import HashEncoder

# Each document has other keys, some of them names that a store might use itself.
DOCUMENTS = [
    Document("a late interaction", id="a/1", metadata={"year": 2020, "id": 17, "score": "2:1"}),
    Document("an early interaction", id="b 2", metadata={"year": 2024, "nested": {"tags": ["x", None], "pi": 3.5}}),
    Document("O'Neill; 延迟交互", id="ç'3", metadata={}),
]
# Vectors are stored as float16: a word's similarity to itself is 1 within 2**-10.
FLOAT16 = 2**-10


@pytest.fixture
def store(index: manyvec.Index) -> ManyvecVectorStore:
    store = ManyvecVectorStore(index)
    store.add_documents(DOCUMENTS)
    return store


def ids(documents):
    return [document.id for document in documents]


# Results


def test_every_search_method_returns_exactly_the_stored_documents(store):
    def by_id(documents):
        return {document.id: document for document in documents}

    stored = by_id(DOCUMENTS)
    assert by_id(store.similarity_search("interaction")) == stored
    assert by_id(document for document, _ in store.similarity_search_with_score("interaction")) == stored
    assert by_id(document for document, _ in store.similarity_search_with_relevance_scores("interaction")) == stored
    assert by_id(store.max_marginal_relevance_search("interaction")) == stored
    assert by_id(store.get_by_ids(["ç'3", "nobody", "a/1", "b 2"])) == stored


def test_changing_a_result_changes_no_later_result(store):
    store.similarity_search("early")[0].metadata["nested"]["tags"].clear()
    store.get_by_ids(["b 2"])[0].metadata.clear()

    assert store.similarity_search("early", k=1) == store.get_by_ids(["b 2"]) == [DOCUMENTS[1]]


def test_the_score_counts_the_matched_words_and_the_relevance_score_is_their_share(store):
    (_, score) = store.similarity_search_with_score("late interaction", k=1)[0]
    (_, relevance) = store.similarity_search_with_relevance_scores("late interaction", k=1)[0]

    assert score == pytest.approx(2, abs=2 * FLOAT16)
    assert relevance == pytest.approx(1, abs=FLOAT16)


class OppositeEncoder(HashEncoder):
    """Encodes a word of a query as the negated vector of the same word in a document."""

    def encode_queries(self, queries):
        tokens = super().encode_queries(queries)
        return manyvec.TokenBatch(-tokens.vectors, tokens.offsets)


def test_a_negative_similarity_has_the_relevance_0_and_keeps_its_score(tmp_path):
    store = ManyvecVectorStore(manyvec.Index.create(tmp_path / "opposite", OppositeEncoder()))
    store.add_texts(["word"])

    assert [relevance for _, relevance in store.similarity_search_with_relevance_scores("word")] == [0]
    assert store.similarity_search_with_score("word")[0][1] == pytest.approx(-1, abs=FLOAT16)


def test_a_relevance_threshold_leaves_out_what_is_below_it(store):
    found = store.similarity_search_with_relevance_scores("early interaction", score_threshold=0.9)

    assert [document.id for document, _ in found] == ["b 2"]


@pytest.mark.parametrize("condition", [F("year") >= 2024, {"year": 2024}])
async def test_a_filter_works_in_every_search(store, condition):
    query = "late interaction"
    assert ids(store.similarity_search(query, filter=condition)) == ["b 2"]
    assert ids(await store.asimilarity_search(query, filter=condition)) == ["b 2"]
    assert ids(store.max_marginal_relevance_search(query, filter=condition)) == ["b 2"]
    for found in (
        store.similarity_search_with_score(query, filter=condition),
        store.similarity_search_with_relevance_scores(query, filter=condition),
        await store.asimilarity_search_with_score(query, filter=condition),
        await store.asimilarity_search_with_relevance_scores(query, filter=condition),
    ):
        assert [document.id for document, _ in found] == ["b 2"]


async def test_every_search_of_an_empty_store_returns_nothing(index):
    empty = ManyvecVectorStore(index)

    assert empty.similarity_search("late") == []
    assert empty.similarity_search_with_score("late") == []
    assert await empty.asimilarity_search_with_relevance_scores("late") == []
    assert empty.max_marginal_relevance_search("late") == []
    assert empty.get_by_ids(["a"]) == []


# Adding and deleting


def test_adding_does_not_modify_documents_metadata_or_ids(index):
    documents = [*copy.deepcopy(DOCUMENTS), Document("no id", metadata={"year": 2021})]
    metadatas, given = [{"year": 2021}, {}], ["x", None]
    before = copy.deepcopy((documents, metadatas, given))

    ManyvecVectorStore(index).add_documents(documents)
    ManyvecVectorStore(index).add_texts(["one", "two"], metadatas, ids=given)

    assert (documents, metadatas, given) == before


def test_ids_are_taken_from_the_argument_then_from_the_document_then_from_its_content(index):
    store = ManyvecVectorStore(index)
    documents = [Document("one", id="own 1"), Document("two", id="own 2"), Document("three"), Document("four")]

    given = store.add_documents(documents, ids=["given", None, None, "4"])
    again = store.add_documents(documents, ids=["given", None, None, "4"])

    assert [given[0], given[1], given[3]] == ["given", "own 2", "4"]
    assert again == given
    assert [document.page_content for document in store.get_by_ids(given)] == ["one", "two", "three", "four"]
    assert index.count() == 4


def test_the_last_of_several_texts_with_the_same_id_is_stored(index):
    store = ManyvecVectorStore(index)

    assert store.add_texts(["first", "second"], ids=["a", "a"]) == ["a", "a"]
    assert store.get_by_ids(["a"]) == [Document("second", id="a")]


def test_texts_may_come_from_an_iterator(index):
    store = ManyvecVectorStore(index)

    assert store.add_texts(iter(["one", "two"]), ids=["1", "2"]) == ["1", "2"]
    assert ids(store.get_by_ids(["1", "2"])) == ["1", "2"]


@pytest.mark.parametrize("options", [{"ids": ["1"]}, {"metadatas": [{}, {}, {}]}])
def test_a_wrong_number_of_ids_or_metadatas_is_an_error_and_stores_nothing(index, options):
    with pytest.raises(manyvec.InputError, match="got 2 "):
        ManyvecVectorStore(index).add_texts(["one", "two"], **options)

    assert index.count() == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("text", id="bad", metadata={"object": object()}), r"'bad'.*'object'"),
        (Document("text", metadata={"a": {"b": [1, object()]}}), r"\(no id\).*a\.b\[1\]"),
        (Document("text", id="bad", metadata={"x": float("inf")}), "'x'"),
    ],
)
async def test_a_document_that_cannot_be_stored_is_named_in_the_error_and_nothing_is_stored(index, document, message):
    store = ManyvecVectorStore(index)

    with pytest.raises(manyvec.InputError, match=message):
        store.add_documents([*DOCUMENTS, document])
    with pytest.raises(manyvec.InputError, match=message):
        await store.aadd_documents([*DOCUMENTS, document])
    assert index.count() == 0


async def test_delete_returns_true_for_known_and_unknown_ids(store):
    assert store.delete(["a/1", "nobody"]) is True
    assert await store.adelete(["nobody"]) is True
    assert store.delete([]) is True
    assert store.index.count() == 2


def test_delete_by_filter_and_delete_all(store):
    store.delete(filter={"year": 2020})
    assert store.index.count() == 2
    store.delete(filter={})
    assert store.index.count() == 0


def test_delete_without_arguments_is_an_error_and_deletes_nothing(store):
    with pytest.raises(manyvec.InputError, match="ids or a filter"):
        store.delete()

    assert store.index.count() == 3


async def test_documents_can_be_added_read_and_deleted_from_an_event_loop(index):
    store = ManyvecVectorStore(index)

    assert await store.aadd_documents(DOCUMENTS) == ["a/1", "b 2", "ç'3"]
    assert len(await store.aadd_texts(["one", "two"], [{}, {"year": 1}], ids=["1", None])) == 2
    assert await store.aget_by_ids(["1", "a/1"]) == [Document("one", id="1"), DOCUMENTS[0]]
    await store.adelete(["1"])
    assert index.count() == 4


# Creating and opening


def test_from_documents_takes_an_encoder_in_place_of_embeddings(tmp_path):
    def make(documents):
        return ManyvecVectorStore.from_documents(
            documents, HashEncoder(), uri=tmp_path / "new", filter_columns={"year": int}
        )

    make(DOCUMENTS[:2])
    store = make([DOCUMENTS[2], Document("late", id="d", metadata={"year": 2024})])

    assert store.get_by_ids(["a/1", "b 2", "ç'3"]) == DOCUMENTS
    assert ids(store.similarity_search("early interaction", filter={"year": 2024})) == ["b 2", "d"]
    assert store.embeddings is None


async def test_from_texts_works_from_an_event_loop_and_from_uri_opens_what_it_made(tmp_path):
    uri = tmp_path / "new"
    await ManyvecVectorStore.afrom_texts(["one", "two"], HashEncoder(), [{"a": 1}, {}], ids=["1", "2"], uri=uri)
    await ManyvecVectorStore.afrom_documents([Document("three")], HashEncoder(), uri=uri, ids=["3"])

    store = ManyvecVectorStore.from_uri(uri, encoder=HashEncoder())

    assert store.get_by_ids(["1", "3"]) == [Document("one", id="1", metadata={"a": 1}), Document("three", id="3")]


def test_the_former_argument_filters_raises_an_error_that_names_filter_columns(tmp_path):
    with pytest.raises(TypeError, match="filter_columns"):
        ManyvecVectorStore.from_documents(DOCUMENTS, HashEncoder(), uri=tmp_path / "new", filters={"year": int})
    with pytest.raises(TypeError, match="filter_columns"):
        ManyvecRetriever.from_documents(DOCUMENTS, tmp_path / "new", encoder=HashEncoder(), filters={"year": int})


def test_an_encoder_can_be_named(tmp_path):
    with pytest.raises(manyvec.EncoderError, match="no-such-model"):
        ManyvecVectorStore.from_texts(["one"], str(tmp_path / "no-such-model"), uri=tmp_path / "new")


def test_single_vector_embeddings_raise_an_error_that_names_what_to_pass(tmp_path):
    with pytest.raises(TypeError, match=r"DeterministicFakeEmbedding makes one .*'minilm'"):
        ManyvecVectorStore.from_documents(DOCUMENTS, DeterministicFakeEmbedding(size=6), uri=tmp_path / "new")

    assert not (tmp_path / "new").exists()


# As a retriever


@pytest.mark.parametrize(
    ("search_type", "search_kwargs", "found"),
    [
        ("similarity", {"k": 1}, ["b 2"]),
        ("similarity", {"filter": {"year": 2020}}, ["a/1"]),
        ("similarity_score_threshold", {"score_threshold": 0.9}, ["b 2"]),
        ("mmr", {"k": 2, "lambda_mult": 0.1}, ["b 2", "ç'3"]),
    ],
)
async def test_it_is_langchains_own_retriever_in_each_search_type(store, search_type, search_kwargs, found):
    retriever = store.as_retriever(search_type=search_type, search_kwargs=search_kwargs)

    assert isinstance(retriever, VectorStoreRetriever)
    assert ids(retriever.invoke("early interaction")) == ids(await retriever.ainvoke("early interaction")) == found


class Recorder(BaseCallbackHandler):
    """Records the metadata that a trace of a retriever holds."""

    def __init__(self):
        self.metadata = []

    def on_retriever_start(self, serialized, query, *, metadata=None, **kwargs):
        self.metadata.append(metadata)


def test_a_trace_of_its_retriever_holds_provider_and_model(store):
    recorder = Recorder()
    store.as_retriever().invoke("late", {"callbacks": [recorder]})

    assert recorder.metadata[0] == {
        "ls_retriever_name": "manyvecvectorstore",
        "ls_vector_store_provider": "LanceDB",
        "ls_embedding_provider": "manyvec",
        "ls_embedding_model": "hash-64",
    }


def test_a_store_and_a_retriever_share_an_index(store):
    retriever = ManyvecRetriever(index=store.index, k=1)
    store.add_texts(["something quite new"], ids=["new"])

    assert ids(retriever.invoke("quite new")) == ["new"]


# Errors


async def test_a_filter_on_an_undeclared_column_is_an_error_everywhere(store):
    for search in (store.similarity_search, store.similarity_search_with_score, store.max_marginal_relevance_search):
        with pytest.raises(manyvec.FilterError, match="'lang'"):
            search("late", filter={"lang": "en"})
    with pytest.raises(manyvec.FilterError, match="'lang'"):
        await store.asimilarity_search_with_relevance_scores("late", filter=F("lang") == "en")
    with pytest.raises(manyvec.FilterError, match="'lang'"):
        store.delete(filter={"lang": "en"})


async def test_an_unknown_argument_of_a_search_is_an_error(store):
    with pytest.raises(TypeError, match="filters"):
        store.similarity_search("late", filters={"year": 2024})
    with pytest.raises(TypeError, match="score_threshold"):
        await store.as_retriever(search_kwargs={"score_threshold": 0.5}).ainvoke("late")


async def test_an_index_deleted_from_disk_is_an_error_and_not_an_empty_answer(store):
    store.similarity_search("late")
    shutil.rmtree(store.index.uri)

    with pytest.raises(manyvec.ManyvecError):
        store.similarity_search("late")
    with pytest.raises(manyvec.ManyvecError):
        await store.aget_by_ids(["a/1"])
    with pytest.raises(manyvec.ManyvecError):
        store.add_texts(["one"])
    with pytest.raises(manyvec.IndexNotFoundError):
        ManyvecVectorStore.from_uri(store.index.uri)
