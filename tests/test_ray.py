"""Clusters on Ray: two nodes of one CPU each, on this machine, build and serve them.

Nearly all of the time goes into Ray's new processes, which import Python packages for 3 to 5 CPU seconds each. So tests
share one cluster, few builds and few replicas, and tasks find processes that run already.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints.static import LAYOUTS

from manyvec import (
    Document,
    F,
    FilterError,
    Index,
    InputError,
    ManifestError,
    MissingShardError,
    Reranker,
    StoreError,
    cluster,
)
from manyvec.cli import main
from manyvec.cluster.layout import hash_of
from manyvec.cluster.ray import serving, writing
from manyvec.storage.lance import Place
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import TokenBatch

ray = pytest.importorskip(
    "ray", reason="needs the ray extra, which has wheels for some systems: pip install 'manyvec[ray]'"
)
pytest.importorskip("lance", reason="needs the ray extra: pip install 'manyvec[ray]'")
# Ray's own warnings are not ours, and come from threads of its own.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="Ray supports clusters of several nodes on Linux only"),
]

DOCUMENTS = [
    {"id": f"d{i}", "text": f"word{i % 7} common w{i}", "metadata": {"year": 2000 + i % 5, "tags": ["a", str(i)]}}
    for i in range(60)
]
QUERIES = ["word3 common", "w17", "word1 w8 w9", "common"]
OPTIONS: dict[str, Any] = {"shards": 2, "encoders": 1, "filter_columns": {"year": int}, "batch_size": 10}
# Read when Ray starts. Processes of a node start slowly where other tests run beside them, and those of tasks are kept
# for the next task instead of being started again.
RAY = {"RAY_raylet_start_wait_time_s": "120", "RAY_num_workers_soft_limit": "6", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[Any]:
    """A Ray cluster of two nodes, to which this process is connected."""
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_log_monitor": False, "no_monitor": True}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in RAY.items():
            environment.setenv(name, value)
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
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars, context.read_op_min_num_blocks = False, 2
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@dataclass(frozen=True)
class Troubled(HashEncoder):
    """`HashEncoder` with something that happens in a worker.

    Args:
        mark: File that is made when a worker is to `die` or to `wait`, which happens once; or what `begin` overwrites.
        event: `die`, `wait` for ever, `begin` another build, or `refuse` to encode the text of any of `DOCUMENTS`.
    """

    mark: str = ""
    event: str = "refuse"

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        words = " ".join(texts).split()
        if self.event == "refuse" and "common" in words:
            raise AssertionError(f"{len(texts)} documents are encoded")
        if "w33" in words and self.event == "begin":
            Path(self.mark).write_text("another build")
        elif "w33" in words and self.mark and not Path(self.mark).exists():
            Path(self.mark).touch()
            if self.event == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.event == "wait":
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
    """A cluster that two actors have built, one of which was killed."""
    encoder = Troubled(mark=str(folder / "died"), event="die")
    report = cluster.build(folder / "built", lines, encoder=encoder, **{**OPTIONS, "encoders": 2})
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


def test_a_build_adds_one_version_to_each_shard_even_if_an_actor_is_killed(
    built: cluster.Cluster, expected: cluster.Cluster, folder: Path
) -> None:
    # `expected` got its documents in one batch, so in one version a shard.
    assert (folder / "died").exists()
    assert _same(built, expected) and _versions(built) == _versions(expected)


def test_a_second_build_encodes_nothing_and_makes_no_version(
    built: cluster.Cluster, expected: cluster.Cluster, lines: Path
) -> None:
    report = cluster.build(built.uri, lines, encoder=Troubled(), **OPTIONS)
    assert (report.unchanged, report.total) == (60, 60) and _versions(built) == _versions(expected)


def test_a_build_from_tables_encodes_what_is_new_or_has_another_text(
    folder: Path, built: cluster.Cluster, expected: cluster.Cluster
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shutil.copytree(built.uri, folder / "t")
    flat = [{"id": d["id"], "text": d["text"], **d["metadata"]} for d in DOCUMENTS]
    for row in flat[:5]:
        row["year"] = 1990
    flat[9] = {"id": "d9", "text": "other words"}
    flat += [{"id": "new", "text": "brand new"}, {"id": "x", "text": " "}]
    (folder / "tables").mkdir()
    for i in range(2):
        parquet.write_table(pa.Table.from_pylist(flat[i::2]), folder / "tables" / f"{i}.parquet")
    # Token vectors are kept where only metadata has changed: this encoder refuses the texts of all `DOCUMENTS`.
    report = cluster.build(folder / "t", folder / "tables", encoder=Troubled(), on_blank="skip", **OPTIONS)
    assert (report.added, report.updated, report.unchanged, report.blank) == (1, 6, 54, 1)
    found = cluster.open_local(folder / "t", HashEncoder())
    assert found.count() == 61 and found.duplicates() == [] and found.search("other", 1)[0].id == "d9"
    hits = found.search("w3 word3 common", 20, filter={"year": 1990})
    assert sorted(hit.id for hit in hits) == ["d0", "d1", "d2", "d3", "d4"] and hits[0].id == "d3"
    found.optimize()
    found.delete(["new", "d9"])
    found.add([*DOCUMENTS[:5], DOCUMENTS[9]])
    assert found.get(found.ids()) == expected.get(expected.ids())


def test_a_cluster_in_a_bucket_is_built(bucket: dict[str, str], expected: cluster.Cluster) -> None:
    options: dict[str, Any] = {"filter_columns": {"year": int}, "storage_options": bucket}
    made = cluster.create_local("s3://papers/ray", HashEncoder(), shards=2, **options)
    made.add([*DOCUMENTS[:3], {"id": "d3", "text": "other words"}, *DOCUMENTS[4:50]])
    report = cluster.build("s3://papers/ray", DOCUMENTS, encoder=HashEncoder(), storage_options=bucket, **OPTIONS)
    assert (report.added, report.updated, report.unchanged) == (10, 1, 49)
    assert _same(made, expected) and _same(
        cluster.open_local(made.uri, HashEncoder(), storage_options=bucket), expected
    )


def test_two_builds_that_commit_at_once_in_a_bucket_are_both_whole_and_store_no_id_twice(
    bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, both, waited, exist = "s3://papers/race", threading.Barrier(2), set(), writing._exist

    def exist_for_both(*arguments: Any) -> bool:
        """Let both programs open the same version before one commits; one that tries again does not wait."""
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            both.wait()
        return exist(*arguments)

    def build(name: str, numbers: range) -> None:
        """Do what the actors and the program of a build do, without what keeps a second build out."""
        opened = cluster.open_local(uri, HashEncoder(), storage_options=bucket)
        (table,) = cluster.encode_rows(opened, [{"id": f"d{i}", "text": f"{name} {i}"} for i in numbers]).values()
        files = writing.write_rows(opened.layout.place(Place.of(uri, storage_options=bucket), 0), table)
        hashes = np.array([hash_of(f"d{i}") for i in numbers], np.uint64)
        writing.commit(opened._shards.shard(0), files, hashes)

    made = cluster.create_local(uri, HashEncoder(), shards=1, storage_options=bucket)
    monkeypatch.setattr(writing, "_exist", exist_for_both)
    # First both append; then both replace rows, which is where the later one has to try again.
    for _ in range(2):
        waited.clear()
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(build, "one", range(9)), threads.submit(build, "two", range(6, 12))]:
                done.result()
        texts = [document.text for document in made.get([f"d{i}" for i in range(12)])]
        assert made.count() == 12 and made.duplicates() == []
        assert texts[:6] == [f"one {i}" for i in range(6)] and texts[9:] == [f"two {i}" for i in range(9, 12)]
        # The later one has replaced all that the earlier one has written of its ids.
        assert texts[6:9] in ([f"{name} {i}" for i in range(6, 9)] for name in ("one", "two"))


def test_a_program_that_is_killed_leaves_no_rows_and_the_next_build_deletes_its_files(
    folder: Path, lines: Path, machines: Any, expected: cluster.Cluster
) -> None:
    uri, mark = folder / "driver", folder / "waits"
    program = (
        "import ray, sys, test_ray; from manyvec import cluster; ray.init(address=sys.argv[1], log_to_driver=False);"
        "encoder = test_ray.Troubled(mark=sys.argv[4], event='wait');"
        "ray.cloudpickle.register_pickle_by_value(test_ray);"
        "cluster.build(sys.argv[2], sys.argv[3], encoder=encoder, **test_ray.OPTIONS)"
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
    _wait_for(lambda: _is_free(uri))
    # What a build of another Ray cluster does first.
    encoder = Troubled(mark=str(uri / "build.json"), event="begin")
    with pytest.raises(StoreError, match="another program has begun a build of the cluster .* nothing was committed"):
        cluster.build(uri, lines, encoder=encoder, **OPTIONS)
    written = {*uri.glob("*/documents.lance/data/*.lance")}
    assert written and stopped.count() == 0
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


def test_what_cannot_be_built_is_refused(folder: Path, built: cluster.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _versions(built)

    def build(documents: Any, encoder: Any = Troubled(), **options: Any) -> None:
        cluster.build(built.uri, documents, encoder=encoder, **(OPTIONS | options))

    # An encoder that refuses them: what follows is noticed before work.
    new = [{"id": f"n{i}", "text": f"common new {i}"} for i in range(25)]
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


def test_the_command_line_builds_on_ray(tmp_path: Path, machines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(LAYOUTS["plain"](tmp_path / "model"))
    (tmp_path / "notes.csv").write_text("id,text,year\na,late interaction,2001\nb,one vector,2002\n")
    source, where = str(tmp_path / "notes.csv"), ["--index", str(tmp_path / "c")]
    made = ["index", source, *where, "--encoder", model, "--column", "year=int", "--json"]
    assert main([*made, "--ray", machines.address, "--shards", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 2
    assert main(["search", "the vector", *where, "--where", "year>=2001", "--json"]) == 0
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]] == ["b", "a"]
    # A build without Ray knows the documents.
    assert main(made) == 0 and json.loads(capsys.readouterr().out)["unchanged"] == 2
    Index.create(tmp_path / "plain", model)
    assert main(["index", source, "--index", str(tmp_path / "plain"), "--ray", "auto"]) == 1
    assert "--ray needs an index in shards, and" in capsys.readouterr().err
    assert main([*made, "--ray", "auto", "--sync"]) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "manyvec: there is no Ray cluster at 127.0.0.1:9: .*Connection refused. Start one with "),
        ("nonsense", "manyvec: there is no Ray cluster at nonsense: Invalid address format: nonsense. Start one"),
        ("missing", r"manyvec: .*ray.* pip install 'manyvec\[ray\]'"),
    ],
)
def test_a_ray_cluster_that_cannot_be_joined_is_said_in_one_line(tmp_path: Path, address: str, message: str) -> None:
    (tmp_path / "a.md").write_text("# A\n\nlate interaction")
    code = "import sys; from manyvec.cli import main; "
    code += "sys.modules['ray'] = None; " if address == "missing" else ""
    code += f"sys.exit(main(['index', 'a.md', '--index', 'c', '--ray', {address!r}]))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and re.fullmatch(f"{message}.*\n", ran.stderr) and not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def url() -> str:
    """Where Ray Serve listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def served(built: cluster.Cluster, url: str) -> Iterator[cluster.Cluster]:
    """A cluster of its own that Ray Serve runs, with the documents of `built`."""
    from ray import serve

    uri = Path(built.uri).with_name("served")
    shutil.copytree(built.uri, uri)
    serve.start(proxy_location="HeadOnly", http_options={"port": int(url.rpartition(":")[2])})
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


