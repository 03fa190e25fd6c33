"""What agents get from the MCP tools: bounded results, pages, images, sources, and several indexes in one server."""

import base64
import io
import json
import os
import sys

import pytest

from manyvec import Index, InputError, cluster
from manyvec.cli import main
from manyvec.testing import ColorEncoder, HashEncoder

mcp = pytest.importorskip("mcp", reason="needs the serve extra: pip install 'manyvec[serve]'")

from manyvec.server.answers import MAX_ANSWER_CHARS, MAX_IMAGE_CHARS  # noqa: E402
from manyvec.server.api import Api, Searches  # noqa: E402
from manyvec.server.mcp import ServedIndex, mcp_server  # noqa: E402

QUOTES = "whale " + '"\n' * 17_000
WORDS = ["red", "green", "blue", "gray", "pink"]


def served(index, name="papers", description=""):
    api = Api(index)
    return ServedIndex(api, Searches(api, timeout=300), name, description)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    columns = {"year": int, "lang": str, "tags": list[str]}
    index = Index.create(tmp_path_factory.mktemp("mcp") / "papers", HashEncoder(64), filter_columns=columns)
    index.add(
        {
            "id": word,
            "text": f"apple {word}",
            "metadata": {
                "year": 2020 + i,
                "lang": "en" if i < 3 else "de",
                "tags": ["a", word],
                "source": f"{i % 2}.md",
            },
        }
        for i, word in enumerate(WORDS)
    )
    return index


@pytest.fixture(scope="module")
def long_index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("mcp") / "long", HashEncoder(16))
    huge = {"summary": "s" * 60_000, "title": "a title", "parts": [{"text": '\x01\n"' * 1_000}]}
    index.add({"id": f"{i}" * 300, "text": 'fish\n"' * 600, "metadata": huge} for i in range(8))
    index.add([{"id": "i" * 50_000, "text": "whale", "metadata": {str(n): "v" * 900 for n in range(60)}}])
    index.add([{"id": "quotes", "text": QUOTES}])
    return index


async def test_a_result_is_bounded_with_its_metadata_and_the_next_page_goes_on_where_it_ends(long_index):
    async with mcp.Client(mcp_server(served(long_index))) as client:
        found, offset = [], 0
        while offset is not None:
            arguments = {"query": "fish", "k": 10, "passage_chars": 4000, "offset": offset}
            result = await client.call_tool("search", arguments)
            (content,) = result.content
            assert len(content.text) <= MAX_ANSWER_CHARS
            assert json.loads(content.text) == result.structured_content
            found += result.structured_content["hits"]
            offset = result.structured_content["next_offset"]
        assert [hit["rank"] for hit in found] == list(range(1, 11))
        assert len({hit["id"] for hit in found}) == 10
        fish = next(hit for hit in found if hit["id"] == "0" * 300)
        assert (fish["metadata"], fish["omitted"]) == ({"title": "a title"}, ["summary", "parts"])
        (whale,) = [hit for hit in found if hit["id"].startswith("i")]
        assert len(whale["id"]) == 2000 and len(whale["omitted"]) == 21 and whale["omitted"][-1] == "and 38 more"


async def test_agents_get_from_a_cluster_what_they_get_from_an_index(index, tmp_path):
    shards = cluster.create_local(tmp_path / "c", HashEncoder(64), shards=3, filter_columns=index.filter_columns)
    shards.add(index.get(index.ids()))
    answers = []
    for each in (index, shards):
        async with mcp.Client(mcp_server(served(each))) as client:
            calls = [
                ("search", {"query": "apple red", "k": 3, "filter": {"lang": "en"}}),
                ("get_document", {"id": "blue"}),
                ("list_sources", {}),
            ]
            answers.append([(await client.call_tool(*call)).structured_content for call in calls])
    assert answers[0] == answers[1] and answers[0][0]["hits"][0]["id"] == "red"


