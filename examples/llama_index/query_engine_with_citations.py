"""A query engine that cites numbered sources, and prints which words of each source matched the question.

python examples/llama_index/query_engine_with_citations.py [MODEL]

MODEL is an OpenAI model (pip install llama-index-llms-openai; an API key is needed). Without one, LlamaIndex's MockLLM
is used, which repeats its prompt; the passages found are real.
"""

import json
import sys
import tempfile
from pathlib import Path

from llama_index.core.llms import LLM, MockLLM
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.schema import TextNode
from llama_index.retrievers.manyvec import ManyvecRetriever

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
QUESTION = "Who discovered that oxygen makes things burn?"


def main(llm: LLM | None = None) -> None:
    if llm is None:
        print("No model was given: LlamaIndex's MockLLM repeats its prompt.\n")
        llm = MockLLM()
    lines = map(json.loads, PASSAGES.read_text(encoding="utf-8").splitlines())
    nodes = [TextNode(id_=line["_id"], text=line["text"], metadata={"title": line["title"]}) for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        retriever = ManyvecRetriever.from_nodes(nodes, folder, similarity_top_k=3, evidence=True, passage_chars=600)
        # The engine numbers chunks; with this size each passage is one chunk.
        engine = CitationQueryEngine.from_args(None, llm=llm, retriever=retriever, citation_chunk_size=1024)
        response = engine.query(QUESTION)
    print(f"Question: {QUESTION}\nAnswer: {str(response)[:200]}…\n")
    for number, source in enumerate(response.source_nodes, start=1):
        print(f"[{number}] {source.node.metadata['title']}, score {source.score:.2f}: {source.text[:80]!r}…")
        words = [word for word in source.node.metadata["evidence"]["words"] if word["similarity"] > 0.6]
        print("    found by", ", ".join(f"{w['word']} = {w['text']} ({w['similarity']:.2f})" for w in words))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from llama_index.llms.openai import OpenAI

        main(OpenAI(model=sys.argv[1]))
    else:
        main()
