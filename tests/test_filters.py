"""Filters: what they mean, how they are quoted, and what they refuse. The oracle is plain Python."""

import re
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyvec import F, FilterError, HasId, Index, InputError, parse_filter
from manyvec.filters import AllOf, AnyOf, ColumnType, Comparison, Not, to_sql
from manyvec.testing import HashEncoder

COLUMNS = {"n": ColumnType(int), "x": ColumnType(float), "s": ColumnType(str), "b": ColumnType(bool)}
COLUMNS |= {"tags": ColumnType(str, is_list=True), "when": ColumnType(datetime)}
NASTY = [
    "",
    "a",
    "o'brien",
    'say "x"',
    "back\\slash",
    "a;b",
    "line\nbreak",
    "日本語",
    "é",
    "ÄPFEL",
    "Äpfel",
    "' OR 1=1 --",
    "%",
    "_",
    "`",
]


def like(text, pattern):
    regex = "".join({"%": ".*", "_": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(regex, text, re.DOTALL) is not None


def holds(condition, values):
    """What a filter means, in two-valued Python."""
    if isinstance(condition, AllOf):
        return all(holds(part, values) for part in condition.parts)
    if isinstance(condition, AnyOf):
        return any(holds(part, values) for part in condition.parts)
    if isinstance(condition, Not):
        return not holds(condition.part, values)
    if isinstance(condition, HasId):
        return values["id"] in condition.ids
    value = values.get(condition.column)
    if condition.op == "is null":
        return value is None
    if condition.op == "is empty":
        return value is None or value in ("", [])
    if value is None:
        return False
    return {
        "==": lambda: value == condition.value,
        "<": lambda: value < condition.value,
        "<=": lambda: value <= condition.value,
        ">": lambda: value > condition.value,
        ">=": lambda: value >= condition.value,
        "in": lambda: value in condition.value,
        "contains": lambda: condition.value in value,
        "contains, any case": lambda: condition.value.lower() in value.lower(),
        "like": lambda: like(value, condition.value),
        "like, any case": lambda: like(value.lower(), condition.value.lower()),
    }[condition.op]()


numbers = st.integers(-3, 3)
halves = numbers.map(lambda n: n / 2)
texts = st.sampled_from(NASTY)
rows = st.fixed_dictionaries(
    {},
    optional={
        "n": st.none() | numbers,
        "x": st.none() | halves,
        "s": st.none() | texts,
        "b": st.none() | st.booleans(),
        "tags": st.none() | st.lists(texts, max_size=3),
    },
)
patterns = st.sampled_from(["%", "a%", "%a", "_", "%o'b%", "ä%", "Ä_FEL", "", "a", "%;%"])
order = st.sampled_from(["==", "<", "<=", ">", ">="])
leaves = st.one_of(
    st.builds(Comparison, st.just("n"), order, numbers),
    st.builds(Comparison, st.just("x"), order, halves),
    st.builds(Comparison, st.just("s"), order, texts),
    st.builds(Comparison, st.just("b"), st.just("=="), st.booleans()),
    st.builds(Comparison, st.just("n"), st.just("in"), st.lists(numbers, max_size=3).map(tuple)),
    st.builds(Comparison, st.just("s"), st.just("in"), st.lists(texts, max_size=3).map(tuple)),
    st.builds(Comparison, st.sampled_from(["s", "tags"]), st.just("contains"), texts),
    st.builds(Comparison, st.just("s"), st.sampled_from(["contains, any case"]), texts),
    st.builds(Comparison, st.just("s"), st.sampled_from(["like", "like, any case"]), patterns),
    st.builds(Comparison, st.sampled_from(["n", "x", "s", "b", "tags"]), st.sampled_from(["is null", "is empty"])),
    st.builds(HasId, st.lists(st.integers(0, 20).map(str), max_size=5)),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=12), conditions=st.lists(conditions, min_size=12, max_size=12))
def test_every_filter_agrees_with_python(tmp_path_factory, rows, conditions):
    filters = {"n": int, "x": float, "s": str, "b": bool, "tags": list[str]}
    index = Index.create(tmp_path_factory.mktemp("filters") / "index", HashEncoder(8), filter_columns=filters)
    index.add({"id": str(i), "text": "word", "metadata": row} for i, row in enumerate(rows))
    for condition in conditions:
        expected = {str(i) for i, row in enumerate(rows) if holds(condition, {**row, "id": str(i)})}
        assert {hit.id for hit in index.search("word", k=100, filter=condition)} == expected
        assert index.count(condition) == len(expected)
        assert index.ids(condition) == sorted(expected)


def test_the_short_forms_mean_what_they_say():
    assert (F("n") >= 2) == Comparison("n", ">=", 2)
    assert (F("n") != 2) == Not(Comparison("n", "==", 2))
    assert F("n").not_in([1]) == Not(Comparison("n", "in", (1,)))
    assert (F("n") == None) == F("n").is_null()  # noqa: E711
    assert F("s").contains("x", ignore_case=True) == Comparison("s", "contains, any case", "x")
    assert F("s").is_empty() == Comparison("s", "is empty")
    assert ~(F("n") < 1) == Not(Comparison("n", "<", 1))


def test_a_quote_stays_inside_its_literal():
    assert to_sql(F("s") == "' OR 1=1 --", COLUMNS) == "`s` = ''' OR 1=1 --'"


def test_a_missing_value_matches_negations_only():
    assert to_sql(F("n") == 1, COLUMNS) == "`n` = 1"
    assert to_sql(F("n") != 1, COLUMNS) == "(`n` != 1 OR `n` IS NULL)"
    assert to_sql(~(F("n") < 1), COLUMNS) == "(`n` >= 1 OR `n` IS NULL)"


def test_in_nothing_is_false_and_not_in_nothing_true():
    assert to_sql(F("n").in_([]), COLUMNS) == "false"
    assert to_sql(F("n").not_in([]), COLUMNS) == "true"
    assert to_sql(AllOf(()), COLUMNS) == "true"
    assert to_sql(AnyOf(()), COLUMNS) == "false"


def test_documents_are_named_by_id_whatever_the_id_holds(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"id": int})
    ids = ["a", "it's", "' OR true --", "日本"]
    index.add({"id": id, "text": "word", "metadata": {"id": n}} for n, id in enumerate(ids))
    assert index.ids(HasId(["it's", "日本", "unknown"])) == ["it's", "日本"]
    assert index.ids(~HasId(ids[:2]) & (F("id") < 3)) == ["' OR true --"]
    assert [hit.id for hit in index.search("word", filter=HasId(["' OR true --"]))] == ["' OR true --"]
    assert (index.ids(HasId([])), index.count(~HasId([]))) == ([], 4)


