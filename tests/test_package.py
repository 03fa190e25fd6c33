"""The package as a whole: the cost of importing it, its public names, and that its documents match its files."""

import ast
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import manyvec

ROOT = Path(__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_rest_clients_of_lancedb_are_imported_when_they_are_asked_for():
    code = (
        "import sys; from manyvec.storage import lance; import lancedb, lance_namespace;"
        "api = 'lance_namespace_urllib3_client.api.table_api'; before = api in sys.modules;"
        "from lance_namespace_urllib3_client import TableApi, models; import lance_namespace_urllib3_client as clients;"
        "print(before, api in sys.modules, TableApi.__name__, clients.TagApi.__name__, type(clients).__name__,"
        "hasattr(clients, 'nothing'), callable(lancedb.connect_namespace))"
    )
    assert python(code).split() == ["False", "True", "TableApi", "TagApi", "module", "False", "True"]
    first = python(f"import lancedb; {code}")
    assert first.split() == ["True", "True", "TableApi", "TagApi", "module", "False", "True"]


def test_import_loads_neither_torch_nor_a_database():
    loaded = python("import sys, manyvec; print(*sys.modules)").split()
    heavy = {"torch", "lancedb", "pyarrow", "numpy", "transformers", "sentence_transformers"}
    assert heavy.isdisjoint(loaded)


def test_import_takes_less_than_three_tenths_of_a_second_of_its_own():
    code = "import time; t = time.perf_counter(); import manyvec; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_every_public_name_can_be_imported():
    assert {"Index", "F", "candidates", "testing"} <= set(dir(manyvec))
    for name in dir(manyvec):
        assert getattr(manyvec, name) is not None
    with pytest.raises(ImportError, match="indx"):
        from manyvec import indx  # type: ignore[attr-defined]  # noqa: F401
    assert not hasattr(manyvec, "indx")


def test_the_three_packages_have_one_version():
    ran = subprocess.run([sys.executable, ROOT / "scripts" / "version.py"], capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.stderr) == (manyvec.__version__, "")


def private_names(source):
    """Names that the source imports from manyvec, or reads from it, and that are not public."""
    public = {*dir(manyvec), "__version__"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names if alias.name.split(".")[0] == "manyvec"]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "manyvec":
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "manyvec":
            used = [f"manyvec.{node.attr}"]
        else:
            continue
        for name in used:
            package, *parts = name.split(".")
            module = ".".join([package, *parts[:-1]])
            if parts and not (parts[0] in public and (len(parts) == 1 or hands_out(module, parts[-1]))):
                yield name


def hands_out(module, name):
    return name in getattr(import_module(module), "__all__", ())


@pytest.mark.parametrize(
    "source",
    [
        "from manyvec.storage.table import Store",
        "from manyvec.index import Index",
        "import manyvec.vectors.codec",
        "from manyvec.candidates import Snapshot",
        "import manyvec; manyvec.index.Index",
    ],
)
def test_a_name_that_is_not_public_is_noticed(source):
    assert list(private_names(source)) != []


# Benchmarks measure parts of the library, so they and their helpers may use private names.
SCRIPTS = [
    path
    for folder in ("examples", "integrations")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"tests", "benchmarks", "campaigns"} & set(path.relative_to(ROOT).parts)
]
READMES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))


@pytest.mark.parametrize("path", [*SCRIPTS, *READMES], ids=lambda path: str(path.relative_to(ROOT)))
def test_adapters_examples_and_readmes_use_public_names_only(path):
    text = path.read_text(encoding="utf8")
    sources = [text] if path.suffix == ".py" else [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert sorted({name for source in sources for name in private_names(source)}) == []


def test_the_structure_keeps_to_the_order_that_contributing_states():
    """No arrow against the order, no circle, no module too long: the rules of `scripts/structure.py`."""
    script = ROOT / "scripts" / "structure.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md", "docs/decisions.md", "docs/benchmarks.md"])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf8")
    named = set(re.findall(r"`((?:src|tests|integrations|examples|scripts|docs|\.github)/[\w./-]+)`", text))
    # The docs site checks the links between its own pages.
    links = [] if page.startswith("docs/") else re.findall(r"\]\(([\w./-]+)\)", text)
    named |= {path for path in links if "://" not in path}
    assert named != set()
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_pre_commit_runs_the_ruff_of_the_lock():
    locked = re.search(r"^ruff==\S+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert locked is not None
    assert f"[&ruff {locked[0]}]" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_page_on_models_lists_every_family():
    from manyvec.models.families import FAMILIES

    page = (ROOT / "docs" / "how-to" / "models.md").read_text(encoding="utf8")
    for family in FAMILIES:
        names = ", ".join(f"`{model.name}`" for model in family.published)
        assert f"| {family.name} | {names} | {family.reads} | {family.recipe} |" in page


def test_the_three_packages_state_the_same_addresses():
    urls = [
        re.findall(r"^\[project.urls\]\n((?:.+\n)+)", path.read_text(encoding="utf8"), re.MULTILINE)
        for path in [ROOT / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]
    ]
    assert urls[0] == urls[1] == urls[2] != []


def test_a_search_in_a_new_process_does_not_wait_for_what_it_does_not_use(tmp_path):
    """Opening, counting and reading an index load no model and no torch."""
    from manyvec.testing import HashEncoder

    index = manyvec.Index.create(tmp_path / "index", HashEncoder(8))
    index.add([{"id": "a", "text": "word"}])
    started = time.monotonic()
    code = f"""
import sys
from manyvec import Index
index = Index.open({str(tmp_path / "index")!r})
assert (index.count(), index.get("a")[0].text) == (1, "word")
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
"""
    python(code)
    assert time.monotonic() - started < 60


def test_evidence_needs_no_torch(tmp_path):
    pytest.importorskip("llvmlite", reason="torch scores documents where llvmlite has no wheels")
    code = f"""
import sys
from manyvec import Index
from manyvec.testing import HashEncoder
index = Index.create({str(tmp_path / "index")!r}, HashEncoder(8))
index.add([{{"id": "a", "text": "A word. Others."}}])
(hit,) = index.search("word", evidence=True, passage_chars=50)
print(hit.evidence.words[0].text, hit.passage.text, "torch" in sys.modules)
"""
    assert python(code).split() == ["word", "A", "word.", "Others.", "False"]
