"""The built packages: what is in them, and that they work where this repository is not."""

import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs the dev extra: pip install 'manyvec[dev]'")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheels():
    """`scripts/wheels.py`."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return import_module("wheels")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def built(wheels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    return [(package, *wheels.build(package, folder)) for package in wheels.PACKAGES]


def test_wheels_and_archives_hold_all_modules_and_nothing_else(wheels, built):
    assert [problem for made in built for problem in wheels.problems(*made)] == []


def test_a_missing_and_a_stray_file_are_noticed(wheels, built, tmp_path):
    package, wheel, archive = built[1]
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            if not name.endswith("/py.typed"):
                target.writestr(name, source.read(name))
        target.writestr("tests/test_a.py", "")
    found = list(wheels.problems(package, changed, archive))
    assert f"{wheel.name} lacks langchain_manyvec/py.typed" in found
    assert f"{wheel.name} holds tests/test_a.py" in found


def test_the_wheels_work_where_the_repository_is_not(built, tmp_path):
    """The three wheels, unpacked into one folder: files that only the repository has would be missed."""
    for _, wheel, _ in built:
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(tmp_path / "site")
    code = """
import manyvec, langchain_manyvec
from llama_index.retrievers.manyvec import ManyvecRetriever
from manyvec.testing import HashEncoder

index = manyvec.Index.create("index", HashEncoder())
index.add([{"id": "a", "text": "tea from Assam"}])
assert langchain_manyvec.ManyvecRetriever(index=index).invoke("tea")[0].id == "a"
assert ManyvecRetriever(index).retrieve("tea")[0].node.node_id == "a"
print(manyvec.__file__, langchain_manyvec.__file__, import_file := ManyvecRetriever.__module__)
"""
    # Without the user's and the environment's path, so that an editable installation is not found first.
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}){code}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(str(tmp_path / "site")) == 2
