"""One cap over calls, tokens and seconds, for rollouts, judges, critics and rewriters together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lg_textgrad.errors import BudgetExceededError, ConfigurationError
from lg_textgrad.run import Usage


@dataclass(frozen=True, slots=True)
class Budget:
    """The caps; None means no cap. `calls` and `tokens` count what is paid, not what was cached."""

    calls: int | None = None
    tokens: int | None = None
    """Prompt and completion tokens together."""
    seconds: float | None = None
    """Wall-clock time of the whole run, interruptions not counted."""

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(
                    f"The budget's {name} must be positive, not {value}; leave it out for no cap."
                )


class Account:
    """What was spent under a budget. Safe to use from several threads.

    Each call is reserved before it starts, so calls never exceed the cap. A call's tokens are
    reserved as the mean of the calls so far and settled when it is answered, so tokens exceed the
    cap by no more than the calls in flight.
    """

    def __init__(
        self,
        budget: Budget,
        spent: Usage | None = None,
        elapsed: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._spent = spent or Usage()
        self._by_kind: dict[str, Usage] = {}
        self._reserved = 0
        self._clock = clock
        self._started = clock() - elapsed

    @property
    def spent(self) -> Usage:
        return self._spent

    @property
    def by_kind(self) -> dict[str, Usage]:
        """What each kind of call cost: `rollout`, `judge`, `critic`, `rewriter`."""
        return dict(self._by_kind)

    def seed(self, kind: str, usage: Usage) -> None:
        """Note what an earlier session of the same run spent on one kind of call."""
        with self._lock:
            self._by_kind[kind] = self._by_kind.get(kind, Usage()) + usage

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._started

    def reserve(self) -> None:
        """Set one call aside. Raises `BudgetExceededError` when it would go over a cap."""
        budget = self.budget
        with self._lock:
            if budget.calls is not None and self._spent.calls + self._reserved >= budget.calls:
                raise self._over("calls", budget.calls)
            mean = self._spent.tokens / self._spent.calls if self._spent.calls else 0.0
            coming = mean * (self._reserved + 1)
            if budget.tokens is not None and self._spent.tokens + coming > budget.tokens:
                raise self._over("tokens", budget.tokens)
            if budget.seconds is not None and self.elapsed >= budget.seconds:
                raise self._over("seconds", budget.seconds)
            self._reserved += 1

    def release(self) -> None:
        """Give a reservation back: the call was not answered, so nothing was paid."""
        with self._lock:
            self._reserved -= 1

    def settle(self, usage: Usage, kind: str) -> None:
        """Turn a reservation into what the call really cost."""
        with self._lock:
            self._reserved -= 1
            self._add(usage, kind)

    def note(self, usage: Usage, kind: str) -> None:
        """Count what needed no reservation: answers from the store."""
        with self._lock:
            self._add(usage, kind)

    def _add(self, usage: Usage, kind: str) -> None:
        self._spent += usage
        self._by_kind[kind] = self._by_kind.get(kind, Usage()) + usage

    @staticmethod
    def _over(limit: str, cap: float) -> BudgetExceededError:
        return BudgetExceededError(
            f"The budget of {cap:g} {limit} is used up; raise budget_{limit} to go on.",
            limit=limit,
        )
