from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyvec.errors import InputError
from manyvec.evaluation import choose_weight, evaluate, load_beir

# ---- measures

QRELS = {"q": {"a": 3, "b": 2, "c": 0, "d": 1}}


def test_ndcg_takes_the_grade_as_gain_and_halves_it_at_rank_three() -> None:
    run = {"q": ["b", "c", "a"]}
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert evaluate(QRELS, run, ["nDCG@10"]) == pytest.approx({"nDCG@10": (2 + 3 / 2) / best})


def test_ndcg_compares_with_the_best_ranking_of_k_documents() -> None:
    assert evaluate(QRELS, {"q": ["a", "b"]}, ["nDCG@2", "nDCG@3"]) == pytest.approx(
        {"nDCG@2": 1.0, "nDCG@3": (3 + 2 / math.log2(3)) / (3 + 2 / math.log2(3) + 1 / 2)}
    )


def test_recall_counts_all_positive_documents_even_when_k_is_smaller() -> None:
    assert evaluate(QRELS, {"q": ["a", "c", "d"]}, ["Recall@1", "Recall@3"]) == pytest.approx(
        {"Recall@1": 1 / 3, "Recall@3": 2 / 3}
    )


def test_mrr_and_success_look_at_the_first_positive_document_within_k() -> None:
    run = {"q": ["c", "unjudged", "d", "a"]}
    measures = ["MRR@2", "MRR@3", "Success@2", "Success@3"]
    assert evaluate(QRELS, run, measures) == pytest.approx(
        {"MRR@2": 0.0, "MRR@3": 1 / 3, "Success@2": 0.0, "Success@3": 1.0}
    )


def test_a_query_without_hits_counts_as_zero() -> None:
    qrels = {"found": {"a": 1}, "missing": {"a": 1}, "empty": {"a": 1}, "wrong": {"a": 1}}
    run = {"found": ["a"], "empty": [], "wrong": ["b"]}
    assert set(evaluate(qrels, run).values()) == {0.25}


def test_a_query_without_a_positive_judgment_is_not_part_of_the_mean() -> None:
    assert evaluate({"q": {"a": 1}, "none": {"a": 0, "b": -1}}, {"q": ["a"]}, ["nDCG@1"]) == {"nDCG@1": 1.0}


def test_a_query_without_judgments_is_ignored() -> None:
    assert evaluate({"q": {"a": 1}}, {"q": ["a"], "other": ["b"]}, ["MRR@1"]) == {"MRR@1": 1.0}


def test_a_negative_grade_is_no_gain() -> None:
    assert evaluate({"q": {"a": 1, "b": -2}}, {"q": ["b", "a"]}, ["nDCG@2"]) == pytest.approx(
        {"nDCG@2": 1 / math.log2(3)}
    )


def test_the_measures_come_back_under_the_names_and_in_the_order_asked_for() -> None:
    assert list(evaluate(QRELS, {}, ["Success@5", "nDCG@10", "MRR@7"])) == ["Success@5", "nDCG@10", "MRR@7"]


@pytest.mark.parametrize("name", ["nDCG", "nDCG@0", "ndcg@10", "MAP@10", "Recall@-1", "Recall@ten", "@5", ""])
def test_an_unknown_measure_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="nDCG@k, Recall@k, MRR@k, Success@k"):
        evaluate(QRELS, {}, [name])


def test_a_document_ranked_twice_is_an_error() -> None:
    with pytest.raises(InputError, match=r"'q'.*twice"):
        evaluate(QRELS, {"q": ["a", "b", "a"]})


@pytest.mark.parametrize("qrels", [{}, {"q": {}}, {"q": {"a": 0}}])
def test_nothing_to_measure_is_an_error(qrels: dict[str, dict[str, int]]) -> None:
    with pytest.raises(InputError, match="no query has a positive judgment"):
        evaluate(qrels, {"q": ["a"]})


DOCUMENTS = [f"d{i}" for i in range(15)]
judgments = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), max_size=12).filter(
    lambda judged: max(judged.values(), default=0) > 0
)
rankings = st.lists(st.sampled_from([*DOCUMENTS, "u0", "u1", "u2"]), unique=True)
query_ids = st.sampled_from(["q0", "q1", "q2", "q3", "q4"])


