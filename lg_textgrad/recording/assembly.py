"""What a recorder holds -> the executions of a run, in one order whoever finished first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage, RemoveMessage, convert_to_messages
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Send

from lg_textgrad._hashing import digest
from lg_textgrad.recording.doubts import gaps, waiting
from lg_textgrad.recording.origins import Origins, items_of
from lg_textgrad.recording.structure import Structure, host_of
from lg_textgrad.recording.tasks import Task
from lg_textgrad.run import Execution
from lg_textgrad.tracking import fields_of


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """What one call of one graph ran."""

    tasks: list[Task] = field(default_factory=list)
    steps: dict[int, list[Task]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)

    def add(self, task: Task) -> None:
        self.tasks.append(task)
        self.steps.setdefault(task.superstep, []).append(task)
        self.nodes.add(task.node)


@dataclass(frozen=True, slots=True)
class Assembled:
    executions: tuple[Execution, ...]
    accumulating: Mapping[str, tuple[str, ...]]
    """Graph path ("" at the top) -> channels whose reducer keeps what every writer wrote."""
    warnings: tuple[str, ...] = ()


def assemble(found: Iterable[Task], structure: Structure, started: float) -> Assembled:
    """Return the executions of a run that started at `started` on the monotonic clock."""
    tasks = _in_order(found)
    ids: dict[Task, str] = {}
    counts: dict[str, int] = {}
    levels: dict[str, _Level] = {}
    for task in tasks:
        number = counts.get(task.path, 0)
        ids[task], counts[task.path] = f"{task.path}#{number}", number + 1
        levels.setdefault(_level(task), _Level()).add(task)
    accumulating = dict(structure.accumulating)
    erased: dict[Task, dict[str, list[str]]] = {}
    owners = _first_writers(tasks)
    keeps: dict[_Level, Collection[str]] = {}
    for level in levels.values():
        path = min((t.path.rpartition("/")[0] for t in level.tasks), key=len)
        if structure.knows(path, level.nodes):
            merging = structure.messages.get(path, frozenset())
        else:
            merging = _seen_to_accumulate(level.tasks)
            accumulating[path] = tuple(sorted({*accumulating.get(path, ()), *merging}))
        keeps[level] = accumulating.get(path, ())
        for channel in merging:
            _messages(level.tasks, channel, owners, erased, ids)
    senders = _senders(tasks, levels)
    executions = tuple(
        _execution(
            task, order, ids, level, senders.get(task, ()), erased, keeps[level], started
        )
        for order, task in enumerate(tasks)
        for level in (levels[_level(task)],)
    )
    return Assembled(executions, accumulating, (*gaps(tasks), *waiting(tasks)))


def _execution(
    task: Task,
    order: int,
    ids: Mapping[Task, str],
    level: _Level,
    senders: Sequence[Task],
    erased: Mapping[Task, dict[str, list[str]]],
    keeps: Collection[str],
    started: float,
) -> Execution:
    sources = task.sources
    if len(senders) > 1:
        sources = {**(sources or {}), "__send__": {(t, "*"): None for t in senders}}
    if task.is_handler:
        failed = task.route[: task.route.index("node_error_handler")]
        handled = [t for t in level.steps[task.superstep] if t.route == failed]
        sources = {**(sources or {}), "__route__": {(t, "*"): None for t in handled}}
    return Execution(
        id=ids[task],
        namespace=task.namespace,
        path=task.path,
        superstep=task.superstep,
        order=order,
        inputs=task.plain_inputs,
        writes=tuple(task.writes),
        overwrites=frozenset(task.overwrites),
        sends=tuple(send.node for send in task.sends),
        goto=tuple(dict.fromkeys([*task.goto, *_chosen(task, level)])),
        sent_by=ids[senders[0]] if len(senders) == 1 else None,
        reads=frozenset(_routed_by(task, keeps).union(*task.sheets)) if task.sheets else None,
        parent=None if task.caller is None else ids.get(task.caller),
        prompts=dict(task.prompts),
        model_calls=tuple(task.model_calls.values()),
        tool_calls=tuple(task.tool_calls.values()),
        error=task.error,
        seconds=max(0.0, task.ended - task.started),
        started=max(0.0, task.started - started),
        attempts=task.attempts,
        interrupts=list(task.interrupts.values()),
        sources=None if sources is None else _places(sources, ids),
        passed=_places(task.passed, ids),
        erased=erased.get(task, {}),
        called=task.is_call,
        number=task.number,
        discarded=task.discarded,
    )


def _senders(
    tasks: Sequence[Task], levels: Mapping[str, _Level]
) -> dict[Task, Sequence[Task]]:
    """Return who sent each task that was sent: several where it may have been any of them.

    Sends are carried out in the order of those who sent. One that nothing told of came from the
    superstep before; where that had one task only, it is that task's.
    """
    seen: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        for send in task.sends:
            key = (_level(task), task.superstep + 1, send.node, id(send.arg))
            seen.setdefault(key, []).append(task)
    found: dict[Task, Sequence[Task]] = {}
    for task in tasks:
        if not task.is_sent:
            continue
        level = _level(task)
        sent = seen.get((level, task.superstep, task.node, id(task.inputs)))
        if sent:
            found[task] = [sent.pop(0)]
            continue
        before = levels[level].steps.get(task.superstep - 1, [])
        found[task] = before
        if len(before) == 1:
            before[0].sends.append(Send(task.node, task.inputs))
    return found


def _routed_by(task: Task, keeps: Collection[str]) -> set[str]:
    """Return the state keys that a task's conditional edges read of others.

    They see the state with what the task itself wrote: that hides what was there, but where a
    reducer kept it.
    """
    own = {channel for channel, _ in task.values if channel not in keeps}
    return task.routed_by - own


def _places(found: Mapping[str, Origins], ids: Mapping[Task, str]) -> dict[str, list[list[str]]]:
    return {
        key: [[ids.get(place, "") if place else "", name] for place, name in origins]
        for key, origins in found.items()
    }


def _level(task: Task) -> str:
    level = task.namespace.rpartition("|")[0]
    # LangGraph puts a handler inside the node that failed; its state and edges are those around.
    return level.rpartition("|")[0] if task.is_handler else level


def _in_order(found: Iterable[Task]) -> list[Task]:
    """Return the tasks by their graph's order; those of one superstep by node and number.

    Tasks that only their inputs tell apart are sorted by them.
    """
    tasks = sorted(found, key=lambda t: (t.namespace.count("|"), t.order))
    own: dict[Task, tuple[Any, ...]] = {}
    alike: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        own[task] = _place(task)
        alike.setdefault((_level(task), own[task]), []).append(task)
    for group in alike.values():
        if len(group) > 1:
            group.sort(key=lambda t: (digest(t.plain_inputs), t.order))
        for number, task in enumerate(group):
            own[task] = (*own[task], number)
    by_namespace = {task.namespace: task for task in tasks}
    keys: dict[Task, tuple[Any, ...]] = {}
    for task in tasks:
        host = by_namespace.get(host_of(task.namespace) or "")
        keys[task] = (*(keys[host] if host is not None else ()), own[task])
    return sorted(tasks, key=keys.__getitem__)


def _place(task: Task) -> tuple[Any, ...]:
    segments = task.namespace.split("|")
    call = int(segments[-2]) if len(segments) > 1 and segments[-2].isdigit() else 0
    number = -1
    if task.is_call:
        return (call, task.superstep, int(task.route[2]), task.node, number)
    if task.is_sent and len(task.route) > 1 and isinstance(task.route[1], int):
        number = task.route[1]
    return (call, task.superstep, -1, task.node, number)


def _chosen(task: Task, level: _Level) -> list[str]:
    """Return the nodes that a task's conditional edges led to."""
    routers = task.kind.routers
    found: list[str] = []
    traced = [r for r in routers if r.traced]
    if routers and len(routers) == len(task.told):
        found = [n for r, said in zip(routers, task.told, strict=True) for n in r.leads_to(said)]
        rest = []
    elif len(traced) == len(task.routed):
        found = [n for r, said in zip(traced, task.routed, strict=True) for n in r.leads_to(said)]
        rest = [r for r in routers if not r.traced]
    else:
        # A graph that was not known before it ran: what was returned names the node, or stands
        # for one of those that ran next.
        rest = []
        for said in task.routed:
            names = [n for n in _strings(said) if n in level.nodes]
            found.extend(names or [t.node for t in _next(task, level)])
    for router in rest:
        ends = None if router.ends is None else set(router.ends.values())
        found.extend(t.node for t in _next(task, level) if ends is None or t.node in ends)
    return [name for name in found if name != "__end__"]


