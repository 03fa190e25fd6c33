"""Fixture for all tests: a handler that records LlamaIndex's events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent


class Recorder(BaseEventHandler):
    events: list[BaseEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: object) -> None:
        self.events.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    handler, root = Recorder(), get_dispatcher("root")
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)
