"""What an example holds, made anew for one run."""

from __future__ import annotations

import copy
from typing import Any

from lg_textgrad.tracking import field_names

_LEAVES = frozenset({str, int, float, bool, bytes, type(None)})
"""What data mostly consists of: to look at each more closely is what a big example would cost."""


def anew(value: Any, _made: dict[int, Any] | None = None) -> Any:
    """Return a copy of `value` in which a run may change whatever it likes.

    Dicts, lists, sets, tuples, messages, Pydantic models and dataclasses are copied however deep
    they stand; what is something else (a client, a data frame), or refuses to be copied, is the
    same object. What stands in several places is one object in the copy too.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    made = {} if _made is None else _made
    if id(value) in made:
        return made[id(value)]
    same: Any
    if kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_make")):
        parts = [anew(inner, made) for inner in value]
        same = made[id(value)] = kind(parts) if kind is tuple else kind._make(parts)
        return same
    if isinstance(value, type) or not (isinstance(value, dict | list | set) or field_names(kind)):
        return value
    same = made[id(value)] = _shallow(value)
    if same is value:
        return value
    # What is inside is put in by no method of the class: it may be frozen, or validate.
    if isinstance(value, dict):
        for key, inner in dict.items(value):
            dict.__setitem__(same, key, anew(inner, made))
    elif isinstance(value, list):
        list.__setitem__(same, slice(None), [anew(inner, made) for inner in value])
    elif not isinstance(value, set):
        for name in field_names(kind):
            if hasattr(value, name):
                inner = object.__getattribute__(value, name)
                object.__setattr__(same, name, anew(inner, made))
    return same


def _shallow(value: Any) -> Any:
    """Return a copy of the outermost object; the object itself where that cannot be had."""
    try:
        return copy.copy(value)
    except Exception:  # whatever its class says against it
        return value
