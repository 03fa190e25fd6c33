"""What metadata may hold, how it is kept, and what is refused."""

import dataclasses
import json
from collections import OrderedDict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from uuid import UUID

import numpy as np
import pytest
from pydantic import BaseModel

from manyvec import Document, F, HasId, Index, InputError
from manyvec.storage.ingest.adding import AddReport
from manyvec.testing import HashEncoder

UTC = timezone.utc
ENCODER = HashEncoder(16)


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    when: date


class Person(BaseModel):
    name: str
    born: date
    home: Path = Path("/home")


def stored(tmp_path, metadata, **columns):
    """The metadata as an index returns it."""
    index = Index.create(tmp_path / "index", ENCODER, filter_columns=columns)
    index.add([{"id": "a", "text": "word", "metadata": metadata}])
    (hit,) = index.search("word")
    (document,) = index.get("a")
    assert hit.metadata == document.metadata
    # Adding what was returned changes nothing.
    assert index.add([document]) == AddReport(unchanged=1)
    return hit.metadata


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(3), 3),
        (np.arange(3), [0, 1, 2]),
        (np.array([[0.5], [1.5]]), [[0.5], [1.5]]),
        (np.datetime64("2024-05-01T12:00:00.123456789"), "2024-05-01T12:00:00.123456"),
        (np.datetime64("2024-05-01"), "2024-05-01T00:00:00"),
        (np.datetime64("NaT"), None),
        (float("nan"), None),
        (np.float64("nan"), None),
        (Decimal("NaN"), None),
        (datetime(2024, 5, 1, 12), "2024-05-01T12:00:00"),
        (datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), "2024-05-01T12:00:00+02:00"),
        (date(2024, 5, 1), "2024-05-01"),
        (time(12, 30), "12:30:00"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("/a/b"), "/a/b"),
        (Decimal("1.10"), "1.10"),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset([2, 1]), [1, 2]),
        ({1, "a"}, [1, "a"]),
        (deque([1]), [1]),
        (OrderedDict(b=1, a=(2,)), {"b": 1, "a": [2]}),
        (Point(1, date(2020, 1, 1)), {"x": 1, "when": "2020-01-01"}),
        (Person(name="Ada", born=date(1815, 12, 10)), {"name": "Ada", "born": "1815-12-10", "home": "/home"}),
        ([{"deep": [UUID(int=1), float("nan")]}], [{"deep": ["00000000-0000-0000-0000-000000000001", None]}]),
        (2**70, 2**70),
    ],
)
def test_a_value_is_kept_as_what_it_stands_for(tmp_path, value, kept):
    assert stored(tmp_path, {"value": value}) == {"value": kept}


def test_pandas_rows_can_be_metadata(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"year": [2020, None], "when": pandas.to_datetime(["2024-05-01", None]), "n": [1, 2]})
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"year": int, "when": datetime, "n": int})
    index.add({"id": str(i), "text": "word", "metadata": row} for i, row in enumerate(frame.to_dict("records")))
    assert index.get("0")[0].metadata == {"year": 2020, "when": datetime(2024, 5, 1, tzinfo=UTC), "n": 1}
    assert index.get("1")[0].metadata == {"year": None, "when": None, "n": 2}
    assert index.ids(F("year").is_null()) == ["1"]
    index.add([Document("na", "word", {"year": pandas.NA, "when": pandas.NaT})])
    assert index.get("na")[0].metadata == {"year": None, "when": None}


def test_a_date_under_a_declared_column_comes_back_as_filters_see_it(tmp_path):
    moment = datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    metadata = {"a": moment, "b": moment, "day": date(2024, 5, 1), "days": [date(2024, 5, 1), "2024-05-02"]}
    returned = stored(tmp_path, metadata, a=datetime, day=datetime, days=list[datetime])
    noon, midnight = datetime(2024, 5, 1, 12, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)
    assert returned == {"a": noon, "b": "2024-05-01T14:00:00+02:00", "day": midnight, "days": [midnight, "2024-05-02"]}
    assert returned["a"].tzinfo is UTC
    index = Index.open(tmp_path / "index", ENCODER)
    for key in ("a", "day"):
        assert index.ids(F(key) == returned[key]) == ["a"]


def test_a_string_under_a_declared_date_column_comes_back_as_the_string(tmp_path):
    metadata = {"a": "2024-05-01T12:00:00+00:00", "b": "2024-05-01"}
    assert stored(tmp_path, metadata, a=datetime, b=datetime) == metadata


