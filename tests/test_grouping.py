"""At most a few hits of each group."""

import pytest

from manyvec import Document, F, Index, InputError
from manyvec.testing import HashEncoder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("grouping") / "index", HashEncoder(64), filter_columns={"n": int})
    # One file fills the first hundred places; the words of the others match ever less.
    documents = [Document(f"long#{n:03}", "bread flour water", {"source": "long.txt", "n": n}) for n in range(100)]
    documents += [
        Document("b", "bread flour salt", {"source": "b.txt", "n": 200}),
        Document("c", "bread sugar salt", {"source": "c.txt", "n": 201}),
        Document("c2", "bread sugar salt", {"source": "c.txt", "n": 202}),
        Document("loose", "bread", {"n": 203}),
        Document("loose too", "bread", {"n": 204}),
    ]
    index.add(documents)
    return index


QUERY = "bread flour water"


def test_without_groups_one_file_fills_the_hits(index):
    assert {hit.metadata["source"] for hit in index.search(QUERY, 10)} == {"long.txt"}


def test_groups_leave_room_for_other_files_and_ranks_are_counted_anew(index):
    hits = index.search(QUERY, 3, group_by="source")
    assert [(hit.rank, hit.id) for hit in hits] == [(1, "long#000"), (2, "b"), (3, "c")]
    scores = {hit.id: hit.score for hit in index.search(QUERY, 200)}
    assert [hit.score for hit in hits] == [scores[hit.id] for hit in hits]


def test_a_group_may_have_several_hits_and_what_has_no_key_is_no_group(index):
    ids = [hit.id for hit in index.search(QUERY, 10, group_by="source", group_size=2)]
    assert set(ids) == {"long#000", "long#001", "b", "c", "c2", "loose", "loose too"} and ids[:3] == [
        "long#000",
        "long#001",
        "b",
    ]


def test_groups_and_filters_and_evidence_go_together(index):
    (hit,) = index.search(QUERY, 5, group_by="source", filter=F("n") < 100, evidence=True)
    assert hit.id == "long#000" and {match.text for match in hit.evidence.words} == {"bread", "flour", "water"}


def test_several_queries_are_grouped_each_for_itself(index):
    first, second, none = index.search_many([QUERY, "bread sugar", ""], 2, group_by="source")
    assert [hit.id for hit in first] == ["long#000", "b"] and second[0].id == "c" and len(second) == 2
    assert none == [] and index.search(QUERY, 0, group_by="source") == []


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_a_size_that_cannot_be_is_refused(index, size):
    with pytest.raises(InputError, match="group_size must be"):
        index.search(QUERY, 3, group_by="source", group_size=size)
