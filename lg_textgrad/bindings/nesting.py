"""Whether something that a tool does depends on the candidate: then it is an agent, and no leaf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Inside:
    """What is known of the inside of one call of a tool."""

    def __init__(self, outer: Inside | None) -> None:
        self._outer = outer
        self.depends = False
        self.written: list[Any] = []
        """What it put into the store of the graph."""

    def note(self) -> None:
        self.depends = True
        if self._outer is not None:
            self._outer.note()

    def note_written(self, op: Any) -> None:
        self.written.append(op)
        if self._outer is not None:
            self._outer.note_written(op)


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


def note_written(op: Any) -> None:
    """Note what the current context puts into the store of the graph."""
    if (inside := _inside.get()) is not None:
        inside.note_written(op)
