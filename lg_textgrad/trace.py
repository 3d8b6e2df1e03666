"""Run -> dependency graph: who fed whom, in which order to walk back, and what to leave out. Pure.

Executions are vertices. An edge says that `consumer` used what `producer` wrote to `channel`.
Writes become readable at the superstep barrier, so an execution's producers are fixed when it
starts: of a last-value channel the writers of the latest earlier superstep, of an accumulating
channel every earlier writer since the last `Overwrite`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lg_textgrad.run import Execution, Run

SEND = "__send__"
"""Channel of an edge by `Send`: the producer made the consumer's whole input."""
ROUTE = "__route__"
"""Channel of an edge by routing: the producer decided that the consumer runs."""
RETURN = "__return__"
"""Channel of an edge from an execution inside a subgraph to the node that hosts it."""


@dataclass(frozen=True, slots=True)
class Edge:
    producer: str
    consumer: str
    channel: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A run as a dependency graph."""

    run: Run
    executions: Mapping[str, Execution]
    """By id, in order of start."""
    edges: Sequence[Edge]
    sinks: Mapping[str, tuple[str, ...]]
    """Output key -> the executions that last wrote it; all writers, if the channel accumulates."""

    @classmethod
    def of(cls, run: Run) -> Trace:
        """Return the run's trace. Linear in executions times the channels that they read."""
        executions = {e.id: e for e in run.executions}
        levels: dict[str | None, list[Execution]] = {}
        for execution in run.executions:
            levels.setdefault(execution.parent, []).append(execution)
        builder = _Builder(levels, run.accumulating)
        builder.build(None, {})
        edges = tuple(dict.fromkeys(builder.edges))
        top = levels.get(None, [])
        keys = list(run.outputs or ()) or sorted({c for e in top for c, _ in e.writes})
        sinks = {key: tuple(builder.last_writers(None, key)) for key in keys}
        return cls(run, executions, edges, {k: v for k, v in sinks.items() if v})

    def producers(self, execution: str) -> dict[str, list[str]]:
        """Return producer -> the channels over which it fed `execution`."""
        found: dict[str, list[str]] = {}
        for edge in self.edges:
            if edge.consumer == execution:
                found.setdefault(edge.producer, []).append(edge.channel)
        return found

    def producers_of_all(self) -> dict[str, dict[str, list[str]]]:
        """Return `producers` of every execution, in one pass over the edges."""
        found: dict[str, dict[str, list[str]]] = {e: {} for e in self.executions}
        for edge in self.edges:
            found[edge.consumer].setdefault(edge.producer, []).append(edge.channel)
        return found

    def reverse_order(self) -> list[str]:
        """Return every execution once, each after all of its consumers."""
        producers = self.producers_of_all()
        waiting = dict.fromkeys(self.executions, 0)
        for fed in producers.values():
            for producer in fed:
                waiting[producer] += 1
        ready = [e for e in reversed(list(self.executions)) if waiting[e] == 0]
        order: list[str] = []
        while ready:
            execution = ready.pop()
            order.append(execution)
            for producer in producers[execution]:
                waiting[producer] -= 1
                if waiting[producer] == 0:
                    ready.append(producer)
        assert len(order) == len(self.executions), "a trace has no cycles: time goes one way"
        return order

    def worth_visiting(self, trainable: Collection[str]) -> set[str]:
        """Return the executions that read a `trainable` parameter or have an ancestor that did.

        To all others feedback means nothing.
        """
        producers = self.producers_of_all()
        found: set[str] = set()
        for execution in reversed(self.reverse_order()):
            own = any(name in trainable for name in self.executions[execution].prompts)
            if own or any(p in found for p in producers[execution]):
                found.add(execution)
        return found


