"""LangChain's filter operators in every place that takes a filter, with the scenarios of langchain-postgres."""

import pytest

import manyvec
from langchain_manyvec import ManyvecRetriever, ManyvecVectorStore
from manyvec.testing import HashEncoder

METADATA = [
    {"name": "adam", "date": "2021-01-01", "count": 1, "is_active": True, "tags": ["a", "b"], "height": 10.0},
    {"name": "bob", "date": "2021-01-02", "count": 2, "is_active": False, "tags": ["b", "c"], "height": 5.7},
    {
        "name": "jane",
        "date": "2021-01-01",
        "count": 3,
        "is_active": True,
        "tags": ["b", "d"],
        "height": 2.4,
        "happy": True,
    },
]


def nested(depth):
    """Return a filter that is nested as deeply as no sane one."""
    condition = {"name": "adam"}
    for _ in range(depth):
        condition = {"$not": [condition]}
    return condition


COLUMNS = {
    "name": str,
    "date": str,
    "count": int,
    "is_active": bool,
    "tags": list[str],
    "height": float,
    "happy": bool,
}
CASES = [
    ({"name": "adam"}, "1"),
    ({"is_active": True}, "13"),
    ({"is_active": False}, "2"),
    ({"count": 1}, "1"),
    ({"name": {"$eq": "adam"}}, "1"),
    ({"count": {"$eq": 2}}, "2"),
    ({"name": {"$ne": "adam"}}, "23"),
    ({"is_active": {"$ne": True}}, "2"),
    ({"count": {"$gt": 1}}, "23"),
    ({"count": {"$gte": 2}}, "23"),
    ({"count": {"$lt": 3}}, "12"),
    ({"count": {"$lte": 2}}, "12"),
    ({"height": {"$gt": 5.5}}, "12"),
    ({"date": {"$eq": "2021-01-01"}}, "13"),
    ({"date": {"$gt": "2021-01-01"}}, "2"),
    ({"count": {"$between": [1, 2]}}, "12"),
    ({"count": {"$between": [1, 1]}}, "1"),
    ({"name": {"$in": ["adam", "bob"]}}, "12"),
    ({"name": {"$in": []}}, ""),
    ({"count": {"$in": [1, 3]}}, "13"),
    ({"name": {"$nin": ["adam", "bob"]}}, "3"),
    ({"$and": [{"name": "adam"}, {"count": 1}]}, "1"),
    ({"$and": [{"name": "adam"}, {"count": 2}]}, ""),
    ({"$or": [{"name": "adam"}, {"count": 2}]}, "12"),
    ({"$or": [{"name": "adam"}, {"$and": [{"name": "jane"}, {"is_active": True}]}]}, "13"),
    ({"$not": [{"name": "adam"}]}, "23"),
    ({"$not": {"name": "adam"}}, "23"),
    ({"happy": {"$exists": True}}, "3"),
    ({"happy": {"$exists": False}}, "12"),
    ({"tags": {"$contains": "b"}}, "123"),
    ({"tags": {"$contains": "d"}}, "3"),
    ({"count": {"$gte": 1, "$lt": 3}}, "12"),
    ({"name": "adam", "count": 1}, "1"),
    ({"count": {"$gte": "2"}}, "23"),
    ({"name": {"$eq": "x' OR 1=1 --"}}, ""),
    ({"name": {"$gt": "bob"}}, "3"),
    ({"name": {"$gte": "bob"}}, "23"),
    ({"name": {"$lt": "bob"}}, "1"),
    ({"name": {"$lte": "bob"}}, "12"),
    ({"name": {"$between": ["adam", "bob"]}}, "12"),
    ({"height": {"$eq": 2.4}}, "3"),
    ({"height": {"$ne": 2.4}}, "12"),
    ({"height": {"$between": [2.4, 5.7]}}, "23"),
    ({"name": {"$like": "a%"}}, "1"),
    ({"name": {"$like": "%a%"}}, "13"),
    ({"name": {"$ilike": "A%"}}, "1"),
    ({"is_active": True, "count": {"$ne": 1}}, "3"),
    ({"name": {"$not": {"$in": ["adam", "jane"]}}}, "2"),
    ({"$and": [{"$or": [{"count": 1}, {"count": 2}]}, {"$not": {"is_active": True}}]}, "2"),
    ({"$nor": [{"name": "adam"}, {"count": {"$gt": 2}}]}, "2"),
    ({}, "123"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ManyvecVectorStore.from_texts(
        ["note one", "note two", "note three"],
        HashEncoder(),
        METADATA,
        ids=["1", "2", "3"],
        uri=tmp_path_factory.mktemp("dialect") / "index",
        filter_columns=COLUMNS,
    )


@pytest.mark.parametrize(("condition", "expected"), CASES, ids=lambda value: str(value)[:60])
def test_a_filter_selects_the_documents_it_describes(store, condition, expected):
    assert {document.id for document in store.similarity_search("note", 9, filter=condition)} == set(expected)
    assert store.get(where=condition)["ids"] == list(expected)
    assert {d.id for d in ManyvecRetriever(index=store.index, filter=condition).invoke("note")} == set(expected)


@pytest.mark.parametrize(
    "condition",
    [
        {"count": {"$near": 2}},
        {"$xor": [{"name": "adam"}]},
        {"count": {"$gt": "many"}},
        {"name": {"$in": "adam"}},
        {"undeclared": {"$eq": 1}},
        {"$and": {"name": "adam"}, "count": {"$between": [1]}},
        {"count": {"$contains": 1}},
        {"is_active": {"$gt": "yes"}},
        {"name": {"$exists": "x"}},
        {"name`; DROP TABLE documents; --": "x"},
        {"$or": [{"count": 1}] * 2_000},
        nested(40),
    ],
    ids=lambda condition: str(condition)[:60],
)
def test_a_filter_that_cannot_be_read_is_an_error_and_finds_nothing(store, condition):
    with pytest.raises(manyvec.FilterError):
        store.similarity_search("note", filter=condition)
    with pytest.raises(manyvec.FilterError):
        store.delete(filter=condition)
    assert store.index.count() == 3


def test_inferred_columns_and_nested_keys_can_be_filtered_on():
    metadata = [{"a": {"b": 1}, "lang": "en"}, {"a": {"b": 2}, "lang": "de"}]
    store = ManyvecVectorStore.from_texts(["x one", "x two"], HashEncoder(), metadata, filter_columns="infer")
    assert store.index.filter_columns == {"a.b": "int", "lang": "str"}
    assert [d.page_content for d in store.similarity_search("x", filter={"a.b": {"$gte": 2}})] == ["x two"]
    assert [d.metadata for d in store.similarity_search("x", filter={"lang": "en"})] == metadata[:1]
