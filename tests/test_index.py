"""Index: what goes in comes out, replaced, deleted, filtered and ranked right, also while others write."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose

from manyvec import Document, F, Index, InputError, ManifestError, StoreError, TokenBatch
from manyvec.candidates import Auto, CentroidLists, Exhaustive, Lexical, Pooled
from manyvec.storage.ingest.adding import AddReport, Checked, batches
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store
from manyvec.testing import CountingEncoder, HashEncoder
from manyvec.vectors.maxsim import maxsim_reference

ENCODER = HashEncoder(32)
TEXTS = {
    "paris": "Paris is the capital of France",
    "berlin": "Berlin is the capital of Germany",
    "bread": "Bread is baked from flour, water and salt",
}


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"year": int, "tags": list[str]})
    index.add([{"id": id, "text": text} for id, text in TEXTS.items()])
    return index


def ids(hits):
    return [hit.id for hit in hits]


def reopened(index, **options):
    return Index.open(index.uri, ENCODER, **options)


def random_texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in rng.integers(0, 300, size=rng.integers(1, 40))) for _ in range(n)]


def test_a_document_with_every_word_of_the_query_scores_its_number_of_tokens(index):
    best, second = index.search("capital of france", k=2)
    assert (best.id, best.rank, best.text) == ("paris", 1, TEXTS["paris"])
    # float16 storage keeps 11 bits.
    assert_allclose([best.score, best.similarity], [3, 1], atol=3 * 2**-10)
    assert (second.id, second.rank) == ("berlin", 2)
    assert second.score < best.score


def test_scores_are_those_of_the_reference_over_the_float16_vectors(tmp_path):
    texts = random_texts(150)
    index = Index.create(tmp_path / "index", ENCODER)
    index.add({"id": str(i), "text": text} for i, text in enumerate(texts))
    encoded = ENCODER.encode_documents(texts)
    stored = TokenBatch(encoded.vectors.astype(np.float16), encoded.offsets)
    for query in random_texts(5, seed=1):
        expected = maxsim_reference(ENCODER.encode_queries([query])[0], stored)
        hits = index.search(query, k=150)
        assert_allclose([hit.score for hit in hits], [expected[int(hit.id)] for hit in hits], atol=1e-4)
        assert ids(hits)[:5] == [str(i) for i in np.lexsort((np.array(list(map(str, range(150)))), -expected))[:5]]


def test_a_budget_of_any_size_gives_the_same_hits(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add({"id": str(i), "text": text} for i, text in enumerate(random_texts(120)))
    expected = index.search("w1 w2 w3", k=120)
    for cache_bytes in (0, 1, 5_000, 50_000):
        small = reopened(index, cache_bytes=cache_bytes)
        assert small.search("w1 w2 w3", k=120) == expected
        assert small.info().bytes_in_memory <= cache_bytes


def test_batches_grow_with_the_index_and_end_before_a_million_characters():
    short = ({"id": str(i), "text": "short"} for i in range(60_000))
    lengths = [len(batch) for batch in batches(Checked(short, "raise"))]
    before = np.cumsum([0, *lengths])[:-1]
    assert lengths[0] == 256
    assert sum(lengths) == 60_000
    assert all(n == max(256, -(-stored // 64)) for n, stored in zip(lengths[:-1], before[:-1], strict=True))
    assert [len(batch) for batch in batches((Document(str(i), "short") for i in range(999)), lambda: 64_000)] == [999]
    long = [{"id": str(i), "text": "x" * 400_000} for i in range(5)]
    assert [len(batch) for batch in batches(Checked(long, "raise"), lambda: 64_000)] == [2, 2, 1]


def test_many_queries_at_once_find_what_each_finds_alone(index):
    queries = ["capital", "", "bread and salt", "capital of germany"]
    together = index.search_many(queries, k=3)
    assert [ids(hits) for hits in together] == [ids(index.search(query, k=3)) for query in queries]
    assert together[1] == []
    assert index.search_many([], k=3) == []


def test_equal_scores_are_ordered_by_id(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add({"id": id, "text": "all the same"} for id in ["c", "a", "e", "b", "d"])
    assert ids(index.search("same", k=3)) == ["a", "b", "c"]
    assert ids(index.search("same", k=3)) == ["a", "b", "c"]


@pytest.mark.parametrize(("k", "n"), [(0, 0), (1, 1), (3, 3), (1000, 3)])
def test_k_is_the_most_that_comes_back(index, k, n):
    assert len(index.search("capital", k=k)) == n


@pytest.mark.parametrize("k", [-1, 1.0, "3", None, True])
def test_a_k_that_is_no_count_is_refused(index, k):
    with pytest.raises(InputError, match="k must be a non-negative integer"):
        index.search("capital", k=k)


@pytest.mark.parametrize("query", ["", "   ", "\n"])
def test_a_query_without_words_finds_nothing(index, query):
    assert index.search(query) == []


def test_a_query_that_is_no_text_is_refused(index):
    with pytest.raises(InputError, match="a query must be a string, an image or token vectors, got int"):
        index.search(3)
    with pytest.raises(InputError, match="list of queries"):
        index.search_many("capital")


def test_an_empty_index_finds_nothing(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"year": int})
    assert index.search("capital") == []
    assert index.search("capital", filter=F("year") == 1) == []
    assert index.count() == 0
    assert index.get(["a"]) == []
    assert index.delete(["a"]) == 0
    index.optimize()
    assert index.info().tokens == 0


def test_metadata_comes_back_exactly(index):
    metadata = {"id": 7, "score": None, "z": [1, 2.5, "x", {"deep": [True, None]}], "a": "first key last", "é": "日本"}
    index.add([{"id": "m", "text": "unlike keys", "metadata": metadata}])
    (document,) = index.get("m")
    assert document.metadata == metadata
    assert list(document.metadata) == list(metadata)
    assert index.search("unlike keys", k=1)[0].metadata == metadata


def test_adding_an_id_again_replaces_the_document(index):
    assert index.add([{"id": "paris", "text": "A city of light"}]) == AddReport(updated=1)
    assert index.count() == 3
    assert index.get("paris")[0].text == "A city of light"
    assert ids(index.search("city of light", k=1)) == ["paris"]
    assert ids(index.search("capital of france", k=1)) == ["berlin"]


def test_of_equal_ids_in_one_call_the_last_wins(index):
    report = index.add([{"id": "x", "text": "one"}, {"id": "y", "text": "two"}, {"id": "x", "text": "three"}])
    assert report.added == 2
    assert index.get("x")[0].text == "three"
    index.add({"id": "x", "text": f"round {i}"} for i in range(700))
    assert index.get("x")[0].text == "round 699"
    assert index.count() == 5


def test_unchanged_documents_are_not_encoded_again(tmp_path):
    encoder = CountingEncoder(16)
    index = Index.create(tmp_path / "index", encoder, filter_columns={"year": int})
    documents = [{"id": str(i), "text": f"text {i}", "metadata": {"year": i}} for i in range(5)]
    assert index.add(documents) == AddReport(added=5)
    encoder.texts.clear()
    assert index.add(documents) == AddReport(unchanged=5)
    assert encoder.texts == []
    documents[2]["metadata"] = {"year": 99, "new": "key"}
    documents[3]["text"] = "another text"
    assert index.add(documents) == AddReport(updated=2, unchanged=3)
    assert encoder.texts == ["another text"]
    assert index.search("text", filter=F("year") == 99)[0].metadata == {"year": 99, "new": "key"}
    assert_allclose(index.search("text 2", k=1, filter=F("year") == 99)[0].similarity, 1, atol=1e-3)


def test_a_document_deleted_while_its_metadata_changes_is_encoded_again(index, monkeypatch):
    find = Snapshot.find

    def find_then_delete(self, ids):
        found = find(self, ids)
        reopened(index).delete("paris")
        return found

    monkeypatch.setattr(Snapshot, "find", find_then_delete)
    index.add([{"id": "paris", "text": TEXTS["paris"], "metadata": {"year": 1}}])
    assert ids(index.search("capital of france", k=1, filter=F("year") == 1)) == ["paris"]


def test_documents_are_deleted_by_id_and_by_filter(index):
    index.add([{"id": f"y{year}", "text": "dated", "metadata": {"year": year}} for year in range(2000, 2010)])
    assert index.delete(["paris", "unknown"]) == 1
    assert index.delete("y2000") == 1
    assert index.delete(filter=F("year") < 2005) == 4
    assert index.count() == 2 + 5
    assert "paris" not in ids(index.search("capital of france"))
    with pytest.raises(InputError, match="either ids or a filter"):
        index.delete()
    with pytest.raises(InputError, match="either ids or a filter"):
        index.delete("a", filter=F("year") == 1)


def test_a_filter_leaves_the_exact_order_of_what_passes(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"n": int})
    index.add({"id": f"{i:03d}", "text": text, "metadata": {"n": i}} for i, text in enumerate(random_texts(90)))
    everything = index.search("w5 w6 w7", k=90)
    for condition, passes in [
        (F("n") < 10, range(10)),
        (F("n").in_([3]), [3]),
        (F("n") > 1000, []),
        ({"n": [1, 2]}, [1, 2]),
    ]:
        expected = [(hit.id, hit.score) for hit in everything if int(hit.id) in passes]
        assert [(hit.id, hit.score) for hit in index.search("w5 w6 w7", k=90, filter=condition)] == expected


def test_the_short_dict_form_of_a_filter_means_equal(index):
    index.add([{"id": "t", "text": "capital letters", "metadata": {"year": 2024, "tags": ["a"]}}])
    assert ids(index.search("capital", filter={"year": 2024})) == ["t"]
    assert index.count({"year": [2023, 2024]}) == 1


NASTY = [
    "o'brien",
    'say "x"',
    "back\\slash",
    "semi;colon",
    "line\nbreak",
    "日本語 العربية",
    "'; DROP TABLE documents; --",
    "tab\t",
    "%_",
    "🙂",
    "a" * 5000,
    "nul\x00byte",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_any_text_survives_in_ids_texts_metadata_and_filters(tmp_path, nasty):
    index = Index.create(tmp_path / "index", ENCODER, filter_columns={"s": str, "tags": list[str]})
    index.add(
        [
            {"id": nasty, "text": f"word {nasty}", "metadata": {"s": nasty, "tags": [nasty], nasty: nasty}},
            {"id": "other", "text": "word", "metadata": {"s": "other", "tags": ["other"]}},
        ]
    )
    index.optimize()
    (document,) = index.get([nasty])
    assert (document.id, document.text) == (nasty, f"word {nasty}")
    assert document.metadata == {"s": nasty, "tags": [nasty], nasty: nasty}
    for condition in (F("s") == nasty, F("s").in_([nasty]), F("tags").contains(nasty), F("s").contains(nasty)):
        assert ids(index.search("word", filter=condition)) == [nasty]
        assert ids(index.search("word", filter=~condition)) == ["other"]
    assert index.search(nasty, k=2)
    assert index.rank([nasty], Lexical(), 5)
    assert index.delete([nasty]) == 1
    assert index.count() == 1


def test_an_index_remembers_everything_when_opened_again(index):
    again = reopened(index)
    assert again.filter_columns == {"year": "int", "tags": "list[str]"}
    assert again.model == "hash-32"
    assert again.search("capital of france", k=3) == index.search("capital of france", k=3)


def test_create_refuses_an_index_that_is_there_unless_it_may_be(index):
    with pytest.raises(InputError, match=r"there is an index in .* already"):
        Index.create(index.uri, ENCODER)
    same = Index.create(index.uri, ENCODER, filter_columns={"year": int, "tags": list[str]}, exist_ok=True)
    assert same.count() == 3
    assert Index.create(index.uri, ENCODER, exist_ok=True).filter_columns == same.filter_columns
    with pytest.raises(ManifestError, match="has the filter columns"):
        Index.create(index.uri, ENCODER, filter_columns={"year": str}, exist_ok=True)


def test_what_another_process_writes_is_seen_by_the_next_search(index):
    assert ids(index.search("flour", k=1)) == ["bread"]
    other = reopened(index)
    other.add([{"id": "mill", "text": "flour flour mill"}])
    other.delete("bread")
    assert ids(index.search("flour mill", k=1)) == ["mill"]
    assert "bread" not in ids(index.search("flour", k=10))
    other.add([{"id": "mill", "text": "closed down"}])
    assert index.search("flour mill", k=1)[0].score < 1.5
    other.optimize()
    assert ids(index.search("closed down", k=1)) == ["mill"]


def test_many_small_changes_leave_few_segments_and_right_answers(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    texts = dict(enumerate(random_texts(60)))
    for i, text in texts.items():
        index.add([{"id": str(i), "text": text}])
        if i % 3 == 0:
            index.delete(str(i // 2))
            texts[i // 2] = None
        if i % 7 == 0:
            texts[i] = f"again {text}"
            index.add([{"id": str(i), "text": texts[i]}])
        assert len(index.search("w1 again", k=100)) == index.count()
    resident = index._reader.current()
    assert len(resident.segments) <= 8
    fresh = reopened(index)
    assert index.search("w1 again w7", k=100) == fresh.search("w1 again w7", k=100)
    alive = {str(i) for i, text in texts.items() if text is not None}
    assert {hit.id for hit in index.search("w1", k=100)} == alive | {hit.id for hit in index.search("w1", k=100)}
    assert index.count() == len(fresh.search("w1", k=1000))


def test_readers_beside_a_writer_always_see_one_whole_version(tmp_path):
    """The writer moves a document between two texts; a reader finds it once, text and score agreeing."""
    index = Index.create(tmp_path / "index", ENCODER)
    index.add([{"id": "moving", "text": "alpha alpha"}, {"id": "still", "text": "beta gamma"}])
    reader = reopened(index)
    stop = threading.Event()

    def write():
        for i in range(40):
            index.add([{"id": "moving", "text": "alpha alpha" if i % 2 else "delta delta"}])
            if i % 10 == 9:
                index.optimize()
        stop.set()

    def read():
        n = 0
        while not stop.is_set() or n == 0:
            hits = {hit.id: hit for hit in reader.search("alpha", k=10)}
            assert set(hits) == {"moving", "still"}
            assert (hits["moving"].score > 0.9) == hits["moving"].text.startswith("alpha")
            n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        pool.submit(write).result()
        assert all(future.result() > 0 for future in readers)


def test_concurrent_upserts_of_the_same_ids_leave_each_once(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    writers = [reopened(index) for _ in range(4)]

    def write(number):
        for i in range(5):
            writers[number].add([{"id": f"d{i}", "text": f"version {number}"}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert index.count() == 5
    assert sorted(ids(index.search("version", k=50))) == [f"d{i}" for i in range(5)]


def test_one_index_may_be_searched_by_many_threads(index):
    expected = {query: index.search(query) for query in ["capital", "bread", "france", "salt water"]}
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda query: (query, index.search(query)), list(expected) * 25)
    assert all(hits == expected[query] for query, hits in results)


def test_an_older_version_removed_during_a_search_is_answered_from_a_newer_one(index):
    from datetime import timedelta

    index.add([{"id": "long", "text": "word " * 100_000}])
    # Only this hit's text is in memory then.
    index.search("capital", k=1)
    stale = index._reader._cached
    other = reopened(index)
    other.add([{"id": "rome", "text": "Rome is a capital"}])
    other.optimize(keep=timedelta(0))
    with pytest.raises(StoreError):
        stale.snapshot.texts(stale.states.row_ids)
    index._reader.current = iter([stale, index._reader.current()]).__next__
    assert "rome" in ids(index.search("capital", k=10))


def test_pooled_vectors_belong_to_the_index_that_they_were_made_from(tmp_path):
    """Both indexes are at the same version, and hold other documents at the same positions."""
    uris = [tmp_path / "a", tmp_path / "b"]
    texts = [["red", "green", "blue"], ["blue", "red", "green"]]
    indexes = [Index.create(uri, ENCODER) for uri in uris]
    for index, words in zip(indexes, texts, strict=True):
        index.add({"id": f"{position} {word}", "text": word} for position, word in enumerate(words))
    assert indexes[0].info().version == indexes[1].info().version
    pooled = Pooled()

    def first(number):
        return indexes[number % 2].rank(["green"], pooled, 1)[0][0]

    assert [first(0), first(1), first(0)] == ["1 green", "2 green", "1 green"]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, range(40))) == ["1 green", "2 green"] * 20
    indexes[1].delete("2 green")
    indexes[1].add([{"id": "0 blue", "text": "green"}])
    assert [first(1), first(0)] == ["0 blue", "1 green"]


def test_pooled_vectors_do_not_outlive_an_index_that_is_built_again_in_its_place(tmp_path):
    import shutil

    pooled = Pooled()
    for words in (["red", "green"], ["green", "red"]):
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        index = Index.create(tmp_path / "index", ENCODER)
        index.add({"id": f"{position}", "text": word} for position, word in enumerate(words))
        assert index.rank(["green"], pooled, 1) == [[str(words.index("green"))]]


@pytest.mark.parametrize(
    "stage", [Auto(), CentroidLists(), Exhaustive(), Lexical(), Pooled()], ids=lambda stage: type(stage).__name__
)
def test_one_stage_serves_indexes_of_several_models_from_any_thread(tmp_path, stage):
    indexes = []
    for dim, words in [(8, ["red", "green", "blue"]), (16, ["blue", "red", "green"]), (24, ["green", "blue", "red"])]:
        index = Index.create(tmp_path / str(dim), HashEncoder(dim), filter_columns={"n": int})
        index.candidates = stage
        index.add({"id": word, "text": f"{word} paint", "metadata": {"n": n}} for n, word in enumerate(words))
        indexes.append(index)

    def first(number):
        word = ["red", "green", "blue"][number % 4 % 3]
        (hit,) = indexes[number % 3].search(word, k=1, filter=F("n") < 3)
        return (word, hit.id)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first, range(48)))
    assert [word for word, _ in found] == [id for _, id in found]


def test_pooled_finds_nothing_in_an_empty_index(tmp_path):
    assert Index.create(tmp_path / "index", ENCODER).rank(["green"], Pooled(), 3) == [[]]


@pytest.mark.parametrize("k", [np.int64(2), np.uint8(2), np.array(2)])
def test_numpy_integers_count_as_integers(index, k):
    assert len(index.search("capital", k=k, depth=k)) == 2
    assert index.search("capital", k=2, lexical_weight=np.float32(0.5))


def test_an_index_opened_by_a_relative_path_stays_itself_when_the_process_moves(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = Index.open("index", ENCODER)
    monkeypatch.chdir("/")
    assert ids(relative.search("capital of france", k=1)) == ["paris"]
    relative.add([{"id": "rome", "text": "capital of italy"}])
    assert index.count() == 4


def test_first_stages_can_be_looked_at_by_themselves(index):
    index.optimize()
    assert index.rank(["france bread"], Lexical(), 10) == [["paris", "bread"]] or index.rank(
        ["france bread"], Lexical(), 10
    ) == [["bread", "paris"]]
    (pooled,) = index.rank(["capital of france"], Pooled(), 2)
    assert pooled == ["paris", "berlin"]
    index.add([{"id": "lyon", "text": "capital of france capital of france", "metadata": {"year": 1}}])
    assert index.rank(["capital of france"], Pooled(), 1) == [["lyon"]]
    assert index.rank(["capital of france"], Pooled(), 5, filter=F("year") == 1) == [["lyon"]]
    assert index.rank(["capital of france"], Lexical(), 5, filter=F("year").is_null())[0][0] == "paris"


def test_a_first_stage_narrows_the_search_and_scores_stay_exact(index):
    exact = {hit.id: hit.score for hit in index.search("france", k=10)}
    index.candidates = Lexical()
    hits = index.search("france", k=10)
    assert ids(hits) == ["paris"]
    assert hits[0].score == exact["paris"]
    assert index.search("nowhere to be found", k=10) == []


def test_info_tells_what_is_there(index):
    index.search("capital")
    info = index.info()
    assert (info.documents, info.tokens, info.model, info.dim) == (3, 6 + 6 + 9, "hash-32", 32)
    assert info.bytes_in_memory == info.tokens * 32 * 2
    assert info.bytes_on_disk > info.bytes_in_memory
    json.dumps(info.__dict__)


def test_optimize_indexes_text_and_filters_and_frees_space(index):
    from datetime import timedelta

    for year in range(20):
        index.add([{"id": f"d{year}", "text": f"dated {year}", "metadata": {"year": year, "tags": ["t"]}}])
    before = index.info().bytes_on_disk
    expected = index.search("dated 7", k=3, filter=F("tags").contains("t"))
    index.optimize(keep=timedelta(0))
    assert index.info().bytes_on_disk < before
    indexed = {column for entry in Store.open(index.uri)._opened.table.list_indices() for column in entry.columns}
    assert indexed == {"text", "meta_year", "meta_tags"}
    assert index.search("dated 7", k=3, filter=F("tags").contains("t")) == expected
    index.add([{"id": "late", "text": "dated 7", "metadata": {"year": 7, "tags": ["t"]}}])
    assert ids(index.search("dated 7", k=2, filter=F("year") == 7)) == ["d7", "late"]


def test_documents_and_dicts_may_be_mixed_and_come_from_any_iterable(index):
    report = index.add(d for d in (Document("a", "one"), {"id": "b", "text": "two", "metadata": None}))
    assert report == AddReport(added=2)
    assert [d.id for d in index.get(["b", "a", "b", "zz"])] == ["b", "a"]


# Token vectors


def test_token_vectors_are_those_that_were_stored_in_the_order_of_the_ids(index):
    found = index.token_vectors(["bread", "nobody", "paris", "bread"])
    encoded = ENCODER.encode_documents([TEXTS["bread"], TEXTS["paris"]])

    assert found.lengths.tolist() == [9, 0, 6, 9]
    for stored, expected in zip([found[0], found[2], found[3]], [encoded[0], encoded[1], encoded[0]], strict=True):
        np.testing.assert_array_equal(stored, expected.astype(np.float16))


def test_token_vectors_of_nothing_and_of_unknown_ids_have_no_tokens(index):
    assert len(index.token_vectors([])) == 0
    assert index.token_vectors("paris").lengths.tolist() == [6]
    assert index.token_vectors(["nobody", "'; --"]).lengths.tolist() == [0, 0]
    assert index.token_vectors(["nobody"]).dim == 32


def test_ids_are_all_ids_in_order(index):
    assert index.ids() == ["berlin", "bread", "paris"]
    index.delete(filter={})
    assert index.ids() == []
