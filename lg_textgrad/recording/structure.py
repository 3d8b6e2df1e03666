"""What a compiled graph says about itself: its subgraphs, channels, routers and code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.runnables.config import run_in_executor
from langgraph.channels.topic import Topic
from langgraph.constants import END, START
from langgraph.graph import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Send

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad.run import node_path as node_path  # noqa: PLC0414 - recording knows it from here

AnyGraph = Pregel[Any, Any, Any, Any]


def host_of(namespace: str) -> str | None:
    """Return the namespace of the execution that this one ran inside of."""
    parts = namespace.split("|")[:-1]
    while parts and parts[-1].isdigit():
        parts.pop()
    return "|".join(parts) if parts else None


def graphs_by_path(graph: AnyGraph) -> dict[str, AnyGraph]:
    """Return graph path -> graph, "" for the top, with every subgraph that LangGraph can see.

    A graph that runs on a server shows nothing of its inside, and is a node like any other here.
    """
    found = {"": graph}
    for name, sub in graph.get_subgraphs(recurse=True):
        if isinstance(sub, Pregel):
            found[node_path(name)] = sub
    return found


@dataclass(frozen=True, slots=True)
class Router:
    """One conditional edge of a node."""

    ends: Mapping[Any, str] | None
    """What its function returns -> the node that it leads to; None where that isn't said."""
    traced: bool
    """Whether its function shows up in callbacks."""

    def leads_to(self, result: Any) -> list[str]:
        """Return the nodes that a result of the function stands for; Sends are no names."""
        found = result if isinstance(result, list | tuple) else [result]
        names = [one for one in found if not isinstance(one, Send)]
        if self.ends is None:
            return [str(name) for name in names]
        return [self.ends[name] for name in names if name in self.ends]


@dataclass(frozen=True, slots=True)
class Node:
    """What a recorder has to know of a node to read what it is given and what it returns."""

    channel: str | None = None
    """The one channel whose value it is given as it is; None for a state of several channels."""
    is_graph: bool = False
    """Whether it is a subgraph and nothing else."""
    routers: tuple[Router, ...] = ()
    writes: tuple[Any, ...] | None = None
    """What a node of a `Pregel` made by hand writes; None where it returns state updates."""
    writable: frozenset[str] | None = None
    """The channels that its updates reach: LangGraph drops the rest. None for all."""
    whole: bool = False
    """Whether the state is one value and not channels by name."""
    function: Any = None


UNKNOWN = Node()
"""A node of a graph that LangGraph could not see before it ran."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What recorders know of a graph before it runs, by path: "" is the graph itself."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    accumulating: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Graph path -> channels that keep what every writer wrote."""
    messages: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Graph path -> those of them in which messages replace and remove each other by their ids."""

    @classmethod
    def of(cls, graph: AnyGraph) -> Structure:
        """Return the structure of a graph and of every subgraph that LangGraph can see."""
        graphs = graphs_by_path(graph)
        return cls(
            {
                f"{path}/{name}" if path else name: _node(sub, name, node)
                for path, sub in graphs.items()
                for name, node in sub.nodes.items()
            },
            {path: _channels(sub, _accumulates) for path, sub in graphs.items()},
            {path: frozenset(_channels(sub, _merges_messages)) for path, sub in graphs.items()},
        )

    def node(self, path: str, *, handles: bool = False) -> Node:
        """Return what is known of a node. The handler of another's error stands beside that one."""
        above, _, name = path.rpartition("/")
        if handles:
            above = above.rpartition("/")[0]
            path = f"{above}/{name}" if above else name
        return self.nodes.get(path, UNKNOWN)

    @property
    def leads(self) -> dict[str, set[str] | None]:
        """Path of node -> where its conditional edges may lead; None where that isn't said."""
        found: dict[str, set[str] | None] = {}
        for path, node in self.nodes.items():
            ends = [router.ends for router in node.routers]
            if any(e is None for e in ends):
                found[path] = None
            elif ends:
                found[path] = {target for e in ends for target in (e or {}).values()}
        return found

    @property
    def by_hand(self) -> Structure:
        """What is known of the nodes of a `Pregel` made by hand, whose returns name no channel."""
        return Structure({path: node for path, node in self.nodes.items() if node.writes})

    def knows(self, path: str, nodes: Iterable[str]) -> bool:
        """Return whether the graph at `path` is known and is the one that has these nodes.

        A node's function may call several graphs, of which LangGraph sees the first.
        """
        return path in self.accumulating and all(
            (f"{path}/{name}" if path else name) in self.nodes for name in nodes
        )


