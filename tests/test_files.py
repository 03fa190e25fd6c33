"""Files in, documents out: every kind of file, small ones made here, broken ones among them."""

import gzip
import io
import json
import os
import sys
import threading
import time
import zipfile

import pytest

from manyvec import Index, InputError
from manyvec.files import FileReport, Splitter, read, split, sync, watch
from manyvec.testing import CountingEncoder, HashEncoder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(*paths, **options):
    """The documents, and the report of what was not read."""
    report = FileReport()
    return list(read(paths, report=report, **options)), report


def reasons(report):
    return {os.path.basename(problem.path): problem.reason for problem in report.problems}


# Records


def test_json_lines_keep_ids_titles_and_metadata(tmp_path):
    lines = [
        {"_id": "a", "title": "Title", "text": "text", "metadata": {"year": 2024}},
        {"id": "b", "text": "other", "lang": "en"},
        {"_id": 0, "text": "zero is an id"},
        {"id": "", "text": "no id"},
        {"_id": "blank", "title": "", "text": " "},
    ]
    path = write(tmp_path / "x.jsonl", "\n\n".join(map(json.dumps, lines)))
    (a, b, zero, unnamed), report = read_all(path, root=tmp_path)
    assert (a.id, a.text, a.metadata["title"], a.metadata["year"]) == ("a", "Title text", "Title", 2024)
    assert (b.id, b.metadata["lang"], b.metadata["source"]) == ("b", "en", "x.jsonl")
    assert (zero.id, unnamed.id) == ("0", "x.jsonl#line=7")
    assert report.notes == [f"{path.as_posix()}: 1 records without text were skipped"]


def test_metadata_of_a_record_is_kept_where_its_file_has_the_same_keys(tmp_path):
    write(tmp_path / "a.csv", "text,source,modified,page\nflour,Wikipedia,yesterday,7\n")
    (document,) = read(tmp_path)
    kept = {key: document.metadata[key] for key in ("source", "modified", "page")}
    assert kept == {"source": "Wikipedia", "modified": "yesterday", "page": "7"}


@pytest.mark.parametrize("key", ["text", "content", "page_content", "body", "passage"])
def test_usual_names_of_the_text_are_known_in_every_format(tmp_path, key):
    write(tmp_path / "a.jsonl", json.dumps({"id": 1, key: "flour"}))
    write(tmp_path / "b.csv", f"id,{key}\n2,flour\n")
    write(tmp_path / "c.json", json.dumps({"rows": [{"id": 3, key: "flour"}, {"id": 4, key: "flour"}]}))
    write(tmp_path / "d.ndjson", json.dumps({"id": 5, key: "flour"}))
    documents, _ = read_all(tmp_path)
    assert [(d.id, d.text) for d in documents] == [(str(n), "flour") for n in range(1, 6)]


