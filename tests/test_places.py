"""Where indexes lie: buckets, tables that share a database, and connections that a user has made."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lancedb
import pytest

import manyvec
from manyvec import Index, IndexNotFoundError, InputError, MissingShardError, StoreError, cluster
from manyvec.candidates import Auto
from manyvec.cli.app import main
from manyvec.cluster import AnyIndex
from manyvec.testing import HashEncoder

# Of the fixture `bucket`.
SECRET = "s3cr3t-key"
DOCUMENTS = [{"id": f"d{i}", "text": f"word{i} common more"} for i in range(200)]


def test_an_index_in_a_bucket_takes_its_options_from_the_call_and_never_shows_them(
    bucket: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "manyvec")
    index = Index.create("s3://papers/one", HashEncoder(), storage_options=bucket)
    index.add(DOCUMENTS[:5])
    opened = Index.open("s3://papers/one", HashEncoder(), storage_options=bucket)
    assert opened.search("word3", 1)[0].id == "d3"
    assert copy.deepcopy(opened).count() == 5
    shown = [repr(index), str(index.__dict__), repr(index._store.manifest), repr(index.info()), caplog.text]
    assert not [text for text in shown if SECRET in text]
    assert SECRET.encode() not in pickle.dumps(Index.open("s3://papers/one", storage_options=bucket))


def test_errors_of_a_bucket_are_one_line(bucket: dict[str, str]) -> None:
    with pytest.raises(StoreError, match=r"^cannot open the index s3://missing/x: there is no such bucket$"):
        Index.open("s3://missing/x", storage_options=bucket).count()
    with pytest.raises(StoreError, match=r"^cannot create an index in s3://papers/y: the object store cannot be"):
        Index.create("s3://papers/y", HashEncoder(), storage_options={**bucket, "endpoint": "http://127.0.0.1:9"})
    with pytest.raises(IndexNotFoundError, match="no table 'documents'"):
        Index.open("s3://papers/nothing", storage_options=bucket).count()


def test_the_command_line_takes_options_of_a_bucket(
    bucket: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.create("s3://papers/cli", HashEncoder(), storage_options=bucket).add(DOCUMENTS[:2])
    options = [part for name, value in bucket.items() for part in ("--storage-option", f"{name}={value}")]
    assert main(["info", "--index", "s3://papers/cli", *options]) == 0
    assert "hash-64" in capsys.readouterr().out
    monkeypatch.setenv("MANYVEC_STORAGE_OPTIONS", " ".join(f"{name}={value}" for name, value in bucket.items()))
    assert main(["delete", "--index", "s3://papers/cli", "--id", "d0"]) == 0
    assert "1 deleted; 1 documents" in capsys.readouterr().out
    assert main(["check", "--index", "s3://missing/x"]) == 1
    assert capsys.readouterr().err == "manyvec: cannot open the index s3://missing/x: there is no such bucket\n"


@pytest.fixture
def requests() -> Iterator[list[str]]:
    """The requests that reach the bucket during a test, one line each."""
    received: list[str] = []
    log, handler = logging.getLogger("werkzeug"), logging.Handler()
    handler.emit = lambda record: received.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    yield received
    log.removeHandler(handler)
    log.setLevel(logging.ERROR)
    log.propagate = True


def test_requests_to_a_bucket_are_few(bucket: dict[str, str], requests: list[str]) -> None:
    def n_requests(call: Callable[[], object]) -> int:
        requests.clear()
        call()
        return len(requests)

    uri, documents = "s3://papers/counted", [{**document, "metadata": {"n": 1}} for document in DOCUMENTS]
    written = Index.create(uri, HashEncoder(), filter_columns={"n": int}, storage_options=bucket)
    assert 3 <= n_requests(lambda: written.add(documents[:100])) <= 20
    written.optimize()
    index = Index.open(uri, HashEncoder(), storage_options=bucket)
    assert n_requests(lambda: Index.open(uri, HashEncoder(), storage_options=bucket)) <= 6
    index.search("word3")
    assert n_requests(lambda: index.search("word3")) == 1
    assert n_requests(lambda: index.search("word77")) <= 3
    assert n_requests(lambda: index.search("word5", filter={"n": 1})) <= 5
    assert n_requests(lambda: index.search("word5", filter={"n": 1})) == 1


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_token_vectors_of_a_bucket_are_kept_on_this_machine_where_a_folder_is_named(
    bucket: dict[str, str],
    requests: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    storage: str,
) -> None:
    uri, folder = f"s3://papers/kept-{storage}", tmp_path / "kept"
    options: dict[str, Any] = {"storage": storage, "storage_options": bucket}
    made = Index.create(uri, HashEncoder(), **options)
    made.add(DOCUMENTS)

    def found() -> tuple[list[manyvec.Hit], int]:
        """What a process that has just begun finds, and how many requests its search takes."""
        index = Index.open(uri, HashEncoder(), storage_options=bucket)
        requests.clear()
        return index.search("word3 other common", 5), len(requests)

    def warnings() -> list[str]:
        told = [record.getMessage() for record in caplog.records if record.name.startswith("manyvec")]
        caplog.clear()
        return told

    expected, n_requests = found()
    monkeypatch.setenv("MANYVEC_CACHE_FOLDER", str(folder))
    assert found() == (expected, n_requests)
    (file,) = folder.iterdir()
    hits, n_left = found()
    assert hits == expected and n_left < n_requests
    written = bytearray(file.read_bytes())
    written[len(written) // 2] ^= 1
    for damaged in (bytes(written), b"", bytes(written[:1000])):
        file.write_bytes(damaged)
        assert found() == (expected, n_requests) and "cannot be used, and is written again" in warnings()[0]
        assert found() == (expected, n_left) and not warnings()
    # Documents that have changed since are read.
    made.add([{"id": "d3", "text": "other words"}, {"id": "new", "text": "word3 other common"}])
    made.delete("d4")
    with monkeypatch.context() as without:
        without.delenv("MANYVEC_CACHE_FOLDER")
        changed, _ = found()
    assert found()[0] == changed and changed[0].id == "new" and not warnings()
    # Another index at the same place has another identity.
    lancedb.connect(uri, storage_options=bucket).drop_all_tables()
    Index.create(uri, HashEncoder(), **options).add([{"id": "d3", "text": "other"}])
    assert [hit.id for hit in found()[0]] == ["d3"] and len(list(folder.iterdir())) == 2
    # An index in a folder lies on this machine already.
    Index.create(tmp_path / "index", HashEncoder()).search("word3")
    assert len(list(folder.iterdir())) == 2


def test_a_cluster_lies_in_a_bucket(bucket: dict[str, str]) -> None:
    uri = "s3://papers/shards"
    one = Index.create("s3://papers/unsharded", HashEncoder(), storage_options=bucket)
    made = cluster.create_local(uri, HashEncoder(), shards=2, storage_options=bucket)
    for index in (one, made):
        index.add(DOCUMENTS[:30])
    opened = cluster.open_index(uri, HashEncoder(), storage_options=bucket)
    assert isinstance(opened, cluster.Cluster) and opened.info().bytes_on_disk is None
    cluster.reshard(uri, shards=3, storage_options=bucket)
    for found in (made, cluster.open_local(uri, HashEncoder(), storage_options=bucket)):
        with suppress(MissingShardError):  # Resharding is noticed once.
            found.count()
        expected = [(hit.id, hit.score) for hit in one.search("word3 common", lexical_weight=0.3)]
        assert [(hit.id, hit.score) for hit in found.search("word3 common", lexical_weight=0.3)] == expected
    assert SECRET.encode() not in pickle.dumps(cluster.open_local(uri, storage_options=bucket))
    with pytest.raises(StoreError, match=r"^cannot open the index s3://missing/x: there is no such bucket$"):
        cluster.open_local("s3://missing/x", storage_options=bucket)
    with pytest.raises(IndexNotFoundError, match="there is no cluster at s3://papers/nothing: no shards.json"):
        cluster.open_local("s3://papers/nothing", storage_options=bucket)


@dataclass
class Trouble:
    """What happens to requests on their way to the bucket.

    Attributes:
        seconds: How long each waits.
        fails_every: One request in this many is answered with 500; none if it is 0.
        is_read_only: Whether requests that write are answered with 403.
    """

    seconds: float = 0
    fails_every: int = 0
    is_read_only: bool = False
    n_requests: int = 0

    def before(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """Return a WSGI application that lets some requests through to another one."""

        def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
            self.n_requests += 1
            time.sleep(self.seconds)
            if self.fails_every and self.n_requests % self.fails_every == 0:
                start_response("500 Internal Server Error", [])
                return [b"<Error><Code>InternalError</Code></Error>"]
            if self.is_read_only and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]
            return app(environ, start_response)

        return answer


@pytest.fixture
def troubled(bucket: dict[str, str]) -> Iterator[tuple[Trouble, dict[str, str]]]:
    """Trouble, none at first, and options for the same bucket that lead through it."""
    moto = pytest.importorskip("moto.server")
    serving = pytest.importorskip("werkzeug.serving")
    trouble = Trouble()
    app = trouble.before(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield trouble, {**bucket, "endpoint": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["index", "cluster"])
def test_a_troubled_bucket_answers_or_says_why_not_in_one_line(
    troubled: tuple[Trouble, dict[str, str]], kind: str
) -> None:
    trouble, options = troubled
    uri = f"s3://papers/troubled-{kind}"

    def opened() -> AnyIndex:
        return cluster.open_index(uri, HashEncoder(), storage_options=options)

    if kind == "index":
        made: AnyIndex = Index.create(uri, HashEncoder(), storage_options=options)
    else:
        made = cluster.create_local(uri, HashEncoder(), shards=2, storage_options=options)
    made.add(DOCUMENTS[:20])
    expected = made.search("word3", 1)
    trouble.fails_every = 10
    opened().add(DOCUMENTS[20:25])
    assert [opened().search("word3", 1) for _ in range(3)] == [expected] * 3
    assert opened().count() == 25 and opened().duplicates() == []
    trouble.fails_every, trouble.is_read_only = 0, True
    assert opened().search("word3", 1) == expected
    with pytest.raises(StoreError, match="access was denied: check the credentials") as denied:
        opened().add(DOCUMENTS[30:32])
    with pytest.raises(StoreError, match="access was denied") as refused:
        cluster.create_local("s3://papers/denied", HashEncoder(), shards=2, storage_options=options)
    assert "\n" not in f"{denied.value}{refused.value}" and opened().count() == 25
    trouble.is_read_only, trouble.seconds = False, 0.5
    assert opened().search("word3", 1) == expected


def test_indexes_share_a_database_without_touching_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    indexes = {name: Index.create(folder, HashEncoder(), table_name=name) for name in (None, "b-2", "c_3")}
    for index in indexes.values():
        index.candidates = Auto(exhaustive_tokens=50)
    for position, index in enumerate(indexes.values()):
        index.add(DOCUMENTS[: 200 - position])
    for index in indexes.values():
        index.optimize()
    tables = lancedb.connect(folder).list_tables().tables
    assert {table.partition("_")[0] for table in tables if "assigned_" in table} == {"assigned", "b-2.assigned", "c"}
    for position, (name, index) in enumerate(indexes.items()):
        opened = Index.open(folder, HashEncoder(), table_name=name)
        assert opened.count() == 200 - position
        assert opened.search("word7", 1)[0].id == "d7"
        assert index._store.snapshot().assignments() is not None
        assert copy.deepcopy(opened).count() == pickle.loads(pickle.dumps(opened)).count() == 200 - position
        assert opened.table_name == name
    assert "table_name='b-2'" in repr(indexes["b-2"])
    b_bytes, all_bytes = indexes["b-2"].info().bytes_on_disk, indexes[None].info().bytes_on_disk
    assert b_bytes and all_bytes and b_bytes < all_bytes / 2
    indexes["b-2"].delete(["d7"])
    assert indexes["c_3"].search("word7", 1)[0].id == "d7"
    with pytest.raises(InputError, match=r"there is an index in .*shared \(table 'b-2'\) already"):
        Index.create(folder, HashEncoder(), table_name="b-2")
    with pytest.raises(IndexNotFoundError, match="no table 'd'"):
        Index.open(folder, table_name="d").count()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "a.b", "x" * 65, "codec_a", "assigned_", "é", "a`b", "a\n"])
def test_a_table_name_with_odd_characters_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="table_name must consist of"):
        Index.create(tmp_path / "i", HashEncoder(), table_name=name)
    assert not (tmp_path / "i").exists()


def test_the_command_line_names_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Index.create(tmp_path / "i", HashEncoder(), table_name="notes").add(DOCUMENTS[:3])
    assert main(["info", "--index", str(tmp_path / "i"), "--table-name", "notes"]) == 0
    assert "hash-64" in capsys.readouterr().out
    assert main(["info", "--index", str(tmp_path / "i")]) == 1
    assert main(["info", "--index", str(tmp_path / "i"), "--storage-option", SECRET]) == 2
    assert main(["check", "--index", str(tmp_path / "i"), "--table-name", "notes"]) == 0


def test_an_existing_connection_names_the_database(tmp_path: Path) -> None:
    connection = lancedb.connect(tmp_path / "db")
    index = Index.create(connection=connection, encoder=HashEncoder(), table_name="notes")
    index.add(DOCUMENTS[:3])
    assert "notes" in connection.list_tables().tables
    assert Index.open(tmp_path / "db", HashEncoder(), table_name="notes").search("word1", 1)[0].id == "d1"


def test_a_database_in_memory_can_be_shared_by_its_connection() -> None:
    connection = lancedb.connect("memory://")
    index = Index.create(connection=connection, encoder=HashEncoder())
    other = Index.open(connection=connection, encoder=HashEncoder())
    index.add(DOCUMENTS[:3])
    assert other.search("word2", 1)[0].id == "d2"
    assert Index.create("memory://", HashEncoder()).count() == 0


def test_a_closed_connection_is_one_clear_error_and_an_index_in_a_folder_needs_it_no_more(tmp_path: Path) -> None:
    connection, in_folder = lancedb.connect("memory://"), lancedb.connect(tmp_path / "db")
    index = Index.create(connection=connection, encoder=HashEncoder())
    kept = Index.create(connection=in_folder, encoder=HashEncoder())
    for each in (index, kept):
        each.add(DOCUMENTS[:3])
    # LanceDB's synchronous connections have no method for it.
    connection._conn.close()  # type: ignore[attr-defined]
    in_folder._conn.close()  # type: ignore[attr-defined]
    calls = [lambda: index.search("word1"), lambda: index.add(DOCUMENTS[3:5]), index.count, index.info, index.optimize]
    for call in calls:
        with pytest.raises(StoreError, match=r"memory://: its connection is closed: open the index with another one"):
            call()
    for name in (Index.open, Index.create):
        with pytest.raises(InputError, match=r"^connection is closed: pass an open one"):
            name(connection=connection, encoder=HashEncoder())
    assert kept.search("word1", 1)[0].id == "d1"
    kept.add(DOCUMENTS[3:5])
    assert kept.count() == 5


def test_places_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^manyvec cannot use LanceDB Cloud \(db://\): pass a folder or a bucket's URI$"
    ):
        Index.create("db://papers", HashEncoder())
    with pytest.raises(InputError, match="a URI must not hold credentials") as refused:
        Index.open(f"s3://key:{SECRET}@bucket/x")
    assert SECRET not in str(refused.value)
    with pytest.raises(InputError, match="not both"):
        Index.open(tmp_path, connection=lancedb.connect(tmp_path))
    with pytest.raises(InputError, match="must come from lancedb.connect, got str"):
        Index.open(connection="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a folder"):
        Index.open()
    with pytest.raises(InputError, match="the value of 'region' is none"):
        Index.open("s3://b/x", storage_options={"region": 1})  # type: ignore[dict-item]
    assert manyvec.__version__
