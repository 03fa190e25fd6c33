"""`manyvec serve` and `manyvec mcp`: real servers, called by an HTTP client and by the official MCP client."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest

from manyvec import Index, InputError, TokenBatch
from manyvec.cli import main
from manyvec.testing import ColorEncoder, HashEncoder

httpx2 = pytest.importorskip("httpx2", reason="needs the serve extra: pip install 'manyvec[serve]'")
mcp = pytest.importorskip("mcp", reason="needs the serve extra: pip install 'manyvec[serve]'")

from mcp.client.stdio import stdio_client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

from manyvec.server.api import Api  # noqa: E402
from manyvec.server.app import create_app  # noqa: E402
from manyvec.server.mcp import WARM_UP_SECONDS  # noqa: E402
from manyvec.server.records import SearchRequest  # noqa: E402

TOKEN = "a-token-of-enough-characters"
DOCUMENTS = [
    {
        "id": "de/berlin",
        "text": "Berlin is in Germany. It is large.",
        "metadata": {"year": 2020, "lang": "en", "tags": ["city"], "seen": "2026-01-02", "open": True},
    },
    {
        "id": "paris",
        "text": "👩‍🔬 Paris is the capital of France.",
        "metadata": {"year": 2021, "lang": "fr", "tags": ["city", "capital"], "open": False},
    },
    {"id": "bread?", "text": "Bread is baked from flour.", "metadata": {}},
]
FILTERS = {"year": int, "lang": str, "tags": list[str], "seen": datetime, "open": bool}


def nested(filter, depth):
    """Return the same filter inside `depth` connectives."""
    for _ in range(depth):
        filter = {"$and": [filter]}
    return filter


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("serve") / "places", HashEncoder(64), filter_columns=FILTERS)
    index.add(DOCUMENTS)
    return index


@pytest.fixture(scope="module")
def url(index, running):
    with running(create_app(index)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with httpx2.Client(timeout=120, base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def guarded_url(index, running):
    with running(create_app(index, token=TOKEN)) as url:
        yield url


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Path of an index that a new process can open, because its model is installed with manyvec."""
    db = tmp_path_factory.mktemp("serve") / "minilm"
    Index.create(db, "minilm").add([{"id": "bread", "text": "Bread is baked from flour. It is eaten warm."}])
    return str(db)


def search(client, query, **request):
    return client.post("/api/search", json={"query": query, **request})


def test_a_search_returns_hits_with_evidence(client):
    (hit,) = search(client, "capital of France", k=1).json()["hits"]
    assert (hit["id"], hit["rank"], hit["metadata"]) == ("paris", 1, DOCUMENTS[1]["metadata"])
    assert hit["score"] == pytest.approx(3, abs=0.01)
    # With this model BM25 takes no part.
    assert (hit["final_score"], hit["counted"]) == (hit["score"], [])
    # Spans count code points: the emoji is three of them, so "capital" starts at character 17.
    assert [(w["word"], w["text"], w["span"]) for w in hit["words"]] == [
        ("capital", "capital", [17, 24]),
        ("of", "of", [25, 27]),
        ("France", "France", [28, 34]),
    ]
    assert hit["passage"] == {"text": DOCUMENTS[1]["text"], "start": 0, "end": 35}
    assert sum(w["share"] for w in hit["words"]) + hit["unattributed"] == pytest.approx(hit["score"], abs=0.001)


def test_a_search_without_evidence_has_the_same_hits_and_passages(client):
    request = {"query": "green juice", "k": 3, "passage_chars": 40}
    explained, plain = (
        client.post("/api/search", json=request | {"evidence": evidence}).json()["hits"] for evidence in (True, False)
    )
    told = ("rank", "id", "score", "final_score", "passage", "metadata")
    assert [[hit[key] for key in told] for hit in plain] == [[hit[key] for key in told] for hit in explained]
    assert explained[0]["words"] and not any(hit["words"] or hit["counted"] for hit in plain)
    assert all(hit["unattributed"] == hit["score"] for hit in plain)


def test_hits_are_ordered_by_the_final_score_and_name_the_words_that_bm25_counted(db):
    api = Api(Index.open(db))
    assert api.info().lexical_weight == 0.27
    (hit,) = api.search(SearchRequest(query="baking of bread")).hits
    assert hit.final_score not in (hit.score, hit.similarity)
    assert [(c.word, c.n, c.spans) for c in hit.counted] == [("baking", 1, [(9, 14)]), ("bread", 1, [(0, 5)])]


