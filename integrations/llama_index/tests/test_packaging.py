"""The distribution adds to four namespaces that other LlamaIndex packages share."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import manyvec

ROOT = Path(__file__).parents[1] / "llama_index"
NAMESPACES = ["retrievers", "postprocessor", "vector_stores", "embeddings"]


def test_shared_folders_hold_no_file_that_would_hide_other_packages() -> None:
    for folder in (ROOT, *(ROOT / name for name in NAMESPACES)):
        assert [path.name for path in folder.iterdir() if path.is_file()] == []
    assert {path.name for path in ROOT.iterdir() if path.name != "__pycache__"} == set(NAMESPACES)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_each_package_is_typed_and_shares_its_namespace(namespace: str) -> None:
    assert import_module("llama_index.core").__file__
    shared, package = import_module(f"llama_index.{namespace}"), import_module(f"llama_index.{namespace}.manyvec")
    assert shared.__file__ is None
    assert (ROOT / namespace / "manyvec" / "py.typed").is_file()
    assert all(getattr(package, name).__module__.startswith(package.__name__) for name in package.__all__)


def test_the_readme_names_every_public_class() -> None:
    readme = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    for namespace in NAMESPACES:
        package = import_module(f"llama_index.{namespace}.manyvec")
        assert all(name in readme for name in package.__all__)
    assert manyvec.__version__ in (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
