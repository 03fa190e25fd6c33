"""manyvec's late-interaction retriever for LlamaIndex."""

from llama_index.retrievers.manyvec.base import ManyvecRetriever

__all__ = ["ManyvecRetriever"]
