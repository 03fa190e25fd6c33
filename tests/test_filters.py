"""Filters: what they mean, how they are quoted, and what they refuse. The oracle is plain Python."""

from datetime import date, datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyvec import F, FilterError, HasId, Index, InputError
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
order = st.sampled_from(["==", "<", "<=", ">", ">="])
leaves = st.one_of(
    st.builds(Comparison, st.just("n"), order, numbers),
    st.builds(Comparison, st.just("x"), order, halves),
    st.builds(Comparison, st.just("s"), order, texts),
    st.builds(Comparison, st.just("b"), st.just("=="), st.booleans()),
    st.builds(Comparison, st.just("n"), st.just("in"), st.lists(numbers, max_size=3).map(tuple)),
    st.builds(Comparison, st.just("s"), st.just("in"), st.lists(texts, max_size=3).map(tuple)),
    st.builds(Comparison, st.sampled_from(["s", "tags"]), st.just("contains"), texts),
    st.builds(Comparison, st.just("s"), st.just("contains, any case"), texts),
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
        (F("n") == "1", "filter value of 'n' must be of type int, got '1'"),
        (F("n") == True, "must be of type int, got True"),  # noqa: E712
        (F("n") > float("inf"), "finite"),
        (F("n").in_([1.5]), "must be of type int, got 1.5"),
        (F("n") == 2**63, "64 bits"),
        (F("x") == float("nan"), "finite"),
        (F("s") == 1, "must be of type str, got 1"),
        (F("b") == 1, "must be of type bool, got 1"),
        (F("s") == "\ud800", "lone surrogate"),
        (F("n").in_([1, "2"]), "must be of type int, got '2'"),
        (F("n").contains(1), "contains works on lists and text"),
        (F("n").contains("1", ignore_case=True), "contains works on lists and text"),
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
    with pytest.raises(FilterError, match="list of ids"):
        HasId([1])


@pytest.mark.parametrize("declared", [dict, list, "json", list[dict], 3])
def test_an_unknown_filter_type_is_refused(tmp_path, declared):
    with pytest.raises(InputError, match="filter"):
        Index.create(tmp_path / "index", HashEncoder(8), filter_columns={"a": declared})
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["a.b", "a`b", "", "a\nb"])
def test_a_filter_name_that_sql_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be called"):
        Index.create(tmp_path / "index", HashEncoder(8), filter_columns={name: int})


def test_filter_columns_may_be_called_like_our_own(tmp_path):
    names = ["id", "text", "tokens", "année", "file path", "x-1"]
    index = Index.create(tmp_path / "index", HashEncoder(8), filter_columns=dict.fromkeys(names, int))
    index.add([{"id": str(i), "text": "word", "metadata": dict.fromkeys(names, i)} for i in range(3)])
    for name in names:
        assert [hit.id for hit in index.search("word", filter=F(name) == 2)] == ["2"]
