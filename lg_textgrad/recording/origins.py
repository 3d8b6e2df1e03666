"""Where a value came from that a node's code handed to a task or a graph, or returned.

Values travel through code as the same objects. So what a node was given and what its calls came
back with is remembered by identity, strings and numbers by what they are, and a value is looked up:
itself, else all its parts. A string may also be put together from known ones and from constants of
the code, as f-strings and joins do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.types import Command

from lg_textgrad.tracking import fields_of

Origins = dict[Any, None]
"""Places, in the order in which they were found."""

_MANY = 5_000


class Known:
    """The values that a node's code has at hand, and where each came from."""

    def __init__(self, constants: frozenset[Any] = frozenset()) -> None:
        self._constants = constants
        self._objects: dict[int, tuple[Any, list[tuple[int, Any]]]] = {}
        self._scalars: dict[Any, list[tuple[int, Any]]] = {}

    def add(self, value: Any, origin: Any, at: int) -> None:
        """Remember `value` and its parts. `at`: the moment from which on the code has it."""
        for part in walk(value):
            if part is not None:
                self._add(part, origin, at)

    def _add(self, part: Any, origin: Any, at: int) -> None:
        if _is_scalar(part):
            self._scalars.setdefault(_by_value(part), []).append((at, origin))
        else:
            self._objects.setdefault(id(part), (part, []))[1].append((at, origin))

    def add_new(self, value: Any, origins: Iterable[Any], at: int) -> None:
        """Remember those parts of `value` that are not known yet."""
        new = [part for part in walk(value) if not self._has(part)]
        for part in new:
            if part is not None:
                for origin in origins:
                    self._add(part, origin, at)

    def _has(self, part: Any) -> bool:
        if _is_scalar(part):
            return _by_value(part) in self._scalars
        return id(part) in self._objects

    def add_inputs(self, inputs: Any) -> None:
        """Remember what the node was given, by key."""
        given = inputs if isinstance(inputs, Mapping) else fields_of(inputs)
        if given is None:
            self.add(inputs, ("", "*"), 0)
            return
        for key, value in items_of(given):
            self.add(value, ("", str(key)), 0)

    def add_from_outside(self, inputs: Any) -> None:
        """Remember values that no node made: what a run was resumed with."""
        if isinstance(inputs, Command):
            self.add(inputs.resume, None, 0)

    def whole(self, value: Any, before: int) -> Origins | None:
        """Return where `value` came from, if it is handed on as it is; None when it isn't.

        A new list or dict of such values counts as handed on.
        """
        return self._of(value, before, joined=False, left=[_MANY])

    def made_of(self, value: Any, before: int) -> Origins | None:
        """Return where all parts of `value` came from; None when some may be from anywhere."""
        return self._of(value, before, joined=True, left=[_MANY])

    def _of(self, value: Any, before: int, *, joined: bool, left: list[int]) -> Origins | None:
        left[0] -= 1
        if value is None:
            return {}
        if left[0] < 0:
            return None
        if _is_scalar(value):
            known = _until(self._scalars.get(_by_value(value), ()), before)
            if known is not None:
                return known
            if joined and _by_value(value) in self._constants:
                return {}
            return self._pieces(value, before) if joined and isinstance(value, str) else None
        known = _until(self._objects.get(id(value), (None, ()))[1], before)
        if known is not None:
            return known
        parts = _parts(value)
        if parts is None or not (joined or isinstance(value, dict | list | tuple)):
            return None
        found: Origins = {}
        for part in parts:
            origins = self._of(part, before, joined=joined, left=left)
            if origins is None:
                return None
            found.update(origins)
        return found

    def _pieces(self, text: str, before: int) -> Origins | None:
        """Return where the pieces of a string came from, the longest that fit first."""
        known = {
            t: o for t, o in self._texts() if t and t in text and _until(o, before) is not None
        }
        fixed = [t for kind, t in self._constants if kind is str and t and t in text]
        pieces = sorted([*known, *(t for t in fixed if t not in known)], key=len, reverse=True)
        found: Origins = {}
        at = 0
        while at < len(text):
            piece = next((p for p in pieces if text.startswith(p, at)), None)
            if piece is None:
                return None
            at += len(piece)
            if piece in known:
                found.update(_until(known[piece], before) or {})
        return found

    def _texts(self) -> Iterator[tuple[str, list[tuple[int, Any]]]]:
        """Yield what a known scalar looks like inside of a string."""
        return ((str(value), origins) for (_, value), origins in self._scalars.items())


def items_of(values: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Return the items, unseen by a dict that notes who looks at it."""
    return dict.items(values) if isinstance(values, dict) else values.items()


def _until(origins: Iterable[tuple[int, Any]], before: int) -> Origins | None:
    """Return where a value came from, as far as that was then; None for one that was not there."""
    found = {origin: None for at, origin in origins if at < before}
    if not found:
        return None
    found.pop(None, None)
    return found


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int | float)


def _by_value(value: Any) -> tuple[type, Any]:
    return (str if isinstance(value, str) else type(value), value)


def walk(value: Any) -> Iterator[Any]:
    """Yield a value and what it has in it, at most so many as a person could have meant."""
    waiting, left, seen = [value], _MANY, set[int]()
    while waiting and left:
        one = waiting.pop()
        left -= 1
        yield one
        if not _is_scalar(one) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(_parts(one) or ())


def _parts(value: Any) -> Iterable[Any] | None:
    """Return what a value is made of; None for what can't be looked into."""
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, BaseMessage):
        return [value.content, getattr(value, "tool_calls", None)]
    fields = fields_of(value)
    return None if fields is None else list(fields.values())


@functools.lru_cache(maxsize=1024)
def constants_of(function: Any) -> frozenset[Any]:
    """Return the constants that a function can put into what it makes, as (type, value).

    Its literals, the constants of the module that it names, and the default arguments of what it
    calls.
    """
    if not isinstance(function, FunctionType):
        return frozenset()
    found: set[Any] = set()
    names: list[str] = []
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.extend((*code.co_names, *code.co_freevars))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                codes.append(constant)
            else:
                found.update(map(_by_value, filter(_is_scalar, walk(constant))))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    for name in names:
        try:
            used = cells[name].cell_contents if name in cells else function.__globals__.get(name)
        except ValueError:  # a name that is not bound yet
            continue
        if _is_scalar(used):
            found.add(_by_value(used))
        called = getattr(used, "func", used)
        if isinstance(called, FunctionType):
            defaults = (*(called.__defaults__ or ()), *(called.__kwdefaults__ or {}).values())
            found.update(map(_by_value, filter(_is_scalar, defaults)))
    return frozenset(found)
