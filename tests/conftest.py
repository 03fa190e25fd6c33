"""What the tests share: where the evaluation data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A folder of data sets in BEIR layout: `MANYVEC_DATA`, or else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MANYVEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set MANYVEC_DATA to a folder of BEIR-layout data sets")
    return folder
