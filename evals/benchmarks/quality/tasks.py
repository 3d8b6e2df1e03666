"""The tasks of the quality benchmark: rows, the prompt to begin with, and how a reply is scored.

Each is one model call with a system prompt. The rows are public data (see `--data`), one JSON
object a line with `inputs`, `outputs` and `metadata.split`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Feedback = tuple[float, str]
"""Score in [0, 1], and what was wrong, for whoever learns from it."""


@dataclass(frozen=True)
class Task:
    """One task. Every method gets the same of it."""

    name: str
    file: str
    prompt: str
    """The system prompt to begin with."""
    key: str
    """The input that is the user's turn."""
    max_tokens: int
    """Cap on a reply."""
    score: Callable[[str, Mapping[str, Any]], Feedback]
    role: str


@dataclass(frozen=True)
class Rows:
    """What a method may learn from, and what only the final score sees."""

    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    test: list[dict[str, Any]]


def rows_of(task: Task, data: Path, seed: int, *, val: int, test: int) -> Rows:
    """Return the rows: 50 to train, the rest split by `seed` into validation and test."""
    known = [json.loads(line) for line in (data / task.file).read_text("utf-8").splitlines()]
    train = [r for r in known if r["metadata"]["split"] == "train"]
    held = [r for r in known if r["metadata"]["split"] == "val"]
    random.Random(f"{task.name}/{seed}").shuffle(held)
    return Rows(train, held[:val], held[val : val + test])


def slots(reply: str, expected: Mapping[str, Any]) -> Feedback:
    """Half for the intent, half the F1 of (slot, value) pairs."""
    found = _json(reply)
    if found is None:
        return 0.0, "The reply is not one JSON object."
    wrong = []
    intent = found.get("intent") == expected["intent"]
    if not intent:
        wrong.append(f"intent must be {expected['intent']!r}, not {found.get('intent')!r}")
    gold = {(k, str(v)) for k, v in expected["slots"].items()}
    given = found.get("slots")
    said = {(k, str(v)) for k, v in given.items()} if isinstance(given, dict) else set()
    f1 = 1.0 if not gold and not said else 2 * len(gold & said) / (len(gold) + len(said))
    if gold - said:
        wrong.append("missing slots: " + ", ".join(f"{k}={v!r}" for k, v in sorted(gold - said)))
    if said - gold:
        wrong.append("wrong slots: " + ", ".join(f"{k}={v!r}" for k, v in sorted(said - gold)))
    return 0.5 * intent + 0.5 * f1, "; ".join(wrong)


_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip


def last_number(reply: str, expected: Mapping[str, Any]) -> Feedback:
    """The last number in the reply, in digits or in words, must be the answer."""
    found = re.findall(r"\d+|" + "|".join(rf"\b{n}\b" for n in _NUMBERS), reply.lower())
    last = found[-1] if found else ""
    number = str(_NUMBERS.index(last)) if last in _NUMBERS else last
    if number == expected["answer"]:
        return 1.0, ""
    return 0.0, f"The answer is {expected['answer']}; the reply ends with {number or 'no number'}."


def team(reply: str, expected: Mapping[str, Any]) -> Feedback:
    """The reply must be the team's name."""
    said = re.sub(r"[^a-z_]", "", reply.lower())
    if said == expected["team"]:
        return 1.0, ""
    return 0.0, f"This message must go to {expected['team']}, not to {reply.strip()[:40]!r}."


def _json(reply: str) -> dict[str, Any] | None:
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


TASKS = {
    task.name: task
    for task in (
        Task(
            "snips_slots",
            "snips_slots.jsonl",
            "Find the intent and the slots of the message. "
            'Reply with JSON: {"intent": ..., "slots": {...}}.',
            "message",
            120,
            slots,
            "finds the intent and the slots of a message",
        ),
        Task(
            "bbh_object_counting",
            "bbh_object_counting.jsonl",
            "Answer the question.",
            "question",
            200,
            last_number,
            "answers a question about how many things there are",
        ),
        Task(
            "banking77_team_routing",
            "banking77_team_routing.jsonl",
            "You route bank customers' messages. Teams: access_security, cards_ops, fees_fx, "
            "kyc_account, payments_disputes, payments_status, top_ups, transfers. "
            "Reply with the team name only.",
            "message",
            24,
            team,
            "names the team that a bank customer's message belongs to",
        ),
    )
}