async def test_a_long_document_is_read_in_bounded_parts_that_join_to_its_text(long_index):
    async with mcp.Client(mcp_server(served(long_index))) as client:
        parts, start = [], 0
        while start is not None:
            result = await client.call_tool("get_document", {"id": "quotes", "start": start})
            assert len(result.content[0].text) <= MAX_ANSWER_CHARS
            parts.append(result.structured_content["text"])
            start = result.structured_content["next_start"]
    assert "".join(parts) == QUOTES
    assert len(parts) > 1


async def test_an_unknown_id_and_a_wrong_filter_are_named_shortly(long_index):
    async with mcp.Client(mcp_server(served(long_index))) as client:
        for tool, arguments in (
            ("get_document", {"id": "x" * 40_000}),
            ("search", {"query": "fish", "filter": {"y" * 40_000: 1}}),
        ):
            failed = await client.call_tool(tool, arguments)
            assert failed.is_error and len(failed.content[0].text) < 2_500


async def test_tools_name_the_columns_and_give_an_example_filter_for_each_that_the_index_takes(index):
    async with mcp.Client(mcp_server(served(index, "papers", "papers on colors"))) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        search = tools["search"]
        assert "papers: papers on colors (5 documents at the start of the server)" in search.description
        assert "papers on colors" in client.instructions
        assert "year (int), lang (str), tags (list[str])" in search.description
        by_column, conditions, _ = search.input_schema["properties"]["filter"]["anyOf"]
        assert (
            [*by_column["properties"]]
            == conditions["items"]["properties"]["column"]["enum"]
            == ["year", "lang", "tags"]
        )
        assert "index" not in search.input_schema["properties"]
        for example in by_column["examples"]:
            result = await client.call_tool("search", {"query": "apple", "filter": example})
            assert not result.is_error, result.content[0].text
        for op in conditions["items"]["properties"]["op"]["enum"]:
            column = {"contains": "tags", "is empty": "tags", "like": "lang"}.get(op, "year")
            values = {
                "in": [2021],
                "not in": [2021],
                "contains": "red",
                "like": "e%",
                "is null": None,
                "is empty": None,
            }
            value = values.get(op, 2021)
            condition = {"column": column, "op": op} | ({} if value is None else {"value": value})
            result = await client.call_tool("search", {"query": "apple", "filter": [condition]})
            assert not result.is_error, (op, result.content[0].text)


async def test_sources_and_values_of_columns_are_listed_with_their_numbers_in_pages(index):
    async with mcp.Client(mcp_server(served(index))) as client:
        listed = (await client.call_tool("list_sources", {})).structured_content
        assert [(v["value"], v["n_documents"]) for v in listed["values"]] == [("0.md", 3), ("1.md", 2)]
        assert (listed["n_values"], listed["next_offset"]) == (2, None)
        page = (await client.call_tool("list_sources", {"key": "tags", "limit": 2})).structured_content
        assert [(v["value"], v["n_documents"]) for v in page["values"]] == [("a", 5), ("blue", 1)]
        assert (page["n_values"], page["next_offset"]) == (6, 2)
        rest = (await client.call_tool("list_sources", {"key": "tags", "offset": 2})).structured_content
        assert [v["value"] for v in rest["values"]] == ["gray", "green", "pink", "red"]
        nothing = (await client.call_tool("list_sources", {"key": "no such key"})).structured_content
        assert (nothing["values"], nothing["n_values"]) == ([], 0)


