"""A copy of a graph that tells what its nodes and conditional edges read. Nothing is recompiled."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.cache.base import BaseCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.pregel import Pregel

from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.structure import AnyGraph
from lg_textgrad.tracking import start_tracking, tracking

_PUSH = "__pregel_push"


def _in_memory(_: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    return InMemorySaver()


def _no_cache(_: BaseCache[Any]) -> None:
    return None


def observing(
    graph: AnyGraph,
    *,
    saver: Callable[[BaseCheckpointSaver[Any]], BaseCheckpointSaver[Any]] = _in_memory,
    cache: Callable[[BaseCache[Any]], BaseCache[Any] | None] = _no_cache,
) -> AnyGraph:
    """Return a copy of `graph` that notes which state keys a node reads, and its subgraphs' nodes.

    Checkpointers are replaced by what `saver` returns, node caches by what `cache` does: none,
    since a cache is keyed by the node's input alone and would answer one candidate with the result
    of another. Nothing is recompiled and `graph` itself stays as it is.
    """
    nodes: dict[str, Any] = {}
    for name, node in graph.nodes.items():
        seen: dict[str, Any] = {"writers": [_watched(writer) for writer in node.writers]}
        if isinstance(node.bound, Pregel):
            inner = observing(node.bound, saver=saver, cache=cache)
            seen["bound"] = inner
            seen["subgraphs"] = [inner if g is node.bound else g for g in node.subgraphs]
        elif name != START and isinstance(node.channels, list):
            seen["bound"] = _seen(node.bound)
        nodes[name] = node.copy(seen)
    changes: dict[str, Any] = {"nodes": nodes}
    if graph.cache is not None:
        changes["cache"] = cache(graph.cache)
    if isinstance(graph.checkpointer, BaseCheckpointSaver):
        changes["checkpointer"] = saver(graph.checkpointer)
    return graph.copy(changes)


def _seen(bound: Any) -> Any:
    """Return a node's body so that it notes what it reads; callbacks get the state as it is.

    A function's runnable stays what it is but for how it is invoked: node caches know it by its
    function.
    """
    if not hasattr(bound, "afunc") or hasattr(type(bound), "model_fields"):
        return _Body(bound)
    seen = copy.copy(bound)
    seen.invoke = functools.partial(_invoke, bound)
    seen.ainvoke = functools.partial(_ainvoke, bound)
    return seen


class _Body(Runnable[Any, Any]):
    """A node's body that is no function: a chain, a model, an agent of another kind."""

    def __init__(self, bound: Runnable[Any, Any]) -> None:
        self._bound = bound

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any  # noqa: A002
    ) -> Any:
        return _invoke(self._bound, input, config, **kwargs)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any  # noqa: A002
    ) -> Any:
        return await _ainvoke(self._bound, input, config, **kwargs)


def _invoke(
    bound: Any, state: Any, config: RunnableConfig | None = None, **kwargs: Any
) -> Any:
    return bound.invoke(_noted(state, config), config, **kwargs)


async def _ainvoke(
    bound: Any, state: Any, config: RunnableConfig | None = None, **kwargs: Any
) -> Any:
    return await bound.ainvoke(_noted(state, config), config, **kwargs)


def _noted(state: Any, config: RunnableConfig | None) -> Any:
    """Return a state that notes reads for the recorders of the run; what a `Send` sent stays."""
    if _PUSH in ((config or {}).get("metadata") or {}).get("langgraph_triggers", ()):
        return state
    noted = tracking(state)
    sheet = start_tracking(noted)
    if sheet is not None:
        for recorder, namespace in _recorders(config):
            recorder.reading(namespace, sheet)
    return noted


def _recorders(config: RunnableConfig | None) -> Iterator[tuple[Recorder, str]]:
    """Yield the recorders of a run, and the namespace of the node that runs."""
    found = config or {}
    namespace = str((found.get("metadata") or {}).get("langgraph_checkpoint_ns", ""))
    for handler in getattr(found.get("callbacks"), "handlers", ()):
        if isinstance(handler, Recorder):
            yield handler, namespace


def _watched(writer: Any) -> Any:
    """Return the writer of a conditional edge so that recorders hear of it; others as they are.

    Callbacks tell of some such edges only, and of none what it read.
    """
    spec: Any = getattr(getattr(writer, "func", None), "__self__", None)
    given = getattr(writer, "kwargs", None)
    if not (hasattr(spec, "path") and hasattr(spec, "_replace") and isinstance(given, dict)):
        return writer
    return spec._replace(path=_Watch(spec.path)).run(given.get("writer"), given.get("reader"))


class _Watch(Runnable[Any, Any]):
    """The function of a conditional edge, which tells the recorders of the run what it did."""

    def __init__(self, path: Runnable[Any, Any]) -> None:
        self._path = path

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any  # noqa: A002
    ) -> Any:
        state = tracking(input)
        sheet = start_tracking(state)
        result = self._path.invoke(state, config, **kwargs)
        _tell(config, sheet, result)
        return result

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any  # noqa: A002
    ) -> Any:
        state = tracking(input)
        sheet = start_tracking(state)
        result = await self._path.ainvoke(state, config, **kwargs)
        _tell(config, sheet, result)
        return result


def _tell(config: RunnableConfig | None, sheet: set[str] | None, result: Any) -> None:
    for recorder, namespace in _recorders(config):
        recorder.routed(namespace, sheet, result)
