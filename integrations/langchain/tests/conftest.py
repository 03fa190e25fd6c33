from pathlib import Path

import pytest

import manyvec
from manyvec.testing import HashEncoder


@pytest.fixture
def index(tmp_path: Path) -> manyvec.Index:
    """An empty index on disk that can be filtered by year."""
    return manyvec.Index.create(tmp_path / "index", HashEncoder(), filters={"year": int})
