"""Adding and deleting documents over HTTP, which needs `--write` and a token, and what operators see of a server."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from manyvec import Index, InputError
from manyvec.testing import HashEncoder

httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
pytest.importorskip("prometheus_client", reason="needs the serve extra: pip install 'manyvec[serve]'")

from opentelemetry import trace  # noqa: E402  # mcp needs it

from manyvec.server.api import Api  # noqa: E402
from manyvec.server.app import MAX_WRITE_BODY_BYTES, create_app  # noqa: E402
from manyvec.server.records import SearchRequest  # noqa: E402

TOKEN = "a-token-of-enough-characters"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SECRET = "zebra unicorn"


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "places", HashEncoder(64), filter_columns={"lang": str, "open": bool, "year": int})
    index.add(
        {"id": id, "text": f"{id} is a town", "metadata": {"lang": lang, "open": lang == "en", "year": 2020}}
        for id, lang in (("york", "en"), ("bath", "en"), ("ulm", "de"))
    )
    return index


@pytest.fixture
def client(index, running):
    with (
        running(create_app(index, token=TOKEN, write=True)) as url,
        httpx2.Client(timeout=120, base_url=url, headers=HEADERS) as client,
    ):
        yield client


def numbers(client):
    """Return the samples of /metrics by name and labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_documents_are_added_replaced_and_deleted(client, index):
    assert client.get("/api/info").json()["is_writable"] is True
    rome = {"id": "a/b", "text": "Rome is old", "metadata": {"lang": "it"}}
    documents = [rome, {"id": "ulm", "text": "Ulm is in Germany"}]
    added = client.post("/api/documents", json={"documents": documents})
    assert added.json() == {"added": 1, "updated": 1, "unchanged": 0}
    hits = client.post("/api/search", json={"query": "Rome", "k": 1, "filter": {"lang": "it"}}).json()["hits"]
    assert [hit["id"] for hit in hits] == ["a/b"]
    assert client.delete("/api/documents/a%2Fb").json() == {"deleted": 1}
    gone = client.delete("/api/documents/a%2Fb")
    assert (gone.status_code, gone.json()) == (404, {"detail": "there is no document 'a/b'", "code": "not_found"})
    assert index.ids() == ["bath", "ulm", "york"]
    assert index.get("ulm")[0].metadata == {}


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"id": "x", "text": "y", "image": "/etc/passwd"}, 422, "Extra inputs are not permitted"),
        ({"id": "x", "text": "y", "vectors": [[1.0]]}, 422, "Extra inputs are not permitted"),
        ({"id": "", "text": "y"}, 422, "at least 1 character"),
        ({"id": "x" * 1001, "text": "y"}, 422, "at most 1000 characters"),
        ({"id": "x", "text": " "}, 400, "has no text"),
        ({"id": "x", "text": "y", "metadata": {"year": "new"}}, 400, "year"),
        ({"id": "x", "text": "y", "metadata": "lang"}, 422, "valid dictionary"),
    ],
)
def test_a_document_that_cannot_be_added_is_refused_with_its_problem(client, index, document, status, message):
    response = client.post("/api/documents", json={"documents": [document]})
    assert (response.status_code, message in json.dumps(response.json())) == (status, True), response.text
    assert len(index.ids()) == 3


def test_an_id_that_looks_like_a_path_stays_an_id(client, index, tmp_path):
    assert client.post("/api/documents", json={"documents": [{"id": "../../out.md", "text": "x"}]}).status_code == 200
    assert "../../out.md" in index.ids()
    assert not [*tmp_path.parent.rglob("out.md")]