def test_a_text_column_may_be_named_and_may_lie_deep(tmp_path):
    write(tmp_path / "a.csv", "title,story\nT,once\n")
    write(tmp_path / "b.jsonl", json.dumps({"id": 7, "data": {"story": "deep"}}))
    assert [d.text for d in read(tmp_path / "a.csv", text_key="story")] == ["T once"]
    assert [(d.id, d.text) for d in read(tmp_path / "b.jsonl", text_key="data.story")] == [("7", "deep")]
    _, report = read_all(tmp_path, text_key="nowhere")
    assert "no column 'nowhere'; it has 'title', 'story'" in reasons(report)["a.csv"]
    assert "no 'nowhere' in it" in reasons(report)["b.jsonl"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_tables_are_read_with_their_delimiter_and_encoding(tmp_path, delimiter, encoding):
    rows = [["id", "title", "text", "lang"], ["1", "Café", '"Zürich, déjà\nvu; a|b"', "fr"], ["2", "", "naïve", ""]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    write(tmp_path / "x.csv", text.encode(encoding))
    (first, second), _ = read_all(tmp_path)
    assert (first.id, first.text, first.metadata["lang"]) == ("1", "Café Zürich, déjà\nvu; a|b", "fr")
    assert (second.text, second.metadata["lang"]) == ("naïve", "")


def test_a_table_without_a_text_column_is_read_whole_and_that_is_said(tmp_path):
    write(tmp_path / "x.csv", "id;name;city\n0;Anna;Zürich\n")
    (row,), report = read_all(tmp_path)
    assert (row.id, row.text, row.metadata["city"]) == ("0", "name: Anna\ncity: Zürich", "Zürich")
    assert "each row is read whole (--text-column names one)" in report.notes[0]


def test_a_bad_line_is_reported_and_the_others_are_read(tmp_path):
    lines = ['{"text": "a"}', '{"text"', '["a"]', '{"text": 3}', '{"text": "a", "metadata": "b"}', '{"text": "z"}']
    write(tmp_path / "x.jsonl", "\n".join(lines))
    documents, report = read_all(tmp_path, root=tmp_path)
    assert [d.id for d in documents] == ["x.jsonl#line=1", "x.jsonl#line=6"]
    said = [problem.reason for problem in report.problems]
    assert [reason.partition(":")[0] for reason in said] == ["line 2", "line 3", "line 4", "line 5"]
    assert "expected an object" in said[1] and "must be strings" in said[2] and "metadata must be an object" in said[3]
    with pytest.raises(InputError, match=r"x.jsonl: line 2: not JSON"):
        list(read(tmp_path))


def test_of_very_many_bad_lines_the_first_are_listed_and_all_counted(tmp_path):
    write(tmp_path / "x.jsonl", "nonsense\n" * 1000 + '{"text": "a"}')
    documents, report = read_all(tmp_path)
    assert (len(documents), len(report.problems), report.n_problems) == (1, 5, 1000)


def test_json_nested_ten_thousand_deep_is_a_line_in_the_report(tmp_path):
    write(tmp_path / "x.json", "[" * 100_000 + "]" * 100_000)
    write(tmp_path / "y.jsonl", '{"text": "a", "b": ' + "[" * 100_000 + "]" * 100_000 + "}")
    write(tmp_path / "z.txt", "text")
    documents, report = read_all(tmp_path)
    assert [d.text for d in documents] == ["text"] and set(reasons(report)) == {"x.json", "y.jsonl"}


def test_a_cell_that_never_ends_is_a_line_in_the_report(tmp_path):
    write(tmp_path / "x.csv", 'text,lang\nfirst,en\n"' + "never closed " * 2_000_000)
    documents, report = read_all(tmp_path)
    assert [d.text for d in documents] == ["first"] and "field larger than" in reasons(report)["x.csv"]


# Text files


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Zürich 東京 🙂"),
        ("utf-8-sig", "Zürich 東京"),
        ("utf-16", "Zürich 東京"),
        ("utf-16-le", "Zürich is a town"),
        ("utf-16-be", "Zürich is a town"),
        ("utf-32", "Zürich 東京"),
        ("latin-1", "Größe der Straße: fünf Meter, très joli déjà vu"),
        ("cp1252", "“Größe” – café, 5 €"),
        ("cp1251", "Привет, мир! Как дела сегодня? Всё хорошо."),
        ("shift_jis", "これは日本語の文章です。東京は日本の首都です。"),
    ],
)
def test_text_is_read_in_the_encoding_it_is_in(tmp_path, encoding, text):
    write(tmp_path / "a.txt", text.encode(encoding))
    assert [d.text for d in read(tmp_path)] == [text]
    write(tmp_path / "a.txt", ((text.isascii() and text) or text + "\n").encode(encoding) * 3)
    (document,) = read(tmp_path)
    assert "\ufffd" not in document.text and text in document.text


def test_a_letter_of_another_encoding_at_the_end_of_a_long_file_is_seen(tmp_path):
    write(tmp_path / "a.txt", b"plain words. " * 200_000 + "Zürich".encode("latin-1"))
    (document,) = read(tmp_path)
    assert document.text.endswith("Zürich")


