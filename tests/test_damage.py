"""Vectors that were damaged on disk, and vectors that are not normalised: never a crash, never a wrong rank."""

import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from manyvec import Document, F, Index, InputError, MaxSimScorer, Reranker, ShapeError, StoreError, TokenBatch
from manyvec.candidates import Auto
from manyvec.storage.maintenance.check import check
from manyvec.storage.maintenance.optimize import encode_residuals
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import CodedBatch, all_finite, offsets_of
from manyvec.vectors.codebook import Assignments, Codebook
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.cuda import DeviceDocuments
from manyvec.vectors.maxsim import top_k

ENCODER = HashEncoder(16)
N = 100
TEXTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(N)]
INFINITY, NAN = np.array([np.inf, np.nan], np.float16).view(np.uint8).reshape(2, 2)


def filled(folder, storage):
    index = Index.create(folder, ENCODER, storage=storage)
    index.add({"id": f"{i:02}", "text": text} for i, text in enumerate(TEXTS))
    encode_residuals(index._store, min_tokens=256)
    return index


def rewrite(index, id, change, column, *, keeps_checksum=False):
    """Change the vectors or codes of a document behind the library's back.

    Args:
        index: The index.
        id: The document.
        change: Function that changes a (n_tokens, width) array in place, or returns another column.
        column: `codes` or `tokens`.
        keeps_checksum: Whether the row keeps its checksum; rows of earlier versions and of other programs have none.
    """
    table = lancedb.connect(index.uri).open_table("documents")
    row = table.search().where(f"id = '{id}'").limit(None).to_arrow()
    field = row.schema.field(column)
    values = np.array(row[column].to_pylist()[0], np.uint8 if column == "codes" else np.float16)
    other = change(values)
    array = pa.array([values.tolist()], field.type) if other is None else pa.array(other, field.type)
    row = row.set_column(row.schema.get_field_index(column), field, array)
    if not keeps_checksum:
        field = row.schema.field("vectors_checksum")
        row = row.set_column(row.schema.get_field_index(field.name), field, pa.nulls(1, field.type))
    table.merge_insert("id").when_matched_update_all().execute(row)


def put(at, value):
    def change(values):
        values[1, at : at + len(value)] = value

    return change


