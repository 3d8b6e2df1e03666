"""What a run has of its own, in place of what the user's graphs keep from one run to the next.

The graph that is recorded is copied before it runs. A node's code may call others, which nobody
sees before: those are replaced when they are called, as long as the run is in scope.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore

from lg_textgrad.bindings.patching import register, replaced
from lg_textgrad.recording.stores import RunStore
from lg_textgrad.recording.structure import AnyGraph


class RunSaver(InMemorySaver):
    """A checkpointer that one run has for itself."""


class Belongings:
    """The checkpointers and stores of one run, and the graphs that have them.

    `store` is that of the graph which is recorded, `own_store` what the run has in its place.
    """

    def __init__(self, store: BaseStore | None = None) -> None:
        self._stores: dict[int, tuple[BaseStore, RunStore]] = {}
        self.own_store: RunStore | None = None
        if store is not None:
            self.own_store = RunStore(store, told=True)
            self._stores[id(store)] = (store, self.own_store)
        self._graphs: dict[int, tuple[AnyGraph, AnyGraph]] = {}
        self._savers: dict[int, tuple[Any, RunSaver]] = {}
        self._guard = threading.RLock()

    def saver(self, saver: BaseCheckpointSaver[Any] | None = None) -> BaseCheckpointSaver[Any]:
        """Return the run's own in place of `saver`: empty, and writing values as that one does."""
        if saver is None or isinstance(saver, RunSaver):
            return saver or RunSaver()
        with self._guard:
            if id(saver) not in self._savers:
                self._savers[id(saver)] = (saver, RunSaver(serde=saver.serde))
            return self._savers[id(saver)][1]

    def store(self, store: BaseStore) -> RunStore:
        """Return the run's own view of `store`, in which it writes to nobody else."""
        if isinstance(store, RunStore):
            return store
        with self._guard:
            if id(store) not in self._stores:
                self._stores[id(store)] = (store, RunStore(store))
            return self._stores[id(store)][1]

    def graph(self, graph: AnyGraph) -> AnyGraph:
        """Return a copy of `graph` that leaves nothing behind; itself where it doesn't anyway."""
        with self._guard:
            if id(graph) not in self._graphs:
                self._graphs[id(graph)] = (graph, self._copied(graph))
            return self._graphs[id(graph)][1]

    def _copied(self, graph: AnyGraph) -> AnyGraph:
        changes: dict[str, Any] = {}
        nodes = dict(graph.nodes)
        for name, node in graph.nodes.items():
            if isinstance(node.bound, Pregel) and self.graph(node.bound) is not node.bound:
                inner = self.graph(node.bound)
                subgraphs = [inner if g is node.bound else g for g in node.subgraphs]
                nodes[name] = node.copy({"bound": inner, "subgraphs": subgraphs})
                changes["nodes"] = nodes
        if graph.cache is not None:
            changes["cache"] = None
        if isinstance(graph.checkpointer, BaseCheckpointSaver):
            own = self.saver(graph.checkpointer)
            if own is not graph.checkpointer:
                changes["checkpointer"] = own
        if graph.store is not None and self.store(graph.store) is not graph.store:
            changes["store"] = self.store(graph.store)
        return graph.copy(changes) if changes else graph


_own: ContextVar[Belongings | None] = ContextVar("lg_textgrad_belongings", default=None)


@contextmanager
def having(own: Belongings) -> Iterator[None]:
    """Have every graph that the current context calls keep what it keeps in `own`."""
    with replaced():
        token = _own.set(own)
        try:
            yield
        finally:
            _own.reset(token)


def _kept_apart(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: AnyGraph, *args: Any, **kwargs: Any) -> Any:
        own = _own.get()
        return original(self if own is None else own.graph(self), *args, **kwargs)

    return method


for _name in (
    "invoke", "ainvoke", "stream", "astream", "stream_events", "astream_events",
    "get_state", "aget_state", "get_state_history", "aget_state_history",
    "update_state", "aupdate_state", "bulk_update_state", "abulk_update_state",
):  # fmt: skip
    register(_name, _kept_apart, of=Pregel, subclasses=True)
