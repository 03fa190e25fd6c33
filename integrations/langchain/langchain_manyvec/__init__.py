"""Late-interaction (ColBERT) retrieval over LanceDB for LangChain.

retriever = ManyvecRetriever.from_uri("./papers", k=5)
retriever.invoke("how many vectors does ColBERT keep", filter={"year": 2024})
"""

from langchain_manyvec.retrievers import ManyvecRetriever

__all__ = ["ManyvecRetriever"]
