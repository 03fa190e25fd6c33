"""LangChain's indexing API: every cleanup mode, with a vector store and a document index, records in LanceDB."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import aindex
from langchain_core.indexing import index as run_index

import manyvec
from langchain_manyvec import ManyvecDocumentIndex, ManyvecRecordManager, ManyvecVectorStore


def page(text, source):
    return Document(text, metadata={"source": source})


FIRST = [page("one", "a"), page("two", "a"), page("three", "b"), page("four", "c")]
# "two" has changed, "three" was removed with its source, "four" is unchanged, "five" is new.
SECOND = [page("one", "a"), page("TWO new", "a"), page("four", "c"), page("five", "d")]
# Texts after the second run for each cleanup mode: None deletes nothing, full deletes all that did not occur again,
# incremental and scoped_full delete what did not occur again from the sources of the run.
LEFT = {
    None: {"one", "two", "three", "four", "TWO new", "five"},
    "full": {"one", "four", "TWO new", "five"},
    "incremental": {"one", "three", "four", "TWO new", "five"},
    "scoped_full": {"one", "three", "four", "TWO new", "five"},
}


@pytest.fixture
def records(index: manyvec.Index) -> ManyvecRecordManager:
    return ManyvecRecordManager("test", index.uri)


@pytest.fixture(params=[ManyvecVectorStore, lambda index: ManyvecDocumentIndex(index=index)], ids=["store", "index"])
def target(request, index):
    return request.param(index)


def counts(result):
    return tuple(result[f"num_{what}"] for what in ("added", "updated", "skipped", "deleted"))


def texts(index: manyvec.Index, records: ManyvecRecordManager) -> set[str]:
    """Return the texts of all documents in the index, which must be exactly those that the records name."""
    documents = index.get(records.list_keys())
    assert len(documents) == index.count()
    return {document.text for document in documents}


@pytest.mark.parametrize("cleanup", LEFT)
def test_each_cleanup_mode_skips_the_second_time_and_cleans_up_after_changes(index, records, target, cleanup):
    def run(documents):
        options = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "blake2b", "batch_size": 3}
        return counts(run_index(documents, records, target, **options))

    records.create_schema()
    assert run(FIRST) == (4, 0, 0, 0)
    assert run(FIRST) == (0, 0, 4, 0)
    assert texts(index, records) == {"one", "two", "three", "four"}

    deleted = 6 - len(LEFT[cleanup])
    assert run(SECOND) == (2, 0, 2, deleted)
    assert run(SECOND) == (0, 0, 4, 0)
    assert texts(index, records) == LEFT[cleanup]


@pytest.mark.parametrize("cleanup", LEFT)
async def test_each_cleanup_mode_works_with_aindex(index, records, target, cleanup):
    async def run(documents):
        options = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "blake2b", "batch_size": 3}
        return counts(await aindex(documents, records, target, **options))

    await records.acreate_schema()
    assert await run(FIRST) == (4, 0, 0, 0)
    assert await run(FIRST) == (0, 0, 4, 0)
    assert await run(SECOND) == (2, 0, 2, 6 - len(LEFT[cleanup]))
    assert await run(SECOND) == (0, 0, 4, 0)
    assert texts(index, records) == LEFT[cleanup]


def test_a_full_cleanup_with_no_documents_empties_the_index(index, records, target):
    run_index(FIRST, records, target, cleanup="full", key_encoder="blake2b")

    assert counts(run_index([], records, target, cleanup="full", key_encoder="blake2b")) == (0, 0, 0, 4)
    assert index.count() == 0


def test_a_forced_update_rewrites_existing_documents(records, target):
    run_index(FIRST, records, target, key_encoder="blake2b")

    assert counts(run_index(FIRST, records, target, key_encoder="blake2b", force_update=True)) == (0, 4, 0, 0)


def test_a_run_that_failed_is_completed_by_the_next(index, records):
    store = ManyvecVectorStore(index)
    unstorable = Document("text", metadata={"source": "e", "score": float("inf")})
    with pytest.raises(manyvec.InputError, match="'score'"):
        run_index([*FIRST, unstorable], records, store, batch_size=2, key_encoder="blake2b")

    assert counts(run_index(FIRST, records, store, cleanup="full", key_encoder="blake2b")) == (0, 0, 4, 0)
    assert index.count() == 4


def test_searches_find_what_was_indexed(index, records):
    store = ManyvecVectorStore(index)
    run_index(FIRST, records, store, key_encoder="blake2b")

    assert store.similarity_search("three", k=1)[0].metadata == {"source": "b"}


# The record manager alone


def test_records_persist_and_are_separated_by_namespace(index, records):
    records.update(["k1", "k2"], group_ids=["g", None])

    assert ManyvecRecordManager("test", index.uri).exists(["k2", "k3", "k1"]) == [True, False, True]
    other = ManyvecRecordManager("other", index.uri)
    assert other.exists(["k1"]) == [False] and other.list_keys() == []
    other.update(["k1"])
    records.delete_keys(["k1", "nobody"])
    assert (records.list_keys(), other.list_keys()) == (["k2"], ["k1"])


def test_create_schema_is_optional(records):
    assert records.list_keys() == []
    assert records.exists([]) == []
    records.update([])
    records.delete_keys([])
    assert records.list_keys() == []


def test_keys_are_listed_by_time_group_and_limit(records):
    records.update(["k1", "k2"], group_ids=["g1", "g2"])
    between = records.get_time()
    records.update(["k3"], group_ids=["g1"], time_at_least=between)

    assert set(records.list_keys()) == {"k1", "k2", "k3"}
    assert set(records.list_keys(before=between)) == {"k1", "k2"}
    assert records.list_keys(after=between, group_ids=["g2"]) == []
    assert set(records.list_keys(group_ids=["g1", "nobody"])) == {"k1", "k3"}
    assert records.list_keys(group_ids=[]) == []
    assert [len(records.list_keys(limit=limit)) for limit in (0, 1, 2, 5)] == [0, 1, 2, 3]


def test_updating_a_key_again_replaces_its_time_and_group(records):
    records.update(["k", "k"], group_ids=["old", "older"])
    between = records.get_time()
    records.update(["k"], group_ids=["new"])

    assert records.list_keys(before=between) == []
    assert records.list_keys(group_ids=["new"]) == ["k"]


@pytest.mark.parametrize("text", ["O'Neill", "' OR 1=1 --", '"x"', "a\\", "naïve 延迟", "key\n2", "%", ""])
def test_any_string_can_be_a_key_a_group_and_a_namespace(index, text):
    records = ManyvecRecordManager(text, index.uri)
    records.update([text, "bystander"], group_ids=[text, "other"])

    assert records.list_keys(group_ids=[text]) == [text]
    assert records.exists([text]) == [True]
    records.delete_keys([text])
    assert records.list_keys() == ["bystander"]


def test_more_keys_and_groups_than_fit_into_one_statement_can_be_used(records):
    keys = [f"k{i}" for i in range(2001)]
    records.update(keys, group_ids=keys)

    assert records.exists([*keys, "nobody"]) == [True] * 2001 + [False]
    assert set(records.list_keys(group_ids=keys)) == set(keys)
    assert len(records.list_keys(group_ids=keys, limit=1500)) == 1500
    records.delete_keys(keys[:2000])
    assert records.list_keys() == ["k2000"]


def test_time_advances_even_if_the_clock_is_set_back(index, records, monkeypatch):
    records.update(["old"])
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    later = ManyvecRecordManager("test", index.uri)
    start = later.get_time()
    later.update(["new"], time_at_least=start)

    assert later.list_keys(before=start) == ["old"]
    assert later.get_time() > start


def test_a_time_in_the_future_and_a_wrong_number_of_groups_are_errors_and_write_nothing(records):
    with pytest.raises(ValueError, match="clock"):
        records.update(["k"], time_at_least=records.get_time() + 60)
    with pytest.raises(ValueError, match="2 keys and 1 group"):
        records.update(["k1", "k2"], group_ids=["g"])
    assert records.list_keys() == []


def test_threads_writing_the_same_new_keys_create_no_duplicates(records):
    keys = [f"k{i}" for i in range(20)]
    records.create_schema()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: records.update(keys), range(8)))

    assert sorted(records.list_keys()) == sorted(keys)


def test_records_deleted_from_disk_are_an_error_and_not_an_empty_answer(index, records):
    records.update(["k"])
    shutil.rmtree(index.uri)

    with pytest.raises(manyvec.StoreError, match="records"):
        records.exists(["k"])
    with pytest.raises(manyvec.StoreError, match="records"):
        records.update(["k2"])


def test_managers_that_start_at_the_same_time_share_one_table(index):
    managers = [ManyvecRecordManager("test", index.uri) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda manager: manager.update(["k"]), managers))

    assert [manager.list_keys() for manager in managers] == [["k"]] * 4


def test_create_schema_merges_files_and_loses_no_record(records):
    for i in range(5):
        records.update([f"k{i}"])
    records.create_schema()

    assert len(records.list_keys()) == 5


async def test_every_method_works_from_an_event_loop(records):
    await records.acreate_schema()
    start = await records.aget_time()
    await records.aupdate(["k1", "k2"], group_ids=["g", None], time_at_least=start)

    assert await records.aexists(["k1", "k3"]) == [True, False]
    assert await records.alist_keys(group_ids=["g"], after=0.0) == ["k1"]
    await records.adelete_keys(["k1"])
    assert await records.alist_keys() == ["k2"]


# The document index alone


def test_a_document_index_is_a_retriever_with_scores(index):
    documents = ManyvecDocumentIndex(index=index, k=1)
    documents.upsert([Document("late interaction", id="a"), Document("early", id="b")])

    assert documents.invoke("early")[0].metadata["relevance_score"] == pytest.approx(1, abs=2**-10)


def test_a_document_that_cannot_be_stored_is_an_error_and_stores_nothing(index):
    with pytest.raises(manyvec.InputError, match="'path'"):
        ManyvecDocumentIndex(index=index).upsert([Document("text"), Document("text", metadata={"path": object()})])

    assert index.count() == 0
