"""`ManyvecToolSelector`: before each model call of an agent, only the tools that fit the conversation are kept."""

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

# Requests that are read, the newest whole up to the first limit, earlier ones as context up to the second.
_N_REQUESTS = 3
_MAX_CHARACTERS, _MAX_CONTEXT_CHARACTERS = 1000, 200
_MAX_INDEXES, _MAX_CHOICES = 4, 256
_FAILED = "choosing tools failed; the model gets all tools of the agent"


class ManyvecToolSelector(AgentMiddleware):
    """Keeps the tools that fit, out of a handful or thousands, with no model call but the encoder's.

    The request is read from the conversation: the user's newest message, and the ones before as context. One choice
    holds for a whole tool loop, and a tool that was called in it stays. Tools keep their order. Provider tools (dicts)
    pass through. Each choice is a run named `ManyvecToolSelector` in the trace, with the query and the scores.

    Args:
        max_tools: tools to keep; with no more than these, nothing is selected away.
        always_include: names of tools to keep besides; they do not count. Unknown ones are an error in the model call.
        catalog: tools that the agent was not given and that the selector may add: functions or LangChain tools. The
            selector also runs them. A tool of the agent with the same name takes the place of the catalog's.
        encoder: a name for `manyvec.load_encoder`, or an encoder.
        on_error: when choosing fails, `all` logs it and lets the model have all tools of the agent (not the
            catalog's); `raise` raises.

    Raises:
        InputError: `max_tools` is less than 1, or two tools of the catalog share a name.
    """

    def __init__(
        self,
        *,
        max_tools: int = 8,
        always_include: Sequence[str] = (),
        catalog: Iterable[BaseTool | Callable[..., Any]] = (),
        encoder: str | Encoder = "minilm",
        on_error: Literal["all", "raise"] = "all",
    ) -> None:
        super().__init__()
        if isinstance(max_tools, bool) or not isinstance(max_tools, int) or max_tools < 1:
            raise InputError(f"max_tools must be a whole number, 1 or more, got {max_tools!r}")
        if on_error not in ("all", "raise"):
            raise InputError(f"on_error must be 'all' or 'raise', got {on_error!r}")
        given = [tool if isinstance(tool, BaseTool) else as_tool(tool) for tool in catalog]
        self.catalog = {tool.name: tool for tool in given}
        if len(self.catalog) < len(given):
            raise InputError("tools of the catalog share a name: each needs one of its own")
        self.max_tools = max_tools
        self.always_include = list(always_include)
        self.encoder = encoder
        self.on_error = on_error
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[tuple[str, str], ...], ToolIndex] = OrderedDict()
        self._choices: OrderedDict[tuple[object, str], dict[str, Any]] = OrderedDict()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Call the model with the tools that fit."""
        tools = self._tools(request)
        eligible = self._eligible(tools)
        if len(eligible) <= self.max_tools:
            return handler(request.override(tools=tools))
        try:
            choice = self._chooser(eligible).invoke({"query": query_of(request.messages)})
        except Exception:
            if self.on_error == "raise":
                raise
            logger.warning(_FAILED, exc_info=True)
            return handler(request)
        return handler(request.override(tools=self._kept(tools, choice, request)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | AIMessage:
        """`wrap_model_call`; the choice is made in a thread, and the event loop goes on."""
        tools = self._tools(request)
        eligible = self._eligible(tools)
        if len(eligible) <= self.max_tools:
            return await handler(request.override(tools=tools))
        try:
            choice = await self._chooser(eligible).ainvoke({"query": query_of(request.messages)})
        except Exception:
            if self.on_error == "raise":
                raise
            logger.warning(_FAILED, exc_info=True)
            return await handler(request)
        return await handler(request.override(tools=self._kept(tools, choice, request)))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        """Run a tool of the catalog, which the agent does not know."""
        return handler(self._resolved(request))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        """See `wrap_tool_call`."""
        return await handler(self._resolved(request))

    def _resolved(self, request: ToolCallRequest) -> ToolCallRequest:
        found = self.catalog.get(request.tool_call["name"])
        return request.override(tool=found) if request.tool is None and found is not None else request

    def _tools(self, request: ModelRequest[Any]) -> list[BaseTool | dict[str, Any]]:
        """The agent's tools as they are, then those of the catalog that it does not have."""
        own = {tool.name for tool in request.tools if isinstance(tool, BaseTool)}
        tools = [*request.tools, *(tool for name, tool in self.catalog.items() if name not in own)]
        if missing := set(self.always_include) - own - self.catalog.keys():
            raise InputError(f"always_include names tools that are not there: {', '.join(sorted(missing))}")
        return tools

    def _eligible(self, tools: Sequence[BaseTool | dict[str, Any]]) -> list[BaseTool]:
        return [tool for tool in tools if isinstance(tool, BaseTool) and tool.name not in self.always_include]

    def _chooser(self, tools: list[BaseTool]) -> RunnableLambda[dict[str, Any], dict[str, Any]]:
        """The choice as a step of its own, so that it stands in the trace."""
        return RunnableLambda(lambda question: self._choose(question["query"], tools), name=type(self).__name__)

    def _choose(self, query: str, tools: list[BaseTool]) -> dict[str, Any]:
        """The names chosen, best first, with their scores; the same question gets the choice made before."""
        key = tuple((tool.name, tool.description) for tool in tools)
        with self._lock:
            if (key, query) in self._choices:
                self._choices.move_to_end((key, query))
                return {**self._choices[key, query], "cached": True}
            index = self._indexes.get(key)
            if index is None:
                encoder = load_encoder(self.encoder) if isinstance(self.encoder, str) else self.encoder
                index = self._indexes[key] = ToolIndex(encoder, map(convert_to_openai_tool, tools))
                _shrink(self._indexes, _MAX_INDEXES)
        hits = index.select(query, self.max_tools)
        scored = [{"name": hit.name, "score": hit.score, "similarity": hit.similarity} for hit in hits]
        choice = {"tools": scored, "model": index.encoder.name, "out_of": len(index)}
        with self._lock:
            self._choices[key, query] = choice
            _shrink(self._choices, _MAX_CHOICES)
        return {**choice, "cached": False}

    def _kept(
        self, tools: Sequence[BaseTool | dict[str, Any]], choice: dict[str, Any], request: ModelRequest[Any]
    ) -> list[BaseTool | dict[str, Any]]:
        if not choice["tools"]:
            # A conversation without a word gives nothing to choose by.
            return list(request.tools)
        names = {hit["name"] for hit in choice["tools"]} | set(self.always_include) | called_names(request.messages)
        return [tool for tool in tools if isinstance(tool, dict) or tool.name in names]


def query_of(messages: Sequence[AnyMessage]) -> str:
    """What the user asks for: the newest message first, then the ones before it as context; tool results never."""
    asked = [text for message in messages if isinstance(message, HumanMessage) if (text := str(message.text).strip())]
    newest, *earlier = asked[::-1][:_N_REQUESTS] or [""]
    context = [text[:_MAX_CONTEXT_CHARACTERS] for text in earlier]
    if len(newest) > _MAX_CHARACTERS:
        # What is wanted stands before or after a long quotation.
        newest = f"{newest[: _MAX_CHARACTERS // 2]} {newest[-_MAX_CHARACTERS // 2 :]}"
    return "\n".join([newest, *context])


def called_names(messages: Sequence[AnyMessage]) -> set[str]:
    """Names of the tools that were called since the user's newest message."""
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
