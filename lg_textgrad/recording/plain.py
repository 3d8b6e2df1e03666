"""Values of one run as plain data, each object turned once.

A state's values go from node to node as the same objects: a list of messages grows by the few that
are new. So what an object was turned into is kept, and used again while the object still has the
same items. Turning the inputs of a node then costs a glance at what is in them, and that of a long
list not even a glance at what is inside its items: `changed` looks at all of it, once.
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

LONG = 32
"""From how many items on a container is not looked into again at each node."""

_SAID = ("content", "tool_calls", "name", "tool_call_id", "status")
_SETTLED = AS_THEY_ARE | {str, float, bytes}


class _Kept:
    """An object, what it was turned into, and what it had in it then."""

    __slots__ = ("inner", "items", "keys", "names", "plain", "value")

    def __init__(
        self, value: Any, plain: Any, items: tuple[Any, ...], names: tuple[str, ...] | None
    ) -> None:
        self.value = value  # held, so that its id stays its own
        self.plain = plain
        self.items = items
        self.keys = tuple(value) if type(value) is dict else None
        self.names = names
        self.inner = [item for item in items if type(item) not in _SETTLED]

    def moved(self) -> bool:
        """Return whether the object itself has other items now."""
        value, items = self.value, self.items
        if self.names is not None:
            own = _own(value)
            return not all(map(is_, map(own.get, self.names), items))
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
        if kept is not None and not self._moved(kept):
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

    def moved(self, value: Any) -> bool:
        """Return whether something in `value` was changed in place since it was turned last."""
        kept = self._kept.get(id(value))
        return kept is not None and self._moved(kept)

    def changed(self) -> Iterator[Any]:
        """Yield the objects that were changed in place since they were turned last."""
        return (kept.value for kept in list(self._kept.values()) if kept.moved())

    def _turn(self, value: Any, kind: type) -> Any:
        names: tuple[str, ...] | None = None
        if kind is list or kind is tuple:
            items = tuple(value)
            plain: Any = self.each(items)
        elif kind is dict:
            items = tuple(value.values())
            plain = dict(zip(map(_key, value), self.each(items), strict=True))
        elif isinstance(value, BaseMessage):
            names = _SAID
            items = tuple(map(_own(value).get, names))
            plain = message_to_plain(value)
            for item in items[:2]:
                self.of(item)  # kept, so that a change further inside is noticed
        elif fields := tuple(_in_order(kind)):
            names = fields
            items = tuple(map(_own(value).get, names))
            plain = dict(zip(names, self.each(items), strict=True))
        elif isinstance(value, Mapping):
            # Not kept: most are made for the moment. `dict.items` is not seen by who counts reads.
            pairs = dict.items(value) if isinstance(value, dict) else value.items()
            return {_key(k): self.of(v) for k, v in pairs}
        else:
            return to_plain(value)
        self._kept[id(value)] = _Kept(value, plain, items, names)
        return plain

    def _moved(self, kept: _Kept) -> bool:
        if kept.moved():
            return True
        if 0 < len(kept.inner) <= LONG:
            for item in kept.inner:
                inner = self._kept.get(id(item))
                if inner is not None and self._moved(inner):
                    return True
        return False


def _key(key: Any) -> str:
    return key if type(key) is str and key.isascii() else str(to_plain(str(key)))


def _in_order(kind: type) -> Iterable[str]:
    if issubclass(kind, BaseModel):
        return kind.model_fields
    return (f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _own(value: Any) -> dict[str, Any]:
    try:
        # Not getattr: a state may note who looks at it.
        own: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return fields_of(value) or {}
    return own
