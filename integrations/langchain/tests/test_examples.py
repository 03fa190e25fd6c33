"""The snippets of the README and the examples run unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.language_models import FakeListChatModel

pytest.importorskip("langchain", reason="needs the extra 'agents'")

ROOT = Path(__file__).parents[3]


EXAMPLES = ROOT / "examples" / "langchain"
PRINTED = {
    "rag_with_citations": ["fake one", "[1] Oxygen__11", "discovered → discovered"],
    "rerank_bm25": ["BM25 alone:", "its 20 best, reranked:\n  Oxygen__"],
    "chatbot_with_history": ["fake one", "you: Who discovered it?\n  looked up: Oxygen__"],
    "agent_with_2000_tools": ["fake one", "2,000 tools", "given 8 tools", "pharmacy order: done (aspirin)"],
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each example prints, by its name. One process runs them all, and imports LangChain once."""
    folder = tmp_path_factory.mktemp("examples")
    command = [sys.executable, "-W", "error", ROOT / "tests" / "run_scripts.py"]
    command += [EXAMPLES / f"{example}.py" for example in PRINTED]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    assert list(folder.iterdir()) == []
    _, *parts = re.split("^running ", done.stdout, flags=re.MULTILINE)
    return {Path(script).stem: rest for script, _, rest in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("example", PRINTED)
def test_an_example_runs_without_a_chat_model_and_prints_this(printed, example):
    assert 25 <= len((EXAMPLES / f"{example}.py").read_text().splitlines()) <= 60
    assert [part for part in PRINTED[example] if part not in printed[example]] == [], printed[example]


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
