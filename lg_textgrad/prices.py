"""What calls cost in dollars: from genai-prices' list, which is part of its package, or as given.

A price that is not known is said to be unknown, never guessed from a model of a like name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.run import Usage
from lg_textgrad.traffic import EMBEDDED, Route

Priced = Callable[[Usage], float]
_MILLION = 1_000_000


class Prices:
    """Prices by model. `given` has dollars per million tokens: (in, out) or (in, out, cached in).

    Safe to use from several threads. Raises `ConfigurationError` for what is no price.
    """

    def __init__(self, given: Mapping[str, Sequence[float]] | None = None) -> None:
        self._given = {name: _checked(name, rates) for name, rates in (given or {}).items()}
        self._known: dict[Route, Priced | None] = {}
        self._guard = threading.Lock()

    def known(self, route: Route | None) -> bool:
        """Return whether calls on this route have a price."""
        return self._priced(route) is not None

    def of(self, usage: Usage, route: Route | None) -> Usage:
        """Return the usage with its dollars; as unpriced where nobody knows the price."""
        priced = self._priced(route)
        if priced is None:
            return replace(usage, unpriced=usage.calls)
        return replace(usage, usd=priced(usage))

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of models that were asked and whose price nobody knows."""
        with self._guard:
            return tuple(sorted({r.model for r, priced in self._known.items() if priced is None}))

    def said(self, route: Route) -> str:
        """Return the price of a route in words."""
        priced = self._priced(route)
        if priced is None:
            return "price unknown"
        come = priced(Usage(1, prompt_tokens=_MILLION))
        go = priced(Usage(1, completion_tokens=_MILLION))
        return f"${come:g} in, ${go:g} out per million tokens" if come or go else "free"

    def _priced(self, route: Route | None) -> Priced | None:
        if route is None:
            return None
        with self._guard:
            if route not in self._known:
                self._known[route] = self._looked_up(route)
            return self._known[route]

    def _looked_up(self, route: Route) -> Priced | None:
        if route.model in self._given:
            return _linear(*self._given[route.model])
        if route.server == EMBEDDED:
            return _linear(0.0, 0.0, 0.0)
        return _listed(route)


def _checked(name: str, rates: Sequence[float]) -> tuple[float, float, float]:
    fits = isinstance(rates, list | tuple) and len(rates) in (2, 3)
    if not fits or not all(type(r) in (int, float) and r >= 0 for r in rates):
        raise ConfigurationError(
            f"The price of '{name}' must be two numbers, dollars per million tokens in and out, "
            f"or three with that of cached tokens in; not {rates!r}."
        )
    come, go, *cached = (float(r) for r in rates)
    return come, go, cached[0] if cached else come


def _linear(come: float, go: float, cached: float) -> Priced:
    def priced(usage: Usage) -> float:
        fresh = usage.prompt_tokens - usage.cached_tokens
        total = fresh * come + usage.cached_tokens * cached + usage.completion_tokens * go
        return total / _MILLION

    return priced


def _listed(route: Route) -> Priced | None:
    """Return the price in genai-prices' list; None where the model or its server is not in it."""
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    where: dict[str, Any] = {"provider_api_url": route.server} if "://" in route.server else {}

    def ask(come: int, go: int, cached: int = 0) -> Decimal:
        tokens = Tokens(
            input_tokens=come, output_tokens=go, cache_read_tokens=cached or None
        )
        return calc_price(tokens, route.model, **where).total_price

    def asked(usage: Usage) -> float:
        counted = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        return float(ask(*counted))

    try:
        large = ask(_MILLION, 0), ask(0, _MILLION), ask(_MILLION, 0, _MILLION)
        small = ask(1000, 0), ask(0, 1000), ask(1000, 0, 1000)
    except LookupError:
        return None
    # Looking a price up takes a millisecond; where a token always costs the same, once will do.
    if all(much == 1000 * little for much, little in zip(large, small, strict=True)):
        return _linear(*(float(price) for price in large))
    return asked
