"""The command, run as users run it: with the packaged model, on files, in folders."""

import json
import os
import re
import subprocess
import sys

import pytest

import manyvec
from manyvec import Index
from manyvec.cli import main
from manyvec.testing import HashEncoder

DOCUMENTS = """id,text,year,lang
late,Late interaction keeps one vector for each token of a passage,2020,en
bread,Bread is baked from flour and water,2021,en
brot,Brot wird aus Mehl und Wasser gebacken,,de
"""


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "documents.csv").write_text(DOCUMENTS)
    db = str(folder / "index")
    assert main(["index", str(folder / "documents.csv"), "-i", db, "--column", "year=int", "--column", "lang"]) == 0
    return db


def run(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_indexing_says_what_it_will_take_and_what_it_did(tmp_path, capsys):
    (tmp_path / "a.md").write_text("Late interaction")
    status, out, err = run(capsys, "index", str(tmp_path / "a.md"), "--index", str(tmp_path / "db"), "--device", "cpu")
    assert status == 0
    assert re.match("1 documents: about 2 token vectors, 0.0 MB on disk, \\d+ s on cpu", err)
    assert out.startswith("1 added, 0 updated, 0 unchanged; 1 documents in ")
    status, out, err = run(capsys, "index", str(tmp_path / "a.md"), "--index", str(tmp_path / "db"), "--json")
    report = json.loads(out)
    assert [report[key] for key in ("added", "updated", "unchanged", "deleted", "documents")] == [0, 0, 1, 0, 1]
    assert report["files"]["documents"] == {".md": 1} and report["seconds"] >= 0


def test_an_estimate_makes_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Late interaction " * 50)
    status, out, _ = run(capsys, "index", str(tmp_path), "--index", str(tmp_path / "db"), "--estimate", "--json")
    assert status == 0
    assert json.loads(out)["tokens"] == 100
    estimated = json.loads(out)["bytes_on_disk"]
    assert estimated["float16"] == 100 * (2 * 384 + 1) + 850 and estimated["binary"] == 100 * (384 // 8 + 1) + 850
    assert not (tmp_path / "db").exists()


def test_images_in_a_folder_are_left_out_with_a_model_of_texts_and_that_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Late interaction")
    (tmp_path / "b.png").write_bytes(b"")
    status, out, err = run(capsys, "index", str(tmp_path), "--index", str(tmp_path / "db"))
    assert (status, out.startswith("1 added")) == (0, True)
    assert "left out: 1 images, which need a model that reads them" in out
    status, _, err = run(capsys, "index", str(tmp_path / "b.png"), "--index", str(tmp_path / "db"))
    assert status == 1 and "nothing could be read" in err


def test_search_prints_hits_best_first(db, capsys):
    status, out, _ = run(capsys, "search", "a vector per token", "--index", db, "-k", "2")
    assert status == 0
    # First the number that orders them.
    assert re.match(r"  1\. late   with BM25 0\.\d+   score ", out)
    assert "Late interaction keeps one vector" in out
    assert out.count("similarity") == 2
    _, out, _ = run(capsys, "search", "a vector per token", "--index", db, "-k", "2", "--lexical-weight", "0")
    assert out.startswith("  1. late   score ") and "with BM25" not in out
    status, _, err = run(capsys, "search", "flour", "--index", db, "--lexical-weight", "much")
    assert (status, err) == (1, "manyvec: --lexical-weight takes auto or a number from 0 to 1, got 'much'\n")


def test_search_prints_one_json_object(db, capsys):
    _, out, _ = run(capsys, "search", "flour", "--index", db, "--json")
    found = json.loads(out)
    assert found["ordered_by"] == "final_score"
    assert found["hits"][0]["id"] == "bread"
    metadata = found["hits"][0]["metadata"]
    assert {"year": metadata["year"], "lang": metadata["lang"]} == {"year": 2021, "lang": "en"}
    assert metadata["media_type"] == "text/csv"
    assert set(found["hits"][0]) == {"id", "text", "metadata", "score", "similarity", "rank", "final_score", "is_page"}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["year>=2021"], {"bread"}),
        (["year<2021"], {"late"}),
        (["lang=de"], {"brot"}),
        (["lang!=de", "year=2020"], {"late"}),
        (["lang~n"], {"late", "bread"}),
    ],
)
def test_conditions_narrow_a_search(db, capsys, conditions, expected):
    options = [option for condition in conditions for option in ("--where", condition)]
    _, out, _ = run(capsys, "search", "water", "--index", db, "--json", *options)
    assert {hit["id"] for hit in json.loads(out)["hits"]} == expected