# What is changed in the second token of a document, and what the log says.
DAMAGE = {
    "residual: a centroid that does not exist": ("residual", put(0, [255, 255]), "refers to a centroid beyond the"),
    "residual: the centroid after the last": ("residual", put(0, [0, 1]), "refers to a centroid beyond the"),
    "residual: an infinite scale": ("residual", put(2, INFINITY), "a scale of NaN or infinity"),
    "int8: an infinite scale": ("int8", put(0, INFINITY), "a scale of NaN or infinity"),
    "int8: a scale that is no number": ("int8", put(0, NAN), "a scale of NaN or infinity"),
    "int4: a scale that is no number": ("int4", put(0, NAN), "a scale of NaN or infinity"),
    "float16: an infinite value": ("float16", put(0, [np.inf]), "a token vector with NaN or infinity"),
    "float16: a value that is no number": ("float16", put(3, [np.nan]), "a token vector with NaN or infinity"),
    "float16: no vectors": ("float16", lambda _: [None], "0 token vectors instead of 3"),
    "int8: no vectors": ("int8", lambda _: [None], "0 token vectors instead of 3"),
    "int8: a vector lost": ("int8", lambda values: [values[:2].tolist()], "2 token vectors instead of 3"),
    "binary: vectors that came from nowhere": ("binary", lambda values: [values.tolist() * 9], "27 token vectors"),
}


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize(("storage", "change", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_document_is_logged_and_the_others_are_found_as_before(
    tmp_path, caplog, storage, change, reason, cache_bytes
):
    index = filled(tmp_path / "index", storage)
    queries = [TEXTS[7], TEXTS[8], "w9", TEXTS[30]]
    expected = [{hit.id: hit.score for hit in hits} for hits in index.search_many(queries, k=N)]
    rewrite(index, "07", change, "tokens" if storage == "float16" else "codes")
    damaged = Index.open(index.uri, ENCODER, cache_bytes=cache_bytes)
    for hits, scores in zip(damaged.search_many(queries, k=N), expected, strict=True):
        del scores["07"]
        assert {hit.id for hit in hits} == set(scores)
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-5)
    (message,) = [message for message in caplog.messages if "document '07'" in message]
    assert f"document '07' of the index {index.uri} has" in message and reason in message and "add it again" in message
    damaged.add([{"id": "07", "text": TEXTS[7] + " again"}])
    assert damaged.search(TEXTS[7], k=1)[0].id == "07"


def flip_a_bit(values):
    values.view(np.uint8)[1, -1] ^= 1


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_flipped_bit_that_leaves_a_valid_vector_is_logged_and_found_by_a_check(
    tmp_path, caplog, storage, cache_bytes
):
    index = filled(tmp_path / "index", storage)
    rewrite(index, "07", flip_a_bit, "tokens" if storage == "float16" else "codes", keeps_checksum=True)
    damaged = Index.open(index.uri, ENCODER, cache_bytes=cache_bytes)
    found = {hit.id for hit in damaged.search(TEXTS[8], k=N)}
    assert len(found) == N - 1 and "07" not in found
    assert (
        "document '07' of the index" in caplog.text and "vectors that differ from those that were added" in caplog.text
    )
    (problem,) = check(index.uri).problems
    assert problem.document == "07" and "vectors that differ" in problem.message
    damaged.add([{"id": "07", "text": TEXTS[7] + " again"}])
    assert damaged.search(TEXTS[7], k=1)[0].id == "07" and not check(index.uri).problems


def test_a_changed_id_is_logged(tmp_path, caplog):
    index = filled(tmp_path / "index", "float16")
    lancedb.connect(index.uri).open_table("documents").update(where="id = '07'", values={"id": "70 000"})
    assert index.search(TEXTS[7], k=1)[0].id == "70 000"
    assert "document '70 000'" in caplog.text and "an id or metadata that differ" in caplog.text


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_an_index_without_checksums_is_searched_written_to_and_checked(tmp_path, caplog, storage):
    index = filled(tmp_path / "index", storage)
    lancedb.connect(index.uri).open_table("documents").drop_columns(["metadata_checksum", "vectors_checksum"])
    old = Index.open(index.uri, ENCODER)
    assert old.search(TEXTS[7], k=1)[0].id == "07"
    assert old.add([{"id": "07", "text": TEXTS[7], "metadata": {"n": 1}}, {"id": "new", "text": "new"}]).added == 1
    assert old.search(TEXTS[7], k=1)[0].metadata == {"n": 1} and old.search("new", k=1)[0].id == "new"
    assert not check(index.uri).problems and not caplog.messages


@pytest.mark.parametrize("file", ["part_0_tokens.lance", "part_0_invert.lance", "page_data.lance"])
def test_a_changed_byte_in_a_search_index_is_logged_and_a_repair_builds_it_again(tmp_path, caplog, file):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"n": int})
    index.add({"id": f"{i:02}", "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS))
    index.optimize(keep=timedelta(0))
    search = {"k": N, "lexical_weight": 0.9, "filter": F("n") < 50}
    expected = index.search("w7 w8", **search)
    for path in (Path(index.uri) / "documents.lance" / "_indices").glob(f"*/{file}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    damaged = Index.open(index.uri, ENCODER)
    with suppress(StoreError):
        damaged.search("w7 w8", **search)
    assert "a search index of the index" in caplog.text and "differs from what was written" in caplog.text
    assert any(file in problem.message for problem in check(index.uri).problems)
    assert "search indexes were built again: text, meta_n" in check(index.uri, repair=True).repaired
    assert not check(index.uri).problems
    caplog.clear()
    assert Index.open(index.uri, ENCODER).search("w7 w8", **search) == expected and not caplog.messages


def versions(index):
    return sorted((Path(index.uri) / "documents.lance" / "_versions").glob("*.manifest"))


def test_a_lost_newest_version_is_logged_and_found_by_a_check(tmp_path, caplog):
    index = filled(tmp_path / "index", "float16")
    before = {*versions(index)}
    index.delete("07")
    for path in {*versions(index)} - before:
        path.unlink()
    older = Index.open(index.uri, ENCODER)
    assert older.count() == N and "but version" in caplog.text and "its files are missing" in caplog.text
    (problem,) = check(index.uri).problems
    assert "was committed: its files are missing" in problem.message and not problem.is_repairable
    older.delete("07")
    assert not check(index.uri).problems


def test_a_sound_index_is_not_said_to_have_lost_a_version(tmp_path, caplog):
    index = filled(tmp_path / "index", "residual")
    index.candidates = Auto(exhaustive_tokens=10)
    for _ in range(2):
        index.optimize(keep=timedelta(0))
        index.add([{"id": "07", "text": TEXTS[7], "metadata": {"n": 1}}])
    shutil.copytree(index.uri, tmp_path / "copy")
    shutil.rmtree(index.uri)
    rebuilt = filled(index.uri, "float16")
    assert Index.open(rebuilt.uri, ENCODER).count() == Index.open(tmp_path / "copy", ENCODER).count() == N
    assert not caplog.messages


@pytest.mark.parametrize("storage", ["float16", "int8", "residual"])
def test_a_reranker_encodes_a_document_whose_stored_vectors_are_damaged(tmp_path, storage):
    index = filled(tmp_path / "index", storage)
    expected = Reranker(index=index).rerank(TEXTS[7], [Document("07", TEXTS[7]), Document("08", TEXTS[8])])
    column, at = ("tokens", 0) if storage == "float16" else ("codes", 2 if storage == "residual" else 0)
    rewrite(index, "07", put(at, [np.nan] if column == "tokens" else INFINITY), column)
    assert np.isnan(index.score(TEXTS[7], ["07", "08"])).tolist() == [True, False]
    hits = Reranker(index=index).rerank(TEXTS[7], [Document("07", TEXTS[7]), Document("08", TEXTS[8])])
    assert [hit.id for hit in hits] == ["07", "08"]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=0.2)


def test_a_damaged_vector_is_not_encoded_and_its_document_stays_as_it_is(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, storage="residual")
    index.add({"id": f"{i:02}", "text": text} for i, text in enumerate(TEXTS))
    rewrite(index, "07", put(0, [np.nan]), "tokens")
    encode_residuals(index._store, min_tokens=256)
    states = index._store.snapshot().states()
    assert states.ids[~states.is_coded].tolist() == ["07"] and states.n_tokens.tolist() == [3] * N
    assert index.search(TEXTS[8], k=1)[0].id == "08"


def with_lists(folder):
    """An index with centroid lists, and their table."""
    index = Index.create(folder / "index", ENCODER)
    index.add({"id": f"{i:02}", "text": text} for i, text in enumerate(TEXTS))
    index.candidates = Auto(exhaustive_tokens=10, depth_tokens=50, min_depth=5)
    index.optimize()
    database = lancedb.connect(index.uri)
    (name,) = [name for name in database.list_tables().tables if name.startswith("assigned_")]
    return index, database.open_table(name)


def found(index):
    return [hit.id for hit in index.search(TEXTS[7], k=3)]


def found_anew(index):
    """What a new handle finds, which reads the lists from the disk."""
    opened = Index.open(index.uri, ENCODER)
    opened.candidates = index.candidates
    return found(opened)


@pytest.mark.parametrize("centroid", [256, 257, 999, 65_535])
def test_a_list_of_a_centroid_that_does_not_exist_is_not_used_and_the_log_says_so(tmp_path, caplog, centroid):
    index, table = with_lists(tmp_path)
    row = table.search().where("row_id = 7").limit(None).to_arrow()
    table.delete("row_id = 7")
    table.add(row.set_column(2, row.schema.field("centroids"), pa.array([[3, centroid]], pa.list_(pa.uint16()))))
    assert found_anew(index) == found(index)
    assert f"refers to centroid {centroid}, but there are 256" in caplog.text
    assert index.uri in caplog.text


def test_lists_with_another_centroid_that_exists_are_not_used_and_the_log_says_so(tmp_path, caplog):
    index, table = with_lists(tmp_path)
    rows = table.to_arrow()
    lists = rows["centroids"].to_pylist()
    lists[7] = [(lists[7][0] + 1) % 256, *lists[7][1:]]
    table.delete("true")
    table.add(rows.set_column(2, rows.schema.field("centroids"), pa.array(lists, pa.list_(pa.uint16()))))
    assert found_anew(index) == found(index)
    assert "differ from those that were written" in caplog.text and "every document is scored" in caplog.text


def test_an_empty_list_table_is_no_error(tmp_path):
    index, table = with_lists(tmp_path)
    table.delete("true")
    assert found_anew(index) == found(index)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"metadata": '{"cut": '}, "metadata that is not valid JSON"),
        ({"metadata": ""}, "metadata that is not valid JSON"),
        ({"metadata": "\x00\x01"}, "metadata that is not valid JSON"),
        ({"text": "w7 w8 w0"}, "a text that differs from the one that was added"),
        ({"metadata": "{ }"}, "an id or metadata that differ from what was added"),
    ],
)
def test_damaged_text_or_metadata_is_logged_and_keeps_no_search_from_answering(tmp_path, caplog, values, reason):
    index = filled(tmp_path / "index", "float16")
    lancedb.connect(index.uri).open_table("documents").update(where="id = '07'", values=values)
    hits = index.search(TEXTS[7], k=3)
    assert [hit.id for hit in hits] == ["07", "06", "08"] or [hit.id for hit in hits] == ["07", "08", "06"]
    assert hits[0].metadata == {} and index.get(["07"])[0].metadata == {}
    assert f"document '07' of the index {index.uri} has {reason}" in caplog.text