def test_a_search_reports_the_time_of_each_stage(client):
    taken = search(client, "capital").json()["milliseconds"]
    assert set(taken) == {"encode", "candidates", "fetch", "score", "evidence", "total"}
    assert min(taken.values()) >= 0
    assert 0 < sum(taken.values()) - taken["total"] <= taken["total"] + 0.1


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], {"de/berlin", "paris", "bread?"}),
        ([("year", ">=", 2021)], {"paris"}),
        ([("year", "<", 2021), ("lang", "==", "en")], {"de/berlin"}),
        ([("lang", "!=", "en")], {"paris", "bread?"}),
        ([("lang", "in", ["en", "fr"])], {"de/berlin", "paris"}),
        ([("lang", "is null", None)], {"bread?"}),
        ([("tags", "contains", "capital")], {"paris"}),
        ([("seen", "<=", "2026-01-02T23:59:59Z")], {"de/berlin"}),
        ([("open", "==", False)], {"paris"}),
    ],
)
def test_conditions_filter_a_search(client, conditions, expected):
    records = [{"column": column, "op": op, "value": value} for column, op, value in conditions]
    assert {hit["id"] for hit in search(client, "is", filter=records).json()["hits"]} == expected


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, {"de/berlin", "paris", "bread?"}),
        (None, {"de/berlin", "paris", "bread?"}),
        ({"year": {"$gte": 2021}}, {"paris"}),
        ({"year": {"$gte": "2021"}}, {"paris"}),
        ({"lang": ["en", "fr"], "open": False}, {"paris"}),
        ({"$or": [{"tags": {"$contains": "capital"}}, {"$not": {"lang": {"$exists": True}}}]}, {"paris", "bread?"}),
        ({"seen": {"$between": ["2026-01-01", "2026-01-02T23:59:59Z"]}}, {"de/berlin"}),
        ({"column": "year", "op": ">=", "value": 2021}, {"paris"}),
        ([{"column": "lang", "value": "en"}, {"year": {"$lt": 2021}}], {"de/berlin"}),
        ([{"column": "lang", "op": "not in", "value": ["en"]}], {"paris", "bread?"}),
        (nested({"year": {"$gte": 2021}}, 20), {"paris"}),
    ],
)
def test_a_search_takes_a_filter_in_any_form_that_the_core_reads(client, filter, expected):
    response = search(client, "is", filter=filter)
    assert response.status_code == 200, response.text
    assert {hit["id"] for hit in response.json()["hits"]} == expected


@pytest.mark.parametrize(
    ("request_body", "status", "message"),
    [
        ({"query": "a", "k": 0}, 422, "greater than or equal to 1"),
        ({"query": "a", "k": 101}, 422, "less than or equal to 100"),
        ({"query": "a", "offset": 901}, 422, "less than or equal to 900"),
        ({"query": "a" * 4001}, 422, "at most 4000 characters"),
        ({"query": "a", "passage_chars": 10**9}, 422, "less than or equal to 4000"),
        ({"query": "a", "depth": 5}, 422, "Extra inputs are not permitted"),
        ({"query": 5}, 422, "valid string"),
        ({}, 422, "Field required"),
        ({"query": "a", "filter": [{"column": "author", "value": "me"}]}, 400, "there is no filter column 'author'"),
        ({"query": "a", "filter": [{"column": "year", "value": "new"}]}, 400, "must be of type int, got 'new'"),
        ({"query": "a", "filter": [{"column": "lang", "op": "in", "value": "en"}]}, 400, "in takes a list"),
        ({"query": "a", "filter": [{"column": "lang", "op": "LIKE", "value": "e"}]}, 400, "did you mean 'like'?"),
        ({"query": "a", "filter": [{"column": "year", "value": {"a": 1}}]}, 400, "must be of type int, got {'a': 1}"),
        ({"query": "a", "filter": [{"column": "year", "value": 1}] * 1001}, 400, "more than 1,000 comparisons"),
        ({"query": "a", "filter": {"$or": [{"year": 1}] * 1001}}, 400, "more than 1,000 parts"),
        ({"query": "a", "filter": {"year": {"gte": 2020}}}, 400, "did you mean '$gte'?"),
        ({"query": "a", "filter": {"$AND": [{"year": 1}]}}, 400, "did you mean '$and'?"),
        ({"query": "a", "filter": {"yaer": 1}}, 400, "Did you mean 'year'?"),
        ({"query": "a", "filter": "year >= 2020"}, 422, "valid dictionary"),
        ({"query": "a", "filter": nested({"year": 1}, 21)}, 400, "nested deeper than 20 levels"),
        ({"query": "a", "filter": nested({"year": 1}, 200)}, 422, "more than 50 levels of lists and objects"),
    ],
)
def test_an_invalid_request_gets_an_error_that_names_the_problem(client, request_body, status, message):
    response = client.post("/api/search", json=request_body)
    assert response.status_code == status
    assert message in json.dumps(response.json(), ensure_ascii=False)