@pytest.mark.parametrize("name", ["a.py", "a.rst", "Makefile", "a.log", "a.toml", "LICENSE", "a.weird"])
def test_text_of_any_suffix_is_read(tmp_path, name):
    write(tmp_path / name, "words")
    (document,) = read(tmp_path, root=tmp_path)
    assert (document.id, document.metadata["source"]) == (name, name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", bytes(range(256)) * 9, "a binary file"),
        ("a.txt", b"\x7fELF\0\0\0\1", "a binary file"),
        ("a.zip", b"PK", "an archive"),
        ("a.tar.gz", gzip.compress(b"ustar", mtime=0), "an archive"),
        ("a.parquet", b"PAR1", "manyvec import"),
        ("a.doc", b"\xd0\xcf", "save it as .docx"),
        ("a.dat", b"\0\1", "a binary file"),
        ("a.txt", b" \n ", "no text in it"),
        ("a.md", b"", "no text in it"),
        ("a.rst", b"----\n====", "no text in it"),
        ("a.csv", b"", "no text in it"),
        ("a.jsonl.gz", b"no gzip", "gzip file is damaged"),
        ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:20], "gzip file is damaged"),
        ("a.json", b"{", "not JSON"),
        ("a.docx", b"PK\3\4 and nothing", "damaged"),
        ("a.xlsx", b"no zip at all", "damaged"),
        ("a.eml", b"", "neither headers nor a text"),
    ],
)
def test_what_cannot_be_read_has_a_line_with_the_reason_and_stops_nothing(tmp_path, name, content, said):
    pytest.importorskip("markitdown", reason="needs the files extra")
    write(tmp_path / name, content)
    write(tmp_path / "z.md", "the last file")
    documents, report = read_all(tmp_path)
    assert [d.text for d in documents] == ["the last file"]
    assert said in reasons(report)[name] and report.n_problems == 1
    with pytest.raises(InputError, match=name):
        list(read(tmp_path))


def test_gzipped_text_and_records_are_read(tmp_path):
    write(tmp_path / "a.txt.gz", gzip.compress("Zürich".encode("utf-16")))
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"id": "b", "text": "line"}'))
    write(tmp_path / "c.csv.gz", gzip.compress(b"id;text\nc;cell\n"))
    assert [d.text for d in read(tmp_path)] == ["Zürich", "line", "cell"]


