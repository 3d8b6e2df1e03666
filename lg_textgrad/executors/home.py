"""Home's side: what workers ask is answered by the one ledger. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.errors import ExecutorError, LGTextGradError, ModelError
from lg_textgrad.executors.wire import (
    KEEP,
    PAY,
    Ask,
    Begin,
    Cancel,
    Count,
    Ended,
    Failed,
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
from lg_textgrad.ledger import Paid
from lg_textgrad.recording.base import Recorded
from lg_textgrad.run import Candidate, Example, Usage


class WorkerLostError(Exception):
    """The worker that made a run is gone, and with it the run, but not what it paid for."""


class Line:
    """The way to one worker. `tell` sends it a message; what it says is given to `hear`.

    Both from any thread. `lose` is for when it is gone.
    """

    def __init__(self, tell: Callable[[Any], None], name: str = "a worker") -> None:
        self.name = name
        self._send = tell
        self._guard = threading.Lock()
        self._numbers = itertools.count()
        self._visits: dict[int, _Visit] = {}
        self._attempts: dict[tuple[int, int], _Waiting] = {}
        self._lost: str | None = None

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def tell(self, message: Any) -> None:
        if self._lost is None:
            self._send(message)

    def hear(self, message: Any) -> None:
        """Hand a message on to the loop that waits for it."""
        if isinstance(message, Made | Failed | Gone):
            with self._guard:
                waiting = self._attempts.pop((message.call, message.attempt), None)
            if waiting is not None:
                waiting.done(message)
        else:
            with self._guard:
                visit = self._visits.get(message.run)
            if visit is not None:
                visit.deliver(message)
            elif isinstance(message, Ask):
                self.refuse(message)

    def refuse(self, ask: Ask) -> None:
        """Tell the worker that nobody waits for a run: a sync call stops its loop until then."""
        gone = ExecutorError("Nobody waits for the run any more.")
        self.tell(Refused(ask.call, packed(gone)))

    def lose(self, why: str) -> None:
        """Tell everyone who waits that the worker is gone."""
        with self._guard:
            if self._lost is not None:
                return
            self._lost = why
            waiting, self._attempts = list(self._attempts.values()), {}
            visits = list(self._visits.values())
        for one in waiting:
            one.done(None)
        for visit in visits:
            visit.deliver(WorkerLostError(why))

    async def amade(self, call: int, attempt: int) -> Any:
        """Have the worker make one attempt of a call, and return what came of it.

        Cancelled where nobody makes it: that says nothing about the server.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future())
        with self._guard:
            if self._lost is not None:
                raise asyncio.CancelledError
            self._attempts[call, attempt] = waiting
        self.tell(Go(call, attempt))
        try:
            said = await waiting.future
        except asyncio.CancelledError:
            with self._guard:
                self._attempts.pop((call, attempt), None)
            self.tell(Stop(call, attempt))
            raise
        if isinstance(said, Made):
            return said.value
        if isinstance(said, Failed):
            raise said.failure.raised()
        raise asyncio.CancelledError

    async def arun(
        self,
        example: Example,
        candidate: Candidate,
        scope: BoundaryScope,
        paid: dict[str, Usage],
    ) -> Recorded:
        """Return the run that the worker makes; what it costs is put into `paid`, by key.

        Raises `WorkerLostError` when the worker is gone before it is done.
        """
        number = next(self._numbers)
        visit = _Visit(self, scope, paid)
        with self._guard:
            if self._lost is not None:
                raise WorkerLostError(self._lost)
            self._visits[number] = visit
        ended = False
        try:
            self.tell(Begin(number, example, candidate, scope.sample, scope.kind))
            said = await visit.aended()
            ended = True
        finally:
            with self._guard:
                self._visits.pop(number, None)
            if not ended:
                self.tell(Cancel(number))
            await visit.aclose()
        return _come_home(said, scope)