def test_large_bodies_many_documents_and_broken_text_are_refused(client, index):
    large = client.post("/api/documents", json={"documents": [{"id": "x", "text": "y" * MAX_WRITE_BODY_BYTES}]})
    assert large.status_code == 413
    assert client.post("/api/documents", json={"documents": [{"id": "x", "text": "y"}] * 101}).status_code == 422
    assert client.post("/api/documents", json={"documents": []}).status_code == 422
    surrogate = b'{"documents": [{"id": "x", "text": "\\ud800"}]}'
    assert client.post("/api/documents", content=surrogate, headers={"Content-Type": "application/json"}).is_error
    assert client.post("/api/search", json={"query": "x" * 70_000}).status_code == 413
    assert len(index.ids()) == 3


def test_writing_needs_the_option_and_the_token(index, running):
    with pytest.raises(InputError, match="only with a token"):
        create_app(index, write=True)
    documents = {"documents": [{"id": "x", "text": "y"}]}
    with running(create_app(index, token=TOKEN)) as url, httpx2.Client(base_url=url, headers=HEADERS) as client:
        assert client.post("/api/documents", json=documents).status_code == 405
        assert client.delete("/api/documents/ulm").status_code == 405
        assert client.get("/api/info").json()["is_writable"] is False
    with running(create_app(index, token=TOKEN, write=True)) as url, httpx2.Client(base_url=url) as client:
        for response in (client.post("/api/documents", json=documents), client.delete("/api/documents/ulm")):
            assert (response.status_code, response.json()["code"]) == (401, "token_needed")
    assert len(index.ids()) == 3


@pytest.mark.parametrize("program", ["python", "node"])
def test_the_clients_of_the_examples_print_hits_and_errors(index, running, program):
    command = {"python": [sys.executable, "search.py"], "node": [shutil.which("node"), "search.mjs"]}[program]
    if command[0] is None:
        pytest.skip("needs Node.js")
    folder = Path(__file__).parents[1] / "examples" / "clients"
    with running(create_app(index, token=TOKEN)) as url:

        def run(token):
            environment = {**os.environ, "MANYVEC_URL": url, "MANYVEC_TOKEN": token}
            return subprocess.run([*command, "town ulm"], cwd=folder, env=environment, capture_output=True, text=True)

        assert [line.split()[:2] for line in run(TOKEN).stdout.splitlines()[::2]] == [
            ["1.", "ulm"], ["2.", "bath"], ["3.", "york"],
        ]  # fmt: skip
        refused = run("wrong")
    assert refused.returncode == 1
    assert "token_needed" in refused.stderr


def test_a_token_in_a_url_is_refused_even_if_it_is_right(client):
    for path in ("/", "/api/info", "/metrics"):
        for name in ("token", "access_token", "Token"):
            refused = client.get(path, params={name: TOKEN})
            assert (refused.status_code, refused.json()["code"]) == (400, "token_in_url")
            assert TOKEN not in refused.text


def test_the_overview_lists_values_of_columns_and_things_to_search_for(client):
    overview = client.get("/api/overview").json()
    assert overview["samples"] == ["bath is a town", "ulm is a town", "york is a town"]
    assert overview["facets"] == {
        "lang": {"values": [{"value": "en", "documents": 2}, {"value": "de", "documents": 1}], "n_values": 2},
        "open": {"values": [{"value": "true", "documents": 2}, {"value": "false", "documents": 1}], "n_values": 2},
    }


def test_the_overview_of_a_large_index_is_empty_because_it_would_take_long(client, monkeypatch):
    monkeypatch.setattr("manyvec.server.api.MAX_OVERVIEW_DOCUMENTS", 2)
    assert client.get("/api/overview").json() == {"facets": {}, "samples": []}