async def test_ray_serve_answers_over_http_what_manyvec_serve_answers(
    served: cluster.Cluster, expected: cluster.Cluster, url: str
) -> None:
    httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
    mcp = pytest.importorskip("mcp")
    mcp_client = pytest.importorskip("mcp.client.streamable_http")
    wanted = [hit.id for hit in expected.search("word3 common", 3, filter={"year": 2003})]
    request = {"query": "word3 common", "k": 3, "filter": {"year": 2003}}
    with httpx2.Client(base_url=url, timeout=60) as client:
        assert [hit["id"] for hit in client.post("/api/search", json=request).json()["hits"]] == wanted
        assert client.get("/api/documents/d3").json()["text"] == DOCUMENTS[3]["text"]
        assert client.get("/api/info").json()["documents"] == served.count()
        refused = client.post("/api/search", json={"query": "w7", "filter": {"unknown_key": 1}})
        assert refused.status_code == 400 and "unknown_key" in refused.json()["detail"]
        assert client.post("/api/search", json={"query": "w7", "k": 0}).status_code == 422
        assert client.post("/api/search", content=b"{").status_code == 422
        # Only this machine may ask, and nobody may write.
        assert client.post("/api/search", json=request, headers={"Host": "evil.example"}).status_code == 421
        assert client.post("/api/documents", json={"documents": []}).status_code == 405
    async with mcp.Client(mcp_client.streamable_http_client(f"{url}/mcp")) as agent:
        found = await agent.call_tool("search", request)
    assert [hit["id"] for hit in found.structured_content["hits"]] == wanted


