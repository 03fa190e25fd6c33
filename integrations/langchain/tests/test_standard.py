"""LangChain's own suites for what this package fills, with no test left out or changed."""

from typing import Any

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite

import manyvec
from langchain_manyvec import ManyvecDocumentIndex, ManyvecRetriever, ManyvecVectorStore
from manyvec.testing import HashEncoder


class TestManyvecRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _fill(self, index: manyvec.Index) -> None:
        self.index = index
        index.add([{"id": f"d{i}", "text": f"late interaction, page {i}"} for i in range(5)])

    @property
    def retriever_constructor(self) -> type[ManyvecRetriever]:
        return ManyvecRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index}

    @property
    def retriever_query_example(self) -> str:
        return "late interaction"


class TestManyvecVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, index: manyvec.Index) -> ManyvecVectorStore:
        return ManyvecVectorStore(index)


class TestManyvecDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, tmp_path) -> ManyvecDocumentIndex:
        return ManyvecDocumentIndex(index=manyvec.Index.create(tmp_path / "index", HashEncoder()))


class TestManyvecDocumentIndexAsync(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, tmp_path) -> ManyvecDocumentIndex:
        return ManyvecDocumentIndex(index=manyvec.Index.create(tmp_path / "index", HashEncoder()))


class TestManyvecDocumentIndexAsRetriever(TestManyvecRetriever):
    @property
    def retriever_constructor(self) -> type[ManyvecDocumentIndex]:
        return ManyvecDocumentIndex
