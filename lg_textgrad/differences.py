"""What changed between the configuration that a run was made with and the present one; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.run import Example

_SHOWN = 3
"""How many rows, nodes and settings are named."""
_METADATA = " metadata"
PLACES = "places"
"""Beside the parts: row id -> where the row stands, for people."""
_HASH = re.compile(r"[0-9a-f]{12,}")

Details = Mapping[str, Mapping[str, str]]
"""Part of the configuration -> name of each piece of it -> its hash, in order."""


def data_parts(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Return what the data decide of a run: `train data` and `train metadata` -> hash."""
    data = {f"{n} data": [(e.id, e.inputs, e.outputs) for e in es] for n, es in splits.items()}
    told = {
        f"{n}{_METADATA}": {e.id: e.metadata for e in es if e.metadata} for n, es in splits.items()
    }
    return {part: digest(value)[:16] for part, value in (data | told).items()}


def row_details(splits: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, str]]:
    """Return the pieces of the data: `train data` and `train metadata` -> row id -> hash.

    Beside them `PLACES` -> row id -> where it stands, of rows without an id of their own.
    """
    data = {
        f"{n} data": {e.id: digest(e.inputs, e.outputs)[:12] for e in es}
        for n, es in splits.items()
    }
    told = {
        f"{n}{_METADATA}": {e.id: digest(e.metadata)[:12] for e in es if e.metadata}
        for n, es in splits.items()
    }
    return data | told | {PLACES: {e.id: e.place for es in splits.values() for e in es if e.place}}


def changes(
    then: Mapping[str, Any], now: Mapping[str, Any], before: Details, after: Details
) -> list[str]:
    """Return the parts that differ, each with what in it differs, where that is known.

    Runs that an older version began did not write down their rows' metadata, and are not held to
    them.
    """
    return [
        f"{part} ({told})" if (told := _told(part, then.get(part), value, before, after)) else part
        for part, value in now.items()
        if then.get(part) != value and (part in then or not part.endswith(_METADATA))
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