def test_compare_shows_where_each_method_has_each_document(db, capsys):
    _, out, _ = run(capsys, "search", "flour and a vector", "--index", db, "-k", "2", "--compare")
    lines = out.splitlines()
    assert lines[0].split() == ["BM25", "pooled", "late", "id", "text"]
    assert {line.split()[3] for line in lines[1:3]} == {"late", "bread"}
    assert "late interaction found 2 of these" in out
    _, out, _ = run(capsys, "search", "flour", "--index", db, "-k", "1", "--compare", "--json")
    compared = json.loads(out)
    # Only one text has the very word; Mehl is flour to no BM25.
    assert compared["standings"][0]["ranks"] == {"bm25": 1, "pooled": 1, "late": 1}
    assert compared["missed"] == {"bm25": [], "pooled": [], "late": []}
    _, out, _ = run(capsys, "search", "xyzzy", "--index", db, "-k", "3", "--compare", "--json", "--where", "lang=en")
    compared = json.loads(out)
    assert {standing["id"] for standing in compared["standings"]} == {"late", "bread"}
    assert set(compared["missed"]["bm25"]) == {"late", "bread"}


def test_info_prints_what_an_index_holds(db, capsys):
    _, out, _ = run(capsys, "info", "--index", db, "--json")
    info = json.loads(out)
    assert (info["documents"], info["model"], info["filter_columns"]) == (3, "minilm", {"year": "int", "lang": "str"})
    _, out, _ = run(capsys, "info", "--index", db)
    assert ["documents", "3"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "x", "--index", "nowhere"], "there is no index at nowhere"),
        (["search", "x", "--index", "{db}", "--where", "author=me"], "no filter column 'author'"),
        (["search", "x", "--index", "{db}", "--where", "year>=soon"], "must be a number, got 'soon'"),
        (["search", "x", "--index", "{db}", "--where", "year>=2_020"], "must be a number, got '2_020'"),
        (["search", "x", "--index", "{db}", "--where", "year"], "'year' is not a condition"),
        (["search", "x", "--index", "{db}", "-k", "-3"], "k must be a non-negative integer"),
        (["index", "nowhere.csv", "--index", "{db}"], "nowhere.csv: no such file"),
        (["eval", "nowhere"], "nowhere"),
        (["info", "--index", "nowhere"], "there is no index at nowhere"),
        (["serve", "--index", "nowhere"], "there is no index at nowhere"),
        (["mcp", "--index", "nowhere"], "there is no index at nowhere"),
        (["search", "x", "--index", "{db}", "--compare", "-k", "-3"], "k must be a non-negative integer"),
        (["search", "x", "--index", "{db}", "--compare", "--lexical-weight", "0.3"], "leave out --lexical-weight"),
        (
            ["search", "x", "-i", "{db}", "--lexical-weight", "2"],
            "lexical_weight must be between 0 and 1, got 2.0",
        ),
        (["index", ".", "--index", "{db}", "--pool-factor", "0"], "--pool-factor must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_status_1(db, capsys, arguments, said):
    status, out, err = run(capsys, *(argument.format(db=db) for argument in arguments))
    assert status == 1
    assert out == ""
    assert err.startswith("manyvec: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "x", "--db", "{db}"], "--db is now --index DIR"),
        (["search", "x", "--filter=year>=2020"], "--filter is now --where CONDITION (search) or --column NAME=TYPE"),
        (["index", "a.csv", "--filter", "year=int"], "--column NAME=TYPE (index)"),
        (["info", "{db}"], "manyvec info --index {db}"),
        (["serve", "{db}", "--port", "0"], "manyvec serve --index {db}"),
        (["mcp", "{db}"], "manyvec mcp --index {db}"),
    ],
)
def test_an_option_that_was_renamed_is_refused_with_its_new_name_and_status_2(db, capsys, arguments, said):
    status, out, err = run(capsys, *(argument.format(db=db) for argument in arguments))
    assert (status, out) == (2, "")
    assert said.format(db=db) in err and err.count("\n") == 1


def test_after_two_dashes_a_query_may_be_spelled_like_an_option(db, capsys):
    status, out, _ = run(capsys, "search", "-i", db, "--json", "--", "--filter")
    assert (status, json.loads(out)["query"]) == (0, "--filter")