def test_bombs_are_refused_before_they_fill_the_memory(tmp_path):
    pytest.importorskip("markitdown", reason="needs the files extra")
    write(tmp_path / "a.txt.gz", gzip.compress(b"0" * 100 * 2**20))
    with zipfile.ZipFile(tmp_path / "b.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 100 * 2**20)
    documents, report = read_all(tmp_path)
    assert documents == []
    assert "expands to more than 64 MB" in reasons(report)["a.txt.gz"]
    assert "expands to 100 MB" in reasons(report)["b.docx"]


# Office files


def test_slides_and_sheets_are_documents_with_their_number_or_name(tmp_path):
    pptx, openpyxl = pytest.importorskip("pptx"), pytest.importorskip("openpyxl")
    pytest.importorskip("markitdown")
    presentation = pptx.Presentation()
    for title in ("Plans", "Costs"):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, f"About {title.lower()}"
    presentation.save(tmp_path / "a.pptx")
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    book.active.append(["item", "price"])
    book.active.append(["bread", 3])
    book.create_sheet("Empty")
    book.create_sheet("Cities").append(["Zürich"])
    book.save(tmp_path / "b.xlsx")
    plans, costs, prices, cities = (d for d in read(tmp_path, root=tmp_path) if d.text.strip("| -\n"))
    assert (plans.id, plans.metadata["page"]) == ("a.pptx#page=1", 1)
    assert "About costs" in costs.text and costs.metadata["page"] == 2
    assert (prices.metadata["sheet"], "bread" in prices.text) == ("Prices", True)
    assert cities.metadata["sheet"] == "Cities" and "Zürich" in cities.text


def test_pages_of_the_web_notebooks_and_mails_lose_what_is_no_text(tmp_path):
    pytest.importorskip("markitdown")
    head = "<head><title>Bread</title><script>steal()</script><style>p {}</style></head>"
    write(
        tmp_path / "a.html", f"<html>{head}<body><h1>Baking</h1><img src='http://x.invalid/'><p>Flour</p></body></html>"
    )
    cells = [
        {"cell_type": "markdown", "source": ["# Notes"], "metadata": {}},
        {"cell_type": "code", "source": ["print('flour')"], "metadata": {}, "outputs": [], "execution_count": 1},
    ]
    write(tmp_path / "b.ipynb", json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    mail = "From: a@x.invalid\r\nSubject: Recipe\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nUse flour.\r\n"
    write(tmp_path / "c.eml", mail)
    page, notebook, message = read(tmp_path)
    assert page.metadata["title"] == "Bread" and page.text.startswith("# Baking") and "steal" not in page.text
    assert "# Notes" in notebook.text and "print('flour')" in notebook.text
    assert message.text == "From: a@x.invalid\nSubject: Recipe\n\nUse flour.\n"


# PDFs


def test_a_pdf_is_a_document_for_each_page_and_scans_are_named(tmp_path, make_pdf):
    pytest.importorskip("pypdfium2")
    path = write(tmp_path / "report.pdf", make_pdf("Annual report", "", "", "Costs", ""))
    (first, fourth), report = read_all(path, root=tmp_path)
    assert (first.id, first.text, first.metadata["page"]) == ("report.pdf#page=1", "Annual report", 1)
    assert (fourth.id, fourth.image) == ("report.pdf#page=4", None)
    assert reasons(report)["report.pdf"] == "pages 2-3, 5 without text: a scan needs a model that reads images"


def test_a_page_is_an_image_with_its_text_beside_it_for_models_that_read_images(tmp_path, make_pdf):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pypdfium2")
    path = write(tmp_path / "report.pdf", make_pdf("Annual report", ""))
    (first, second), report = read_all(path, root=tmp_path, pages="image")
    assert (first.id, first.text, report.problems) == ("report.pdf#page=1", "Annual report", [])
    # Without a text of its own it is found by the name of the file.
    assert (second.id, second.text) == ("report.pdf#page=2", "report.pdf, page 2")
    drawn, blank = (image.open(io.BytesIO(d.image)).convert("L") for d in (first, second))
    assert drawn.size == blank.size == (600, 400)
    assert (drawn.getextrema()[0] < 50, blank.getextrema()) == (True, (255, 255))
    both = [(d.id, d.image is None) for d in read(path, root=tmp_path, pages="both")]
    assert both == [("report.pdf#page=1", True), ("report.pdf#page=1,image", False), ("report.pdf#page=2,image", False)]


def test_the_pages_of_a_pdf_are_rendered_when_their_turn_comes(tmp_path, make_pdf, monkeypatch):
    pypdfium2 = pytest.importorskip("pypdfium2")
    rendered = []
    render = pypdfium2.PdfPage.render
    monkeypatch.setattr(pypdfium2.PdfPage, "render", lambda self, **o: rendered.append(1) or render(self, **o))
    write(tmp_path / "a.pdf", make_pdf("one", "two", "three"))
    documents = read(tmp_path, pages="image")
    assert (next(documents).text, len(rendered)) == ("one", 1)
    documents.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-1.4 and then nothing of the kind",
        b"",
        "password",
        "truncated",
    ],
    ids=["damaged", "empty", "password", "truncated"],
)
def test_a_pdf_that_cannot_be_read_has_a_line(tmp_path, make_pdf, content):
    pytest.importorskip("pypdfium2")
    if content == "password":
        locks = f"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/O<{'11' * 32}>/U<{'22' * 32}>/P -4>>"
        content = make_pdf("secret", trailer=locks)
    elif content == "truncated":
        content = make_pdf("cut in the middle")[:150]
    write(tmp_path / "bad.pdf", content)
    documents, report = read_all(tmp_path)
    assert documents == [] and ("damaged" in reasons(report)["bad.pdf"] or "password" in reasons(report)["bad.pdf"])


