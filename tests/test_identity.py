"""An index deleted, rebuilt, replaced or moved under a live handle: the new one is served, or one clear error."""

import json
import shutil
import threading
from datetime import timedelta

import lancedb
import numpy as np
import pytest

from manyvec import F, Index, IndexNotFoundError, ManifestError, StoreError
from manyvec.candidates import Pooled
from manyvec.storage.maintenance.optimize import encode_residuals, extend_lists
from manyvec.storage.schema import Manifest
from manyvec.testing import HashEncoder
from manyvec.vectors.codec import STORAGES

ENCODER = HashEncoder(16)
OLD = [{"id": str(i), "text": text} for i, text in enumerate(["red apples", "green pears", "blue plums", "white figs"])]
# The same ids, other texts of the same length.
NEW = [{"id": str(i), "text": text} for i, text in enumerate(["fish sea", "whale ocean", "crab beach", "squid deep"])]


def build(uri, documents, *, n_commits=1, **options):
    """Build an index in place of what is there."""
    shutil.rmtree(uri, ignore_errors=True)
    index = Index.create(uri, options.pop("encoder", ENCODER), **options)
    for part in np.array_split(np.arange(len(documents)), n_commits):
        index.add([documents[i] for i in part])
    return index


def hits(index, query, **options):
    return [(hit.id, hit.text, round(hit.score, 4)) for hit in index.search(query, k=10, **options)]


@pytest.fixture
def uri(tmp_path):
    return tmp_path / "index"


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize("n_commits", [1, 2, 4])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_rebuilt_index_is_served_anew(uri, storage, n_commits, cache_bytes):
    build(uri, OLD, n_commits=2, storage=storage)
    live = Index.open(uri, ENCODER, cache_bytes=cache_bytes)
    assert live.search("red apples", k=1)[0].text == "red apples"
    fresh = build(uri, NEW, n_commits=n_commits, storage=storage)
    assert hits(live, "fish sea") == hits(fresh, "fish sea")
    assert hits(live, "red apples") == hits(fresh, "red apples")
    assert live.search("fish sea", k=1, evidence=True)[0].evidence.words[0].text == "fish"
    assert live.get("0")[0].text == "fish sea" and live.count() == 4
    assert np.array_equal(live.token_vectors("2").vectors, fresh.token_vectors("2").vectors)
    assert np.array_equal(live.score("fish sea", ["0", "3"]), fresh.score("fish sea", ["0", "3"]))


@pytest.mark.parametrize("storage", ["float16", "residual"])
def test_centroid_lists_and_codes_of_a_rebuilt_index_are_its_own(uri, storage):
    def words(seed):
        rng = np.random.default_rng(seed)
        return [{"id": str(i), "text": " ".join(f"w{w}" for w in rng.integers(0, 300, 30))} for i in range(300)]

    def built(seed):
        index = build(uri, words(seed), storage=storage)
        encode_residuals(index._store, min_tokens=1_000)
        extend_lists(index._store, more_than=0)
        return index

    built(1)
    live = Index.open(uri, ENCODER)
    live.rank(["w1 w2"], live.candidates)
    lists = live._reader.lists.over(live._reader.current())
    assert lists is not None
    fresh = built(2)
    current = live._reader.current()
    moved = live._reader.lists.over(current)
    assert moved is not lists and not len(moved.uncovered)
    assert moved.codebook.fingerprint == fresh._store.snapshot().assignments().codebook.fingerprint
    for query in (words(2)[7]["text"], words(1)[7]["text"]):
        assert hits(live, query) == hits(fresh, query)


def test_pooled_vectors_of_a_rebuilt_index_are_made_anew(uri):
    build(uri, OLD)
    live = Index.open(uri, ENCODER)
    live.candidates = Pooled()
    assert live.search("red apples", k=1, depth=1)[0].id == "0"
    build(uri, list(reversed(NEW)))
    for i, text in enumerate(["fish sea", "whale ocean", "crab beach", "squid deep"]):
        assert live.rank([text], live.candidates, depth=1) == [[str(i)]]


@pytest.mark.parametrize("way", ["moved", "copied into"])
def test_another_index_put_in_its_place_is_served(uri, tmp_path, way):
    build(uri, OLD)
    live = Index.open(uri, ENCODER)
    live.search("red apples")
    build(tmp_path / "other", NEW)
    shutil.rmtree(uri)
    if way == "moved":
        shutil.move(tmp_path / "other", uri)
    else:
        shutil.copytree(tmp_path / "other", uri)
    assert live.search("fish sea", k=1)[0].text == "fish sea"


def test_a_backup_put_back_is_served_and_so_is_what_is_added_to_it(uri, tmp_path):
    index = build(uri, OLD)
    shutil.copytree(uri, tmp_path / "backup")
    index.add([{"id": "0", "text": "fish sea"}])
    assert index.search("fish sea", k=1)[0].text == "fish sea"
    shutil.rmtree(uri)
    shutil.copytree(tmp_path / "backup", uri)
    # The same identity, and after this commit the same version as before.
    Index.open(uri, ENCODER).add([{"id": "0", "text": "crab beach"}])
    assert index.search("crab beach", k=1)[0].text == "crab beach"
    assert hits(index, "fish sea") == hits(Index.open(uri, ENCODER), "fish sea")


def test_an_index_rebuilt_with_the_table_dropped_through_lancedb_is_served_anew(uri):
    live = build(uri, OLD)
    live.search("red apples")
    lancedb.connect(uri).drop_table("documents")
    with pytest.raises((StoreError, IndexNotFoundError)):
        live.search("red apples")
    Index.create(uri, ENCODER).add(NEW)
    assert live.search("fish sea", k=1)[0].text == "fish sea"


