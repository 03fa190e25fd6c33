"""The campaigns of `examples/campaigns`, at a small size: their full size takes up to an hour each."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parents[1] / "examples" / "campaigns"


@pytest.fixture(autouse=True)
def _campaigns(monkeypatch):
    monkeypatch.syspath_prepend(str(CAMPAIGNS))


def run(name, path, *options):
    """Run a campaign in this process, and return its results."""
    status = importlib.import_module(name).main([*options, "--output", str(path)])
    record = json.loads(path.read_text())
    assert status == 0 and record["complete"], record["results"]
    return record["results"]


def test_random_corpora_are_searched_as_numpy_does(tmp_path):
    found = run("corpora", tmp_path / "corpora.json", "--checks", "42")
    assert found["checks"] == 42 and found["wrong"] == 0 and found["by storage"] == {"float16": 40, "int8": 2}


def test_a_wrong_score_fails_the_campaign_of_corpora(tmp_path, monkeypatch):
    corpora = importlib.import_module("corpora")
    reference = corpora.maxsim_reference
    monkeypatch.setattr(corpora, "maxsim_reference", lambda *arguments: reference(*arguments)[::-1])
    assert corpora.main(["--checks", "5", "--output", str(tmp_path / "corpora.json")]) == 1


def test_a_soak_loses_nothing(tmp_path):
    found = run("soak", tmp_path / "soak.json", "--minutes", "0.05", "--optimizes", "3")
    assert found["wrong"] == 0 and len(found["series"]) == 3 and found["writes"] >= 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGKILL")
def test_killed_writers_lose_nothing(tmp_path):
    command = [sys.executable, CAMPAIGNS / "kills.py", "--rounds", "2", "--output", tmp_path / "kills.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "kills.json").read_text())["results"]["faults"] == 0


def test_writers_at_once_lose_and_double_nothing(tmp_path):
    found = run("writers", tmp_path / "writers.json", "--writers", "2", "--upserts", "4")
    assert [found[name] for name in ("lost", "doubled", "unknown", "stale or mixed", "errors")] == [0] * 5
    assert found["searches"] >= 1 and found["optimized"] >= 1


def test_damage_is_never_silent(tmp_path):
    found = run("damage", tmp_path / "damage.json", "--rounds", "4")
    assert found["rounds"] == 4 and found["silent"] == found["raw error"] == found["crash"] == found["hang"] == 0


def test_hostile_filters_pass_what_they_mean_in_every_interface(tmp_path):
    for package in ("mcp", "httpx2", "pandas", "langchain_manyvec", "llama_index.retrievers.manyvec"):
        pytest.importorskip(package, reason=f"needs {package}")
    command = [sys.executable, CAMPAIGNS / "filters.py", "--cases", "150", "--output", tmp_path / "filters.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "filters.json").read_text())["results"]
    assert (found["cases"], found["faults"]) == (150, 0)
    assert all(counts["answered"] for counts in found["by interface"].values())
