"""Token vectors that were computed elsewhere: stored with their documents, searched by, brought in and out as files."""

import json
import os
import pickle
import sqlite3
from dataclasses import replace

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from manyvec import Document, Index, InputError, ManifestError, ShapeError, Vectors, load_encoder
from manyvec.cli import main
from manyvec.files import FileReport, read_collection
from manyvec.storage.maintenance.check import check
from manyvec.testing import ColorEncoder, CountingEncoder, HashEncoder

TEXTS = {"a": "Bread is made of flour and water.", "b": "The museum is closed on Mondays.", "c": "A tea from Assam."}


def encoded(text):
    """The vectors and spans of one document, as another program might have computed them."""
    batch = HashEncoder().encode_documents([text])
    return batch.vectors, batch.spans


def documents(*, spans=True):
    made = {id: encoded(text) for id, text in TEXTS.items()}
    return [
        Document(id, TEXTS[id], {"n": i}, vectors=vectors, spans=of_text if spans else None)
        for i, (id, (vectors, of_text)) in enumerate(made.items())
    ]


def created(tmp_path, **options):
    index = Index.create(tmp_path / "index", Vectors("jina-colbert-v2", 64), **options)
    index.add(documents())
    return index


# Adding and searching


def test_vectors_from_elsewhere_are_searched_as_if_they_had_been_encoded_here(tmp_path):
    created(tmp_path)
    index = Index.open(tmp_path / "index")  # the index knows that nothing has to be loaded
    here = Index.create(tmp_path / "here", HashEncoder())
    here.add([{"id": id, "text": text} for id, text in TEXTS.items()])
    for query in ("closed museum", "flour", "tea from Assam"):
        vectors = HashEncoder().encode_queries([query])
        (a, b, c), expected = index.search(vectors), here.search(query)
        assert [(hit.id, hit.score) for hit in (a, b, c)] == [(hit.id, hit.score) for hit in expected]
        assert index.search(vectors[0])[0].id == a.id
    assert (index.model, index.info().dim, a.metadata) == ("jina-colbert-v2", 64, {"n": 2})


def test_a_query_of_token_vectors_finds_the_passage_to_quote(tmp_path):
    index = created(tmp_path)
    query = HashEncoder().encode_queries(["museum closed"])
    assert index.search(query, k=1, passage_chars=25)[0].passage.text == "The museum is closed on"
    index.add(documents(spans=False))
    assert index.search(query, k=1, passage_chars=25)[0].passage is None
    with pytest.raises(InputError, match="every query is a string"):
        index.search_many([query, "museum"], passage_chars=25)


def test_strings_and_images_are_refused_with_what_to_pass_instead(tmp_path):
    index = created(tmp_path)
    with pytest.raises(InputError, match=r"jina-colbert-v2 are .* shape \(n_tokens, 64\), got a string"):
        index.search("museum")
    with pytest.raises(InputError, match="got an image alone"):
        index.search(b"image")
    with pytest.raises(InputError, match="document 'd' has no vectors"):
        index.add([{"id": "d", "text": "text alone"}])
    with pytest.raises(InputError, match="non-empty string, got ''"):
        Vectors("", 64)
    with pytest.raises(InputError, match="dim must be a positive integer, got 0"):
        Vectors("m", 0)


def test_unchanged_vectors_are_left_alone_and_changed_ones_replaced(tmp_path):
    index = created(tmp_path)
    report = index.add(documents())
    assert (report.added, report.updated, report.unchanged) == (0, 0, 3)
    half = [replace(document, vectors=document.vectors.astype(np.float16)) for document in documents()]
    assert index.add(half).unchanged == 3
    turned = Document("a", TEXTS["a"], {"n": 0}, vectors=-documents()[0].vectors, spans=documents()[0].spans)
    assert index.add([turned]).updated == 1
    np.testing.assert_allclose(index.token_vectors("a").vectors, turned.vectors, atol=1e-3)
    assert index.add([Document("a", TEXTS["a"], {"n": 9}, vectors=turned.vectors, spans=turned.spans)]).updated == 1
    assert not check(index.uri).problems