def test_a_deleted_index_is_an_error_until_it_is_there_again(uri):
    live = build(uri, OLD)
    live.search("red apples")
    shutil.rmtree(uri)
    for call in (lambda: live.search("red"), live.count, live.ids, lambda: live.get("0"), lambda: live.add(NEW)):
        with pytest.raises((StoreError, IndexNotFoundError), match="index"):
            call()
    build(uri, NEW)
    assert live.search("fish sea", k=1)[0].text == "fish sea"
    assert live.add([{"id": "4", "text": "red apples"}]).added == 1


def test_a_rebuilt_index_of_another_model_is_refused_with_one_clear_error(uri):
    build(uri, OLD)
    live = Index.open(uri, ENCODER)
    live.search("red apples")

    class Other(HashEncoder):
        fingerprint = "other weights"

    for encoder in (HashEncoder(32), Other(16)):
        build(uri, NEW, encoder=encoder)
        for call in (lambda: live.search("fish"), lambda: live.add(OLD), lambda: live.score("fish", ["0"])):
            with pytest.raises(ManifestError, match="Open it with"):
                call()
        assert live.get("0")[0].text == "fish sea"
    build(uri, NEW)
    assert live.search("fish sea", k=1)[0].text == "fish sea"


def test_filter_columns_and_storage_are_those_of_the_new_index(uri):
    build(uri, [{**document, "metadata": {"n": i}} for i, document in enumerate(OLD)], filter_columns={"n": int})
    live = Index.open(uri, ENCODER)
    assert len(live.search("red", filter=F("n") > 0)) == 3
    build(uri, [{**d, "metadata": {"m": "x"}} for d in NEW], filter_columns={"m": str}, storage="int8")
    assert len(live.search("fish", filter=F("m") == "x")) == 4
    assert live.filter_columns == {"m": "str"} and live.info().storage == "int8"
    assert live.delete(filter=F("m") == "x") == 4


def test_threads_that_search_while_an_index_is_rebuilt_never_see_a_mixture(uri):
    build(uri, OLD)
    live = Index.open(uri, ENCODER)
    texts = {document["text"] for document in (*OLD, *NEW)}
    wrong, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            try:
                found = live.search("fish sea", k=1, evidence=True)
            except (StoreError, IndexNotFoundError):
                continue
            # Score 2 means that "fish sea" was found whole. A new index is empty at first.
            wrong.extend(h for h in found if h.text not in texts or (h.score > 1.9) != (h.text == "fish sea"))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(6):
        build(uri, OLD if i % 2 else NEW)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert hits(live, "fish sea") == hits(Index.open(uri, ENCODER), "fish sea")


def test_documents_encoded_for_a_replaced_index_are_not_written_into_the_new_one(uri):
    class Slow(HashEncoder):
        def encode_documents(self, texts):
            if texts == ["late"]:
                build(uri, NEW)
            return super().encode_documents(texts)

    build(uri, OLD)
    live = Index.open(uri, Slow(16))
    with pytest.raises(StoreError, match="another one has taken its place"):
        live.add([{"id": "late", "text": "late"}])
    assert live.ids() == ["0", "1", "2", "3"]
    assert live.add([{"id": "later", "text": "later"}]).added == 1


def test_the_cache_survives_writes_and_optimize(uri):
    writer = build(uri, OLD)
    live = Index.open(uri, ENCODER)
    live.search("red apples")
    segment = live._reader.current().segments[0]
    writer.add([{"id": "9", "text": "a long text of many more words"}])
    writer.optimize(keep=timedelta(0))
    writer.delete("9")
    live.search("red apples")
    assert live._reader.current().segments[0] is segment


def stored_manifest(uri):
    return json.loads(lancedb.connect(uri).open_table("documents").schema.field("tokens").metadata[b"manyvec"])


def without_identity(uri):
    """Make the index one of format 1."""
    written = {name: value for name, value in stored_manifest(uri).items() if name != "identity"}
    written |= {"format": 1, "filters": written.pop("filter_columns")}
    table = lancedb.connect(uri).open_table("documents")
    table.update_field_metadata({"path": "tokens", "metadata": {"manyvec": json.dumps(written)}})


def test_each_index_has_an_identity_of_its_own(tmp_path):
    identities = {stored_manifest(build(tmp_path / str(i), OLD).uri)["identity"] for i in range(3)}
    assert len(identities) == 3 and all(len(identity) == 32 for identity in identities)


def test_indexes_without_an_identity_are_told_apart(uri):
    build(uri, OLD)
    without_identity(uri)
    live = Index.open(uri, ENCODER)
    assert live.search("red apples", k=1)[0].text == "red apples"
    build(uri, NEW)
    without_identity(uri)
    assert live.search("fish sea", k=1)[0].text == "fish sea"
    assert hits(live, "red apples") == hits(Index.open(uri, ENCODER), "red apples")


def test_an_index_of_format_1_gets_its_identity_at_the_first_write_and_keeps_its_cache(uri):
    build(uri, OLD)
    without_identity(uri)
    live, reader = Index.open(uri, ENCODER), Index.open(uri, ENCODER)
    reader.search("red")
    segment = reader._reader.current().segments[0]
    assert stored_manifest(uri).get("identity") is None
    live.delete("3")
    manifest = Manifest.parse(json.dumps(stored_manifest(uri)).encode(), str(uri))
    assert manifest.format == 2 and len(manifest.identity) == 32
    assert len(reader.search("red", k=10)) == 3
    assert reader._reader.current().segments[0] is segment
    reader.add(NEW)
    assert stored_manifest(uri)["identity"] == manifest.identity
