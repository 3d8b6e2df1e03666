"""LangSmith's filter language, as far as the loopback server answers it.

    matches('and(eq(feedback_key, "thumbs"), lt(feedback_score, 1))', run, feedback)

Conditions on feedback inside one `and` speak of one and the same feedback.
"""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[(),\[\]]))')
_COMPARE = {
    "eq": lambda a, b: a == b,
    "neq": lambda a, b: a != b,
    "gt": lambda a, b: a is not None and a > b,
    "gte": lambda a, b: a is not None and a >= b,
    "lt": lambda a, b: a is not None and a < b,
    "lte": lambda a, b: a is not None and a <= b,
}
_FIELDS = {"id", "name", "run_type", "start_time", "end_time", "error", "status", "is_root", "tags", "trace_id"}
_FEEDBACK = {"feedback_key", "feedback_score", "feedback_source"}
_METADATA = {"metadata_key", "metadata_value"}


def parse(text: str) -> Any:
    """Return nested `(name, arguments)`; raise `ValueError` for what is no filter."""
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"no filter: {text[position:]!r}")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()

    def take(kind=None, value=None):
        got = tokens.pop(0) if tokens else (None, None)
        if (kind and got[0] != kind) or (value and got[1] != value):
            raise ValueError(f"no filter, at {got[1]!r} in {text!r}")
        return got[1]

    def term():
        kind = tokens[0][0] if tokens else None
        if kind == "string":
            return take()[1:-1].replace('\\"', '"')
        if kind == "number":
            return float(take())
        if kind == "mark":
            take(value="[")
            items = []
            while tokens and tokens[0][1] != "]":
                items.append(term())
                if tokens and tokens[0][1] == ",":
                    take()
            take(value="]")
            return items
        name = take("name")
        if not tokens or tokens[0][1] != "(":
            return {"null": None, "true": True, "false": False}.get(name, (name,))
        take()
        arguments = [term()]
        while tokens and tokens[0][1] == ",":
            take()
            arguments.append(term())
        take(value=")")
        return (name, arguments)

    tree = term()
    if tokens or not isinstance(tree, tuple) or len(tree) != 2:
        raise ValueError(f"no filter: {text!r}")
    check(tree)
    return tree


def check(tree: Any) -> None:
    """Raise `ValueError` for a function or a field that there is not."""
    name, arguments = tree
    if name in ("and", "or", "not"):
        for one in arguments:
            check(one)
        return
    if name not in {*_COMPARE, "has", "in"} or len(arguments) != 2:
        raise ValueError(f"no such condition: {name} of {len(arguments)}")
    field = arguments[0]
    if not isinstance(field, tuple) or field[0] not in _FIELDS | _FEEDBACK | _METADATA:
        raise ValueError(f"no such field: {field!r}")


def matches(tree: Any, run: dict[str, Any], feedback: list[dict[str, Any]]) -> bool:
    name, arguments = tree
    if name == "or":
        return any(matches(one, run, feedback) for one in arguments)
    if name == "not":
        return not matches(arguments[0], run, feedback)
    parts = arguments if name == "and" else [tree]
    about = [p for p in parts if _about(p) in _FEEDBACK]
    pairs = [p for p in parts if _about(p) in _METADATA]
    others = [p for p in parts if _about(p) not in _FEEDBACK | _METADATA]
    if about and not any(
        all(_holds(p, {"feedback_key": f["key"], "feedback_score": f["score"],
                       "feedback_source": f["feedback_source"]["type"]}) for p in about)
        for f in feedback
    ):  # fmt: skip
        return False
    metadata = ((run.get("extra") or {}).get("metadata") or {}).items()
    if pairs and not any(
        all(_holds(p, {"metadata_key": k, "metadata_value": v}) for p in pairs) for k, v in metadata
    ):
        return False
    return all(
        _holds(p, run) if p[0] not in ("and", "or", "not") else matches(p, run, feedback) for p in others
    )


def _about(part: Any) -> str | None:
    return part[1][0][0] if part[0] not in ("and", "or", "not") else None


def _holds(part: Any, values: dict[str, Any]) -> bool:
    name, ((field,), wanted) = part
    found = values.get(field)
    if field == "is_root":
        found = values.get("parent_run_id") is None
    if name == "has":
        return wanted in (found or ())
    if name == "in":
        return found in wanted
    if field.endswith("_time"):
        found, wanted = _instant(found), _instant(wanted)
    return bool(_COMPARE[name](found, wanted))


def _instant(value: Any) -> Any:
    from datetime import UTC, datetime

    if not isinstance(value, str):
        return value
    at = datetime.fromisoformat(value)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