def test_an_int_column_can_be_compared_with_any_number():
    for text, condition in {
        "`n` = 2": F("n") == 2.0,
        "`n` > 2": F("n") > 2.5,
        "`n` <= 2": F("n") <= 2.5,
        "`n` >= 3": F("n") >= 2.5,
        "`n` < 3": F("n") < 2.5,
        "`n` > -3": F("n") > -2.5,
        "false": F("n") == 2.5,
        "true": F("n") != 2.5,
    }.items():
        assert to_sql(condition, COLUMNS) == text


def test_times_are_compared_in_utc():
    noon = "timestamp '2024-05-01 12:00:00.000000+00:00'"
    assert to_sql(F("when") > "2024-05-01T14:00:00+02:00", COLUMNS) == f"`when` > {noon}"
    assert to_sql(F("when") > "2024-05-01T12:00:00Z", COLUMNS) == f"`when` > {noon}"
    assert to_sql(F("when") > datetime(2024, 5, 1, 12, tzinfo=timezone.utc), COLUMNS) == f"`when` > {noon}"
    assert to_sql(F("when") == date(2024, 5, 1), COLUMNS).endswith("'2024-05-01 00:00:00.000000+00:00'")


def test_times_are_stored_and_filtered(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"when": datetime})
    index.add([{"id": y, "text": "word", "metadata": {"when": f"{y}-05-01T12:00:00"}} for y in ("2023", "2024")])
    assert [hit.id for hit in index.search("word", filter=F("when") >= datetime(2024, 1, 1))] == ["2024"]
    assert index.get("2023")[0].metadata == {"when": "2023-05-01T12:00:00"}


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (F("missing") == 1, "no filter column 'missing'; declared are: n: int"),
        (F("n") == "1.5", "filter value of 'n' must be of type int, got '1.5'"),
        (F("n") == "one", "filter value of 'n' must be of type int, got 'one'"),
        (F("n") == "", "must be of type int, got ''"),
        (F("n") == 10**5000, "must fit into 64 bits, got <int>"),
        (F("x") == 10**400, "out of the range of float"),
        (F("x") == "nan", "must be of type float, got 'nan'"),
        (F("b") == "yes", "must be of type bool, got 'yes'"),
        (F("when") == 2020, "must be a datetime, got 2020"),
        (F("when") == "0001-01-01T00:00:00+05:00", "out of the range of datetime"),
        (F("when") == "9999-12-31T23:00:00-05:00", "out of the range of datetime"),
        (F("nn") == 1, "Did you mean 'n'"),
        (F("n").like("1%"), "like works on strings; 'n' is a int"),
        (F("n") == True, "must be of type int, got True"),  # noqa: E712
        (F("n") > float("inf"), "finite"),
        (F("n").in_([1.5]), "must be of type int, got 1.5"),
        (F("n") == 2**63, "64 bits"),
        (F("x") == float("nan"), "finite"),
        (F("s") == 1, "must be of type str, got 1"),
        (F("b") == 1, "must be of type bool, got 1"),
        (F("s") == "\ud800", "lone surrogate"),
        (F("n").in_([1, "x"]), "must be of type int, got 'x'"),
        (F("n").contains(1), "contains works on lists and strings"),
        (F("n").contains("1", ignore_case=True), "contains works on lists and strings"),
        (F("tags").contains("a", ignore_case=True), r"use F\('tags'\).contains"),
        (HasId(["\ud800"]), "lone surrogate"),
        (F("tags") == "a", r"use F\('tags'\).contains"),
        (F("when") == "yesterday", "ISO 8601"),
        (F("`n` = 1 OR `n`") == 1, "no filter column"),
    ],
)
def test_a_filter_that_cannot_be_answered_says_why(condition, said):
    with pytest.raises(FilterError, match=said):
        to_sql(condition, COLUMNS)


