"""Plain, stable JSON for values that came out of a graph, and hashes over it.

Values are turned into JSON once, when they are recorded, and everything that is later shown to a
critic is rendered from that form. So a run that was read back from the store looks exactly like
the run that was recorded, and asks the same questions under the same hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from enum import Enum
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def message_to_plain(message: BaseMessage) -> dict[str, Any]:
    """Return what a message says, without the ids and bookkeeping that differ from run to run."""
    plain: dict[str, Any] = {"role": message.type, "content": to_plain(message.content)}
    if message.name:
        plain["name"] = message.name
    calls = getattr(message, "tool_calls", None)
    if calls:
        plain["tool_calls"] = [
            {"name": call["name"], "args": to_plain(call["args"]), "id": call.get("id")}
            for call in calls
        ]
    answered = getattr(message, "tool_call_id", None)
    if answered:
        plain["tool_call_id"] = answered
    if getattr(message, "status", "success") == "error":
        plain["status"] = "error"
    return plain


def to_plain(value: Any) -> Any:
    """Return `value` as JSON data: dicts, lists, strings, numbers, booleans and None.

    Idempotent: `to_plain(to_plain(x)) == to_plain(x)`. What has no JSON form becomes its `repr`
    without memory addresses.
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _whole(value)
    if kind in AS_THEY_ARE:
        return value
    if kind is dict:
        return {_whole(str(k)): to_plain(v) for k, v in value.items()}
    if kind is list or kind is tuple:
        return [to_plain(v) for v in value]
    return _unusual(value)


AS_THEY_ARE = frozenset({bool, int, type(None)})
"""Types whose values are JSON data already."""


def _unusual(value: Any) -> Any:
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, BaseMessage):
        return message_to_plain(value)
    if isinstance(value, BaseModel):
        return {k: to_plain(getattr(value, k)) for k in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = dict.items(value) if isinstance(value, dict) else value.items()
        return {_whole(str(k)): to_plain(v) for k, v in items}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, AbstractSet):
        return sorted((to_plain(v) for v in value), key=canonical)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:12]}>"
    return _whole(_ADDRESS.sub("", repr(value)))


def _whole(text: str) -> str:
    """Return `text`, made whole where a reply was cut inside an emoji.

    Half of a surrogate pair has no UTF-8 form and would break whoever stores or sends it.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`, keys sorted."""
    return _canonical(to_plain(value))


def _canonical(plain: Any) -> str:
    return _CANONICAL.encode(plain)


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(*parts: Any) -> str:
    """Return the sha256 of the parts' canonical JSON, as 64 hex digits."""
    return _sha256(canonical(part) for part in parts)


def digest_of_plain(*parts: Any) -> str:
    """Return what `digest` does, of parts that `to_plain` has been through already."""
    return _sha256(_canonical(part) for part in parts)


def _sha256(texts: Iterable[str]) -> str:
    text = "\x1f".join(texts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
