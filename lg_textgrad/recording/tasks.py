"""What a recorder holds of a run while it goes on: executions, and what ran inside of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langgraph.func import entrypoint
from langgraph.types import Command, Overwrite, Send
from pydantic import BaseModel

from lg_textgrad.recording.origins import Known, Origins
from lg_textgrad.recording.plain import Plainer
from lg_textgrad.recording.structure import Node
from lg_textgrad.run import ModelCall, ToolCall

OVERWRITE = "__overwrite__"
_PUSH = "__pregel_push"
_APART = 1000
"""LangGraph counts from 1 how often a node calls a graph on the run's own thread."""


@dataclass(slots=True, eq=False)
class Root:
    """One invocation of a graph."""

    inputs: Any
    thread: str | None
    started: float
    namespace: str = ""
    """Where in a surrounding graph it was made; empty at the top."""
    plainer: Plainer = field(default_factory=Plainer)
    notes: set[str] = field(default_factory=set)
    """Where its recording could not be exact, by node."""
    ended: float = 0.0
    outputs: Any = None
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class Task:
    """One execution; attempts of one task share a namespace and this record."""

    namespace: str
    path: str
    node: str
    kind: Node
    superstep: int
    order: int
    route: Sequence[Any]
    """LangGraph's path of the task: pulled by its triggers, or pushed by a Send or a call."""
    triggers: Sequence[str]
    root: Root
    caller: Task | None
    """The execution that it runs inside of."""
    inputs: Any
    plain_inputs: Any
    started: float
    place: str = ""
    """Its name while the run goes on; see `Places`."""
    line: str = ""
    """Its name among all that were sent with it; see `line_of`."""
    ended: float = 0.0
    began: int = 0
    """When its first attempt began, in the count of events."""
    finished: int = 0
    """When its last attempt ended, in the count of events; 0 while it runs."""
    sheets: list[set[str]] = field(default_factory=list)
    """What each attempt read of its state; empty where nobody could see."""
    attempts: int = 1
    values: list[tuple[str, Any]] = field(default_factory=list)
    """What it wrote, as the objects themselves."""
    writes: list[tuple[str, Any]] = field(default_factory=list)
    overwrites: set[str] = field(default_factory=set)
    sends: list[Send] = field(default_factory=list)
    goto: list[str] = field(default_factory=list)
    routed: list[Any] = field(default_factory=list)
    """What those functions of its conditional edges returned that callbacks tell of, in order."""
    told: list[Any] = field(default_factory=list)
    """What all of them returned, where the graph tells."""
    routed_by: set[str] = field(default_factory=set)
    """The state keys that they read."""
    error: str | None = None
    interrupts: dict[str, Any] = field(default_factory=dict)
    """What it asked for, by the interrupt's id."""
    waits: bool = False
    """Whether its last attempt ended at an interrupt."""
    prompts: dict[str, str] = field(default_factory=dict)
    model_calls: dict[UUID, ModelCall] = field(default_factory=dict)
    tool_calls: dict[UUID, ToolCall] = field(default_factory=dict)
    known: Known | None = None
    """What its code has at hand, from its first call on."""
    inside: list[Task] = field(default_factory=list)
    """What ran inside of its last attempt."""
    apart: int = _APART
    """The number of the next graph that its code calls on a thread of its own."""
    threads: dict[str, list[list[Task]]] = field(default_factory=dict)
    """Thread -> what ran inside of each of those graphs."""
    last_call: int = -1
    """The highest number of its calls that have begun."""
    resumed: list[Any] = field(default_factory=list)
    """The inputs of the invocations that it went on in."""
    results: list[Task] = field(default_factory=list)
    """Those that its code had started and that have ended, in that order."""
    sources: dict[str, Origins] | None = None
    passed: dict[str, Origins] = field(default_factory=dict)
    discarded: bool = False
    """Whether its caller began anew after it."""

    @property
    def is_call(self) -> bool:
        """Whether it is a `@task` that somebody's code called."""
        return len(self.route) == 4 and self.route[0] == _PUSH and self.route[3] is True

    @property
    def is_handler(self) -> bool:
        """Whether it handles the error of another task of its superstep."""
        return "node_error_handler" in self.route

    @property
    def is_sent(self) -> bool:
        return _PUSH in self.triggers and not self.is_call and not self.is_handler

    @property
    def number(self) -> int | None:
        """Which of the `Send`s or calls of its superstep it is; None for any other."""
        return numbered(self.route) if self.is_sent or self.is_call else None

    def called(self, call: Task, now: int) -> int:
        """Note a call that begins now; return the latest moment at which it can have been made.

        Calls that go at once begin in any order, each in a thread of its own. A call was made
        before those that were made after it, so before any of them began.
        """
        number = call.number or 0
        if number > self.last_call:
            self.last_call = number
            return now
        later = (t for t in self.inside if t.is_call and (t.number or 0) > number)
        return min((t.began for t in later), default=now)

    def begin_again(self, inputs: Any, root: Root) -> None:
        """Another attempt after an error or an interrupt: what it does replaces what was written.

        The model calls of all attempts were paid for and stay.
        """
        self.attempts += 1
        if root is self.root:
            for task in self.inside:
                task.discarded = True
            self.inside.clear()
            self.results.clear()
            self.known = None
            self.last_call = -1
        else:
            # What had come back before is taken from the checkpoint.
            self.resumed.append(root.inputs)
            if self.known is not None:
                self.known.add_inputs(inputs)
                self.known.add_from_outside(root.inputs)
        self.finished = 0
        gathered: tuple[Any, ...] = (
            self.values, self.writes, self.overwrites, self.sends, self.goto, self.routed,
            self.told, self.passed,
        )  # fmt: skip
        for one in gathered:
            one.clear()
        self.error = None
        self.waits = False

    def take(self, output: Any, *, whole: bool = False) -> None:
        """Read a node's return value as LangGraph does: updates, Commands, Sends, or lists.

        `whole`: where the state is one value and no dict, a list is that value.
        """
        if output is None:
            return
        if isinstance(output, Send):
            self.sends.append(output)
        elif isinstance(output, Command):
            targets = output.goto if isinstance(output.goto, list | tuple) else (output.goto,)
            for target in targets:
                if isinstance(target, Send):
                    self.sends.append(target)
                elif target:
                    self.goto.append(str(target))
            self._update(output.update, whole=whole)
        elif isinstance(output, list | tuple) and any(
            isinstance(o, Command | Send) for o in output
        ):
            for part in output:
                self.take(part, whole=whole)
        elif isinstance(output, entrypoint.final):
            self._update(output.value, whole=True)
            self.values.append(("__previous__", output.save))
        else:
            self._update(output, whole=whole)

    def take_by_hand(self, output: Any, entries: Sequence[Any]) -> None:
        """Read the return value of a node of a `Pregel` made by hand, by what the node writes."""
        for entry in entries:
            default = type(entry)._field_defaults["value"]
            value = output if entry.value is default else entry.value
            if entry.mapper is not None:
                value = entry.mapper(value)
            if value is not None or not entry.skip_none:
                self.values.append((entry.channel, value))

    def _update(self, update: Any, *, whole: bool) -> None:
        if update is None:
            return
        pairs: list[tuple[str, Any]]
        if isinstance(update, dict):
            pairs = list(dict.items(update))
        elif isinstance(update, Mapping):
            pairs = list(update.items())
        elif isinstance(update, BaseModel):
            pairs = list(_fields_set(update))
        elif hasattr(update, "__dataclass_fields__"):
            pairs = [(name, getattr(update, name)) for name in update.__dataclass_fields__]
        elif isinstance(update, list | tuple) and _are_pairs(update) and not whole:
            pairs = list(update)
        else:
            pairs = [("__root__", update)]
        for channel, value in pairs:
            anew, kept = _overwritten(value)
            if anew:
                self.overwrites.add(channel)
            self.values.append((channel, kept))