def test_images_of_a_folder_are_documents_for_models_that_read_images(tmp_path):
    for name in ("b.PNG", "c.jpeg", "d.webp"):
        write(tmp_path / name, b"an image that nobody opens here")
    write(tmp_path / "a.txt", "text")
    documents, report = read_all(tmp_path)
    assert [d.text for d in documents] == ["text"]
    assert report.left_out == {"images, which need a model that reads them": 3} and report.problems == []
    text, *images = read(tmp_path, root=tmp_path, pages="image")
    assert text.image is None
    assert [(d.id, d.text, d.image) for d in images] == [
        (name, name, tmp_path / name) for name in ("b.PNG", "c.jpeg", "d.webp")
    ]


# Which files


def tree(folder, *names):
    for name in names:
        write(folder / name, f"words of {name}")


def sources(folder, **options):
    return [d.metadata["source"] for d in read(folder, root=folder, **options)]


def test_hidden_vendored_and_ignored_files_are_left_out_unless_asked_for(tmp_path):
    tree(tmp_path, "a.txt", ".secret", ".git/config", "node_modules/x/i.js", "__pycache__/b.txt", "target/c.txt")
    tree(tmp_path, "venv/pyvenv.cfg", "venv/lib.py", "build/out.txt", "logs/x.log", "logs/keep.log", "docs/build/d.txt")
    write(tmp_path / ".gitignore", "*.log\n/build/\n")
    write(tmp_path / "logs/.gitignore", "!keep.log\n")
    # An ordinary folder may be called `target`.
    assert sources(tmp_path) == ["a.txt", "docs/build/d.txt", "logs/keep.log", "target/c.txt"]
    # The rules of the repository hold inside its folders as well.
    assert sources(tmp_path / "logs") == ["keep.log"]
    assert len(sources(tmp_path, everything=True)) == 14
    # A file that is named is read.
    assert [d.id for d in read(tmp_path / "build" / "out.txt", root=tmp_path)] == ["build/out.txt"]


def test_globs_include_and_exclude(tmp_path):
    tree(tmp_path, "a.txt", "b.md", "docs/c.md", "docs/old/d.md", "src/e.py")
    assert sources(tmp_path, include=["*.md"]) == ["b.md", "docs/c.md", "docs/old/d.md"]
    assert sources(tmp_path, include=["*.md"], exclude=["old/"]) == ["b.md", "docs/c.md"]
    assert sources(tmp_path, exclude=["/docs", "*.py"]) == ["a.txt", "b.md"]


def test_one_file_is_one_document_however_it_is_named(tmp_path, monkeypatch):
    tree(tmp_path, "docs/a.md", "docs/b.md")
    monkeypatch.chdir(tmp_path / "docs")
    os.symlink(tmp_path / "docs" / "a.md", tmp_path / "docs" / "link.md")
    os.symlink(tmp_path / "docs", tmp_path / "docs" / "loop")
    paths = ["a.md", "../docs/a.md", str(tmp_path / "docs" / "a.md"), "link.md", ".", "./b.md"]
    assert [d.id for d in read(paths)] == ["a.md", "b.md"]
    for path in paths[:4]:
        assert [d.id for d in read(path, root=tmp_path)] == ["docs/a.md"]


def test_a_missing_path_is_named_before_anything_is_read(tmp_path):
    tree(tmp_path, "a.txt")
    documents = read([tmp_path / "a.txt", tmp_path / "nowhere"], report=FileReport())
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        next(documents)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_pipes_dangling_links_and_odd_names_harm_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "link")
    write(tmp_path / os.fsdecode(b"odd\xff.txt"), "odd")
    documents, report = read_all(tmp_path, root=tmp_path)
    assert [(d.id, d.text) for d in documents] == [("odd\\xff.txt", "odd")]
    assert reasons(report) == {
        "link": "a symbolic link to nothing",
        "pipe": "not a regular file (a pipe, socket or device)",
    }


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_have_a_line(tmp_path):
    tree(tmp_path, "a.txt", "b.txt", "c/d.txt")
    (tmp_path / "a.txt").chmod(0)
    (tmp_path / "c").chmod(0)
    documents, report = read_all(tmp_path)
    (tmp_path / "c").chmod(0o700)
    assert [d.text for d in documents] == ["words of b.txt"] and set(reasons(report)) == {"a.txt", "c"}


