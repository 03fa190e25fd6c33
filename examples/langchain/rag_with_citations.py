"""A RAG chain that cites its sources and prints which words of each source matched the question.

python examples/langchain/rag_with_citations.py [MODEL]

MODEL is a name for `init_chat_model`, such as openai:gpt-5 (its package and API key are needed). Without one,
LangChain's fake chat model returns a fixed answer; the sources and the evidence are real.
"""

import re
import sys
import tempfile
from operator import itemgetter
from pathlib import Path

from langchain.chat_models import init_chat_model
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_manyvec import ManyvecRetriever
from manyvec import Index, files

PASSAGES = Path(__file__).parents[1] / "data" / "squad_sample.jsonl"
QUESTION = "Who discovered oxygen independently of Priestley?"
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from these sources only, and cite them as [1].\n\n{sources}"), ("human", "{question}")]
)


def numbered(documents: list[Document]) -> str:
    cited = enumerate(documents, start=1)
    return "\n\n".join(f"[{number}] ({source.metadata['source']}) {source.page_content}" for number, source in cited)


def main(model: BaseChatModel | None = None) -> None:
    if model is None:
        print("No chat model was given: LangChain's fake one returns a fixed answer that cites [1].\n")
        model = FakeListChatModel(responses=["Carl Wilhelm Scheele, in Uppsala, in 1773 or earlier [1]."])
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", encoder="minilm")
        index.add(files.read(PASSAGES))
        find = itemgetter("question") | ManyvecRetriever(index=index, k=3, evidence=True, passage_chars=600)
        read = RunnablePassthrough.assign(sources=lambda given: numbered(given["documents"]))
        chain = RunnablePassthrough.assign(documents=find).assign(answer=read | PROMPT | model | StrOutputParser())
        found = chain.invoke({"question": QUESTION})

    print(f"{QUESTION}\n{found['answer']}")
    sources = dict(enumerate(found["documents"], start=1))
    for number in sorted({int(cited) for cited in re.findall(r"\[(\d+)\]", found["answer"])} & sources.keys()):
        print(f"\n[{number}] {sources[number].id}: {sources[number].page_content[:90]}…")
        for match in sources[number].metadata["evidence"]["words"]:
            print(f"    {match['word']:>14} → {match['text'] or '(no word)'} ({match['similarity']:.2f})")


if __name__ == "__main__":
    main(init_chat_model(sys.argv[1]) if len(sys.argv) > 1 else None)
