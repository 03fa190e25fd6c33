"""`ManyvecToolSelector` in real agents with LangChain's fake chat model."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("langchain", reason="needs the extra 'agents'")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from pydantic import Field, create_model

import manyvec
from langchain_manyvec import ManyvecToolSelector
from langchain_manyvec.middleware import called_names, query_of
from manyvec.testing import HashEncoder

TOPICS = ["weather", "mail", "calendar", "music", "currency", "flights", "recipes"]


def make(topic: str) -> StructuredTool:
    return StructuredTool.from_function(
        lambda city: f"{topic} of {city}", name=f"get_{topic}", description=f"Tells the {topic} of a place."
    )


TOOLS = [make(topic) for topic in TOPICS]


class Model(GenericFakeChatModel):
    """Replies with the given messages, and records the names of the tools passed to each call."""

    given: list[list[str]] = Field(default_factory=list)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> "Model":
        self.given.append(
            [tool.get("name", tool.get("type")) if isinstance(tool, dict) else tool.name for tool in tools]
        )
        return self


class CountingEncoder(HashEncoder):
    """Records the queries it encodes."""

    encoded: list[str] = []  # noqa: RUF012  # a class attribute, because the encoder is frozen

    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        self.encoded.extend(queries)
        return super().encode_queries(queries)


class BrokenEncoder(HashEncoder):
    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        raise manyvec.EncoderError("out of memory")


class Recorder(BaseCallbackHandler):
    """Records the runs of selectors."""

    def __init__(self) -> None:
        self.names: dict[Any, str] = {}
        self.runs: list[tuple[Any, Any]] = []
        self.inputs: dict[Any, Any] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, name: str = "", **kwargs: Any) -> None:
        self.names[run_id], self.inputs[run_id] = name, inputs

    def on_chain_end(self, outputs: Any, *, run_id: Any, **kwargs: Any) -> None:
        if self.names.get(run_id) == "ManyvecToolSelector":
            self.runs.append((self.inputs[run_id], outputs))


def call(name: str, city: str = "Rome") -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": {"city": city}, "id": f"call-{name}"}])


def agent(selector: ManyvecToolSelector, *replies: AIMessage, tools: Sequence[Any] = TOOLS) -> tuple[Any, Model]:
    model = Model(messages=iter([*replies, AIMessage("done")]))
    return create_agent(model, tools=list(tools), middleware=[selector]), model


def ask(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def test_the_model_receives_the_tools_that_fit_in_the_agents_order():
    runner, model = agent(ManyvecToolSelector(max_tools=2, encoder=HashEncoder()))
    runner.invoke(ask("currency and weather please"))
    assert model.given == [["get_weather", "get_currency"]]


async def test_an_async_agent_selects_and_runs_tools():
    runner, model = agent(ManyvecToolSelector(max_tools=1, encoder=HashEncoder()), call("get_music"))
    state = await runner.ainvoke(ask("music"))
    assert model.given == [["get_music"]] * 2
    assert [m.text for m in state["messages"] if isinstance(m, ToolMessage)] == ["music of Rome"]


@pytest.mark.parametrize("max_tools", [7, 8])
def test_up_to_max_tools_all_tools_are_kept_and_nothing_is_encoded(max_tools):
    runner, model = agent(ManyvecToolSelector(max_tools=max_tools, encoder=BrokenEncoder(), on_error="raise"))
    runner.invoke(ask("weather"))
    assert model.given == [[tool.name for tool in TOOLS]]


def test_without_max_tools_all_tools_and_the_catalog_are_kept():
    runner, model = agent(ManyvecToolSelector(max_tools=None, catalog=[make("more")], encoder=BrokenEncoder()))
    runner.invoke(ask("weather"))
    assert model.given == [[*(tool.name for tool in TOOLS), "get_more"]]


def test_tools_of_always_include_are_kept_in_addition_to_max_tools():
    selector = ManyvecToolSelector(max_tools=1, always_include=["get_recipes"], encoder=HashEncoder())
    runner, model = agent(selector)
    runner.invoke(ask("weather"))
    assert model.given == [["get_weather", "get_recipes"]]


def test_an_unknown_name_in_always_include_is_an_error_that_names_it():
    runner, _ = agent(ManyvecToolSelector(always_include=["get_rich"], encoder=HashEncoder()))
    with pytest.raises(manyvec.InputError, match="get_rich"):
        runner.invoke(ask("weather"))


def test_one_tool_loop_encodes_the_request_once():
    CountingEncoder.encoded.clear()
    selector = ManyvecToolSelector(max_tools=2, encoder=CountingEncoder())
    runner, model = agent(selector, call("get_weather"), call("get_mail"))
    runner.invoke(ask("weather mail"))
    assert model.given == [["get_weather", "get_mail"]] * 3
    assert CountingEncoder.encoded == ["weather mail"]


def test_a_tool_called_since_the_request_stays_and_one_called_before_does_not():
    messages = [HumanMessage("a"), call("x"), ToolMessage("1", tool_call_id="call-x"), AIMessage("b")]
    assert called_names(messages) == {"x"}
    assert called_names([*messages, HumanMessage("c"), call("y")]) == {"y"}

    selector = ManyvecToolSelector(max_tools=1, encoder=HashEncoder())
    runner, model = agent(selector)
    state = [HumanMessage("weather"), call("get_mail"), ToolMessage("none", tool_call_id="call-get_mail")]
    runner.invoke({"messages": state})
    assert model.given == [["get_weather", "get_mail"]]


def test_the_request_is_read_from_the_conversation():
    selector = ManyvecToolSelector(max_tools=1, encoder=HashEncoder())
    runner, model = agent(selector)
    conversation = [HumanMessage("weather in Rome"), AIMessage("sunny"), HumanMessage("and tomorrow?")]
    runner.invoke({"messages": conversation})
    assert model.given == [["get_weather"]]


def test_the_query_starts_with_the_newest_message_and_omits_tool_results():
    messages = [HumanMessage(str(i)) for i in range(5)]
    assert query_of([*messages, call("x"), ToolMessage("result", tool_call_id="call-x")]) == "4\n3\n2"
    assert query_of([]) == query_of([AIMessage("hello")]) == ""
    long = query_of([HumanMessage("c" * 5000), HumanMessage("first " + "x" * 5000 + " last")])
    assert long.startswith("first ") and " last\nccc" in long and len(long) < 1300


def test_provider_tools_pass_through():
    search = {"type": "web_search"}
    runner, model = agent(ManyvecToolSelector(max_tools=1, encoder=HashEncoder()), tools=[search, *TOOLS])
    runner.invoke(ask("weather"))
    assert sorted(model.given[0]) == ["get_weather", "web_search"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_tool_of_a_larger_catalog_is_found_and_runs(is_async):
    catalog = [make(f"topic{i}") for i in range(300)]
    selector = ManyvecToolSelector(max_tools=3, catalog=catalog, encoder=HashEncoder())
    runner, model = agent(selector, call("get_topic217", "Oslo"))
    question = ask("the topic217 of Oslo")
    state = await runner.ainvoke(question) if is_async else runner.invoke(question)
    assert all(len(given) == 3 and "get_topic217" in given for given in model.given)
    assert [m.text for m in state["messages"] if isinstance(m, ToolMessage)] == ["topic217 of Oslo"]


def test_a_tool_of_the_agent_takes_precedence_over_a_function_of_the_same_name_in_the_catalog():
    def get_weather(city: str) -> str:
        """Another weather."""
        return f"{city} from the catalog"

    selector = ManyvecToolSelector(max_tools=1, catalog=[get_weather], encoder=HashEncoder())
    runner, model = agent(selector, call("get_weather"))
    state = runner.invoke(ask("weather"))
    assert model.given == [["get_weather"]] * 2
    assert [m.text for m in state["messages"] if isinstance(m, ToolMessage)] == ["weather of Rome"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_if_the_encoder_fails_the_model_receives_all_tools_of_the_agent_and_the_error_is_logged(caplog, is_async):
    selector = ManyvecToolSelector(max_tools=1, catalog=[make("more")], encoder=BrokenEncoder())
    runner, model = agent(selector)
    _ = await runner.ainvoke(ask("weather")) if is_async else runner.invoke(ask("weather"))
    assert model.given == [[tool.name for tool in TOOLS]]
    assert "out of memory" in caplog.text


async def test_if_the_encoder_fails_on_error_raise_raises():
    runner, _ = agent(ManyvecToolSelector(max_tools=1, encoder=BrokenEncoder(), on_error="raise"))
    with pytest.raises(manyvec.EncoderError):
        runner.invoke(ask("weather"))
    with pytest.raises(manyvec.EncoderError):
        await runner.ainvoke(ask("weather"))


def test_tools_without_a_description_or_with_a_very_long_schema_are_selected_like_others():
    arguments = {f"field_{i}": (str, Field(description=f"the value of part {i} of the form")) for i in range(200)}
    schema = create_model("Form", **arguments)  # type: ignore[call-overload]
    form = StructuredTool.from_function(make("form").func, name="send_form", description="-", args_schema=schema)
    silent = make("silence")
    silent.description = ""
    selector = ManyvecToolSelector(max_tools=1, encoder=HashEncoder(), on_error="raise")
    for request, name in (("silence", "get_silence"), ("part 199", "send_form"), ("weather", "get_weather")):
        runner, model = agent(selector, tools=[form, silent, *TOOLS])
        runner.invoke(ask(request))
        assert model.given == [[name]]


def test_only_one_of_two_tools_with_the_same_name_is_passed_on():
    selector = ManyvecToolSelector(max_tools=1, encoder=HashEncoder(), on_error="raise")
    runner, model = agent(selector, tools=[*TOOLS, make("weather")])
    runner.invoke(ask("weather"))
    assert model.given == [["get_weather"]]


def test_a_tool_requested_by_its_name_is_always_selected():
    decoys = [StructuredTool.from_function(make("x").func, name=f"t{i}", description="get mail") for i in range(150)]
    runner, model = agent(ManyvecToolSelector(max_tools=1, encoder=HashEncoder()), tools=[*decoys, *TOOLS])
    runner.invoke(ask("get_mail"))
    assert model.given == [["get_mail"]]


async def test_the_selection_is_traced_with_its_scores():
    for is_async in (False, True):
        recorder = Recorder()
        runner, _ = agent(ManyvecToolSelector(max_tools=2, encoder=HashEncoder()), call("get_mail"))
        config = {"callbacks": [recorder]}
        _ = await runner.ainvoke(ask("mail"), config) if is_async else runner.invoke(ask("mail"), config)
        (asked, first), (_, again) = recorder.runs
        assert asked == {"query": "mail"}
        assert (first["cached"], again["cached"], first["model"], first["out_of"]) == (False, True, "hash-64", 7)
        assert first["tools"][0]["name"] == "get_mail"
        assert first["tools"][0]["score"] > first["tools"][1]["score"]


def test_a_conversation_without_words_keeps_all_tools():
    selector = ManyvecToolSelector(max_tools=1, encoder=HashEncoder())
    kept = []
    request = ModelRequest(model=Model(messages=iter([])), messages=[HumanMessage("  ")], tools=list(TOOLS))
    selector.wrap_model_call(request, lambda request: kept.extend(request.tools))
    assert kept == TOOLS


def tell_time(city: str) -> str:
    """Tells the time in a city."""
    return f"noon in {city}"


def test_a_deep_copy_selects_and_runs_the_same_tools():
    selector = ManyvecToolSelector(max_tools=1, catalog=[tell_time], always_include=["get_mail"], encoder=HashEncoder())
    runner, _ = agent(selector)
    runner.invoke(ask("weather"))
    again = copy.deepcopy(selector)

    assert (again.max_tools, again.always_include, list(again.catalog)) == (1, ["get_mail"], ["tell_time"])
    runner, model = agent(again, call("tell_time"))
    state = runner.invoke(ask("the time"))
    assert model.given == [["get_mail", "tell_time"]] * 2
    assert [m.text for m in state["messages"] if isinstance(m, ToolMessage)] == ["noon in Rome"]


def test_a_pickled_selector_selects_the_same_tools():
    # LangChain's tools cannot be pickled themselves, so there is no catalog.
    selector = ManyvecToolSelector(max_tools=2, encoder=HashEncoder())
    agent(selector)[0].invoke(ask("currency and weather please"))
    runner, model = agent(pickle.loads(pickle.dumps(selector)))
    runner.invoke(ask("currency and weather please"))
    assert model.given == [["get_weather", "get_currency"]]


def test_bad_arguments_are_errors():
    with pytest.raises(manyvec.InputError, match="max_tools"):
        ManyvecToolSelector(max_tools=0)
    with pytest.raises(manyvec.InputError, match="same name"):
        ManyvecToolSelector(catalog=[TOOLS[0], make("weather")])
    with pytest.raises(manyvec.InputError, match="on_error"):
        ManyvecToolSelector(on_error="none")


def test_without_langchain_the_package_imports_and_the_selector_says_what_to_install():
    code = """
import sys
sys.modules["langchain"] = None
import langchain_manyvec
try:
    langchain_manyvec.ManyvecToolSelector
except ImportError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "langchain-manyvec[agents]" in output
