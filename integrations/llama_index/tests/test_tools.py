"""`ManyvecToolRetriever` alone, in agents, and with an `ObjectIndex`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.indices.postprocessor import SimilarityPostprocessor
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.objects import ObjectIndex
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.retrievers.manyvec import ManyvecToolMapping, ManyvecToolRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

import manyvec
from manyvec.testing import CountingEncoder, HashEncoder


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def job(number: int) -> FunctionTool:
    return FunctionTool.from_defaults(
        lambda text: f"{number}: {text}", name=f"job_{number}", description=f"Do the job number {number}"
    )


# LlamaIndex uses deprecated features of pydantic and of its own workflows.
of_agents = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOOLS = [get_weather, FunctionTool.from_defaults(add), *map(job, range(30))]


@pytest.fixture
def retriever() -> ManyvecToolRetriever:
    return ManyvecToolRetriever(TOOLS, 2, encoder=HashEncoder())


def names(tools) -> list[str]:
    return [tool.metadata.name for tool in tools]


def test_the_tool_objects_themselves_are_returned(retriever: ManyvecToolRetriever) -> None:
    assert retriever.retrieve("add two numbers")[0] is TOOLS[1]
    assert retriever.retrieve("weather in Lima")[0].call("Lima").content == "sunny in Lima"  # type: ignore[attr-defined]
    assert retriever.retrieve("") == []
    assert ManyvecToolRetriever(encoder=HashEncoder()).retrieve("anything") == []


def test_an_exact_name_is_found_regardless_of_postprocessors() -> None:
    none = SimilarityPostprocessor(similarity_cutoff=2.0)
    retriever = ManyvecToolRetriever(TOOLS, 1, encoder=HashEncoder(), node_postprocessors=[none])
    assert retriever.retrieve("weather in Lima") == []
    assert names(retriever.retrieve(" get_weather ")) == ["get_weather"]
    assert names(asyncio.run(retriever.aretrieve("job_17"))) == ["job_17"]


def test_postprocessors_see_nodes_with_scores_and_do_not_block_the_loop() -> None:
    threads = []

    class Slow(SimilarityPostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None):
            import threading

            threads.append(threading.current_thread() is threading.main_thread())
            assert all(node.score is not None for node in nodes)
            return nodes[:1]

    retriever = ManyvecToolRetriever(TOOLS, 5, encoder=HashEncoder(), node_postprocessors=[Slow()])
    assert names(asyncio.run(retriever.aretrieve("the weather"))) == ["get_weather"]
    assert threads == [False]


def test_tools_are_added_and_removed(retriever: ManyvecToolRetriever) -> None:
    def play_music(title: str) -> None:
        """Play a song."""

    assert retriever.add([play_music]) == ["play_music"]
    assert names(retriever.retrieve("play a song"))[0] == "play_music"
    assert retriever.remove(["play_music", "unknown"]) == 1
    assert "play_music" not in names(retriever.retrieve("play a song"))
    assert "play_music" not in names(retriever.retrieve("play_music"))


def test_duplicate_and_missing_names_are_errors(retriever: ManyvecToolRetriever) -> None:
    with pytest.raises(manyvec.InputError, match="get_weather"):
        retriever.add([job(99), get_weather])
    assert "job_99" not in names(retriever.retrieve("job_99"))
    nameless = FunctionTool.from_defaults(add)
    nameless.metadata.name = ""
    with pytest.raises(manyvec.InputError, match="must have a name"):
        ManyvecToolRetriever([nameless], encoder=HashEncoder())


def test_a_persisted_catalog_encodes_only_new_tools(tmp_path: Path) -> None:
    ManyvecToolRetriever(TOOLS, encoder=HashEncoder()).persist(tmp_path / "tools")
    encoder = CountingEncoder()
    kept = ManyvecToolRetriever.from_persist_path(tmp_path / "tools", [*TOOLS, job(30)], 2, encoder=encoder)
    assert len(encoder.texts) == 1
    fresh = ManyvecToolRetriever([*TOOLS, job(30)], 2, encoder=HashEncoder())
    for request in ("add two numbers", "the job number 30", "get_weather"):
        assert names(kept.retrieve(request)) == names(fresh.retrieve(request))
    assert kept.retrieve("add")[0] is TOOLS[1]


def test_ids_are_the_same_in_every_process() -> None:
    code = """
from llama_index.retrievers.manyvec import ManyvecToolMapping
from llama_index.core.tools import FunctionTool
def add(a: int, b: int) -> str:
    "Add two numbers."
print(ManyvecToolMapping().to_node(FunctionTool.from_defaults(add)).node_id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ManyvecToolMapping().to_node(TOOLS[1]).node_id


def test_an_object_index_over_a_persistent_store_holds_each_tool_once(tmp_path: Path) -> None:
    tools = [tool if isinstance(tool, FunctionTool) else FunctionTool.from_defaults(tool) for tool in TOOLS]
    for _ in range(2):
        store = ManyvecVectorStore.create(tmp_path, HashEncoder())
        objects = ObjectIndex.from_objects(
            tools,
            object_mapping=ManyvecToolMapping(tools),
            index_cls=VectorStoreIndex,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=ManyvecEmbedding(HashEncoder()),
        )
    assert store.client.count() == len(TOOLS)
    assert names(objects.as_retriever(similarity_top_k=1).retrieve("Add two numbers")) == ["add"]


@of_agents
async def test_a_function_agent_receives_the_tools_that_fit_and_calls_one(retriever: ManyvecToolRetriever) -> None:
    seen = []

    def answer(messages: list[ChatMessage], tools=(), **_: object) -> ChatMessage:
        seen.append(names(tools))
        if messages[-1].role == "tool":
            return ChatMessage(role="assistant", content=f"It is {messages[-1].content}")
        call = ToolCallBlock(tool_call_id="1", tool_name="get_weather", tool_kwargs={"city": "Lima"})
        return ChatMessage(role="assistant", blocks=[call])

    agent = FunctionAgent(tool_retriever=retriever, llm=MockFunctionCallingLLM(response_generator=answer))
    assert str(await agent.run("what is the weather in Lima")) == "It is sunny in Lima"
    assert len(seen) == 2
    assert all(len(given) == 2 and given[0] == "get_weather" for given in seen)


class Scripted(CustomLLM):
    """Replies with the given strings in order."""

    answers: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=False)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponse:
        return CompletionResponse(text=self.answers.pop(0))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object):
        text = self.answers.pop(0)
        return iter([CompletionResponse(text=text, delta=text)])


@of_agents
async def test_a_react_agent_can_call_a_tool_that_the_request_does_not_mention(
    retriever: ManyvecToolRetriever,
) -> None:
    answers = ['Thought: I add.\nAction: add\nAction Input: {"a": 2, "b": 3}', "Thought: done.\nAnswer: it is 5"]
    agent = ReActAgent(tool_retriever=retriever, llm=Scripted(answers=answers))
    handler = agent.run("the weather in Lima")
    called = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "it is 5"
    assert [(event.tool_name, event.tool_output.content) for event in called] == [("add", "5")]