def test_a_chain_of_ands_is_flat_and_deep_nesting_is_refused():
    condition = F("n") == 0
    for i in range(500):
        condition = condition & (F("n") == i)
    assert to_sql(condition, COLUMNS).count("(") == 1
    for _ in range(30):
        condition = ~condition | (F("n") == 1)
    with pytest.raises(FilterError, match="deeper than 20"):
        to_sql(condition, COLUMNS)


def test_python_connectives_are_refused_instead_of_dropping_half():
    with pytest.raises(FilterError, match="combine filters with"):
        (F("n") == 1) and (F("n") == 2)
    with pytest.raises(FilterError, match="combined with another filter"):
        (F("n") == 1) & True
    with pytest.raises(FilterError, match="list of values"):
        F("s").in_("abc")
    with pytest.raises(FilterError, match="list of ids"):
        HasId("abc")
    with pytest.raises(FilterError, match=r"list of ids.*use str\(id\)"):
        HasId([1])


@pytest.mark.parametrize("declared", [dict, list, "json", list[dict], 3])
def test_an_unknown_filter_type_is_refused(tmp_path, declared):
    with pytest.raises(InputError, match="filter"):
        Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"a": declared})
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["a..b", "a`b", "", "a\nb"])
def test_a_filter_name_that_sql_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be called"):
        Index.create(tmp_path / "index", HashEncoder(8), filter_columns={name: int})


