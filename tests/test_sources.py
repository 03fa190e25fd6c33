"""Files in, documents out."""

import io
import json

import pytest

from manyvec import InputError
from manyvec.files.readers import n_pages, read_documents


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_keep_ids_titles_and_metadata(tmp_path):
    lines = [
        {"_id": "a", "title": "Title", "text": "text", "metadata": {"year": 2024}},
        {"id": "b", "text": "other", "lang": "en"},
        {"_id": 7, "text": "a number as id"},
        {"text": "no id"},
        {"_id": "blank", "title": "", "text": " "},
    ]
    path = write(tmp_path / "x.jsonl", "\n\n".join(map(json.dumps, lines)))
    a, b, seven, unnamed = read_documents([path])
    assert (a.id, a.text, a.metadata) == ("a", "Title text", {"title": "Title", "year": 2024})
    assert (b.id, b.metadata) == ("b", {"lang": "en"})
    assert seven.id == "7"
    assert unnamed.id == f"{path}, line 7"


def test_csv_columns_beside_id_title_and_text_become_metadata(tmp_path):
    path = write(tmp_path / "x.csv", '\ufeffid,title,text,lang\n1,T,"two\nlines",en\n2,,"say ""x""",\n3,,,\n')
    first, second = read_documents([path])
    assert (first.id, first.text, first.metadata) == ("1", "T two\nlines", {"title": "T", "lang": "en"})
    assert (second.text, second.metadata) == ('say "x"', {"lang": ""})


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    write(tmp_path / "b.txt", "bee")
    write(tmp_path / "a" / "z.md", "# Zed")
    write(tmp_path / "a" / "ignored.py", "print()")
    write(tmp_path / "empty.txt", "")
    zed, bee = read_documents([tmp_path])
    assert (zed.id, zed.text) == ((tmp_path / "a" / "z.md").as_posix(), "# Zed")
    assert bee.metadata == {"source": (tmp_path / "b.txt").as_posix()}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text"', "x.jsonl, line 2: "),
        ("x.jsonl", '["a"]', "x.jsonl, line 1: expected an object"),
        ("x.jsonl", '{"text": 3}', "x.jsonl, line 1: title and text must be texts"),
        ("x.jsonl", '{"text": "a", "metadata": "b"}', "line 1: metadata must be an object, got str"),
        ("x.csv", "id,body\n1,a", "needs a column 'text'; it has .'id', 'body'."),
        ("x.pdf", "%PDF", "x.pdf: images and PDFs need a model that reads images"),
        ("x.py", "print()", "only .jsonl, .jsonl.gz, .csv, .txt, .md can be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        list(read_documents([write(tmp_path / name, text)]))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        list(read_documents([tmp_path / "nowhere"]))


def pdf(*texts, trailer=""):
    """A PDF with a page for each text; one without text has a page with nothing on it."""
    kids = " ".join(f"{10 + 2 * i} 0 R" for i in range(len(texts)))
    objects = [
        "1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj",
        f"2 0 obj <</Type/Pages/Kids[{kids}]/Count {len(texts)}>> endobj",
        "3 0 obj <</Type/Font/Subtype/Type1/BaseFont/Helvetica>> endobj",
    ]
    for i, text in enumerate(texts):
        content = f"BT /F1 24 Tf 20 100 Td ({text}) Tj ET" if text else ""
        page = "/Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"{10 + 2 * i} 0 obj <<{page}/Contents {11 + 2 * i} 0 R>> endobj")
        objects.append(f"{11 + 2 * i} 0 obj <</Length {len(content)}>> stream\n{content}\nendstream endobj")
    return "\n".join(["%PDF-1.4", *objects, f"trailer <</Root 1 0 R{trailer}>>", "%%EOF"]).encode()


def test_a_pdf_is_a_page_image_for_each_page_with_its_text(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pypdfium2")
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf("Annual report", ""))
    first, second = read_documents([path], pages=True)
    assert (first.id, first.text) == (f"{path.as_posix()}#page=1", "Annual report")
    assert first.metadata == {"source": path.as_posix(), "page": 1}
    # Without a text of its own it is found by the name of the file.
    assert (second.id, second.text) == (f"{path.as_posix()}#page=2", "report.pdf, page 2")
    drawn, blank = (image.open(io.BytesIO(d.image)).convert("L") for d in (first, second))
    assert drawn.size == blank.size == (600, 400)
    assert (drawn.getextrema()[0] < 50, blank.getextrema()) == (True, (255, 255))
    assert n_pages(path) == 2


def test_the_pages_of_a_pdf_are_rendered_when_their_turn_comes(tmp_path, monkeypatch):
    pypdfium2 = pytest.importorskip("pypdfium2")
    rendered = []
    render = pypdfium2.PdfPage.render
    monkeypatch.setattr(pypdfium2.PdfPage, "render", lambda self, **o: rendered.append(1) or render(self, **o))
    (tmp_path / "a.pdf").write_bytes(pdf("one", "two", "three"))
    documents = read_documents([tmp_path], pages=True)
    assert (next(documents).text, len(rendered)) == ("one", 1)
    documents.close()


def test_images_of_a_folder_are_read_only_where_pages_are_wanted(tmp_path):
    for name in ("b.PNG", "c.jpeg", "d.webp"):
        (tmp_path / name).write_bytes(b"an image that nobody opens here")
    write(tmp_path / "a.txt", "text")
    assert [document.text for document in read_documents([tmp_path])] == ["text"]
    text, *images = read_documents([tmp_path], pages=True)
    assert text.image is None
    assert [(d.id, d.text, d.image) for d in images] == [
        ((tmp_path / name).as_posix(), name, tmp_path / name) for name in ("b.PNG", "c.jpeg", "d.webp")
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-1.4 and then nothing of the kind",
        b"",
        pdf("secret", trailer=f"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/O<{'11' * 32}>/U<{'22' * 32}>/P -4>>"),
    ],
    ids=["damaged", "empty", "password"],
)
def test_a_pdf_that_cannot_be_read_is_named(tmp_path, content):
    pytest.importorskip("pypdfium2")
    (tmp_path / "bad.pdf").write_bytes(content)
    with pytest.raises(InputError, match=r"bad.pdf: the PDF is damaged, or needs a password"):
        list(read_documents([tmp_path / "bad.pdf"], pages=True))