@pytest.mark.parametrize(
    "arguments", [["search"], ["index"], ["nothing"], ["search", "x", "--storage", "int8"], ["info", "-k"]]
)
def test_wrong_usage_is_status_2_and_prints_nothing_on_standard_output(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and "manyvec" in err


def test_the_index_is_in_the_working_folder_unless_an_option_or_the_environment_names_another(
    db, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Bread is baked from flour")
    assert run(capsys, "index", "a.txt")[0] == 0
    assert json.loads(run(capsys, "search", "flour", "--json")[1])["hits"][0]["id"] == "a.txt"
    assert (tmp_path / ".manyvec").is_dir()
    monkeypatch.setenv("MANYVEC_INDEX", db)
    assert json.loads(run(capsys, "info", "--json")[1])["documents"] == 3
    assert json.loads(run(capsys, "info", "--json", "--index", ".manyvec")[1])["documents"] == 1


def test_storages_devices_and_the_length_of_passages_are_those_of_the_library():
    from inspect import signature
    from typing import get_args

    from manyvec.cli.commands.index import run as run_index
    from manyvec.cli.options import Device, Storage
    from manyvec.files.splitting import DEFAULT_TOKENS
    from manyvec.models.loading import DEVICES
    from manyvec.vectors.codec import STORAGES

    assert (get_args(Storage), get_args(Device)) == (STORAGES, DEVICES)
    assert signature(run_index).parameters["passage_tokens"].default == DEFAULT_TOKENS


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["index", "--help"],
        ["info", "--index", "nowhere"],
        ["index", "nowhere.txt"],
        ["search", "x", "--index", "nowhere"],
        ["eval", "nowhere"],
        ["serve", "--index", "nowhere"],
    ],
)
def test_help_and_errors_about_paths_import_neither_torch_nor_a_database(arguments):
    script = (
        "import sys; from manyvec.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'lancedb', 'transformers', 'numpy', 'llvmlite'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_an_example_in_its_help(capsys):
    for command in ("index", "search", "info", "delete", "export", "serve", "mcp", "eval", "models"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0 and f"manyvec {command}" in out.partition("Example")[2]
    status, out, _ = run(capsys, "--version")
    assert (status, out) == (0, f"manyvec {manyvec.__version__}\n")


def test_completion_knows_commands_and_the_values_of_options():
    for words, offered in (("manyvec se", {"search", "serve"}), ("manyvec index a --storage int", {"int8", "int4"})):
        environment = os.environ | {
            "_MANYVEC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        command = [sys.executable, "-c", "from manyvec.cli import main; main()"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert set(done.stdout.split()) == offered


def test_tables_are_as_wide_as_the_terminal_and_uncut_without_one(capsys, monkeypatch):
    from manyvec.cli import output

    row = ("a" * 30, "word " * 30, "\x1b[31mred")
    output.print_table(["", "", ""], [row])
    (line,) = capsys.readouterr().out.splitlines()
    assert "word " * 29 in line and "\x1b" not in line
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    output.print_table(["id", "text", "more"], [row])
    out = capsys.readouterr().out
    # Bold headings are no colors.
    assert not re.search("\x1b\\[(3|4)", out)
    lines = re.sub("\x1b\\[\\d*m", "", out).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 60


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with three documents in its default index."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents.csv").write_text(DOCUMENTS)
    index = Index.create(tmp_path / ".manyvec", HashEncoder(16), filter_columns={"year": int, "lang": str})
    rows = [line.split(",") for line in DOCUMENTS.splitlines()[1:]]
    index.add(
        {"id": id, "text": text, "metadata": {"year": int(year) if year else None, "lang": lang, "title": "Zürich"}}
        for id, text, year, lang in rows
    )
    return index


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--id", "bread", "--id", "unknown"], ["brot", "late"]),
        (["--where", "lang=en", "--where", "year>2020"], ["brot", "late"]),
        (["--where", "lang=fr"], ["bread", "brot", "late"]),
    ],
)
def test_delete_removes_what_is_named_and_a_dry_run_only_counts(small, capsys, arguments, left):
    n_deleted = 3 - len(left)
    _, out, _ = run(capsys, "delete", *arguments, "--dry-run", "--json")
    assert json.loads(out) == {"deleted": n_deleted, "documents": 3, "dry_run": True}
    status, out, _ = run(capsys, "delete", *arguments)
    assert (status, out) == (0, f"{n_deleted} deleted; {len(left)} documents in ./.manyvec\n")
    assert small.ids() == left


@pytest.mark.parametrize("arguments", [[], ["--id", "bread", "--where", "lang=en"]])
def test_delete_wants_ids_or_conditions(small, capsys, arguments):
    status, _, err = run(capsys, "delete", *arguments)
    assert status == 2 and "--id" in err and small.count() == 3


