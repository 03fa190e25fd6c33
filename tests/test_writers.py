"""Several writers of one index: their turns, conflicts, and ids that were stored twice."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from manyvec import Index, StoreError, WriteConflictError
from manyvec.candidates import Auto
from manyvec.storage.ingest.adding import add_batch
from manyvec.storage.lock import Turns
from manyvec.testing import HashEncoder
from manyvec.types import Document

ENCODER = HashEncoder(16)
TEXT_4 = "text number 4 of forty with a few more words"


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add({"id": str(i), "text": f"text number {i} of forty with a few more words"} for i in range(40))
    return index


def started(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# Turns


def test_threads_and_handles_take_turns(tmp_path):
    inside, most = [], []

    def work():
        lock = Turns(tmp_path)
        for _ in range(20):
            with lock.turn():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1


HOLD = """
import sys, time
from pathlib import Path
from manyvec.storage.lock import Turns

with Turns(Path(sys.argv[1])).turn():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_killed_writer_gives_up_its_turn(tmp_path):
    with started(HOLD, tmp_path, 60) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    begun = time.monotonic()
    with Turns(tmp_path).turn():
        assert time.monotonic() - begun < 5


def test_a_suspended_writer_is_not_waited_for_for_ever(tmp_path):
    with started(HOLD, tmp_path, 60) as process:
        assert process.stdout.readline() == "held\n"
        begun = time.monotonic()
        with Turns(tmp_path, patience=0.3).turn():
            assert 0.3 <= time.monotonic() - begun < 5
        process.kill()


def test_a_writer_that_comes_again_at_once_lets_others_go_first(tmp_path):
    turns, stop = [], threading.Event()

    def work(name):
        lock = Turns(tmp_path)
        while not stop.is_set():
            with lock.turn():
                turns.append(name)
                time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    counts = [turns.count(name) for name in "abc"]
    assert min(counts) >= len(turns) / 3 / 3


# Conflicts


WRITE = """
import sys, time
from manyvec import Index
from manyvec.testing import HashEncoder

index, stop = Index.open(sys.argv[1], HashEncoder(16)), time.monotonic() + 60
print("ready", flush=True)
n = 0
while time.monotonic() < stop:
    index.add([{"id": str(n % 40), "text": f"text {n}"}])
    n += 1
"""


def test_optimize_succeeds_beside_a_busy_writer(index):
    with started(WRITE, index.uri) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            for _ in range(8):
                index.optimize(keep=timedelta(minutes=5))
            assert process.poll() is None
        finally:
            process.kill()
    assert index.count() == 40


def conflicting(monkeypatch, index, n_conflicts):
    """Let the table's `optimize` lose against another writer a number of times."""
    table = index._store._opened.table
    optimize, calls = table.optimize, []

    def lose(**options):
        calls.append(options)
        if len(calls) <= n_conflicts:
            raise RuntimeError("Retryable commit conflict for version 7: preempted by concurrent transaction Update")
        return optimize(**options)

    monkeypatch.setattr(table, "optimize", lose)
    return calls


def test_optimize_tries_again_after_a_conflict(index, monkeypatch):
    calls = conflicting(monkeypatch, index, 3)
    index.optimize()
    assert len(calls) == 4


def test_centroid_lists_are_made_even_if_files_cannot_be_merged(index, monkeypatch):
    conflicting(monkeypatch, index, 100)
    index.candidates = Auto(exhaustive_tokens=50)
    with pytest.raises(WriteConflictError, match="other writers committed all the time. Try again"):
        index.optimize()
    assert len(index._store.snapshot().assignments()) == 40


def test_an_upsert_tries_again_after_a_conflict_and_the_error_says_what_it_was(index, monkeypatch):
    store, calls = index._store, []

    def lose():
        calls.append(1)
        raise RuntimeError("Too many concurrent writers")

    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(WriteConflictError, match="cannot write to the index"):
        store._commit(store._opened, lose)
    assert len(calls) == 5
    assert issubclass(WriteConflictError, StoreError)


