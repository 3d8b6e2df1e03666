"""What the graph's tools do in tuning runs: called, recorded, or answered from the recording.

Works at `BaseTool`, so it covers `ToolNode`, `create_agent`, and tools that a node calls itself. A
recording is kept under the tool's name, its arguments without injected ones, the example, which
execution asked, and how often it had asked that before. So every candidate that is tried on an
example gets what the first one got, and nothing is done twice, whoever comes first.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.store.base import BaseStore, PutOp
from langgraph.types import interrupt

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad.bindings.boundary import BoundaryScope, scope_in_place, warn
from lg_textgrad.bindings.injected import state_given, visible
from lg_textgrad.bindings.nesting import Inside, inside_tool
from lg_textgrad.bindings.patching import ensure, kept_in_place, register
from lg_textgrad.bindings.recorded import (
    UnrecordableError,
    decode,
    decode_error,
    encode,
    encode_error,
)
from lg_textgrad.errors import ConfigurationError, StoreError, ToolReplayError
from lg_textgrad.ledger import Ledger
from lg_textgrad.run import Example

LIVE, RECORD, REPLAY, REPLAY_ELSE_LIVE = MODES = ("live", "record", "replay", "replay-else-live")


@dataclass(frozen=True, slots=True)
class Tools:
    """What tools do in tuning runs, by name; `default` is for those that `modes` doesn't name.

    `live`: each call is made. `record`: each call is made, and its answer kept. `replay`: answered
    from the recording, and refused where there is none. `replay-else-live`: answered from the
    recording, and made, and kept, where there is none. Raises `ConfigurationError` for any other,
    and for one text in place of a list of `shared` tools.
    """

    default: str = REPLAY_ELSE_LIVE
    modes: Mapping[str, str] = field(default_factory=dict)
    shared: Iterable[str] = ()
    """Tools whose answer depends on their arguments alone: recorded once for all examples."""

    def __post_init__(self) -> None:
        if isinstance(self.shared, str):
            raise ConfigurationError(
                f"`shared` of Tools is a list of names, not one text; write [{self.shared!r}]."
            )
        object.__setattr__(self, "modes", dict(self.modes))
        object.__setattr__(self, "shared", frozenset(self.shared))
        for name, mode in {"the default": self.default, **self.modes}.items():
            if mode not in MODES:
                raise ConfigurationError(
                    f"'{mode}' is no mode for {name}: tools are {', '.join(MODES)}."
                )

    @classmethod
    def of(cls, setting: str | Mapping[str, Any]) -> Tools:
        """Return what a configuration's `tools` says: a mode, or a table like this class."""
        if isinstance(setting, str):
            return cls(setting)
        unknown = set(setting) - {"default", "modes", "shared"}
        if unknown:
            raise ConfigurationError(
                f"The table 'tools' has an unknown entry '{min(unknown)}'; there are default, "
                "shared, and the table modes of tool = mode."
            )
        modes, shared = setting.get("modes", {}), setting.get("shared", [])
        if not isinstance(modes, Mapping) or not isinstance(shared, list):
            raise ConfigurationError(
                "In 'tools', modes must be a table of tool = mode, and shared a list of tools."
            )
        return cls(setting.get("default", REPLAY_ELSE_LIVE), modes, shared)

    def mode(self, name: str) -> str:
        return self.modes.get(name, self.default)

    @property
    def identity(self) -> Any:
        """What decides runs, as plain data; None for what every graph has without being asked."""
        if self == Tools():
            return None
        return {"default": self.default, "modes": self.modes, "shared": sorted(self.shared)}


@dataclass(frozen=True)
class Call:
    """One call of a tool, as somebody asked for it."""

    tool: BaseTool
    args: Any
    id: str | None
    """The model's id of the call, which the answer carries; None where no model asked."""
    place: str = ""
    line: str = ""
    """Which execution asks; see `BoundaryScope.place`."""

    @functools.cached_property
    def state(self) -> str | None:
        """The hash of the state that it is given; None where it is given none."""
        return state_given(self.tool, self.args, self.id)