def test_invalid_unicode_invalid_json_other_types_and_large_bodies_are_refused(client):
    json_type = {"Content-Type": "application/json"}
    assert client.post("/api/search", content=b'{"query": "\\ud800"}', headers=json_type).status_code == 422
    assert client.post("/api/search", content=b"{", headers=json_type).status_code == 422
    # Forms of other sites can send this type without a CORS preflight request.
    assert client.post("/api/search", content=b'{"query": "a"}', headers={"Content-Type": "text/plain"}).is_error
    for path in ("/api/search", "/mcp"):
        large = client.post(path, content=b" " * 70_000, headers=json_type | {"Accept": "application/json"})
        assert large.status_code == 413


def test_pages_of_hits_join_to_one_longer_search(client):
    whole = search(client, "capital large baked", k=3).json()["hits"]
    first = search(client, "capital large baked", k=2).json()
    second = search(client, "capital large baked", k=2, offset=first["next_offset"]).json()
    assert first["hits"] + second["hits"] == whole
    assert (first["next_offset"], second["next_offset"], [hit["rank"] for hit in second["hits"]]) == (2, None, [3])


def test_a_comparison_ranks_documents_in_three_ways(client):
    compared = client.post("/api/compare", json={"query": "capital of France", "k": 1, "filter": {"year": 2021}}).json()
    assert compared["standings"] == [
        {"id": "paris", "text": DOCUMENTS[1]["text"], "ranks": {"bm25": 1, "pooled": 1, "late": 1}}
    ]
    assert compared["missed"] == {"bm25": [], "pooled": [], "late": []}
    assert client.post("/api/compare", json={"query": "a", "filter": {"author": 1}}).status_code == 400
    assert client.post("/api/compare", json={"query": "zzz", "filter": {"year": 3000}}).json()["standings"] == []


def test_bm25_decides_the_order_as_far_as_lexical_weight_says(client, index):
    for weight in (0, 0.5, 1):
        hits = search(client, "the of capital is", lexical_weight=weight).json()["hits"]
        expected = index.search("the of capital is", lexical_weight=weight)
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    assert search(client, "a", lexical_weight=1.5).status_code == 422


def test_an_empty_query_and_an_empty_result_are_not_errors(client):
    assert search(client, "").json()["hits"] == []
    assert search(client, "a", filter=[{"column": "year", "op": ">", "value": 3000}]).json()["hits"] == []


@pytest.mark.parametrize("path", ["de/berlin", "de%2Fberlin", "paris", "bread%3F"])
def test_a_document_is_read_by_its_id_whatever_characters_it_contains(client, path):
    response = client.get(f"/api/documents/{path}").json()
    (document,) = [d for d in DOCUMENTS if d["id"] == response["id"]]
    assert (response["text"], response["n_chars"]) == (document["text"], len(document["text"]))


def test_a_part_of_a_document_can_be_read(client):
    part = client.get("/api/documents/paris", params={"start": 4, "n_chars": 5}).json()
    assert (part["text"], part["start"], part["n_chars"]) == ("Paris", 4, 35)
    assert client.get("/api/documents/paris", params={"n_chars": 10**9}).status_code == 422
    missing = client.get("/api/documents/' OR 1=1 --")
    assert (missing.status_code, missing.json()["detail"]) == (404, 'there is no document "\' OR 1=1 --"')


def test_info_and_the_openapi_description_match_the_index(client):
    info = client.get("/api/info").json()
    assert (info["name"], info["documents"], info["model"]) == ("places", 3, "hash-64")
    assert info["filter_columns"] == {
        "year": "int",
        "lang": "str",
        "tags": "list[str]",
        "seen": "datetime",
        "open": "bool",
    }
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/search", "/api/documents/{id}", "/api/images/{id}", "/api/info", "/api/overview", "/api/compare",
        "/healthz", "/metrics",
    }  # fmt: skip
    assert described["components"]["schemas"]["SearchRequest"]["properties"]["k"]["maximum"] == 100


