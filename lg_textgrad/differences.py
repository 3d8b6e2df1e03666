"""What changed between the configuration that a run was made with and the present one; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.run import Example

_SHOWN = 3
"""How many rows, nodes and settings are named."""
_HASH = re.compile(r"[0-9a-f]{12,}")

Details = Mapping[str, Mapping[str, str]]
"""Part of the configuration -> name of each piece of it -> its hash, in order."""


def row_details(splits: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, str]]:
    """Return the pieces of the data: `train data` -> row id -> hash."""
    return {
        f"{name} data": {e.id: digest(e.inputs, e.outputs)[:12] for e in examples}
        for name, examples in splits.items()
    }


def changes(
    then: Mapping[str, Any], now: Mapping[str, Any], before: Details, after: Details
) -> list[str]:
    """Return the parts that differ, each with what in it differs, where that is known."""
    return [
        f"{part} ({told})" if (told := _told(part, then.get(part), value, before, after)) else part
        for part, value in now.items()
        if then.get(part) != value
    ]


def _told(part: str, old: Any, new: Any, before: Details, after: Details) -> str:
    if part in before and part in after:
        return _pieces(before[part], after[part])
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _some(list(_settings(old, new)))
    return ""


def _pieces(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say which pieces changed, came and went."""
    found = []
    for word, names in (
        ("changed", [n for n in new if n in old and old[n] != new[n]]),
        ("new", [n for n in new if n not in old]),
        ("gone", [n for n in old if n not in new]),
    ):
        if names:
            quoted = [f"'{n}'" for n in names]
            found.append(f"{word}: {_some(quoted)}")
    if not found and list(old) != list(new):
        found.append("in another order")
    return "; ".join(found)


def _settings(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield each setting that differs, with both values where people can read them."""
    for name in dict.fromkeys((*old, *new)):
        was, is_ = old.get(name), new.get(name)
        if was == is_:
            continue
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            yield from _settings(was, is_, f"{path}{name}.")
        elif path.endswith("templates."):
            yield f"template '{name}'"
        elif _short(was) and _short(is_):
            yield f"{path}{name}: {was!r} -> {is_!r}"
        else:
            yield f"{path}{name}"


def _short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 40 and not _HASH.fullmatch(value)
    return value is None or isinstance(value, bool | int | float)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