_call: ContextVar[Call | None] = ContextVar("lg_textgrad_tool_call", default=None)


class ToolDesk:
    """Answers the tool calls of one run."""

    def __init__(self, ledger: Ledger, tools: Tools, example: Example) -> None:
        self._ledger = ledger
        self._tools = tools
        self._example = _told_apart(example)
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()
        self.store: BaseStore | None = None
        """The store of the run, in which a tool that is replayed has written too."""

    def answer(self, call: Call, make: Callable[[], Any]) -> Any:
        """Return the tool's output, as the mode says. Raises what the tool raises, or raised."""
        mode = self._tools.mode(call.tool.name)
        if mode == LIVE:
            return make()
        made = _Made(call)
        while True:
            keys = self._next(call)
            if mode == REPLAY:
                known = self._known(self._recorded(keys), call)
            else:
                known = self._kept(keys, lambda: made.of(make), renew=mode == RECORD)
            if made.done:
                return made.result(known)
            if self._again(known, mode, call):
                return make()
            if "interrupt" not in known:
                return self._replayed(known, call)
            interrupt(decode(known["interrupt"]))  # if it had an answer, the next call follows

    async def aanswer(self, call: Call, make: Callable[[], Awaitable[Any]]) -> Any:
        """`answer` for async tools."""
        mode = self._tools.mode(call.tool.name)
        if mode == LIVE:
            return await make()
        made = _Made(call)
        while True:
            keys = self._next(call)
            if mode == REPLAY:
                known = self._known(await self._arecorded(keys), call)
            else:
                try:
                    known = await self._akept(keys, lambda: made.aof(make), renew=mode == RECORD)
                except asyncio.CancelledError:
                    made.leave()
                    raise
            if made.done:
                return made.result(known)
            if self._again(known, mode, call):
                return await make()
            if "interrupt" not in known:
                return await self._areplayed(known, call)
            interrupt(decode(known["interrupt"]))

    def _next(self, call: Call) -> _Keys:
        """Return what a call's recording may be found under."""
        name = call.tool.name
        asked: dict[str, Any] = {"tool": name, "args": to_plain(visible(call.tool, call.args))}
        if name in self._tools.shared:
            return _Keys(asked, self._counted(digest("tool", asked)))
        asked["example"] = self._example
        former = self._counted(digest("tool", asked))
        asked["place"] = call.place
        alike = digest("tool", asked)
        if call.line == call.place:
            return _Keys(asked, self._counted(alike), former=former)
        own = self._counted(digest("tool", asked, call.line))
        # Counted only where its own key has nothing, so that those who have theirs move nobody.
        return _Keys(asked, own, lambda: self._counted(alike), former)

    def _counted(self, base: str) -> str:
        with self._guard:
            count = self._counts[base]
            self._counts[base] += 1
        return f"{base}.{count}"

    def _recorded(self, keys: _Keys) -> Any:
        for key in keys.all():
            if (known := self._ledger.recorded(key, keys.request)) is not None:
                return known
        return None

    async def _arecorded(self, keys: _Keys) -> Any:
        for key in keys.all():
            if (known := await self._ledger.arecorded(key, keys.request)) is not None:
                return known
        return None

    def _kept(self, keys: _Keys, make: Callable[[], Any], *, renew: bool) -> Any:
        """Return what is recorded under any of the keys, which then is so under the first ones."""

        def first() -> Any:
            if keys.former is None or renew:
                return make()
            known = self._ledger.recorded(keys.former, keys.request)
            return make() if known is None else known

        def among_alike() -> Any:
            assert keys.alike is not None, "asked only of executions that were sent"
            return self._ledger.keep(keys.alike(), keys.request, first, renew=renew)

        found = first if keys.alike is None else among_alike
        return self._ledger.keep(keys.own, keys.request, found, renew=renew)

    async def _akept(
        self, keys: _Keys, make: Callable[[], Awaitable[Any]], *, renew: bool
    ) -> Any:
        async def first() -> Any:
            if keys.former is None or renew:
                return await make()
            known = await self._ledger.arecorded(keys.former, keys.request)
            return await make() if known is None else known

        async def among_alike() -> Any:
            assert keys.alike is not None, "asked only of executions that were sent"
            return await self._ledger.akeep(keys.alike(), keys.request, first, renew=renew)

        found = first if keys.alike is None else among_alike
        return await self._ledger.akeep(keys.own, keys.request, found, renew=renew)

    def _known(self, known: Any, call: Call) -> Mapping[str, Any]:
        """Return what is recorded. Raises `ToolReplayError` where nothing is."""
        if known is None:
            raise self._refusal(call, "nothing is recorded")
        found: Mapping[str, Any] = known
        return found

    def _again(self, known: Mapping[str, Any], mode: str, call: Call) -> bool:
        """Return whether the tool has to be called though there is a recording."""
        if "unrecordable" in known and mode == REPLAY:
            raise self._refusal(call, f"a {known['unrecordable']} could not be recorded")
        return "agent" in known or "unrecordable" in known

    def _replayed(self, known: Mapping[str, Any], call: Call) -> Any:
        if self.store is not None and (writes := _writes(known)):
            self.store.batch(writes)
        return self._told(known, call)

    async def _areplayed(self, known: Mapping[str, Any], call: Call) -> Any:
        if self.store is not None and (writes := _writes(known)):
            await self.store.abatch(writes)
        return self._told(known, call)

    def _told(self, known: Mapping[str, Any], call: Call) -> Any:
        if known.get("state", given := call.state) != given:
            warn(
                f"The tool '{call.tool.name}' is given the graph's state, which is not what it was "
                "when its answer was recorded, and is answered from the recording. If it looks at "
                "what differs, give it the mode live, or the value as an argument."
            )
        return _given(known, call)

    def _refusal(self, call: Call, why: str) -> ToolReplayError:
        chosen = to_plain(visible(call.tool, call.args))
        text = (
            f"The tool '{call.tool.name}' may only be replayed, and {why} for its arguments "
            f"{chosen}. Give it the mode replay-else-live to have it called."
        )
        warn(text)
        return ToolReplayError(text)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What the recording of one call may be found under, the first that has one counts."""

    request: dict[str, Any]
    own: str
    """The execution's own, whoever comes first."""
    alike: Callable[[], str] | None = None
    """That of all executions which were sent to the same node, in the order in which they ask: for
    a candidate that sends more or in another order. None for an execution that nobody sent."""
    former: str | None = None
    """What earlier versions had: the order in which the run's executions ask."""

    def all(self) -> Iterator[str]:
        yield self.own
        if self.alike is not None:
            yield self.alike()
        if self.former is not None:
            yield self.former


