"""Index 84 real passages, then search them with manyvec, with LangChain and with LlamaIndex.

python examples/quickstart.py "your question"
"""

import sys
from pathlib import Path

from llama_index.retrievers.manyvec import ManyvecRetriever as LlamaIndexRetriever

import manyvec
from langchain_manyvec import ManyvecRetriever as LangChainRetriever
from manyvec import files

query = sys.argv[1] if len(sys.argv) > 1 else "Who discovered that oxygen makes things burn?"
here = Path(__file__).parent

index = manyvec.Index.create(
    here.parent / "quickstart-index",
    encoder="minilm",
    filter_columns={"article": str, "n_words": int, "topics": list[str]},
    exist_ok=True,
)
report = index.add(files.read(here / "data" / "squad_sample.jsonl"), show_progress=True)
print(f"{report.added} passages added, {report.unchanged} unchanged\n")

print(f"manyvec: {query}")
for hit in index.search(query, k=3):
    print(f"  {hit.rank}. {hit.id:<24} score {hit.final_score:.3f}  similarity {hit.similarity:.3f}  {hit.text[:60]}…")

condition = (manyvec.F("n_words") < 100) & ~manyvec.F("topics").contains("chemistry")
print("\nonly short passages that are not about chemistry:")
for hit in index.search(query, k=3, filter=condition):
    print(f"  {hit.rank}. {hit.id:<24} score {hit.final_score:.3f}  similarity {hit.similarity:.3f}  {hit.text[:60]}…")

print("\nLangChain: ManyvecRetriever(index=index, k=3).invoke(query)")
for document in LangChainRetriever(index=index, k=3).invoke(query):
    print(f"  {document.id:<27} score {document.metadata['final_score']:.3f}  {document.page_content[:60]}…")

print("\nLlamaIndex: ManyvecRetriever(index, similarity_top_k=3).retrieve(query)")
for node in LlamaIndexRetriever(index, similarity_top_k=3).retrieve(query):
    print(f"  {node.node_id:<27} score {node.score:.3f}  {node.text[:60]}…")
