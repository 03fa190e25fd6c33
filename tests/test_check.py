"""`check` finds what is wrong with an index, and repairs what can be repaired."""

import json
from pathlib import Path

import lancedb
import numpy as np
import pytest

from manyvec import Index, IndexNotFoundError, StoreError
from manyvec.cli import main
from manyvec.storage.maintenance.check import check
from manyvec.storage.maintenance.optimize import encode_residuals, extend_lists
from manyvec.testing import HashEncoder
from manyvec.vectors.codec import STORAGES

ENCODER = HashEncoder(16)


def built(uri, storage="float16", n=60):
    rng = np.random.default_rng(0)
    index = Index.create(uri, ENCODER, storage=storage, filter_columns={"n": int})
    index.add(
        {"id": str(i), "text": " ".join(f"w{w}" for w in rng.integers(0, 99, 20)), "metadata": {"n": i}}
        for i in range(n)
    )
    return index


def table_of(index):
    return lancedb.connect(index.uri).open_table("documents")


def messages(report):
    return [(problem.document, problem.message) for problem in report.problems]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sound_index_has_no_problems_and_a_repair_changes_nothing(tmp_path, storage):
    index = built(tmp_path / "index", storage)
    if storage == "residual":
        encode_residuals(index._store, min_tokens=100)
    extend_lists(index._store, more_than=0)
    report = check(index.uri)
    assert (report.documents, report.tokens, report.problems, report.lost) == (60, 1200, (), ())
    hits = index.search("w1 w2", k=60)
    check(index.uri, repair=True)
    assert Index.open(index.uri, ENCODER).search("w1 w2", k=60) == hits


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text": "'another'"}, "has another text than was stored"),
        ({"metadata": "'{'"}, "has metadata that is no JSON object"),
        ({"metadata": "'[1]'"}, "has metadata that is no JSON object"),
        ({"n_tokens": "7"}, "has 20 token vectors instead of 7"),
    ],
)
def test_a_damaged_row_is_named_and_cannot_be_repaired(tmp_path, values, said):
    index = built(tmp_path / "index")
    table_of(index).update(where="id = '7'", values_sql=values)
    report = check(index.uri, repair=True)
    assert messages(report) == [("7", said)] == messages(check(index.uri))
    assert report.lost == report.problems
    index.add([{"id": "7", "text": "added again"}])
    assert not check(index.uri).problems


def test_ids_that_are_stored_twice_are_named_and_the_newest_row_stays(tmp_path):
    index = built(tmp_path / "index")
    row = table_of(index).search().where("id = '7'").limit(1).to_arrow()
    table_of(index).add(row.select(table_of(index).schema.names))
    assert messages(check(index.uri)) == [("7", "is stored 2 times")]
    report = check(index.uri, repair=True)
    assert report.repaired[0] == "older rows of 1 ids were deleted" and not report.lost
    assert index.count() == 60 and not check(index.uri).problems


def test_lists_that_cannot_be_read_are_built_again(tmp_path):
    index = built(tmp_path / "index")
    extend_lists(index._store, more_than=0)
    database = lancedb.connect(index.uri)
    database.drop_table(next(name for name in database.list_tables().tables if name.startswith("codebook_")))
    assert messages(check(index.uri)) == [(None, "the centroid lists cannot be read")]
    report = check(index.uri, repair=True)
    assert "the centroid lists were built again" in report.repaired
    assert not check(index.uri).problems and len(index._store.snapshot().assignments()) == 60


def test_a_search_index_that_is_missing_is_built_again(tmp_path):
    index = built(tmp_path / "index")
    table = table_of(index)
    table.drop_index(next(entry.name for entry in table.list_indices() if entry.columns == ["text"]))
    assert messages(check(index.uri)) == [(None, "the search index of 'text' is missing")]
    assert check(index.uri, repair=True).repaired[0] == "search indexes were built again: text"
    assert not check(index.uri).problems


def test_files_that_a_killed_writer_has_left_are_deleted(tmp_path):
    index = built(tmp_path / "index")
    data = Path(index.uri) / "documents.lance" / "data"
    leftover = data / "0000000000000000000000001111111111.lance"
    leftover.write_bytes(next(data.iterdir()).read_bytes() * 20)
    report = check(index.uri, repair=True)
    assert not leftover.exists() and "files that nothing refers to were deleted" in report.repaired[-1]
    assert index.search("w1", k=60) == Index.open(index.uri, ENCODER).search("w1", k=60)


def test_a_truncated_file_is_an_error_that_names_the_index(tmp_path):
    index = built(tmp_path / "index")
    newest = max((Path(index.uri) / "documents.lance" / "data").glob("*.lance"), key=lambda path: path.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.raises(StoreError, match="cannot read the index"):
        check(index.uri)


def test_there_is_nothing_to_check_where_no_index_is(tmp_path):
    with pytest.raises(IndexNotFoundError):
        check(str(tmp_path / "nowhere"))


def test_the_command_prints_problems_repairs_them_and_exits_with_1_if_one_remains(tmp_path, capsys):
    index = built(tmp_path / "index", n=5)
    assert main(["check", "--index", index.uri]) == 0
    assert "5 documents and 100 token vectors read, 0 problems" in capsys.readouterr().out
    table = table_of(index)
    table.add(table.to_arrow().slice(0, 1))
    assert main(["check", "--index", index.uri]) == 1
    assert "is stored 2 times (--repair can mend this)" in capsys.readouterr().out
    assert main(["check", "--index", index.uri, "--repair"]) == 0
    assert "repaired: " in capsys.readouterr().out
    assert main(["check", "--index", index.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