async def test_with_a_token_ray_serve_answers_other_machines(
    served: cluster.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
    options = {"cache_bytes": 0, "device": "cpu", "score_device": None}
    router = serving.Router(Place.of(served.uri), served.layout, HashEncoder(), options, [])
    token, statuses = "a-token-of-enough-characters", []
    for known in (None, token):
        if known:
            monkeypatch.setenv("MANYVEC_TOKEN", known)
        transport = httpx2.ASGITransport(router._http_app("default"), client=("192.0.2.1", 7))
        async with httpx2.AsyncClient(transport=transport, base_url="http://papers.example") as client:
            for sent in ("", token):
                response = await client.get("/api/info", headers={"Authorization": f"Bearer {sent}"})
                statuses.append(response.status_code)
    assert statuses == [403, 403, 401, 200]


async def test_servers_of_this_process_take_what_connect_returns(
    served: cluster.Cluster, expected: cluster.Cluster, running: Any
) -> None:
    httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
    mcp = pytest.importorskip("mcp")
    mcp_client = pytest.importorskip("mcp.client.streamable_http")
    from manyvec.server.app import create_app

    wanted, token = [hit.id for hit in expected.search("word3 common", 3)], "a-token-of-enough-characters"
    with running(create_app(served, token=token, write=True)) as here:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=here, timeout=60, headers=headers) as client:
            found = client.post("/api/search", json={"query": "word3 common", "k": 3}).json()
            added = client.post("/api/documents", json={"documents": [{"id": "over/http", "text": "brand new"}]})
            assert added.json()["added"] == 1 and served.search("brand", 1)[0].id == "over/http"
            assert client.delete("/api/documents/over/http").status_code == 200 and served.count() == 60
            assert "manyvec_documents 60" in client.get("/metrics").text
        assert [hit["id"] for hit in found["hits"]] == wanted
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            mcp.Client(mcp_client.streamable_http_client(f"{here}/mcp", http_client=http)) as agent,
        ):
            found = await agent.call_tool("search", {"query": "word3 common", "k": 3})
            read = await agent.call_tool("get_document", {"id": "d3"})
    assert [hit["id"] for hit in found.structured_content["hits"]] == wanted
    assert read.structured_content["text"] == DOCUMENTS[3]["text"]


