"""What a worker needs to know of a graph before its first run, and what it makes of it."""

from __future__ import annotations

import os
import pickle
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langgraph.pregel import Pregel

from lg_textgrad.bindings.base import Binding, Declared
from lg_textgrad.bindings.context import ContextBinding, schema_of
from lg_textgrad.bindings.tool_modes import Tools
from lg_textgrad.discovery import FOUND, discovered_elsewhere
from lg_textgrad.errors import ConfigurationError, GraphError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.locating import load_graph_object
from lg_textgrad.models.base import URL_VARIABLE
from lg_textgrad.parameter import Parameter
from lg_textgrad.recording.live import LiveSource

Carried = tuple[str, Any]
"""A binding: its kind, and what it is made of again."""

@dataclass(frozen=True, slots=True)
class Luggage:
    """What travels once to each worker. Never shown or logged: `environment` may have keys."""

    spec: str
    folder: str
    """Where home runs; `MODULE:GRAPH` counts from there. Empty where code is shipped."""
    path: Sequence[str]
    environment: Mapping[str, str]
    bindings: Sequence[Carried]
    tools: Mapping[str, Any]
    fingerprint: str
    parts: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Luggage({self.spec!r})"


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that has unpacked."""

    source: LiveSource
    bindings: tuple[Binding, ...]
    tools: Tools


def pack(
    graph: TrainableGraph, spec: str, *, env: Sequence[str] = (), shipped: bool = False
) -> Luggage:
    """Return what workers need to run `graph`, which `spec` names.

    `env` names variables of this process's environment that they get. `shipped` says that they have
    the code already. Raises `ConfigurationError` for a variable that is not set, `GraphError` for a
    graph that cannot run elsewhere.
    """
    if not isinstance(spec, str) or ":" not in spec:
        raise GraphError(
            f"Workers import the graph by its name, and '{spec}' is none; give the MODULE:GRAPH "
            "under which they find it."
        )
    source = graph.source
    if not isinstance(source, LiveSource):
        raise GraphError(
            "The graph runs on a server, which is not for an executor to move; leave the executor "
            "out."
        )
    unset = [name for name in env if name not in os.environ]
    if unset:
        raise ConfigurationError(
            f"The variable '{unset[0]}', which workers should get, is not set; set it, or leave it "
            "out of the executor's env."
        )
    given = {name: os.environ[name] for name in env}
    if url := os.environ.get(URL_VARIABLE):  # the embedded model's, for workers of this machine
        given[URL_VARIABLE] = url
    tools = graph.tools
    return Luggage(
        spec,
        "" if shipped else str(Path.cwd()),
        () if shipped else _path(),
        given,
        tuple(_carried(binding) for binding in graph.bindings),
        {"default": tools.default, "modes": tools.modes, "shared": sorted(tools.shared)},
        source.fingerprint,
        source.parts,
    )


def unpack(luggage: Luggage) -> Ready:
    """Load the graph in this process. Raises `GraphError` where it is not the same one as at home.

    What the graph's module discovers when it is imported is taken from home, without a run.
    """
    os.environ.update(luggage.environment)
    if luggage.folder and Path(luggage.folder).is_dir():
        os.chdir(luggage.folder)
    here = [p for p in luggage.path if Path(p).exists()]
    sys.path[:] = [*here, *(p for p in sys.path if p not in here)]
    found = [FOUND[kind].from_plain(data) for kind, data in luggage.bindings if kind in FOUND]
    with discovered_elsewhere(found):
        loaded, _ = load_graph_object(luggage.spec)
    source = loaded.source if isinstance(loaded, TrainableGraph) else None
    if isinstance(loaded, Pregel):
        source = LiveSource(loaded)
    if not isinstance(source, LiveSource):
        raise GraphError(f"'{luggage.spec}' is no compiled graph that a worker can run.")
    if source.fingerprint != luggage.fingerprint:
        parts = source.parts
        differ = [n for n, part in luggage.parts.items() if parts.get(n) != part]
        where = f" It differs in {', '.join(repr(n) for n in differ[:3])}." if differ else ""
        raise GraphError(
            f"The graph '{luggage.spec}' of a worker is not the one of this process.{where} Have "
            "the same code, and the same packages, on all machines."
        )
    return Ready(
        source,
        tuple(_binding(kind, data, source) for kind, data in luggage.bindings),
        Tools(**luggage.tools),
    )


def _path() -> tuple[str, ...]:
    """Return where this process finds the user's own modules."""
    own = {str(Path(p)) for p in sysconfig.get_paths().values()}
    return tuple(str(Path(p or ".").resolve()) for p in sys.path if str(Path(p)) not in own)


def _carried(binding: Binding) -> Carried:
    if isinstance(binding, Declared):
        return "declared", tuple(binding.parameters)
    for kind, cls in FOUND.items():
        if type(binding) is cls:
            return kind, binding.to_plain()
    try:
        if isinstance(binding, ContextBinding):
            fields = list(binding.parameters) if binding.asked else None
            return "context", pickle.dumps((binding.values if binding.asked else None, fields))
        return "other", pickle.dumps(binding)
    except Exception as error:  # whatever a user's context or binding has in it
        raise GraphError(
            f"What a graph's {type(binding).__name__} holds cannot travel to workers "
            f"({type(error).__name__}: {error}); give values that can be pickled."
        ) from error


def _binding(kind: str, data: Any, source: LiveSource) -> Binding:
    if kind == "declared":
        # The candidate is in scope by name; the texts here are never read.
        return Declared({name: Parameter(name, "") for name in data})
    if kind in FOUND:
        return FOUND[kind].from_plain(data)
    if kind == "context":
        values, fields = pickle.loads(data)  # noqa: S301 - from home
        return ContextBinding(schema_of(source), values, fields)
    binding: Binding = pickle.loads(data)  # noqa: S301
    return binding
