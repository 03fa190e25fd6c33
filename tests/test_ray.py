"""Clusters on Ray: two nodes of one CPU each, on this machine, build and serve them.

Nearly all of the ten minutes are Ray's new processes, which import Python packages: too long for each run of all tests.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from manyvec import F, FilterError, Index, InputError, ManifestError, MissingShardError, StoreError, cluster
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import TokenBatch

ray = pytest.importorskip(
    "ray", reason="needs the ray extra, which has wheels for some systems: pip install 'manyvec[ray]'"
)
pytest.importorskip("lance", reason="needs the ray extra: pip install 'manyvec[ray]'")
# Ray's own warnings are not ours, and come from threads of its own.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

DOCUMENTS = [
    {"id": f"d{i}", "text": f"word{i % 7} common w{i}", "metadata": {"year": 2000 + i % 5, "tags": ["a", str(i)]}}
    for i in range(60)
]
QUERIES = ["word3 common", "w17", "word1 w8 w9", "common"]
OPTIONS: dict[str, Any] = {"shards": 2, "encoders": 2, "filter_columns": {"year": int}, "batch_size": 10}


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[Any]:
    """A Ray cluster of two nodes, to which this process is connected."""
    from ray.cluster_utils import Cluster

    # Processes of a node start slowly where other tests run beside them.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    for _ in range(3):
        started = Cluster()
        try:
            started.add_node(include_dashboard=False, **node)
            started.add_node(**node)
            break
        # Ray has no type of its own for it, and waits 30 s for a node.
        except Exception as error:
            problem = str(error)
            started.shutdown()
    else:
        pytest.skip(f"Ray could not start two nodes on this machine in three attempts: {problem}")
    try:
        ray.init(address=started.address, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


@dataclass(frozen=True)
class Troubled(HashEncoder):
    """`HashEncoder` with something that happens in a worker, once if `mark` names a file.

    Args:
        mark: File that is made when it happens.
        event: `die`, `wait` for ever, or `refuse` to encode.
    """

    mark: str = ""
    event: str = "refuse"

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        if self.event == "refuse":
            raise AssertionError(f"{len(texts)} documents are encoded")
        if "w33" in " ".join(texts).split() and not Path(self.mark).exists():
            Path(self.mark).touch()
            if self.event == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().encode_documents(texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def expected(folder: Path) -> cluster.Cluster:
    """What a build must make."""
    made = cluster.create_local(folder / "expected", HashEncoder(), shards=2, filter_columns={"year": int})
    made.add(DOCUMENTS)
    return made


@pytest.fixture(scope="module")
def lines(folder: Path) -> Path:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    return path


@pytest.fixture(scope="module")
def built(folder: Path, lines: Path) -> cluster.Cluster:
    report = cluster.build(folder / "built", lines, encoder=HashEncoder(), **OPTIONS)
    assert (report.added, report.total) == (60, 60)
    return cluster.open_local(folder / "built", HashEncoder())


def _versions(index: cluster.Cluster) -> list[int]:
    return [Index.open(Path(index.uri) / f"shard-000{i}").info().version for i in range(2)]


def _same(found: Any, expected: Any) -> bool:
    """Whether two clusters hold the same documents, and return the same hits."""
    searches: list[dict[str, Any]] = [{}, {"filter": F("year") == 2002}, {"lexical_weight": 0.3, "evidence": True}]
    return (
        found.get(found.ids()) == expected.get(expected.ids())
        and not found.duplicates()
        and all(found.search_many(QUERIES, **each) == expected.search_many(QUERIES, **each) for each in searches)
    )


def test_a_build_adds_one_version_to_each_shard_and_encodes_nothing_again(
    built: cluster.Cluster, expected: cluster.Cluster, lines: Path
) -> None:
    # `expected` got its documents in one batch, so in one version a shard.
    assert _same(built, expected) and _versions(built) == _versions(expected)
    report = cluster.build(built.uri, lines, encoder=Troubled(), **OPTIONS)
    assert (report.unchanged, report.total) == (60, 60) and _versions(built) == _versions(expected)


def test_tables_and_changed_documents_are_built(folder: Path, expected: cluster.Cluster) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "tables").mkdir()
    for i in range(2):
        flat = [{"id": d["id"], "text": d["text"], **d["metadata"]} for d in DOCUMENTS[i::2]]
        parquet.write_table(pa.Table.from_pylist(flat), folder / "tables" / f"{i}.parquet")
    assert cluster.build(folder / "t", folder / "tables", encoder=HashEncoder(), **OPTIONS).added == 60
    found = cluster.open_local(folder / "t", HashEncoder())
    assert _same(found, expected)
    changed = [{**document, "metadata": {"year": 1990}} for document in DOCUMENTS[:5]]
    # Token vectors are kept where only metadata has changed.
    assert cluster.build(found.uri, changed, encoder=Troubled(), **OPTIONS).updated == 5
    changed = [{"id": "d9", "text": "other words"}, *DOCUMENTS[:5], {"id": "new", "text": "brand new"}]
    report = cluster.build(
        found.uri, [*changed, {"id": "x", "text": " "}], encoder=HashEncoder(), on_blank="skip", **OPTIONS
    )
    assert (report.added, report.updated, report.blank) == (1, 6, 1)
    assert found.count() == 61 and found.duplicates() == [] and found.search("other", 1)[0].id == "d9"
    assert not found.search("w9 word2 common", filter={"year": 1990})
    found.optimize()
    found.delete(["new", "d9"])
    found.add([DOCUMENTS[9]])
    assert found.get(found.ids()) == expected.get(expected.ids())


def test_a_cluster_in_a_bucket_is_built_and_built_again(bucket: dict[str, str], expected: cluster.Cluster) -> None:
    options = {**OPTIONS, "encoder": HashEncoder(), "storage_options": bucket}
    other = {"id": "d3", "text": "other words"}
    cluster.build("s3://papers/ray", [*DOCUMENTS[:3], other, *DOCUMENTS[4:50]], **options)
    report = cluster.build("s3://papers/ray", DOCUMENTS, **options)
    assert (report.added, report.updated, report.unchanged) == (10, 1, 49)
    assert _same(cluster.open_local("s3://papers/ray", HashEncoder(), storage_options=bucket), expected)


def test_an_actor_that_is_killed_changes_nothing(folder: Path, lines: Path, expected: cluster.Cluster) -> None:
    encoder = Troubled(mark=str(folder / "died"), event="die")
    report = cluster.build(folder / "killed", lines, encoder=encoder, **OPTIONS)
    assert (folder / "died").exists() and report.added == 60
    assert _same(cluster.open_local(folder / "killed", HashEncoder()), expected)


def test_a_program_that_is_killed_leaves_no_rows_and_the_next_build_deletes_its_files(
    folder: Path, lines: Path, machines: Any, expected: cluster.Cluster
) -> None:
    uri, mark = folder / "driver", folder / "waits"
    program = (
        "import ray, sys, test_ray; from manyvec import cluster; ray.init(address=sys.argv[1], log_to_driver=False);"
        "encoder = test_ray.Troubled(mark=sys.argv[4], event='wait');"
        "ray.cloudpickle.register_pickle_by_value(test_ray);"
        "cluster.build(sys.argv[2], sys.argv[3], encoder=encoder, **(test_ray.OPTIONS | {'encoders': 1}))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    arguments = [machines.address, str(uri), str(lines), str(mark)]
    driver = subprocess.Popen([sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": path})
    try:
        _wait_for(mark.exists)
        # The lock of a build that is running.
        with pytest.raises(InputError, match="another build of the cluster .* is running: wait for its end"):
            cluster.build(uri, lines, encoder=HashEncoder(), **OPTIONS)
    finally:
        driver.kill()
        driver.wait()
    stopped = cluster.open_local(uri, HashEncoder())
    assert stopped.count() == 0 and (uri / "build.json").exists()
    written = {*uri.glob("*/documents.lance/data/*.lance")}
    assert written
    _wait_for(lambda: _is_free(uri))
    cluster.build(uri, lines, encoder=HashEncoder(), **OPTIONS)
    assert _same(stopped, expected) and not (uri / "build.json").exists()
    assert not written & {*uri.glob("*/documents.lance/data/*.lance")}


def _is_free(uri: Path) -> bool:
    named = ray.util.list_named_actors(all_namespaces=True)
    return f"build {uri}" not in [actor["name"] for actor in named]


def _wait_for(is_true: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "nothing has happened"
        time.sleep(0.2)


@dataclass(frozen=True)
class Different(HashEncoder):
    """An encoder whose weights differ from one process to another."""

    @property
    def fingerprint(self) -> str:
        return f"{os.getpid()}"


def test_what_cannot_be_built_is_refused_before_work(
    folder: Path, built: cluster.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _versions(built)

    def build(documents: Any, encoder: Any = Troubled(), **options: Any) -> None:
        cluster.build(built.uri, documents, encoder=encoder, **(OPTIONS | options))

    new = [{"id": f"n{i}", "text": f"new {i}"} for i in range(25)]
    with pytest.raises(InputError, match=r"ids must be distinct, but these occur more than once: \['n3'\]"):
        build([*new, {"id": "n3", "text": "again"}])
    path = folder / "no-ids.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n{"text": "two"}\n')
    with pytest.raises(InputError, match="the documents of a build need ids: 1 of 2 have none"):
        build(path)
    with pytest.raises(InputError, match="has 2 shards: reshard changes that"):
        build(new, shards=3)
    with pytest.raises(ManifestError, match="the encoder is hash-32"):
        build(new, HashEncoder(32))
    with pytest.raises(ManifestError, match="loads hash-64 with other weights or settings"):
        cluster.build(folder / "different", new, encoder=Different(), **OPTIONS)
    workers = sys.modules["manyvec.cluster.ray.workers"]
    monkeypatch.setattr(workers, "package_version", lambda _: "9.9")
    with pytest.raises(ManifestError, match=f"has manyvec {version('manyvec')}, and this program 9.9"):
        build(new)
    monkeypatch.undo()
    with pytest.raises(InputError, match="document 'n30': 'text' is missing"):
        build([*new, {"id": "n30", "text": ""}], HashEncoder())
    assert _versions(built) == before and built.count() == 60


@pytest.fixture(scope="module")
def served(built: cluster.Cluster) -> Iterator[cluster.Cluster]:
    """A cluster of its own that Ray Serve runs, with the documents of `built`."""
    from ray import serve

    uri = Path(built.uri).with_name("served")
    shutil.copytree(built.uri, uri)
    serve.run(cluster.app(uri, HashEncoder(), replicas=2, num_cpus=0.1))
    yield cluster.connect(timeout=300)
    serve.shutdown()


def test_replicas_answer_as_shards_in_this_process(served: cluster.Cluster, expected: cluster.Cluster) -> None:
    assert _same(served, expected)
    info = served.info()
    assert (info.documents, info.shards, info.model) == (60, 2, "hash-64")
    assert served.add([{"id": "new", "text": "brand new"}, DOCUMENTS[3]]).unchanged == 1
    # All replicas see it.
    assert {served.search("brand", 1)[0].id for _ in range(5)} == {"new"}
    assert served.delete("new") == 1 and served.count() == 60 and served.get("d3")[0].text == DOCUMENTS[3]["text"]
    assert served.score("w7", ["d7", "unknown"]).tolist()[0] == expected.score("w7", ["d7"]).tolist()[0]
    assert pickle.loads(pickle.dumps(served)).search("w7", 1) == expected.search("w7", 1)
    with pytest.raises(FilterError, match="unknown_key"):
        served.search("w7", filter={"unknown_key": 1})
    with pytest.raises(InputError, match="append_rows needs the shards in this process"):
        cluster.append_rows(served, [])


def test_frameworks_take_what_connect_returns(served: cluster.Cluster, expected: cluster.Cluster) -> None:
    langchain = pytest.importorskip("langchain_manyvec", reason="needs langchain-manyvec")
    llama = pytest.importorskip("llama_index.retrievers.manyvec", reason="needs llama-index-retrievers-manyvec")
    wanted = [hit.id for hit in expected.search("word3 common", 3)]
    found = langchain.ManyvecRetriever(index=served, k=3).invoke("word3 common")
    assert [document.id for document in found] == wanted
    nodes = llama.ManyvecRetriever(index=served, similarity_top_k=3).retrieve("word3 common")
    assert [node.node.node_id for node in nodes] == wanted


def test_a_killed_replica_is_replaced_and_a_shard_without_one_is_named(
    served: cluster.Cluster, expected: cluster.Cluster
) -> None:
    wanted, started = expected.search("w17", 3), time.monotonic()
    _kill_replicas("shard-0001", 1)
    assert served.search("w17", 3) == wanted
    assert time.monotonic() - started < 60
    impatient, partial = cluster.connect(timeout=1), cluster.connect(timeout=1, allow_partial=True)
    _kill_replicas("shard-0001", 2)
    with pytest.raises(MissingShardError, match="shard-0001 of the cluster .* cannot be used: .*replica"):
        impatient.count()
    assert partial.search("common", 1).missing_shards == ("shard-0001",)
    assert cluster.connect(timeout=300).search("w17", 3) == wanted
    with pytest.raises(StoreError, match="cannot be reached|no replica"):
        cluster.connect("nothing", timeout=1)


def _kill_replicas(name: str, n_replicas: int) -> None:
    named = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{name}#" in actor["name"]]
    assert named
    for actor in named[:n_replicas]:
        ray.kill(ray.get_actor(**actor))


def test_a_rolling_update_fails_no_request(served: cluster.Cluster) -> None:
    from ray import serve

    is_done, problems, n_answers = threading.Event(), [], 0

    def ask() -> None:
        nonlocal n_answers
        while not is_done.is_set():
            try:
                n_answers += len(served.search("common", 3)) == 3
            except Exception as error:
                problems.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        serve.run(cluster.app(served.uri, HashEncoder(), replicas=2, num_cpus=0.1, cache_bytes=10**8))
    finally:
        is_done.set()
        asking.join()
    assert not problems and n_answers > 5
