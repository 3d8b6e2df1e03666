"""A copy of a graph in which one execution of one node writes another text than it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.types import Command

from lg_textgrad.recording.structure import AnyGraph
from lg_textgrad.recording.tasks import numbered
from lg_textgrad.run import Execution


class Substitution(Runnable[Any, Any]):
    """Puts `text` in place of what the execution `writer` of a recorded run writes to `channel`.

    It is known by its superstep, and of several `Send`s by their number: in a run that repeats the
    recorded one up to there, whoever ends first. One object serves one run. Whether that execution
    came is for the recording to tell.
    """

    def __init__(self, channel: str, writer: Execution, text: str) -> None:
        self.channel = channel
        self.text = text
        self._writer = writer

    def into(self, graph: AnyGraph, node: str) -> AnyGraph:
        """Return a copy of `graph` whose `node` has its writes changed. Not recompiled."""
        old = graph.nodes[node]
        nodes = {**graph.nodes, node: old.copy({"writers": [self, *old.writers]})}
        return graph.copy({"nodes": nodes})

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002 - LangChain's names
        found = (config or {}).get("metadata") or {}
        route = tuple(found.get("langgraph_path") or ())
        here = found.get("langgraph_step"), numbered(route)
        is_it = here == (self._writer.superstep, self._writer.number)
        return self._changed(input) if is_it else input

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
