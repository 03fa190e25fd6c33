"""LangChain's own suite for retrievers."""

from typing import Any

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests

import manyvec
from langchain_manyvec import ManyvecRetriever


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
