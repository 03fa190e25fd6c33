"""`ToolIndex`: reading, scoring, selecting, saving and loading tools."""

import copy
import multiprocessing
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import mcp_types
import numpy as np
import pytest
from safetensors.numpy import save_file

from manyvec import IndexNotFoundError, InputError, ManifestError, TokenBatch, ToolIndex
from manyvec.testing import HashEncoder
from manyvec.tools.bm25 import BM25, words_of
from manyvec.tools.schemas import read_tool

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}
MAIL = {"name": "sendMail", "description": "Writes to people.", "input_schema": {"properties": {"to": {}}}}
PLAY = {
    "name": "music.play",
    "inputSchema": {"properties": {"song": {"properties": {"artist": {"description": "singer"}}}}},
}


def convert(amount: float, currency: str = "EUR") -> float:
    """Changes money into another currency."""
    return amount * len(currency)


READ_FILE = mcp_types.Tool(
    name="read_file", input_schema={"type": "object", "properties": {"path": {"description": "of the file"}}}
)


class McpToolOfVersion1:
    """Version 1 of the SDK spells the attribute like this."""

    name = "read_file"
    description = None
    inputSchema = READ_FILE.input_schema  # noqa: N815


ALL = [WEATHER, MAIL, PLAY, convert, READ_FILE]


def names(hits):
    return [hit.name for hit in hits]


def _pickled(tools, protocol):
    return pickle.loads(pickle.dumps(tools, protocol))


def selected(tools, query):
    return tools.select(query, 1)[0].name


@pytest.fixture
def tools():
    return ToolIndex(HashEncoder(), ALL)


@pytest.mark.parametrize(
    ("tool", "name", "text"),
    [
        (WEATHER, "get_current_weather", "get_current_weather get current weather. Tells the weather. city: where"),
        (MAIL, "sendMail", "sendMail send Mail. Writes to people. to"),
        (PLAY, "music.play", "music.play music play. song; artist: singer"),
        (convert, "convert", "convert. Changes money into another currency. amount: float; currency: str"),
        (READ_FILE, "read_file", "read_file read file. path: of the file"),
        (McpToolOfVersion1(), "read_file", "read_file read file. path: of the file"),
        ({"name": "HTTPGet2"}, "HTTPGet2", "HTTPGet2 HTTP Get2"),
    ],
)
def test_the_text_of_a_tool_is_its_name_description_and_arguments(tool, name, text):
    assert read_tool(tool) == (name, text)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("how is the weather today", "get_current_weather"),
        ("mail to people", "sendMail"),
        ("a song of that singer", "music.play"),
        ("change money into another currency", "convert"),
        ("what is in the file", "read_file"),
    ],
)
def test_the_tool_that_shares_words_with_the_request_comes_first_as_the_object_that_was_added(tools, query, name):
    hit = tools.select(query, 1)[0]
    assert (hit.name, hit.rank) == (name, 1)
    assert hit.tool is tools[name] and hit.tool in ALL
    assert -1 <= hit.similarity <= 1.001 and hit.score >= hit.similarity


@pytest.mark.parametrize("query", ["sendMail", " sendMail\n", "SENDMAIL", "music.play", "get_current_weather"])
@pytest.mark.parametrize("weight", [0, 0.025, 10])
def test_an_exact_name_always_returns_that_tool_first(query, weight):
    # 300 tools that share every word of the names, more than get an exact score.
    others = [{"name": f"t{i}", "description": "send mail sendMail music play get current weather"} for i in range(300)]
    tools = ToolIndex(HashEncoder(), [*others, *ALL], bm25_weight=weight, depth=10)
    first = tools.select(query, 2)[0]
    assert first.name.casefold() == query.strip().casefold()


def test_among_names_that_differ_only_in_case_the_exact_one_comes_first():
    tools = ToolIndex(HashEncoder(), [{"name": "run"}, {"name": "Run"}])
    assert [names(tools.select(query))[0] for query in ("run", "Run", "RUN")] == ["run", "Run", "Run"]


