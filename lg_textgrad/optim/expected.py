"""What a node should have replied, read off the reference outputs. Costs no call.

Where a node's reply becomes the graph's output, the reference outputs say what it should have been;
only their form has to be learned from a few replies: a JSON object, or the value of one key.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad._hashing import to_plain
from lg_textgrad.run import Execution

_LONGEST = 200
"""Characters that a value may have to be taken for an answer though no reply matched it."""


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How reference outputs are written as a reply: an object of `keys`, or the value of one."""

    keys: tuple[str, ...]
    as_json: bool

    def reply(self, reference: Mapping[str, Any]) -> str | None:
        """Return the reply that `reference` asks for; None where it lacks what is needed."""
        found = {k: to_plain(reference[k]) for k in self.keys if k in reference}
        if not found:
            return None
        if self.as_json:
            return json.dumps(found, ensure_ascii=False)
        [value] = found.values()
        return _text(value)


def learn_form(
    pairs: Iterable[tuple[str, Mapping[str, Any]]],
    written: Collection[str] = (),
    *,
    alone: bool = True,
) -> ReplyForm | None:
    """Return the form that the replies have in terms of their examples' reference outputs.

    Each pair is a reply and a reference; `written` are the graph's outputs that the replies become,
    `alone` says that no other node's replies become any. JSON, when most replies are objects with
    keys of the reference; else the key that has the name of an output, or whose value some replies
    equal; else, for a node that is alone, the only key there is, when its values are short. None
    when the references don't say what the reply should be.
    """
    known = [(reply, reference) for reply, reference in pairs if reference]
    if not known:
        return None
    objects = [(json_in(reply), reference) for reply, reference in known]
    shared = Counter(
        key for found, reference in objects if found for key in reference if key in found
    )
    if sum(bool(found) for found, _ in objects) * 2 > len(known) and shared:
        order = [k for _, reference in known for k in reference if k in shared]
        return ReplyForm(tuple(dict.fromkeys(order)), as_json=True)
    named = [key for key in written if any(key in reference for _, reference in known)]
    if len(named) == 1 and all(_short(r[named[0]]) for _, r in known if named[0] in r):
        return ReplyForm((named[0],), as_json=False)
    equal = Counter(
        key
        for reply, reference in known
        for key, value in reference.items()
        if isinstance(value, str | int | float) and _plain(reply) == _plain(_text(value))
    )
    if equal:
        best = max(equal.values())
        return ReplyForm((next(k for k, n in equal.items() if n == best),), as_json=False)
    keys = {key for _, reference in known for key in reference}
    if alone and len(keys) == 1 and all(_short(v) for _, r in known for v in r.values()):
        return ReplyForm((keys.pop(),), as_json=False)
    return None


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(_text(value)) <= _LONGEST


def json_in(text: str) -> dict[str, Any] | None:
    """Return the JSON object in a reply, alone, in a code block, or among words; None without."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def asked_and_replied(execution: Execution) -> tuple[str, str] | None:
    """Return the user's turn and the reply of the execution's last model call, as texts.

    None where that isn't one question and one answer: no call, a history of turns, a tool call.
    """
    if not execution.model_calls:
        return None
    call = execution.model_calls[-1]
    turns = [m for m in call.messages if m["role"] != "system"]
    if call.output is None or call.output.get("tool_calls") or len(turns) != 1:
        return None
    asked, replied = turns[0].get("content"), call.output.get("content")
    if turns[0]["role"] != "human" or not isinstance(asked, str) or not isinstance(replied, str):
        return None
    return asked.strip(), replied.strip()


def replies_through(execution: Execution, reply: str, keys: Sequence[str]) -> bool:
    """Return whether the execution wrote its reply, or what it parsed of it, to one of `keys`."""
    found = json_in(reply)
    for channel, value in execution.writes:
        if channel in keys and (
            _plain(_text(value)) == _plain(reply)
            or (found is not None and (value == found or value in found.values()))
        ):
            return True
    return False


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    """Return a text as comparisons see it: without case, and without marks around it."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", " ".join(text.split())).casefold()
