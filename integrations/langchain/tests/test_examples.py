"""The snippets of the README and the examples run unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.language_models import FakeListChatModel

pytest.importorskip("langchain", reason="needs the extra 'agents'")

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("rag_with_citations", ["fake one", "[1] Oxygen__11", "discovered → discovered"]),
        ("rerank_bm25", ["BM25 alone:", "its 20 best, reranked:\n  Oxygen__"]),
        ("chatbot_with_history", ["fake one", "you: Who discovered it?\n  looked up: Oxygen__"]),
        ("agent_with_2000_tools", ["fake one", "2,000 tools", "given 8 tools", "pharmacy order: done (aspirin)"]),
    ],
)
def test_an_example_runs_without_a_chat_model_and_prints_this(tmp_path, example, expected):
    script = ROOT / "examples" / "langchain" / f"{example}.py"
    assert 25 <= len(script.read_text().splitlines()) <= 60
    command = [sys.executable, "-W", "error", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert [part for part in expected if part not in done.stdout] == [], done.stdout
    assert list(tmp_path.iterdir()) == []


class ToolCaller(FakeListChatModel):
    """Stands in for the reader's chat model."""

    def bind_tools(self, tools, **kwargs):
        return self


def test_the_readmes_snippets_run_one_after_another(tmp_path, monkeypatch):
    text = (ROOT / "integrations" / "langchain" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    together: dict[str, object] = {"model": ToolCaller(responses=["sunny"])}
    for block in [part.split("```")[0] for part in text.split("```python\n")[1:]]:
        exec(compile(block, "README.md", "exec"), together)

    assert [match["word"] for match in together["found"].metadata["evidence"]["words"]][-1] == "keep"  # type: ignore[attr-defined]
    assert [document.id for document in together["store"].similarity_search("what is MaxSim")] != []  # type: ignore[attr-defined]