class _Waiting:
    """Somebody in a loop who waits for what a worker does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.future = future
        self._loop = loop

    def done(self, said: Any) -> None:
        def set_result() -> None:
            if not self.future.done():
                self.future.set_result(said)

        with suppress(RuntimeError):  # the loop has ended, and who waited with it
            self._loop.call_soon_threadsafe(set_result)


class _Visit:
    """One run on a worker: what it asks goes through the ledger of its scope."""

    def __init__(self, line: Line, scope: BoundaryScope, paid: dict[str, Usage]) -> None:
        self._line = line
        self._scope = scope
        self._paid = paid
        self._loop = asyncio.get_running_loop()
        self._inbox = asyncio.Queue[Any]()
        self._asks: dict[int, asyncio.Task[None]] = {}
        self._left = False

    def deliver(self, message: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, message)
        except RuntimeError:  # the loop has ended, and who waited with it
            self._refuse(message)

    def _take(self, message: Any) -> None:
        if self._left:
            self._refuse(message)
        else:
            self._inbox.put_nowait(message)

    def _refuse(self, message: Any) -> None:
        if isinstance(message, Ask):
            self._line.refuse(message)

    async def aended(self) -> Ended:
        """Do what the worker asks for until its run is over."""
        ledger = self._scope.ledger
        while True:
            said = await self._inbox.get()
            if isinstance(said, Ended):
                return said
            if isinstance(said, WorkerLostError):
                raise said
            if isinstance(said, Ask):
                self._asks[said.call] = asyncio.create_task(self._answer(said))
            elif isinstance(said, Left) and said.call in self._asks:
                self._asks[said.call].cancel()
            elif isinstance(said, Count):
                ledger.traffic.count(said.kind)
            elif isinstance(said, Shut):
                error = unpacked(said.error)
                if isinstance(error, ModelError):
                    ledger.traffic.lane(said.route).close(error)

    async def aclose(self) -> None:
        """Leave what is still asked for: a call that was sent goes on, and is kept."""
        self._left = True
        while not self._inbox.empty():
            self._refuse(self._inbox.get_nowait())
        asks = list(self._asks.values())
        for task in asks:
            task.cancel()
        await asyncio.gather(*asks, return_exceptions=True)

    async def _answer(self, ask: Ask) -> None:
        raised: list[Exception] = []
        try:
            value = await self._asked(ask, raised)
        except asyncio.CancelledError:
            self._line.refuse(ask)
            raise
        except Exception as error:  # raised where it was asked
            own = raised and error is raised[-1]
            self._line.tell(Refused(ask.call, None if own else packed(error)))
        else:
            self._line.tell(Given(ask.call, value))
        finally:
            self._asks.pop(ask.call, None)

    async def _asked(self, ask: Ask, raised: list[Exception]) -> Any:
        ledger, attempts = self._scope.ledger, itertools.count()

        async def make() -> Any:
            try:
                return await self._line.amade(ask.call, next(attempts))
            except Exception as error:
                raised.append(error)
                raise

        if ask.what == PAY:
            paid: Paid = await ledger.apay(
                ask.key, ask.kind, ask.request, make, ask.route, urgent=ask.urgent
            )
            # What an earlier worker paid for and a later one is given cost this run something.
            self._paid.setdefault(ask.key, paid[1])
            return paid
        if ask.what == KEEP:
            return await ledger.akeep(
                ask.key, ask.request, make, renew=ask.renew, urgent=ask.urgent
            )
        return await ledger.arecorded(ask.key, ask.request)


def _come_home(ended: Ended, scope: BoundaryScope) -> Recorded:
    if ended.error is not None:
        raise unpacked(ended.error)
    assert ended.recorded is not None, ended
    scope.lost = scope.lost or ended.lost
    if ended.failure is not None and scope.failure is None:
        failure = unpacked(ended.failure)
        scope.failure = failure if isinstance(failure, LGTextGradError) else None
    outputs = ended.plain
    if ended.outputs is not None:
        # A class that this process cannot import: evaluators get what a store would give them.
        with suppress(Exception):
            outputs = pickle.loads(ended.outputs)  # noqa: S301 - from the user's own code
    return replace(ended.recorded, outputs=outputs)


def total(paid: dict[str, Usage]) -> Usage:
    """Return what a run cost, on however many workers."""
    return sum(paid.values(), Usage())