def test_equal_scores_are_ordered_by_name():
    tools = ToolIndex(HashEncoder(), [{"name": name, "description": "same"} for name in ("c", "a", "b")])
    assert names(tools.select("same")) == ["a", "b", "c"]


def test_the_score_is_the_similarity_plus_the_weighted_bm25():
    # sendMail contains both words of "mail people": its similarity is 1 with HashEncoder.
    bm25 = BM25([words_of(read_tool(tool)[1]) for tool in ALL]).scores(["mail", "people"])
    for weight in (0, 0.025, 0.5):
        hits = ToolIndex(HashEncoder(), ALL, bm25_weight=weight).select("mail people", 9)
        assert hits[0].name == "sendMail" and hits[0].similarity == pytest.approx(1, abs=2**-10)
        for hit in hits:
            position = [read_tool(tool)[0] for tool in ALL].index(hit.name)
            assert hit.score == pytest.approx(hit.similarity + weight * bm25[position], abs=1e-6)


def test_candidates_of_a_large_catalog_contain_the_tool_that_exhaustive_scoring_finds():
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(400)]
    many = [{"name": f"tool{i}", "description": " ".join(rng.choice(vocabulary, 9))} for i in range(500)]
    some, all_ = ToolIndex(HashEncoder(), many, depth=60), ToolIndex(HashEncoder(), many, depth=500)
    queries = [" ".join(rng.choice(vocabulary, 4)) for _ in range(20)]
    assert sum(names(some.select(query, 1)) == names(all_.select(query, 1)) for query in queries) >= 19


def test_tools_can_be_added_and_removed(tools):
    assert tools.add([{"name": "zoom", "description": "opens a meeting"}]) == ["zoom"]
    assert tools.remove(["sendMail", "nobody"]) == 1
    assert (len(tools), "zoom" in tools, "sendMail" in tools) == (5, True, False)
    assert names(tools.select("open a meeting", 1)) == ["zoom"]
    fresh = ToolIndex(HashEncoder(), [tools[name] for name in tools.names])
    assert tools.select("mail the weather") == fresh.select("mail the weather")
    assert tools.remove(tools.names) == 5
    assert tools.select("mail") == []
    assert tools.add([MAIL]) == ["sendMail"] and names(tools.select("mail")) == ["sendMail"]


def test_the_result_of_list_tools_of_an_mcp_session_can_be_added_unchanged():
    listed = mcp_types.ListToolsResult(tools=[READ_FILE, mcp_types.Tool(name="write_file", input_schema={})])
    tools = ToolIndex(HashEncoder(), listed)
    assert tools.names == ["read_file", "write_file"]
    assert tools.select("read_file", 1)[0].tool is READ_FILE


def test_duplicate_names_are_an_error_that_lists_them_and_nothing_is_added(tools):
    with pytest.raises(InputError, match="sendMail"):
        tools.add([{"name": "new"}, MAIL])
    with pytest.raises(InputError, match="a, b"):
        ToolIndex(HashEncoder(), [{"name": name} for name in "abcba"])
    assert len(tools) == 5


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"description": "no name"}, "needs a name.*description"),
        ({"name": " "}, "needs a name"),
        ({"name": "a", "description": 7}, "'a'.*int"),
        ("weather", "dict with a name, or a function, got str"),
        ({"name": "a\ud800"}, "surrogate"),
    ],
)
def test_an_object_that_is_not_a_tool_is_an_error(tool, message):
    with pytest.raises(InputError, match=message):
        ToolIndex(HashEncoder(), [tool])


def test_an_empty_catalog_a_query_without_words_and_k_0_return_no_hits(tools):
    assert ToolIndex(HashEncoder()).select("mail") == []
    assert tools.select("  ") == tools.select("mail", 0) == []
    assert len(tools.select("mail", 99)) == 5


def test_k_none_returns_every_tool_with_its_exact_score():
    many = ToolIndex(HashEncoder(), [{"name": f"tool{i}", "description": f"word{i}"} for i in range(70)], depth=10)
    hits = many.select("word7", None)
    assert len(hits) == 70 and hits[0].name == "tool7"
    assert hits == many.select("word7", 70)


