"""Situations of real folders, three for each that users have reported: no file is lost without a line in the report."""

import json
import os
import struct
import zipfile

import pytest

from manyvec import Document, Index
from manyvec.files import FileReport, Splitter, read, split, sync
from manyvec.testing import HashEncoder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(*paths, **options):
    report = FileReport()
    return list(read(paths, report=report, **options)), {os.path.basename(p.path): p.reason for p in report.problems}


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


# D1: one file that cannot be read among others


def test_a_file_that_is_not_what_its_name_says_stops_nothing(tmp_path):
    pytest.importorskip("markitdown", reason="needs the files extra")
    zipped(tmp_path / "a.docx", **{"readme.txt": "a zip file, but no document"})
    write(tmp_path / "b.csv", b"text\nfine\n" + bytes(range(256)))
    write(tmp_path / "c.json", b'{"text": "cut off in the mid')
    write(tmp_path / "d.html", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "e.txt").mkdir()
    write(tmp_path / "z.txt", "the last")
    documents, reasons = read_all(tmp_path)
    assert documents[-1].text == "the last"
    assert set(reasons) == {"a.docx", "b.csv", "c.json", "d.html"} and all(reasons.values())


# D2: PDFs


def test_a_pdf_is_known_by_its_first_bytes_whatever_its_name(tmp_path, make_pdf):
    pytest.importorskip("pypdfium2")
    for name in ("UPPER.PDF", "report", "report.txt"):
        write(tmp_path / name, make_pdf("Annual report", "Costs"))
    documents, reasons = read_all(tmp_path, root=tmp_path)
    assert [(d.id, d.text) for d in documents] == [
        (f"{name}#page={n}", text)
        for name in ("UPPER.PDF", "report", "report.txt")
        for n, text in ((1, "Annual report"), (2, "Costs"))
    ]
    assert reasons == {}


def test_a_pdf_of_ten_thousand_pages_is_read_page_by_page(tmp_path, make_pdf):
    pytest.importorskip("pypdfium2")
    path = write(tmp_path / "long.pdf", make_pdf(*(f"page {n}" for n in range(10_000))))
    documents = read(path, root=tmp_path)
    assert next(documents).text == "page 0"  # long before the others are read
    last = "".join(document.id for document in documents if document.text == "page 9999")
    assert last == "long.pdf#page=10000"


def test_a_pdf_that_is_cut_off_after_some_pages_gives_what_can_be_read_or_a_line(tmp_path, make_pdf):
    pytest.importorskip("pypdfium2")
    whole = make_pdf("first", "second", "third")
    for share in (0.3, 0.6, 0.9):
        path = write(tmp_path / "cut.pdf", whole[: int(share * len(whole))])
        documents, reasons = read_all(path)
        assert documents or "damaged" in reasons["cut.pdf"]


# D3: other kinds of files

CHAPTER = "<html xmlns='http://www.w3.org/1999/xhtml'><body><h1>One</h1><p>The whale was white.</p></body></html>"
OPF = (
    "<package xmlns='http://www.idpf.org/2007/opf' version='3.0'><metadata xmlns:dc='http://purl.org/dc/elements/1.1/'>"
    "<dc:title>Whales</dc:title></metadata><manifest><item id='c' href='c.xhtml' media-type='application/xhtml+xml'/>"
    "</manifest><spine><itemref idref='c'/></spine></package>"
)
CONTAINER = (
    "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container' version='1.0'><rootfiles>"
    "<rootfile full-path='content.opf' media-type='application/oebps-package+xml'/></rootfiles></container>"
)
TYPES = (
    "<Types xmlns='http://schemas.openxmlformats.org/package/2006/content-types'>"
    "<Default Extension='rels' ContentType='application/vnd.openxmlformats-package.relationships+xml'/>"
    "<Override PartName='/word/document.xml' ContentType="
    "'application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml'/></Types>"
)
RELS = (
    "<Relationships xmlns='http://schemas.openxmlformats.org/package/2006/relationships'><Relationship Id='r1' "
    "Type='http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument' "
    "Target='word/document.xml'/></Relationships>"
)


def docx(path, xml):
    body = f"<w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body>{xml}</w:body></w:document>"
    return zipped(path, **{"[Content_Types].xml": TYPES, "_rels__.rels": RELS, "word__document.xml": body})


def test_books_and_letters_are_read(tmp_path):
    pytest.importorskip("markitdown", reason="needs the files extra")
    zipped(tmp_path / "a.epub", **{"META-INF__container.xml": CONTAINER, "content.opf": OPF, "c.xhtml": CHAPTER})
    docx(tmp_path / "b.docx", "<w:p><w:r><w:t>The harpoon is in the attic.</w:t></w:r></w:p>")
    book, letter = read(tmp_path)
    assert "The whale was white." in book.text and book.metadata["title"] == "Whales"
    assert letter.text == "The harpoon is in the attic."