def test_filter_columns_may_be_called_like_our_own(tmp_path):
    names = ["id", "text", "tokens", "année", "file path", "x-1"]
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns=dict.fromkeys(names, int))
    index.add([{"id": str(i), "text": "word", "metadata": dict.fromkeys(names, i)} for i in range(3)])
    for name in names:
        assert [hit.id for hit in index.search("word", filter=F(name) == 2)] == ["2"]


class Lang(Enum):
    EN = "en"
    ONE = 1


@pytest.mark.parametrize(
    ("condition", "sql"),
    [
        (F("n") == "2020", "`n` = 2020"),
        (F("n") >= "-3", "`n` >= -3"),
        (F("n") == "2020.0", "`n` = 2020"),
        (F("n").in_(["1", 2]), "`n` IN (1, 2)"),
        (F("n") == np.int64(3), "`n` = 3"),
        (F("n") < np.float64(2.5), "`n` < 3"),
        (F("n") == Decimal("4"), "`n` = 4"),
        (F("n") == Lang.ONE, "`n` = 1"),
        (F("n") == np.array(5), "`n` = 5"),
        (F("x") == "2.5", "`x` = 2.5"),
        (F("x") > np.float32(0.5), "`x` > 0.5"),
        (F("x") > Decimal("0.25"), "`x` > 0.25"),
        (F("b") == "True", "`b` = true"),
        (F("b") == np.bool_(False), "`b` = false"),
        (F("s") == Lang.EN, "`s` = 'en'"),
        (F("s") == UUID(int=1), "`s` = '00000000-0000-0000-0000-000000000001'"),
        (F("s") == Path("a/b"), "`s` = 'a/b'"),
        (
            F("when") == np.datetime64("2024-05-01T12:00:00.000000000"),
            "`when` = timestamp '2024-05-01 12:00:00.000000+00:00'",
        ),
        (F("when") > date(999, 5, 1), "`when` > timestamp '0999-05-01 00:00:00.000000+00:00'"),
    ],
)
def test_a_value_that_can_mean_only_one_thing_is_taken_for_it(condition, sql):
    assert to_sql(condition, COLUMNS) == sql


def test_pandas_values_are_filter_values():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert to_sql(F("when") == pandas.Timestamp("2024-05-01"), COLUMNS).endswith("'2024-05-01 00:00:00.000000+00:00'")
    row = pandas.DataFrame({"n": [7]}).iloc[0]
    assert to_sql(F("n") == row["n"], COLUMNS) == "`n` = 7"
    with pytest.raises(FilterError, match="must be a datetime, got None"):
        to_sql(F("when") == pandas.NaT, COLUMNS)


def test_dates_of_all_years_are_stored_and_found(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"when": datetime})
    years = ["0001", "0999", "1500", "1969", "2024", "9999"]
    index.add({"id": year, "text": "word", "metadata": {"when": f"{year}-06-01"}} for year in years)
    for position, year in enumerate(years):
        assert index.ids(F("when") == f"{year}-06-01") == [year]
        assert index.ids(F("when") < datetime(int(year), 6, 1)) == years[:position]
        assert index.ids(F("when") >= date(int(year), 6, 1)) == years[position:]


