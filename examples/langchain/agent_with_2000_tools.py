"""An agent with 2,000 tools, whose model is given the 8 that fit.

python examples/langchain/agent_with_2000_tools.py [MODEL]

MODEL is a name for `init_chat_model`, such as openai:gpt-5 (its package and API key are needed). Without one,
LangChain's fake chat model is used: it calls the tool that this script names, and prints the tools it was given.
"""

import sys
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool

from langchain_manyvec import ManyvecToolSelector

SERVICES = """airline bakery bank bookstore calendar cinema clinic courier dentist factory farm florist garage gym
hospital hotel insurance kindergarten laboratory laundry library lottery mailbox marina museum newspaper notary
observatory orchestra parking pharmacy plumber podcast printer restaurant school shop stadium taxi theatre""".split()
ACTIONS = """book cancel cheapest close compare complain confirm count create delete describe download edit export find
follow forecast import invite invoice list locate message move open order pay photograph plan print rate refund remind
rename reopen repair report request reserve schedule search sell share sort subscribe summarize translate update upload
verify""".split()


class FakeModel(GenericFakeChatModel):
    """LangChain's fake chat model, which also prints the tools it is given."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> "FakeModel":
        print(f"  the model is given {len(tools)} tools: {', '.join(tool.name for tool in tools)}")
        return self


def make(service: str, action: str) -> StructuredTool:
    def run(details: str) -> str:
        return f"{service} {action}: done ({details})"

    description = f"{action.capitalize()} something at the {service}."
    return StructuredTool.from_function(run, name=f"{service}_{action}", description=description)


def main(model: BaseChatModel | None = None) -> None:
    if model is None:
        print("No chat model was given: LangChain's fake one calls pharmacy_order.")
        order = {"name": "pharmacy_order", "args": {"details": "aspirin"}, "id": "call-1"}
        model = FakeModel(messages=iter([AIMessage("", tool_calls=[order]), AIMessage("Your aspirin is ordered.")]))
    tools = [make(service, action) for service in SERVICES for action in ACTIONS]
    agent = create_agent(model, middleware=[ManyvecToolSelector(max_tools=8, catalog=tools)])

    print(f"An agent with {len(tools):,} tools:")
    for message in agent.invoke({"messages": "I have a headache, please order some aspirin"})["messages"]:
        message.pretty_print()


if __name__ == "__main__":
    main(init_chat_model(sys.argv[1]) if len(sys.argv) > 1 else None)
