"""A copy of a graph in which one execution of one node writes another text than it does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.types import Command

from lg_textgrad.recording.structure import AnyGraph


class Substitution(Runnable[Any, Any]):
    """Puts `text` in place of what the `number`th execution of a node, from 0, writes to `channel`.

    One object serves one run. Whether that execution came is for the recording to tell.
    """

    def __init__(self, channel: str, number: int, text: str) -> None:
        self.channel = channel
        self.text = text
        self._before = number
        self._guard = threading.Lock()

    def into(self, graph: AnyGraph, node: str) -> AnyGraph:
        """Return a copy of `graph` whose `node` has its writes changed. Not recompiled."""
        old = graph.nodes[node]
        nodes = {**graph.nodes, node: old.copy({"writers": [self, *old.writers]})}
        return graph.copy({"nodes": nodes})

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002, ARG002 - LangChain's names
        with self._guard:
            self._before -= 1
            if self._before != -1:
                return input
        return self._changed(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002 - LangChain's names
        return self.invoke(input, config)

    def _changed(self, update: Any) -> Any:
        """Return what the node wrote, with the text in place where it wrote to the channel."""
        if isinstance(update, Mapping) and self.channel in update:
            return {**update, self.channel: self.text}
        if isinstance(update, Command):
            return replace(update, update=self._changed(update.update))
        if isinstance(update, list | tuple) and not hasattr(update, "_fields"):
            return type(update)(self._changed(part) for part in update)
        return update