def test_a_panic_of_the_database_is_an_error_that_names_the_index(tmp_path):
    index = filled(tmp_path / "index", "int8")
    newest = min((tmp_path / "index" / "documents.lance" / "_versions").iterdir())
    newest.write_bytes(newest.read_bytes().replace(b"uint8", b"uintx"))
    with pytest.raises(StoreError, match=f"cannot open the index {index.uri}: LanceDB panicked"):
        Index.open(index.uri, ENCODER)


def assigned(**changes):
    parts = {
        "row_ids": np.array([1, 5, 9]),
        "updated": np.array([1, 1, 2]),
        "offsets": offsets_of([2, 1, 1]),
        "centroids": np.array([0, 3, 1, 2], np.uint16),
    }
    return Assignments(Codebook(np.eye(4, dtype=np.float32)), **(parts | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"centroids": np.array([0, 4, 1, 2], np.uint16)}, "refers to centroid 4, but there are 4"),
        ({"offsets": np.array([0, 3, 2, 4])}, "must not decrease"),
        ({"offsets": np.array([0, 2, 3, 5])}, r"from 0 to the number of tokens \(4\)"),
        ({"offsets": np.array([-1, 2, 3, 4])}, "from 0 to"),
        ({"offsets": np.array([0, 2, 4])}, "3 rows need as many versions and one more offset, got 3 and 3"),
        ({"updated": np.array([1, 1])}, "got 2 and 4"),
        ({"row_ids": np.array([1, 9, 5])}, "row ids must increase"),
        ({"row_ids": np.array([1, 5, 5])}, "row ids must increase"),
    ],
)
def test_assignments_that_do_not_fit_together_are_refused(changes, said):
    assert len(assigned()) == 3
    with pytest.raises(ShapeError, match=said):
        assigned(**changes)


