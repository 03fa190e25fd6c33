"""Three rankings of the same few documents, each of which can be worked out by hand."""

from manyvec import F, Index
from manyvec.cli.compare import print_comparison
from manyvec.server.comparison import compare
from manyvec.testing import HashEncoder


def made(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(64), filter_columns={"n": int})
    filler = " ".join(f"w{i}" for i in range(40))
    index.add(
        [
            {"id": "long", "text": f"alpha beta {filler}", "metadata": {"n": 1}},
            {"id": "short", "text": "alpha gamma", "metadata": {"n": 2}},
            {"id": "other", "text": "delta", "metadata": {"n": 3}},
        ]
    )
    return index


def test_each_document_stands_where_its_words_put_it(tmp_path):
    compared = compare(made(tmp_path), "alpha beta", 1)
    standings = {standing.id: standing.ranks for standing in compared.standings}
    # Both words are in the long text, which a mean over 42 vectors hides, and which late interaction does not.
    assert standings["long"]["late"] == standings["long"]["bm25"] == 1
    assert standings["short"] == {"bm25": 2, "pooled": 1, "late": 2}
    assert "other" not in standings
    assert compared.missed("pooled") == ["long"]
    assert compared.missed("late") == compared.missed("bm25") == ["short"]


def test_the_table_has_late_interactions_order_and_names_what_was_missed(tmp_path, capsys):
    print_comparison(compare(made(tmp_path), "alpha beta", 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["1", "(2)", "1", "long"]
    assert lines[2].split()[:4] == ["(2)", "1", "(2)", "short"]
    assert "the pooled vector found 1 of these 2, missed 1: long" in lines


def test_a_filter_holds_for_all_three(tmp_path):
    compared = compare(made(tmp_path), "alpha beta", 5, filter=F("n") >= 2)
    assert {standing.id for standing in compared.standings} == {"short", "other"}
    assert {s.id: s.ranks["bm25"] for s in compared.standings} == {"short": 1, "other": None}


def test_nothing_is_found_in_nothing_and_for_nothing(tmp_path, capsys):
    print_comparison(compare(made(tmp_path), "", 5))
    print_comparison(compare(made_empty(tmp_path), "alpha", 5))
    assert capsys.readouterr().out == "nothing found\n" * 2


def made_empty(tmp_path):
    return Index.create(tmp_path / "empty", HashEncoder(64))
