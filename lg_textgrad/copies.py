"""What an example holds, made anew for one run."""

from __future__ import annotations

import copy
from typing import Any

from lg_textgrad.tracking import field_names


def anew(value: Any, _made: dict[int, Any] | None = None) -> Any:
    """Return a copy of `value` in which a run may change whatever it likes.

    Dicts, lists, sets, tuples, messages, Pydantic models and dataclasses are copied however deep
    they stand; what is something else (a client, a data frame) is the same object. What stands in
    several places is one object in the copy too.
    """
    made = {} if _made is None else _made
    if id(value) in made:
        return made[id(value)]
    kind = type(value)
    same: Any
    if isinstance(value, dict):
        same = made[id(value)] = copy.copy(value)
        for key, inner in dict.items(value):
            same[key] = anew(inner, made)
    elif isinstance(value, list):
        same = made[id(value)] = copy.copy(value)
        same[:] = [anew(inner, made) for inner in value]
    elif kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_make")):
        parts = [anew(inner, made) for inner in value]
        same = made[id(value)] = kind(parts) if kind is tuple else kind._make(parts)
    elif isinstance(value, set):
        same = made[id(value)] = copy.copy(value)
    elif isinstance(value, type) or not (names := field_names(kind)):
        return value
    else:
        same = made[id(value)] = copy.copy(value)
        for name in names:
            # Not getattr and setattr: frozen classes, and those that validate what is set.
            if hasattr(value, name):
                inner = object.__getattribute__(value, name)
                object.__setattr__(same, name, anew(inner, made))
    return same
