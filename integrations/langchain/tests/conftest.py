from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

import manyvec
from manyvec.testing import HashEncoder


@pytest.fixture
def index(tmp_path: Path) -> manyvec.Index:
    """An empty index on disk that can be filtered by year."""
    return manyvec.Index.create(tmp_path / "index", HashEncoder(), filter_columns={"year": int})


class Recorder(BaseCallbackHandler):
    """Keeps the events of retrievers."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[list[str | None]] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(
        self, serialized: Any, query: str, *, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.started.append((query, metadata or {}))

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        self.ended.append([document.id for document in documents])

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


@pytest.fixture
def new_recorder() -> type[Recorder]:
    return Recorder
