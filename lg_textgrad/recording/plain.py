"""Values of one run as plain data, each object turned once.

A state's values go from node to node as the same objects: a list of messages grows by the few that
are new. So what an object was turned into is kept, and used again while the object still has the
same items. Turning the inputs of a node then costs a glance at what is in them, and that of a long
list not even a glance at what is inside its items: `changes` looks at all of it, once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from operator import is_
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from lg_textgrad._hashing import AS_THEY_ARE, message_to_plain, to_plain
from lg_textgrad.tracking import fields_of

LONG = 64
"""With more than so many objects in it, a container is not looked into at each node."""

_SAID = ("content", "tool_calls")
_SETTLED = AS_THEY_ARE | {str, float, bytes}


class _Kept:
    """An object, what it was turned into, and what it had in it then."""

    __slots__ = ("inside", "items", "keys", "named", "own", "plain", "value")

    def __init__(
        self,
        value: Any,
        plain: Any,
        items: tuple[Any, ...],
        named: tuple[str, ...] | None,
    ) -> None:
        self.value = value  # held, so that its id stays its own
        self.plain = plain
        self.items = items
        self.keys = tuple(value) if type(value) is dict else None
        self.named = named
        """The attributes of an object that count."""
        self.own = None if named is None else _own(value)
        self.inside: list[_Kept] = []
        """What is kept of everything inside of it, however deep; empty where that is a lot."""

    def moved(self) -> bool:
        """Return whether the object itself has other items now."""
        value, items = self.value, self.items
        if self.named is not None:
            own = self.own or fields_of(value) or {}
            return not all(map(is_, map(own.get, self.named), items))
        if self.keys is None:
            return len(value) != len(items) or not all(map(is_, value, items))
        return (
            len(value) != len(items)
            or tuple(value) != self.keys
            or not all(map(is_, value.values(), items))
        )


class Plainer:
    """Turns values into what `to_plain` makes of them. The results are shared: leave them be."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def of(self, value: Any) -> Any:
        """Return `value` as JSON data."""
        kind = type(value)
        if kind is str:
            return value if value.isascii() else to_plain(value)
        if kind in AS_THEY_ARE:
            return value
        kept = self._kept.get(id(value))
        if kept is not None and not _moved(kept):
            return kept.plain
        return self._turn(value, kind)

    def each(self, values: Iterable[Any]) -> list[Any]:
        """Return each of `values` as JSON data."""
        items = values if isinstance(values, list | tuple) else list(values)
        if len(items) <= LONG:
            return [self.of(item) for item in items]
        known = self._kept.get
        return [
            kept.plain if (kept := known(id(item))) is not None else self.of(item)
            for item in items
        ]

    def changed(self, value: Any) -> bool:
        """Return whether `value` says something else than when it was turned last.

        It is turned anew then. What is deep inside of something long is not looked at.
        """
        kept = self._kept.get(id(value))
        if kept is None or not _moved(kept):
            return False
        return bool(kept.plain != self._turn(value, type(value)))

    def changes(self) -> Iterator[Any]:
        """Yield the objects that say something else now, of all that were ever turned."""
        for kept in list(self._kept.values()):
            if kept.moved() and kept.plain != self._turn(kept.value, type(kept.value)):
                yield kept.value

    def _turn(self, value: Any, kind: type) -> Any:
        named: tuple[str, ...] | None = None
        if kind is list or kind is tuple:
            items = tuple(value)
            plain: Any = self.each(items)
        elif kind is dict:
            items = tuple(value.values())
            plain = dict(zip(map(_key, value), self.each(items), strict=True))
        elif isinstance(value, BaseMessage):
            named = _SAID
            items = _items(value, named)
            plain = message_to_plain(value)
            self.each(items)  # kept, so that a change further inside is noticed
        elif names := tuple(_in_order(kind)):
            named = names
            items = _items(value, named)
            plain = dict(zip(names, self.each(items), strict=True))
        elif isinstance(value, Mapping):
            # Not kept: most are made for the moment. `dict.items` is not seen by who counts reads.
            pairs = dict.items(value) if isinstance(value, dict) else value.items()
            return {_key(k): self.of(v) for k, v in pairs}
        else:
            return to_plain(value)
        kept = self._kept[id(value)] = _Kept(value, plain, items, named)
        if len(items) <= LONG:
            self._look_into(kept)
        return plain

    def _look_into(self, kept: _Kept) -> None:
        found: list[_Kept] = []
        for item in kept.items:
            if type(item) not in _SETTLED and (inner := self._kept.get(id(item))) is not None:
                found.append(inner)
                found.extend(inner.inside)
        if len(found) <= LONG:
            kept.inside = found


def _moved(kept: _Kept) -> bool:
    return kept.moved() or any(inner.moved() for inner in kept.inside)


def _key(key: Any) -> str:
    return key if type(key) is str and key.isascii() else str(to_plain(str(key)))


def _in_order(kind: type) -> Iterable[str]:
    if issubclass(kind, BaseModel):
        return kind.model_fields
    return (f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _own(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, live; None where it has slots instead."""
    try:
        # Not getattr: a state may note who looks at it.
        own: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own


def _items(value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    own = _own(value) or fields_of(value) or {}
    return tuple(map(own.get, names))
