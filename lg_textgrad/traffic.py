"""How many calls one server gets at once, and how often it is asked again when it fails.

Each model on each server has a lane. A lane is as wide as the server bears: every refusal for
haste (429, 503, 529) makes it narrower by a third, every answer a little wider. Faults that may
pass are asked again after growing, jittered pauses, or after the time that the server asks for.
When nothing but faults came for long enough, the lane is closed: one call that fails for ever is
that call's misfortune, all of them failing is everybody's.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, wait_random_exponential

from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad._straight import straight
from lg_textgrad._sync import shared
from lg_textgrad.errors import (
    SYSTEMIC,
    LGTextGradError,
    ModelBusyError,
    ModelDownError,
    ModelError,
)
from lg_textgrad.faults import Fault, fault_of
from lg_textgrad.limiter import Limiter
from lg_textgrad.redaction import brief, scrub

T = TypeVar("T")

_NARROWER = 0.7
_SUSPECT = 3
"""After so many rounds without an answer one call at a time tries whether there is one, and so
many calls have to fail before it is not their own fault."""
_REFUSED = 10
"""So many calls in a row that asking again cannot help are a mistake in all of them."""
_STRANGER = 3
"""Attempts for garbled answers of a server that never gave a good one: it is hardly a model's."""


EMBEDDED = "the embedded server"
"""Where calls cost nothing."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which model is asked, and where: what shares rate limits, and a price."""

    model: str
    server: str = ""
    """The address of the API, or a name where there is none."""

    def __str__(self) -> str:
        return f"{self.model} at {self.server}" if self.server else self.model


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server that fails is asked again, one call at a time and all together.

    Raises `ConfigurationError` for attempts and timeouts of 0 or less, and for negative pauses.
    """

    attempts: int = 10
    """Of one call; and rounds without any answer before the server counts as down."""
    timeouts: int = 3
    """Attempts of one call that may end at the timeout."""
    timeout: float | None = 600.0
    """Seconds that one attempt may take, whatever timeout the client itself has; None waits."""
    first_pause: float = 0.5
    """Seconds before the second attempt, at most; each pause is drawn at random."""
    longest_pause: float = 30.0
    longest_wait: float = 300.0
    """A server that asks to wait longer than these seconds is not waited for."""

    def __post_init__(self) -> None:
        check_counts("Patience", attempts=self.attempts, timeouts=self.timeouts)
        if self.timeout is not None:
            check_numbers("Patience", lambda n: n > 0, "of seconds above 0", timeout=self.timeout)
        for name in ("first_pause", "longest_pause", "longest_wait"):
            pause = {name: getattr(self, name)}
            check_numbers("Patience", lambda n: n >= 0, "of seconds of at least 0", **pause)


_lane: ContextVar[Lane | None] = ContextVar("lg_textgrad_lane", default=None)


def lane_in_scope() -> Lane | None:
    """Return the lane that the current call goes through: whoever owns it asks again."""
    return _lane.get()


class Lane:
    """The way to one model on one server. Safe to share between loops and threads."""

    def __init__(
        self, name: str, limit: int, patience: Patience, faults: Counter[str] | None = None
    ) -> None:
        self.name = name
        self.patience = patience
        self.places = Limiter(limit)
        self.faults: Counter[str] = Counter() if faults is None else faults
        self._widest = limit
        self._width = float(limit)
        self._guard = threading.Lock()
        self._number = 0
        self._flying: set[int] = set()
        self._answered = False
        self._not_before = 0.0
        # What follows is about the time since the last answer.
        self._rounds = 0
        self._slow_rounds = 0
        self._round_from = 0
        self._streak_from = 0
        self._refused = 0
        self._failing: set[Course] = set()
        self._narrowed_from = 0
        self._courses = 0
        self._down: tuple[int, ModelError] | None = None

    @property
    def width(self) -> int:
        """How many calls may be under way at this moment."""
        return self.places.limit

    def wait(self, seconds: float) -> None:
        """Let no call begin for so many seconds: the server said that it has had enough.

        One that asks for longer than `longest_wait` will say so again when it is asked.
        """
        if seconds > self.patience.longest_wait:
            return
        with self._guard:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def close(self, error: ModelError) -> None:
        """Give everyone who waits `error`, which the next call would meet too.

        Who comes later finds the lane open: the server, or the key, may have been mended. But not
        for a batch that met the error: it ends with it, and its last calls are on their way.
        """
        with self._guard:
            self._close(error, shared())
        self.places.limit = self._widest

    def _close(self, error: ModelError, batch: dict[Any, Any]) -> None:
        self._down = self._courses, error
        batch[self] = error
        self._failing.clear()
        self._rounds = min(self._rounds, _SUSPECT)
        self._slow_rounds = self._refused = 0
        self._not_before = 0.0

    def _closed_for(self, course: Course) -> ModelError | None:
        if self._down is not None and course.number < self._down[0]:
            return self._down[1]
        return course.batch.get(self)

    def pause(self, course: Course) -> float:
        """Return the seconds to wait before an attempt. Raises what the lane is closed with."""
        if (down := self._closed_for(course)) is not None:
            raise _again(down)
        return self._not_before - time.monotonic() if self._not_before else 0.0

    # Attempts.

    def course(self) -> Course:
        """Return what makes the attempts of one call, which begins now."""
        with self._guard:
            self._courses += 1
            return Course(self, self._courses - 1)

    @contextmanager
    def _watched(self, course: Course) -> Iterator[None]:
        """Learn from how one attempt ends. Raises `ModelDownError` for the last that is made."""
        with self._guard:
            number = self._number
            self._number += 1
            self._flying.add(number)
        token = _lane.set(self)
        try:
            yield
        except Exception as error:
            self._failed(number, course, error)
            down = self._closed_for(course)
            if down is not None and not isinstance(error, LGTextGradError):
                # Without the SDK's exception, which holds the request's headers.
                raise _again(down) from None
            raise
        except BaseException:
            with self._guard:
                self._flying.discard(number)
            raise
        else:
            self._passed(number)
        finally:
            with suppress(ValueError):  # closed by the garbage collector, in another context
                _lane.reset(token)

    def _passed(self, number: int) -> None:
        with self._guard:
            self._flying.discard(number)
            self._answered = True
            self._rounds = self._slow_rounds = self._refused = 0
            self._failing.clear()
            if self._width < self._widest:
                self._width = min(self._widest, self._width + 1 / self._width)
            wide = int(self._width)
        if wide != self.places.limit:
            self.places.limit = wide

    def _failed(self, number: int, course: Course, error: Exception) -> None:
        fault = fault_of(error)
        self.faults[fault.kind if fault else "refused_request"] += 1
        with self._guard:
            self._flying.discard(number)
            if not self._failing:
                self._streak_from = self._number
            self._failing.add(course)
            if fault is None:
                self._refused += 1
            else:
                self._learn(number, fault)
            wide = 1 if self._rounds >= _SUSPECT else int(self._width)
            # A server that has answered, and where nobody listens now, may come back.
            passing = fault is not None and self._answered
            if isinstance(error, ModelError) and isinstance(error, SYSTEMIC) and not passing:
                self._close(error, course.batch)
                wide = self._widest
            elif self._hopeless(fault):
                self._close(ModelDownError(self._epitaph(error, fault)), course.batch)
                wide = self._widest
        if wide != self.places.limit:
            self.places.limit = wide

    def _learn(self, number: int, fault: Fault) -> None:
        # Calls that were under way together fail together, and count as one failure.
        if number >= self._round_from or not self._rounds:
            self._rounds += 1
            self._slow_rounds += fault.kind == "timeout"
            self._round_from = self._number
        if fault.crowded and number >= self._narrowed_from:
            self._width = max(1.0, self._width * _NARROWER)
            self._narrowed_from = self._number
        wait = fault.wait or 0.0
        if self._rounds > 1:
            wait = max(wait, self._backoff(self._rounds - 1))
        if 0 < wait <= self.patience.longest_wait:
            self._not_before = max(self._not_before, time.monotonic() + wait)

    def _hopeless(self, fault: Fault | None) -> bool:
        patience = self.patience
        if fault is not None and (fault.wait or 0.0) > patience.longest_wait:
            return True
        if len(self._failing) < _SUSPECT:
            return False  # a sick request that is asked again and again proves nothing
        if any(number < self._streak_from for number in self._flying):
            return False  # one that began before all this may still be answered
        return (
            self._rounds >= max(2, patience.attempts)
            or self._slow_rounds >= max(2, patience.timeouts)
            or self._refused >= _REFUSED
        )

    def _backoff(self, number: int) -> float:
        pause = min(self.patience.longest_pause, self.patience.first_pause * 2.0 ** (number - 1))
        return float(pause * random.uniform(0.5, 1))

    def _epitaph(self, error: Exception, fault: Fault | None) -> str:
        if fault is not None and (fault.wait or 0.0) > self.patience.longest_wait:
            return (
                f"{self.name} asks to wait {fault.wait:.0f} seconds. Everything that was paid for "
                "is kept: resume then."
            )
        return (
            f"All of the last calls to {self.name} failed. Everything that was paid for is kept: "
            "mend the server, or what is sent to it, and resume. The last failure was "
            f"{type(error).__name__}: {brief(scrub(str(error)))}"
        )

    def allowed(self, kind: str) -> int:
        """Return how many attempts a call gets that fails in this way."""
        if not self._answered and kind == "unreachable":
            return 1  # a wrong address, most likely
        if not self._answered and kind == "garbled":
            return min(_STRANGER, self.patience.attempts)
        return self.patience.timeouts if kind == "timeout" else self.patience.attempts


class Course:
    """The attempts of one call, on its lane: whether there is another, when, and what it does."""

    def __init__(self, lane: Lane, number: int) -> None:
        self.number = number
        self.batch: dict[Any, ModelError] = shared()
        """The errors that ended what goes together with this call, by the lane that met them."""
        self._lane = lane
        self._seen: Counter[str] = Counter()

    def attempts(self) -> Retrying:
        """Iterate over the attempts, `with` each: the last one's error is raised."""
        return Retrying(retry=self._again, wait=self._pauses(), reraise=True)

    def aattempts(self) -> AsyncRetrying:
        """`attempts` for coroutines."""
        return AsyncRetrying(
            retry=self._again, wait=self._pauses(), sleep=asyncio.sleep, reraise=True
        )

    @asynccontextmanager
    async def aturn(self, common: Limiter | None = None) -> AsyncIterator[None]:
        """Hold a place on the lane for an attempt, and one under the `common` limit.

        Raises what the lane was closed with, also while that place was waited for.
        """
        async with self._lane.places.ahold():
            while True:
                while (pause := self._lane.pause(self)) > 0:  # noqa: ASYNC110 - it may grow meanwhile
                    await asyncio.sleep(pause)
                async with nullcontext() if common is None else common.ahold():
                    if self._lane.pause(self) <= 0:
                        yield
                        return
                # The server has asked to wait meanwhile; till then other lanes have the place.

    @contextmanager
    def turn(self, common: Limiter | None = None) -> Iterator[None]:
        """`aturn` for plain threads."""
        with self._lane.places.hold():
            while True:
                while (pause := self._lane.pause(self)) > 0:
                    time.sleep(pause)
                with nullcontext() if common is None else common.hold():
                    if self._lane.pause(self) <= 0:
                        yield
                        return

    def call(self, call: Callable[[], T]) -> T:
        """`acall` for plain threads."""
        seconds = self._lane.patience.timeout
        with self._lane._watched(self):  # noqa: SLF001 - the two are one piece
            return call() if seconds is None else _within(seconds, call, self._late)

    async def acall(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make one attempt. Raises what `call` does, and `ModelBusyError` at the timeout."""
        with self._lane._watched(self):  # noqa: SLF001
            limit = asyncio.timeout(self._lane.patience.timeout)
            try:
                async with limit:
                    return await straight(call())
            except TimeoutError:
                if limit.expired():
                    raise self._late() from None
                raise

    def _late(self) -> ModelBusyError:
        return ModelBusyError(
            f"{self._lane.name} did not answer within {self._lane.patience.timeout:g} seconds; "
            "ask for less at once, or raise the timeout.",
            fault="timeout",
        )

    def _pauses(self) -> wait_random_exponential:
        patience = self._lane.patience
        return wait_random_exponential(multiplier=patience.first_pause, max=patience.longest_pause)

    def _again(self, state: RetryCallState) -> bool:
        outcome = state.outcome
        error = outcome.exception() if outcome is not None else None
        fault = fault_of(error) if isinstance(error, Exception) else None
        if fault is None:
            return False
        self._seen[fault.kind] += 1
        return (
            state.attempt_number < self._lane.patience.attempts
            and self._seen[fault.kind] < self._lane.allowed(fault.kind)
        )


class Traffic:
    """The lanes of one run, by route, and what went wrong on them.

    Raises `ConfigurationError` for a `max_concurrency` below 1, with which no call would begin.
    """

    def __init__(self, max_concurrency: int, patience: Patience | None = None) -> None:
        check_counts("Ledger", max_concurrency=max_concurrency)
        self.patience = patience or Patience()
        self.faults: Counter[str] = Counter()
        """How often each kind of fault happened, those that an SDK's own retries hid not counted:
        `faults.KINDS`, `refused_request`, and of replies `truncated`, `refused`, `empty`, ...."""
        self._widest = max_concurrency
        self._guard = threading.Lock()
        self._lanes: dict[Route, Lane] = {}

    def lane(self, route: Route | None) -> Lane:
        """Return the lane of a route; for None one on which nothing is asked again."""
        if route is None:
            return Lane("", self._widest, Patience(attempts=1, timeout=None))
        with self._guard:
            if route not in self._lanes:
                self._lanes[route] = Lane(str(route), self._widest, self.patience, self.faults)
            return self._lanes[route]

    def count(self, kind: str) -> None:
        """Count what is wrong with a reply that did arrive."""
        self.faults[kind] += 1


def _again(down: ModelError) -> ModelError:
    # A new one each time: a raised exception gathers the traceback of everyone who raises it.
    return type(down)(str(down))


def _within(seconds: float, call: Callable[[], T], late: Callable[[], Exception]) -> T:
    """Return what `call` does, or raise `late()` and leave it behind in its thread."""
    done: Future[T] = Future()
    context = copy_context()

    def work() -> None:
        try:
            done.set_result(context.run(call))
        except BaseException as error:  # handed to the caller
            done.set_exception(error)

    threading.Thread(target=work, name="lg_textgrad-call", daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():
            raise
        raise late() from None
