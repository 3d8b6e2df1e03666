"""The format that a chat model was held to, told from how it was called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lg_textgrad._hashing import to_plain

_ANY_JSON = frozenset({"json", "json_object"})


def reply_format(asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the JSON schema of the reply that `asked` wants; empty for any JSON, None for text.

    `asked` is what the call was made with, `response_format` or `format` among it.
    """
    wanted = asked.get("response_format", asked.get("format"))
    if isinstance(wanted, type) and hasattr(wanted, "model_json_schema"):
        return _plain(wanted.model_json_schema())
    if isinstance(wanted, str):
        return {} if wanted in _ANY_JSON else None
    if not isinstance(wanted, Mapping):
        return None
    kind = wanted.get("type")
    if kind in _ANY_JSON:
        return {}
    if kind == "json_schema":
        found = wanted.get("json_schema", wanted)
        schema = found.get("schema") if isinstance(found, Mapping) else None
        return _plain(schema) if isinstance(schema, Mapping) else {}
    return _plain(wanted) if "properties" in wanted else None


def _plain(schema: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = to_plain(schema)
    return plain