@pytest.mark.parametrize(("query", "k"), [(None, 1), ("a", -1), ("a", 1.5), ("\ud800", 1)])
def test_bad_queries_are_errors(tools, query, k):
    with pytest.raises(InputError):
        tools.select(query, k)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_negative_or_infinite_weight_is_an_error(weight):
    with pytest.raises(InputError, match="bm25_weight"):
        ToolIndex(HashEncoder(), bm25_weight=weight)


def test_a_schema_of_ten_thousand_characters_is_read_to_its_end():
    properties = {f"field_{i}": {"description": f"the value of part {i} of the form"} for i in range(200)}
    properties["last"] = {"anyOf": [{"type": "null"}, {"properties": {"needle": {"description": "haystack"}}}]}
    big = {"name": "big", "input_schema": {"properties": properties}}
    assert len(read_tool(big)[1]) > 8_000
    tools = ToolIndex("minilm", [big, MAIL, WEATHER])
    assert names(tools.select("needle in a haystack", 1)) == ["big"]


def test_words_are_split_at_case_changes_stemmed_and_filtered_for_stop_words():
    assert words_of("Please getUserEmails, for the cities_walked by HTTPServer") == [
        "user", "email", "city", "walk", "http", "server",
    ]  # fmt: skip


def test_bm25_weights_each_word_by_its_rarity():
    bm25 = BM25([["a", "b"], ["b", "c"], ["d", "e"]])
    scores = bm25.scores(["a", "b", "a"])
    # In a document of mean length, a word that occurs once weighs log(1 + (n - df + 0.5) / (df + 0.5)).
    np.testing.assert_allclose(
        scores, [np.log(1 + 2.5 / 1.5) + np.log(1 + 1.5 / 2.5), np.log(1 + 1.5 / 2.5), 0], rtol=1e-6
    )
    np.testing.assert_array_equal(bm25.scores(["z"]), [0, 0, 0])
    assert len(BM25([]).scores(["a"])) == 0


class CountingEncoder(HashEncoder):
    n_texts = 0

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        type(self).n_texts += len(texts)
        return super().encode_documents(texts)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return HashEncoder(self.dim).encode_documents(queries)


def test_adding_encodes_only_the_new_tools():
    tools = ToolIndex(CountingEncoder(), ALL)
    tools.add([{"name": "one more"}])
    assert CountingEncoder.n_texts == 6


def test_minilm_finds_tools_that_share_no_word_with_the_request():
    tools = ToolIndex("minilm", ALL)
    assert names(tools.select("is it going to rain in Paris tomorrow", 1)) == ["get_current_weather"]
    assert names(tools.select("exchange 20 dollars", 1)) == ["convert"]


def test_a_selection_among_thousands_takes_less_cpu_time_than_scoring_all_of_them():
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(3000)]
    many = [{"name": f"tool{i}", "description": " ".join(rng.choice(vocabulary, 40))} for i in range(2479)]
    tools = ToolIndex(HashEncoder(384), many)
    query = " ".join(rng.choice(vocabulary, 16))
    tokens = tools.encoder.encode_queries([query])
    taken = {tools.depth: [], len(many): []}
    for depth in [*taken] * 7:
        tools.depth = depth
        started = time.process_time()
        tools.select_encoded(query, tokens)
        taken[depth].append(time.process_time() - started)
    # CPU seconds do not depend on other load of the machine; the benchmark measures milliseconds.
    few, all_ = map(min, taken.values())
    assert few < all_ / 2


# Copies


def add_numbers(first: int, second: int) -> int:
    """Adds two numbers."""
    return first + second


