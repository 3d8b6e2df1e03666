"""A worker's side: a ledger that asks home, and the runs that use it. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pickle
import queue
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from lg_textgrad._hashing import to_plain
from lg_textgrad._sync import background_loop, in_loop
from lg_textgrad.bindings.base import Binding
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.bindings.context import ContextBinding
from lg_textgrad.bindings.tool_modes import ToolDesk, Tools
from lg_textgrad.errors import ModelError
from lg_textgrad.executors.wire import (
    KEEP,
    PAY,
    RECORDED,
    Ask,
    Begin,
    Cancel,
    Count,
    Ended,
    Failed,
    Failure,
    Given,
    Go,
    Gone,
    Left,
    Made,
    Refused,
    Shut,
    Stop,
    packed,
    unpacked,
)
from lg_textgrad.ledger import Ledger, Paid
from lg_textgrad.recording.live import LiveSource
from lg_textgrad.traffic import Lane, Patience, Route, Traffic


class Home:
    """The way home: what is told goes there, what home says reaches the call that it is about.

    Home answers in a thread of its own, so a node that stops its loop by a sync call is answered.
    """

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self.tell = tell
        """Send a message home; from any thread."""
        self._numbers = itertools.count()
        self._calls: dict[int, Callable[[Any], None]] = {}
        self._attempts: set[asyncio.Task[None]] = set()

    def hear(self, message: Go | Stop | Given | Refused) -> None:
        """Hand on what home says about a call."""
        receive = self._calls.get(message.call)
        try:
            if receive is not None:
                receive(message)
                return
        except RuntimeError:  # the loop that it was asked in has ended
            pass
        if isinstance(message, Go):
            self.tell(Gone(message.call, message.attempt))

    def ask(self, what: Callable[[int], Ask], call: Callable[[], Any]) -> Any:
        """Ask home, and return its answer. `call` makes an attempt, when home says so."""
        number, turns = next(self._numbers), queue.SimpleQueue[Any]()
        asked, guard = what(number), threading.Lock()

        def receive(said: Any) -> None:
            with guard:
                if number in self._calls:
                    turns.put(said)
                    return
            if isinstance(said, Go):  # who asked was refused meanwhile
                self.tell(Gone(number, said.attempt))

        self._calls[number] = receive
        failed: list[Exception] = []
        made: list[Any] = []

        def attempt(go: Go) -> None:
            try:
                made.append(call())
            except Exception as error:  # told at home, and raised here if that is the end of it
                failed.append(error)
                self.tell(Failed(number, go.attempt, Failure.of(error)))
            else:
                self.tell(Made(number, go.attempt, made[-1]))

        try:
            self.tell(asked)
            while True:
                said = turns.get()
                if isinstance(said, Go) and asked.what == PAY:
                    # Nobody can stop it; one that is late is left behind in its thread.
                    context = copy_context()
                    work = functools.partial(context.run, attempt, said)
                    threading.Thread(target=work, name="lg_textgrad-call", daemon=True).start()
                elif isinstance(said, Go):
                    attempt(said)
                elif isinstance(said, Given):
                    return _own(made, said.value)
                elif isinstance(said, Refused):
                    raise _last(failed) if said.error is None else unpacked(said.error)
        finally:
            with guard:
                del self._calls[number]
            while not turns.empty():  # a turn right behind a refusal: home waits for an answer
                if isinstance(said := turns.get(), Go):
                    self.tell(Gone(number, said.attempt))

    async def aask(self, what: Callable[[int], Ask], call: Callable[[], Awaitable[Any]]) -> Any:
        """`ask` for coroutines. What was begun goes on when the one who asked is cancelled."""
        number, turns = next(self._numbers), asyncio.Queue[Any]()
        asked, loop = what(number), asyncio.get_running_loop()
        failed: list[Exception] = []
        made: list[Any] = []

        def receive(said: Any) -> None:
            if number in self._calls:
                turns.put_nowait(said)
            elif isinstance(said, Go):  # who asked has left meanwhile
                self.tell(Gone(number, said.attempt))

        async def attempt(go: Go) -> None:
            try:
                made.append(await call())
            except asyncio.CancelledError:
                self.tell(Gone(number, go.attempt))
                raise
            except Exception as error:
                failed.append(error)
                self.tell(Failed(number, go.attempt, Failure.of(error)))
            else:
                self.tell(Made(number, go.attempt, made[-1]))

        tasks: dict[int, asyncio.Task[None]] = {}
        self._calls[number] = lambda said: _in(loop, receive, said)
        try:
            self.tell(asked)
            while True:
                said = await turns.get()
                if isinstance(said, Go):
                    task = tasks[said.attempt] = asyncio.create_task(attempt(said))
                    self._attempts.add(task)
                    task.add_done_callback(self._attempts.discard)
                elif isinstance(said, Stop) and said.attempt in tasks:
                    tasks[said.attempt].cancel()
                elif isinstance(said, Given):
                    return _own(made, said.value)
                elif isinstance(said, Refused):
                    raise _last(failed) if said.error is None else unpacked(said.error)
        except asyncio.CancelledError:
            self.tell(Left(asked.run, number))
            raise
        finally:
            del self._calls[number]
            while not turns.empty():  # a turn that came in the same moment as the cancellation
                if isinstance(said := turns.get_nowait(), Go):
                    self.tell(Gone(number, said.attempt))


def _in(loop: asyncio.AbstractEventLoop, receive: Callable[[Any], None], said: Any) -> None:
    loop.call_soon_threadsafe(receive, said)


def _own(made: list[Any], given: Any) -> Any:
    """Return what was made here itself, where home has it just so: who made it knows it by that."""
    return next((one for one in made if one == given), given)


def _last(failed: list[Exception]) -> Exception:
    assert failed, "home refuses with an error, or after an attempt that failed"
    return failed[-1]


class _DistantLane(Lane):
    def __init__(self, home: Home, run: int, route: Route | None) -> None:
        super().__init__(str(route or ""), 1, Patience())
        self._home, self._run, self._route = home, run, route

    def close(self, error: ModelError) -> None:
        self._home.tell(Shut(self._run, self._route, packed(error)))


class _DistantTraffic(Traffic):
    def __init__(self, home: Home, run: int) -> None:
        super().__init__(1)
        self._home, self._run = home, run

    def lane(self, route: Route | None) -> Lane:
        return _DistantLane(self._home, self._run, route)

    def count(self, kind: str) -> None:
        self._home.tell(Count(self._run, kind))


class DistantLedger(Ledger):
    """The ledger of one run on a worker: whatever it is asked, it asks home."""

    def __init__(self, home: Home, run: int) -> None:  # has no store, account or limit of its own
        self.traffic = _DistantTraffic(home, run)
        self._home = home
        self._run = run

    async def apay(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Awaitable[Paid]],
        route: Route | None = None,
        *,
        urgent: bool = False,
    ) -> Paid:
        ask = self._asking(PAY, key, kind, request, route, urgent=urgent)
        paid: Paid = await self._home.aask(ask, call)
        return paid

    def pay(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Paid],
        route: Route | None = None,
    ) -> Paid:
        ask = self._asking(PAY, key, kind, request, route, urgent=in_loop())
        paid: Paid = self._home.ask(ask, call)
        return paid

    def recorded(self, key: str, request: Any) -> Any:
        return self._home.ask(self._asking(RECORDED, key, "", request), _never)

    async def arecorded(self, key: str, request: Any) -> Any:
        return await self._home.aask(self._asking(RECORDED, key, "", request), _never)

    def keep(
        self, key: str, request: Any, make: Callable[[], Any], *, renew: bool = False
    ) -> Any:
        ask = self._asking(KEEP, key, "", request, renew=renew, urgent=in_loop())
        return self._home.ask(ask, make)

    async def akeep(
        self,
        key: str,
        request: Any,
        make: Callable[[], Awaitable[Any]],
        *,
        renew: bool = False,
        urgent: bool = False,
    ) -> Any:
        ask = self._asking(KEEP, key, "", request, renew=renew, urgent=urgent)
        return await self._home.aask(ask, make)

    def _asking(
        self,
        what: str,
        key: str,
        kind: str,
        request: Any,
        route: Route | None = None,
        *,
        renew: bool = False,
        urgent: bool = False,
    ) -> Callable[[int], Ask]:
        return lambda number: Ask(
            self._run, number, what, key, kind, request, route, renew, urgent
        )


def _never() -> Any:
    raise AssertionError("what is recorded is looked up at home")


class Guests:
    """The runs that are under way on a worker."""

    def __init__(
        self,
        source: LiveSource,
        bindings: tuple[Binding, ...],
        tools: Tools,
        tell: Callable[[Any], None],
    ) -> None:
        self._source = source
        self._bindings = bindings
        self._tools = tools
        self._tell = tell
        self._home = Home(tell)
        # Where a graph's factories made their clients, as in a process that has no workers.
        self._loop = background_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def hear(self, message: Any) -> None:
        """Do what home says; from any thread but the loop of the runs."""
        if isinstance(message, Begin):
            self._loop.call_soon_threadsafe(self._begin, message)
        elif isinstance(message, Cancel):
            self._loop.call_soon_threadsafe(self._cancel, message.run)
        else:
            self._home.hear(message)

    def _begin(self, begin: Begin) -> None:
        self._tasks[begin.run] = self._loop.create_task(self._arun(begin))

    def _cancel(self, run: int) -> None:
        if run in self._tasks:
            self._tasks[run].cancel()

    async def _arun(self, begin: Begin) -> None:
        example = begin.example
        ledger = DistantLedger(self._home, begin.run)
        scope = BoundaryScope(ledger, begin.kind, begin.sample)
        scope.tools = ToolDesk(ledger, self._tools, example)
        try:
            bindings = [
                b.at(example) if isinstance(b, ContextBinding) else b for b in self._bindings
            ]
            recorded = await self._source.arun(example, begin.candidate, bindings, scope)
            ended = Ended(
                begin.run,
                replace(recorded, outputs=None),
                _pickled(recorded.outputs),
                None if recorded.outputs is None else to_plain(recorded.outputs),
                scope.lost,
                None if scope.failure is None else packed(scope.failure),
            )
        except Exception as error:  # raised at home, as a run in that process would raise it
            ended = Ended(begin.run, None, error=packed(error))
        finally:
            del self._tasks[begin.run]
        self._tell(ended)


def _pickled(outputs: Any) -> bytes | None:
    try:
        return pickle.dumps(outputs)
    except Exception:  # values of a user's state are anything; home gets them as plain data
        return None