def test_formats_that_are_not_read_say_what_to_save_them_as(tmp_path):
    for name in ("a.odt", "b.rtf", "c.numbers"):
        write(tmp_path / name, r"{\rtf1 text}")
    assert read_all(tmp_path)[1] == {
        "a.odt": ".odt files are not read: save it as .docx",
        "b.rtf": ".rtf files are not read: save it as .docx",
        "c.numbers": ".numbers files are not read: save it as .xlsx",
    }


def outlook_message(**texts):
    """A compound file with a stream for each property, of 4,096 bytes so that it is kept in ordinary sectors."""
    none, end, sectors_each = 0xFFFFFFFF, 0xFFFFFFFE, 8
    streams = [text.ljust(2048).encode("utf-16-le") for text in texts.values()]
    fat = [0xFFFFFFFD, end]
    for i in range(len(streams)):
        first = 2 + sectors_each * i
        fat += [*range(first + 1, first + sectors_each), end]
    magic = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    numbers = (0x3E, 3, 0xFFFE, 9, 6, 0, 1, 1, 4096, end, 0, end, 0)
    header = struct.pack("<8s16xHHHHH6xIII4xIIIII", magic, *numbers)
    header = header.ljust(76, b"\0") + struct.pack("<I", 0) + b"\xff" * 432

    def entry(name, kind, left, right, child, start, size):
        written = (name + "\0").encode("utf-16-le")
        numbers = struct.pack("<HBBIII36xIQ", len(written), kind, 1, left, right, child, start, size)
        return written.ljust(64, b"\0") + numbers

    entries = [entry("Root Entry", 5, none, none, 2, end, 0)]
    for i, name in enumerate(texts):
        neighbours = (1, 3) if i == 1 else (none, none)
        entries.append(entry(f"__substg1.0_{name}001F", 2, *neighbours, none, 2 + sectors_each * i, 4096))
    table = struct.pack(f"<{len(fat)}I", *fat).ljust(512, b"\xff")
    return header + table + b"".join(entries) + b"".join(streams)


