"""Files to documents."""

from manyvec.files.readers import read_documents

__all__ = ["read_documents"]
