"""`ManyvecToolSelector`: limit the tools of each model call of an agent to those that fit the conversation."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from manyvec import Encoder, InputError, MissingPackageError, ToolIndex, load_encoder

try:
    from langchain.agents.middleware import AgentMiddleware
except ModuleNotFoundError as error:
    # An old langchain lacks the submodule.
    if (error.name or "").partition(".")[0] != "langchain":
        raise
    raise MissingPackageError("langchain 1 is not installed. Run: pip install 'langchain-manyvec[agents]'") from error

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest, ModelResponse, ToolCallRequest
    from langchain_core.messages import ToolMessage
    from langgraph.types import Command

    ToolResult: TypeAlias = ToolMessage | Command[Any]

logger = logging.getLogger(__name__)

# User messages that make up the query: the newest, up to 1,000 characters, and up to 200 of each of the two before it.
_N_MESSAGES = 3
_MAX_CHARACTERS, _MAX_CONTEXT_CHARACTERS = 1000, 200
# Entries kept in the caches of tool indexes (one per set of tools) and selections (one per query).
_MAX_INDEXES, _MAX_SELECTIONS = 4, 256
_FAILED = "selecting tools failed; the model receives all tools of the agent"


class ManyvecToolSelector(AgentMiddleware):
    """Agent middleware that selects the tools for each model call, by late interaction and without an extra model call.

    The query is the user's newest message, with the messages before it as context. A selection holds for a whole tool
    loop, and a tool that was called in the loop stays available. Tools keep their order, and provider tools (dicts) are
    always passed on. Each selection is a run named `ManyvecToolSelector` in the trace, with the query and the scores.

    Args:
        max_tools: Maximum number of tools to select. If there are no more than this, or with None, all are kept.
        always_include: Names of tools to keep in addition to `max_tools`. An unknown name raises an error in the model
            call.
        catalog: Further tools that the agent was not created with: functions or LangChain tools. The selector adds
            those that fit and runs them when they are called. A tool of the agent with the same name takes precedence.
        encoder: Encoder, or a name for `manyvec.load_encoder`.
        on_error: What happens when the selection fails. `all` logs the error and passes all tools of the agent (not
            the catalog's) to the model; `raise` raises it.

    Raises:
        InputError: `max_tools` is less than 1, or two tools of the catalog have the same name.
    """

    def __init__(
        self,
        *,
        max_tools: int | None = 8,
        always_include: Sequence[str] = (),
        catalog: Iterable[BaseTool | Callable[..., Any]] = (),
        encoder: str | Encoder = "minilm",
        on_error: Literal["all", "raise"] = "all",
    ) -> None:
        super().__init__()
        if max_tools is not None and (isinstance(max_tools, bool) or not isinstance(max_tools, int) or max_tools < 1):
            raise InputError(f"max_tools must be a positive integer or None, got {max_tools!r}")
        if on_error not in ("all", "raise"):
            raise InputError(f"on_error must be 'all' or 'raise', got {on_error!r}")
        given = [tool if isinstance(tool, BaseTool) else as_tool(tool) for tool in catalog]
        self.catalog = {tool.name: tool for tool in given}
        if len(self.catalog) < len(given):
            raise InputError("two tools of the catalog have the same name: names must be unique")
        self.max_tools = max_tools
        self.always_include = list(always_include)
        self.encoder = encoder
        self.on_error = on_error
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[tuple[str, str], ...], ToolIndex] = OrderedDict()
        self._selections: OrderedDict[tuple[object, str], dict[str, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # The caches are filled again where the copy is used.
        return {**self.__dict__, "_lock": None, "_indexes": OrderedDict(), "_selections": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Call the model with the selected tools."""
        tools = self._tools(request)
        eligible = self._eligible(tools)
        if self.max_tools is None or len(eligible) <= self.max_tools:
            return handler(request.override(tools=tools))
        try:
            selection = self._selector(eligible).invoke({"query": query_of(request.messages)})
        except Exception:
            if self.on_error == "raise":
                raise
            logger.warning(_FAILED, exc_info=True)
            return handler(request)
        return handler(request.override(tools=self._kept(tools, selection, request)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | AIMessage:
        """Run `wrap_model_call` with the selection in a thread."""
        tools = self._tools(request)
        eligible = self._eligible(tools)
        if self.max_tools is None or len(eligible) <= self.max_tools:
            return await handler(request.override(tools=tools))
        try:
            selection = await self._selector(eligible).ainvoke({"query": query_of(request.messages)})
        except Exception:
            if self.on_error == "raise":
                raise
            logger.warning(_FAILED, exc_info=True)
            return await handler(request)
        return await handler(request.override(tools=self._kept(tools, selection, request)))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        """Run a tool of the catalog, which the agent itself does not know."""
        return handler(self._resolved(request))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        """Run a tool of the catalog, see `wrap_tool_call`."""
        return await handler(self._resolved(request))

    def _resolved(self, request: ToolCallRequest) -> ToolCallRequest:
        found = self.catalog.get(request.tool_call["name"])
        return request.override(tool=found) if request.tool is None and found is not None else request

    def _tools(self, request: ModelRequest[Any]) -> list[BaseTool | dict[str, Any]]:
        """Return the tools of the agent, followed by those of the catalog that it does not have."""
        names = {tool.name for tool in request.tools if isinstance(tool, BaseTool)}
        tools = [*request.tools, *(tool for name, tool in self.catalog.items() if name not in names)]
        if missing := set(self.always_include) - names - self.catalog.keys():
            raise InputError(f"always_include names unknown tools: {', '.join(sorted(missing))}")
        return tools

    def _eligible(self, tools: Sequence[BaseTool | dict[str, Any]]) -> list[BaseTool]:
        return [tool for tool in tools if isinstance(tool, BaseTool) and tool.name not in self.always_include]

    def _selector(self, tools: list[BaseTool]) -> RunnableLambda[dict[str, Any], dict[str, Any]]:
        """Wrap the selection as a runnable, so that it appears in the trace."""
        return RunnableLambda(lambda inputs: self._select(inputs["query"], tools), name=type(self).__name__)

    def _select(self, query: str, tools: list[BaseTool]) -> dict[str, Any]:
        """Return the selected names with their scores, best first; a repeated query returns the cached selection."""
        key = tuple((tool.name, tool.description) for tool in tools)
        with self._lock:
            if (key, query) in self._selections:
                self._selections.move_to_end((key, query))
                return {**self._selections[key, query], "cached": True}
            index = self._indexes.get(key)
            if index is None:
                encoder = load_encoder(self.encoder) if isinstance(self.encoder, str) else self.encoder
                index = self._indexes[key] = ToolIndex(encoder, map(convert_to_openai_tool, tools))
                _shrink(self._indexes, _MAX_INDEXES)
        hits = index.select(query, self.max_tools if self.max_tools is not None else len(tools))
        scored = [{"name": hit.name, "score": hit.score, "similarity": hit.similarity} for hit in hits]
        selection = {"tools": scored, "model": index.encoder.name, "out_of": len(index)}
        with self._lock:
            self._selections[key, query] = selection
            _shrink(self._selections, _MAX_SELECTIONS)
        return {**selection, "cached": False}

    def _kept(
        self, tools: Sequence[BaseTool | dict[str, Any]], selection: dict[str, Any], request: ModelRequest[Any]
    ) -> list[BaseTool | dict[str, Any]]:
        if not selection["tools"]:
            # The query holds no words to select by.
            return list(request.tools)
        names = {hit["name"] for hit in selection["tools"]} | set(self.always_include) | called_names(request.messages)
        return [tool for tool in tools if isinstance(tool, dict) or tool.name in names]


def query_of(messages: Sequence[AnyMessage]) -> str:
    """Return the text to select tools by: the user's newest message, then the ones before it, without tool results."""
    texts = [text for message in messages if isinstance(message, HumanMessage) if (text := str(message.text).strip())]
    newest, *earlier = texts[::-1][:_N_MESSAGES] or [""]
    context = [text[:_MAX_CONTEXT_CHARACTERS] for text in earlier]
    if len(newest) > _MAX_CHARACTERS:
        # The request itself usually comes before or after a long quotation.
        newest = f"{newest[: _MAX_CHARACTERS // 2]} {newest[-_MAX_CHARACTERS // 2 :]}"
    return "\n".join([newest, *context])


def called_names(messages: Sequence[AnyMessage]) -> set[str]:
    """Return the names of the tools called since the user's newest message."""
    names: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage):
            names |= {call["name"] for call in message.tool_calls}
    return names


def _shrink(entries: OrderedDict[Any, Any], size: int) -> None:
    while len(entries) > size:
        entries.popitem(last=False)
