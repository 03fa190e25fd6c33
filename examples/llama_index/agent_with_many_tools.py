"""An agent with 1,000 tools, whose model is given the 8 that fit.

python examples/llama_index/agent_with_many_tools.py [MODEL]

MODEL is an OpenAI model (pip install llama-index-llms-openai; an API key is needed). Without one, LlamaIndex's mock is
used: it calls the tool that this script names, and prints the tools it was given.
"""

import asyncio
import sys
import tempfile

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import BaseTool, FunctionTool
from llama_index.retrievers.manyvec import ManyvecToolRetriever

SERVICES = """airline bakery bank bookstore calendar cinema clinic courier dentist factory farm florist garage gym
hospital hotel insurance laboratory laundry library museum orchestra pharmacy plumber restaurant""".split()
ACTIONS = """book cancel close compare confirm count create delete describe download edit export find follow forecast
import invite list locate move open order pay plan print rate refund remind rename repair report reserve schedule search
sell share subscribe track translate verify""".split()


def make(service: str, action: str) -> FunctionTool:
    def run(details: str) -> str:
        return f"{service} {action}: done ({details})"

    return FunctionTool.from_defaults(run, f"{service}_{action}", f"{action.capitalize()} something at the {service}.")


def scripted(messages: list[ChatMessage], tools: list[BaseTool] = (), **_: object) -> ChatMessage:
    print(f"  the model is given {len(tools)} tools: {', '.join(tool.metadata.name for tool in tools)}")
    if messages[-1].role == "tool":
        return ChatMessage(role="assistant", content=f"Done. The tool said: {messages[-1].content}")
    call = ToolCallBlock(tool_call_id="1", tool_name="pharmacy_order", tool_kwargs={"details": "aspirin"})
    return ChatMessage(role="assistant", blocks=[call])


async def main() -> None:
    if len(sys.argv) > 1:
        from llama_index.llms.openai import OpenAI

        llm = OpenAI(model=sys.argv[1])
    else:
        print("No model was given: LlamaIndex's mock calls pharmacy_order and reports the result.")
        llm = MockFunctionCallingLLM(response_generator=scripted)
    tools = [make(service, action) for service in SERVICES for action in ACTIONS]
    with tempfile.TemporaryDirectory() as folder:
        ManyvecToolRetriever(tools).persist(f"{folder}/tools")
        # A later process loads the token vectors and encodes nothing.
        retriever = ManyvecToolRetriever.from_persist_path(f"{folder}/tools", tools, similarity_top_k=8)
    print(f"An agent with {len(tools):,} tools:")
    agent = FunctionAgent(tool_retriever=retriever, llm=llm)
    print(await agent.run("I have a headache, please order some aspirin at the pharmacy"))


if __name__ == "__main__":
    asyncio.run(main())
