"""A search tool in the format of OpenAI's API, which most chat models and servers take, without a framework.

python examples/other/openai_tool.py "your question"
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import manyvec
from manyvec import files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search_documents",
        "description": "Search the documents and return passages with their sources.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "k": {"type": "integer", "minimum": 1, "maximum": 10}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}


def answer(index: manyvec.Index, arguments: str) -> str:
    """Return the result of a tool call, or its error, as JSON for the model."""
    try:
        given = json.loads(arguments)
        hits = index.search(given["query"], min(given.get("k", 3), 10), passage_chars=600)
    except (ValueError, KeyError, TypeError, manyvec.ManyvecError) as error:
        return json.dumps({"error": str(error)})
    return json.dumps([{"source": h.citation(), "text": h.passage.text if h.passage else h.text} for h in hits])


def main(question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = manyvec.Index.create(Path(folder) / "index", "minilm")
        index.add(files.read(PASSAGES))
        # client.chat.completions.create(model=..., messages=messages, tools=[TOOL]) returns such a call:
        call = {"name": TOOL["function"]["name"], "arguments": json.dumps({"query": question, "k": 2})}
        print(answer(index, call["arguments"]))
        print(answer(index, '{"k": "many"}'))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Who discovered oxygen?")
