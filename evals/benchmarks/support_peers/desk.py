"""The support desk without LangGraph, as a peer's user has to write it. Nothing of ours is needed.

`tests/benchmarks/test_support_peers.py` holds it to `graphs/support`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evals.evaluators.support import ALL
from graphs.support.books import entry, reference_in, request, sent_back, team_in

CAPS = {"triage": 8, "specialist": 10, "writer": 80, "checker": 24}
"""Tokens of a reply, by node."""

Ask = Callable[[str, str], str]
"""Returns a node's reply to a text."""


@dataclass
class Served:
    """What became of one message."""

    team: str
    answer: str
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    """Node, what it was asked, what it replied, in order."""


def serve(ask: Ask, message: str) -> Served:
    """Return what the desk makes of a message."""
    steps: list[tuple[str, str, str]] = []

    def step(node: str, text: str) -> str:
        steps.append((node, text, ask(node, text).strip()))
        return steps[-1][2]

    team = team_in(step("triage", message))
    found = entry(reference_in(step("specialist", message)))
    answer = step("writer", request(message, team, found))
    verdict = step("checker", answer)
    if sent_back(verdict):
        answer = step("writer", request(message, team, found, answer, verdict))
        step("checker", answer)
    return Served(team, answer, steps)


def score(team: str, answer: str, expected: Mapping[str, Any]) -> tuple[float, str]:
    """Return the mean of the three evaluators, and what they found wrong."""
    said = {"team": team, "answer": answer}
    results = [evaluator(said, dict(expected)) for evaluator in ALL]
    wrong = [r["comment"] for r in results if r["score"] < 1]
    return sum(r["score"] for r in results) / len(results), " ".join(wrong)
