"""The examples run unchanged and offline, with LlamaIndex's mock as the language model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "llama_index"
PRINTED = {
    "agent_with_many_tools.py": ["given 8 tools: pharmacy_order", "pharmacy order: done (aspirin)"],
    "chat_engine.py": ["found Amazon_rainforest__", "remembers 6 messages"],
    "ingestion_pipeline.py": [
        "3 nodes were made, the store holds 3",
        "0 nodes were made, the store holds 3",
        "1 nodes were made, the store holds 2",
        "tea.txt: Black tea",
    ],
    "query_engine_with_citations.py": ["[1] Oxygen", "burn = burning", "MockLLM"],
    "rerank_bm25.py": ["the best of its 20", "Oxygen__"],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each example prints, by its name. One process runs them all, and imports LlamaIndex once."""
    command = [sys.executable, ROOT / "tests" / "run_scripts.py", *(EXAMPLES / name for name in PRINTED)]
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    _, *parts = re.split("^running ", done.stdout, flags=re.MULTILINE)
    return {Path(script).name: rest for script, _, rest in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs_offline_and_prints_this(printed: dict[str, str], name: str) -> None:
    assert [text for text in PRINTED[name] if text not in printed[name]] == [], printed[name]
    assert 25 <= len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60
