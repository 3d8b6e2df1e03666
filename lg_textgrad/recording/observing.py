"""A copy of a graph that tells what its nodes and conditional edges read. Nothing is recompiled."""

from __future__ import annotations

import copy
import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.cache.base import BaseCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.errors import GraphBubbleUp
from langgraph.pregel import Pregel

from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.structure import AnyGraph
from lg_textgrad.tracking import all_keys, start_tracking, tracking

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
    with _noted(bound, state, config) as noted:
        return bound.invoke(noted, config, **kwargs)


async def _ainvoke(
    bound: Any, state: Any, config: RunnableConfig | None = None, **kwargs: Any
) -> Any:
    with _noted(bound, state, config) as noted:
        return await bound.ainvoke(noted, config, **kwargs)


@contextmanager
def _noted(bound: Any, state: Any, config: RunnableConfig | None) -> Iterator[Any]:
    """Yield a state that notes reads for the recorders of the run; what a `Send` sent stays."""
    if _PUSH in ((config or {}).get("metadata") or {}).get("langgraph_triggers", ()):
        yield state
        return
    noted = tracking(state)
    sheet = start_tracking(noted)
    if sheet is not None:
        for recorder, namespace in _recorders(config):
            recorder.reading(namespace, sheet)
    waits = False
    try:
        yield noted
    except GraphBubbleUp:
        waits = True  # it reads when it goes on
        raise
    finally:
        if not waits:
            _suspect(bound, noted, sheet)


def _suspect(bound: Any, state: Any, sheet: set[str] | None) -> None:
    """Count all of a state as read where no read was noted, unless the code has no use for it.

    What is written in C, as orjson, reads a dict without asking it.
    """
    if sheet is not None and not sheet and _looks(bound):
        sheet.update(all_keys(state))


def _looks(bound: Any) -> bool:
    """Return whether the function of a node or conditional edge may look at its first argument."""
    function = getattr(bound, "func", None) or getattr(bound, "afunc", None)
    first = 0
    if isinstance(function, MethodType):
        function, first = function.__func__, 1
    function = inspect.unwrap(function) if callable(function) else None
    return not isinstance(function, FunctionType) or _uses(function.__code__, first)


@functools.lru_cache(maxsize=1024)
def _uses(code: CodeType, number: int) -> bool:
    if number >= code.co_argcount:
        return True  # it comes with others in one name
    name = code.co_varnames[number]
    if name in code.co_cellvars:
        return True
    loaded = (i.argval for i in dis.get_instructions(code) if "LOAD" in i.opname)
    return any(name == each or (isinstance(each, tuple) and name in each) for each in loaded)


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
        _suspect(self._path, state, sheet)
        _tell(config, sheet, result)
        return result

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any  # noqa: A002
    ) -> Any:
        state = tracking(input)
        sheet = start_tracking(state)
        result = await self._path.ainvoke(state, config, **kwargs)
        _suspect(self._path, state, sheet)
        _tell(config, sheet, result)
        return result


def _tell(config: RunnableConfig | None, sheet: set[str] | None, result: Any) -> None:
    for recorder, namespace in _recorders(config):
        recorder.routed(namespace, sheet, result)
