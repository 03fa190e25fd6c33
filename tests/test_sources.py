"""Files in, documents out."""

import json

import pytest

from manyvec import InputError
from manyvec.sources import read_documents


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
        ("x.pdf", "%PDF", "only .jsonl, .jsonl.gz, .csv, .txt, .md can be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        list(read_documents([write(tmp_path / name, text)]))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        list(read_documents([tmp_path / "nowhere"]))
