"""Filter columns: added later, inferred, and of nested metadata."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from manyvec import F, FilterError, Index, InputError, ManifestError
from manyvec.candidates import Auto
from manyvec.cli.app import main
from manyvec.filters.columns import infer_columns
from manyvec.storage.table import Store
from manyvec.testing import HashEncoder

COLUMNS: dict[str, Any] = {
    "year": int,
    "price": float,
    "lang": str,
    "is_open": bool,
    "when": datetime,
    "tags": list[str],
    "sizes": list[int],
    "author.name": str,
}
FILTERS = [
    F("year") >= 2003,
    F("price") < 1.5,
    F("lang") == 'say "hi"',
    F("lang").is_null(),
    F("is_open") == True,  # noqa: E712
    F("when") < datetime(2020, 1, 3),
    F("tags").contains("b c"),
    F("tags").is_empty(),
    F("tags").is_null(),
    F("sizes").contains(-2),
    F("author.name") == "Ada",
    ~(F("author.name") == "Ada"),
]


def metadata_of(i: int) -> dict[str, Any]:
    return {
        "about": {"year": 1, "lang": "xx"} if i % 5 == 0 else {},
        "year": 2000 + i % 7,
        "price": None if i % 4 == 0 else i / 3,
        "lang": ['say "hi"', "en", "a\\b]", "中文", None][i % 5],
        "is_open": i % 2 == 0,
        "when": datetime(2020, 1, 1 + i % 28, tzinfo=timezone.utc),
        "tags": ["a", "b c", "d]"][: i % 4],
        "sizes": [i, -2] if i % 3 else [],
        "author": {"name": ["Ada", "Bo"][i % 2], "born": {"year": 1900}},
    }


def documents(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"word{i} common", "metadata": metadata_of(i)} for i in range(start, start + n)]


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_columns_added_later_filter_like_columns_declared_at_creation(tmp_path: Path) -> None:
    declared = Index.create(tmp_path / "a", HashEncoder(), filter_columns=COLUMNS)
    later = Index.create(tmp_path / "b", HashEncoder())
    for index in (declared, later):
        index.add(documents(60))
    seen_by_another = Index.open(tmp_path / "b", HashEncoder())
    assert seen_by_another.search("word3", 1)[0].id == "d3"
    counts = later.add_filter_columns(COLUMNS)
    assert counts == {**dict.fromkeys(COLUMNS, 60), "price": 45, "lang": 48}
    for index in (later, seen_by_another, Index.open(tmp_path / "b")):
        assert index.filter_columns == declared.filter_columns
        for condition in FILTERS:
            assert index.ids(condition) == declared.ids(condition), condition
    assert [hit.id for hit in seen_by_another.search("word3", 5, filter=F("year") == 2003)] == [
        hit.id for hit in declared.search("word3", 5, filter=F("year") == 2003)
    ]


def test_ordinary_values_are_added_without_rewriting_rows(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(dim=256))
    index.add({"id": f"d{i}", "text": "a b c d " * 20, "metadata": {"year": i, "lang": "en"}} for i in range(200))
    before = disk_bytes(tmp_path / "i" / "documents.lance" / "data")
    index.add_filter_columns({"year": int, "lang": str})
    assert disk_bytes(tmp_path / "i" / "documents.lance" / "data") - before < before / 50
    assert index.ids({"year": {"$lt": 2}}) == ["d0", "d1"]


def test_a_value_of_another_type_changes_nothing_and_names_document_and_key(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    index.add(
        [{"id": "a", "text": "x", "metadata": {"year": 1}}, {"id": "b", "text": "x", "metadata": {"year": "c. 5"}}]
    )
    with pytest.raises(InputError, match=r"document 'b': metadata\['year'\] must be of type int, got 'c. 5'"):
        index.add_filter_columns({"year": int})
    assert index.filter_columns == {}
    with pytest.raises(InputError, match="unknown filter type 'year'"):
        index.add_filter_columns({"year": "year"})
    with pytest.raises(InputError, match="must be a dict"):
        index.add_filter_columns(["year"])  # type: ignore[arg-type]


def test_strings_of_files_become_numbers_as_in_filters(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    index.add(
        {"id": str(i), "text": "x", "metadata": {"year": year}} for i, year in enumerate(["2020", "", 2021.0, "7"])
    )
    assert index.add_filter_columns({"year": int}) == {"year": 3}
    assert index.ids(F("year") > 10) == ["0", "2"]
    assert index.get("0")[0].metadata == {"year": "2020"}


def test_a_column_keeps_its_type(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns={"year": int})
    with pytest.raises(InputError, match="'year' is declared as int, not str"):
        index.add_filter_columns({"year": str})


def test_an_interrupted_call_is_completed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    index.add(documents(20))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "declare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.add_filter_columns({"year": int, "lang": str})
    with pytest.raises(FilterError, match="no filter column 'year'"):
        index.ids(F("year") == 2003)
    # A writer that does not know the column leaves it empty, and the type may be chosen anew.
    index.add(documents(5, start=20))
    index.add_filter_columns({"year": float, "lang": str})
    assert index.ids(F("year") == 2003) == ["d10", "d17", "d24", "d3"]
    assert index.count(F("lang") == "en") == 5


def test_columns_are_complete_although_others_write_meanwhile(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    index.add(documents(40))
    is_done, errors = threading.Event(), list[Exception]()

    def write(start: int) -> None:
        other = Index.open(tmp_path / "i", HashEncoder())
        try:
            for i in range(1_000):
                if is_done.is_set() and i > 3:
                    break
                other.add(documents(2, start=start + 2 * i))
                other.add([{"id": f"d{start % 40}", "text": f"new{i}", "metadata": metadata_of(i)}])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (10_000, 20_001)]
    for thread in threads:
        thread.start()
    index.add_filter_columns({"year": int, "author.name": str})
    is_done.set()
    for thread in threads:
        thread.join()
    assert not errors
    stored = index.get(index.ids())
    for year in range(2000, 2007):
        assert index.ids(F("year") == year) == sorted(d.id for d in stored if d.metadata["year"] == year)
    assert index.count(F("author.name").is_null()) == 0


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_centroid_lists_and_vectors_survive_a_new_column(tmp_path: Path, storage: str) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), storage=storage)
    index.candidates = Auto(exhaustive_tokens=50)
    index.add(documents(200))
    index.optimize()
    vectors = index.token_vectors(["d1", "d99"]).vectors
    index.add_filter_columns({"year": int})
    snapshot = index._store.snapshot()
    states, assigned = snapshot.states(), snapshot.assignments()
    assert assigned is not None
    assert (assigned.positions_in(states.row_ids, states.updated) >= 0).sum() == 200
    assert (index.token_vectors(["d1", "d99"]).vectors == vectors).all()
    assert index.search("word8", 1, filter=F("year") == 2001)[0].id == "d8"


def test_filters_and_errors_name_the_call_that_adds_a_column(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    with pytest.raises(FilterError, match=r"no filter column 'year'.*index.add_filter_columns\(\{'year': str\}\)"):
        index.search("x", filter=F("year") == 1)
    with pytest.raises(ManifestError, match=r"add the missing with add_filter_columns\(\{'year': 'int'\}\)"):
        Index.create(tmp_path / "i", HashEncoder(), filter_columns={"year": int}, exist_ok=True)


def test_inferred_columns_are_the_keys_with_values_of_one_type(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns="infer")
    index.add(documents(10))
    assert index.filter_columns == {
        "about.lang": "str",
        "about.year": "int",
        "author.born.year": "int",
        "author.name": "str",
        "is_open": "bool",
        "lang": "str",
        "price": "float",
        "sizes": "list[int]",
        "tags": "list[str]",
        "when": "datetime",
        "year": "int",
    }
    assert index.ids(F("author.born.year") == 1900) == index.ids()
    index.add([{"id": "z", "text": "x", "metadata": {"other": 1}}])
    assert "other" not in index.filter_columns
    assert index.add_filter_columns("infer")["other"] == 1
    again = Index.create(tmp_path / "i", HashEncoder(), filter_columns="infer", exist_ok=True)
    again.add([{"id": "y", "text": "x", "metadata": {"more": 1}}])
    assert "more" not in again.filter_columns


def test_nothing_is_inferred_from_mixed_private_or_impossible_keys() -> None:
    first = {"a": 1, "b": 1, "_c": 1, "d`": 1, "e": [1], "f": None, "g": object(), "h..i": 1, "j": {"k": 2}, 5: 1}
    assert infer_columns([first, {"a": "x", "b": 1.5, "e": ["x"]}]) == {"b": "float", "j.k": "int"}


def test_a_dotted_column_is_the_literal_key_or_else_the_path(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns={"a.b": int, "when.from": datetime})
    index.add(
        [
            {"id": "nested", "text": "x", "metadata": {"a": {"b": 1}, "when": {"from": datetime(2020, 5, 1)}}},
            {"id": "literal", "text": "x", "metadata": {"a.b": 1, "a": {"b": 2}}},
            {"id": "neither", "text": "x", "metadata": {"a": 1}},
        ]
    )
    assert index.ids({"a.b": 1}) == index.ids([{"column": "a.b", "op": "==", "value": 1}]) == ["literal", "nested"]
    assert index.ids(F("a.b").is_null()) == ["neither"]
    assert index.ids({"when.from": {"$gte": "2020-01-01"}}) == ["nested"]
    # A declared datetime is returned as filters see it, also when it is nested.
    assert index.get("nested")[0].metadata["when"] == {"from": datetime(2020, 5, 1, tzinfo=timezone.utc)}
    with pytest.raises(FilterError, match=r"a key of nested metadata is written 'a.b'"):
        index.ids({"a": {"b": 1}})
    with pytest.raises(InputError, match=r"document 'w': metadata\['a.b'\] must be of type int"):
        index.add([{"id": "w", "text": "x", "metadata": {"a": {"b": "x"}}}])


@pytest.mark.parametrize("name", ["", "a`b", "a..b", ".a", "a.", "a\nb"])
def test_a_name_that_no_column_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        Index.create(tmp_path / "new", HashEncoder(), filter_columns={name: str})
    index = Index.create(tmp_path / "i", HashEncoder())
    with pytest.raises(InputError, match="cannot be called"):
        index.add_filter_columns({name: str})


def test_the_command_adds_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "i")
    Index.create(folder, HashEncoder()).add(documents(10))
    assert main(["columns", "--index", folder, "--column", "year=int", "--column", "author.name"]) == 0
    assert "10 documents have a value" in capsys.readouterr().out
    assert main(["columns", "--index", folder, "--json"]) == 0
    expected = {"filter_columns": {"year": "int", "author.name": "str"}, "documents_with_a_value": {}}
    assert json.loads(capsys.readouterr().out) == expected
    assert main(["delete", "--index", folder, "--where", "author.name=Ada"]) == 0
    assert "5 deleted" in capsys.readouterr().out
    assert main(["columns", "--index", folder, "--infer"]) == 0
    assert "sizes" in capsys.readouterr().out
    assert main(["columns", "--index", folder, "--infer", "--column", "year=int"]) == 2
