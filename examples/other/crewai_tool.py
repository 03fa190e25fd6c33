"""A search tool for the agents of CrewAI.

pip install crewai && python examples/other/crewai_tool.py "your question"
"""

import sys
import tempfile
from pathlib import Path

from crewai.tools import BaseTool
from pydantic import BaseModel, ConfigDict, Field

import manyvec
from manyvec import files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


class Question(BaseModel):
    query: str = Field(description="What to look up, as a question or as key words.")
    k: int = Field(default=3, ge=1, le=10, description="Number of passages.")


class SearchTool(BaseTool):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    name: str = "search_documents"
    description: str = "Search the company's documents and return passages with their sources."
    args_schema: type[BaseModel] = Question
    index: manyvec.Index

    def _run(self, query: str, k: int = 3) -> str:
        hits = self.index.search(query, k, passage_chars=600)
        return "\n\n".join(f"[{hit.citation()}] {hit.passage.text if hit.passage else hit.text}" for hit in hits)


def main(question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = manyvec.Index.create(Path(folder) / "index", "minilm")
        index.add(files.read(PASSAGES))
        # In a crew: Agent(role=..., tools=[SearchTool(index=index)]).
        print(SearchTool(index=index).run(query=question, k=2))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Who discovered oxygen?")