def test_an_export_is_what_index_reads_again(small, tmp_path, capsys):
    assert run(capsys, "export", "all.jsonl")[0] == 0
    from manyvec.files import read

    stored = {d.id: (d.text, dict(d.metadata)) for d in small.get(small.ids())}
    back = {d.id: (d.text, d.metadata) for d in read("all.jsonl")}
    assert {id: text for id, (text, _) in back.items()} == {id: text for id, (text, _) in stored.items()}
    assert all(metadata.items() <= back[id][1].items() for id, (_, metadata) in stored.items())
    _, out, _ = run(capsys, "export", "-", "--where", "year>=2020")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["bread", "late"]
    assert run(capsys, "export", "all.parquet")[0] == 0
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert {row["id"]: json.loads(row["metadata"]) for row in rows} == {id: m for id, (_, m) in stored.items()}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("file", "said"), [("all.txt", "must end with .jsonl or .parquet"), ("nowhere/a.jsonl", "no such folder")]
)
def test_an_export_that_cannot_be_written_says_so(small, capsys, file, said):
    status, out, err = run(capsys, "export", file)
    assert (status, out) == (1, "") and said in err and small.count() == 3


def test_an_index_keeps_the_storage_and_the_pooling_it_was_made_with(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Late interaction keeps one vector for every token " * 4)
    index = ("index", str(tmp_path / "a.txt"), "--index", str(tmp_path / "db"))
    assert run(capsys, *index, "--storage", "int8", "--pool-factor", "2")[0] == 0
    _, out, _ = run(capsys, "info", "--index", str(tmp_path / "db"), "--json")
    # Eight words, four times.
    assert (json.loads(out)["storage"], json.loads(out)["pool_factor"], json.loads(out)["tokens"]) == ("int8", 2.0, 16)
    assert run(capsys, *index)[0] == 0
    for options in (("--storage", "int4"), ("--pool-factor", "3")):
        status, _, err = run(capsys, *index, *options)
        assert status == 1 and "has the storage int8 and the pool factor 2" in err


def write_dataset(folder):
    (folder / "qrels").mkdir(parents=True)
    texts = {"1": "Paris is the capital of France", "2": "Berlin is the capital of Germany", "3": "Bread and water"}
    lines = [json.dumps({"_id": id, "title": "", "text": text, "metadata": {}}) for id, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    queries = {"a": "capital of France", "b": "baked bread"}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\nb\t3\t1\n")


def test_eval_compares_three_methods_and_the_default_search_and_names_the_measures(tmp_path, capsys):
    write_dataset(tmp_path / "set")
    status, out, _ = run(capsys, "eval", str(tmp_path / "set"), "--json")
    assert status == 0
    results = json.loads(out)
    assert list(results) == ["bm25", "pooled", "maxsim", "default"]
    assert results["maxsim"] == {"nDCG@10": 1, "Recall@10": 1, "Recall@100": 1, "MRR@10": 1, "Success@5": 1}
    _, out, _ = run(capsys, "eval", str(tmp_path / "set"), "--index", str(tmp_path / "db"))
    assert "nDCG@10" in out
    assert "maxsim" in out
    assert Index.open(tmp_path / "db").count() == 3
    _, out, _ = run(capsys, "eval", str(tmp_path / "set"), "--index", str(tmp_path / "db"), "--mix")
    # MaxSim is right for both queries, so nothing is better.
    assert "lexical_weight=0 changes nDCG@10 by +0.0000" in out
    assert "Search with lexical_weight=0, in the shell --lexical-weight, instead of auto, which is 0.27" in out
    results = json.loads(
        run(capsys, "eval", str(tmp_path / "set"), "--index", str(tmp_path / "db"), "--mix", "--json")[1]
    )
    assert results["mix"]["chosen_on"]["0.0"] == results["maxsim"]["nDCG@10"] == 1


def test_python_m_manyvec_is_the_command(db):
    command = [sys.executable, "-m", "manyvec", "info", "--index", db, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["documents"] == 3


def test_models_lists_every_family_with_dims_sizes_and_what_each_is_good_for(capsys):
    from manyvec.models.families import FAMILIES

    status, out, _ = run(capsys, "models")
    assert status == 0
    for family in FAMILIES:
        assert f"{family.name} ({family.reads})" in out
    line = next(line for line in out.splitlines() if "mxbai-edge-colbert-v0-17m" in line)
    assert line.split()[1:] == ["48", "dims", "17M", "English;", "best", "for", "a", "CPU"]
    listed = json.loads(run(capsys, "models", "--json")[1])
    assert {"minilm": 384, "minilm-late": 128}.items() <= {model["name"]: model["dim"] for model in listed}.items()