@pytest.mark.parametrize("storage", ["int8", "int4", "binary"])
def test_vectors_from_elsewhere_are_coded_pooled_and_optimized_like_others(tmp_path, storage):
    index = created(tmp_path, storage=storage, pool_factor=2)
    index.optimize()
    assert index.search(HashEncoder().encode_queries(["closed museum"]), k=1)[0].id == "b"
    assert index.info().tokens == sum((len(d.vectors) + 1) // 2 for d in documents())


def test_pages_bring_their_patches_along(tmp_path, png):
    encoder = ColorEncoder()
    from PIL import Image

    patches = encoder.encode_images([Image.new("RGB", (32, 16), "red")])
    index = Index.create(tmp_path / "index", Vectors("colpali-api", 64))
    index.add([Document("p", image=png, vectors=patches.vectors, spans=patches.spans), *documents()])
    (hit,) = index.search(encoder.encode_queries(["red"]), k=1)
    assert (hit.id, hit.is_page, round(hit.score, 3)) == ("p", True, 1.0)
    assert [hit.is_page for hit in index.search(encoder.encode_queries(["museum"]), k=1)] == [False]
    assert index.get("p")[0].image == png


@pytest.fixture
def png():
    image = pytest.importorskip("PIL.Image")
    import io

    buffer = io.BytesIO()
    image.new("RGB", (32, 16), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_vectors_go_under_the_name_of_a_model_only_if_that_is_said(tmp_path):
    encoder = CountingEncoder()
    index = Index.create(tmp_path / "index", encoder)
    with pytest.raises(InputError, match="document 'a' comes with vectors, but hash-64 encodes.*adopt_vectors=True"):
        index.add(documents())
    assert index.add([*documents(), {"id": "d", "text": "text alone"}], adopt_vectors=True).added == 4
    assert encoder.texts == ["text alone"]
    assert index.search("closed museum", k=1, passage_chars=25)[0].passage.text == "The museum is closed on"


def test_an_index_of_vectors_is_not_opened_with_a_model_of_the_same_name(tmp_path):
    Index.create(tmp_path / "index", Vectors("hash-64", 64))
    with pytest.raises(ManifestError, match="other weights or settings"):
        Index.open(tmp_path / "index", HashEncoder())
    with pytest.raises(ManifestError):
        Index.open(tmp_path / "index", Vectors("hash-64", 64, normalized=False))


# What is refused

UNIT = np.eye(3, 4, dtype=np.float32)


def filled(position, value):
    vectors = UNIT.copy()
    vectors[position] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (UNIT[0], r"\(n_tokens, dim\) floats with at least one row, got \(4,\) float32"),
        (UNIT[None], r"got \(1, 3, 4\)"),
        (UNIT[:0], r"got \(0, 4\)"),
        (UNIT.astype(np.int8), "got .* int8"),
        ([[1.0, 0.0], [1.0]], "rows of equal length"),
        (np.array([["a"]]), "floats"),
        (filled(1, np.nan), "position 1 holds NaN or infinity"),
        (filled(2, np.inf), "position 2 holds NaN or infinity"),
        (filled(2, 0), "position 2 is zero: leave padding out"),
    ],
)
def test_vectors_that_cannot_be_right_are_named_with_their_position(vectors, message):
    with pytest.raises(ShapeError, match=f"document 'x': .*{message}"):
        Document("x", "some text", vectors=vectors)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 1], [1, 2]], r"\(n_tokens, 2\) = \(3, 2\) integers, got \(2, 2\)"),
        (np.zeros((3, 2)), "float64"),
        ([[0, 1], [1, 2], [8, 10]], r"the span \[8, 10\] at position 2 does not lie in its text of 9 characters"),
        ([[0, 1], [5, 4], [-1, -1]], "position 1"),
        ([[-1, 3], [1, 2], [1, 2]], "position 0"),
    ],
)
def test_spans_that_do_not_fit_are_named_with_their_position(spans, message):
    with pytest.raises(ShapeError, match=f"document 'x': .*{message}"):
        Document("x", "some text", vectors=UNIT, spans=spans)


def test_spans_without_vectors_and_other_dims_and_lengths_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="spans without vectors"):
        Document("x", "text", spans=[[0, 4]])
    index = Index.create(tmp_path / "index", Vectors("m", 4))
    with pytest.raises(ShapeError, match="document 'x': its vectors have 3 dimensions, those of the index .* have 4"):
        index.add([Document("x", "text", vectors=np.eye(3))])
    with pytest.raises(ShapeError, match="document 'x': the vector at position 1 has the length 7, not 1: normalise"):
        index.add([Document("x", "text", vectors=filled(1, [7, 0, 0, 0]))])
    assert index.count() == 0
    loose = Index.create(tmp_path / "loose", Vectors("m", 4, normalized=False))
    loose.add([{"id": "x", "text": "text", "vectors": 7 * UNIT, "spans": [[0, 4], [-1, -1], [0, 4]]}])
    assert Index.open(tmp_path / "loose").search(UNIT[:1])[0].score == 7


