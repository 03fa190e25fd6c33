"""A chatbot that remembers the conversation and retrieves passages for each turn.

python examples/langchain/chatbot_with_history.py [MODEL]

MODEL is a name for `init_chat_model`, such as openai:gpt-5 (its package and API key are needed). Without one,
LangChain's fake chat model returns fixed answers; the passages found are real.
"""

import sys
import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langgraph.checkpoint.memory import InMemorySaver

import manyvec
from langchain_manyvec import ManyvecRetriever
from manyvec import files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
TURNS = ["Which gas makes things burn?", "Who discovered it?"]


def main(model: BaseChatModel | None = None) -> None:
    if model is None:
        print("No chat model was given: LangChain's fake one returns fixed answers.")
        model = FakeListChatModel(responses=["Oxygen does.", "Scheele was first, Priestley published first."])
    with tempfile.TemporaryDirectory() as folder:
        index = manyvec.Index.create(Path(folder) / "index", encoder="minilm")
        index.add(files.read(PASSAGES))
        retriever = ManyvecRetriever(index=index, k=3, passage_chars=600)

        @dynamic_prompt
        def with_passages(request: ModelRequest) -> str:
            # "Who discovered it?" alone finds nothing, so the query includes the turns before it.
            asked = [message.text for message in request.messages if message.type == "human"]
            found = retriever.invoke(" ".join(asked[-3:]))
            print(f"  looked up: {', '.join(str(document.id) for document in found)}")
            return "Answer from these passages only.\n\n" + "\n\n".join(document.page_content for document in found)

        chatbot = create_agent(model, middleware=[with_passages], checkpointer=InMemorySaver())
        conversation = {"configurable": {"thread_id": "one conversation"}}
        for turn in TURNS:
            print(f"\nyou: {turn}")
            print(f"bot: {chatbot.invoke({'messages': turn}, conversation)['messages'][-1].text}")


if __name__ == "__main__":
    main(init_chat_model(sys.argv[1]) if len(sys.argv) > 1 else None)
