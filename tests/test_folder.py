"""A folder of ordinary files, made here, from the command to an answer that can be quoted."""

import gzip
import json
import os
import signal
import subprocess
import sys

import pytest

from manyvec import Index
from manyvec.cli import main

# What each file is about, and a question that only it can answer.
FACTS = {
    "notes/bakery.txt": ("Our bakery opens at six in the morning.", "when does the bakery open"),
    "notes/museum.md": ("# Museum\n\nThe museum is closed on Mondays.", "which day is the museum closed"),
    "notes/train.rst": ("Train\n=====\n\nThe last train to Basel leaves at 23:40.", "last train to Basel"),
    "code/retry.py": (
        'def retry():\n    """Try a failed upload three times."""\n',
        "how often is an upload tried",
    ),
    "code/config.toml": ("[server]\nport = 8765  # the server listens here\n", "which port does the server listen on"),
    "code/Makefile": ("deploy:\n\techo the deploy target copies files to production\n", "copy files to production"),
    "logs/app.out": ("ERROR disk full on host saturn\n", "which host has a full disk"),
    "data/people.csv": ("id;text\n0;Marie Curie discovered polonium and radium\n", "who discovered radium"),
    "data/cities.tsv": ("name\tpopulation\nReykjavik\t140000\n", "population of Reykjavik"),
    "data/faq.jsonl": ('{"content": "Refunds are paid within 14 days."}\n', "how long do refunds take"),
    "data/menu.json": ('{"dishes": [{"text": "Monday: lentil soup"}, {"text": "Tuesday: pizza"}]}', "lentil soup"),
    "data/old.csv": ("id,text\n7,Café Zürich schließt um Mitternacht\n".encode("latin-1"), "Café Zürich Mitternacht"),
    "data/wide.txt": ("The password policy requires twelve characters.".encode("utf-16"), "password length policy"),
    "data/packed.txt.gz": (gzip.compress(b"Penguins live in Antarctica."), "where do penguins live"),
    "web/page.html": ("<html><body><h1>Vacation</h1><p>Employees have 25 days off.</p></body></html>", "days off"),
    "web/mail.eml": (
        "From: a@x.invalid\r\nSubject: Offsite\r\n\r\nThe offsite takes place in Lisbon.\r\n",
        "offsite",
    ),
    "web/book.ipynb": (
        json.dumps(
            {
                "cells": [
                    {"cell_type": "markdown", "source": ["The model converged after 40 epochs."], "metadata": {}}
                ],
                "metadata": {},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        ),
        "after how many epochs did the model converge",
    ),
}
BROKEN = {
    "broken/a.pdf": b"%PDF-1.4 nothing",
    "broken/b.docx": b"no zip",
    "broken/c.bin": bytes(range(256)),
    "broken/d.jsonl": b'{"text"\n',
    "broken/e.json": b"{",
    "broken/f.gz": b"no gzip",
    "broken/g.dat": b"\0\1",
    "broken/h.txt": b"  \n",
    "broken/i.zip": b"PK",
    "broken/j.doc": b"\xd0\xcf\x11",
}
LEFT_OUT = (".env", ".git/HEAD", "node_modules/a/index.js", "__pycache__/x.txt", "secret/key.txt")
N_FILLERS = 54 - len(FACTS) - 3 - len(BROKEN) - len(LEFT_OUT)


def office_files(folder):
    docx, pptx, openpyxl = (pytest.importorskip(name) for name in ("mammoth", "pptx", "openpyxl"))
    assert docx
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Roadmap", "The mobile app ships in September."
    presentation.save(folder / "roadmap.pptx")
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    for row in (["item", "price"], ["espresso machine", "490 euros"]):
        book.active.append(row)
    book.save(folder / "prices.xlsx")
    return {"roadmap.pptx": "when does the mobile app ship", "prices.xlsx": "price of the espresso machine"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("markitdown", reason="needs the files extra")
    pytest.importorskip("pypdfium2")
    top = tmp_path_factory.mktemp("folder")
    contents = {name: content for name, (content, _) in FACTS.items()} | BROKEN
    contents |= dict.fromkeys(LEFT_OUT, "the launch code is 0000")
    contents |= {f"filler/{n}.txt": f"Chapter {n} tells of rivers, hills and number {n}." for n in range(N_FILLERS)}
    contents[".gitignore"] = "secret/\n"
    for name, content in contents.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content if isinstance(content, bytes) else content.encode())  # type: ignore[attr-defined]
    return top


def test_fifty_four_ordinary_files_are_read_or_listed_and_answer_their_questions(folder, make_pdf, capsys, monkeypatch):
    questions = {question: name for name, (_, question) in FACTS.items()}
    questions |= {question: name for name, question in office_files(folder).items()}
    (folder / "contract.pdf").write_bytes(make_pdf("Preface", "The notice period is three months"))
    questions["how long is the notice period"] = "contract.pdf"
    assert len(questions) == 20
    monkeypatch.chdir(folder)
    # Without any option: an index in the folder itself, which is not read as a document.
    assert main(["index", ".", "--json"]) == 3
    out = json.loads(capsys.readouterr().out)
    report = out["files"]
    assert {problem["path"] for problem in report["problems"]} == set(BROKEN)
    assert all(problem["reason"] for problem in report["problems"])
    assert sum(report["files"].values()) == len(FACTS) + 3 + N_FILLERS
    assert report["left_out"]["hidden"] >= 2 and report["left_out"]["vendored"] == 2
    answered = 0
    for question, name in questions.items():
        assert main(["search", question, "-k", "1", "--json"]) == 0
        (hit,) = json.loads(capsys.readouterr().out)["hits"]
        answered += hit["metadata"]["source"] == name
    assert answered >= 18
    assert "launch code" not in " ".join(d.text for d in Index.open(".manyvec").get(Index.open(".manyvec").ids()))
    # The second time nothing is encoded.
    assert main(["index", str(folder), "--sync", "--json"]) == 3
    again = json.loads(capsys.readouterr().out)
    assert (again["added"], again["updated"], again["deleted"]) == (0, 0, 0)
    assert again["unchanged"] == out["documents"]


def run(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_report_of_the_command_is_a_table_by_suffix_and_a_line_for_each_problem(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("flour")
    (tmp_path / "b.bin").write_bytes(b"\0\1")
    (tmp_path / ".hidden").write_text("x")
    status, out, _ = run(capsys, "index", ".")
    lines = [line.split() for line in out.splitlines()]
    assert status == 3
    assert [".txt", "1", "1"] in lines and ["b.bin", "a", "binary", "file"] in lines
    assert "left out: 2 hidden" in out  # one of them is the index
    status, _, err = run(capsys, "index", "b.bin")
    assert (status, "nothing could be read" in err) == (1, True)
    status, _, err = run(capsys, "index", ".", "--strict")
    assert (status, "b.bin: a binary file" in err) == (1, True)
    assert run(capsys, "index", "a.txt")[0] == 0


def test_ids_are_the_same_from_every_folder_and_after_a_move(tmp_path, capsys, monkeypatch):
    project = tmp_path / "project"
    (project / "docs").mkdir(parents=True)
    (project / "docs" / "a.md").write_text("flour")
    monkeypatch.chdir(project)
    assert run(capsys, "index", "docs/a.md")[0] == 0
    monkeypatch.chdir(project / "docs")
    for path in ("a.md", "../docs", str(project / "docs" / "a.md")):
        _, out, _ = run(capsys, "index", path, "--index", "../.manyvec", "--json")
        assert json.loads(out)["unchanged"] == 1
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "moved")
    _, out, _ = run(capsys, "index", "moved/docs", "--index", "moved/.manyvec", "--sync", "--json")
    assert (json.loads(out)["unchanged"], json.loads(out)["deleted"]) == (1, 0)
    status, _, err = run(capsys, "index", "moved/docs", "--index", "moved/.manyvec", "--root", "moved/docs")
    assert status == 1 and "leave out --root" in err


def test_sync_deletes_what_is_gone_and_a_dry_run_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("flour")
    (tmp_path / "docs" / "b.txt").write_text("water")
    status, out, _ = run(capsys, "index", "docs", "--dry-run")
    assert status == 0 and "2 would be added" in out and not (tmp_path / ".manyvec").exists()
    run(capsys, "index", "docs")
    (tmp_path / "docs" / "b.txt").rename(tmp_path / "docs" / "c.txt")
    _, out, _ = run(capsys, "index", "docs", "--sync", "--dry-run", "--json")
    assert {key: json.loads(out)[key] for key in ("added", "moved", "unchanged", "deleted", "documents")} == {
        "added": 0, "moved": 1, "unchanged": 1, "deleted": 0, "documents": 2,
    }  # fmt: skip
    run(capsys, "index", "docs", "--sync")
    assert Index.open(".manyvec").ids() == ["docs/a.txt", "docs/c.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_watch_prints_a_line_for_each_set_of_changes(tmp_path):
    pytest.importorskip("watchfiles")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("flour")
    script = "import sys; from manyvec.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "index", "docs", "--watch"]
    # A test that runs in the background of a shell would hand on that SIGINT is ignored.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert "1 added, 0 updated, 0 unchanged; 1 documents" in process.stdout.readline()
        (tmp_path / "docs" / "b.txt").write_text("water")
        assert "1 added" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert Index.open(tmp_path / ".manyvec").ids() == ["docs/a.txt", "docs/b.txt"]
    status = main(["index", str(tmp_path), "--watch", "--json"])
    assert status == 1


def test_a_long_file_comes_back_as_passages(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paragraphs = [f"Paragraph {n} is about the number {n} and nothing else of note." for n in range(300)]
    paragraphs[200] = "The treasure is buried under the old oak tree."
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    run(capsys, "index", "book.txt", "--passage-tokens", "64")
    _, out, _ = run(capsys, "search", "where is the treasure", "-k", "1", "--json")
    (hit,) = json.loads(out)["hits"]
    assert "oak tree" in hit["text"] and len(hit["text"]) < 600
    assert (tmp_path / "book.txt").read_text()[hit["metadata"]["start"] : hit["metadata"]["end"]] == hit["text"]
    assert hit["metadata"]["source"] == "book.txt"


def test_sync_keeps_the_rows_of_a_table_in_which_one_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    table = tmp_path / "docs" / "a.csv"
    table.write_text("id,text,year\na,flour,2020\nb,water,2021\n")
    run(capsys, "index", "docs", "--column", "year=int")
    table.write_text("id,text,year\na,flour,2020\nb,water,soon\n")
    monkeypatch.chdir(tmp_path / "docs")
    assert run(capsys, "index", ".", "--index", "../.manyvec", "--sync")[0] == 3
    assert Index.open("../.manyvec").ids() == ["a", "b"]


@pytest.mark.parametrize("option", [[], ["--sync"]])
def test_ids_that_come_twice_are_counted_and_named(tmp_path, capsys, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": "same", "text": "flour of {name}"}}')
    status, out, _ = run(capsys, "index", ".", *option)
    assert status == 0 and "note: 1 ids came more than once, such as 'same': the last document is stored" in out
    assert [d.text for d in Index.open(".manyvec").get("same")] == ["flour of b"]


def test_a_row_whose_value_does_not_fit_its_column_is_reported_and_the_others_are_added(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("id,text,year\na,flour,2020\nb,water,soon\nc,salt,\n")
    status, out, _ = run(capsys, "index", "a.csv", "--column", "year=int", "--json")
    assert status == 3 and "'year' must be a number, got 'soon'" in json.loads(out)["files"]["problems"][0]["reason"]
    assert Index.open(".manyvec").ids() == ["a", "c"]


def test_a_model_is_not_loaded_where_options_are_wrong(tmp_path):
    (tmp_path / "a.txt").write_text("flour")
    script = (
        "import sys; from manyvec.cli import main; status = main(sys.argv[1:]); "
        "print(status, 'sentence_transformers' in sys.modules)"
    )
    for arguments in (["nowhere.txt"], ["a.txt", "--column", "year=integer"], ["a.txt", "--passage-tokens", "-1"]):
        command = [sys.executable, "-c", script, "index", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=True)
        assert done.stdout.split()[-2:] == ["1", "False"], done.stderr
