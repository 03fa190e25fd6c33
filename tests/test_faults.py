"""Bad input and bad luck: each gets a clear error, and what was stored stays."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest

from manyvec import (
    Document,
    EncoderError,
    F,
    FilterError,
    Index,
    IndexNotFoundError,
    InputError,
    ManifestError,
    StoreError,
    TokenBatch,
)
from manyvec.testing import HashEncoder

ENCODER = HashEncoder(16)


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"year": int})
    index.add([{"id": "a", "text": "one two"}, {"id": "b", "text": "three"}])
    return index


# Documents


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"id": "", "text": "x"}, "id must be a non-empty string, got ''"),
        ({"id": 7, "text": "x"}, r"id must be a non-empty string, got 7 of type int: use str\(id\)"),
        ({"id": None, "text": "x"}, "id must be a non-empty string"),
        ({"text": "x"}, "'id' is missing"),
        ({"id": "x"}, "document 'x': 'text' is missing"),
        ({"id": "x", "text": ""}, "document 'x' has no text"),
        ({"id": "x", "text": " \n\t"}, "document 'x' has no text"),
        ({"id": "x", "text": 3}, "document 'x': text must be a string, got int"),
        ({"id": "x", "text": "y", "title": "z"}, "document 'x': unknown key 'title'.*belongs in metadata"),
        ({"id": "x", "text": "y", "metadata": [1]}, "metadata must be a dict, got list"),
        (
            {"id": "x", "text": "y", "metadata": {"a": {"b": [1, object()]}}},
            r"metadata\['a.b\[1\]'\] is of type object, which",
        ),
        ({"id": "x", "text": "y", "metadata": {"n": float("inf")}}, r"metadata\['n'\] is inf, which JSON cannot hold"),
        ({"id": "x", "text": "y", "metadata": {1: "int key"}}, "has the key 1: keys must be strings, use '1'"),
        ({"id": "x", "text": "y\ud800"}, "document 'x': its text contains a lone surrogate at character 1"),
        ({"id": "x\ud800", "text": "y"}, "lone surrogate"),
        ({"id": "x", "text": "y", "metadata": {"s": "\ud800"}}, "lone surrogate"),
        ({"id": "x", "text": "y", "metadata": {"year": "2024"}}, r"metadata\['year'\] must be of type int, got '2024'"),
        ({"id": "x", "text": "y", "metadata": {"year": True}}, "must be of type int, got True"),
        ({"id": "x", "text": "y", "metadata": {"year": 2**70}}, "64 bits"),
        ("just a text", "a document must be a dict or a Document, got str"),
    ],
)
def test_a_document_that_cannot_be_stored_is_named_and_nothing_of_its_batch_is_stored(index, document, said):
    with pytest.raises(InputError, match=said):
        index.add([{"id": "good", "text": "fine"}, document])
    assert index.count() == 2


def test_an_error_late_in_a_long_call_says_how_much_is_stored(index):
    documents = ({"id": str(i), "text": "word" if i != 600 else ""} for i in range(700))
    with pytest.raises(InputError, match=r"document '600' has no text.*512 documents before it are stored"):
        index.add(documents)
    assert index.count() == 2 + 512


def test_a_text_of_200_000_characters_is_stored_and_found(index):
    text = "word " * 39_999 + "needle"
    index.add([{"id": "long", "text": text}])
    (hit,) = index.search("needle", k=1)
    assert (hit.id, hit.text) == ("long", text)
    assert index.info().tokens == 3 + 40_000


def test_a_text_in_which_the_model_finds_no_token_is_refused(index):
    class Deaf(HashEncoder):
        def encode_documents(self, texts):
            return super().encode_documents(["" for _ in texts])

    deaf = Index.open(index.uri, Deaf(16))
    with pytest.raises(InputError, match="document 'x': hash-16 finds no token in its text"):
        deaf.add([{"id": "x", "text": "anything"}])
    assert index.count() == 2


def test_documents_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        Document("a", "b").text = "c"


# Encoders


class NanEncoder(HashEncoder):
    def encode_documents(self, texts):
        batch = super().encode_documents(texts)
        vectors = batch.vectors.copy()
        vectors[-1, 0] = np.nan
        return TokenBatch(vectors, batch.offsets, batch.spans)


def test_not_a_number_from_an_encoder_stores_nothing(index):
    broken = Index.open(index.uri, NanEncoder(16))
    with pytest.raises(InputError, match="item 1 of the batch has a token vector with NaN or infinity"):
        broken.add([{"id": "x", "text": "fine"}, {"id": "y", "text": "broken"}])
    assert index.count() == 2


def test_values_that_float16_cannot_hold_are_refused(index):
    class Loud(HashEncoder):
        def encode_documents(self, texts):
            batch = super().encode_documents(texts)
            return TokenBatch(batch.vectors * 1e6, batch.offsets, batch.spans)

    with pytest.raises(InputError, match="beyond 65,504"):
        Index.open(index.uri, Loud(16)).add([{"id": "x", "text": "loud"}])
    assert index.count() == 2


def test_an_encoder_that_gives_too_few_texts_is_refused(index):
    class Lazy(HashEncoder):
        def encode_documents(self, texts):
            return super().encode_documents(texts[:1])

        encode_queries = encode_documents

    lazy = Index.open(index.uri, Lazy(16))
    with pytest.raises(EncoderError, match="for 2 documents"):
        lazy.add([{"id": "x", "text": "one"}, {"id": "y", "text": "two"}])
    with pytest.raises(EncoderError, match="for 2 queries"):
        lazy.search_many(["one", "two"])


# Opening


def test_a_wrong_model_is_refused_at_open(index):
    with pytest.raises(ManifestError, match="holds 16-dim vectors of hash-16; the encoder is hash-32 .32-dim.*Open it"):
        Index.open(index.uri, HashEncoder(32))

    class Retrained(HashEncoder):
        fingerprint = "other weights"

    with pytest.raises(ManifestError, match="other weights or settings under the same name"):
        Index.open(index.uri, Retrained(16))


def test_an_index_whose_encoder_cannot_be_found_says_how_to_pass_it(index, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened = Index.open(index.uri)
    assert opened.count() == 2
    assert opened.get("a")[0].text == "one two"
    with pytest.raises(EncoderError, match=r"built with 'hash-16', which cannot be loaded here. Pass it: Index.open"):
        opened.search("one")


@pytest.mark.parametrize("place", ["nowhere", "", "file"])
def test_opening_where_no_index_is_makes_nothing(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IndexNotFoundError, match="there is no index at"):
        Index.open(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


def test_an_index_needs_a_place():
    with pytest.raises(InputError, match="needs a folder"):
        Index.open("")


def with_manifest(index, written):
    """The index, its manifest replaced."""
    import lancedb

    table = lancedb.connect(index.uri).open_table("documents")
    table.update_field_metadata({"path": "tokens", "metadata": {"manyvec": written}})
    return index.uri


@pytest.mark.parametrize("written", ["", "{", "[]", "{}", '{"format": 1}', "null", '{"format": 1, "dim": "x"}'])
def test_a_damaged_manifest_is_refused(index, written):
    with pytest.raises(ManifestError, match="the manifest of the index .* is damaged"):
        Index.open(with_manifest(index, written), ENCODER)


def test_a_manifest_of_another_format_says_so(index):
    with pytest.raises(ManifestError, match="has format 99, this manyvec reads formats 1 and 2"):
        Index.open(with_manifest(index, json.dumps({"format": 99})), ENCODER)


def test_a_table_of_another_program_is_refused(tmp_path):
    import lancedb

    lancedb.connect(tmp_path).create_table("documents", pa.table({"id": ["a"], "text": ["b"]}))
    with pytest.raises(ManifestError, match="another program wrote it"):
        Index.open(tmp_path, ENCODER)


def test_a_filter_on_an_undeclared_column_lists_those_declared(index):
    for call in (index.search, index.count, index.delete):
        with pytest.raises(FilterError, match="no filter column 'author'; declared are: year: int"):
            call(**{"filter": F("author") == "x"} | ({"query": "one"} if call == index.search else {}))
    assert index.count() == 2


def test_an_index_deleted_under_a_reader_is_an_error_not_a_crash(index):
    import shutil

    index.search("one")
    shutil.rmtree(index.uri)
    with pytest.raises(StoreError, match="cannot read the index"):
        index.search("one")
    assert "hash-16" in repr(index)


# Disks


def can_mount(folder, *options):
    return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    if not can_mount(folder, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        pytest.skip("this system does not let us mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def big_documents(n):
    rng = np.random.default_rng(0)
    return [{"id": f"{i:05d}", "text": " ".join(f"w{w}" for w in rng.integers(0, 10**6, size=100))} for i in range(n)]


def test_a_full_disk_in_the_middle_of_add_keeps_whole_batches_and_a_second_run_completes_it(small_disk):
    index = Index.create(small_disk / "index", ENCODER)
    documents = big_documents(3_000)
    with pytest.raises(StoreError, match="cannot write to the index .*documents before it are stored"):
        index.add(documents)
    stored = Index.open(index.uri, ENCODER).count()
    assert stored % 256 == 0
    assert 256 <= stored < 3_000
    assert index.search(documents[0]["text"], k=1)[0].id == "00000"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    report = index.add(documents)
    assert (report.unchanged, report.added) == (stored, 3_000 - stored)
    assert index.count() == 3_000


def test_a_file_size_limit_in_the_middle_of_add_is_an_error_and_loses_nothing(tmp_path):
    """What every POSIX user can have: writes beyond a limit fail."""
    pytest.importorskip("resource", reason="needs POSIX resource limits")
    done = run_python(
        tmp_path,
        """
        import resource, signal, sys
        from manyvec import Index, StoreError
        from manyvec.testing import HashEncoder
        index = Index.create(sys.argv[1], HashEncoder(16))
        words = lambda n: " ".join(f"w{i}" for i in range(n))
        index.add([{"id": f"small {i}", "text": words(5)} for i in range(300)])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            index.add([{"id": f"large {i}", "text": words(400)} for i in range(300)])
        except StoreError as error:
            print("refused:", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(Index.open(sys.argv[1], HashEncoder(16)).count())
        """,
    )
    assert "refused: cannot write to the index" in done
    assert done.split()[-1] == "300"


def test_an_index_in_a_read_only_folder_can_be_searched_but_not_changed(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() == 0 and not can_mount(folder, "-t", "tmpfs", "tmpfs"):
        pytest.skip("root may write everywhere, and this system does not let us mount a read-only folder")
    index = Index.create(folder / "index", ENCODER)
    index.add([{"id": "a", "text": "one two"}])
    try:
        if os.geteuid() == 0:
            assert can_mount(folder, "-o", "remount,ro")
        else:
            for path in folder.rglob("*"):
                path.chmod(path.stat().st_mode & ~0o222)
        opened = Index.open(folder / "index", ENCODER)
        assert opened.search("one")[0].id == "a"
        with pytest.raises(StoreError, match="cannot write to the index"):
            opened.add([{"id": "b", "text": "three"}])
        with pytest.raises(StoreError, match="cannot create an index in"):
            Index.create(folder / "index" / "another", ENCODER)
        assert opened.count() == 1
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        else:
            for path in folder.rglob("*"):
                path.chmod(path.stat().st_mode | 0o200)


# Kills


def run_python(tmp_path, code):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, path, tmp_path / "index"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ADD_SLOWLY = """
import sys, time
from manyvec import Index
from manyvec.testing import HashEncoder

class Slow(HashEncoder):
    def encode_documents(self, texts):
        print("encoding", flush=True)
        time.sleep(0.05)
        return super().encode_documents(texts)

index = Index.create(sys.argv[1], Slow(16), exist_ok=True)
report = index.add({"id": f"{i:05d}", "text": f"document number {i} " * 20} for i in range(5_000))
print(report.unchanged, report.added)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("n_batches", [1, 4])
def test_a_killed_add_leaves_whole_batches_and_a_second_run_completes_it(tmp_path, n_batches):
    script = tmp_path / "add.py"
    script.write_text(ADD_SLOWLY)
    command = [sys.executable, script, tmp_path / "index"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(n_batches + 1):
            assert process.stdout.readline() == "encoding\n"
        # Somewhere between encoding and commit.
        time.sleep(0.06)
        process.send_signal(signal.SIGKILL)
    index = Index.open(tmp_path / "index", ENCODER)
    stored = index.count()
    assert stored % 256 == 0
    assert n_batches * 256 <= stored < 5_000
    assert len(index.search("document number 7", k=5_000)) == stored
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == f"{stored} {5_000 - stored}"
    assert index.count() == 5_000
