"""manyvec's late-interaction reranker for LlamaIndex."""

from llama_index.postprocessor.manyvec.base import ManyvecRerank

__all__ = ["ManyvecRerank"]