@settings(deadline=None)
@given(st.dictionaries(query_ids, judgments, min_size=1), st.dictionaries(query_ids, rankings))
def test_every_measure_agrees_with_ir_measures(qrels: dict[str, dict[str, int]], run: dict[str, list[str]]) -> None:
    theirs = {
        "nDCG@3": ir_measures.nDCG @ 3,
        "nDCG@10": ir_measures.nDCG @ 10,
        "Recall@5": ir_measures.R @ 5,
        "MRR@3": ir_measures.RR @ 3,
        "Success@2": ir_measures.Success @ 2,
    }
    # Scores that fall with the rank: ir_measures orders by score, and no two are equal.
    scores = {query: {d: -float(rank) for rank, d in enumerate(ranking)} for query, ranking in run.items()}
    expected = ir_measures.calc_aggregate(list(theirs.values()), qrels, scores)
    assert evaluate(qrels, run, theirs) == pytest.approx(
        {name: expected[measure] for name, measure in theirs.items()}, abs=1e-9
    )


# ---- data sets

CORPUS = [
    {"_id": "a 1", "title": "Oxygen", "text": "An element.", "metadata": {"year": 1774}},
    {"_id": "b", "title": "", "text": "No title here."},
    {"_id": "c", "title": "Only a title", "text": ""},
    {"_id": "d", "title": " ", "text": "\n", "metadata": {}},
]
QUERIES = [{"_id": "q1", "text": "who found oxygen"}, {"_id": "q2", "text": "nothing"}, {"_id": "q3", "text": "any"}]
HEADER = "query-id\tcorpus-id\tscore"


def write(
    folder: Path,
    *,
    corpus: list[Any] = CORPUS,
    queries: list[Any] = QUERIES,
    qrels: str = f"{HEADER}\nq1\ta 1\t2\nq1\tb\t0\nq2\tb\t0\n",
) -> Path:
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_title_and_text_are_joined_by_a_space_and_the_title_is_kept_in_the_metadata(tmp_path: Path) -> None:
    oxygen, untitled, title_only = load_beir(write(tmp_path)).documents
    assert (oxygen.id, oxygen.text) == ("a 1", "Oxygen An element.")
    assert oxygen.metadata == {"title": "Oxygen", "year": 1774}
    assert (untitled.text, untitled.metadata) == ("No title here.", {})
    assert (title_only.text, title_only.metadata) == ("Only a title", {"title": "Only a title"})


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    dataset = load_beir(write(tmp_path))
    assert [document.id for document in dataset.documents] == ["a 1", "b", "c"]


def test_only_queries_with_a_positive_judgment_are_kept_with_all_their_grades(tmp_path: Path) -> None:
    dataset = load_beir(write(tmp_path))
    assert dataset.queries == {"q1": "who found oxygen"}
    assert dataset.qrels == {"q1": {"a 1": 2, "b": 0}}


def test_a_data_set_is_named_after_its_folder(tmp_path: Path) -> None:
    assert load_beir(write(tmp_path)).name == tmp_path.name


def test_gzipped_files_read_the_same(tmp_path: Path) -> None:
    plain = load_beir(write(tmp_path))
    for name in ("corpus", "queries"):
        path = tmp_path / f"{name}.jsonl"
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_beir(tmp_path) == plain


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write(tmp_path, qrels=f"{HEADER}\r\nq1\ta 1\t1\r\n\r\n")
    lines = [json.dumps(line) for line in CORPUS]
    (tmp_path / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    dataset = load_beir(tmp_path)
    assert len(dataset.documents) == 3
    assert dataset.qrels == {"q1": {"a 1": 1}}


def test_of_an_id_that_comes_twice_the_last_one_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        corpus=[{"_id": "a", "text": "old"}, {"_id": "b", "text": "other"}, {"_id": "a", "text": "new"}],
        qrels=f"{HEADER}\nq1\ta\t1\nq1\ta\t3\n",
    )
    dataset = load_beir(tmp_path)
    assert {document.id: document.text for document in dataset.documents} == {"a": "new", "b": "other"}
    assert dataset.qrels == {"q1": {"a": 3}}


def test_a_line_that_is_not_json_is_an_error_with_file_and_line_number(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "e", "text": \n')
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 5: not JSON: Expecting value"):
        load_beir(tmp_path)


def test_a_file_in_latin_1_is_read_as_such(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "caf\xe9"}\n')
    assert load_beir(tmp_path).queries["q1"] == "café"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"_id": [7], "text": "a list as id"}, "id must be a string or a number"),
        ({"_id": "e", "text": ["a", "list"]}, "title and text must be strings"),
        ({"_id": "e", "text": "x", "metadata": ["a", "list"]}, "metadata"),
        (["no", "object"], "expected an object"),
    ],
)
def test_a_line_that_is_no_document_is_an_error_with_file_and_line_number(
    tmp_path: Path, line: object, problem: str
) -> None:
    with pytest.raises(InputError, match=rf"corpus\.jsonl, line 5: .*{problem}"):
        load_beir(write(tmp_path, corpus=[*CORPUS, line]))


