"""Filters pass the same nodes as LlamaIndex's `build_metadata_filter_fn`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.retrievers import VectorIndexAutoRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import MetadataInfo, VectorStoreInfo
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec import F, FilterError
from manyvec.testing import HashEncoder

METADATA = {
    "all": {"year": 2023, "lang": "en", "tags": ["ir", "rag"], "rating": 4.5, "draft": True},
    "quote": {"year": 2022, "lang": "it's; --\\", "tags": ["ir"], "rating": -1.0, "draft": False},
    "upper": {"year": 2024, "lang": "EN-gb", "tags": ["rag", "llm"], "rating": 0.0, "draft": False},
    "blank": {"year": 0, "lang": "", "tags": [], "rating": 4.5},
    "null": {"year": None, "lang": None, "tags": None, "rating": None, "draft": None},
    "missing": {},
    "kanji": {"year": 2023, "lang": "日本語", "tags": ["検索"]},
}
COLUMNS = {"year": int, "lang": str, "tags": list[str], "rating": float, "draft": bool}


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> ManyvecRetriever:
    nodes = [TextNode(id_=id, text="a note", metadata=metadata) for id, metadata in METADATA.items()]
    folder = tmp_path_factory.mktemp("index")
    return ManyvecRetriever.from_nodes(nodes, folder, HashEncoder(), filter_columns=COLUMNS, similarity_top_k=99)


def passing(retriever: ManyvecRetriever, *filters: object, condition: str = "and") -> set[str]:
    metadata_filters = MetadataFilters(filters=list(filters), condition=FilterCondition(condition))
    return {found.node_id for found in retriever.with_options(filters=metadata_filters).retrieve("note")}


def where(key: str, op: str, value: object = None) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(op), value=value)


SINGLE = [
    where("year", "==", 2023),
    where("year", "==", 0),
    where("year", "!=", 2023),
    where("year", "<", 2023),
    where("year", "<=", 2023),
    where("year", ">", 2022),
    where("year", ">=", 2023),
    where("year", "in", [2022, 2024, 1999]),
    where("year", "in", []),
    where("year", "nin", [2022, 2024]),
    where("year", "nin", []),
    where("year", "is_empty"),
    where("rating", "==", 4.5),
    where("rating", ">", -0.5),
    where("rating", "nin", [4.5, 0.0]),
    where("rating", "is_empty"),
    where("lang", "==", "it's; --\\"),
    where("lang", "==", ""),
    where("lang", "!=", "en"),
    where("lang", "<", "en"),
    where("lang", ">=", "it"),
    where("lang", "in", ["en", "日本語"]),
    where("lang", "nin", ["en", "日本語", ""]),
    where("lang", "contains", "n"),
    where("lang", "text_match", "本"),
    where("lang", "text_match", "EN"),
    where("lang", "text_match", "'"),
    where("lang", "text_match_insensitive", "EN"),
    where("lang", "text_match_insensitive", "日本"),
    where("lang", "text_match_insensitive", "IT'S"),
    where("lang", "text_match_insensitive", ""),
    where("lang", "any", ["e", "i"]),
    where("lang", "all", ["e", "n"]),
    where("lang", "is_empty"),
    where("tags", "contains", "ir"),
    where("tags", "contains", "検索"),
    where("tags", "any", ["llm", "検索", "absent"]),
    where("tags", "any", []),
    where("tags", "all", ["rag", "ir"]),
    where("tags", "all", []),
    where("tags", "is_empty"),
    where("draft", "==", 1),
    where("draft", "==", 0),
    where("draft", "!=", 1),
    where("draft", "in", [0, 1]),
    where("draft", "is_empty"),
]


@pytest.mark.parametrize("one", SINGLE, ids=lambda one: f"{one.key} {one.operator.value} {one.value}")
def test_an_operator_passes_the_same_nodes_as_in_llamaindex(retriever: ManyvecRetriever, one: MetadataFilter) -> None:
    passes = build_metadata_filter_fn(METADATA.__getitem__, MetadataFilters(filters=[one]))
    assert passing(retriever, one) == {id for id in METADATA if passes(id)}


@pytest.mark.parametrize("condition", ["and", "or", "not"])
def test_a_condition_combines_filters_as_in_llamaindex(retriever: ManyvecRetriever, condition: str) -> None:
    for one, other in zip(SINGLE, SINGLE[7:] + SINGLE[:7], strict=True):
        together = MetadataFilters(filters=[one, other], condition=FilterCondition(condition))
        passes = build_metadata_filter_fn(METADATA.__getitem__, together)
        expected = {id for id in METADATA if passes(id)}
        assert passing(retriever, one, other, condition=condition) == expected, (one, other)


def test_nested_filters_are_evaluated_from_the_inside(retriever: ManyvecRetriever) -> None:
    recent = where("year", ">=", 2023)
    neither = MetadataFilters(
        filters=[where("tags", "contains", "llm"), where("lang", "==", "en")], condition=FilterCondition.NOT
    )
    assert passing(retriever, recent, neither) == {"kanji"}
    assert passing(retriever, recent, neither, condition="or") == set(METADATA)
    assert passing(retriever, recent, neither, condition="not") == set()
    twice = MetadataFilters(filters=[neither], condition=FilterCondition.NOT)
    assert passing(retriever, twice) == {"all", "upper"}


@pytest.mark.parametrize("condition", ["and", "or", "not"])
def test_an_empty_list_of_filters_passes_every_node(retriever: ManyvecRetriever, condition: str) -> None:
    assert passing(retriever, condition=condition) == set(METADATA)
    assert passing(retriever, MetadataFilters(filters=[], condition=FilterCondition(condition))) == set(METADATA)


def test_a_missing_condition_is_and(retriever: ManyvecRetriever) -> None:
    filters = MetadataFilters(filters=[where("year", "==", 2023), where("lang", "==", "en")], condition=None)
    assert [found.node_id for found in retriever.with_options(filters=filters).retrieve("note")] == ["all"]


@pytest.mark.parametrize("filters", [F("year") == 2023, {"year": 2023}], ids=["F", "dict"])
def test_a_filter_of_manyvec_or_a_dict_means_the_same(retriever: ManyvecRetriever, filters: object) -> None:
    found = retriever.with_options(filters=filters).retrieve("note")
    assert {node.node_id for node in found} == passing(retriever, where("year", "==", 2023)) == {"all", "kanji"}


def test_a_quote_does_not_end_the_value(retriever: ManyvecRetriever) -> None:
    assert passing(retriever, where("lang", "==", "' OR true --")) == set()
    assert passing(retriever, where("lang", "text_match", "' OR '1'='1")) == set()


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (where("year", "text_match_insensitive", "2"), "'year' is a int"),
        (where("lang", "text_match_insensitive", 2), "'lang' must be of type str, got 2"),
        (where("year", ">", "soon"), "'year' must be of type int"),
        (where("lang", "nin", "en"), "list of values"),
        (where("draft", "==", 0.0), "'draft' must be of type bool, got 0.0"),
        (
            where("author", "==", "x"),
            "no filter column 'author'; declared columns: year: int.*add_filter_columns\\(\\{'author'",
        ),
        (where("author", "is_empty"), "no filter column 'author'"),
        (where("author", "any", ["x"]), "no filter column 'author'"),
        (where("year", "==", "2023.5"), "'year' must be of type int"),
        (where("year", "==", None), "needs a value.*is_empty"),
        (where("year", "in", 2023), "list of values"),
        (where("year", "text_match", "2"), "'year' is a int"),
        (where("tags", "text_match", "ir"), r"'tags' is a list\[str\]"),
        (where("tags", "==", "ir"), "contains"),
        (where("tags", "any", "ir"), "list of values"),
        (MetadataFilter.model_construct(key="year", value=2023, operator="near"), "unknown filter operator 'near'"),
    ],
    ids=lambda value: f"{value.key} {value.operator}" if isinstance(value, MetadataFilter) else "",
)
def test_an_invalid_filter_is_an_error_that_says_why(
    retriever: ManyvecRetriever, one: MetadataFilter, message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        passing(retriever, one)


def test_an_unknown_condition_is_an_error(retriever: ManyvecRetriever) -> None:
    filters = MetadataFilters.model_construct(filters=[where("year", "==", 1)], condition="xor")
    with pytest.raises(FilterError, match="xor"):
        retriever.with_options(filters=filters).retrieve("note")


NASTY = [
    "",
    "a",
    "A",
    "o'brien",
    'say "x"',
    "back\\slash",
    "' OR true --",
    "%",
    "_",
    "`",
    "日本語",
    "É",
    "é",
    "line\nbreak",
]
texts = st.sampled_from(NASTY)
years = st.integers(-2, 2)
ratings = years.map(lambda n: n / 2)
metadata = st.fixed_dictionaries(
    {},
    optional={
        "year": st.none() | years,
        "lang": st.none() | texts,
        "tags": st.none() | st.lists(texts, max_size=3),
        "rating": st.none() | ratings,
        "draft": st.none() | st.booleans(),
        "undeclared": texts | years,
    },
)


def leaves(key: str, operators: str, values: st.SearchStrategy) -> st.SearchStrategy[MetadataFilter]:
    return st.builds(where, st.just(key), st.sampled_from(operators.split()), values)


ordered, listed = "== != < <= > >=", "in nin"
single = st.one_of(
    leaves("year", ordered, years | ratings),
    leaves("year", listed, st.lists(years, max_size=3)),
    leaves("rating", ordered, ratings | years),
    leaves("lang", ordered + " contains text_match text_match_insensitive", texts),
    leaves("lang", listed + " any all", st.lists(texts, max_size=3)),
    leaves("tags", "contains", texts),
    leaves("tags", "any all", st.lists(texts, max_size=3)),
    leaves("draft", "== !=", st.integers(0, 1)),
    st.builds(where, st.sampled_from(list(COLUMNS)), st.just("is_empty")),
)
nested = st.recursive(
    single,
    lambda inner: st.builds(
        MetadataFilters, filters=st.lists(inner, max_size=3), condition=st.sampled_from(list(FilterCondition))
    ),
    max_leaves=6,
)


def passes(part: MetadataFilter | MetadataFilters, values: dict[str, object]) -> bool:
    """Apply LlamaIndex's function to comparisons, and its rules for flat lists to nested filters, which it rejects."""
    if isinstance(part, MetadataFilter):
        return build_metadata_filter_fn(lambda _: values, MetadataFilters(filters=[part]))("")
    results = [passes(inner, values) for inner in part.filters]
    if part.condition == FilterCondition.OR and results:
        return any(results)
    return not any(results) if part.condition == FilterCondition.NOT else all(results)


