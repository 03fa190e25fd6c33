"""Indexes that keep token vectors in fewer bytes: what they find, and what happens to them meanwhile."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from manyvec import F, Index, InputError, ManifestError, TokenBatch
from manyvec.storage.maintenance.optimize import MIN_RESIDUAL_TOKENS, encode_residuals
from manyvec.storage.snapshot import Snapshot
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import offsets_of, pool
from manyvec.vectors.codec import STORAGES, bytes_per_token
from manyvec.vectors.maxsim import maxsim_reference

ENCODER = HashEncoder(48)
WORDS = [f"w{i}" for i in range(400)]


def documents(n, n_words=30, seed=0):
    rng = np.random.default_rng(seed)
    return [{"id": f"{i:04d}", "text": " ".join(rng.choice(WORDS, n_words)), "metadata": {"n": i}} for i in range(n)]


DOCUMENTS = documents(60)
QUERY = " ".join(DOCUMENTS[7]["text"].split()[:6])


def filled(uri, storage, **options):
    index = Index.create(uri, ENCODER, storage=storage, filter_columns={"n": int}, **options)
    index.add(DOCUMENTS)
    return index


def ids(hits):
    return [hit.id for hit in hits]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A `residual` index with as many token vectors as its centroids need, not optimized yet."""
    index = Index.create(
        tmp_path_factory.mktemp("large") / "index", ENCODER, storage="residual", filter_columns={"n": int}
    )
    index.add(documents(MIN_RESIDUAL_TOKENS // 256 + 1, n_words=256))
    return index


@pytest.fixture
def residual(large, tmp_path):
    shutil.copytree(large.uri, tmp_path / "residual")
    return Index.open(tmp_path / "residual", ENCODER)


@pytest.mark.parametrize("storage", ["float16", "residual"])
@pytest.mark.parametrize("max_new", [0, 2_000])
def test_states_of_rows_that_are_known_are_those_read_anew(tmp_path, monkeypatch, storage, max_new):
    monkeypatch.setattr("manyvec.storage.snapshot._MAX_NEW_STATES", max_new)
    index = filled(tmp_path / "index", storage)
    changes = [
        lambda: index.add(documents(5, seed=1)),
        lambda: index.delete([f"{i:04d}" for i in (0, 20, 59)]),
        lambda: index.add([{"id": "new", "text": "a new one"}, {"id": "0020", "text": "back again"}]),
        lambda: index.optimize(),
        lambda: index.delete(filter=F("n") >= 0),
        lambda: index.add(DOCUMENTS[:3]),
    ]
    held = index._store.snapshot().states()
    for change in changes:
        change()
        snapshot = index._store.snapshot()
        held, anew = snapshot.states(held), snapshot.states()
        for name, column in vars(anew).items():
            assert vars(held)[name].dtype == column.dtype
            np.testing.assert_array_equal(vars(held)[name], column)


@pytest.mark.parametrize("storage", STORAGES)
def test_new_rows_are_read_in_one_call_and_are_those_in_the_table(tmp_path, monkeypatch, storage):
    index = filled(tmp_path / "index", storage)
    index.search(QUERY)
    index.add([{"id": "new", "text": QUERY}, {"id": "0020", "text": f"back again {QUERY}"}])
    calls, take_row_ids = [], lancedb.table.LanceTable.take_row_ids
    monkeypatch.setattr(
        lancedb.table.LanceTable, "take_row_ids", lambda table, rows: calls.append(rows) or take_row_ids(table, rows)
    )
    found = ids(index.search(QUERY, lexical_weight=0.5, k=2))
    assert {*found} == {"new", "0020"} and len(calls) == 1
    held = index._reader.current().snapshot
    anew = index._store.snapshot()
    rows = [anew.find([id])[id].row_id for id in ("new", "0020", "0003", "new")]
    columns = [*anew._schema.names[::-1]]
    for chosen in (rows[:2], rows[1::-1], [rows[0], rows[0]], rows[1:], []):
        assert held.take(chosen, columns).equals(anew.take(chosen, columns))


@pytest.mark.parametrize("keep", [0, 7, timedelta(days=-1)])
def test_what_is_kept_is_said_as_a_timedelta(tmp_path, keep):
    index = filled(tmp_path / "index", "float16")
    with pytest.raises(InputError, match=r"keep must be a timedelta of at least 0, such as timedelta\(days=7\), got"):
        index.optimize(keep=keep)


@pytest.mark.parametrize("storage", STORAGES)
def test_hits_are_those_of_the_reference_over_the_stored_vectors(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    hits = index.search(QUERY, k=60)
    stored = index.token_vectors([document["id"] for document in DOCUMENTS])
    expected = maxsim_reference(ENCODER.encode_queries([QUERY])[0], stored)
    by_id = {hit.id: hit.score for hit in hits}
    # The stored vectors are handed out as float16.
    np.testing.assert_allclose([by_id[d["id"]] for d in DOCUMENTS], expected, rtol=0, atol=6 * 2.0**-9)
    assert hits[0].id == "0007"
    assert index.info().storage == storage


@pytest.mark.parametrize("storage", [s for s in STORAGES if s != "residual"])
def test_vectors_take_the_bytes_that_their_storage_says(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    index.search("w1")
    assert index.info().bytes_in_memory == index.info().tokens * bytes_per_token(storage, 48)


@pytest.mark.parametrize("storage", STORAGES)
def test_updates_and_deletes_are_never_served_stale(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    index.search(QUERY)
    index.add([{"id": "0007", "text": "other words", "metadata": {"n": 7}}, {"id": "new", "text": QUERY}])
    index.delete("0008")
    found = ids(index.search(QUERY, k=100))
    assert found[0] == "new" and "0008" not in found and len(found) == 60
    assert ids(Index.open(index.uri, ENCODER).search(QUERY, k=100)) == found


@pytest.mark.parametrize("storage", STORAGES)
def test_a_budget_smaller_than_one_document_changes_no_score(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    small = Index.open(index.uri, ENCODER, cache_bytes=10)
    assert [(h.id, h.score) for h in small.search(QUERY, k=60)] == [(h.id, h.score) for h in index.search(QUERY, k=60)]
    assert small.info().bytes_in_memory == 0


@pytest.mark.parametrize("storage", STORAGES)
def test_metadata_changes_without_touching_a_vector(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    before = index.token_vectors("0007").vectors
    report = index.add([{**DOCUMENTS[7], "metadata": {"n": 1000, "more": "x"}}])
    assert (report.updated, report.added) == (1, 0)
    assert index.get("0007")[0].metadata == {"n": 1000, "more": "x"}
    assert ids(index.search(QUERY, filter=F("n") == 1000)) == ["0007"]
    assert np.array_equal(index.token_vectors("0007").vectors, before)


@pytest.mark.parametrize("kept", [0, 1, 10])
@pytest.mark.parametrize("storage", ["float16", "int4"])
def test_a_filter_that_keeps_few_is_answered_exactly(tmp_path, storage, kept):
    index = filled(tmp_path / "index", storage)
    found = index.search(QUERY, k=60, filter=F("n") >= 60 - kept)
    every = [hit for hit in index.search(QUERY, k=60) if hit.metadata["n"] >= 60 - kept]
    assert [(h.id, h.score) for h in found] == [(h.id, h.score) for h in every] and len(found) == kept


def test_an_unknown_storage_and_a_pool_factor_below_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="storage must be one of float16, int8, int4, residual, binary, got 'int3'"):
        Index.create(tmp_path / "a", ENCODER, storage="int3")
    with pytest.raises(InputError, match=r"pool_factor must be 1 or more, got 0\.5"):
        Index.create(tmp_path / "b", ENCODER, pool_factor=0.5)


def test_residual_waits_for_enough_vectors_and_then_takes_all_in(residual):
    assert not residual._store.snapshot().states().is_coded.any()
    before = ids(residual.search("w1 w2 w3 w4", k=5))
    residual.optimize()
    assert residual._store.snapshot().states().is_coded.all()
    assert len({*ids(residual.search("w1 w2 w3 w4", k=5))} & {*before}) >= 4
    residual.add([{"id": "late", "text": "w1 w2 w3 w4"}])
    assert residual._store.snapshot().states().is_coded.all()
    assert ids(residual.search("w1 w2 w3 w4", k=1)) == ["late"]
    assert residual.info().bytes_in_memory == residual.info().tokens * bytes_per_token("residual", 48)


def test_metadata_that_someone_writes_while_codes_are_made_is_kept(residual, monkeypatch):
    first = residual.ids()[0]
    text = residual.get(first)[0].text
    other = Index.open(residual.uri, ENCODER)
    take, written = Snapshot.take, []

    def take_and_be_overtaken(snapshot, row_ids, columns):
        taken = take(snapshot, row_ids, columns)
        # The whole rows are read, and not written yet.
        if "metadata" in columns and not written:
            written.append(other.add([{"id": first, "text": text, "metadata": {"newer": True}}]))
        return taken

    monkeypatch.setattr(Snapshot, "take", take_and_be_overtaken)
    residual.optimize()
    assert written[0].updated == 1
    assert (residual.get(first)[0].text, residual.get(first)[0].metadata) == (text, {"newer": True})
    residual.optimize()
    assert residual._store.snapshot().states().is_coded.all()


def test_residual_stopped_half_way_is_searched_as_it_is_and_completed_by_the_next_optimize(residual, monkeypatch):
    before = ids(residual.search("w1 w2 w3 w4", k=5))
    recode, n_calls = type(residual._store).recode, []

    def stopped(store, *arguments):
        n_calls.append(1)
        if len(n_calls) == 3:
            raise KeyboardInterrupt
        return recode(store, *arguments)

    monkeypatch.setattr(type(residual._store), "recode", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode_residuals(residual._store, window_bytes=2**20)
    is_coded = residual._store.snapshot().states().is_coded
    assert 0 < is_coded.sum() < len(is_coded)
    for index in (residual, Index.open(residual.uri, ENCODER), Index.open(residual.uri, ENCODER, cache_bytes=10)):
        assert len({*ids(index.search("w1 w2 w3 w4", k=5))} & {*before}) >= 4
    assert residual.token_vectors(residual.ids()).n_tokens == residual.info().tokens
    Index.open(residual.uri, ENCODER).optimize()
    assert residual._store.snapshot().states().is_coded.all()
    assert len(residual.search("w1", k=1000)) == residual.count()


def test_lost_centroids_are_an_error_that_says_so(residual):
    residual.optimize()
    database = lancedb.connect(residual.uri)
    (table,) = [name for name in database.list_tables().tables if name.startswith("codec_")]
    database.drop_table(table)
    with pytest.raises(ManifestError, match="the centroids of the index .* cannot be read"):
        Index.open(residual.uri, ENCODER).search("w1")


def test_pooling_keeps_the_first_token_and_half_of_the_rest():
    eye = np.eye(4, dtype=np.float32)
    near = np.array([[0, 0.8, 0.6, 0]], np.float32)
    vectors = np.concatenate([eye[[0, 1]], near, eye[[3]], eye[[3]]])
    spans = np.array([[-1, -1], [0, 2], [3, 5], [6, 8], [9, 11]], np.int32)
    pooled = pool(TokenBatch(vectors, offsets_of([5]), spans), 2)
    assert pooled.n_tokens == 3
    assert np.allclose(pooled.vectors[0], eye[0]) and pooled.spans[0].tolist() == [-1, -1]
    # One mean of the two that are near each other, one of the two that are equal.
    mean = (eye[1] + near[0]) / np.linalg.norm(eye[1] + near[0])
    assert {tuple(np.round(row, 4)) for row in pooled.vectors[1:]} == {tuple(np.round(mean, 4)), tuple(eye[3])}
    assert all(span in spans.tolist() for span in pooled.spans.tolist())


def test_an_index_with_pooling_keeps_half_the_vectors_and_finds_the_document(tmp_path):
    whole, half = filled(tmp_path / "whole", "float16"), filled(tmp_path / "half", "float16", pool_factor=2)
    assert half.info().tokens == pytest.approx(whole.info().tokens / 2, rel=0.05)
    assert half.search(QUERY, k=1)[0].id == "0007"
    assert half.search(QUERY, k=1, evidence=True)[0].evidence.words


def test_bm25_takes_part_in_the_order_and_leaves_the_scores_alone(tmp_path):
    index = filled(tmp_path / "index", "float16")
    index.add([{"id": "rare", "text": "zebra " + DOCUMENTS[3]["text"]}])
    pure = {hit.id: hit.score for hit in index.search("w1 w2 zebra", k=100)}
    hits = index.search("w1 w2 zebra", k=100, lexical_weight=1)
    assert hits[0].id == "rare"
    assert {hit.id: hit.score for hit in hits} == pure
    finals = [hit.final_score for hit in hits]
    assert finals == sorted(finals, reverse=True) and finals[0] != hits[0].score
    (plain,) = index.search("w1 w2 zebra", k=1)
    assert plain.final_score == plain.score


def test_a_document_that_only_bm25_finds_is_a_candidate(tmp_path):
    class Nothing:
        def find(self, query, scope, depth):
            return np.empty(0, np.int64)

    index = filled(tmp_path / "index", "float16")
    index.candidates = Nothing()
    assert index.search(QUERY) == []
    assert index.search(QUERY, lexical_weight=0.3)[0].id == "0007"
    # Document 5 shares two words with the query, 9 none.
    assert [hit.id for hit in index.search(QUERY, lexical_weight=0.3, filter=F("n") == 5)] == ["0005"]
    assert index.search(QUERY, lexical_weight=0.3, filter=F("n") == 9) == []


@pytest.mark.parametrize("weight", [-0.1, 1.1, "much", float("nan")])
def test_a_weight_outside_0_to_1_is_refused(tmp_path, weight):
    with pytest.raises(InputError, match="lexical_weight must be between 0 and 1, got"):
        filled(tmp_path / "index", "float16").search(QUERY, lexical_weight=weight)


FORMAT_1 = Path(__file__).parent / "data" / "format-1"


@pytest.fixture
def format_1(tmp_path):
    """A copy of an index that was written before filter columns were called so."""
    shutil.copytree(FORMAT_1, tmp_path / "format-1")
    return Index.open(tmp_path / "format-1", HashEncoder(16))


def test_an_index_of_format_1_is_opened_and_searched_with_its_filter_columns(format_1):
    assert format_1.filter_columns == format_1.info().filter_columns == {"year": "int", "tags": "list[str]"}
    assert ids(format_1.search("red apples")) == ["a", "b"]
    assert ids(format_1.search("red apples", filter=F("year") > 2020)) == ["b"]
    assert ids(format_1.search("sea", filter=F("tags").contains("fruit"))) == ["a"]


def test_an_index_of_format_1_is_written_to(format_1):
    report = format_1.add(
        [
            {"id": "a", "text": "red apples", "metadata": {"year": 2025}},
            {"id": "c", "text": "green apples", "metadata": {"year": 2025, "tags": ["fruit"]}},
        ]
    )
    assert (report.added, report.updated) == (1, 1)
    format_1.delete("b")
    format_1.optimize()
    again = Index.open(format_1.uri, HashEncoder(16))
    assert ids(again.search("green apples", filter=F("year") == 2025)) == ["c", "a"]
    assert again.filter_columns == {"year": "int", "tags": "list[str]"}


def test_a_new_index_is_of_format_2_and_names_its_filter_columns(tmp_path):
    Index.create(tmp_path / "index", ENCODER, filter_columns={"n": int})
    schema = lancedb.connect(tmp_path / "index").open_table("documents").schema
    manifest = json.loads(schema.field("tokens").metadata[b"manyvec"])
    assert manifest["format"] == 2
    assert manifest["filter_columns"] == {"n": "int"} and "filters" not in manifest


def test_the_former_name_of_filter_columns_is_refused_with_the_new_one(tmp_path):
    with pytest.raises(InputError, match="no argument 'filters': it is called filter_columns"):
        Index.create(tmp_path / "index", ENCODER, filters={"n": int})
    assert not (tmp_path / "index").exists()
