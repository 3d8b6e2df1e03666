"""Run -> dependency graph: who fed whom, in which order to walk back, and what to leave out. Pure.

Executions are vertices. An edge says that `consumer` used what `producer` wrote to `channel`.
Writes become readable at the superstep barrier, so an execution's producers are fixed when it
starts: of a last-value channel the writers of the latest earlier superstep, of an accumulating
channel every earlier writer since the last `Overwrite`.

A loop whose n rounds all read one growing list has n²/2 such edges. So executions are held together
by versions of channels: each names who wrote in one superstep and the version that it added to.
Order and pruning walk the versions, linear in executions; `edges` are for those who ask.
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
    """What `consumer` read in `channel`, `producer` wrote; both are ids of executions."""

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
        builder = _Builder(run.executions, run.accumulating)
        written = builder.top()
        if run.outputs and written.keys() == {"__root__"}:
            written = dict.fromkeys(run.outputs, written["__root__"])
        top = [e for e in run.executions if e.parent is None]
        keys = list(run.outputs or ()) or sorted({c for e in top for c, _ in e.writes})
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

    def reached_from(self, executions: Iterable[str]) -> set[str]:
        """Return `executions` and all that they hang on: what can have caused what they wrote."""
        found: set[Vertex] = set()
        waiting: list[Vertex] = list(executions)
        while waiting:
            vertex = waiting.pop()
            if vertex not in found:
                found.add(vertex)
                waiting.extend(self.before(vertex))
        return {v for v in found if isinstance(v, str)}

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


class _Level:
    """What one call of one graph ran inside a host; None hosts the graph itself."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []
        self.written: dict[str, Version] = {}
        """Channel -> what was written inside, and by whom."""

    @property
    def path(self) -> str:
        """The path of the graph. A node's error handler stands a step further inside."""
        return min((e.path.rpartition("/")[0] for e in self.executions), key=len)

    @property
    def by_code(self) -> bool:
        """Whether a node's code made the input, so that the names of its channels say nothing."""
        return any(
            e.sources is not None and e.sources.keys().isdisjoint((SEND, ROUTE))
            for e in self.executions
        )