def test_damage_names_the_items_and_emptied_items_keep_their_positions():
    codec = Codec("residual", 4, np.eye(4, dtype=np.float32))
    codes = codec.encode(np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]], np.array([0, 1, 2, 3, 0]))
    codes[1, 0] = 4
    codes[4, 2:4] = NAN
    batch = CodedBatch(codes, offsets_of([1, 2, 0, 1, 1]), codec)
    assert batch.damage() == {
        4: "a token with a scale of NaN or infinity",
        1: "a token that refers to a centroid beyond the 4 there are",
    }
    rest = batch.emptied(list(batch.damage()))
    assert rest.lengths.tolist() == [1, 0, 0, 1, 0] and rest.damage() == {}
    assert MaxSimScorer().score(np.eye(4, dtype=np.float32)[:1], rest) == pytest.approx(
        [1, -np.inf, -np.inf, 0, -np.inf]
    )


def test_a_batch_whose_items_are_all_damaged_can_be_scored_and_pooled():
    batch = TokenBatch.unchecked(np.full((2, 3), np.nan, np.float32), offsets_of([1, 1]))
    rest = batch.emptied(list(batch.damage()))
    assert MaxSimScorer().score(np.ones((1, 3), np.float32), rest).tolist() == [-np.inf, -np.inf]
    assert rest.pooled().tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_noticed_wherever_it_is(value, dtype):
    largest = np.finfo(dtype).max
    for position in range(35):
        vectors = np.full((5, 7), largest, dtype) * np.where(np.arange(7) % 2, -1, 1).astype(dtype)
        assert all_finite(vectors)
        vectors.flat[position] = value
        assert not all_finite(vectors)
    assert all_finite(np.empty((0, 7), dtype))


