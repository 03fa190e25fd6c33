"""The vector store, retriever and embeddings inside what LangChain builds of them."""

import datetime
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.stores import InMemoryByteStore, InMemoryStore
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_manyvec import (
    ManyvecEmbeddings,
    ManyvecReranker,
    ManyvecRetriever,
    ManyvecTranslator,
    ManyvecVectorStore,
)
from manyvec.testing import HashEncoder

PAPERS = [
    Document("late interaction", id="colbert", metadata={"year": 2020, "title": "ColBERT", "topics": ["ir"]}),
    Document("late interaction with centroids", id="plaid", metadata={"year": 2022, "title": "PLAID"}),
    Document("page images", id="colpali", metadata={"year": 2024, "title": "ColPali", "topics": ["ir", "vision"]}),
]
COLUMNS = {"year": int, "title": str, "topics": list[str]}


@pytest.fixture
def store(tmp_path) -> ManyvecVectorStore:
    return ManyvecVectorStore.from_documents(PAPERS, HashEncoder(), uri=tmp_path / "papers", filter_columns=COLUMNS)


def ids(documents):
    return [document.id for document in documents]


# Structured queries


def compare(comparator: str, attribute: str, value: Any) -> Comparison:
    return Comparison(comparator=Comparator(comparator), attribute=attribute, value=value)


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        (compare("eq", "year", 2022), {"plaid"}),
        (compare("ne", "year", 2022), {"colbert", "colpali"}),
        (compare("gt", "year", 2020), {"plaid", "colpali"}),
        (compare("gte", "year", 2022), {"plaid", "colpali"}),
        (compare("lt", "year", 2022), {"colbert"}),
        (compare("lte", "year", 2022), {"colbert", "plaid"}),
        (compare("in", "title", ["ColBERT", "PLAID"]), {"colbert", "plaid"}),
        (compare("nin", "title", ["ColBERT", "PLAID"]), {"colpali"}),
        (compare("contain", "topics", "vision"), {"colpali"}),
        (compare("contain", "title", "Col"), {"colbert", "colpali"}),
        (compare("like", "title", "%col%"), {"colbert", "colpali"}),
        (
            Operation(
                operator=Operator.AND, arguments=[compare("gt", "year", 2020), compare("contain", "topics", "ir")]
            ),
            {"colpali"},
        ),
        (
            Operation(operator=Operator.OR, arguments=[compare("eq", "year", 2020), compare("eq", "year", 2022)]),
            {"colbert", "plaid"},
        ),
        (Operation(operator=Operator.NOT, arguments=[compare("gt", "year", 2020)]), {"colbert"}),
        (
            Operation(operator=Operator.NOT, arguments=[compare("eq", "year", 2020), compare("eq", "year", 2022)]),
            {"colpali"},
        ),
    ],
)
def test_a_structured_query_selects_the_documents_it_describes(store, directive, expected):
    query, arguments = ManyvecTranslator().visit_structured_query(StructuredQuery(query="papers", filter=directive))

    assert query == "papers"
    assert set(ids(store.similarity_search(query, **arguments))) == expected


def test_a_structured_query_without_a_filter_has_no_arguments():
    assert ManyvecTranslator().visit_structured_query(StructuredQuery(query="x", filter=None)) == ("x", {})


def test_a_date_of_a_structured_query_is_compared_as_a_date(tmp_path):
    store = ManyvecVectorStore.from_documents(
        [Document("a", id=day, metadata={"day": day}) for day in ("2024-01-31", "2024-02-01")],
        HashEncoder(),
        uri=tmp_path / "days",
        filter_columns={"day": datetime.datetime},
    )
    later = compare("gt", "day", {"date": "2024-01-31", "type": "date"})
    _, arguments = ManyvecTranslator().visit_structured_query(StructuredQuery(query="a", filter=later))

    assert ids(store.similarity_search("a", **arguments)) == ["2024-02-01"]


classic = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::langchain_core._api.LangChainDeprecationWarning"
)