# Files of vectors, and collections of other programs


def run(capsys, *arguments):
    status = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def arrow_table(**columns):
    made = documents()
    vectors = pa.array([d.vectors.tolist() for d in made], pa.list_(pa.list_(pa.float32(), 64)))
    spans = pa.array([d.spans.tolist() for d in made], pa.list_(pa.list_(pa.int32(), 2)))
    return pa.table({"id": [*TEXTS], "text": [*TEXTS.values()], "vectors": vectors, "spans": spans, **columns})


def same(found, *, spans=True):
    """Whether documents are those of `documents()`, metadata aside."""
    found = list(found)
    assert [(d.id, d.text) for d in found] == list(TEXTS.items())
    for document, expected in zip(found, documents(), strict=True):
        np.testing.assert_array_equal(document.vectors, expected.vectors)
        assert (document.spans is not None) == spans
        if spans:
            np.testing.assert_array_equal(document.spans, expected.spans)
    return found


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "lancedb", "lance"])
def test_tables_with_a_column_of_token_vectors_are_read_as_they_are(tmp_path, kind):
    path, table = tmp_path / f"x.{kind}", arrow_table(year=[2020, 2021, 2022])
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif kind == "feather":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        lancedb.connect(tmp_path / "db").create_table("pages", table)
        path = tmp_path / "db" if kind == "lancedb" else tmp_path / "db" / "pages.lance"
    found = same(read_collection(path))
    assert [d.metadata for d in found] == [{"year": 2020}, {"year": 2021}, {"year": 2022}]


def test_columns_are_recognised_or_named_and_the_rest_becomes_metadata(tmp_path):
    table = arrow_table(metadata=['{"a": 1}', "{}", None], dense=[[0.5], [0.25], [0.0]], raw=[b"1", b"2", b"3"])
    names = {"text": "caption", "vectors": "colbert", "id": "key"}
    renamed = table.rename_columns([names.get(name, name) for name in table.column_names]).drop_columns(["spans"])
    pq.write_table(renamed, tmp_path / "x.parquet")
    found = same(read_collection(tmp_path / "x.parquet", id_column="key", text_column="caption"), spans=False)
    assert [d.metadata for d in found] == [{"a": 1}, {}, {}]
    unnamed = list(read_collection(tmp_path / "x.parquet"))
    assert (unnamed[1].id, unnamed[1].text) == ("x.parquet#row=2", "x.parquet#row=2")
    assert unnamed[1].metadata == {"key": "b", "caption": TEXTS["b"]}


def arrays(folder, *, lengths=False):
    made = documents()
    counts = [len(d.vectors) for d in made]
    rows = "\n".join(json.dumps({"id": d.id, "text": d.text, "n": i}) for i, d in enumerate(made))
    (folder / "texts.jsonl").write_text(rows)
    numbers = np.array(counts if lengths else [0, *np.cumsum(counts)])
    return np.concatenate([d.vectors for d in made]), np.concatenate([d.spans for d in made]), numbers