YEAR, LANG = F("n"), F("s")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"n": 1}, YEAR == 1),
        ({"n": None}, YEAR.is_null()),
        ({"n": [1, 2]}, YEAR.in_([1, 2])),
        ({"n": {"$eq": 1}}, YEAR == 1),
        ({"n": {"$ne": 1}}, YEAR != 1),
        ({"n": {"$gt": 1}}, YEAR > 1),
        ({"n": {"$gte": 1}}, YEAR >= 1),
        ({"n": {"$lt": 1}}, YEAR < 1),
        ({"n": {"$lte": 1}}, YEAR <= 1),
        ({"n": {"$in": [1, 2]}}, YEAR.in_([1, 2])),
        ({"n": {"$in": np.array([1, 2])}}, YEAR.in_([1, 2])),
        ({"n": {"$nin": (1, 2)}}, YEAR.not_in([1, 2])),
        ({"n": {"$between": [1, 3]}}, (YEAR >= 1) & (YEAR <= 3)),
        ({"n": {"$exists": True}}, ~YEAR.is_null()),
        ({"n": {"$exists": False}}, YEAR.is_null()),
        ({"n": {"$gte": 1, "$lt": 3}}, (YEAR >= 1) & (YEAR < 3)),
        ({"n": {"$not": {"$gt": 1}}}, ~(YEAR > 1)),
        ({"n": {"$not": 1}}, YEAR != 1),
        ({"s": {"$contains": "a"}}, LANG.contains("a")),
        ({"s": {"$not_contains": "a"}}, ~LANG.contains("a")),
        ({"s": {"$like": "a%"}}, LANG.like("a%")),
        ({"s": {"$ilike": "A%"}}, LANG.like("A%", ignore_case=True)),
        ({"$and": [{"n": 1}, {"s": "a"}]}, (YEAR == 1) & (LANG == "a")),
        ({"$or": [{"n": 1}, {"s": "a"}]}, (YEAR == 1) | (LANG == "a")),
        ({"$not": {"n": 1}}, YEAR != 1),
        ({"$not": [{"n": 1}, {"s": "a"}]}, ~((YEAR == 1) & (LANG == "a"))),
        ({"$nor": [{"n": 1}, {"s": "a"}]}, ~((YEAR == 1) | (LANG == "a"))),
        ({"n": 1, "$or": [{"s": "a"}, {"s": "b"}]}, (YEAR == 1) & ((LANG == "a") | (LANG == "b"))),
        ([{"n": 1}, YEAR > 0], (YEAR == 1) & (YEAR > 0)),
        ({"column": "n", "op": ">=", "value": 1}, YEAR >= 1),
        ({"column": "n", "op": "!=", "value": 1}, YEAR != 1),
        ({"column": "n", "op": "not in", "value": [1]}, YEAR.not_in([1])),
        ({"column": "n", "op": "is null"}, YEAR.is_null()),
        ({"column": "s", "op": "contains, any case", "value": "A"}, LANG.contains("A", ignore_case=True)),
        ({"column": "n", "op": "$lte", "value": 1}, YEAR <= 1),
        ([{"column": "n", "op": "==", "value": 1}, {"column": "s", "op": "is empty"}], (YEAR == 1) & LANG.is_empty()),
        ({}, AllOf(())),
    ],
)
def test_every_dialect_means_what_f_means(written, meant):
    assert to_sql(parse_filter(written), COLUMNS) == to_sql(meant, COLUMNS)