@pytest.mark.parametrize("n_writers", [4])
def test_writers_of_shared_and_own_keys_lose_and_double_nothing(index, n_writers):
    code = """
    import sys
    from manyvec import Index
    from manyvec.testing import HashEncoder

    index, name = Index.open(sys.argv[1], HashEncoder(16)), sys.argv[2]
    for i in range(15):
        index.add([{"id": f"shared {i % 3}", "text": f"writer {name} {i}"}, {"id": f"{name} {i}", "text": f"own {i}"}])
        assert index.get(f"{name} {i}")[0].text == f"own {i}"
    """
    processes = [started(code, index.uri, f"writer {n}") for n in range(n_writers)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * n_writers
    ids = index.ids()
    assert len(ids) == len(set(ids)) == 40 + 3 + 15 * n_writers


# Ids that are stored or given twice


def append(index, documents):
    """Append rows as another program does that does not look at ids."""
    table = lancedb.connect(index.uri).open_table("documents")
    other = Index.create(index.uri + "-other", ENCODER, exist_ok=True)
    other.add(documents)
    rows = lancedb.connect(other.uri).open_table("documents").to_arrow()
    table.add(rows)


def test_optimize_keeps_the_newest_row_of_an_id_that_another_program_appended(index):
    append(index, [{"id": id, "text": f"appended {id}"} for id in ("3", "17", "new")])
    assert index.count() == 43 and len(set(index.ids())) == 41
    index.optimize()
    assert index.count() == 41 and sorted(set(index.ids())) == index.ids()
    assert [document.text for document in index.get(["3", "17", "4"])] == ["appended 3", "appended 17", TEXT_4]
    assert index.search("appended 17", k=1)[0].id == "17"


def test_rows_updated_after_the_append_are_newer_than_appended_ones(index):
    append(index, [{"id": "5", "text": "appended"}])
    append(index, [{"id": "5", "text": "appended again"}])
    index.delete("6")
    index.optimize()
    assert index.get("5")[0].text == "appended again" and index.count() == 39
    index.add([{"id": "5", "text": "added"}])
    assert index.get("5")[0].text == "added" and index.count() == 39


def test_info_and_add_notice_ids_that_are_stored_twice(index, caplog):
    assert index.info().duplicates == 0
    append(index, [{"id": id, "text": "appended"} for id in ("3", "17")])
    assert index.info().duplicates == 2
    index.add([{"id": "17", "text": "added"}, {"id": "20", "text": "added"}])
    assert "'17' is stored 2 times" in caplog.text and "'20'" not in caplog.text
    index.optimize()
    assert index.info().duplicates == 0


def test_ids_that_come_twice_in_one_call_are_reported(index):
    report = index.add(
        [
            {"id": "a", "text": "one"},
            {"id": "b", "text": "two"},
            {"id": "a", "text": "three"},
            *({"id": f"n{i}", "text": "filler"} for i in range(300)),
            {"id": "b", "text": "four"},
            {"id": "b", "text": "four"},
        ]
    )
    assert report.repeated == ("a", "b")
    assert index.get("a")[0].text == "three" and index.get("b")[0].text == "four"
    assert index.add([{"id": "a", "text": "once more"}]).repeated == ()


def test_a_batch_of_which_only_metadata_changed_takes_no_longer_than_adding_it(index):
    documents = [Document(f"d{i}", f"word{i} other", {"n": i}) for i in range(4_000)]
    seconds = []
    for part in (documents, [Document(d.id, d.text, {"n": -1}) for d in documents]):
        begun = time.process_time()
        add_batch(index._store, part, lambda: ENCODER)
        seconds.append(time.process_time() - begun)
    # A list was searched for each row: 12 times as long for 4,000 documents, 68 times for 16,000.
    assert seconds[1] < 5 * seconds[0]
    assert index.get("d7")[0].metadata == {"n": -1}
    assert np.isfinite(index.score("word7 other", ["d7"])).all()


@pytest.mark.parametrize("work", ["get", "score", "delete", "half new, half with other metadata", "repeated ids"])
def test_many_documents_in_one_call_take_no_longer_than_adding_them(index, work):
    documents = [{"id": f"d{i}", "text": f"word{i} other", "metadata": {"n": i}} for i in range(2_000)]
    ids = [document["id"] for document in documents]
    works = {
        "get": lambda: index.get(ids),
        "score": lambda: index.score("word7 other", ids),
        "delete": lambda: index.delete(ids),
        "half new, half with other metadata": lambda: index.add(
            d | ({"id": f"new {d['id']}"} if i % 2 else {"metadata": {"n": -1}}) for i, d in enumerate(documents)
        ),
        "repeated ids": lambda: index.add(d | {"id": "the same"} for d in documents),
    }
    seconds = []
    for call in (lambda: index.add(documents), works[work]):
        begun = time.process_time()
        call()
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 5 * seconds[0]


# Long lives


def open_files():
    """Return the names of this process's open files, except pipes and the like."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            names.append(os.readlink(descriptor))
        except OSError:
            continue
    return [name for name in names if name.startswith("/")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
@pytest.mark.parametrize("reads", ["by the writer", "by another handle"])
def test_a_long_lived_writer_keeps_no_more_files_open_than_at_the_start(index, monkeypatch, reads):
    # After this many versions, even a handle that only reads connects again.
    monkeypatch.setattr("manyvec.storage.opened._VERSIONS_PER_CONNECTION", 15)
    reader = index if reads == "by the writer" else Index.open(index.uri, ENCODER)
    n_files = []
    for round in range(6):
        for i in range(7):
            index.add([{"id": str(i), "text": f"text n{i} of round r{round}"}])
            if i % 3 == 0:
                (hit,) = reader.search(f"text n{i} of round r{round}", k=1, lexical_weight=0.5)
                assert hit.id == str(i) and hit.text.endswith(f"round r{round}")
        index.optimize(keep=timedelta(0))
        n_files.append(len(open_files()))
        # LanceDB's threads close what they have read a little later.
        until = time.monotonic() + 3
        while n_files[-1] > max(n_files[:3]) and time.monotonic() < until:
            time.sleep(0.05)
            n_files[-1] = len(open_files())
    assert index.count() == 40
    # Each round would leave one or two deleted files open.
    assert max(n_files[3:]) <= max(n_files[:3])


def test_what_the_database_keeps_in_memory_is_bounded_and_part_of_the_budget(index, monkeypatch):
    monkeypatch.setattr("manyvec.storage.lance._METADATA_BYTES", 40_000)
    opened = Index.open(index.uri, ENCODER)
    for i in range(12):
        opened.add([{"id": str(i), "text": f"text {i} again"}])
        assert opened.search(f"text {i} again", k=1)[0].id == str(i)
    assert 0 < opened._store.bytes_held < 100_000
    n_bytes = opened.info().bytes_in_memory
    none_left = Index.open(index.uri, ENCODER, cache_bytes=n_bytes + 40 * 520 + 1_000)
    assert none_left.search("text 3 again", k=1)[0].id == "3" and none_left.info().bytes_in_memory < n_bytes


def test_a_long_lived_index_with_lists_takes_no_more_disk_than_at_the_start(index):
    index.candidates = Auto(exhaustive_tokens=10)
    n_files, n_rows = [], []
    for round in range(6):
        for start in (0, 20):
            texts = {str(i): f"text n{i} of round r{round} with a few more words" for i in range(start, start + 20)}
            index.add({"id": id, "text": text} for id, text in texts.items())
        index.optimize(keep=timedelta(0))
        n_files.append(sum(path.is_file() for path in Path(index.uri).rglob("*")))
        database = lancedb.connect(index.uri)
        (name,) = [name for name in database.list_tables().tables if name.startswith("assigned_")]
        n_rows.append(database.open_table(name).count_rows())
        assert not len(index._reader.lists.over(index._reader.current()).uncovered)
    assert max(n_files[3:]) <= max(n_files[:3]) and max(n_rows) <= 120


def test_optimize_with_nothing_to_keep_deletes_what_a_killed_writer_has_left_but_never_beside_a_writer(index):
    data = Path(index.uri) / "documents.lance" / "data"
    leftover = data / "0000000000000000000000001111111111.lance"
    leftover.write_bytes(next(data.iterdir()).read_bytes() * 20)
    unfinished = data / ".tmpa1B2c3"
    unfinished.write_bytes(b"half")
    index.optimize()
    assert leftover.exists() and unfinished.exists()
    # Another writer that does not wait any longer.
    writer = Turns(Path(index.uri), patience=0.05)
    index._store._opened.writers._patience = 0.05
    with writer.turn() as is_alone:
        assert is_alone
        with Turns(Path(index.uri), patience=0.05).turn() as is_alone:
            assert not is_alone
        index.optimize(keep=timedelta(0))
        assert leftover.exists() and unfinished.exists()
    # Another optimizer, whose files no version refers to yet.
    optimizer = Turns(Path(index.uri), "optimizer")
    index._store._opened.optimizers._patience = 0.05
    with optimizer.turn():
        index.optimize(keep=timedelta(0))
        assert leftover.exists() and unfinished.exists()
    index.optimize(keep=timedelta(0))
    assert not leftover.exists() and not unfinished.exists() and index.count() == 40


def test_optimizers_take_turns(index):
    with ThreadPoolExecutor(1) as pool, Turns(Path(index.uri), "optimizer").turn():
        waiting = pool.submit(index.optimize)
        time.sleep(0.3)
        assert not waiting.done()
        # Writers do not wait for it.
        index._store.delete("id = '3'")
    assert index.count() == 39
