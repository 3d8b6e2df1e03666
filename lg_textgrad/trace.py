"""Run -> dependency graph: who fed whom, in which order to walk back, and what to leave out. Pure.

Executions are vertices. An edge says that `consumer` used what `producer` wrote to `channel`.
Writes become readable at the superstep barrier, so an execution's producers are fixed when it
starts: of a last-value channel the writers of the latest earlier superstep, of an accumulating
channel every earlier writer since the last `Overwrite`.

A loop whose n rounds all read one growing list has n²/2 such edges. So executions are held together
by versions of channels: each names who wrote in one superstep and the version that it added to.
Order and pruning walk the versions, in time and memory linear in executions; `edges` are written
out only for those who ask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """What stood in a channel after one superstep, by who wrote it."""

    writers: tuple[str, ...]
    """The executions that wrote in that superstep."""
    before: tuple[Version, ...] = ()
    """What the channel kept from before; empty where the last value counts."""

    def all_writers(self) -> list[str]:
        """Return everyone who stands behind the value, the earliest first, once each."""
        found: dict[str, None] = {}
        seen: set[int] = set()
        waiting: list[tuple[Version, bool]] = [(self, False)]
        while waiting:
            version, entered = waiting.pop()
            if entered:
                found.update(dict.fromkeys(version.writers))
            elif id(version) not in seen:
                seen.add(id(version))
                waiting.append((version, True))
                waiting.extend((v, False) for v in reversed(version.before))
        return list(found)


Vertex = str | Version
"""An execution's id, or a version of a channel."""