@pytest.mark.parametrize(
    "travel",
    [copy.copy, copy.deepcopy, *(partial(_pickled, protocol=protocol) for protocol in (2, 4, pickle.HIGHEST_PROTOCOL))],
)
def test_a_copy_selects_the_same_encodes_nothing_and_changes_alone(travel):
    original = ToolIndex(CountingEncoder(), [MAIL, WEATHER, add_numbers], bm25_weight=0.4, depth=3)
    CountingEncoder.n_texts = 0
    twin = travel(original)
    assert CountingEncoder.n_texts == 0
    assert (twin.names, twin.bm25_weight, twin.depth) == (original.names, 0.4, 3)
    assert twin["add_numbers"] is add_numbers
    for query in ("mail to people", "sum of numbers", "sendMail"):
        assert twin.select(query) == original.select(query)
    twin.remove("sendMail")
    twin.add([{"name": "new"}])
    assert (original.names, twin.names) == (
        ["sendMail", "get_current_weather", "add_numbers"],
        ["get_current_weather", "add_numbers", "new"],
    )


def test_a_copy_travels_to_another_process():
    tools = ToolIndex(HashEncoder(), [MAIL, WEATHER])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(selected, tools, "mail to people").result() == "sendMail"


def test_an_empty_index_can_be_copied():
    assert copy.deepcopy(ToolIndex(HashEncoder())).select("mail") == []


# Saving and loading


def test_a_loaded_catalog_selects_like_the_saved_one_and_encodes_nothing(tmp_path):
    file = tmp_path / "new" / "tools.safetensors"
    saved = ToolIndex(CountingEncoder(), ALL, bm25_weight=0.4, depth=3)
    saved.save(file)
    CountingEncoder.n_texts = 0
    loaded, given = ToolIndex.load(file, CountingEncoder()), ToolIndex.load(file, CountingEncoder(), tools=ALL)

    assert CountingEncoder.n_texts == 0
    assert (loaded.names, loaded.bm25_weight, loaded.depth) == (saved.names, 0.4, 3)
    for query in ("mail to people", "convert", "a song of that singer"):
        assert given.select(query) == saved.select(query)
        assert [(hit.name, hit.score) for hit in loaded.select(query)] == [
            (h.name, h.score) for h in saved.select(query)
        ]
    # Dicts are loaded unchanged, other objects as JSON-schema tools.
    assert [loaded["sendMail"], loaded["read_file"]["name"]] == [MAIL, "read_file"]
    assert [path.name for path in file.parent.iterdir()] == ["tools.safetensors"]


def test_loading_with_changed_tools_encodes_only_the_changed_ones(tmp_path):
    file = tmp_path / "tools"
    ToolIndex(CountingEncoder(), ALL).save(file)
    CountingEncoder.n_texts = 0
    changed = {**MAIL, "description": "Writes letters."}
    loaded = ToolIndex.load(file, CountingEncoder(), tools=[changed, WEATHER, {"name": "new"}])

    assert CountingEncoder.n_texts == 2
    assert loaded.names == ["sendMail", "get_current_weather", "new"]
    fresh = ToolIndex(HashEncoder(), [changed, WEATHER, {"name": "new"}])
    assert loaded.select("letters about the weather") == fresh.select("letters about the weather")


def test_saving_replaces_an_existing_file_and_an_empty_catalog_can_be_saved(tmp_path):
    file = tmp_path / "tools"
    ToolIndex("minilm", [MAIL]).save(file)
    assert names(ToolIndex.load(file).select("write to people")) == ["sendMail"]
    ToolIndex("minilm").save(file)
    assert ToolIndex.load(file).names == []


def test_loading_a_missing_or_foreign_file_or_one_of_another_encoder_is_an_error(tmp_path):
    with pytest.raises(IndexNotFoundError, match="ToolIndex.save"):
        ToolIndex.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tools")
    save_file({"vectors": np.zeros((1, 2))}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(ManifestError, match="damaged"):
            ToolIndex.load(tmp_path / name)
    ToolIndex(HashEncoder(), ALL).save(tmp_path / "tools")
    with pytest.raises(ManifestError, match="hash-64"):
        ToolIndex.load(tmp_path / "tools", HashEncoder(32))


def test_a_tool_that_json_cannot_hold_is_an_error_and_writes_no_file(tmp_path):
    tools = ToolIndex(HashEncoder(), [MAIL, {"name": "odd", "default": object()}])
    with pytest.raises(InputError, match="'odd'"):
        tools.save(tmp_path / "tools")
    assert not (tmp_path / "tools").exists()
