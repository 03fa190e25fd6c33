"""`ManyvecToolRetriever`: the tools that fit a request, for agents that have more than their model can read."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.objects import ObjectRetriever, SimpleToolNodeMapping
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType, TextNode
from llama_index.core.tools import BaseTool, FunctionTool

from manyvec import Encoder, InputError, ToolIndex

Tools = Iterable[BaseTool | Callable[..., Any]]


class ManyvecToolMapping(SimpleToolNodeMapping):
    """Tools by name, and the nodes that stand for them, with the same ids in every process.

    LlamaIndex's own mapping makes ids with Python's `hash`, which differs from process to process: a store that is kept
    gets every tool once more with each run. Give this one to an `ObjectIndex` over such a store.
    """

    def to_node(self, tool: BaseTool) -> TextNode:
        """A node with the tool's name, description and arguments. Its id follows from the name alone."""
        id = hashlib.blake2b(_name(tool).encode(), digest_size=16).hexdigest()
        return super().to_node(tool).model_copy(update={"id_": id})

    def get(self, name: str) -> BaseTool | None:
        return self._tools.get(name)

    def remove(self, name: str) -> None:
        self._tools.pop(name, None)


class ManyvecToolRetriever(ObjectRetriever[BaseTool]):
    """Finds the tools that fit a request, out of a handful or thousands, by late interaction and BM25.

        FunctionAgent(tool_retriever=ManyvecToolRetriever(tools, similarity_top_k=8), llm=llm)

    Whoever asks for a tool by its exact name gets it, first, and whatever the postprocessors do: an agent looks up each
    call of its model in this way. Async methods work in a thread.

    Args:
        tools: LlamaIndex tools, or functions.
        similarity_top_k: how many tools, at most.
        encoder: a name for `manyvec.load_encoder`, or an encoder.
        node_postprocessors: applied to the nodes that stand for the tools found.

    Raises:
        InputError: a tool has no name, or two have the same.
    """

    def __init__(
        self,
        tools: Tools = (),
        similarity_top_k: int = 8,
        *,
        encoder: str | Encoder = "minilm",
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
    ) -> None:
        self._over(ToolIndex(encoder), ManyvecToolMapping(), similarity_top_k, node_postprocessors)
        self.add(tools)

    @classmethod
    def from_persist_path(
        cls,
        path: str | PathLike[str],
        tools: Tools,
        similarity_top_k: int = 8,
        *,
        encoder: str | Encoder | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
    ) -> ManyvecToolRetriever:
        """A retriever over these tools; what `persist` wrote of them is not encoded again.

        Args:
            encoder: by default the one they were encoded with; see `manyvec.ToolIndex.load`, also for the errors.
        """
        given = _tools(tools)
        retriever = cls.__new__(cls)
        index = ToolIndex.load(path, encoder, tools=map(_schema, given))
        retriever._over(index, ManyvecToolMapping(given), similarity_top_k, node_postprocessors)
        return retriever

    def _over(
        self,
        index: ToolIndex,
        mapping: ManyvecToolMapping,
        similarity_top_k: int,
        node_postprocessors: list[BaseNodePostprocessor] | None,
    ) -> None:
        self.index = index
        self.mapping = mapping
        self.nodes = _ToolNodes(index, mapping, similarity_top_k)
        super().__init__(self.nodes, mapping, node_postprocessors)

    def persist(self, persist_path: str | PathLike[str]) -> None:
        """Write the tools' descriptions and token vectors to one file; see `manyvec.ToolIndex.save`."""
        self.index.save(persist_path)

    def add(self, tools: Tools) -> list[str]:
        """Add tools, encoded in one pass; gives their names.

        Raises:
            InputError: a tool has no name, or one that another has; none is added.
        """
        given = _tools(tools)
        names = self.index.add(map(_schema, given))
        for tool in given:
            self.mapping.add_object(tool)
        return names

    def remove(self, names: str | Iterable[str]) -> int:
        """Remove tools by name; answers how many there were. Unknown names do no harm."""
        gone = [names] if isinstance(names, str) else list(names)
        n_removed = self.index.remove(gone)
        for name in gone:
            self.mapping.remove(name)
        return n_removed

    def retrieve(self, str_or_query_bundle: QueryType) -> list[BaseTool]:
        """The tools that fit, best first; none for a request without words, or where there are no tools."""
        query = _bundle(str_or_query_bundle)
        nodes = self.nodes.retrieve(query)
        for postprocessor in self.node_postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query)
        return self._found(query, nodes)

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[BaseTool]:
        query = _bundle(str_or_query_bundle)
        nodes = await self.nodes.aretrieve(query)
        for postprocessor in self.node_postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query)
        return self._found(query, nodes)

    def _found(self, query: QueryBundle, nodes: list[NodeWithScore]) -> list[BaseTool]:
        tools = [self.mapping.from_node(found.node) for found in nodes]
        named = self.mapping.get(query.query_str.strip())
        return tools if named is None else [named, *(tool for tool in tools if tool is not named)]


class _ToolNodes(BaseRetriever):
    """The nodes that stand for the tools found, with their scores."""

    def __init__(self, index: ToolIndex, mapping: ManyvecToolMapping, similarity_top_k: int) -> None:
        super().__init__()
        self.index = index
        self.mapping = mapping
        self.similarity_top_k = similarity_top_k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.index.select(query_bundle.query_str, self.similarity_top_k)
        tools = [(self.mapping.get(hit.name), hit.score) for hit in found]
        # Another thread may have removed a tool that was found just now, or not have mapped one that it adds.
        known = [(tool, score) for tool, score in tools if tool is not None]
        return [NodeWithScore(node=self.mapping.to_node(tool), score=score) for tool, score in known]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _tools(tools: Tools) -> list[BaseTool]:
    return [tool if isinstance(tool, BaseTool) else FunctionTool.from_defaults(tool) for tool in tools]


def _schema(tool: BaseTool) -> dict[str, Any]:
    """The tool as `ToolIndex` reads it."""
    metadata = tool.metadata
    return {
        "name": _name(tool),
        "description": metadata.description or "",
        "parameters": metadata.get_parameters_dict(),
    }


def _name(tool: BaseTool) -> str:
    if not tool.metadata.name:
        raise InputError(f"a tool needs a name, got none with the description {tool.metadata.description!r}")
    return tool.metadata.name
