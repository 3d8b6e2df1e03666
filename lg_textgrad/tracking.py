"""States that remember which of their keys were read."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from pydantic import BaseModel


class ReadTrackingDict(dict[str, Any]):
    """Behaves as the dict that it copies; `keys_read` has the keys that somebody looked at.

    Looking at the whole (iterating, copying, comparing, printing) counts as reading every key:
    too many reads make a trace wider than it is, too few would hide a dependency.
    """

    __slots__ = ("keys_read",)

    def __init__(self, values: Any = (), keys_read: set[str] | None = None) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set() if keys_read is None else keys_read

    def start(self) -> set[str]:
        """Forget what was read so far, and what copies made so far will read; return the new sheet.

        So that each of those who share a state starts with a clean one.
        """
        self.keys_read = set()
        return self.keys_read

    def __copy__(self) -> ReadTrackingDict:
        return ReadTrackingDict(dict.items(self), self.keys_read)

    def _all(self) -> None:
        self.keys_read.update(dict.keys(self))

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.keys_read.add(str(key))
        return super().__contains__(key)

    def pop(self, key: str, *default: Any) -> Any:
        self.keys_read.add(key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._all()
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().setdefault(key, default)

    # Overriding __iter__ also keeps `{**state}` and `dict(state)` off CPython's fast path, which
    # would copy the items unseen.
    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._all()
        return super().__reversed__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(dict.items(self))

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        merged: dict[str, Any] = self.copy() | other
        return merged

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(other) | self.copy()

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    __hash__ = None

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        self._all()
        return super().__repr__()

    def __reduce__(self) -> Any:
        return (dict, (self.copy(),))


# PyYAML, which langchain-core needs, looks classes up one by one: it would refuse this one, or
# write it as no dict.
_yaml: Any = import_module("yaml.representer")
for _representer in (_yaml.SafeRepresenter, _yaml.Representer):
    _representer.add_representer(ReadTrackingDict, _representer.represent_dict)


# State that is an object: a Pydantic model or a dataclass.

_SHEET = "_lg_textgrad_keys_read"
_HELD = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


@functools.lru_cache(maxsize=256)
def tracking_class(schema: type) -> type | None:
    """Return a subclass of a state's class whose instances note which fields somebody looked at.

    They behave as instances of `schema`, which their `__class__` is; copies made by `copy.copy`
    share the sheet, all others and pickles are of `schema` itself. None where it can't be derived
    from.
    """
    base: Any = schema
    fields = field_names(base)

    def read(self: Any, name: str) -> Any:
        if name in fields or name == "__dict__":
            sheet = _sheet(self)
            if sheet is not None:
                sheet.update(fields if name == "__dict__" else (name,))
        return base.__getattribute__(self, name)

    def shallow(self: Any) -> Any:
        made = _filled(tracked, self, fields)
        object.__setattr__(made, _SHEET, _sheet(self))
        return made

    def whole(self: Any) -> Any:
        sheet = _sheet(self)
        if sheet is not None:
            sheet.update(fields)
        return _filled(base, self, fields)

    body = {
        "__slots__": (_SHEET,),
        "__class__": property(lambda _: base),
        "__getattribute__": read,
        "__copy__": shallow,
        "__deepcopy__": lambda self, memo: copy.deepcopy(whole(self), memo),
        "__reduce_ex__": lambda self, protocol: whole(self).__reduce_ex__(protocol),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    try:
        tracked: Any = types.new_class(base.__name__, (base,), {}, lambda space: space.update(body))
    except Exception:  # whatever the class or its metaclass says against it
        return None
    return tracked if isinstance(tracked, type) else None


def field_names(schema: type) -> frozenset[str]:
    """Return the fields of a Pydantic model or a dataclass; none for other classes."""
    if issubclass(schema, BaseModel):
        return frozenset(schema.model_fields)
    if dataclasses.is_dataclass(schema):
        return frozenset(f.name for f in dataclasses.fields(schema))
    return frozenset()


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of such an object by name, unseen by a sheet; None for all others."""
    kind = type(value)
    if not isinstance(value, BaseModel) and not dataclasses.is_dataclass(kind):
        return None
    names = kind.model_fields if issubclass(kind, BaseModel) else field_names(kind)
    found = {}
    for name in names:
        with contextlib.suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    return found


def tracking(state: Any) -> Any:
    """Return a copy of a dict, a Pydantic model or a dataclass that has a sheet; others as is."""
    kind = type(state)
    if kind is dict:
        return ReadTrackingDict(state)
    if not field_names(kind) or isinstance(state, type):
        return state
    tracked = tracking_class(kind)  # type: ignore[arg-type] # mypy: a type is no Hashable
    if tracked is None:
        return state
    made = _filled(tracked, state, field_names(kind))
    object.__setattr__(made, _SHEET, set())
    return made


def start_tracking(state: Any) -> set[str] | None:
    """Give a state a sheet of its own and return it; None for what can't have one."""
    if isinstance(state, ReadTrackingDict):
        return state.start()
    if _sheet(state) is None:
        return None
    object.__setattr__(state, _SHEET, set())
    return _sheet(state)


def all_keys(state: Any) -> frozenset[str]:
    """Return the keys of a dict, or the fields of an object, unseen by a sheet."""
    if isinstance(state, dict):
        return frozenset(dict.keys(state))
    return field_names(type(state))


def _sheet(state: Any) -> set[str] | None:
    try:
        sheet: set[str] = object.__getattribute__(state, _SHEET)
    except AttributeError:
        return None
    return sheet


def _filled(kind: Any, source: Any, fields: Iterable[str]) -> Any:
    """Return an instance of `kind` with what `source` has in it, copied one level deep."""
    made = kind.__new__(kind)
    for name in (*_HELD, *fields):
        with contextlib.suppress(AttributeError):
            value = object.__getattribute__(source, name)
            object.__setattr__(made, name, copy.copy(value) if name in _HELD else value)
    return made
