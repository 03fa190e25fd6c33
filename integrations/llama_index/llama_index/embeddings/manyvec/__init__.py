"""One vector per text from manyvec's encoders, for what in LlamaIndex asks for an embedding model."""

from llama_index.embeddings.manyvec.base import ManyvecEmbedding, ManyvecMultiModalEmbedding

__all__ = ["ManyvecEmbedding", "ManyvecMultiModalEmbedding"]