class _Builder:
    """Versions level by level: the top graph first, then what ran inside each of its nodes."""

    def __init__(
        self, executions: Sequence[Execution], accumulating: Mapping[str, Sequence[str]]
    ) -> None:
        self.accumulating = {path: frozenset(names) for path, names in accumulating.items()}
        self.executions = {e.id: e for e in executions}
        self.hosted: dict[str | None, list[_Level]] = {}
        """Host -> the calls inside of it, by when they began."""
        self.incoming: dict[str, dict[str, Version]] = {}
        self.given: dict[str, dict[str, Version]] = {}
        """Execution -> channel -> the version that it was handed, whether it looked or not."""
        levels: dict[tuple[str | None, str], _Level] = {}
        for execution in executions:
            key = (execution.parent, self._call(execution))
            if key not in levels:
                levels[key] = _Level()
                self.hosted.setdefault(execution.parent, []).append(levels[key])
            levels[key].executions.append(execution)
        for calls in self.hosted.values():
            calls.sort(key=lambda level: min(e.started for e in level.executions))

    def _call(self, execution: Execution) -> str:
        """Return which of its host's calls an execution belongs to."""
        if execution.called:
            return execution.id  # a task that code called is a call by itself
        host = self.executions.get(execution.parent or "")
        if host is None:
            return ""
        inside = execution.namespace.removeprefix(f"{host.namespace}|")
        number = inside.partition("|")[0]
        return number if number.isdigit() else ""

    def top(self) -> dict[str, Version]:
        """Build everything, and return channel -> who wrote the graph's output."""
        written: dict[str, Version] = {}
        for level in self.hosted.get(None, ()):
            self.build(level, {}, ())
            written.update(level.written)
        return written

    def build(self, level: _Level, fed: Mapping[str, Version], deciders: tuple[str, ...]) -> None:
        """Work out who fed the executions of a level.

        `fed`: channel -> who fed the graph; `deciders`: who decided that it runs at all.
        """
        keeps = self.accumulating.get(level.path, frozenset())
        current = {channel: version for channel, version in fed.items() if channel in keeps}
        by_step: dict[int, list[Execution]] = {}
        for execution in level.executions:
            by_step.setdefault(execution.superstep, []).append(execution)
        chosen = {_node(e): list(deciders) for e in by_step[min(by_step)]}
        for step in sorted(by_step):
            for execution in by_step[step]:
                self._connect(execution, current, fed, chosen.get(_node(execution), []))
            for execution in by_step[step]:
                # A deferred node runs later than what chose it.
                chosen.pop(_node(execution), None)
            for execution in by_step[step]:
                for target in dict.fromkeys(execution.goto):
                    chosen.setdefault(target, []).extend(self._deciders(execution, target))
            self._write(level, by_step[step], current, keeps)

    def _write(
        self,
        level: _Level,
        barrier: Sequence[Execution],
        current: dict[str, Version],
        keeps: frozenset[str],
    ) -> None:
        """Take over what one superstep wrote."""
        for channel, (writers, handed, anew) in self._writes(barrier).items():
            if not writers and not handed:
                continue  # handed on from the graph's input, which nobody wrote
            for state in (current, level.written):
                kept = channel in keeps and channel in state and not anew
                before = (state[channel],) if kept else ()
                state[channel] = Version(writers, (*before, *handed))
        for execution in barrier:
            for channel, gone in execution.erased.items():
                for state in (current, level.written):
                    if channel in state:
                        state[channel] = _without(state[channel], set(gone))

    def _connect(
        self,
        execution: Execution,
        current: Mapping[str, Version],
        fed: Mapping[str, Version],
        deciders: Sequence[str],
    ) -> None:
        given: dict[str, Version] = {}
        sources = execution.sources or {}
        if execution.sent_by is not None:
            given[SEND] = Version((execution.sent_by,))
        elif SEND in sources:
            given[SEND] = self._origin(execution, sources[SEND])
        elif execution.called:
            given = {key: self._origin(execution, where) for key, where in sources.items()}
            given = {key: version for key, version in given.items() if not _is_empty(version)}
        else:
            for channel in _channels_given(execution):
                version = current.get(channel) or fed.get(channel)
                if version is not None:
                    given[channel] = version
        routed = [*deciders, *(place for place, _ in sources.get(ROUTE, ()))]
        if routed and SEND not in given:
            given[ROUTE] = Version(tuple(dict.fromkeys(routed)))
        self.given[execution.id] = given
        read = execution.reads
        incoming = {
            channel: version
            for channel, version in given.items()
            if read is None or channel in read or channel in (SEND, ROUTE)
        }
        self.incoming[execution.id] = incoming
        if execution.id in self.hosted:
            returned = self._inside(execution, given)
            if returned:
                incoming[RETURN] = Version(returned)

    def _inside(self, host: Execution, given: Mapping[str, Version]) -> tuple[str, ...]:
        """Build what ran inside of `host`, and return who in there it hangs on."""
        for level in self.hosted[host.id]:
            if level.by_code:
                found = level.executions[0].sources or {}
                sources = {k: v for k, v in found.items() if k not in (SEND, ROUTE)}
                fed = {key: self._origin_in(host, where) for key, where in sources.items()}
                fed = {key: version for key, version in fed.items() if not _is_empty(version)}
                self.build(level, fed, ())
            else:
                fed = _by_name(given, level, certain=host.reads is not None)
                fed = self._and_returned(host, level, fed)
                self.build(level, fed, _writers(given.get(ROUTE)))
        returned = self._inner_sinks(host.id, given.values())
        made_of: list[Version] = []
        if "*" in host.passed:
            made_of = [self._origin_in(host, [p for p in host.passed["*"] if p[0]])]
        else:
            # Its code may have used all that came back.
            by_code = [level for level in self.hosted[host.id] if level.by_code]
            made_of = [version for level in by_code for version in level.written.values()]
        writers = dict.fromkeys(w for version in made_of for w in version.all_writers())
        used = [w for w in writers if self._is_inside(w, host.id)]
        return tuple(
            w for w in dict.fromkeys([*used, *returned]) if not self.executions[w].discarded
        )

    def _and_returned(
        self, host: Execution, level: _Level, fed: dict[str, Version]
    ) -> dict[str, Version]:
        """Return also what had come back before a call, where nobody saw what its input was."""
        began = min(e.started for e in level.executions)
        back = [
            version
            for other in self.hosted[host.id]
            if all(e.started + e.seconds <= began and not e.discarded for e in other.executions)
            for version in other.written.values()
        ]
        if not back or host.reads is not None:
            return fed
        wanted = dict.fromkeys((*fed, *(c for e in level.executions for c in _channels_given(e))))
        return {c: Version((), tuple(v for v in (fed.get(c), *back) if v)) for c in wanted}

    def _is_inside(self, execution: str, host: str) -> bool:
        at: str | None = execution
        while at is not None and at != host:
            at = self.executions[at].parent
        return at == host

    def _inner_sinks(self, host: str, fed: Iterable[Version]) -> list[str]:
        """Return who inside `host` fed nobody else inside of it."""
        inside = [e.id for level in self.hosted[host] for e in level.executions]
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

    def _origin(self, execution: Execution, where: Sequence[Sequence[str]]) -> Version:
        """Return the version that stands for places named by an execution."""
        host = self.executions.get(execution.parent or "")
        return self._origin_in(host, where)

    def _origin_in(self, host: Execution | None, where: Iterable[Sequence[str]]) -> Version:
        found: dict[int, Version] = {}
        for place, name in where:
            if place:
                version = self._result(self.executions[place], name)
                found[id(version)] = version
            elif host is not None:
                given = self.given.get(host.id, {})
                handed = given.values() if name == "*" or SEND in given else [given.get(name)]
                found.update((id(v), v) for v in handed if v is not None)
        versions = list(found.values())
        return versions[0] if len(versions) == 1 else Version((), tuple(versions))

    def _result(self, execution: Execution, channel: str) -> Version:
        """Return who really wrote what an execution left in a channel: "*" for all of them."""
        if channel != "*":
            writers, handed = self._through(execution, channel)
            if writers or handed:
                return Version(tuple(writers), tuple(handed))
        return Version((execution.id,))

    def _writes(
        self, barrier: Sequence[Execution]
    ) -> dict[str, tuple[tuple[str, ...], tuple[Version, ...], bool]]:
        """Return channel -> who wrote it in one superstep, what was handed on, and if anew."""
        written: dict[str, tuple[list[str], list[Version]]] = {}
        overwritten: set[str] = set()
        for execution in barrier:
            for channel in dict.fromkeys(c for c, _ in execution.writes):
                sources = self._through(execution, channel)
                if channel in execution.overwrites:
                    overwritten.add(channel)
                    written[channel] = sources
                elif channel not in overwritten:
                    writers, handed = written.setdefault(channel, ([], []))
                    writers.extend(sources[0])
                    handed.extend(sources[1])
        return {
            c: (tuple(dict.fromkeys(w)), tuple(h), c in overwritten)
            for c, (w, h) in written.items()
        }

    def _through(self, execution: Execution, channel: str) -> tuple[list[str], list[Version]]:
        """Return who really wrote, and what was only handed on.

        A subgraph's host writes every key: those that nobody inside of it wrote are what it got.
        """
        itself = ([execution.id], list[Version]())
        levels = self.hosted.get(execution.id, [])
        if channel in execution.passed:
            version = self._origin_in(execution, execution.passed[channel])
            return itself if _is_empty(version) else ([], [version])
        if not levels or execution.model_calls or levels[-1].by_code:
            return itself
        level = levels[-1]  # the last attempt
        if channel in level.written:
            return ([], [level.written[channel]])
        if execution.reads == frozenset():
            handed = self.given[execution.id].get(channel)
            return ([], [] if handed is None else [handed])
        return itself

    def _deciders(self, execution: Execution, target: str) -> list[str]:
        """Return who chose a node: the execution, or the one inside that handed over to it."""
        for level in self.hosted.get(execution.id, ()):
            last = max(e.superstep for e in level.executions)
            inner = [e for e in level.executions if e.superstep == last and target in e.goto]
            if inner:
                return [d for e in inner for d in self._deciders(e, target)]
        return [execution.id]