@pytest.mark.parametrize("damage", [lambda packed: b"no gzip" + packed, lambda packed: packed[:-12]])
def test_a_damaged_gzip_file_is_an_error_that_names_it(tmp_path: Path, damage: Any) -> None:
    write(tmp_path)
    path = tmp_path / "corpus.jsonl"
    (tmp_path / "corpus.jsonl.gz").write_bytes(damage(gzip.compress(path.read_bytes())))
    path.unlink()
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz: the gzip file is damaged"):
        load_beir(tmp_path)


@pytest.mark.parametrize("line", ["q1 a 1", "q1\ta 1", "q1\ta 1\tmuch", "q1\t0\ta 1\t1"])
def test_a_judgment_that_cannot_be_read_is_an_error_with_file_and_line_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"test\.tsv, line 3: expected"):
        load_beir(write(tmp_path, qrels=f"{HEADER}\nq1\tb\t1\n{line}\n"))


@pytest.mark.parametrize("queries", [[], [{"_id": "q1", "text": ""}], [{"_id": "q1", "text": None}]])
def test_a_judged_query_without_text_is_an_error_that_names_it(tmp_path: Path, queries: list[Any]) -> None:
    with pytest.raises(InputError, match=r"1 of 1 queries .* have no text in queries.jsonl, such as 'q1'"):
        load_beir(write(tmp_path, queries=queries))


def test_a_missing_split_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no qrels/dev\.tsv; splits there: test"):
        load_beir(write(tmp_path), split="dev")


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match=rf"no {name}\.jsonl or {name}\.jsonl\.gz"):
        load_beir(tmp_path)


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_beir(tmp_path / "nowhere")


@pytest.mark.data
def test_scifact_has_300_test_queries_and_its_ideal_ranking_is_perfect(data_dir: Path) -> None:
    dataset = load_beir(data_dir / "scifact")
    assert (len(dataset.documents), len(dataset.queries)) == (5183, 300)
    ideal = {query: sorted(judged, key=lambda d: -judged[d]) for query, judged in dataset.qrels.items()}
    assert evaluate(dataset.qrels, ideal) == {"nDCG@10": 1.0, "Recall@10": 1.0, "MRR@10": 1.0, "Success@10": 1.0}


@pytest.mark.data
def test_queries_whose_judgments_are_all_zero_are_left_out_of_medquad_liveqa(data_dir: Path) -> None:
    assert len(load_beir(data_dir / "medquad-liveqa").queries) == 96


def test_a_weight_is_chosen_on_one_half_of_the_queries_and_measured_on_the_other():
    qrels = {query: {"right": 1} for query in "abcd"}
    right, second = ["right", "wrong"], ["wrong", "right"]
    runs = {
        0: {"a": second, "b": second, "c": right, "d": second},
        0.5: dict.fromkeys("abcd", right),
        1: dict.fromkeys("abcd", right),
    }
    choice = choose_weight(qrels, runs)
    # Chosen on a and c, measured on b and d. Of equal weights the smaller one.
    assert (choice.lexical_weight, choice.best) == (0.5, 0.5)
    assert choice.chosen_on == {0: pytest.approx((1 + 1 / math.log2(3)) / 2), 0.5: 1, 1: 1}
    assert choice.measured_on == {0: pytest.approx(1 / math.log2(3)), 0.5: 1, 1: 1}


def test_a_weight_that_does_not_help_the_other_half_is_not_recommended():
    qrels = {query: {"right": 1} for query in "ab"}
    choice = choose_weight(qrels, {0: {"a": ["wrong"], "b": ["right"]}, 0.3: {"a": ["right"], "b": ["wrong"]}})
    assert (choice.lexical_weight, choice.best) == (0, 0.3)


def test_a_choice_needs_two_judged_queries_and_a_run_without_bm25():
    with pytest.raises(InputError, match="two judged queries or more, got 1"):
        choose_weight({"a": {"x": 1}, "b": {"x": 0}}, {0: {}, 0.3: {}})
    with pytest.raises(InputError, match="weight 0"):
        choose_weight({"a": {"x": 1}, "b": {"x": 1}}, {0.3: {}})