def test_a_file_that_vanishes_while_others_are_read_has_a_line(tmp_path):
    tree(tmp_path, "a.txt", "b.txt", "c.txt")
    report = FileReport()
    documents = read(tmp_path, report=report)
    next(documents)
    (tmp_path / "b.txt").unlink()
    assert [d.text for d in documents] == ["words of c.txt"]
    assert "b.txt" in reasons(report)


def test_the_folder_of_an_index_is_no_folder_of_documents(tmp_path):
    tree(tmp_path, "a.txt")
    Index.create(tmp_path / "index", HashEncoder(16)).add(read(tmp_path))
    documents, report = read_all(tmp_path)
    assert [d.text for d in documents] == ["words of a.txt"] and report.left_out == {"indexes": 1}


def test_the_report_counts_by_suffix(tmp_path):
    tree(tmp_path, "a.txt", "b.TXT", "README")
    write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}'))
    _, report = read_all(tmp_path)
    assert report.files == {".txt": 2, "(no suffix)": 1, ".jsonl.gz": 1}
    assert report.documents == {".txt": 2, "(no suffix)": 1, ".jsonl.gz": 2}
    assert json.loads(json.dumps(report.to_dict()))["n_problems"] == 0


# Passages


def test_passages_are_exact_parts_of_the_text_and_know_their_heading(tmp_path):
    sections = [f"# Part {n}\n\nIntroduction {n}.\n\n## Detail {n}\n\n" + f"word{n} " * 90 for n in range(4)]
    write(tmp_path / "a.md", "\n\n".join(sections) + "\n\n```\n# no heading\n```\n")
    (whole,) = read(tmp_path, root=tmp_path)
    passages = list(split([whole], max_tokens=50))
    assert len(passages) > 8
    assert all(whole.text[p.metadata["start"] : p.metadata["end"]] == p.text for p in passages)
    assert "".join("".join(p.text.split()) for p in passages) == "".join(whole.text.split())
    assert all(len(p.text.split()) <= 50 for p in passages)
    last_words = [p for p in passages if "word3" in p.text]
    assert {p.metadata["heading"] for p in last_words} == {"Part 3 > Detail 3"}
    assert not any("no heading" in p.metadata.get("heading", "") for p in passages)


def test_a_passage_keeps_its_id_when_another_part_of_the_file_changes(tmp_path):
    paragraphs = [f"Paragraph {n} is about topic {n}. " * 5 for n in range(10)]
    before = {p.id for p in split(read(write(tmp_path / "a.txt", "\n\n".join(paragraphs))), max_tokens=40)}
    paragraphs[0] = "Something else stands here now. " * 5
    after = {p.id for p in split(read(write(tmp_path / "a.txt", "\n\n".join(paragraphs))), max_tokens=40)}
    assert len(before) == len(after) == 10 and len(before & after) == 9


def test_passages_with_the_same_words_have_ids_of_their_own():
    from manyvec import Document

    passages = list(split([Document("a", "same words here\n\n" * 6)], max_tokens=3))
    assert len({p.id for p in passages}) == len(passages) == 6


def test_short_documents_records_and_images_are_not_split(tmp_path):
    write(tmp_path / "a.jsonl", json.dumps({"id": "r", "text": "word " * 500}))
    write(tmp_path / "b.txt", "short")
    record, short = read(tmp_path, root=tmp_path, splitter=Splitter(10))
    assert (record.id, short.id) == ("r", "b.txt")
    assert "start" not in short.metadata


