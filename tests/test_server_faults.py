"""What `manyvec serve` does with an index that vanishes, with hostile requests and with slow clients."""

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from urllib.parse import urlsplit

import pytest

from manyvec import Index
from manyvec.testing import HashEncoder

httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
mcp = pytest.importorskip("mcp", reason="needs the serve extra: pip install 'manyvec[serve]'")

from manyvec.server.api import Api, Searches, _to_record  # noqa: E402
from manyvec.server.app import create_app, server_config  # noqa: E402
from manyvec.server.connections import TimedProtocol  # noqa: E402
from manyvec.server.mcp import ServedIndex, mcp_server  # noqa: E402
from manyvec.server.records import SearchRequest  # noqa: E402

UNAVAILABLE = re.compile(r"the index cannot be read at the moment: try again later \(error [0-9a-f]{12}\)")
COLUMNS = {"year": int, "lang": str, "tags": list[str], "seen": datetime, "price": float, "open": bool}
SEA = [{"id": "a", "text": "fish sea"}, {"id": "b", "text": "deep water"}]
FRUIT = [{"id": "a", "text": "red apple"}, {"id": "b", "text": "yellow banana"}]


def make(folder, documents, **options):
    index = Index.create(folder, HashEncoder(), filter_columns=COLUMNS, **options)
    index.add(documents)
    return index


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "private place" / "index"


@pytest.fixture
def client(folder, running):
    with running(create_app(make(folder, FRUIT))) as url, httpx2.Client(timeout=120, base_url=url) as client:
        yield client


def search(client, query, **request):
    return client.post("/api/search", json={"query": query, **request})


def found(client, query):
    return [(hit["id"], hit["score"]) for hit in search(client, query).json()["hits"]]


def tells_nothing(response, folder):
    """Whether a response holds no path and no part of a traceback or of a database error."""
    private = [str(folder), folder.parent.name, os.sep + "site-packages", "Traceback", ".rs", "lance", "python"]
    return not any(part.lower() in response.text.lower() for part in private)


# An index that is deleted, replaced or damaged


@pytest.mark.parametrize("path", ["/api/info", "/api/documents/a", "/api/images/a", "/api/search"])
def test_a_deleted_index_is_unavailable_with_one_sentence_and_an_id_found_in_the_log(client, folder, path, caplog):
    shutil.rmtree(folder)
    with caplog.at_level(logging.ERROR, "manyvec"):
        response = search(client, "apple") if path == "/api/search" else client.get(path)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert (list(response.json()), response.json()["code"]) == (["detail", "code", "error_id"], "index_unavailable")
    assert UNAVAILABLE.fullmatch(response.json()["detail"])
    error_id = response.json()["detail"][-13:-1]
    (record,) = [record for record in caplog.records if error_id in record.getMessage()]
    assert record.exc_info


async def test_agents_get_the_same_sentence_when_the_index_is_deleted(client, folder):
    shutil.rmtree(folder)
    async with mcp.Client(f"{str(client.base_url).rstrip('/')}/mcp") as agent:
        for tool, arguments in (("search", {"query": "apple"}), ("get_document", {"id": "a"})):
            result = await agent.call_tool(tool, arguments)
            assert result.is_error
            assert UNAVAILABLE.search(result.content[0].text)
            assert str(folder) not in result.content[0].text


def test_an_index_moved_away_and_back_is_served_again(client, folder):
    folder.rename(folder.with_name("elsewhere"))
    assert search(client, "red apple").status_code == 503
    folder.with_name("elsewhere").rename(folder)
    assert found(client, "red apple")[0][0] == "a"


def test_damaged_files_are_an_error_that_tells_nothing_of_the_machine(client, folder):
    for file in folder.rglob("*.lance"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])
    for response in (search(client, "red apple"), client.get("/api/documents/a")):
        assert response.status_code in (500, 503)
        assert tells_nothing(response, folder)


@pytest.mark.parametrize("n_extra_commits", [0, 3])
def test_a_rebuilt_index_is_served_without_a_restart(client, folder, n_extra_commits):
    assert found(client, "red apple")[0] == ("a", pytest.approx(2, abs=0.01))
    shutil.rmtree(folder)
    assert search(client, "red apple").status_code == 503
    index = make(folder, SEA)
    for i in range(n_extra_commits):
        index.add([{"id": f"extra {i}", "text": "something else"}])
    assert found(client, "fish sea")[0] == ("a", pytest.approx(2, abs=0.01))
    assert dict(found(client, "red apple"))["a"] < 1
    assert client.get("/api/documents/a").json()["text"] == "fish sea"
    assert client.get("/api/info").json()["documents"] == 2 + n_extra_commits


