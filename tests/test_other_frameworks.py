"""The examples for frameworks without an adapter run unchanged, each where its framework is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples" / "other"


@pytest.mark.parametrize(
    ("example", "package", "expected"),
    [
        ("haystack_component", "haystack", ["Oxygen__"]),
        ("dspy_retriever", "dspy", ["Oxygen__", "Priestley"]),
        ("crewai_tool", "crewai", ["squad_sample.jsonl] Oxygen", "Priestley"]),
        ("openai_tool", "manyvec", ["Priestley", '{"error": "\'query\'"}']),
    ],
)
def test_an_example_finds_who_discovered_oxygen(
    tmp_path: Path, example: str, package: str, expected: list[str]
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}, which pins other versions than ours: install it in an environment of its own")
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{example}.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [part for part in expected if part not in done.stdout] == [], done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_short_enough_to_read_at_once() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.stem for script in scripts] == ["crewai_tool", "dspy_retriever", "haystack_component", "openai_tool"]
    assert all(25 <= len(script.read_text().splitlines()) <= 60 for script in scripts)
