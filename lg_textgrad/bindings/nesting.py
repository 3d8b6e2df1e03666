"""Whether something that a tool does depends on the candidate: then it is an agent, and no leaf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Inside:
    """What is known of the inside of one call of a tool."""

    def __init__(self, outer: Inside | None) -> None:
        self._outer = outer
        self.depends = False

    def note(self) -> None:
        self.depends = True
        if self._outer is not None:
            self._outer.note()


_inside: ContextVar[Inside | None] = ContextVar("lg_textgrad_inside_tool", default=None)


@contextmanager
def inside_tool() -> Iterator[Inside]:
    """Note what depends on the candidate while a tool runs in the current context."""
    inside = Inside(_inside.get())
    token = _inside.set(inside)
    try:
        yield inside
    finally:
        _inside.reset(token)


def note_dependence() -> None:
    """Note that a model is called, or a parameter read, in the current context."""
    if (inside := _inside.get()) is not None:
        inside.note()
