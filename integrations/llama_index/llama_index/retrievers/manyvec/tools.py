"""`ManyvecToolRetriever`: retrieve the tools that fit a request, for agents with more tools than fit into a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.objects import ObjectRetriever, SimpleToolNodeMapping
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType, TextNode
from llama_index.core.tools import BaseTool, FunctionTool

from manyvec import Encoder, InputError, ToolIndex, in_thread

Tools = Iterable[BaseTool | Callable[..., Any]]


class ManyvecToolMapping(SimpleToolNodeMapping):
    """Mapping between tools and nodes, with node ids that are the same in every process.

    LlamaIndex's own mapping derives ids from Python's `hash`, which differs between processes, so a persistent store
    receives every tool again in each run. Use this mapping for an `ObjectIndex` over a persistent store.
    """

    def to_node(self, tool: BaseTool) -> TextNode:
        """Return a node with the tool's name, description and arguments. Its id depends on the name only."""
        id = hashlib.blake2b(_name(tool).encode(), digest_size=16).hexdigest()
        return super().to_node(tool).model_copy(update={"id_": id})

    def get(self, name: str) -> BaseTool | None:
        return self._tools.get(name)

    def remove(self, name: str) -> None:
        self._tools.pop(name, None)


class ManyvecToolRetriever(ObjectRetriever[BaseTool]):
    """Retriever that selects the tools for a request, from a few or from thousands, by late interaction and BM25.

        FunctionAgent(tool_retriever=ManyvecToolRetriever(tools, similarity_top_k=8), llm=llm)

    A query that is the exact name of a tool returns that tool first, regardless of postprocessors: an agent looks up
    every tool call of its model by name. Async methods run in a thread.

    Args:
        tools: LlamaIndex tools, or functions.
        similarity_top_k: Maximum number of tools to return.
        encoder: Encoder, or a name for `manyvec.load_encoder`.
        node_postprocessors: Postprocessors for the nodes that represent the tools found.

    Raises:
        InputError: A tool has no name, or two tools have the same name.
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
        """Create a retriever over these tools, using the token vectors that `persist` wrote where they are unchanged.

        Args:
            path: File that `persist` wrote.
            tools: LlamaIndex tools, or functions.
            similarity_top_k: Maximum number of tools to return.
            encoder: Encoder or its name. Defaults to the one that was used before, see `manyvec.ToolIndex.load`.
            node_postprocessors: Postprocessors for the nodes that represent the tools found.
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
        """Write the descriptions and token vectors of the tools to one file, see `manyvec.ToolIndex.save`."""
        self.index.save(persist_path)

    def add(self, tools: Tools) -> list[str]:
        """Add tools, which are encoded in one pass, and return their names.

        Raises:
            InputError: A tool has no name, or the name of another tool; none is added.
        """
        given = _tools(tools)
        names = self.index.add(map(_schema, given))
        for tool in given:
            self.mapping.add_object(tool)
        return names

    def remove(self, names: str | Iterable[str]) -> int:
        """Remove tools by name and return how many were removed. Unknown names are ignored."""
        names = [names] if isinstance(names, str) else list(names)
        n_removed = self.index.remove(names)
        for name in names:
            self.mapping.remove(name)
        return n_removed

    def retrieve(self, str_or_query_bundle: QueryType) -> list[BaseTool]:
        """Return the tools that fit, best first. A request without words returns none."""
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
    """Retriever of the nodes that represent the tools found, with their scores."""

    def __init__(self, index: ToolIndex, mapping: ManyvecToolMapping, similarity_top_k: int) -> None:
        super().__init__()
        self.index = index
        self.mapping = mapping
        self.similarity_top_k = similarity_top_k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.index.select(query_bundle.query_str, self.similarity_top_k)
        tools = [(self.mapping.get(hit.name), hit.score) for hit in found]
        # Another thread may have removed a tool since, or not yet have mapped one that it is adding.
        known = [(tool, score) for tool, score in tools if tool is not None]
        return [NodeWithScore(node=self.mapping.to_node(tool), score=score) for tool, score in known]

    _aretrieve = in_thread(_retrieve)


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _tools(tools: Tools) -> list[BaseTool]:
    return [tool if isinstance(tool, BaseTool) else FunctionTool.from_defaults(tool) for tool in tools]


def _schema(tool: BaseTool) -> dict[str, Any]:
    """Return the description of the tool that `ToolIndex` reads."""
    metadata = tool.metadata
    return {
        "name": _name(tool),
        "description": metadata.description or "",
        "parameters": metadata.get_parameters_dict(),
    }


def _name(tool: BaseTool) -> str:
    if not tool.metadata.name:
        raise InputError(f"a tool must have a name, the one described as {tool.metadata.description!r} has none")
    return tool.metadata.name
