"""Clusters in one process: shards that are searched and written as one index."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from checkpoints.static import LAYOUTS

from manyvec import (
    Document,
    F,
    FilterError,
    Hit,
    Index,
    IndexNotFoundError,
    InputError,
    ManifestError,
    MissingShardError,
    Reranker,
    StoreError,
    cluster,
)
from manyvec.candidates import Auto, CentroidLists, Lexical, Pooled
from manyvec.cli import main
from manyvec.cluster import Cluster
from manyvec.testing import CountingEncoder, HashEncoder

N_DOCUMENTS, N_QUERIES = 400, 200
DRAW = random.Random(7)
WORDS = [*(f"w{i}x" for i in range(60)), "running", "runs", "the", "café", "Cafés"]
WEIGHTS = [1 / (i + 1) for i in range(len(WORDS))]


def _text(n_words: int) -> str:
    return " ".join(DRAW.choices(WORDS, WEIGHTS, k=n_words))


def _documents(numbers: range) -> list[dict]:
    return [
        {"id": f"d{i}", "text": _text(DRAW.randint(3, 30)), "metadata": {"g": i % 3, "s": f"f{i % 40}"}}
        for i in numbers
    ]


# Every tenth text occurs twice, so that documents tie in all scores.
FIRST = _documents(range(N_DOCUMENTS))
for i in range(0, N_DOCUMENTS, 10):
    FIRST[i + 1]["text"] = FIRST[i]["text"]
UPDATES = _documents(range(100, 160)) + _documents(range(N_DOCUMENTS, N_DOCUMENTS + 40))
DELETED = [f"d{i}" for i in range(40, 80)]
QUERIES = [_text(DRAW.randint(1, 5)) for _ in range(N_QUERIES)]
# What one index returns, by the search: the same for each number of shards.
EXPECTED: dict[str, list] = {}
OPTIONS = {"filter_columns": {"g": int, "s": str}}


def _write(index: Index | Cluster) -> Index | Cluster:
    index.add(FIRST)
    assert index.delete([*DELETED, "unknown"]) == 40
    report = index.add(UPDATES)
    assert (report.added, report.updated) == (40, 60)
    index.optimize()
    return index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clusters")


@pytest.fixture(scope="module")
def one(folder: Path) -> Index:
    return _write(Index.create(folder / "one", HashEncoder(), **OPTIONS))


@pytest.fixture(scope="module", params=[1, 2, 3, 7])
def shards(request: pytest.FixtureRequest, folder: Path) -> Cluster:
    uri = folder / f"of-{request.param}"
    return _write(cluster.create_local(uri, HashEncoder(), shards=request.param, **OPTIONS))


@pytest.fixture(scope="module")
def template(folder: Path) -> Path:
    made = cluster.create_local(folder / "template", HashEncoder(), shards=2, **OPTIONS)
    made.add(FIRST[:30])
    return Path(made.uri)


@pytest.fixture
def two(template: Path, tmp_path: Path) -> Cluster:
    """A small cluster that a test may change: a copy, which takes a tenth of the time."""
    shutil.copytree(template, tmp_path / "two")
    copied = cluster.open_local(tmp_path / "two", HashEncoder())
    # All shards have it from now on.
    assert copied.encoder == HashEncoder()
    return copied


def _explained(hit: Hit) -> tuple:
    """What explains a hit, but not which of several equal words it shows: they tie but for the rounding of products."""
    evidence = hit.evidence
    if evidence is None:
        return (hit.passage,)
    words = [(word.word, word.text.lower(), round(word.similarity, 5), round(word.share, 5)) for word in evidence.words]
    has_equal_words = len({*hit.text.split()}) < len(hit.text.split())
    return words, round(evidence.score, 4), None if has_equal_words else hit.passage


def _plain(hits: list) -> list[tuple]:
    return [(hit.id, hit.score, hit.similarity, hit.rank, hit.text, hit.metadata) for hit in hits]


@pytest.mark.parametrize(
    ("n_queries", "options"),
    [
        (N_QUERIES, {}),
        (N_QUERIES, {"filter": (F("g") == 1) & (F("s") != "f7"), "k": 3}),
        (N_QUERIES, {"lexical_weight": 0.3, "k": 5}),
        (20, {"lexical_weight": 1, "k": 40, "filter": F("g") == 2}),
        (15, {"evidence": True, "k": 3, "passage_chars": 30}),
        (10, {"group_by": "s", "group_size": 2}),
    ],
    ids=["plain", "filter", "lexical", "bm25", "evidence", "groups"],
)
def test_a_search_of_shards_is_that_of_one_index(one: Index, shards: Cluster, n_queries: int, options: dict) -> None:
    queries, n_hits, n_ties = QUERIES[:n_queries], 0, 0
    key = f"{n_queries} {options}"
    if key not in EXPECTED:
        EXPECTED[key] = one.search_many(queries, **options)
    for hits, found in zip(EXPECTED[key], shards.search_many(queries, **options), strict=True):
        assert _plain(hits) == _plain(found)
        finals = np.array([hit.final_score for hit in hits])
        np.testing.assert_allclose([hit.final_score for hit in found], finals, rtol=1e-5)
        assert [_explained(hit) for hit in hits] == [_explained(hit) for hit in found]
        n_hits, n_ties = n_hits + len(hits), n_ties + int(np.count_nonzero(np.diff(finals) == 0))
    assert n_hits > 2 * n_queries and n_ties > 0


def test_all_that_an_index_tells_is_the_same(one: Index, shards: Cluster) -> None:
    ids = ["d3", "unknown", "d200", "d3"]
    assert shards.get(ids) == one.get(ids) and shards.ids() == one.ids()
    assert shards.count() == one.count() == N_DOCUMENTS + 40 - 40
    assert shards.ids(F("g") == 1) == one.ids(F("g") == 1) and shards.count({"g": 1}) == one.count({"g": 1})
    info, expected = shards.info(), one.info()
    for name in ("documents", "duplicates", "tokens", "model", "dim", "storage", "filter_columns"):
        assert getattr(info, name) == getattr(expected, name)
    assert info.shards == shards.layout.n_shards
    np.testing.assert_array_equal(shards.token_vectors(ids).vectors, one.token_vectors(ids).vectors)
    texts = [document["text"] for document in (FIRST[3], FIRST[4], FIRST[200], FIRST[3])]
    np.testing.assert_array_equal(shards.score("w1x w3x", ids), one.score("w1x w3x", ids))
    np.testing.assert_array_equal(shards.score("w1x w3x", ids, texts=texts), one.score("w1x w3x", ids, texts=texts))
    assert shards.statistics("running w3x") == one.statistics("running w3x")
    for candidates in (Lexical(), Pooled()):
        found, wanted = (index.rank(QUERIES[:20], candidates, 30, filter={"g": 1}) for index in (shards, one))
        assert [len(ids) for ids in found] == [min(30, len(ids)) for ids in wanted]
        # Equal scores: an index orders `Pooled` by row, a cluster by id.
        assert [{*ids[:5]} for ids in found][:5] == [{*ids[:5]} for ids in wanted][:5] or isinstance(candidates, Pooled)
    with pytest.raises(InputError, match="ranks by Lexical or Pooled, got CentroidLists"):
        shards.rank(["w1x"], CentroidLists())


async def test_methods_can_be_awaited(shards: Cluster) -> None:
    assert await shards.acount() == shards.count()
    assert _plain(await shards.asearch("w3x")) == _plain(shards.search("w3x"))


@pytest.mark.parametrize("storage", ["float16", "int8", "residual"])
def test_resharding_copies_vectors_and_encodes_nothing(tmp_path: Path, storage: str) -> None:
    encoder = CountingEncoder()
    before = cluster.create_local(tmp_path / "c", encoder, shards=2, storage=storage, **OPTIONS)
    before.add(FIRST[:80])
    encoded, expected = len(encoder.texts), before.search_many(QUERIES[:5], lexical_weight=0.3, evidence=True)
    cluster.reshard(tmp_path / "c", shards=3)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        *(f"shard-000{i}-2" for i in range(3)),
        "shards.json",
    ]
    with pytest.raises(MissingShardError, match="have just been changed: try again"):
        before.search("w1x")
    for found in (cluster.open_local(tmp_path / "c", encoder), before):
        hits_of = found.search_many(QUERIES[:5], lexical_weight=0.3, evidence=True)
        assert [_plain(hits) for hits in hits_of] == [_plain(hits) for hits in expected]
        assert [_explained(hit) for hits in hits_of for hit in hits] == [
            _explained(hit) for hits in expected for hit in hits
        ]
    assert len(encoder.texts) == encoded
    assert before.add(FIRST[:80]).unchanged == 80
    cluster.reshard(tmp_path / "c", shards=1)
    # One shard is what any manyvec opens.
    alone = Index.open(tmp_path / "c" / "shard-0000-3", HashEncoder())
    assert _plain(alone.search("w3x w1x")) == _plain(before.anew().search("w3x w1x"))
    with pytest.raises(InputError, match="has 1 shards already"):
        cluster.reshard(tmp_path / "c", shards=1)


def test_an_id_that_is_stored_twice_is_named_before_resharding(two: Cluster) -> None:
    assert two.duplicates() == []
    other = 1 - two.layout.shard_of("d0")
    # A program that does not know the hash adds a document to the wrong shard, another one appends without looking.
    Index.open(Path(two.uri) / two.layout.name(other), HashEncoder()).add([FIRST[0]])
    right = two._shards.shard(two.layout.shard_of("d1"))
    right._store.append(right.rows([FIRST[1]]))
    assert two.duplicates() == ["d0", "d1"]
    with pytest.raises(InputError, match=r"stored more than once: \['d0', 'd1'\]"):
        cluster.reshard(two.uri, shards=3)
    two.optimize()
    assert two.duplicates() == ["d0"]


def test_a_report_counts_what_all_shards_have_added(two: Cluster) -> None:
    assert two.add([*FIRST[:20], *FIRST[30:35], FIRST[30]]) == cluster.router.AddReport(
        added=5, unchanged=21, repeated=("d30",)
    )
    report = two.add([{"id": "blank", "text": " "}, *FIRST[:2]], on_blank="skip")
    assert (report.blank, report.unchanged) == (1, 2)
    with pytest.raises(InputError, match="has no text"):
        two.add([{"id": "blank", "text": " "}])
    with pytest.raises(InputError, match="'id' is missing"):
        two.add([{"text": "no id"}])
    assert two.delete(filter={"g": 0}) == 12 and two.delete("d1") == 1
    with pytest.raises(InputError, match="either ids or a filter"):
        two.delete()


def test_filter_columns_are_added_to_all_shards(two: Cluster) -> None:
    two.add([{"id": "new", "text": "w1x", "metadata": {"year": 2024}}])
    with pytest.raises(FilterError, match="year"):
        two.search("w1x", filter={"year": 2024})
    assert two.add_filter_columns({"year": int}) == {"year": 1}
    assert [hit.id for hit in two.search("w1x", filter={"year": 2024})] == ["new"]
    assert cluster.open_local(two.uri, HashEncoder()).filter_columns == {"g": "int", "s": "str", "year": "int"}
    with pytest.raises(InputError, match="must be named, with their types"):
        two.add_filter_columns("infer")


def test_a_cluster_in_one_process_does_not_load_ray() -> None:
    code = "import sys; import manyvec.cluster; print({'ray', 'lance', 'lance_ray'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_bad_arguments_are_refused_as_by_an_index(two: Cluster) -> None:
    for options in ({"k": -1}, {"lexical_weight": 2}, {"depth": 0}, {"passage_chars": 0}, {"filter": {"zzz": 1}}):
        messages = []
        for index in (two, two._shards.shard(0)):
            with pytest.raises(InputError) as refused:
                index.search("w1x", **options)
            messages.append(str(refused.value))
        assert messages[0] == messages[1]
    with pytest.raises(InputError, match="for one query use search"):
        two.search_many("w1x")
    assert two.search_many([]) == [] and two.search("w1x", 0) == []


def test_a_copy_of_a_cluster_opens_it_again(two: Cluster) -> None:
    two.candidates = Auto(exhaustive_tokens=10)
    expected = _plain(two.search("w1x w2x"))
    for other in (
        copy.deepcopy(two),
        pickle.loads(pickle.dumps(two)),
        two.anew(),
        cluster.open_index(two.uri, HashEncoder()),
    ):
        assert isinstance(other, Cluster) and _plain(other.search("w1x w2x")) == expected
    assert two.anew().candidates == Auto(exhaustive_tokens=10)
    with two:
        pass
    with pytest.raises(MissingShardError, match="is closed"):
        two.count()


def test_what_lies_at_a_uri_is_opened(two: Cluster, tmp_path: Path) -> None:
    Index.create(tmp_path / "index", HashEncoder())
    assert type(cluster.open_index(tmp_path / "index", HashEncoder())) is Index
    with pytest.raises(InputError, match="is a cluster, whose shards"):
        cluster.open_index(two.uri, table_name="notes")
    with pytest.raises(IndexNotFoundError, match="no such folder"):
        cluster.open_index(tmp_path / "nothing")
    with pytest.raises(IndexNotFoundError, match=r"there is no cluster at .*nothing: no shards.json"):
        cluster.open_local(tmp_path / "nothing")
    with pytest.raises(InputError, match="there is a cluster in .* already"):
        cluster.create_local(two.uri, HashEncoder())
    assert cluster.create_local(two.uri, HashEncoder(), exist_ok=True, shards=9).layout.n_shards == 2
    with pytest.raises(ManifestError, match="has the filter columns"):
        cluster.create_local(two.uri, HashEncoder(), exist_ok=True, filter_columns={"x": int})
    with pytest.raises(ManifestError, match="the encoder is hash-32"):
        cluster.open_local(two.uri, HashEncoder(32))
    for shards in (0, -1, 2.0, True, 10_001):
        with pytest.raises(InputError, match="shards must be"):
            cluster.create_local(tmp_path / "x", HashEncoder(), shards=shards)
    with pytest.raises(InputError, match="memory:// holds one index only"):
        cluster.create_local("memory://", HashEncoder())


def test_a_shard_that_is_missing_is_named_or_left_out(two: Cluster) -> None:
    gone = Path(two.uri) / two.layout.name(1)
    everything = [hit.id for hit in two.search("w1x w2x w3x", 30, lexical_weight=0.3)]
    shutil.rmtree(gone)
    with pytest.raises(MissingShardError, match="shard-0001 of the cluster .* cannot be used: there is no index at"):
        cluster.open_local(two.uri, HashEncoder())
    partial = cluster.open_local(two.uri, HashEncoder(), allow_partial=True)
    hits = partial.search("w1x w2x w3x", 30, lexical_weight=0.3)
    assert hits.missing_shards == ("shard-0001",)
    assert [hit.id for hit in hits] == [id for id in everything if two.layout.shard_of(id) == 0]
    with pytest.raises(MissingShardError, match="shard-0001"):
        partial.count()
    shutil.rmtree(Path(two.uri) / two.layout.name(0))
    with pytest.raises(MissingShardError, match="shard-0000"):
        cluster.open_local(two.uri, HashEncoder(), allow_partial=True).search("w1x")


def test_a_shard_that_is_another_index_is_refused(two: Cluster) -> None:
    place = Path(two.uri) / "shard-0001"
    shutil.rmtree(place)
    Index.create(place, HashEncoder(), storage="int8", **OPTIONS)
    with pytest.raises(MissingShardError, match=r"has the storage 'int8', and shards.json says 'float16': restore"):
        cluster.open_local(two.uri, HashEncoder())
    shutil.rmtree(place)
    Index.create(place, HashEncoder(), filter_columns={"g": int})
    with pytest.raises(MissingShardError, match="has the filter_columns .* call add_filter_columns again"):
        cluster.open_local(two.uri, HashEncoder())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:20], "shards.json of the cluster .* is damaged"),
        (lambda text: text.replace('"shards": 2', '"shards": "2"'), "is damaged: shards must be a positive integer"),
        (lambda text: text.replace('"shards": 2', '"shards": 0'), "is damaged: shards must be a positive integer"),
        (lambda text: text.replace('"generation": 1,', ""), "is damaged: the field 'generation' is missing"),
        (
            lambda text: text.replace('"format": 1', '"format": 9', 1),
            "has format 9 .* install the manyvec that wrote it",
        ),
        (lambda text: text.replace("blake2b-64", "md5"), "hash 'md5', this manyvec reads"),
        (lambda text: text.replace('"dim": 64', '"dim": "x"'), "is damaged"),
        (lambda _: "[]", "is damaged"),
        (lambda _: "\x00\xff", "is damaged"),
    ],
)
def test_a_damaged_layout_is_refused_with_a_sentence(two: Cluster, damage, message: str) -> None:
    path = Path(two.uri) / "shards.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ManifestError, match=message) as refused:
        cluster.open_local(two.uri, HashEncoder())
    assert "\n" not in str(refused.value)


def test_an_interrupted_creation_is_completed_and_a_folder_with_documents_is_not_taken_over(two: Cluster) -> None:
    layout = Path(two.uri) / "shards.json"
    written = json.loads(layout.read_text())
    assert written["shards"] == 2 and written["hash"] == "blake2b-64" and written["index"]["model"] == "hash-64"
    layout.unlink()
    with pytest.raises(InputError, match="documents in .*shard-000. already, and no shards.json: restore it"):
        cluster.create_local(two.uri, HashEncoder(), shards=2, **OPTIONS)
    two_shards = [Index.open(Path(two.uri) / f"shard-000{i}", HashEncoder()) for i in range(2)]
    for shard in two_shards:
        shard.delete(filter={})
    assert cluster.create_local(two.uri, HashEncoder(), shards=2, **OPTIONS).count() == 0


def test_a_commit_beside_a_reshard_stops_it(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_beside_a_writer(*arguments: object, **options: object) -> None:
        cluster.open_local(two.uri, HashEncoder()).add([{"id": "late", "text": "w1x"}])
        copy_all(*arguments, **options)

    copy_all = cluster.maintenance._copy
    monkeypatch.setattr(cluster.maintenance, "_copy", copy_beside_a_writer)
    with pytest.raises(StoreError, match="another program has written to the cluster"):
        cluster.reshard(two.uri, shards=3)
    assert two.count() == 31 and two.layout.n_shards == 2
    monkeypatch.undo()
    cluster.reshard(two.uri, shards=3)
    assert cluster.open_local(two.uri, HashEncoder()).get("late")[0].text == "w1x"


def test_shards_share_the_memory_budget_and_can_be_optimized_away(two: Cluster) -> None:
    opened = cluster.open_local(two.uri, HashEncoder(), cache_bytes=2_000_000)
    assert [opened._shards.shard(i).cache_bytes for i in range(2)] == [1_000_000, 1_000_000]
    opened.optimize(keep=timedelta(0))
    assert opened.info().cache_bytes == 2_000_000 and opened.search("w1x")


def test_the_command_line_makes_shards_and_works_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["late", "interaction", "keeps", "one", "vector"]
    rows = [f"n{i},{words[i % 5]} number {i},{2000 + i}" for i in range(9)]
    (tmp_path / "notes.csv").write_text("\n".join(["id,text,year", *rows]))
    where = ["--index", str(tmp_path / "c")]
    made = ["index", str(tmp_path / "notes.csv"), *where, "--shards", "3", "--column", "year=int", "--json"]
    made += ["--encoder", str(LAYOUTS["plain"](tmp_path / "model"))]
    assert main(made) == 0 and json.loads(capsys.readouterr().out)["added"] == 9
    assert main(made) == 0 and json.loads(capsys.readouterr().out)["unchanged"] == 9
    assert main([*made, "--shards", "4"]) == 1
    assert "has 3 shards: manyvec.cluster.reshard changes that" in capsys.readouterr().err
    assert main(["search", "one", *where, "--where", "year>=2004", "-k", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "n8"
    assert main(["info", *where, "--json"]) == 0 and json.loads(capsys.readouterr().out)["shards"] == 3
    assert main(["delete", *where, "--where", "year=2003"]) == 0 and main(["check", *where]) == 0
    assert "8 documents" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "out.jsonl"), *where]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8
    Index.open(tmp_path / "c" / "shard-0000").add([{"id": f"stray-{i}", "text": "late"} for i in range(9)])
    shutil.rmtree(tmp_path / "c" / "shard-0002")
    capsys.readouterr()
    assert main(["check", *where]) == 1
    told = capsys.readouterr().out
    assert "shard-0000: belongs to another shard" in told and "shard-0002: cannot be used: there is no index" in told


def test_a_server_and_a_reranker_take_a_cluster(two: Cluster) -> None:
    api = pytest.importorskip("manyvec.server.api", reason="needs the serve extra: pip install 'manyvec[serve]'")
    records = pytest.importorskip("manyvec.server.records")
    served = api.Api(two)
    found = served.search(records.SearchRequest(query="w1x w2x", k=3))
    assert [hit.id for hit in found.hits] == [hit.id for hit in two.search("w1x w2x", 3)]
    assert (served.info().documents, served.document("d3").text) == (30, FIRST[3]["text"])
    # One that is resharded while it is served answers the next request from the new shards.
    cluster.reshard(two.uri, shards=3)
    again = served.search(records.SearchRequest(query="w1x w2x", k=3))
    assert [hit.id for hit in again.hits] == [hit.id for hit in found.hits]
    documents = [Document(document["id"], document["text"]) for document in FIRST[:10]]
    with_vectors, without = Reranker(index=two.anew()), Reranker(HashEncoder())
    assert with_vectors.rerank("w1x w2x", documents) == without.rerank("w1x w2x", documents)


def test_workers_encode_rows_and_one_program_appends_them_in_one_commit_a_shard(two: Cluster, tmp_path: Path) -> None:
    encoder = CountingEncoder()
    worker = pickle.loads(pickle.dumps(cluster.open_local(two.uri, encoder)))
    parts = [cluster.encode_rows(worker, FIRST[start : start + 10]) for start in range(30, 60, 10)]
    assert two.count() == 30 and {*parts[0]} <= {0, 1}
    versions = [two._shards.shard(number).info().version for number in range(2)]
    assert cluster.append_rows(two, parts) == 30
    assert [two._shards.shard(number).info().version - versions[number] for number in range(2)] == [1, 1]
    expected = cluster.create_local(tmp_path / "added", HashEncoder(), shards=2, **OPTIONS)
    expected.add(FIRST[:60])
    assert [_plain(hits) for hits in two.search_many(QUERIES[:20])] == [
        _plain(hits) for hits in expected.search_many(QUERIES[:20])
    ]
    assert two.add(FIRST[:60]).unchanged == 60 and two.duplicates() == []


def test_rows_that_would_be_stored_twice_or_belong_elsewhere_are_named(two: Cluster, tmp_path: Path) -> None:
    new = cluster.encode_rows(two, FIRST[30:36])
    for rows, message in (
        ([new, cluster.encode_rows(two, FIRST[35:37])], r"occur more than once: \['d35'\]"),
        ([new, cluster.encode_rows(two, FIRST[2:4])], r"are stored already: \['d2', 'd3'\]. Cluster.add replaces"),
        ([{1 - number: table for number, table in new.items()}], "were made for another number of shards"),
    ):
        with pytest.raises(InputError, match=message):
            cluster.append_rows(two, rows)
    with pytest.raises(InputError, match=r"occur more than once: \['d40'\]"):
        cluster.encode_rows(two, [FIRST[40], FIRST[40]])
    with pytest.raises(InputError, match="'id' is missing"):
        cluster.encode_rows(two, [{"text": "no id"}])
    other = cluster.create_local(tmp_path / "other", HashEncoder(), shards=2, **OPTIONS)
    with pytest.raises(InputError, match="were made for another cluster"):
        cluster.append_rows(other, [new])
    other.add_filter_columns({"year": int})
    with pytest.raises(InputError, match="rows have the columns .* encode them again"):
        cluster.append_rows(other, [new])
    with pytest.raises(ManifestError, match="the encoder is hash-32"):
        cluster.encode_rows(cluster.open_local(two.uri, HashEncoder(32)), FIRST[30:31])
    assert two.count() == 30 and cluster.append_rows(two, [new]) == 6 and cluster.append_rows(two, []) == 0