@dataclass(frozen=True)
class Trace:
    """A run as a dependency graph."""

    run: Run
    executions: Mapping[str, Execution]
    """By id, in order of start."""
    incoming: Mapping[str, Mapping[str, Version]]
    """Execution -> channel -> the version that it used."""
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
        top = levels.get(None, [])
        keys = list(run.outputs or ()) or sorted({c for e in top for c, _ in e.writes})
        written = builder.written[None]
        sinks = {key: tuple(written[key].all_writers()) for key in keys if key in written}
        return cls(run, executions, builder.incoming, sinks)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge. Quadratic in the executions that read and write one growing channel."""
        return tuple(
            Edge(producer, consumer, channel)
            for consumer in self.executions
            for producer, channels in self.producers(consumer).items()
            for channel in channels
        )

    def producers(self, execution: str) -> dict[str, list[str]]:
        """Return producer -> the channels over which it fed `execution`."""
        found: dict[str, list[str]] = {}
        for channel, version in self.incoming.get(execution, {}).items():
            for producer in version.all_writers():
                if producer != execution:
                    found.setdefault(producer, []).append(channel)
        return found

    def before(self, vertex: Vertex) -> Iterator[Vertex]:
        """Yield what a vertex hangs on directly: versions for an execution, else who made it."""
        if isinstance(vertex, Version):
            yield from vertex.writers
            yield from vertex.before
        else:
            yield from {id(v): v for v in self.incoming.get(vertex, {}).values()}.values()

    def vertices_in_reverse(self) -> list[Vertex]:
        """Return executions and versions, each after everything that hangs on it."""
        waiting = self.dependents()
        ready: list[Vertex] = [
            e for e in reversed(list(self.executions)) if not waiting.get(e)
        ]
        order: list[Vertex] = []
        while ready:
            vertex = ready.pop()
            order.append(vertex)
            for other in self.before(vertex):
                waiting[other] -= 1
                if waiting[other] == 0:
                    ready.append(other)
        return order

    def dependents(self) -> dict[Vertex, int]:
        """Return how many vertices hang directly on each one that any hangs on."""
        counts: dict[Vertex, int] = {}
        seen: set[Version] = set()
        todo: list[Vertex] = list(self.executions)
        while todo:
            for other in self.before(todo.pop()):
                counts[other] = counts.get(other, 0) + 1
                if isinstance(other, Version) and other not in seen:
                    seen.add(other)
                    todo.append(other)
        return counts

    def reverse_order(self) -> list[str]:
        """Return every execution once, each after all of its consumers."""
        order = [v for v in self.vertices_in_reverse() if isinstance(v, str)]
        assert len(order) == len(self.executions), "a trace has no cycles: time goes one way"
        return order

    def worth_visiting(self, trainable: Collection[str]) -> set[str]:
        """Return the executions that read a `trainable` parameter or have an ancestor that did.

        To all others feedback means nothing.
        """
        found: set[Vertex] = set()
        for vertex in reversed(self.vertices_in_reverse()):
            own = isinstance(vertex, str) and any(
                name in trainable for name in self.executions[vertex].prompts
            )
            if own or any(other in found for other in self.before(vertex)):
                found.add(vertex)
        return {v for v in found if isinstance(v, str)}


class _Builder:
    """Versions level by level: the top graph first, then what ran inside each of its nodes."""

    def __init__(
        self,
        levels: Mapping[str | None, Sequence[Execution]],
        accumulating: Mapping[str, Sequence[str]],
    ) -> None:
        self.levels = levels
        self.accumulating = {path: frozenset(names) for path, names in accumulating.items()}
        self.incoming: dict[str, dict[str, Version]] = {}
        self.written: dict[str | None, dict[str, Version]] = {}
        """Host -> channel -> what was written inside of it."""

    def build(self, host: str | None, fed: Mapping[str, Version]) -> None:
        """Work out who fed the executions inside `host`. `fed`: channel -> who fed the host."""
        level = self.levels.get(host, ())
        path = level[0].path.rpartition("/")[0] if level else ""
        keeps = self.accumulating.get(path, frozenset())
        current = {channel: version for channel, version in fed.items() if channel in keeps}
        written = self.written[host] = {}
        barrier: list[Execution] = []
        by_step: dict[int, list[Execution]] = {}
        for execution in level:
            by_step.setdefault(execution.superstep, []).append(execution)
        for step in sorted(by_step):
            for execution in by_step[step]:
                self._connect(execution, current, barrier, fed)
            barrier = by_step[step]
            for channel, (writers, anew) in self._writes(barrier).items():
                for state in (current, written):
                    kept = channel in keeps and channel in state and not anew
                    state[channel] = Version(writers, (state[channel],) if kept else ())

    def _connect(
        self,
        execution: Execution,
        current: Mapping[str, Version],
        barrier: Sequence[Execution],
        fed: Mapping[str, Version],
    ) -> None:
        incoming: dict[str, Version] = {}
        if execution.sent_by is not None:
            incoming[SEND] = Version((execution.sent_by,))
        else:
            for channel in _channels_read(execution):
                version = current.get(channel) or fed.get(channel)
                if version is not None:
                    incoming[channel] = version
            deciders = tuple(e.id for e in barrier if _node(execution) in e.goto)
            if deciders:
                incoming[ROUTE] = Version(deciders)
        self.incoming[execution.id] = incoming
        if execution.id in self.levels:
            # What runs inside reads what its host was given.
            inner = {c: v for c, v in incoming.items() if c not in (SEND, ROUTE)}
            wanted = _inner_channels(self.levels[execution.id])
            if incoming and (SEND in incoming or inner.keys().isdisjoint(wanted)):
                # The names don't say what became of what, so all of it may have.
                everything = Version((), tuple({id(v): v for v in incoming.values()}.values()))
                inner = dict.fromkeys(wanted, everything)
            self.build(execution.id, inner)
            incoming[RETURN] = Version(tuple(self._inner_sinks(execution.id, inner.values())))

    def _inner_sinks(self, host: str, fed: Iterable[Version]) -> list[str]:
        """Return who inside `host` fed nobody else inside of it."""
        inside = [e.id for e in self.levels[host]]
        used: set[str] = set()
        # What came from outside was written by nobody in here, and may be long.
        seen = {id(version) for version in fed}
        todo = [v for e in inside for v in self.incoming[e].values()]
        while todo:
            version = todo.pop()
            if id(version) not in seen:
                seen.add(id(version))
                used.update(version.writers)
                todo.extend(version.before)
        return [e for e in inside if e not in used]

    def _writes(self, barrier: Sequence[Execution]) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Return channel -> who wrote it in one superstep, and whether that was an `Overwrite`."""
        written: dict[str, list[str]] = {}
        overwritten: set[str] = set()
        for execution in barrier:
            for channel in dict.fromkeys(c for c, _ in execution.writes):
                sources = self._through(execution, channel)
                if channel in execution.overwrites:
                    overwritten.add(channel)
                    written[channel] = sources
                elif channel not in overwritten:
                    written.setdefault(channel, []).extend(sources)
        return {c: (tuple(w), c in overwritten) for c, w in written.items()}

    def _through(self, execution: Execution, channel: str) -> list[str]:
        """Return who really wrote: a subgraph's host only hands on what was written inside."""
        if execution.id not in self.levels or execution.model_calls:
            return [execution.id]
        inner = self.written[execution.id].get(channel)
        return inner.all_writers() if inner is not None else [execution.id]


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