@pytest.mark.parametrize("lengths", [False, True])
def test_arrays_are_read_beside_the_texts_they_belong_to(tmp_path, lengths):
    vectors, spans, numbers = arrays(tmp_path, lengths=lengths)
    np.save(tmp_path / "x.npy", vectors)
    np.save(tmp_path / "n.npy", numbers)
    texts = tmp_path / "texts.jsonl"
    found = same(read_collection(tmp_path / "x.npy", texts=texts, offsets=tmp_path / "n.npy"), spans=False)
    assert [d.metadata for d in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
    (tmp_path / "n.npy").rename(tmp_path / ("x.lengths.npy" if lengths else "x.offsets.npy"))
    same(read_collection(tmp_path / "x.npy", texts=texts), spans=False)
    tensors = {"embeddings": vectors, "spans": spans, "doclens" if lengths else "offsets": numbers}
    save_file(tensors, tmp_path / "x.safetensors")
    same(read_collection(tmp_path / "x.safetensors", texts=texts))


def ragatouille(folder):
    folder.mkdir()
    passages = ["Bread is made of flour.", "It needs water.", "The museum is closed."]
    (folder / "collection.json").write_text(json.dumps(passages))
    (folder / "pid_docid_map.json").write_text(json.dumps({"0": "bread", "1": "bread", "2": "museum"}))
    (folder / "docid_metadata_map.json").write_text(json.dumps({"bread": {"year": 2020}, "museum": None}))
    return folder


def test_a_collection_of_ragatouille_keeps_its_texts_ids_and_metadata(tmp_path):
    folder = ragatouille(tmp_path / "wiki")
    assert [(d.id, d.text, d.metadata) for d in read_collection(folder)] == [
        ("bread#1", "Bread is made of flour.", {"year": 2020, "document_id": "bread"}),
        ("bread#2", "It needs water.", {"year": 2020, "document_id": "bread"}),
        ("museum", "The museum is closed.", {}),
    ]
    (folder / "docid_metadata_map.json").write_text("null")
    assert [d.metadata for d in read_collection(folder)][2] == {}
    (folder / "pid_docid_map.json").write_text('{"0": "bread"}')
    with pytest.raises(InputError, match="no id for passage 1"):
        list(read_collection(folder))


class Trap:
    """Unpickling it ends the process."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize(
    "name", ["documents_ids_to_plaid_ids", "old_documents_ids_to_plaid_ids", "document_ids_to_embeddings"]
)
def test_of_an_index_of_pylate_the_ids_are_read_and_no_pickle_is_loaded(tmp_path, name):
    folder, texts = tmp_path / "index", tmp_path / "texts.jsonl"
    folder.mkdir()
    with sqlite3.connect(folder / f"{name}.sqlite") as database:
        database.execute('CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)')
        database.executemany(
            'INSERT INTO "unnamed" VALUES (?, ?)', [(id, pickle.dumps(Trap())) for id in ("a", "b", "z")]
        )
    database.close()
    texts.write_text("\n".join(json.dumps({"id": id, "text": text, "n": 1}) for id, text in TEXTS.items()))
    report = FileReport()
    found = list(read_collection(folder, texts=texts, report=report))
    assert [(d.id, d.text, d.metadata, d.vectors) for d in found] == [(id, TEXTS[id], {"n": 1}, None) for id in "ab"]
    assert "1 documents" in report.notes[0] and report.notes[0].endswith("such as 'z'")
    (folder / f"{name}.sqlite").unlink()
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(Trap()))
    assert len(list(read_collection(folder, texts=texts, report=report))) == 3
    assert "a pickle, which is not loaded" in report.notes[1]


def test_what_is_exported_with_its_vectors_is_imported_without_encoding_anything(tmp_path, capsys):
    index = created(tmp_path)
    for name in ("x.parquet", "x.jsonl"):
        assert run(capsys, "export", tmp_path / name, "--index", index.uri, "--vectors")[0] == 0
        copy = tmp_path / f"copy of {name}"
        status, out, err = run(capsys, "import", tmp_path / name, "--index", copy, "--model", "jina-colbert-v2")
        assert (status, out) == (0, f"3 added, 0 updated, 0 unchanged; 3 documents of jina-colbert-v2 in {copy}\n"), err
        again = Index.open(copy)
        for got, stored in zip(again.get([*TEXTS], vectors=True), index.get([*TEXTS], vectors=True), strict=True):
            assert (got.id, got.text, got.metadata) == (stored.id, stored.text, stored.metadata)
            np.testing.assert_array_equal(got.vectors, stored.vectors)
            np.testing.assert_array_equal(got.spans, stored.spans)
        _, out, _ = run(capsys, "import", tmp_path / name, "--index", copy, "--json")
        assert json.loads(out)["unchanged"] == 3
    assert index.get("a")[0].vectors is None


def test_vectors_of_a_model_of_this_library_are_adopted_by_an_explicit_word(tmp_path, capsys, monkeypatch):
    minilm = load_encoder("minilm", device="cpu")
    index = Index.create(tmp_path / "index", minilm)
    index.add([{"id": id, "text": text} for id, text in TEXTS.items()])
    run(capsys, "export", tmp_path / "x.parquet", "--index", index.uri, "--vectors")
    arguments = ("import", tmp_path / "x.parquet", "--index", tmp_path / "copy")
    for wrong, said in (
        ((), "384-dim token vectors come along: name the model"),
        (("--adopt",), "--adopt needs --encoder"),
        (("--model", "m", "--encoder", "minilm"), "name either --model"),
    ):
        status, _, err = run(capsys, *arguments, *wrong)
        assert (status, said in err, (tmp_path / "copy").exists()) == (1, True, False)
    monkeypatch.setattr(type(minilm), "encode_documents", None)  # nothing is encoded
    assert run(capsys, *arguments, "--adopt", "--encoder", "minilm")[0] == 0
    found, expected = (
        each.search("opening days of museums", passage_chars=40) for each in (Index.open(tmp_path / "copy"), index)
    )
    assert [(hit.id, hit.score, hit.passage) for hit in found] == [(hit.id, hit.score, hit.passage) for hit in expected]


def test_texts_of_other_programs_are_encoded_anew(tmp_path, capsys):
    status, out, _ = run(capsys, "import", ragatouille(tmp_path / "wiki"), "--index", tmp_path / "index")
    assert (status, "3 added" in out, "of minilm" in out) == (0, True, True)
    assert Index.open(tmp_path / "index").search("when is the museum open", k=1)[0].id == "museum"
    vectors, _, numbers = arrays(tmp_path)
    np.save(tmp_path / "x.npy", vectors)
    np.save(tmp_path / "x.offsets.npy", numbers)
    options = ("--texts", tmp_path / "texts.jsonl", "--index", tmp_path / "index")
    status, _, err = run(capsys, "import", tmp_path / "x.npy", *options)
    assert (status, "comes with vectors, but minilm encodes" in err) == (1, True)
    status, _, err = run(capsys, "import", tmp_path / "x.npy", *options, "--model", "m")
    assert (status, "are for a new index" in err) == (1, True)


def broken(tmp_path, name):
    """A file or folder that cannot be imported, and options for it."""
    path = tmp_path / name
    texts = {"texts": tmp_path / "texts.jsonl"}
    vectors, _, numbers = arrays(tmp_path)
    if name == "ragged.parquet":
        pq.write_table(pa.table({"id": ["a"], "v": [[[1.0, 0.0], [1.0]]]}), path)
    elif name == "dense.parquet":
        pq.write_table(pa.table({"id": ["a"], "v": [[1.0, 0.0]]}), path)
    elif name == "two.parquet":
        pq.write_table(arrow_table().append_column("more", arrow_table()["vectors"]), path)
    elif name == "none.parquet":
        pq.write_table(pa.table({"id": ["a", "b"], "v": [[[1.0, 0.0]], None]}), path)
    elif name == "spans.parquet":
        pq.write_table(pa.table({"id": ["a"], "v": [[[1.0, 0.0]]], "spans": [[[0, 1], [0, 1]]]}), path)
    elif name == "index":
        created(tmp_path)
    elif name == "padded.npy":
        np.save(path, np.zeros((3, 5, 4)))
    elif name == "pickle.npy":
        np.save(path, np.array([Trap()], object), allow_pickle=True)
    elif name in ("short.npy", "long.npy", "where.npy"):
        np.save(path, vectors)
        if name != "where.npy":
            np.save(path.with_suffix(".offsets.npy"), numbers)
        lines = (tmp_path / "texts.jsonl").read_text().splitlines()
        (tmp_path / "texts.jsonl").write_text(
            "\n".join(lines[:2] if name == "short.npy" else [*lines, '{"text": "a"}'])
        )
    elif name == "lonely.npy":
        np.save(path, vectors)
        return path, {}
    elif name != "nowhere":
        path.write_bytes(b"no such format")
    return path, texts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such file or folder"),
        ("x.pdf", "expected a LanceDB database"),
        ("x.pkl", "expected a LanceDB database"),
        ("x.parquet", "cannot be read"),
        ("x.arrow", "cannot be read"),
        ("x.safetensors", "cannot be read"),
        ("x.jsonl", "line 1: not JSON"),
        ("ragged.parquet", "different dimensions"),
        ("dense.parquet", "no column of token vectors, lists of lists of floats, among: id"),
        ("two.parquet", "several columns of token vectors, vectors, more"),
        ("none.parquet", "document 'b' has no vectors in the column 'v'"),
        ("spans.parquet", r"one \[start, end\] for each vector"),
        ("index", "an index of manyvec: write its vectors with `manyvec export"),
        ("padded.npy", "without padding"),
        ("pickle.npy", "cannot be read"),
        ("short.npy", "has 2 documents, .* the vectors of 3"),
        ("long.npy", "more documents than"),
        ("where.npy", "name a file of offsets or lengths"),
        ("lonely.npy", "holds no texts"),
    ],
)
def test_what_cannot_be_imported_says_why_and_loads_no_pickle(tmp_path, name, said):
    path, options = broken(tmp_path, name)
    with pytest.raises(InputError, match=said):
        list(read_collection(path, **options))