def test_the_numbers_for_prometheus_add_up_and_hold_no_query_text_or_id(client):
    before = numbers(client)
    for _ in range(3):
        assert client.post("/api/search", json={"query": SECRET, "filter": {"lang": "en"}}).status_code == 200
    assert client.post("/api/search", json={"query": SECRET, "k": 0}).status_code == 422
    client.get(f"/api/documents/{SECRET}")
    client.get(f"/{SECRET}", params={"q": SECRET})
    assert client.get("/api/info", headers={"Authorization": "Bearer wrong"}).status_code == 401
    after = numbers(client)

    def added(name):
        return after.get(name, 0) - before.get(name, 0)

    assert added("manyvec_searches_total") == added('manyvec_requests_total{route="/api/search",status="200"}') == 3
    assert added('manyvec_requests_total{route="/api/search",status="422"}') == 1
    assert added('manyvec_requests_total{route="/api/documents",status="404"}') == 1
    assert added('manyvec_requests_total{route="page",status="404"}') == 1
    assert added('manyvec_requests_total{route="/api/info",status="401"}') == 1
    assert added('manyvec_request_seconds_count{route="/api/search"}') == 4
    for stage in ("encode", "score", "evidence", "total"):
        assert added(f'manyvec_search_stage_seconds_count{{stage="{stage}"}}') == added("manyvec_search_passes_total")
    assert (after["manyvec_documents"], after["manyvec_index_up"]) == (3, 1)
    assert after["manyvec_cache_bytes"] > 0
    text = client.get("/metrics").text
    assert re.search(r'manyvec_build_info\{lancedb="[0-9.]+",manyvec="[0-9.]+', text)
    for word in ("zebra", "unicorn", "york", "lang", "places"):
        assert word not in text


def test_the_numbers_add_up_with_32_clients_at_once(client):
    before, headers = numbers(client), dict(client.headers)

    def search_five_times(number):
        with httpx2.Client(base_url=client.base_url, headers=headers, timeout=120) as own:
            bodies = [{"query": f"town {number} {i}", "k": 0 if i == 4 else 2} for i in range(5)]
            return [own.post("/api/search", json=body).status_code for body in bodies]

    with ThreadPoolExecutor(32) as pool:
        statuses = Counter(status for answered in pool.map(search_five_times, range(32)) for status in answered)
    after = numbers(client)
    assert statuses == {200: 128, 422: 32}
    for status, n in statuses.items():
        name = f'manyvec_requests_total{{route="/api/search",status="{status}"}}'
        assert after[name] - before.get(name, 0) == n
    assert after["manyvec_searches_total"] - before["manyvec_searches_total"] == 128
    # Those that arrived together were answered in one pass.
    assert 0 < after["manyvec_search_passes_total"] - before["manyvec_search_passes_total"] <= 128


class Spans(trace.TracerProvider, trace.Tracer):
    """Keeps the name and the attributes of each span."""

    def __init__(self):
        self.ended = []

    def get_tracer(self, *args, **options):
        return self

    def start_span(self, name, **options):
        raise NotImplementedError

    @contextmanager
    def start_as_current_span(self, name, attributes=None, **options):
        span = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
        kept = dict(attributes)
        span.set_attributes = kept.update
        yield span
        self.ended.append((name, kept))


def test_a_pass_over_the_index_is_a_span_without_the_query(index, monkeypatch):
    spans = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: spans)
    Api(index).search(SearchRequest(query=SECRET, k=2))  # type: ignore[call-arg]
    ((name, attributes),) = spans.ended
    assert (name, attributes["queries"], attributes["k"]) == ("manyvec.search", 1, 2)
    assert {"seconds.encode", "seconds.score", "seconds.evidence"} < set(attributes)
    assert "zebra" not in str(attributes)


def test_the_health_check_needs_no_token_and_fails_with_the_index(client, tmp_path):
    healthy = client.get("/healthz", headers={"Authorization": ""})
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    (tmp_path / "places").rename(tmp_path / "away")
    failed = client.get("/healthz", headers={"Authorization": ""})
    assert (failed.status_code, failed.json()["code"]) == (503, "index_unavailable")
    assert failed.json()["error_id"] in failed.json()["detail"]
    assert "places" not in failed.text
    assert numbers(client)["manyvec_index_up"] == 0