def _strings(said: Any) -> list[str]:
    listed = said if isinstance(said, list | tuple) else [said]
    return [one for one in listed if isinstance(one, str)]


def _next(task: Task, level: _Level) -> list[Task]:
    """Return the tasks of the next superstep that an edge may have led to."""
    return [
        t
        for t in level.steps.get(task.superstep + 1, ())
        if any(str(trigger).startswith("branch:") for trigger in t.triggers)
    ]


def _seen_to_accumulate(level: Sequence[Task]) -> frozenset[str]:
    """Return the channels whose value was more than what had just been written to it.

    For graphs that LangGraph could not see before they ran. A channel that keeps only the last
    value hands on the very object that was written.
    """
    last: dict[str, tuple[int, list[Any]]] = {}
    found: set[str] = set()
    for task in sorted(level, key=lambda t: t.superstep):
        if not task.is_sent:
            given = _given(task.inputs)
            for channel, (step, written) in last.items():
                value = given.get(channel)
                if step < task.superstep and value is not None and not _among(value, written):
                    found.add(channel)
        for channel, value in task.values:
            step, written = last.get(channel, (task.superstep, []))
            last[channel] = (
                task.superstep,
                [*(written if step == task.superstep else ()), value],
            )
    return frozenset(found)


def _given(inputs: Any) -> Mapping[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(items_of(inputs))
    return fields_of(inputs) or {"__root__": inputs}


def _among(value: Any, written: Sequence[Any]) -> bool:
    try:
        return any(value is one or bool(value == one) for one in written)
    except Exception:  # arrays and their like don't compare to one truth
        return False


def _first_writers(tasks: Iterable[Task]) -> dict[int, Task]:
    """Return who wrote each message first: a host hands on what was written inside of it."""
    found: dict[int, Task] = {}
    for task in sorted(tasks, key=lambda t: t.finished):
        for _, value in task.values:
            for message in value if isinstance(value, list | tuple) else [value]:
                if isinstance(message, BaseMessage):
                    found.setdefault(id(message), task)
    return found


def _as_message(written: Any) -> BaseMessage | None:
    """Return the message that was written; None where `add_messages` gives it its id."""
    if isinstance(written, Mapping) and written.get("id"):
        try:
            return convert_to_messages([dict(written)])[0]
        except (ValueError, NotImplementedError):  # `add_messages` has refused it, too
            return None
    return written if isinstance(written, BaseMessage) else None


class _Holding:
    """The messages in a channel, by id, and how many are left of each who wrote them."""

    def __init__(self) -> None:
        self.messages: dict[str, tuple[Task, BaseMessage]] = {}
        self.left: dict[Task, int] = {}
        self.lost: set[Task] = set()
        """Those who may have none left since somebody looked."""

    def add(self, owner: Task, message: BaseMessage | None = None) -> None:
        self.left[owner] = self.left.get(owner, 0) + 1
        if message is not None:
            self.messages[str(message.id)] = (owner, message)

    def drop(self, number: str) -> None:
        if number in self.messages:
            owner, _ = self.messages.pop(number)
            self.left[owner] -= 1
            if not self.left[owner]:
                self.lost.add(owner)

    def merge(self, task: Task, value: Any, owners: Mapping[int, Task]) -> None:
        """Do what `add_messages` does with a write."""
        if isinstance(value, list | tuple) and not value:
            self.left.setdefault(task, 0)
            self.lost.add(task)
        for written in value if isinstance(value, list | tuple) else [value]:
            message = _as_message(written)
            if message is None:
                self.add(task)  # it becomes a message that nobody can know here
                continue
            number = str(message.id)
            if isinstance(message, RemoveMessage):
                everything = number == REMOVE_ALL_MESSAGES
                for gone in list(self.messages) if everything else [number]:
                    self.drop(gone)
                continue
            known = self.messages.get(number)
            if known is None or (known[1] is not message and known[1] != message):
                self.drop(number)
                self.add(owners.get(id(message), task), message)


def _messages(
    level: Sequence[Task],
    channel: str,
    owners: Mapping[int, Task],
    erased: dict[Task, dict[str, list[str]]],
    ids: Mapping[Task, str],
) -> None:
    """Note whose messages a channel has lost with each write."""
    holding = _Holding()
    for task in sorted(level, key=lambda t: t.superstep):
        values = [value for written, value in task.values if written == channel]
        if not values:
            continue
        if channel in task.overwrites:
            for number in list(holding.messages):
                holding.drop(number)
        for value in values:
            holding.merge(task, value, owners)
        gone = sorted(ids[o] for o in holding.lost if not holding.left[o] and o in ids)
        holding.lost.clear()
        if gone:
            erased.setdefault(task, {})[channel] = gone
