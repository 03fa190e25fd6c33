"""The notebooks of the examples run, and hits display what matched."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manyvec import Hit, Index, Reranker, diversify
from manyvec.testing import HashEncoder
from manyvec.types import Hits

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
# What the outputs of each must hold.
SHOWN = {
    "agent_tools": ["1. get_weather", "1. order_medicine", "find_invoice"],
    "pages_with_heat_maps": ["report.pdf, p. 1", "data:image/jpeg;base64,", "grid (20, 16)"],
    "text_with_evidence": ["<mark title=", "chemistry.pdf, p. 12", "discovered   → discovered", "history.pdf, p. 41"],
}
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=600).execute()
nbformat.write(notebook, sys.argv[2])
"""
ATTACK = "<script>alert(1)</script>\"'>"


def test_every_notebook_is_run_and_committed_without_outputs():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SHOWN)
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        assert all(cell.get("outputs", []) == [] for cell in cells)


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_displays(name, tmp_path):
    pytest.importorskip("nbclient", reason="needs the dev extra: pip install 'manyvec[dev]'")
    pytest.importorskip("ipykernel", reason="needs the dev extra: pip install 'manyvec[dev]'")
    command = [sys.executable, "-c", EXECUTE, NOTEBOOKS / f"{name}.ipynb", tmp_path / "run.ipynb"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    outputs = [
        output
        for cell in json.loads((tmp_path / "run.ipynb").read_text(encoding="utf8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    displayed = "\n".join(
        "".join(part) for output in outputs for part in (output.get("text", ""), *output.get("data", {}).values())
    )
    assert [part for part in SHOWN[name] if part not in displayed] == [], displayed[:3000]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("notebook") / "index", HashEncoder())
    index.add([{"id": f"a {ATTACK}", "text": f"tea {ATTACK} " + 100 * "leaves ", "metadata": {"source": ATTACK}}])
    return index


def test_the_repr_of_a_hit_is_one_short_line(index):
    hit = index.search("tea", k=1)[0]
    assert len(repr(hit)) < 220
    assert "\n" not in repr(hit)
    assert repr(hit).startswith("Hit(rank=1, id=")
    assert repr(Hit(id="a", text="x", metadata={}, score=2, similarity=0.5, rank=1)) == (
        "Hit(rank=1, id='a', score=2, similarity=0.5, text='x')"
    )


@pytest.mark.parametrize("options", [{}, {"evidence": True}, {"passage_chars": 80}])
def test_hits_display_as_html_in_which_nothing_of_a_document_is_markup(index, options):
    hits = index.search("tea", k=1, **options)
    assert isinstance(hits, Hits)
    html = hits._repr_html_()
    assert set(re.findall(r"<(/?\w+)", html)) <= {"div", "/div", "b", "/b", "small", "/small", "mark", "/mark"}
    assert "&lt;script&gt;" in html
    assert ("<mark" in html) == ("evidence" in options)


def test_lists_of_hits_display_whoever_returns_them(index):
    found = index.search("tea", k=1)
    assert found == list(found)
    returned = [found, *index.search_many(["tea", "leaves"]), Reranker(HashEncoder()).rerank("tea", ["tea"])]
    assert all(isinstance(hits, Hits) for hits in [*returned, diversify(index, found, 1)])


def test_an_empty_list_of_hits_says_so(index):
    assert Hits(index.search("tea", k=0))._repr_html_() == "<p><em>nothing found</em></p>"
