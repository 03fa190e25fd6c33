"""manyvec's late-interaction retrievers for LlamaIndex: of nodes, and of tools for agents."""

from llama_index.retrievers.manyvec.base import ManyvecRetriever
from llama_index.retrievers.manyvec.tools import ManyvecToolMapping, ManyvecToolRetriever

__all__ = ["ManyvecRetriever", "ManyvecToolMapping", "ManyvecToolRetriever"]
