"""Fixtures that the tests share: backends, the folder of evaluation data, a web server, and a bucket."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

# Before torch is loaded: on busy cores its threads would spend half of the processor time waiting for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from manyvec.vectors.backend import Backend
from manyvec.vectors.llvm import Cpu, host_cpu
from manyvec.vectors.llvm_backend import LlvmBackend
from manyvec.vectors.torch_backend import TorchBackend

# The files that take longest, in processor seconds; by the number of their tests, xdist would start some of them last.
# While Ray waits for its processes, files that use one core run beside it.
LONGEST = (
    "test_ray.py",  # 200, much of it spent waiting
    "test_campaigns.py",  # 55
    "test_cluster.py",  # 40
    "test_examples.py",  # 65 and 45
    "test_quality.py",  # 160, on all cores
    "test_workers.py",  # 60
    "test_page.py",  # 40
    "test_training.py",  # 40
    "test_server_faults.py",  # 35
    "test_faults.py",
    "test_writers.py",
    "test_serve.py",
    "test_frameworks.py",
    "test_docs.py",
    "test_notebooks.py",
    "test_folder.py",
    "test_deploy.py",
    "test_files.py",  # 20
)


def pytest_configure(config):
    """Let xdist distribute the files in the order of the tests, and hide a GPU unless its tests are asked for.

    By default an index on a machine with a GPU scores all documents there: the tests of candidates and of the CPU's
    kernels are about the CPU.
    """
    config.option.loadscopereorder = False
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item):
    """Skip a GPU's tests where there is none or it is hidden."""
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: run pytest -m gpu where there is one")


def pytest_collection_modifyitems(items):
    """Begin with the longest files, so that no process is left alone with one of them at the end."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_generate_tests(metafunc):
    """Run a test that takes `backend` once for each backend."""
    if "backend" in metafunc.fixturenames:
        backends = _backends()
        metafunc.parametrize("backend", backends.values(), ids=backends.keys())


def _backends() -> dict[str, Backend]:
    """Kernels for this CPU, for AVX2 where this CPU has more, with int8 emulated where it has none; and torch."""
    backends: dict[str, Backend] = {}
    if cpu := host_cpu():
        backends["int8 kernels" if cpu.has_int8 else "float kernels"] = LlvmBackend(cpu)
        if cpu.lanes == 16:
            backends["AVX2 kernels"] = LlvmBackend(Cpu("haswell", "", 8, has_int8=False))
        if not cpu.has_int8:
            backends["emulated int8 kernels"] = LlvmBackend(replace(cpu, has_int8=True))
    return {**backends, "torch": TorchBackend()}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of data sets in BEIR layout: `MANYVEC_DATA`, or else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MANYVEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set MANYVEC_DATA to a folder of BEIR-layout data sets")
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Tiny checkpoint of each text family, by name: (folder, expected token vectors)."""
    from checkpoints.families import WRITERS

    root = tmp_path_factory.mktemp("checkpoints")
    return {name: (str(root / name), write(root / name)) for name, write in WRITERS.items()}


@pytest.fixture(scope="session")
def stages():
    """`examples/benchmarks/stages.py`: first stages that are not part of the package."""
    path = Path(__file__).parents[1] / "examples" / "benchmarks" / "stages.py"
    spec = importlib.util.spec_from_file_location("stages", path)
    module = importlib.util.module_from_spec(spec)
    # dataclass looks the module up by its name.
    sys.modules["stages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def running():
    """Context manager that serves an ASGI application on a local port with uvicorn, and yields its URL."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the serve extra: pip install 'manyvec[serve]'")
    from manyvec.server.app import server_config

    @contextmanager
    def run(app, **settings):
        config = server_config(app, port=0)
        for name, value in settings.items():
            setattr(config, name, value)
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


@pytest.fixture(scope="module")
def bucket():
    """Options for the bucket s3://papers on this machine."""
    server_of = pytest.importorskip("moto.server", reason="moto, which needs python-dateutil < 3, is not installed")
    boto3 = pytest.importorskip("boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "s3cr3t-key"}
    url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(Bucket="papers")
    yield {**keys, "endpoint": url, "allow_http": "true", "region": "us-east-1"}
    server.stop()


@pytest.fixture(scope="session")
def make_pdf():
    """A function that makes a small PDF."""

    def make(*texts, trailer=""):
        """A PDF with a page for each text; one without text has a page with nothing on it."""
        kids = " ".join(f"{10 + 2 * i} 0 R" for i in range(len(texts)))
        objects = [
            "1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj",
            f"2 0 obj <</Type/Pages/Kids[{kids}]/Count {len(texts)}>> endobj",
            "3 0 obj <</Type/Font/Subtype/Type1/BaseFont/Helvetica>> endobj",
        ]
        for i, text in enumerate(texts):
            content = f"BT /F1 24 Tf 20 100 Td ({text}) Tj ET" if text else ""
            page = "/Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F1 3 0 R>>>>"
            objects.append(f"{10 + 2 * i} 0 obj <<{page}/Contents {11 + 2 * i} 0 R>> endobj")
            objects.append(f"{11 + 2 * i} 0 obj <</Length {len(content)}>> stream\n{content}\nendstream endobj")
        return "\n".join(["%PDF-1.4", *objects, f"trailer <</Root 1 0 R{trailer}>>", "%%EOF"]).encode()

    return make