@classic
async def test_a_self_query_retriever_searches_with_the_filter_of_the_language_model(store):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    structured = StructuredQuery(query="late interaction", filter=compare("gt", "year", 2020))

    retriever = retrievers.SelfQueryRetriever(
        vectorstore=store,
        query_constructor=RunnableLambda(lambda _: structured),
        structured_query_translator=ManyvecTranslator(),
        search_kwargs={"k": 1},
    )
    assert ids(retriever.invoke("late interaction after 2020")) == ["plaid"]
    assert ids(await retriever.ainvoke("late interaction after 2020")) == ["plaid"]


async def test_a_query_that_is_only_a_filter_returns_what_passes_it(store):
    only = {"filter": {"year": {"$gt": 2020}}}
    assert ids(store.similarity_search(" ", **only)) == ["colpali", "plaid"]
    assert ids(await store.asimilarity_search("", k=1, **only)) == ["colpali"]
    assert store.similarity_search_with_score("", **only)[0][1] == 0
    assert set(ids(store.max_marginal_relevance_search("", k=2, **only))) == {"colpali", "plaid"}
    assert store.similarity_search("") == []


# Retrievers of LangChain


class Lines(BaseOutputParser[list[str]]):
    def parse(self, text: str) -> list[str]:
        return text.splitlines()


@classic
async def test_a_multi_query_retriever_returns_each_document_once(store):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    llm = FakeListLLM(responses=["late interaction\ncentroids\nlate"])
    base = ManyvecRetriever(index=store.index, scores=False, k=3)
    retriever = retrievers.MultiQueryRetriever.from_llm(base, llm)

    assert sorted(ids(retriever.invoke("late interaction"))) == ["colbert", "colpali", "plaid"]
    assert sorted(ids(await retriever.ainvoke("late interaction"))) == ["colbert", "colpali", "plaid"]


@classic
def test_embeddings_can_be_cached():
    embeddings = pytest.importorskip("langchain_classic.embeddings", reason="needs langchain-classic")
    cached = embeddings.CacheBackedEmbeddings.from_bytes_store(
        ManyvecEmbeddings(HashEncoder()), InMemoryByteStore(), namespace="hash", key_encoder="blake2b"
    )
    texts = ["late interaction", "page images"]

    assert cached.embed_documents(texts) == cached.embed_documents(texts)
    assert cached.embed_documents(texts) == ManyvecEmbeddings(HashEncoder()).embed_documents(texts)


def test_embeddings_serve_a_store_of_single_vectors():
    store = InMemoryVectorStore.from_texts(["late interaction", "page images"], ManyvecEmbeddings(HashEncoder()))

    assert [document.page_content for document in store.similarity_search("images", k=1)] == ["page images"]


@classic
async def test_an_embeddings_filter_keeps_what_is_close_to_the_query():
    pytest.importorskip(
        "langchain_community", reason="EmbeddingsFilter needs langchain-community, which is discontinued"
    )
    compressors = pytest.importorskip("langchain_classic.retrievers.document_compressors")
    embeddings = ManyvecEmbeddings(HashEncoder())
    documents = [Document("late interaction", metadata={"n": 1}), Document("page images", metadata={"n": 2})]
    for options in ({"k": 1}, {"k": None, "similarity_threshold": 0.5}):
        close = compressors.EmbeddingsFilter(embeddings=embeddings, **options)
        assert [d.metadata["n"] for d in close.compress_documents(documents, "images of a page")] == [2]
        assert [d.metadata["n"] for d in await close.acompress_documents(documents, "late interaction")] == [1]


@classic
def test_a_parent_document_retriever_returns_the_documents_its_chunks_come_from(tmp_path):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    splitters = pytest.importorskip("langchain_text_splitters", reason="needs langchain-text-splitters")
    store = ManyvecVectorStore.from_texts([], HashEncoder(), uri=tmp_path / "chunks")
    retriever = retrievers.ParentDocumentRetriever(
        vectorstore=store,
        docstore=InMemoryStore(),
        child_splitter=splitters.CharacterTextSplitter(separator=".", chunk_size=20, chunk_overlap=0),
    )
    parents = [Document("red apples. green apples."), Document("black coffee. green tea.")]
    retriever.add_documents(parents, ids=["fruit", "drinks"])

    assert store.index.count() == 4
    assert retriever.invoke("green tea")[0] == parents[1]


