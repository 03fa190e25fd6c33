"""A retriever for Haystack pipelines, which YAML can hold.

pip install haystack-ai && python examples/other/haystack_component.py "your question"
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from haystack import Document, Pipeline, component, default_from_dict, default_to_dict

import manyvec
from manyvec import files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


@component
class ManyvecRetriever:
    def __init__(self, uri: str, top_k: int = 5) -> None:
        self.uri, self.top_k, self.index = uri, top_k, manyvec.Index.open(uri)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        hits = self.index.search(query, self.top_k if top_k is None else top_k, filter=filters)
        return {"documents": [Document(id=h.id, content=h.text, meta=h.metadata, score=h.score) for h in hits]}

    def to_dict(self) -> dict[str, Any]:
        return default_to_dict(self, uri=self.uri, top_k=self.top_k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ManyvecRetriever":
        return default_from_dict(cls, data)


def main(question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "index")
        manyvec.Index.create(uri, "minilm").add(files.read(PASSAGES))
        pipeline = Pipeline()
        pipeline.add_component("retriever", ManyvecRetriever(uri, top_k=2))
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=[__name__])
        for document in again.run({"retriever": {"query": question}})["retriever"]["documents"]:
            print(f"{document.score:.2f} {document.id}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Who discovered oxygen?")
