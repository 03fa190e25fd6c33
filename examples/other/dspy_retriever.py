"""A retriever for DSPy programs: one that any module calls, and the retrieval model of `dspy.Retrieve`.

pip install dspy && python examples/other/dspy_retriever.py "your question"
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import dspy
from dspy.dsp.utils import dotdict

import manyvec
from manyvec import files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


class ManyvecRM(dspy.Retrieve):
    def __init__(self, index: manyvec.Index, k: int = 3) -> None:
        super().__init__(k=k)
        self.index = index

    def forward(self, query: str, k: int | None = None, **options: Any) -> list[Any]:
        hits = self.index.search(query, self.k if k is None else k, passage_chars=600, **options)
        return [
            dotdict(long_text=hit.passage.text if hit.passage else hit.text, id=hit.id, score=hit.score) for hit in hits
        ]


def main(question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = manyvec.Index.create(Path(folder) / "index", "minilm")
        index.add(files.read(PASSAGES))
        for found in ManyvecRM(index, k=2)(question):
            print(f"{found.score:.2f} {found.id}")
        with dspy.context(rm=ManyvecRM(index)):
            print(dspy.Retrieve(k=1)(question).passages[0])


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Who discovered oxygen?")