def test_texts_without_any_break_and_very_long_ones_are_split():
    from manyvec import Document

    for text in ("x" * 5000, "word " * 100_000):
        passages = list(split([Document("a", text)], max_tokens=200))
        assert "".join(p.text for p in passages).replace(" ", "") == text.replace(" ", "")
    assert len(passages) >= 500


@pytest.mark.parametrize(("options", "said"), [
    ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
    ({"max_tokens": 2.5}, "max_tokens must be an integer"),
    ({"max_tokens": 5, "overlap": 5}, "overlap must be less than max_tokens"),
    ({"overlap": -1}, "overlap must be an integer of at least 0"),
])  # fmt: skip
def test_lengths_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        list(split([], **options))


def test_an_encoder_counts_with_its_own_tokenizer():
    from manyvec import Document, load_encoder
    from manyvec.files.splitting import tokenizer_of

    tokenizer = tokenizer_of(load_encoder("minilm"))
    text = "Zürichberg, Immunglobulin. " * 300
    for passage in split([Document("a", text)], max_tokens=64, tokenizer=tokenizer):
        assert 1 <= len(tokenizer.encode(passage.text, add_special_tokens=False).ids) <= 64
    assert tokenizer_of(HashEncoder(8)) is None


# Sync


@pytest.fixture
def index(tmp_path):
    return Index.create(tmp_path / "index", HashEncoder(32))


def counts(report):
    return report.added, report.updated, report.unchanged, sorted(report.deleted)


def test_sync_adds_updates_and_deletes_what_files_say_and_nothing_else(tmp_path, index):
    docs, other = tmp_path / "docs", tmp_path / "other"
    tree(docs, "a.txt", "b.txt", "sub/c.txt")
    tree(other, "d.txt")
    index.add([{"id": "by hand", "text": "no file", "metadata": {}}])
    assert counts(sync(index, [docs, other], root=tmp_path)) == (4, 0, 0, [])
    assert counts(sync(index, docs, root=tmp_path)) == (0, 0, 3, [])
    (docs / "a.txt").unlink()
    (docs / "b.txt").rename(docs / "moved.txt")
    write(docs / "sub" / "c.txt", "other words")
    (other / "d.txt").unlink()
    # Only what lies under the given paths is deleted.
    expected = (0, 1, 0, ["docs/a.txt"])
    planned = sync(index, docs, root=tmp_path, dry_run=True)
    assert counts(planned) == expected and planned.moved == {"docs/b.txt": "docs/moved.txt"}
    assert set(index.ids()) == {"by hand", "docs/a.txt", "docs/b.txt", "docs/sub/c.txt", "other/d.txt"}
    assert counts(sync(index, docs, root=tmp_path)) == expected
    assert set(index.ids()) == {"by hand", "docs/moved.txt", "docs/sub/c.txt", "other/d.txt"}
    assert counts(sync(index, [docs, other / "d.txt"], root=tmp_path)) == (0, 0, 2, ["other/d.txt"])


def test_sync_recognises_moved_files_by_their_content_and_encodes_none_of_them(tmp_path):
    encoder = CountingEncoder()
    index = Index.create(tmp_path / "index", encoder)
    long = "\n\n".join(f"Paragraph {n} is about topic {n}." for n in range(30))
    write(tmp_path / "docs" / "long.md", long)
    tree(tmp_path / "docs", "a.txt", "b.txt", "old/c.txt")
    sync(index, tmp_path / "docs", root=tmp_path, splitter=Splitter(40))
    n_passages = index.count() - 3
    encoder.texts.clear()
    (tmp_path / "docs" / "long.md").rename(tmp_path / "docs" / "renamed.md")
    (tmp_path / "docs" / "old").rename(tmp_path / "docs" / "new")
    # A copy is new, and needs no encoding either.
    write(tmp_path / "docs" / "copy of a.txt", "words of a.txt")
    report = sync(index, tmp_path / "docs", root=tmp_path, splitter=Splitter(40))
    assert counts(report) == (1, 0, 2, []) and report.moved["docs/old/c.txt"] == "docs/new/c.txt"
    assert (len(report.moved), encoder.texts) == (n_passages + 1, [])
    assert not {id for id in index.ids() if id.startswith(("docs/long.md", "docs/old"))}
    (hit,) = index.search("topic 7", 1)
    assert hit.metadata["source"] == "docs/renamed.md" and "topic 7" in hit.text