async def test_one_server_offers_several_indexes_by_name(index, long_index):
    server = mcp_server(served(index, "colors"), served(long_index, "fish", "long texts"))
    async with mcp.Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert all(tool.input_schema["properties"]["index"]["enum"] == ["colors", "fish"] for tool in tools.values())
        assert "Filter columns of fish: none." in tools["search"].description
        for name, query, id in (("colors", "red", "red"), ("fish", "whale", "i" * 1999 + "…")):
            result = await client.call_tool("search", {"index": name, "query": query, "k": 1})
            assert [hit["id"] for hit in result.structured_content["hits"]] == [id]
        assert (await client.call_tool("get_document", {"index": "fish", "id": "red"})).is_error
        assert (await client.call_tool("search", {"index": "other", "query": "red"})).is_error
    with pytest.raises(InputError, match="need different names, got colors, colors"):
        mcp_server(served(index, "colors"), served(long_index, "colors"))


async def test_a_page_image_comes_as_image_content_when_asked_for_within_the_bound(tmp_path):
    image = pytest.importorskip("PIL.Image")
    index = Index.create(tmp_path / "pages", ColorEncoder())
    small, noise = io.BytesIO(), io.BytesIO()
    image.new("RGB", (64, 48), "red").save(small, "PNG")
    # Noise compresses badly: as a PNG it takes 3 MB.
    image.frombytes("RGB", (1024, 1024), os.urandom(3 * 2**20)).save(noise, "PNG")
    index.add([{"id": "small", "image": small.getvalue()}, {"id": "noise", "image": noise.getvalue()}])
    index.add([{"id": "text", "text": "red"}])
    async with mcp.Client(mcp_server(served(index))) as client:
        plain = await client.call_tool("get_document", {"id": "small"})
        assert [content.type for content in plain.content] == ["text"]
        _, shown = (await client.call_tool("get_document", {"id": "small", "include_image": True})).content
        assert (shown.type, shown.mime_type, base64.b64decode(shown.data)) == ("image", "image/png", small.getvalue())
        _, scaled = (await client.call_tool("get_document", {"id": "noise", "include_image": True})).content
        assert len(scaled.data) <= MAX_IMAGE_CHARS
        assert image.open(io.BytesIO(base64.b64decode(scaled.data))).format == "JPEG"
        without = await client.call_tool("get_document", {"id": "text", "include_image": True})
        assert without.structured_content["note"] == "this document has no image"


@pytest.mark.parametrize("client", ["claude-desktop", "claude-code", "cursor", "vscode"])
def test_the_printed_configuration_starts_the_server_from_any_folder(client, tmp_path, monkeypatch, capsys):
    Index.create(tmp_path / "my papers", HashEncoder(16))
    monkeypatch.chdir(tmp_path)
    arguments = ["mcp", "--index", "my papers", "--description", 'papers "on" ColBERT', "--print-config", client]
    assert main(arguments) == 0
    output = capsys.readouterr()
    printed = json.loads(output.out)
    (server,) = printed["servers" if client == "vscode" else "mcpServers"].values()
    assert server["command"] == sys.executable
    assert server["args"][:3] == ["-m", "manyvec", "mcp"]
    options = dict(zip(server["args"][3::2], server["args"][4::2], strict=True))
    assert options == {
        "--index": str(tmp_path / "my papers"), "--name": "my papers", "--description": 'papers "on" ColBERT',
    }  # fmt: skip
    assert server.get("type") == ("stdio" if client in ("claude-code", "vscode") else None)
    assert "mcp" in output.err or "claude_desktop_config.json" in output.err


def test_a_name_is_needed_for_each_index_or_for_none(tmp_path, capsys):
    for name in ("a", "b"):
        Index.create(tmp_path / name, HashEncoder(16))
    indexes = ["--index", str(tmp_path / "a"), "--index", str(tmp_path / "b")]
    assert main(["mcp", *indexes, "--name", "one", "--print-config", "cursor"]) == 1
    assert "--name is given 1 times for 2 indexes" in capsys.readouterr().err


async def test_the_description_of_a_served_index_reaches_agents_over_http(index, running):
    from manyvec.server.app import create_app

    with running(create_app(index, description="papers on colors")) as url:
        async with mcp.Client(f"{url}/mcp") as client:
            assert "papers: papers on colors (5 documents" in client.instructions
