"""Awaiting without giving way to others where there is nothing to wait for."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextvars import ContextVar
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_STEPS = 32
"""Steps in a row: a coroutine that polls must let others make true what it waits for."""

waits: ContextVar[list[bool] | None] = ContextVar("lg_textgrad_waits", default=None)
"""Filled when a call of this context waits for its answer, for who goes on with something else."""


@coroutine
def straight(awaited: Awaitable[T]) -> Generator[Any, Any, T]:
    """Await a coroutine without giving way to others where it waits for nothing.

    HTTP libraries give way at each of their steps. Of many calls that begin at once, the first
    request would leave when the last one is ready to; like this it leaves first, and the server
    works on it while the others are made ready.
    """
    steps, passed = awaited.__await__(), 0
    try:
        wanted = next(steps)
        while True:
            if wanted is None and passed < _MOST_STEPS:
                passed += 1
                wanted = steps.send(None)
                continue
            passed = 0
            if wanted is not None and (sent := waits.get()) is not None and not sent:
                sent.append(True)
            try:
                given = yield wanted
            except GeneratorExit:  # the garbage collector may have closed them already
                steps.close()
                raise
            except BaseException as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(given)
    except StopIteration as done:
        found: T = done.value
        return found
