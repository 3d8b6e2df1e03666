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
_OF_A_PROVIDER: Mapping[str, str] = {
    "ChatBedrock": "aws",
    "ChatBedrockConverse": "aws",
    "ChatCohere": "cohere",
    "ChatGoogleGenerativeAI": "google",
    "ChatVertexAI": "google",
}
"""LangChain classes that ask their provider unless an address is set, which the route then has."""


class Prices:
    """Prices by model. `given` has dollars per million tokens: (in, out) or (in, out, cached in).

    Safe to use from several threads. Raises `ConfigurationError` for what is no price.
    """

    def __init__(self, given: Mapping[str, Sequence[float]] | None = None) -> None:
        self._given = {name: _checked(name, rates) for name, rates in (given or {}).items()}
        self._known: dict[Route, Priced | None] = {}
        self._uncounted: set[Route | None] = set()
        self._guard = threading.Lock()

    def known(self, route: Route | None) -> bool:
        """Return whether calls on this route have a price."""
        return self._priced(route) is not None

    def of(self, usage: Usage, route: Route | None) -> Usage:
        """Return the usage with its dollars; as unpriced where nobody knows the price.

        Nor does anybody where the server didn't count the tokens, unless the model is free. Counts
        that cannot be are mended first.
        """
        usage = _possible(usage)
        priced = self._priced(route)
        counted = not usage.calls or usage.tokens > 0
        if not counted:
            with self._guard:
                self._uncounted.add(route)
        if priced is None or not (counted or _free(priced)):
            return replace(usage, unpriced=usage.calls)
        return replace(usage, usd=priced(usage))

    def counted(self, route: Route | None) -> bool:
        """Return whether all replies on this route so far said how many tokens they took."""
        with self._guard:
            return route not in self._uncounted

    def free(self, route: Route | None) -> bool:
        """Return whether calls on this route are known to cost nothing."""
        priced = self._priced(route)
        return priced is not None and _free(priced)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of models that were asked and whose price nobody knows."""
        with self._guard:
            return tuple(
                sorted(
                    {
                        route.model
                        for route, priced in self._known.items()
                        if priced is None or (route in self._uncounted and not _free(priced))
                    }
                )
            )

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


def _possible(usage: Usage) -> Usage:
    """Return the usage without counts that would lower what was spent, and so lift every cap.

    Some servers say -1 for what they don't know. Others leave the cached tokens out of the
    prompt's, as Anthropic's own API does.
    """
    come, go = max(0, usage.prompt_tokens), max(0, usage.completion_tokens)
    cached = max(0, usage.cached_tokens)
    if cached > come:
        come += cached
    if (come, go, cached) == (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens):
        return usage
    return replace(usage, prompt_tokens=come, completion_tokens=go, cached_tokens=cached)


def _free(priced: Priced) -> bool:
    return priced(Usage(1, prompt_tokens=_MILLION, completion_tokens=_MILLION)) == 0


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

    where: dict[str, Any] = {}
    if "://" in route.server:
        where["provider_api_url"] = route.server
    elif route.server in _OF_A_PROVIDER:
        where["provider_id"] = _OF_A_PROVIDER[route.server]
    else:  # without a server the list would take the model of that name at whoever sells it
        return None

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