def test_mails_of_outlook_are_read_and_what_is_none_has_a_line(tmp_path):
    pytest.importorskip("olefile", reason="needs the files extra")
    # PidTagSubject, PidTagSenderEmailAddress and PidTagBody.
    mail = outlook_message(
        **{"0037": "Offsite", "0C1F": "anna@x.invalid", "1000": "The offsite takes place in Lisbon."}
    )
    write(tmp_path / "a.msg", mail)
    write(tmp_path / "b.msg", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 and no more")
    (message,), reasons = read_all(tmp_path)
    assert "The offsite takes place in Lisbon." in message.text and "anna@x.invalid" in message.text
    assert set(reasons) == {"b.msg"}


@pytest.mark.parametrize("name", ["a.docx", "a.xlsx", "a.pptx", "a.epub"])
def test_an_office_file_that_would_expand_beyond_reason_is_not_opened(tmp_path, name):
    pytest.importorskip("markitdown", reason="needs the files extra")
    zipped(tmp_path / name, **{"word__document.xml": b"0" * 200 * 2**20})
    assert "expands to 200 MB" in read_all(tmp_path)[1][name]


def test_an_xml_bomb_in_an_office_file_harms_nothing(tmp_path):
    pytest.importorskip("markitdown", reason="needs the files extra")
    levels = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
    bomb = f"<?xml version='1.0'?><!DOCTYPE d [<!ENTITY e0 'ha'>{levels}]><d>&e9;</d>"
    zipped(tmp_path / "a.docx", **{"[Content_Types].xml": TYPES, "_rels__.rels": RELS, "word__document.xml": bomb})
    write(tmp_path / "z.txt", "the last")
    documents, reasons = read_all(tmp_path)
    assert [d.text for d in documents] == ["the last"] and "a.docx" in reasons


def test_nothing_in_a_web_page_is_fetched_or_executed(tmp_path, monkeypatch):
    pytest.importorskip("markitdown", reason="needs the files extra")
    import socket

    def refuse(*arguments, **_):
        raise AssertionError(f"a connection was opened: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    page = "<script src='http://x.invalid/a.js'>steal()</script><iframe src='http://x.invalid/'></iframe>"
    page += "<img src='file:///etc/passwd' onerror='steal()'><link rel=stylesheet href='http://x.invalid/a.css'>"
    write(
        tmp_path / "a.html",
        f"<html><body>{page}<p onclick='steal()'>Flour</p><!--#include file='/etc/passwd'--></body></html>",
    )
    (document,) = read(tmp_path)
    assert "Flour" in document.text and "steal()" not in document.text and "root:" not in document.text


# D4: what nobody wants indexed


def test_what_tools_and_systems_leave_in_folders_is_left_out(tmp_path):
    names = [".svn/entries", ".tox/x.txt", ".ipynb_checkpoints/a.ipynb", ".DS_Store", ".mypy_cache/a.json"]
    for name in (*names, "lib/site-packages/x.py", "bower_components/x.js", "a.txt"):
        write(tmp_path / name, "words")
    # In a worktree or submodule, .git is a file.
    write(tmp_path / "sub" / ".git", "gitdir: ../.git/worktrees/sub")
    write(tmp_path / "sub" / ".gitignore", "secret.txt\n")
    write(tmp_path / "sub" / "secret.txt", "the launch code")
    assert [d.id for d in read(tmp_path, root=tmp_path)] == ["a.txt"]


# D5: what changed between two runs


def test_a_page_a_suffix_and_a_file_that_became_a_folder_are_followed(tmp_path, make_pdf):
    pytest.importorskip("pypdfium2")
    index, docs = Index.create(tmp_path / "index", HashEncoder()), tmp_path / "docs"
    write(docs / "a.pdf", make_pdf("one", "two", "three"))
    write(docs / "b.txt", "plain words")
    write(docs / "c", "a file")
    sync(index, docs, root=tmp_path)
    write(docs / "a.pdf", make_pdf("one", "three"))
    (docs / "b.txt").rename(docs / "b.md")
    (docs / "c").unlink()
    write(docs / "c" / "d.txt", "in a folder")
    report = sync(index, docs, root=tmp_path)
    assert index.ids() == ["docs/a.pdf#page=1", "docs/a.pdf#page=2", "docs/b.md", "docs/c/d.txt"]
    assert report.moved == {"docs/b.txt": "docs/b.md"} and set(report.deleted) == {"docs/a.pdf#page=3", "docs/c"}


def test_what_others_added_and_what_lies_beside_the_given_paths_is_never_deleted(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder())
    sources = [
        "docs/../a.txt",
        "../docs/a.txt",
        "docs-old/a.txt",
        "docs.txt",
        "/elsewhere/docs/a.txt",
        "",
        "DOCS/a.txt",
    ]
    index.add([{"id": str(n), "text": "words", "metadata": {"source": s}} for n, s in enumerate(sources)])
    index.add([{"id": "x", "text": "words", "metadata": {"source": 7}}, {"id": "y", "text": "words"}])
    write(tmp_path / "docs" / "b.txt", "flour")
    assert sync(index, tmp_path / "docs", root=tmp_path).deleted == []
    (tmp_path / "docs" / "b.txt").unlink()
    assert sync(index, tmp_path / "docs", root=tmp_path).deleted == ["docs/b.txt"]
    assert index.count() == len(sources) + 2


# D6: one file under several names


def test_hard_links_trailing_slashes_and_the_home_folder_name_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "docs" / "a.md", "flour")
    os.link(tmp_path / "docs" / "a.md", tmp_path / "docs" / "b.md")
    os.symlink(tmp_path / "docs", tmp_path / "linked")
    paths = ["docs/", "./docs/./a.md", "~/docs/a.md", "linked", "docs/../docs/a.md"]
    assert [d.id for d in read(paths)] == ["docs/a.md"]
    assert [d.id for path in paths for d in read(path)] == ["docs/a.md"] * len(paths)


# D7: tables and JSON


def test_tables_as_spreadsheets_and_data_bases_write_them(tmp_path):
    write(tmp_path / "excel.csv", "sep=;\r\nid;text\r\n1;flour; \r\n".encode("utf-16"))
    write(tmp_path / "quoted.csv", '"Id", "Text" ,"lang"\n"1", "flour" ,"en"\n')
    write(tmp_path / "mac.csv", "id,text\r1,flour\r2,water\r")
    write(tmp_path / "header.csv", "id,text\n")
    write(tmp_path / "wide.csv", "id,text\n1,flour,too,many\n2\n")
    documents, reasons = read_all(tmp_path)
    texts = {d.metadata["source"].rpartition("/")[2]: d.text for d in documents}
    assert texts["excel.csv"] == "flour" and "flour" in texts["quoted.csv"] and "flour" in texts["wide.csv"]
    assert [d.text for d in documents if d.metadata["source"].endswith("mac.csv")] == ["flour", "water"]
    assert reasons == {"header.csv": "no text in it"}


def test_json_in_the_encodings_and_shapes_that_programs_write(tmp_path):
    write(tmp_path / "a.jsonl", '{"id": 1, "text": "Zürich"}\r\n{"id": 2, "text": "Basel"}\r\n'.encode("utf-8-sig"))
    write(tmp_path / "b.jsonl", '{"id": 3, "text": "Bern"}\n'.encode("utf-16"))
    write(tmp_path / "c.json", json.dumps([{"id": 4, "content": "Chur"}, {"id": 5, "content": "Genf"}]))
    documents, reasons = read_all(tmp_path)
    assert [(d.id, d.text) for d in documents] == [
        *zip("12345", ["Zürich", "Basel", "Bern", "Chur", "Genf"], strict=True)
    ]
    assert reasons == {}


def test_a_field_of_a_hundred_megabytes_is_a_line_and_fills_no_memory(tmp_path):
    import tracemalloc

    with (tmp_path / "a.csv").open("w") as file:
        file.write('id,text\n1,flour\n2,"')
        for _ in range(100):
            file.write("x" * 2**20)
        file.write('"\n')
    tracemalloc.start()
    documents, reasons = read_all(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["flour"] and "field larger than" in reasons["a.csv"]
    assert peak < 100 * 2**20


# D8: ids


@pytest.mark.parametrize(
    ("given", "id"),
    [(7, "7"), (7.5, "7.5"), ("", "x.jsonl#line=1"), (None, "x.jsonl#line=1"), (" ", " ")],
)
def test_ids_are_kept_as_they_are_written(tmp_path, given, id):
    write(tmp_path / "x.jsonl", json.dumps({"id": given, "text": "flour"}))
    assert [d.id for d in read(tmp_path, root=tmp_path)] == [id]


@pytest.mark.parametrize("given", [True, {"$oid": "5f"}, ["a"]])
def test_what_cannot_be_an_id_has_a_line(tmp_path, given):
    write(tmp_path / "x.jsonl", json.dumps({"_id": given, "text": "flour"}) + '\n{"_id": 1, "text": "water"}')
    documents, reasons = read_all(tmp_path)
    assert [d.id for d in documents] == ["1"]
    assert reasons == {"x.jsonl": f"line 1: an id must be a string or a number, got {type(given).__name__}"}


# D9: long texts


@pytest.mark.parametrize(
    "text",
    ["word " * 10_000, "東京は日本の首都です" * 2000, "A" * 50_000, "var a=1;" * 5000],
    ids=["one line", "no spaces", "no words", "minified"],
)
def test_a_long_text_without_paragraphs_comes_back_in_passages(text):
    passages = list(split([Document("a", text.strip(), {"source": "a.txt"})]))
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())
    longest = max(len(p.text) for p in passages)
    # Words and signs are counted; a word of 50,000 letters is one that a model's tokenizer cuts.
    assert longest < 1000 or " " not in text


# D10: texts without sentence marks


@pytest.mark.parametrize(
    ("filler", "sentence", "query", "answer"),
    [
        ("12:00:01 INFO worker idle ", "12:00:02 ERROR disk full on host saturn ", "error disk full", "saturn"),
        ("item | price | stock ", "espresso machine | 490 euros | 3 ", "espresso machine", "490 euros"),
        ("and so we went on talking ", "the key is under the third flower pot ", "where is the key", "third flower"),
    ],
    ids=["log", "table", "transcript"],
)
def test_the_passage_of_a_text_without_marks_holds_what_follows_the_matched_words(
    tmp_path, filler, sentence, query, answer
):
    index = Index.create(tmp_path / "index", HashEncoder())
    index.add([{"id": "a", "text": filler * 30 + sentence + filler * 30}])
    (hit,) = index.search(query, passage_chars=120)
    assert answer in hit.passage.text and len(hit.passage.text) <= 120


# Files that change while they are read


def test_a_file_that_changes_or_shrinks_while_it_is_read_stops_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"id": n, "text": "flour " * 200}) for n in range(2000)))
    write(tmp_path / "b.txt", "the last")
    report = FileReport()
    documents = read(tmp_path, report=report)
    next(documents)
    with path.open("r+b") as file:
        file.truncate(300_000)
        file.seek(200_000)
        file.write(b"\xff\xfe\xff" * 1000)
    rest = list(documents)
    assert rest[-1].text == "the last" and report.n_problems >= 1


def test_a_folder_with_its_index_and_the_lines_of_its_report_can_be_synced_again_and_again(tmp_path):
    write(tmp_path / "a.txt", "flour")
    index = Index.create(tmp_path / "index", HashEncoder())
    for _ in range(2):
        report = sync(index, tmp_path, root=tmp_path, splitter=Splitter())
    assert (report.n_changes, report.unchanged, index.ids()) == (0, 1, ["a.txt"])
