"""What critics are shown of a run, and what of their words may become a rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lg_textgrad.critics.cutting import quoted
from lg_textgrad.guards import Quotations, names_of, words
from lg_textgrad.objective import Scored
from lg_textgrad.run import Execution

MOST_RULE = 200
"""Characters of a rule; one that needs more is a story about one example."""


def shown_values(execution: Execution) -> tuple[str, str]:
    """Return what an execution was given and what it wrote, as text for the critic.

    Where it called a model, these are the messages of its last call without the system prompt;
    elsewhere its state.
    """
    if execution.model_calls:
        call = execution.model_calls[-1]
        given = "\n".join(
            f"{'' if m['role'] == 'human' else m['role'] + ': '}{message_text(m)}"
            for m in call.messages
            if m["role"] != "system"
        )
        wrote = message_text(call.output) if call.output is not None else f"(failed: {call.error})"
        if call.finish_reason == "length":
            wrote += " [cut off: the reply reached its token limit]"
    else:
        given = json.dumps(execution.inputs, ensure_ascii=False)
        wrote = json.dumps(dict(execution.writes), ensure_ascii=False)
    if execution.error:
        wrote += f"\n(then it failed: {execution.error})"
    return given, wrote


def message_text(message: Mapping[str, Any]) -> str:
    """Return what a message says, and the tools that it calls."""
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    calls = message.get("tool_calls")
    if calls:
        text += " " + "; ".join(
            f"[calls {c['name']}({json.dumps(c['args'], ensure_ascii=False)})]" for c in calls
        )
    return text.strip()


def general(rule: str, scored: Scored, execution: Execution) -> str:
    """Return a critic's rule in one line, or nothing where it only tells about this example.

    A rule that quotes the example, repeats its numbers, or was cut off at the limit is no rule.
    """
    change = " ".join(rule.split())
    example = [scored.run.example.inputs, *shown_values(execution)]
    is_quoted = Quotations(example).find(change) is not None
    # Complaints may quote what was expected, so its numbers count as the example's too.
    numbers = names_of([*example, scored.run.example.outputs]) & set(words(change))
    known = {w for text in execution.prompts.values() for w in words(text)}
    cut_off = len(change) >= MOST_RULE - 1 and not change.endswith((".", "!", "'", '"'))
    return "" if is_quoted or numbers - known or cut_off else change


def evidence(span: str, *shown: str, instead: str) -> str:
    """Return the span that a critic quotes, as it stands in what it was shown.

    A quotation that stands nowhere is no evidence; then the complaint is.
    """
    return quoted(span, shown) or instead
