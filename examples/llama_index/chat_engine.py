"""A chat engine that remembers the conversation and retrieves passages for each turn.

python examples/llama_index/chat_engine.py [MODEL]

MODEL is an OpenAI model (pip install llama-index-llms-openai; an API key is needed). Without one, LlamaIndex's MockLLM
is used, which repeats its prompt; the passages found are real.
"""

import json
import sys
import tempfile
from pathlib import Path

from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.retrievers.manyvec import ManyvecRetriever

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
TURNS = ["How large is the Amazon rainforest?", "Which animals live there?", "And what threatens them?"]


def main(llm: LLM | None = None) -> None:
    if llm is None:
        print("No model was given: LlamaIndex's MockLLM repeats its prompt.\n")
        llm = MockLLM(is_chat_model=True)
    lines = map(json.loads, PASSAGES.read_text(encoding="utf-8").splitlines())
    nodes = [TextNode(id_=line["_id"], text=line["text"], metadata={"article": line["title"]}) for line in lines]
    only_amazon = MetadataFilters(
        filters=[MetadataFilter(key="article", value="amazon", operator=FilterOperator.TEXT_MATCH_INSENSITIVE)]
    )
    with tempfile.TemporaryDirectory() as folder:
        retriever = ManyvecRetriever.from_nodes(
            nodes, folder, filter_columns={"article": str}, filters=only_amazon, similarity_top_k=2, passage_chars=600
        )
        chat = ContextChatEngine.from_defaults(retriever=retriever, llm=llm)
        for turn in TURNS:
            response = chat.chat(turn)
            print(f"You: {turn}\nAssistant: {' '.join(str(response).split())[-100:]}")
            for source in response.source_nodes:
                print(f"    found {source.node_id}, score {source.score:.2f}")
        print(f"\nThe engine remembers {len(chat.chat_history)} messages.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from llama_index.llms.openai import OpenAI

        main(OpenAI(model=sys.argv[1]))
    else:
        main()