def test_documents_without_spans_are_found_and_the_problem_is_reported(tmp_path, running):
    class Spanless(HashEncoder):
        def encode_documents(self, texts):
            tokens = super().encode_documents(texts)
            return TokenBatch(tokens.vectors, tokens.offsets)

        def encode_queries(self, queries):
            return HashEncoder(self.dim).encode_documents(queries)

    index = Index.create(tmp_path / "index", Spanless(64))
    index.add([{"id": "a", "text": "some text"}])
    with running(create_app(index)) as url, httpx2.Client(timeout=120, base_url=url) as client:
        (hit,) = search(client, "text", passage_chars=4).json()["hits"]
    assert "stored without the characters" in hit["problem"]
    assert hit["passage"] == {"text": "some", "start": 0, "end": 4}
    assert [(w["span"], w["similarity"]) for w in hit["words"]] == [(None, pytest.approx(1, abs=0.01))]


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/info", "/nothing"])
def test_every_response_restricts_the_browser_to_this_page(client, path):
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_files_outside_the_page_folder_are_not_served(client):
    for path in ("/../serve.py", "/%2e%2e/serve.py", "/..%2fserve.py", "//etc/passwd", "/page.css/../../serve.py"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "["])
@pytest.mark.parametrize("path", ["/", "/api/info", "/mcp"])
def test_requests_for_other_host_names_are_refused(client, host, path):
    assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(("address", "status"), [("192.0.2.1", 403), ("127.0.0.1", 200), ("::1", 200)])
async def test_without_a_token_other_machines_are_refused_whatever_host_they_name(index, address, status):
    transport = httpx2.ASGITransport(create_app(index), client=(address, 7))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as other:
        assert (await other.get("/api/info")).status_code == status


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1:1", "127.8.8.8", "[::1]:8765"])
def test_requests_for_names_of_this_machine_are_accepted(client, host):
    assert client.get("/api/info", headers={"Host": host}).status_code == 200


def test_requests_from_pages_of_other_sites_are_refused(client, url):
    for path in ("/api/search", "/mcp"):
        for origin in ("https://evil.example", "http://127.0.0.1:1", "null"):
            response = client.post(path, json={"query": "a"}, headers={"Origin": origin})
            assert response.status_code == 403
    assert client.post("/api/search", json={"query": "a"}, headers={"Origin": url}).status_code == 200


