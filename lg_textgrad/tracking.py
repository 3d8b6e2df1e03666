"""A dict that remembers which of its keys were read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class ReadTrackingDict(dict[str, Any]):
    """Behaves as the dict that it copies; `keys_read` has the keys that somebody looked at.

    Looking at the whole (iterating, copying, comparing, printing) counts as reading every key:
    too many reads make a trace wider than it is, too few would hide a dependency.
    """

    __slots__ = ("keys_read",)

    def __init__(self, values: Any = (), keys_read: set[str] | None = None) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set() if keys_read is None else keys_read

    def start(self, sheet: set[str] | None = None) -> set[str]:
        """Forget what was read so far, and what copies made so far will read; return the new sheet.

        LangGraph copies one state for all tasks of a superstep; each starts with a clean sheet, or
        goes on with the one that it is given.
        """
        self.keys_read = set() if sheet is None else sheet
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
