"""A manyvec index as a LlamaIndex vector store."""

from llama_index.vector_stores.manyvec.base import ManyvecVectorStore

__all__ = ["ManyvecVectorStore"]
