"""Rerank the documents of an existing retriever, here BM25, by late interaction.

python examples/langchain/rerank_bm25.py "your question"

The documents are in a manyvec index, so they are reranked from stored token vectors and only the question is encoded.
Any LangChain retriever can be the first stage; documents that the index does not hold are encoded during the search.
"""

import sys
import tempfile
from pathlib import Path

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

import manyvec
from langchain_manyvec import ManyvecReranker, ManyvecRerankRetriever
from manyvec import files
from manyvec.candidates import Lexical

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"


class BM25Retriever(BaseRetriever):
    """Stands in for any first stage: BM25 of LanceDB's full-text index."""

    index: manyvec.Index
    k: int = 20

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        ids = self.index.rank([query], Lexical(), self.k)[0]
        return [Document(found.text, id=found.id, metadata=dict(found.metadata)) for found in self.index.get(ids)]


def main(question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = manyvec.Index.create(Path(folder) / "index", encoder="minilm")
        index.add(files.read(PASSAGES))

        bm25 = BM25Retriever(index=index)
        reranked = ManyvecRerankRetriever(retriever=bm25, reranker=ManyvecReranker(index=index, top_n=3))

        print(f"{question}\n\nBM25 alone:")
        for document in bm25.invoke(question)[:3]:
            print(f"  {document.id:<28} {document.page_content[:70]}…")
        print("\nits 20 best, reranked:")
        for document in reranked.invoke(question):
            print(f"  {document.id:<28} {document.metadata['relevance_score']:.3f}  {document.page_content[:63]}…")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Who discovered that oxygen makes things burn?")
