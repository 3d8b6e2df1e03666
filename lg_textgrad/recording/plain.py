"""Values of one run as plain data, each object turned once.

A state's values go from node to node as the same objects: a list of messages grows by the few that
are new. So what an object was turned into is kept, and used again while the object still has the
same items. Turning the inputs of a node then costs a look at each message, not its conversion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import is_
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from lg_textgrad._hashing import AS_THEY_ARE, message_to_plain, to_plain

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
        self.inner = tuple(item for item in items if type(item) not in _SETTLED)


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

    def moved(self, value: Any) -> bool:
        """Return whether something in `value` was changed in place since it was turned last."""
        kept = self._kept.get(id(value))
        return kept is not None and self._moved(kept)

    def _turn(self, value: Any, kind: type) -> Any:
        names: tuple[str, ...] | None = None
        if kind is list or kind is tuple:
            items = tuple(value)
            plain: Any = [self.of(item) for item in items]
        elif kind is dict:
            items = tuple(value.values())
            plain = dict(zip(map(_key, value), map(self.of, items), strict=True))
        elif isinstance(value, BaseMessage):
            names = _SAID
            items = _fields(value, names)
            plain = message_to_plain(value)
            for item in items[:2]:
                self.of(item)  # kept, so that a change further inside is noticed
        elif isinstance(value, BaseModel):
            names = tuple(type(value).model_fields)
            items = _fields(value, names)
            plain = dict(zip(names, map(self.of, items), strict=True))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = tuple(f.name for f in dataclasses.fields(value))
            items = _fields(value, names)
            plain = dict(zip(names, map(self.of, items), strict=True))
        elif isinstance(value, Mapping):
            # Not kept: most are made for the moment. `dict.items` is not seen by who counts reads.
            pairs = dict.items(value) if isinstance(value, dict) else value.items()
            return {_key(k): self.of(v) for k, v in pairs}
        else:
            return to_plain(value)
        self._kept[id(value)] = _Kept(value, plain, items, names)
        return plain

    def _moved(self, kept: _Kept) -> bool:
        value = kept.value
        now: Any
        if kept.names is not None:
            now = _fields(value, kept.names)
        elif kept.keys is None:
            now = value
        elif len(value) != len(kept.keys) or tuple(value) != kept.keys:
            return True
        else:
            now = value.values()
        if len(now) != len(kept.items) or not all(map(is_, now, kept.items)):
            return True
        for item in kept.inner:
            inner = self._kept.get(id(item))
            if inner is not None and self._moved(inner):
                return True
        return False


def _key(key: Any) -> str:
    return key if type(key) is str and key.isascii() else str(to_plain(str(key)))


def _fields(value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    own = getattr(value, "__dict__", None)
    if own is None:
        return tuple(getattr(value, name, None) for name in names)
    return tuple(map(own.get, names))
