"""One cap over calls, tokens, dollars and seconds, for rollouts, judges, critics and rewriters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

from lg_textgrad.errors import BudgetExceededError, ConfigurationError
from lg_textgrad.prices import Prices
from lg_textgrad.run import Usage
from lg_textgrad.traffic import Route

_EVERY = 1.0
"""Seconds between two notes of the time: what a killed process may forget, beside its last call."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The caps; None means no cap. `calls` and `tokens` count what is paid, not what was cached.

    Calls never go over their cap; tokens, seconds and dollars by no more than the calls in flight.
    Raises `ConfigurationError` for a cap that is no number above 0.
    """

    calls: int | None = None
    tokens: int | None = None
    """Prompt and completion tokens together."""
    seconds: float | None = None
    """Wall-clock time of the whole run, interruptions not counted."""
    usd: float | None = None
    """Dollars, by `prices` and genai-prices' list. A model whose price is unknown is refused."""
    prices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Model -> dollars per million tokens: (in, out), or (in, out, cached in)."""

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "seconds", "usd"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ConfigurationError(
                    f"The budget's {name} must be a number, not {value!r}; leave it out for no cap."
                )
            if value is not None and not float(value) > 0:
                raise ConfigurationError(
                    f"The budget's {name} must be positive, not {value}; leave it out for no cap."
                )


class Account:
    """What was spent under a budget. Safe to use from several threads.

    Each call is reserved before it starts, so calls never exceed the cap. A call's tokens and
    dollars are reserved as the mean of the calls so far and settled when it is answered, so they
    exceed the cap by no more than the calls in flight. `noted` says that the time is a store's, and
    is noted there with the replies.
    """

    def __init__(
        self,
        budget: Budget,
        spent: Usage | None = None,
        elapsed: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        noted: bool = False,
    ) -> None:
        self.budget = budget
        self.prices = Prices(budget.prices)
        self._lock = threading.Lock()
        self._spent = spent or Usage()
        self._by_kind: dict[str, Usage] = {}
        self._reserved = 0
        self._clock = clock
        self._started = clock() - elapsed
        self._due = 0.0 if noted else float("inf")

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

    def due(self) -> float | None:
        """Return `elapsed` when it has to be noted, once a second; None in between."""
        with self._lock:
            now = self.elapsed
            if now < self._due:
                return None
            self._due = now + _EVERY
            return now

    def reserve(self, route: Route | None = None) -> None:
        """Set one call aside. Raises `BudgetExceededError` when it would go over a cap.

        And `ConfigurationError` under a cap in dollars for a route without a known price, or under
        one in tokens or dollars for a route whose replies don't say what they took.
        """
        budget = self.budget
        self.check_price(route)
        self._check_counted(route)
        with self._lock:
            if budget.calls is not None and self._spent.calls + self._reserved >= budget.calls:
                raise self._over("calls", budget.calls)
            mean = self._spent.tokens / self._spent.calls if self._spent.calls else 0.0
            coming = mean * (self._reserved + 1)
            if budget.tokens is not None and self._spent.tokens + coming > budget.tokens:
                raise self._over("tokens", budget.tokens)
            mean_usd = self._spent.usd / self._spent.calls if self._spent.calls else 0.0
            coming_usd = mean_usd * (self._reserved + 1)
            # Sums of prices are not exact; a millionth of a dollar is nobody's budget.
            if budget.usd is not None and self._spent.usd + coming_usd > budget.usd + 1e-6:
                raise self._over("usd", budget.usd)
            if budget.seconds is not None and self.elapsed >= budget.seconds:
                raise self._over("seconds", budget.seconds)
            self._reserved += 1

    def check_price(self, route: Route | None) -> None:
        """Raise `ConfigurationError` under a cap in dollars for a route without a known price."""
        if self.budget.usd is not None and not self.prices.known(route):
            raise _unpriced(route)

    def _check_counted(self, route: Route | None) -> None:
        """Raise `ConfigurationError` for a route on which a cap would see nothing being spent."""
        caps = []
        if self.budget.tokens is not None:
            caps.append("tokens")
        if self.budget.usd is not None and not self.prices.free(route):
            caps.append("dollars")
        if caps and not self.prices.counted(route):
            raise _uncounted(route, " and ".join(caps))

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
        what = f"{cap:,.10f}".rstrip("0").rstrip(".")  # a million is not 1e+06
        if limit == "usd":
            what = f"${what}"
        else:
            what += f" {limit[:-1] if cap == 1 else limit}"
        return BudgetExceededError(
            f"The budget of {what} is used up; raise budget_{limit} to go on.", limit=limit
        )


def _unpriced(route: Route | None) -> ConfigurationError:
    if route is None:
        return ConfigurationError(
            "A graph on a server tells which models it asked only afterwards, so a budget in "
            "dollars cannot be kept; cap its calls or tokens instead."
        )
    return ConfigurationError(
        f"The price of {route} is not known, so a budget in dollars cannot be kept. Give it with "
        f'prices = {{"{route.model}" = [in, out]}}, in dollars per million tokens, or cap calls '
        "or tokens instead."
    )


def _uncounted(route: Route | None, caps: str) -> ConfigurationError:
    whose = "The graph's server" if route is None else f"The server of {route}"
    return ConfigurationError(
        f"{whose} does not say how many tokens a reply took, so a budget in {caps} cannot be kept. "
        "Have it count them (a client that streams has to ask for it, ChatOpenAI with "
        "stream_usage=True), or cap calls instead."
    )
