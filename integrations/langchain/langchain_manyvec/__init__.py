"""Late-interaction (ColBERT) retrieval over LanceDB for LangChain.

retriever = ManyvecRetriever.from_uri("./papers", k=5)
retriever.invoke("how many vectors does ColBERT keep", filter={"year": 2024})

`ManyvecToolSelector` also needs the langchain package: pip install 'langchain-manyvec[agents]'
"""

from typing import TYPE_CHECKING, Any

from langchain_manyvec.calibration import Calibration
from langchain_manyvec.document_compressors import ManyvecReranker, ManyvecRerankRetriever
from langchain_manyvec.document_index import ManyvecDocumentIndex
from langchain_manyvec.embeddings import ManyvecEmbeddings
from langchain_manyvec.record_manager import ManyvecRecordManager
from langchain_manyvec.retrievers import ManyvecRetriever
from langchain_manyvec.self_query import ManyvecTranslator
from langchain_manyvec.vectorstores import ManyvecVectorStore

if TYPE_CHECKING:
    from langchain_manyvec.middleware import ManyvecToolSelector

__all__ = [
    "Calibration",
    "ManyvecDocumentIndex",
    "ManyvecEmbeddings",
    "ManyvecRecordManager",
    "ManyvecRerankRetriever",
    "ManyvecReranker",
    "ManyvecRetriever",
    "ManyvecToolSelector",
    "ManyvecTranslator",
    "ManyvecVectorStore",
]


def __getattr__(name: str) -> Any:
    if name != "ManyvecToolSelector":
        raise AttributeError(f"module 'langchain_manyvec' has no attribute {name!r}")
    from langchain_manyvec.middleware import ManyvecToolSelector

    return ManyvecToolSelector
