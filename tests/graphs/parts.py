"""What the tests of the example graphs share."""

from __future__ import annotations

import ast
from pathlib import Path

import lg_textgrad as tg

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "val", "test")


def rows(name):
    """Return the examples of each split of an example graph's data."""
    return {s: tg.read_examples(ROOT / "graphs" / name / "data" / f"{s}.jsonl") for s in SPLITS}


def imported(path):
    """Return the first part of each name that a file imports."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def scores(evaluators, outputs, reference):
    """Return each evaluator's score of `outputs`, by key."""
    return {f["key"]: f["score"] for f in (e(outputs, reference) for e in evaluators)}


def comments(evaluators, outputs, reference):
    """Return each evaluator's comment on `outputs`, by key."""
    return {f["key"]: f["comment"] for f in (e(outputs, reference) for e in evaluators)}


def system_prompt(body):
    """Return the system prompt of a chat request."""
    first = body["messages"][0]
    assert first["role"] == "system"
    return first["content"]