def numbered(route: Sequence[Any]) -> int | None:
    """Return the number in LangGraph's path of a task that was sent or called."""
    return next((p for p in route[1:] if isinstance(p, int) and not isinstance(p, bool)), None)


def _are_pairs(update: Sequence[Any]) -> bool:
    return all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in update)


def _fields_set(update: BaseModel) -> Iterator[tuple[str, Any]]:
    """Yield the fields that LangGraph writes: those that were set, and all that say something."""
    for name, info in type(update).model_fields.items():
        value = getattr(update, name)
        if value is not None or info.default is not None or name in update.model_fields_set:
            yield name, value


def _overwritten(value: Any) -> tuple[bool, Any]:
    """Return whether a value replaces what a channel has accumulated, and the value itself."""
    if isinstance(value, Overwrite):
        return True, value.value
    if type(value) is dict:
        if len(value) == 1 and OVERWRITE in value:
            return True, value[OVERWRITE]
        if value.get("type") == OVERWRITE and "value" in value:
            return True, value["value"]
    return False, value


@dataclass(slots=True, eq=False)
class Frame:
    """One callback run: of a graph, of a node, or of anything inside of one."""

    namespace: str
    task: Task | None
    """The execution that it is, or belongs to."""
    root: Root
    inputs: Any = None
    own: bool = False
    """Whether it is the execution itself, and not something inside."""
    router: bool = False
    """Whether it is the function of a conditional edge."""
    began: int = 0
    given: dict[str, Origins] | None = None
    """For a graph that a node's code called: where each input came from."""
    loose: bool = False
    """Whether nothing tells if it is the function of a conditional edge."""
    tasks: list[Task] | None = None
    """The executions right inside of it, once the first one proved it to be a graph."""
    apart: int | None = None
    """Which of the graphs it is that an execution called on threads of their own."""