def test_numbers_fit_declared_columns_as_what_they_plainly_mean(tmp_path):
    metadata = {"i": 2020.0, "j": Decimal("7"), "x": Decimal("0.25"), "y": 3, "s": Color.RED}
    returned = stored(tmp_path, metadata, i=int, j=int, x=float, y=float, s=str)
    assert returned == {"i": 2020, "j": 7, "x": 0.25, "y": 3, "s": "red"}
    assert [type(returned[key]) for key in ("i", "j", "x")] == [int, int, float]
    assert Index.open(tmp_path / "index", ENCODER).ids({"i": 2020, "j": 7, "x": 0.25, "y": 3, "s": "red"}) == ["a"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"bytes", "of type bytes, which metadata cannot hold: store a string"),
        (timedelta(1), r"of type timedelta, .*total_seconds\(\)"),
        (object(), "of type object"),
        (1j, "of type complex"),
        ((i for i in "ab"), "of type generator, .*store a list"),
        (float("inf"), "is inf, which JSON cannot hold"),
        (np.float64("-inf"), "is -inf"),
        (Decimal("Infinity"), "is Infinity"),
        pytest.param(10**5000, "is an integer of 16,610 bits: store a string", id="5,001 digits"),
        ({1: "a"}, r"metadata\['key'\] has the key 1: keys must be strings, use '1'"),
        ({"$datetime": "2024"}, "reserved"),
        (["\ud800"], "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
    ],
)
def test_a_value_that_cannot_be_kept_is_named_with_what_to_write_instead(value, said):
    with pytest.raises(InputError, match=f"document 'a': .*{said}"):
        Document("a", "word", {"key": value})


def endless():
    value = []
    value.append(value)
    return value


def deep(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("value", [endless(), deep(3_000), [deep(101)]])
def test_metadata_nested_too_deep_is_refused(value):
    with pytest.raises(InputError, match="nested deeper than 100 levels"):
        Document("a", "word", {"key": value})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("year", 2020.5, "must be of type int, got 2020.5"),
        ("year", Decimal("0.5"), "must be of type int, got Decimal"),
        ("year", 10**400, "must fit into 64 bits"),
        ("x", 10**400, "out of the range of float"),
        ("when", "0001-01-01T00:00:00+05:00", "out of the range of datetime"),
        ("when", datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=5))), "out of the range of datetime"),
        ("when", 2020, "must be a datetime, got 2020"),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_named(tmp_path, key, value, said):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"year": int, "x": float, "when": datetime})
    with pytest.raises(InputError, match=rf"document 'a': metadata\['{key}'\] .*{said}"):
        index.add([{"id": "a", "text": "word", "metadata": {key: value}}])
    assert index.count() == 0


def test_a_document_keeps_the_metadata_it_had_when_it_was_yielded(tmp_path):
    def pages():
        shared = {"page": 0, "tags": []}
        for page in range(4):
            shared["page"] = page
            shared["tags"].append(page)  # type: ignore[attr-defined]
            yield {"id": str(page), "text": "word", "metadata": shared}

    index = Index.create(tmp_path / "index", ENCODER)
    index.add(pages())
    assert [document.metadata for document in index.get(["0", "1", "3"])] == [
        {"page": 0, "tags": [0]},
        {"page": 1, "tags": [0, 1]},
        {"page": 3, "tags": [0, 1, 2, 3]},
    ]


def test_a_document_does_not_change_with_the_metadata_it_was_made_of():
    metadata = {"tags": ["a"]}
    document = Document("a", "word", metadata)
    metadata["tags"].append("b")
    assert document.metadata == {"tags": ["a"]}
    assert dataclasses.replace(document, id="b").metadata == {"tags": ["a"]}
    assert json.loads(Document("a", "word", {"day": date(2024, 5, 1)}).metadata_json()) == {"day": "2024-05-01"}


BLANKS = [
    {"id": "b1", "text": ""},
    {"id": "b2", "text": " \n\t", "metadata": {"page": 7}},
    {"id": "b3", "text": None},
    {"id": "b4", "metadata": {"page": 8}},
]


def test_blank_documents_are_left_out_and_counted_if_asked(tmp_path, caplog):
    index = Index.create(tmp_path / "index", ENCODER)
    documents = [{"id": str(i), "text": "word"} for i in range(300)]
    with caplog.at_level("INFO", logger="manyvec"):
        report = index.add([*BLANKS[:2], *documents, *BLANKS[2:]], on_blank="skip")
    assert report == AddReport(added=300, blank=4)
    assert report.total == 304
    assert "'page': 7" in caplog.text
    assert index.count() == 300
    assert index.add(BLANKS, on_blank="skip") == AddReport(blank=4)