def _node(graph: Any, name: str, node: Any) -> Node:
    by_hand = not isinstance(graph, CompiledStateGraph)
    branches = {} if by_hand else graph.builder.branches.get(name, {})
    bound = node.bound
    function = getattr(bound, "func", None) or getattr(bound, "afunc", None)
    one = isinstance(node.channels, str) and node.channels != START
    writable = frozenset() if by_hand else _writable(graph.builder, name)
    return Node(
        channel=node.channels if by_hand and one else None,
        is_graph=isinstance(bound, Pregel),
        routers=tuple(
            Router(spec.ends, getattr(spec.path, "trace", True)) for spec in branches.values()
        ),
        writes=_writes_by_hand(node) if by_hand else None,
        writable=None if by_hand or "__root__" in writable else writable,
        whole="__root__" in writable,
        function=function and inspect.unwrap(function),
    )


def _writable(builder: Any, name: str) -> frozenset[str]:
    if name == START:
        return frozenset(builder.schemas[builder.input_schema])
    return frozenset((*builder.channels, *builder.managed))


def _writes_by_hand(node: Any) -> tuple[Any, ...] | None:
    """Return what a node writes, by channel; None for an entrypoint, which returns the output."""
    entries = [e for w in node.writers for e in getattr(w, "writes", ()) if hasattr(e, "channel")]
    return None if any(e.channel == END for e in entries) else tuple(entries)


def _channels(graph: AnyGraph, wanted: Callable[[Any], bool]) -> tuple[str, ...]:
    found = (name for name, channel in graph.channels.items() if wanted(channel))
    return tuple(sorted(n for n in found if n == "__root__" or not n.startswith("__")))


def _accumulates(channel: Any) -> bool:
    if isinstance(channel, Topic):
        return channel.accumulate
    return _reducer(channel) is not None


def _merges_messages(channel: Any) -> bool:
    reducer = _reducer(channel)
    reducer = getattr(reducer, "func", reducer)
    named = getattr(reducer, "__name__", "") == "_messages_delta_reducer"
    return named or getattr(reducer, "__module__", None) == add_messages.__module__


def _reducer(channel: Any) -> Any:
    return getattr(channel, "operator", None) or getattr(channel, "reducer", None)


def fingerprint(graph: AnyGraph) -> str:
    """Return a hash of nodes, edges, channels and the nodes' own code, of every graph in it."""
    return digest("graph", _shape(graph))[:16]


def parts(graph: AnyGraph) -> dict[str, str]:
    """Return path of node -> hash of its edges and code, and one for the channels of each graph."""
    found = {}
    for path, shape in _shape(graph).items():
        inside = f"{path}/" if path else ""
        for node, described in shape["nodes"].items():
            found[f"{inside}{node}"] = digest(described)[:12]
        found[f"channels of {path}" if path else "channels"] = digest(shape["channels"])[:12]
    return found


def _shape(graph: AnyGraph) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        path: {
            "channels": {n: type(c).__name__ for n, c in sub.channels.items()},
            "nodes": {
                n: {
                    "triggers": list(p.triggers),
                    "channels": to_plain(p.channels),
                    "code": _code(p.bound),
                    **_routing(sub, n),
                }
                for n, p in sub.nodes.items()
            },
        }
        for path, sub in graphs_by_path(graph).items()
    }


def _routing(graph: Any, node: str) -> dict[str, Any]:
    """Return the source of a node's conditional edges; nothing where it has none."""
    found = getattr(getattr(graph, "builder", None), "branches", {}).get(node) or {}
    return {"routers": [_code(spec.path) for spec in found.values()]} if found else {}


def _code(bound: Any) -> str | None:
    """Return the source of a node's function, or of all in its chain; None where none can be read.

    That of an object which can be called is its class's.
    """
    found = [source for part in _functions(bound) if (source := _source(part)) is not None]
    return "\n".join(found) or None


def _functions(bound: Any) -> Iterator[Any]:
    own = [getattr(bound, "func", None), getattr(bound, "afunc", None)]
    # The async one of a sync function is LangGraph's, which calls that in a thread.
    own = [f for f in own if f and getattr(f, "func", None) is not run_in_executor]
    if own:
        yield from own
        return
    for name in _PARTS:
        for part in _runnables(getattr(bound, name, None)):
            yield from _functions(part)


_PARTS = ("bound", "runnable", "steps", "steps__", "mapper", "branches", "default", "fallbacks")
"""Where LangChain's runnables hold those that they are made of."""


def _runnables(held: Any) -> Iterator[Runnable[Any, Any]]:
    if isinstance(held, Runnable):  # may be iterable too, over its fields
        yield held
    elif isinstance(held, Mapping | list | tuple):
        for each in held.values() if isinstance(held, Mapping) else held:
            yield from _runnables(each)


def _source(function: Any) -> str | None:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        function = type(function)
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return None