class _Made:
    """What a real call came to: kept as data, and given on as it is."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._state = call.state  # before the tool can change it
        self.done = False
        self._kept: dict[str, Any] = {}
        self._output: Any = None
        self._error: BaseException | None = None
        self._inside: Inside | None = None
        self._task: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        """Stop an agent that nobody waits for: it would go on to pay. A tool's call is finished."""
        if self._task is not None and self._inside is not None and self._inside.depends:
            self._task.cancel()

    def result(self, known: Mapping[str, Any]) -> Any:
        """Return or raise what the call came to: as it is, or masked where `known` differs."""
        if known is not self._kept and ("output" in known or "error" in known):
            return _given(known, self._call)
        if self._error is not None:
            raise self._error
        return self._output

    def of(self, make: Callable[[], Any]) -> dict[str, Any]:
        with kept_in_place(), inside_tool() as inside:
            try:
                self._output = make()
            except Exception as error:  # a tool's error is an answer too
                self._error = error
        self._kept = self._data(inside)
        return self._kept

    async def aof(self, make: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        with kept_in_place(), inside_tool() as inside:
            self._inside, self._task = inside, asyncio.current_task()
            try:
                self._output = await make()
            except Exception as error:
                self._error = error
        self._kept = self._data(inside)
        return self._kept

    def _data(self, inside: Inside) -> dict[str, Any]:
        self.done = True
        error = self._error
        if inside.depends:
            return {"agent": True}
        try:
            if isinstance(error, GraphInterrupt) and len(error.args[0]) == 1:
                return {"interrupt": encode(error.args[0][0].value)}
            if isinstance(error, GraphBubbleUp | StoreError):
                raise error  # goes where it has to go, and is no answer
            more: dict[str, Any] = {}
            if inside.written:
                more["written"] = [encode(tuple(op)) for op in inside.written]
            if self._state is not None:
                more["state"] = self._state
            if isinstance(error, Exception):
                return {"error": encode_error(error, self._call.id), **more}
            return {"output": encode(self._output, self._call.id), **more}
        except UnrecordableError as refused:
            does = "returns or writes into the store" if inside.written else "returns"
            warn(
                f"The tool '{self._call.tool.name}' {does} a {refused}, which cannot be recorded, "
                "so it is called again each time; let that be JSON data."
            )
            return {"unrecordable": str(refused)}


def _told_apart(example: Example) -> str:
    """Return the hash of all that a run is given by its example: another user, another mailbox."""
    given = {n: v for n in ("context", "resume") if (v := example.metadata.get(n)) is not None}
    return digest(example.id, example.inputs, *([given] if given else ()))


def _writes(known: Mapping[str, Any]) -> list[PutOp]:
    """Return what a tool wrote into the store when its answer was recorded."""
    return [PutOp(*decode(op)) for op in known.get("written", ())]


def _given(known: Mapping[str, Any], call: Call) -> Any:
    if "error" in known:
        raise decode_error(known["error"], call.id)
    return decode(known["output"], call.id)


def _placed(call: Call, scope: BoundaryScope, run_manager: Any) -> Call:
    place, line = scope.where(run_manager)
    return replace(call, place=place, line=line)


def _asked(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note what `run` and `arun` are asked, for the tool's own method to be answered."""

    @functools.wraps(original)
    def run(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        scope = scope_in_place()
        if scope is None or scope.tools is None:
            return original(self, tool_input, *args, **kwargs)
        ensure(BaseTool, type(self))
        token = _call.set(Call(self, tool_input, kwargs.get("tool_call_id")))
        try:
            return original(self, tool_input, *args, **kwargs)
        finally:
            _call.reset(token)

    return run


def _aasked(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def arun(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        scope = scope_in_place()
        if scope is None or scope.tools is None:
            return await original(self, tool_input, *args, **kwargs)
        ensure(BaseTool, type(self))
        token = _call.set(Call(self, tool_input, kwargs.get("tool_call_id")))
        try:
            return await original(self, tool_input, *args, **kwargs)
        finally:
            _call.reset(token)

    return arun


def _answered(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _run(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
        call, scope = _call.get(), scope_in_place()
        if call is None or call.tool is not self or scope is None or scope.tools is None:
            return original(self, *args, **kwargs)
        token = _call.set(None)  # its super class's method, or another tool's, is not this call
        call = _placed(call, scope, kwargs.get("run_manager"))
        try:
            return scope.tools.answer(call, lambda: original(self, *args, **kwargs))
        finally:
            _call.reset(token)

    return _run


def _aanswered(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def _arun(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
        call, scope = _call.get(), scope_in_place()
        if call is None or call.tool is not self or scope is None or scope.tools is None:
            return await original(self, *args, **kwargs)
        token = _call.set(None)
        call = _placed(call, scope, kwargs.get("run_manager"))
        try:
            return await scope.tools.aanswer(call, lambda: original(self, *args, **kwargs))
        finally:
            _call.reset(token)

    return _arun


register("run", _asked, of=BaseTool, subclasses=True)
register("arun", _aasked, of=BaseTool, subclasses=True)
register("_run", _answered, of=BaseTool, subclasses=True)
register("_arun", _aanswered, of=BaseTool, subclasses=True)