def test_an_index_rebuilt_with_another_model_is_served_with_it_and_with_the_first_one_again(client, folder):
    for encoder, query, status in (
        (HashEncoder(32), "fish sea", 500),  # the model of an encoder object cannot be loaded by name
        (HashEncoder(), "fish sea", 200),
        ("minilm", "fish sea", 200),
        ("minilm", "deep water", 200),
        (HashEncoder(), "deep water", 200),
    ):
        shutil.rmtree(folder)
        Index.create(folder, encoder).add(SEA)
        response = search(client, query)
        assert response.status_code == status
        assert tells_nothing(response, folder)
        if status == 200:
            assert response.json()["hits"][0]["id"] == {"fish sea": "a", "deep water": "b"}[query]


def test_the_server_leaves_the_logging_of_the_process_as_it_is(tmp_path):
    """The MCP library would color tracebacks, which takes seconds for each error while the index is away."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    root.handlers[:] = []
    try:
        create_app(make(tmp_path / "index", FRUIT))
        assert (root.handlers, root.level) == ([], level)
    finally:
        root.handlers[:] = handlers


@pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
def test_an_index_replaced_between_two_requests_is_never_served_with_old_vectors(client, folder, storage):
    assert found(client, "red apple")[0][0] == "a"
    shutil.rmtree(folder)
    make(folder, [{**FRUIT[0], "id": "b"}, {**FRUIT[1], "id": "a"}], storage=storage)
    response = search(client, "red apple")
    assert response.status_code in (200, 503)
    for hit in response.json().get("hits", []):
        # Codes of one bit leave a similarity of 0.8 to equal words.
        assert (hit["id"] == "b") == (hit["similarity"] > 0.6)


def test_an_index_rebuilt_while_clients_search_is_never_answered_wrongly(client, folder):
    """Each reply is an error or a result of one whole index, whatever the moment of the rebuild."""
    replies, is_done = [], threading.Event()

    def ask():
        while not is_done.is_set():
            response = search(client, "red apple")
            replies.append((response.status_code, response.json()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for documents in (SEA, FRUIT, SEA):
        shutil.rmtree(folder, ignore_errors=True)
        make(folder, documents)
        time.sleep(0.3)
    is_done.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in replies} <= {200, 503}
    for status, reply in replies:
        for hit in reply["hits"] if status == 200 else []:
            text = hit["passage"]["text"]
            expected = 2 if text == "red apple" else 0
            assert hit["score"] == pytest.approx(expected, abs=0.9), reply
    assert found(client, "fish sea")[0][0] == "a"


# Hostile requests


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[::1", "http://]", "http://[zz]:1", "//", "null", "\udcff".encode("utf8", "replace")]
)
@pytest.mark.parametrize("path", ["/", "/api/info", "/mcp"])
def test_a_malformed_origin_is_refused(client, origin, path):
    assert client.get(path, headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/%00", "/api/documents/%00", "/api/images/%00", "/api/documents/" + "a" * 3000, "/" + "a/" * 1000, "/%ff%fe"],
)
def test_odd_paths_get_an_answer_that_tells_nothing_of_the_machine(client, folder, path):
    response = client.get(path)
    assert response.status_code in (400, 404, 414)
    assert tells_nothing(response, folder)


HOSTILE = [
    "' OR '1'='1", "en' OR true --", "'; DROP TABLE documents; --", "%", "_", "en\x00", "\\'", "NULL", "true", "",
    "🍎" * 500, True, False, 0, -1, 2**31, 2**53 + 1, 1.5, -0.0, 1e308, 5e-324, None, [], [None], [[]], ["en", "'"],
    ["x"] * 1000, [True, 1],
    "1970-01-01", "9999-12-31T23:59:59Z", "2026-02-30", "1e999", "NaN",
]  # fmt: skip


@pytest.mark.parametrize("column", [*COLUMNS, "id", "vector", "f_lang`", "lang' OR true --", "", "__proto__"])
def test_hostile_filter_values_never_widen_a_search_and_never_break_it(tmp_path_factory, column):
    index = make(
        tmp_path_factory.mktemp("filters") / "index",
        [{"id": "secret", "text": "red apple", "metadata": {"lang": "secret", "tags": ["secret"]}}],
    )
    app = create_app(index)
    import anyio

    async def replies():
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for value in HOSTILE:
                for op in ("==", "<", ">=", "in", "contains"):
                    condition = {"column": column, "op": op, "value": value}
                    yield condition, await client.post("/api/search", json={"query": "red", "filter": [condition]})

    async def check():
        async for condition, response in replies():
            assert response.status_code in (200, 400, 422), (condition, response.text)
            # No column of the only document has any of these values; NULL fails every comparison but == null.
            if response.status_code == 200 and condition["value"] is not None and condition["op"] in ("==", "in"):
                assert response.json()["hits"] == [], condition

    anyio.run(check)


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "1" * 5000, "1e400", "[" * 2000 + "]" * 2000, '{"a":' * 900 + "1" + "}" * 900],
)
@pytest.mark.parametrize("column", ["year", "price", "lang"])
def test_numbers_and_nesting_beyond_what_json_readers_expect_are_refused(client, folder, value, column):
    body = f'{{"query": "red", "filter": [{{"column": "{column}", "value": {value}}}]}}'
    response = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert tells_nothing(response, folder)


# Bounded responses


@pytest.mark.parametrize(("n_words", "k", "most"), [(2000, 100, 10), (2000, 11, 10), (201, 100, 99), (700, 50, 28)])
def test_the_words_of_a_query_times_its_hits_are_bounded(client, n_words, k, most):
    response = search(client, "a " * n_words, k=k)
    detail = f"a query of {n_words} words can have at most {most} hits, got k={k}"
    assert (response.status_code, response.json()) == (400, {"detail": detail, "code": "invalid_input"})
    assert search(client, "a " * n_words, k=most).status_code == 200


def test_the_words_of_a_response_are_bounded_and_their_shares_still_add_up(tmp_path):
    index = make(tmp_path / "index", [{"id": str(i), "text": f"red w{i} w{i + 1}"} for i in range(8)])
    response = Api(index, max_words=24).search(SearchRequest(query=" ".join(f"w{i}" for i in range(9)), k=8))
    assert [len(hit.words) for hit in response.hits] == [3] * 8
    for hit in response.hits:
        assert sum(word.share for word in hit.words) + hit.unattributed == pytest.approx(hit.score, abs=1e-3)
        # Both words of the document are in the query, and stay.
        assert sum(word.similarity > 0.99 for word in hit.words) == 2
        starts = [word.query_span[0] for word in hit.words]
        assert starts == sorted(starts)


def test_a_response_to_the_largest_request_stays_small(tmp_path):
    texts = [" ".join(f"{letter}{i}" for letter in "abcdefghij") for i in range(100)]
    index = make(tmp_path / "index", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    request = SearchRequest(query=" ".join("abcdefghij"[i % 10] + str(i % 100) for i in range(200)), k=100)
    response = Api(index).search(request).model_dump_json()
    assert len(response) < 2_000_000


def test_a_very_long_word_is_shortened(tmp_path):
    index = make(tmp_path / "index", [{"id": "a", "text": "x" * 100_000}])
    (hit,) = Api(index).search(SearchRequest(query="x" * 4000)).hits
    assert max(len(hit.words[0].word), len(hit.words[0].text)) <= 100
    assert (hit.words[0].query_span, hit.words[0].span) == ((0, 4000), (0, 100_000))


def test_metadata_that_is_too_long_is_left_out_and_this_is_said(tmp_path):
    documents = [
        {"id": str(i), "text": "red", "metadata": {"note": "n" * size}} for i, size in enumerate((40, 900, 50))
    ]
    api = Api(make(tmp_path / "index", documents), max_metadata_chars=200)
    hits = api.search(SearchRequest(query="red")).hits
    assert [(hit.id, bool(hit.metadata), hit.is_metadata_omitted) for hit in hits] == [
        ("0", True, False), ("1", False, True), ("2", True, False),
    ]  # fmt: skip
    document = api.document("1")
    assert (document.metadata, document.is_metadata_omitted, document.text) == ({}, True, "red")


def test_dates_in_metadata_are_sent_as_iso_8601(tmp_path):
    metadata = {"seen": datetime(2026, 1, 2, 3), "tags": ["new"], "other": datetime(2020, 5, 6)}
    api = Api(make(tmp_path / "index", [{"id": "a", "text": "red", "metadata": metadata}]))
    (hit,) = api.search(SearchRequest(query="red", filter={"seen": {"$gte": "2026-01-02"}})).hits
    expected = {"seen": "2026-01-02T03:00:00Z", "tags": ["new"], "other": "2020-05-06T00:00:00"}
    for record in (hit, api.document("a")):
        assert json.loads(record.model_dump_json())["metadata"] == expected


@pytest.mark.parametrize("score", [float("-inf"), float("inf"), float("nan")])
def test_a_score_that_json_cannot_hold_is_null(tmp_path, score):
    index = make(tmp_path / "index", FRUIT)
    (hit,) = index.search("apple", 1, evidence=True)
    record = _to_record(replace(hit, score=score, similarity=score), 100)
    written = json.loads(record.model_dump_json(), parse_constant=pytest.fail)
    assert (written["score"], written["similarity"]) == (None, None)


# Slow clients


class ImpatientProtocol(TimedProtocol):
    request_seconds = 0.4
    response_seconds = 0.4


@pytest.fixture(scope="module")
def address(tmp_path_factory, running):
    index = make(tmp_path_factory.mktemp("slow") / "index", [{"id": "long", "text": "word " * 40_000}])
    with running(create_app(index), http=ImpatientProtocol, timeout_keep_alive=1) as url:
        yield urlsplit(url).hostname, urlsplit(url).port


def read_to_end(connection):
    received = b""
    connection.settimeout(20)
    while part := connection.recv(65536):
        received += part
    return received


HEAD = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 30\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /api", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + b'{"query"'])
def test_a_request_that_is_never_completed_times_out(address, sent):
    with socket.create_connection(address) as connection:
        started = time.monotonic()
        connection.sendall(sent)
        received = read_to_end(connection)
    # The time runs from connecting, a little before.
    assert 0.2 < time.monotonic() - started < 15
    assert received.startswith(b"HTTP/1.1 408 ")


def test_a_request_that_is_sent_byte_by_byte_times_out(address):
    with socket.create_connection(address) as connection:
        started = time.monotonic()
        is_open = True
        while is_open and time.monotonic() - started < 15:
            try:
                connection.sendall(b"x")
            except OSError:  # connection reset or broken pipe
                is_open = False
            time.sleep(0.05)
    assert not is_open


def test_a_client_that_does_not_read_its_response_is_disconnected(address):
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /api/documents/long HTTP/1.1\r\nHost: localhost\r\n\r\n"
        # 20 MB are more than the buffers of both sides hold; the kernel's grow to 4 MB and more.
        connection.sendall(request * 100)
        started = time.monotonic()
        is_open = True
        while is_open and time.monotonic() - started < 20:
            time.sleep(0.2)
            try:
                connection.sendall(b"x")
            except OSError:  # connection reset or broken pipe
                is_open = False
    assert not is_open


def test_a_client_that_reads_slowly_but_steadily_gets_its_whole_response(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /api/documents/long HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        while part := connection.recv(8192):
            received += part
            time.sleep(0.03)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert len(received) > 200_000


def test_others_are_answered_while_slow_clients_hold_connections(address):
    slow = [socket.create_connection(address) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(HEAD)
        started = time.monotonic()
        response = httpx2.get(f"http://{address[0]}:{address[1]}/api/info", timeout=60)
        assert response.status_code == 200
        assert time.monotonic() - started < 10
    finally:
        for connection in slow:
            connection.close()


def test_an_idle_connection_between_two_requests_is_not_a_slow_request(address):
    with socket.create_connection(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.rstrip().endswith(b"</svg>"):
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            # Longer than a request may take, and shorter than a connection may be idle.
            time.sleep(0.6)


def test_idle_connections_are_closed_by_clients_and_not_by_the_server(tmp_path):
    config = server_config(create_app(make(tmp_path / "index", FRUIT)))
    assert config.timeout_keep_alive > 2 * httpx2.Limits().keepalive_expiry


async def test_a_search_whose_client_disconnects_is_cancelled_and_others_are_answered(tmp_path, running):
    from manyvec.testing import SlowEncoder

    index = make(tmp_path / "index", FRUIT)
    slow = Index.open(tmp_path / "index", SlowEncoder())
    assert index.count() == 2
    with running(create_app(slow)) as url:
        async with httpx2.AsyncClient(timeout=120, base_url=url) as client:
            gone = [asyncio.create_task(client.post("/api/search", json={"query": f"red {i}"})) for i in range(8)]
            await asyncio.sleep(0.2)
            for task in gone:
                task.cancel()
            response = await client.post("/api/search", json={"query": "red apple"})
            assert response.json()["hits"][0]["id"] == "a"


# Standard input and output


def test_the_stdio_server_loads_its_model_without_being_called(tmp_path):
    Index.create(tmp_path / "index", "minilm").add([{"id": "bread", "text": "Bread is baked from flour."}])
    command = [sys.executable, "-m", "manyvec", "mcp", "--index", str(tmp_path / "index")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in process.stderr if line.startswith("manyvec: "))
        assert re.fullmatch(r"manyvec: ready after \d+\.\d seconds\n", line)
    finally:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("is_warm", [True, False])
async def test_the_handshake_says_that_the_first_search_waits_only_if_the_model_is_not_loaded(folder, is_warm):
    api = Api(make(folder, FRUIT))
    served = ServedIndex(api, Searches(api), "fruit")
    async with mcp.Client(mcp_server(served, is_warm=is_warm)) as agent:
        assert ("first search waits until the model is loaded" in agent.instructions) is not is_warm