def test_watch_keeps_an_index_current_until_it_is_stopped(tmp_path, index):
    pytest.importorskip("watchfiles")
    docs, stop = tmp_path / "docs", threading.Event()
    tree(docs, "a.txt", "b.txt")
    write(docs / ".gitignore", "*.tmp")
    reports = watch(index, docs, root=tmp_path, stop=stop)
    assert counts(next(reports)) == (2, 0, 0, [])
    tree(docs, "c.txt", "d.tmp")
    (docs / "a.txt").unlink()
    tree(tmp_path, "outside.txt")
    # The system may report one change before the other.
    deadline = time.monotonic() + 60
    while index.ids() != ["docs/b.txt", "docs/c.txt"] and time.monotonic() < deadline:
        next(reports)
    assert index.ids() == ["docs/b.txt", "docs/c.txt"]
    stop.set()
    assert list(reports) == []
    with pytest.raises(InputError, match="nowhere: no such file"):
        next(watch(index, tmp_path / "nowhere"))


def test_sync_keeps_what_cannot_be_read_now(tmp_path, index):
    write(tmp_path / "docs" / "a.jsonl", '{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}')
    sync(index, tmp_path / "docs", root=tmp_path)
    write(tmp_path / "docs" / "a.jsonl", b"\0\1\2binary now")
    report = sync(index, tmp_path / "docs", root=tmp_path)
    assert report.deleted == [] and len(report.files.problems) == 1 and index.ids() == ["1", "2"]
    write(tmp_path / "docs" / "a.jsonl", '{"id": 2, "text": "two"}')
    assert sync(index, tmp_path / "docs", root=tmp_path).deleted == ["1"]


def test_sync_knows_the_file_of_records_that_name_another_source(tmp_path, index):
    path = write(tmp_path / "a.csv", "id,text,source\n1,flour,Wikipedia\n2,water,Wikipedia\n")
    sync(index, path, root=tmp_path)
    write(path, "id,text,source\n2,water,Wikipedia\n")
    assert sync(index, path, root=tmp_path).deleted == ["1"]
    assert index.get("2")[0].metadata["source"] == "Wikipedia"


def test_sync_of_a_folder_that_is_gone_deletes_what_came_from_it(tmp_path, index):
    tree(tmp_path / "docs", "a.txt")
    tree(tmp_path / "docs2", "b.txt")
    sync(index, [tmp_path / "docs", tmp_path / "docs2"], root=tmp_path)
    (tmp_path / "docs" / "a.txt").unlink()
    (tmp_path / "docs").rmdir()
    # `docs2` only begins with the same letters.
    assert sync(index, tmp_path / "docs", root=tmp_path).deleted == ["docs/a.txt"]
    assert index.ids() == ["docs2/b.txt"]


def test_sync_encodes_only_the_passages_that_changed(tmp_path, index, monkeypatch):
    paragraphs = [f"Paragraph {n} is about topic {n}. " * 5 for n in range(10)]
    path = write(tmp_path / "docs" / "a.txt", "\n\n".join(paragraphs))
    sync(index, path, root=tmp_path, splitter=Splitter(40))
    paragraphs.insert(0, "A new beginning. " * 5)
    write(path, "\n\n".join(paragraphs))
    encoded = []
    encode = HashEncoder.encode_documents
    monkeypatch.setattr(HashEncoder, "encode_documents", lambda self, t: encoded.extend(t) or encode(self, t))
    report = sync(index, path, root=tmp_path, splitter=Splitter(40))
    assert len(encoded) == report.added <= 2 and report.updated >= 9
    (hit,) = index.search("topic 7", 1)
    text = path.read_text()
    assert text[hit.metadata["start"] : hit.metadata["end"]] == hit.text