@settings(max_examples=8, deadline=None, database=None)
@given(rows=st.lists(metadata, min_size=4, max_size=16), filters=st.lists(nested, min_size=20, max_size=20))
def test_any_filters_over_any_metadata_agree_with_llamaindex(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], filters: list[object]
) -> None:
    store = ManyvecVectorStore.create(tmp_path_factory.mktemp("index"), HashEncoder(8), filter_columns=COLUMNS)
    store.add([TextNode(id_=str(i), text="note", metadata=row) for i, row in enumerate(rows)])
    for one in filters:
        expected = {str(i) for i, row in enumerate(rows) if passes(one, row)}
        found = store.get_nodes(filters=MetadataFilters(filters=[one]))
        assert {node.node_id for node in found} == expected, one


def test_inferred_columns_and_nested_keys_can_be_filtered_on(tmp_path):
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder(), filter_columns="infer")
    store.add([TextNode(id_=str(i), text="x", metadata={"a": {"b": i}, "lang": "en"}) for i in range(3)])
    assert store.client.filter_columns == {"_ref_doc_id": "str", "a.b": "int", "lang": "str"}
    found = store.get_nodes(filters=MetadataFilters(filters=[where("a.b", ">=", 1), where("lang", "==", "en")]))
    assert [node.node_id for node in found] == ["1", "2"]