def nested(depth, part):
    for _ in range(depth):
        part = {"$not": part}
    return part


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"n": {"gte": 1}}, r"operator 'gte', which does not exist: did you mean '\$gte'"),
        ({"n": {">=": 1}}, r"did you mean '\$gte'"),
        ({"n": {"$ge": 1}}, r"did you mean '\$gte'"),
        ({"n": {"$notin": [1]}}, r"did you mean '\$nin'"),
        ({"n": {"$betwen": [1, 2]}}, r"did you mean '\$between'"),
        ({"n": {"$gte": 1, "lt": 3}}, r"did you mean '\$lt'"),
        ({"n": {1: 2}}, "operator 1, which does not exist"),
        ({"n": {}}, "empty dict"),
        ({"$nand": []}, r"did you mean '\$and'"),
        ({"$gte": 3}, "where a column or a connective is expected"),
        ({"$or": {"n": 1}}, r"\$or takes a list of filters"),
        ({"$not": 1}, r"\$not takes a filter"),
        ({"n": {"$in": 1}}, r"\$in takes a list of values, got 1"),
        ({"n": {"$between": [1, 2, 3]}}, r"\$between takes \[lowest, highest\]"),
        ({"n": {"$exists": "yes"}}, r"\$exists takes true or false"),
        ({3: 1}, "column must be a string, got 3"),
        ({"column": 3, "op": "=="}, "column must be a string, got 3"),
        ({"column": "n", "op": "=>", "value": 1}, "operator '=>', which does not exist: did you mean '>='"),
        ({"column": "n", "op": ["=="]}, "operator must be a string"),
        (3, "got int"),
        ("n = 1", "got str"),
        ([3], "got int"),
        (nested(30, {"n": 1}), "deeper than 20 levels"),
        (nested(3_000, {"n": 1}), "deeper than 20 levels"),
        ({"n": nested(3_000, {"$gt": 1})}, "deeper than 20 levels"),
        ([[[]]] * 3 + [{"n": {"$exists": None}}], "true or false"),
        ({"$or": [{"n": i} for i in range(2_000)]}, "more than 1,000 parts"),
        ({"$or": [{"n": {"$gt": i}} for i in range(2_000)]}, "more than 1,000 parts"),
    ],
)
def test_a_filter_that_cannot_be_read_says_how_to_write_it(written, said):
    with pytest.raises(FilterError, match=said):
        parse_filter(written)


def test_a_filter_of_too_many_comparisons_or_values_is_refused():
    with pytest.raises(FilterError, match="more than 1,000 comparisons"):
        to_sql(AnyOf(tuple(F("n") == i for i in range(1_001))), COLUMNS)
    with pytest.raises(FilterError, match="more than 100,000 values"):
        to_sql(F("n").in_(range(100_001)), COLUMNS)
    assert to_sql(HasId([str(i) for i in range(1_000)]), COLUMNS).count(",") == 999


def test_a_dialect_works_wherever_a_filter_is_taken(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"n": int})
    index.add({"id": str(i), "text": "word", "metadata": {"n": i}} for i in range(6))
    written = {"n": {"$between": ["1", 3]}}
    assert index.ids(written) == ["1", "2", "3"]
    assert index.count(written) == 3
    assert {hit.id for hit in index.search("word", filter=written)} == {"1", "2", "3"}
    assert index.delete(filter=written) == 3
    assert index.ids() == ["0", "4", "5"]


@pytest.mark.parametrize("declared", [list[float], list[datetime], list[bool]])
def test_a_list_of_any_scalar_can_be_declared_and_filtered(tmp_path, declared):
    low, high = {
        list[float]: (0.5, 1.5),
        list[datetime]: (datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2025, 1, 1, tzinfo=timezone.utc)),
        list[bool]: (False, True),
    }[declared]
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"values": declared})
    index.add(
        [
            {"id": "low", "text": "word", "metadata": {"values": [low]}},
            {"id": "high", "text": "word", "metadata": {"values": [high]}},
        ]
    )
    index.optimize(keep=timedelta(0))
    assert index.ids(F("values").contains(low)) == ["low"]
    assert index.get("high")[0].metadata == {"values": [high]}


@pytest.mark.parametrize("edge", [-(2**63), -(2**63) + 1, 2**63 - 1, 2**53 + 1])
def test_integers_at_the_edge_of_64_bits_are_found(tmp_path, edge):
    index = Index.create(tmp_path / "index", HashEncoder(16), filter_columns={"n": int, "ns": list[int]})
    index.add([{"id": "edge", "text": "a", "metadata": {"n": edge, "ns": [edge]}}])
    index.add([{"id": "other", "text": "a", "metadata": {"n": 0, "ns": [0]}}])
    for condition in (F("n") == edge, F("n").in_([edge, 7]), F("ns").contains(edge), ~F("n").in_([0]), F("n") != 0):
        assert index.ids(condition) == ["edge"]
    assert index.ids((F("n") >= edge) & (F("n") <= edge)) == ["edge"]