class _Builder:
    """Edges level by level: the top graph first, then what ran inside each of its nodes."""

    def __init__(
        self,
        levels: Mapping[str | None, Sequence[Execution]],
        accumulating: Mapping[str, Sequence[str]],
    ) -> None:
        self.levels = levels
        self.accumulating = accumulating
        self.edges: list[Edge] = []

    def _accumulates(self, level: Sequence[Execution], channel: str) -> bool:
        path = level[0].path.rpartition("/")[0]
        return channel in self.accumulating.get(path, ())

    def build(self, host: str | None, fed: Mapping[str, Sequence[str]]) -> None:
        """Add the edges among the executions inside `host`. `fed`: channel -> who fed the host."""
        level = self.levels.get(host, ())
        # channel -> (superstep of the last write, writers); for accumulating ones all writers.
        current: dict[str, list[tuple[str, str]]] = {
            channel: [(producer, channel) for producer in producers]
            for channel, producers in fed.items()
            if level and self._accumulates(level, channel)
        }
        barrier: list[Execution] = []
        by_step: dict[int, list[Execution]] = {}
        for execution in level:
            by_step.setdefault(execution.superstep, []).append(execution)
        for step in sorted(by_step):
            for execution in by_step[step]:
                self._connect(execution, current, barrier, fed)
            barrier = by_step[step]
            self._write(level, barrier, current)

    def _connect(
        self,
        execution: Execution,
        current: Mapping[str, Sequence[tuple[str, str]]],
        barrier: Sequence[Execution],
        fed: Mapping[str, Sequence[str]],
    ) -> None:
        incoming: dict[str, list[str]] = {}
        if execution.sent_by is not None:
            incoming[SEND] = [execution.sent_by]
        else:
            for channel in _channels_read(execution):
                writers = [producer for producer, _ in current.get(channel, ())]
                incoming[channel] = writers or list(fed.get(channel, ()))
            deciders = [e.id for e in barrier if _node(execution) in e.goto]
            if deciders:
                incoming[ROUTE] = deciders
        for channel, producers in incoming.items():
            self.edges.extend(
                Edge(p, execution.id, channel) for p in producers if p != execution.id
            )
        if execution.id in self.levels:
            # What runs inside reads what its host was given.
            everything = {p: None for producers in incoming.values() for p in producers}
            inner = {c: p for c, p in incoming.items() if c not in (SEND, ROUTE)}
            wanted = _inner_channels(self.levels[execution.id])
            if SEND in incoming or inner.keys().isdisjoint(wanted):
                # The names don't say what became of what, so all of it may have.
                inner = {channel: list(everything) for channel in wanted}
            self.build(execution.id, inner)
            for sink in self._inner_sinks(execution.id):
                self.edges.append(Edge(sink, execution.id, RETURN))

    def _inner_sinks(self, host: str) -> list[str]:
        inside = [e.id for e in self.levels[host]]
        used = {edge.producer for edge in self.edges if edge.consumer in set(inside)}
        return [e for e in inside if e not in used]

    def _write(
        self,
        level: Sequence[Execution],
        barrier: Sequence[Execution],
        current: dict[str, list[tuple[str, str]]],
    ) -> None:
        written: dict[str, list[tuple[str, str]]] = {}
        overwritten: set[str] = set()
        for execution in barrier:
            for channel in dict.fromkeys(c for c, _ in execution.writes):
                sources = self._through(execution, channel)
                if channel in execution.overwrites:
                    overwritten.add(channel)
                    written[channel] = [(s, channel) for s in sources]
                elif channel not in overwritten:
                    written.setdefault(channel, []).extend((s, channel) for s in sources)
        for channel, writers in written.items():
            keep = self._accumulates(level, channel) and channel not in overwritten
            current[channel] = [*current.get(channel, ()), *writers] if keep else writers

    def _through(self, execution: Execution, channel: str) -> list[str]:
        """Return who really wrote: a subgraph's host only hands on what was written inside."""
        if execution.id not in self.levels or execution.model_calls:
            return [execution.id]
        inner = self.last_writers(execution.id, channel)
        return inner or [execution.id]

    def last_writers(self, host: str | None, channel: str) -> list[str]:
        """Return who wrote `channel` last among the executions inside `host`."""
        level = self.levels.get(host, ())
        current: dict[str, list[tuple[str, str]]] = {}
        by_step: dict[int, list[Execution]] = {}
        for execution in level:
            by_step.setdefault(execution.superstep, []).append(execution)
        for step in sorted(by_step):
            self._write(level, by_step[step], current)
        return [producer for producer, _ in current.get(channel, ())]


def _node(execution: Execution) -> str:
    return execution.path.rpartition("/")[2]


def _channels_read(execution: Execution) -> Iterable[str]:
    """Return the channels that the node was given and really read; all, where that isn't known."""
    given = list(execution.inputs) if isinstance(execution.inputs, Mapping) else ["__root__"]
    if execution.reads is None:
        return given
    return [channel for channel in given if channel in execution.reads]


def _inner_channels(level: Sequence[Execution]) -> list[str]:
    return list(dict.fromkeys(c for e in level for c in _channels_read(e)))
