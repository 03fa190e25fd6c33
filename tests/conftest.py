"""What the tests share: where the evaluation data lies, and a web server."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from manyvec.vectors import llvm as machine


def pytest_generate_tests(metafunc):
    """`processor`: this one, one with AVX2 alone where this has more, and one that no machine code is made for."""
    if "processor" in metafunc.fixturenames:
        own = machine.processor()
        lesser = [machine.Cpu("haswell", "", 8, has_int8=False)] if own and own.lanes == 16 else []
        kinds = [*([own] if own else []), *lesser, None]
        metafunc.parametrize("processor", kinds, ids=[f"{kind.lanes} lanes" if kind else "no code" for kind in kinds])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A folder of data sets in BEIR layout: `MANYVEC_DATA`, or else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MANYVEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set MANYVEC_DATA to a folder of BEIR-layout data sets")
    return folder


@pytest.fixture(scope="session")
def running():
    """A context manager: an ASGI application, served on a port of this machine by the server that users get."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the serve extra: pip install 'manyvec[serve]'")

    @contextmanager
    def run(app):
        config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=3)
        server, listening = uvicorn.Server(config), config.bind_socket()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listening.close()

    return run