def test_documents_without_tokens_are_left_out_and_counted_if_asked(tmp_path):
    class Deaf(HashEncoder):
        def encode_documents(self, texts):
            return super().encode_documents([text.replace("noise", "") for text in texts])

    index = Index.create(tmp_path / "index", Deaf(16))
    index.add([{"id": "old", "text": "word"}])
    documents = [("a", "word"), ("b", "noise"), ("old", "noise noise"), ("c", "other words")]
    report = index.add([{"id": id, "text": text} for id, text in documents], on_blank="skip")
    assert report == AddReport(added=2, blank=2)
    assert index.ids() == ["a", "c", "old"]
    assert {hit.id: hit.text for hit in index.search("word")}["old"] == "word"
    with pytest.raises(InputError, match=r"document 'b': .* finds no token in its text \(metadata '{\"page\": 3}'\)"):
        index.add([{"id": "b", "text": "noise", "metadata": {"page": 3}}])
    assert index.add([{"id": "b", "text": "noise"}], on_blank="skip") == AddReport(blank=1)


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_document_is_an_error_with_its_position_and_metadata(tmp_path, blank):
    index = Index.create(tmp_path / "index", ENCODER)
    where = r"at position 2" + (r", metadata \{'page': \d\}" if "metadata" in blank else r"\)")
    with pytest.raises(InputError, match=rf"document '{blank['id']}'.*{where}"):
        index.add([{"id": "x", "text": "word"}, {"id": "y", "text": "word"}, blank])
    with pytest.raises(InputError, match="on_blank must be 'raise' or 'skip', got 'ignore'"):
        index.add([], on_blank="ignore")


@pytest.mark.parametrize("text", ["\ud800", "an emoji cut in half \ud83d"])
def test_a_lone_surrogate_is_refused_wherever_text_is_taken(tmp_path, text):
    index = Index.create(tmp_path / "index", ENCODER)
    for call in (
        index.search,
        index.get,
        index.delete,
        index.token_vectors,
        lambda text: index.search_many(["fine", text]),
        lambda text: index.score(text, ["a"]),
        lambda text: index.score("fine", [text]),
    ):
        with pytest.raises(InputError, match="lone surrogate"):
            call(text)


@pytest.mark.parametrize("id", [432, np.int64(432), UUID(int=3), b"a", 1.5, True])
def test_an_id_that_is_no_string_is_an_error_that_says_how_to_write_it(tmp_path, id):
    index = Index.create(tmp_path / "index", ENCODER)
    calls = [
        lambda: Document(id, "word"),  # type: ignore[arg-type]
        lambda: index.add([{"id": id, "text": "word"}]),
        lambda: index.get([id]),
        lambda: index.delete([id]),
        lambda: index.token_vectors([id]),
        lambda: index.score("word", [id]),
        lambda: index.ids(HasId([id])),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"str\(id\)"):
            call()


@pytest.mark.parametrize("k", [np.int64(1), np.uint8(1), np.array(1)])
def test_a_number_of_hits_may_be_a_numpy_integer(tmp_path, k):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add([{"id": id, "text": "red"} for id in "ab"])
    assert [hit.id for hit in index.search("red", k=k)] == ["a"]


@pytest.mark.parametrize("k", [True, 1.0, np.float64(1), "1", None, -1])
def test_a_number_of_hits_that_is_no_integer_is_refused(tmp_path, k):
    with pytest.raises(InputError, match="k must be a non-negative integer"):
        Index.create(tmp_path / "index", ENCODER).search("red", k=k)


def test_ids_that_come_again_batches_later_are_reported_and_the_last_one_stays(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    documents = [{"id": str(i % 300), "text": f"red {i}"} for i in range(303)]
    report = index.add(documents)
    assert (report.added, sorted(report.repeated)) == (300, ["0", "1", "2"])
    assert [document.text for document in index.get(["0", "2", "3"])] == ["red 300", "red 302", "red 3"]


def test_one_document_object_that_changes_between_yields_is_kept_as_it_was(tmp_path):
    def pages():
        page = {"id": "", "text": "", "metadata": {"at": {"page": 0}}}
        for number in range(3):
            page["id"], page["text"] = str(number), f"page {number}"
            page["metadata"]["at"]["page"] = number  # type: ignore[index]
            yield page

    index = Index.create(tmp_path / "index", ENCODER)
    index.add(pages())
    assert [(d.text, d.metadata["at"]["page"]) for d in index.get(["0", "1", "2"])] == [
        ("page 0", 0), ("page 1", 1), ("page 2", 2),
    ]  # fmt: skip


def test_metadata_that_contains_itself_is_refused(tmp_path):
    metadata: dict[str, object] = {}
    metadata["self"] = [metadata]
    with pytest.raises(InputError, match="nested deeper"):
        Index.create(tmp_path / "index", ENCODER).add([{"id": "a", "text": "word", "metadata": metadata}])