class Scripted(MockLLM):
    """Language model that always writes the same text."""

    text: str = ""

    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponse:
        return CompletionResponse(text=self.text)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([{"key": "year", "operator": ">=", "value": "2023"}], {"all", "upper", "kanji"}),
        ([{"key": "year", "operator": "==", "value": 2023.0}], {"all", "kanji"}),
        ([{"key": "year", "operator": "in", "value": ["2022", "2024"]}], {"quote", "upper"}),
        ([{"key": "rating", "operator": ">", "value": "4"}, {"key": "lang", "value": "en"}], {"all"}),
        ([{"key": "draft", "operator": "==", "value": "true"}], {"all"}),
        ([], set(METADATA)),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_filters_that_a_language_model_wrote_are_converted_to_the_types_of_their_columns(
    retriever: ManyvecRetriever, filters: list[Mapping[str, object]], expected: set[str]
) -> None:
    index = VectorStoreIndex.from_vector_store(
        ManyvecVectorStore(retriever.index), embed_model=ManyvecEmbedding(HashEncoder())
    )
    keys = [MetadataInfo(name=name, type="any", description=name) for name in COLUMNS]
    # A model writes no query for "the notes of 2023".
    for query in ("a note", "") if filters else ("a note",):
        written = json.dumps({"query": query, "filters": filters, "top_k": 99})
        llm = Scripted(max_tokens=None)
        llm.text = f"```json\n{written}\n```"
        auto = VectorIndexAutoRetriever(
            index, VectorStoreInfo(content_info="notes", metadata_info=keys), llm=llm, similarity_top_k=99, max_top_k=99
        )
        assert {found.node_id for found in auto.retrieve("notes of those years")} == expected
