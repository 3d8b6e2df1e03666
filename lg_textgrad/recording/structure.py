"""What a compiled graph says about itself: its subgraphs, channels, routers and code."""

from __future__ import annotations

import inspect
from typing import Any

from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.topic import Topic
from langgraph.pregel import Pregel

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


def accumulating_channels(graph: AnyGraph) -> dict[str, tuple[str, ...]]:
    """Return graph path -> channels that keep what every writer wrote."""
    return {
        path: tuple(
            sorted(
                name
                for name, channel in sub.channels.items()
                if isinstance(channel, BinaryOperatorAggregate | Topic)
                and not name.startswith("__")
            )
        )
        for path, sub in graphs_by_path(graph).items()
    }


def routers(graph: AnyGraph) -> dict[str, set[str] | None]:
    """Return path of node -> where its conditional edges may lead; None where that isn't said."""
    found: dict[str, set[str] | None] = {}
    for prefix, sub in graphs_by_path(graph).items():
        branches = getattr(getattr(sub, "builder", None), "branches", {})
        for node, specs in branches.items():
            ends: set[str] | None = set()
            for spec in specs.values():
                if spec.ends is None or ends is None:
                    ends = None
                else:
                    ends |= set(spec.ends.values())
            found[f"{prefix}/{node}" if prefix else node] = ends
    return found


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
                }
                for n, p in sub.nodes.items()
            },
        }
        for path, sub in graphs_by_path(graph).items()
    }


def _code(bound: Any) -> str | None:
    """Return the source of a node's function; None where it has none that can be read."""
    function: Any = getattr(bound, "afunc", None) or getattr(bound, "func", None)
    try:
        return inspect.getsource(inspect.unwrap(getattr(function, "func", function)))
    except (OSError, TypeError):
        return None