@classic
def test_an_ensemble_merges_the_results_of_two_retrievers(store):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    late = ManyvecRetriever(index=store.index, k=2, scores=False)
    words = store.as_retriever(search_kwargs={"k": 2, "lexical_weight": 1})
    ensemble = retrievers.EnsembleRetriever(retrievers=[late, words], weights=[0.5, 0.5], id_key=None)

    assert ids(ensemble.invoke("late interaction")) == ["colbert", "plaid"]


@classic
async def test_a_compression_retriever_reranks_and_a_fallback_answers_for_a_filter_that_fails(store):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    base = ManyvecRetriever(index=store.index, k=3).bind(filter={"undeclared": 1})
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=ManyvecReranker(index=store.index, top_n=1),
        base_retriever=base.with_fallbacks([store.as_retriever()]),
    )
    assert ids(retriever.invoke("page images")) == ["colpali"]
    assert ids(await retriever.ainvoke("centroids")) == ["plaid"]


@classic
def test_a_time_weighted_retriever_prefers_recent_documents(tmp_path):
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="needs langchain-classic")
    store = ManyvecVectorStore.from_texts([], HashEncoder(), uri=tmp_path / "weighted")
    retriever = retrievers.TimeWeightedVectorStoreRetriever(vectorstore=store, decay_rate=0.5, k=1)
    now = datetime.datetime.now()
    old = Document("late interaction", metadata={"last_accessed_at": now - datetime.timedelta(days=9)})
    retriever.add_documents([old, Document("late interaction again", metadata={"last_accessed_at": now})])

    assert [document.page_content for document in retriever.invoke("late interaction")] == ["late interaction again"]


# State and serialization


def test_results_survive_the_strict_serializer_of_langgraph(store, monkeypatch):
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    jsonplus = pytest.importorskip("langgraph.checkpoint.serde.jsonplus", reason="needs the extra 'agents'")
    serializer = jsonplus.JsonPlusSerializer()
    found = ManyvecRetriever(index=store.index, evidence=True).invoke("late interaction")

    assert serializer.loads_typed(serializer.dumps_typed({"documents": found})) == {"documents": found}


def test_a_graph_with_a_checkpointer_resumes_with_the_documents_found(store, monkeypatch):
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    graphs = pytest.importorskip("langgraph.graph", reason="needs the extra 'agents'")
    memory = pytest.importorskip("langgraph.checkpoint.memory", reason="needs the extra 'agents'")
    retriever = ManyvecRetriever(index=store.index, k=1, evidence=True, passage_chars=40)
    graph = graphs.StateGraph(dict)
    graph.add_node("retrieve", lambda state, config: {**state, "documents": retriever.invoke(state["query"], config)})
    graph.add_edge(graphs.START, "retrieve")
    graph.add_edge("retrieve", graphs.END)
    app, thread = graph.compile(checkpointer=memory.MemorySaver()), {"configurable": {"thread_id": "1"}}
    answered = app.invoke({"query": "page images"}, thread)

    assert ids(answered["documents"]) == ["colpali"]
    assert app.get_state(thread).values == answered
    assert isinstance(app.get_state(thread).values["documents"][0], Document)


def test_options_of_the_retriever_can_be_configured_for_a_run(store):
    fields = {name: ConfigurableField(id=name) for name in ("k", "filter")}
    retriever = ManyvecRetriever(index=store.index).configurable_fields(**fields)
    run = {"configurable": {"k": 1, "filter": {"year": 2022}}, "tags": ["a"], "metadata": {"user": 1}}
    assert ids(retriever.invoke("late interaction", run)) == ["plaid"]
    assert len(retriever.invoke("late interaction")) == 3


def test_a_chat_model_can_be_combined_with_the_retriever(store):
    chain = (
        ManyvecRetriever(index=store.index, k=1)
        | (lambda found: found[0].page_content)
        | FakeListChatModel(responses=["yes"])
    )
    assert chain.invoke("page images").content == "yes"
