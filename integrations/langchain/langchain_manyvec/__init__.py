"""Late-interaction (ColBERT) retrieval over LanceDB for LangChain.

retriever = ManyvecRetriever.from_uri("./papers", k=5)
retriever.invoke("how many vectors does ColBERT keep", filter={"year": 2024})
"""

from langchain_manyvec.calibration import Calibration
from langchain_manyvec.document_index import ManyvecDocumentIndex
from langchain_manyvec.record_manager import ManyvecRecordManager
from langchain_manyvec.retrievers import ManyvecRetriever
from langchain_manyvec.vectorstores import ManyvecVectorStore

__all__ = [
    "Calibration",
    "ManyvecDocumentIndex",
    "ManyvecRecordManager",
    "ManyvecRetriever",
    "ManyvecVectorStore",
]