def test_langchain_takes_what_connect_returns(served: cluster.Cluster, expected: cluster.Cluster) -> None:
    langchain = pytest.importorskip("langchain_manyvec", reason="needs langchain-manyvec")
    documents = pytest.importorskip("langchain_core.documents")
    answers = []
    for index in (served, expected):
        store, retriever = langchain.ManyvecVectorStore(index), langchain.ManyvecRetriever(index=index, k=3)
        assert store.add_texts(["brand new"], ids=["texts"]) == ["texts"]
        candidates = [documents.Document(d["text"], id=d["id"]) for d in DOCUMENTS[:5]]
        candidates.append(documents.Document("word3 unknown"))
        answers.append(
            [
                retriever.invoke("word3 common"),
                store.similarity_search_with_score("brand w4", k=3),
                store.max_marginal_relevance_search("word1 common", k=3),
                store.get_by_ids(["d5", "texts"]),
                langchain.ManyvecReranker(index=index).compress_documents(candidates, "word3 w1"),
            ]
        )
        assert store.delete(["texts"])
    assert answers[0] == answers[1]


def test_llama_index_takes_what_connect_returns(served: cluster.Cluster, expected: cluster.Cluster) -> None:
    retrievers = pytest.importorskip("llama_index.retrievers.manyvec", reason="needs llama-index-retrievers-manyvec")
    stores = pytest.importorskip("llama_index.vector_stores.manyvec")
    rerank = pytest.importorskip("llama_index.postprocessor.manyvec")
    schema = pytest.importorskip("llama_index.core.schema")
    types = pytest.importorskip("llama_index.core.vector_stores.types")
    answers = []
    for index in (served, expected):
        store = stores.ManyvecVectorStore(index)
        store.add([schema.TextNode(id_="node", text="brand new")])
        nodes = [schema.NodeWithScore(node=schema.TextNode(id_=d["id"], text=d["text"])) for d in DOCUMENTS[:5]]
        retrieved = retrievers.ManyvecRetriever(index=index, similarity_top_k=3).retrieve("word3 common")
        found = [
            store.query(types.VectorStoreQuery(query_str="brand w4", similarity_top_k=3, mode=mode)).ids
            for mode in ("default", "hybrid", "text_search", "mmr")
        ]
        reranked = rerank.ManyvecRerank(index=index, top_n=3).postprocess_nodes(nodes, query_str="word3 w1")
        answers.append([retrieved, found, reranked])
        store.delete_nodes(["node"])
    assert answers[0] == answers[1] and served.count() == 60


def test_a_reranker_takes_what_connect_returns(served: cluster.Cluster) -> None:
    documents = [Document(d["id"], d["text"]) for d in [*DOCUMENTS[:5], {"id": "unknown", "text": "word3 w1"}]]
    found = Reranker(index=served).rerank("word3 w1", documents)
    assert found == Reranker(HashEncoder()).rerank("word3 w1", documents) and found[0].id == "unknown"


def test_a_killed_replica_is_replaced_and_a_shard_without_one_is_named(
    served: cluster.Cluster, expected: cluster.Cluster
) -> None:
    wanted, started = expected.search("w17", 3), time.monotonic()
    impatient, partial = cluster.connect(timeout=1), cluster.connect(timeout=1, allow_partial=True)
    _kill_replicas("shard-0001", 1)
    assert served.search("w17", 3) == wanted
    assert time.monotonic() - started < 60
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
        serve.run(cluster.app(served.uri, HashEncoder(), replicas=1, num_cpus=0.1, cache_bytes=10**8))
    finally:
        is_done.set()
        asking.join()
    assert not problems and n_answers > 5