def damaged_documents():
    """Return documents of which those at positions 1 and 3 are damaged, and a query."""
    good, bad = [[1.0, 0.0], [0.0, 1.0]], [[np.nan, 0.0], [np.inf, np.inf]]
    vectors = np.array([*good, *bad, *good[:1], *bad[1:], *good], np.float32)
    return TokenBatch.unchecked(vectors, offsets_of([2, 2, 1, 1, 2])), np.array([[0.6, 0.8]], np.float32)


def test_a_score_that_is_not_finite_is_never_a_rank_and_costs_no_good_document_its_place(backend):
    documents, query = damaged_documents()
    scorer, expected = MaxSimScorer(backend=backend), [0.8, -np.inf, 0.6, -np.inf, 0.8]
    assert scorer.score(query, documents) == pytest.approx(expected)
    queries = TokenBatch(query, offsets_of([1]))
    for k, positions in ((1, [0, 4]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 2, 4])):
        assert scorer.top_k(queries, documents, k)[0].positions.tolist() == positions
        assert DeviceDocuments.upload(documents, "cpu").top_k(queries, k)[0].positions.tolist() == positions
    assert DeviceDocuments.upload(documents, "cpu").score_many(queries)[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_top_k_leaves_out_what_is_not_finite(value):
    scores, ids = np.array([1, value, 3, value, 2], np.float32), ["a", "b", "c", "d", "e"]
    assert [top_k(scores, ids, k) for k in (1, 2, 3, 5)] == [[2], [2, 4], [2, 4, 0], [2, 4, 0]]
    assert top_k(np.full(3, value, np.float32), ids, 2) == []


class Scaled(HashEncoder):
    """Vectors times a factor."""

    def __init__(self, factor):
        super().__init__(16)
        self.factor = factor

    def encode_documents(self, texts):
        batch = super().encode_documents(texts)
        return TokenBatch(batch.vectors * np.float32(self.factor), batch.offsets, batch.spans)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("factor", [1e6, 1e8, 1e30, -1e38])
def test_vectors_that_are_not_normalised_are_refused_by_every_storage(tmp_path, storage, factor):
    index = filled(tmp_path / "index", storage)
    loud = Index.open(index.uri, Scaled(factor))
    with pytest.raises(InputError, match=f"beyond 65,504, which {storage} storage cannot hold: normalise them"):
        loud.add([{"id": "loud", "text": "w7 w8"}, {"id": "07", "text": "w7"}])
    assert index.count() == N
    assert [hit.id for hit in index.search(TEXTS[7], k=1)] == ["07"]


@pytest.mark.parametrize("storage", STORAGES[1:])
def test_codecs_take_what_float16_takes_and_refuse_the_rest(storage):
    centroids = np.eye(8, dtype=np.float32) if storage == "residual" else None
    codec, nearest = Codec(storage, 8, centroids), np.zeros(1, np.int64)
    for value in (65_504, -65_504, 1e-7, 1):
        codes = codec.encode(np.full((1, 8), value, np.float32), nearest)
        assert CodedBatch(codes, offsets_of([1]), codec).damage() == {}
        assert np.isfinite(codec.decode(codes)).all()
    for value in (65_520, -65_520, np.inf, -np.inf, np.nan):
        with pytest.raises(InputError, match=f"beyond 65,504, which {storage} storage cannot hold"):
            codec.encode(np.array([[0, 0, value, 0, 0, 0, 0, 0]], np.float32), nearest)