@pytest.mark.parametrize("path", ["/api/info", "/api/documents/paris", "/openapi.json", "/mcp", "/nothing"])
def test_with_a_token_every_path_but_the_page_needs_it(guarded_url, path):
    with httpx2.Client(timeout=120, base_url=guarded_url) as client:
        assert client.get("/").status_code == client.get("/page.js").status_code == 200
        for credentials in ("", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer"):
            response = client.post(path, headers={"Authorization": credentials})
            assert (response.status_code, response.json()) == (
                401,
                {"detail": "a token is needed", "code": "token_needed"},
            )
        assert client.post(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.com"])
def test_listening_to_other_machines_needs_a_token(index, host):
    with pytest.raises(InputError, match="set a token"):
        create_app(index, host=host)
    with pytest.raises(InputError, match="at least 16 are needed"):
        create_app(index, host=host, token="")
    create_app(index, host=host, token=TOKEN)


async def check_tools(client, id):
    """Do what an agent does: list the tools, search, read a document, and make mistakes."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "get_document", "list_sources"}
    assert tools["search"].input_schema["required"] == ["query"]
    found = await client.call_tool("search", {"query": "flour", "k": 1})
    (hit,) = found.structured_content["hits"]
    assert (hit["id"], found.is_error) == (id, False)
    read = (await client.call_tool("get_document", {"id": hit["id"]})).structured_content
    assert read["text"][hit["start"] : hit["end"]] == hit["passage"]
    assert "flour" in hit["passage"]
    for tool, arguments, message in (
        ("get_document", {"id": "gone"}, "there is no document 'gone'"),
        ("search", {"query": "a", "k": 1000}, "less than or equal to 100"),
        ("search", {"query": "a", "filter": [{"column": "author", "value": "me"}]}, "no filter column 'author'"),
    ):
        failed = await client.call_tool(tool, arguments)
        assert failed.is_error
        assert message in failed.content[0].text
    return tools


async def test_an_agent_uses_the_index_over_http(url):
    async with mcp.Client(f"{url}/mcp") as client:
        tools = await check_tools(client, "bread?")
        assert "year (int)" in tools["search"].description
        for filter in ([{"column": "year", "op": ">", "value": 2020}], {"year": {"$gt": 2020}}):
            found = await client.call_tool("search", {"query": "is", "filter": filter})
            assert [hit["id"] for hit in found.structured_content["hits"]] == ["paris"]
        for filter, message in (({"year": {"gt": 1}}, "did you mean '$gt'?"), (nested({"year": 1}, 60), "50 levels")):
            failed = await client.call_tool("search", {"query": "is", "filter": filter})
            assert failed.is_error
            assert message in failed.content[0].text


async def test_an_agent_with_an_earlier_protocol_version_uses_the_index(url):
    async with mcp.Client(f"{url}/mcp", mode="legacy") as client:
        await check_tools(client, "bread?")


async def test_an_agent_needs_the_token(guarded_url):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx2.AsyncClient(timeout=120, headers=headers) as http,
        mcp.Client(streamable_http_client(f"{guarded_url}/mcp", http_client=http)) as client,
    ):
        await check_tools(client, "bread?")


async def test_an_agent_uses_the_index_over_standard_input_and_output(db, tmp_path):
    command = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "manyvec", "mcp", "--index", db], env=dict(os.environ), cwd=os.getcwd()
    )
    started = time.monotonic()
    with open(tmp_path / "log", "w+") as log:
        async with mcp.Client(stdio_client(command, errlog=log)) as client:
            # The model is loaded before the handshake ends, or agents are told that it is not.
            is_told = "waits until the model is loaded" in client.instructions
            assert "ready after" in (tmp_path / "log").read_text() or (
                is_told and time.monotonic() - started >= WARM_UP_SECONDS
            )
            await check_tools(client, "bread")


def test_the_command_serves_until_it_is_interrupted(db):
    command = [sys.executable, "-m", "manyvec", "serve", "--index", db, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "MANYVEC_TOKEN": TOKEN})
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line.split()[0] for line in lines if line.startswith("http://127.0.0.1:"))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx2.get(f"{url}api/info", timeout=120).status_code == 401
        assert httpx2.get(f"{url}api/info", headers=headers, timeout=120).json()["documents"] == 1
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0


def test_the_command_refuses_to_listen_to_other_machines_without_a_token(db, capsys, monkeypatch):
    monkeypatch.delenv("MANYVEC_TOKEN", raising=False)
    started = time.monotonic()
    assert main(["serve", "--index", db, "--host", "0.0.0.0"]) == 1
    assert "lets other machines read the index: set a token" in capsys.readouterr().err
    assert time.monotonic() - started < 60


def page(*squares, size=(64, 48), kind="PNG"):
    """Return the file of a white page with squares of 16 pixels, given as (color, row, column)."""
    image = pytest.importorskip("PIL.Image").new("RGB", size, "white")
    for color, row, column in squares:
        image.paste(color, (16 * column, 16 * row, 16 * column + 16, 16 * row + 16))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PAGES = [
    {"id": "a/red page", "image": page(("red", 1, 2)), "text": "<b>caption</b>", "metadata": {"page": 1}},
    {"id": "tiff", "image": page(("blue", 0, 0), kind="TIFF")},
    {"id": "text", "text": "a blue text"},
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("pages") / "pages", ColorEncoder())
    index.add(PAGES)
    return index


@pytest.fixture(scope="module")
def pages_client(pages, running):
    with running(create_app(pages)) as url, httpx2.Client(timeout=120, base_url=url) as client:
        yield client


def test_a_hit_that_is_a_page_has_a_heat_map_for_each_word(pages_client):
    hits = {hit["id"]: hit for hit in search(pages_client, "red blue").json()["hits"]}
    red = hits["a/red page"]
    assert (red["page"]["grid"], red["page"]["is_cropped"], red["problem"]) == ([3, 4], False, None)
    word = red["words"][0]
    assert (word["patch"], word["span"], red["passage"]["text"]) == ([1, 2], None, "<b>caption</b>")
    heat = word["map"]
    assert [len(row) for row in heat] == [4, 4, 4]
    # Both values are rounded.
    assert red["page"]["map"][1][2] == pytest.approx(heat[1][2] + red["words"][1]["map"][1][2], abs=0.002)
    assert heat[1][2] == pytest.approx(1, abs=0.002) and max(heat[0]) < 0.5
    assert all(round(value, 3) == value for row in heat for value in row)
    assert hits["text"]["page"] is None
    assert {word["map"] for word in hits["text"]["words"]} == {None}


@pytest.mark.parametrize("query", ["red", "blue", "red blue", "blue green red"])
def test_the_heat_maps_of_one_response_share_a_scale_with_a_floor(pages_client, query):
    pages = [hit for hit in search(pages_client, query).json()["hits"] if hit["page"]]
    assert len(pages) > 1
    shown = [[hit["page"], *hit["words"]] for hit in pages]
    for maps in zip(*shown, strict=True):
        ((lowest, highest),) = {tuple(one["color_range"]) for one in maps}
        # Without a floor, a page that barely matches would be painted like one that matches well.
        assert highest - lowest >= 0.2 - 1e-3
        assert highest >= max(max(map(max, one["map"])) for one in maps) - 2e-3


def test_the_heat_maps_of_one_response_are_bounded_and_the_best_hits_have_theirs(pages):
    # A page of 3 by 4 patches has one map for the only word, and one for all words.
    response = Api(pages, max_map_numbers=24).search(SearchRequest(query="red"))  # type: ignore[call-arg]
    first, second = [hit for hit in response.hits if hit.page]
    assert first.words[0].map is not None and second.words[0].map is None


def test_an_image_is_sent_as_stored_with_a_content_type_that_browsers_do_not_run(pages_client):
    (hit,) = [hit for hit in search(pages_client, "red").json()["hits"] if hit["id"] == "a/red page"]
    response = pages_client.get("/api/images/a%2Fred%20page")
    assert response.content == PAGES[0]["image"]
    assert (response.headers["content-type"], response.headers["x-content-type-options"]) == ("image/png", "nosniff")
    assert response.headers["etag"] == hit["page"]["etag"]
    other = pages_client.get("/api/images/tiff")
    assert (other.headers["content-type"], other.content[:8]) == ("image/png", b"\x89PNG\r\n\x1a\n")


def test_a_document_without_an_image_is_not_found_as_an_image(pages_client):
    for id in ("text", "nowhere", "../../etc/passwd"):
        response = pages_client.get(f"/api/images/{id}")
        assert response.status_code == 404


def test_a_page_is_read_as_the_text_stored_with_it(pages_client):
    response = pages_client.get("/api/documents/a/red page").json()
    assert (response["text"], response["is_page"], response["metadata"]) == ("<b>caption</b>", True, {"page": 1})
    assert pages_client.get("/api/documents/text").json()["is_page"] is False


def test_an_image_needs_the_token(pages, running):
    with running(create_app(pages, token=TOKEN)) as url, httpx2.Client(timeout=120, base_url=url) as client:
        assert client.get("/api/images/tiff").status_code == 401
        assert client.get("/api/images/tiff", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


async def test_agents_get_a_note_on_what_matched_on_a_page_image(pages, running):
    with running(create_app(pages)) as url:
        async with mcp.Client(f"{url}/mcp") as client:
            found = await client.call_tool("search", {"query": "red blue", "k": 3})
            hits = {hit["id"]: hit for hit in found.structured_content["hits"]}
            assert hits["a/red page"]["note"].startswith("This is a page image.")
            assert "red 1.00, blue" in hits["a/red page"]["note"]
            assert (hits["tiff"]["passage"], hits["text"]["note"]) == ("", None)
            read = await client.call_tool("get_document", {"id": "tiff"})
            assert (read.structured_content["text"], read.structured_content["is_page"]) == ("", True)


@pytest.mark.parametrize(
    "condition", [{"author.born": {"$gt": 1900}}, [{"column": "author.born", "op": ">", "value": 1900}]]
)
def test_nested_metadata_is_filtered_on_by_a_dotted_column(tmp_path, condition):
    index = Index.create(tmp_path / "nested", HashEncoder(64), filter_columns={"author.born": int})
    index.add({"id": str(born), "text": "x", "metadata": {"author": {"born": born}}} for born in (1815, 1912))
    assert [hit.id for hit in Api(index).search(SearchRequest(query="x", filter=condition)).hits] == ["1912"]
