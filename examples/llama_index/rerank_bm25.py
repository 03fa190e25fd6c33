"""Rerank the nodes of a BM25 retriever by exact late interaction.

python examples/llama_index/rerank_bm25.py "your question"
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.manyvec import ManyvecRerank

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


class BM25(BaseRetriever):
    """Stands in for any first stage, such as llama-index-retrievers-bm25: BM25 over nodes in memory."""

    def __init__(self, nodes: list[TextNode], similarity_top_k: int) -> None:
        super().__init__()
        self.nodes, self.top_k = nodes, similarity_top_k
        self.words = [Counter(node.text.lower().split()) for node in nodes]
        self.found_in = Counter(word for words in self.words for word in words)
        self.mean = sum(words.total() for words in self.words) / len(nodes)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str.lower().strip("?").split()
        scored = [
            NodeWithScore(node=n, score=self._score(query, w)) for n, w in zip(self.nodes, self.words, strict=True)
        ]
        return sorted(scored, key=lambda found: -found.score)[: self.top_k]

    def _score(self, query: list[str], words: Counter) -> float:
        norm = 1.2 * (0.25 + 0.75 * words.total() / self.mean)
        rarity = {word: math.log1p((len(self.nodes) - n + 0.5) / (n + 0.5)) for word, n in self.found_in.items()}
        return sum(rarity[word] * words[word] * 2.2 / (words[word] + norm) for word in query if words[word])


def main(question: str) -> None:
    lines = map(json.loads, PASSAGES.read_text(encoding="utf-8").splitlines())
    retriever = BM25([TextNode(id_=line["_id"], text=line["text"]) for line in lines], similarity_top_k=20)
    # With `index=` instead of `model=`, stored vectors are used for nodes that the index holds.
    rerank = ManyvecRerank(model="minilm", top_n=3, keep_retrieval_score=True)
    found = retriever.retrieve(question)
    print(f"{question}\n\nBM25:")
    for node in found[:3]:
        print(f"  {node.score:6.2f}  {node.node_id:<24} {node.text[:70]}…")
    print("\nthe best of its 20 by late interaction:")
    for node in rerank.postprocess_nodes(found, query_str=question):
        before = node.metadata["retrieval_score"]
        print(f"  {node.score:6.2f}  {node.node_id:<24} {node.text[:70]}…  (BM25 {before:.2f})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Who discovered that oxygen makes things burn?")