def _is_empty(version: Version) -> bool:
    return not version.writers and all(_is_empty(v) for v in version.before)


def _writers(version: Version | None) -> tuple[str, ...]:
    return () if version is None else version.writers


def _without(version: Version, gone: set[str]) -> Version:
    """Return a version without those of whom nothing is left in it."""
    return Version(tuple(w for w in version.all_writers() if w not in gone))


def _by_name(
    given: Mapping[str, Version], level: _Level, *, certain: bool
) -> dict[str, Version]:
    """Return what a graph that is a node was fed, by channel.

    `certain`: that it is the node itself. Else a node's code may have called it.
    """
    fed = {c: v for c, v in given.items() if c not in (SEND, ROUTE)}
    wanted = dict.fromkeys(c for e in level.executions for c in _channels_given(e))
    unlike = not certain and fed and fed.keys().isdisjoint(wanted)
    if given and (SEND in given or unlike):
        # The names don't say what became of what, so all of it may have.
        everything = Version((), tuple({id(v): v for v in given.values()}.values()))
        return dict.fromkeys(wanted, everything)
    return fed


def _node(execution: Execution) -> str:
    return execution.path.rpartition("/")[2]


def _channels_given(execution: Execution) -> Iterable[str]:
    return list(execution.inputs) if isinstance(execution.inputs, Mapping) else ["__root__"]
