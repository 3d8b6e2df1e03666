"""What critics are shown of a run, and what of their words may become a rule."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lg_textgrad.bindings.skeleton import Skeleton, from_placeholders
from lg_textgrad.critics.cutting import quoted
from lg_textgrad.demos import split_demos
from lg_textgrad.guards import Quotations, names_of, words
from lg_textgrad.objective import Scored
from lg_textgrad.parameter import find_placeholders
from lg_textgrad.run import Execution, ModelCall
from lg_textgrad.symptoms import is_cut_off, text_of

MOST_RULE = 200
"""Characters of a rule; one that needs more is a story about one example."""


def shown_values(execution: Execution) -> tuple[str, str]:
    """Return what an execution was given and what it wrote, as text for the critic.

    Where it called a model, these are the messages of its last call without the system prompt, and
    what was put into that one's placeholders; elsewhere its state.
    """
    if execution.model_calls:
        call = execution.model_calls[-1]
        messages = [
            f"{'' if m['role'] == 'human' else m['role'] + ': '}{message_text(m)}"
            for m in call.messages
            if m["role"] != "system"
        ]
        given = "\n".join([*in_prompt(execution, call, alone=not messages), *messages])
        wrote = message_text(call.output) if call.output is not None else f"(failed: {call.error})"
        if is_cut_off(call):
            wrote += " [cut off: the reply reached its token limit]"
    else:
        given = json.dumps(execution.inputs, ensure_ascii=False)
        wrote = json.dumps(_written(execution), ensure_ascii=False)
    if execution.error:
        wrote += f"\n(then it failed: {execution.error})"
    return given, wrote


def _written(execution: Execution) -> dict[str, Any]:
    """Return channel -> what was written to it; a list where that was done several times."""
    found: dict[str, list[Any]] = {}
    for channel, value in execution.writes:
        found.setdefault(channel, []).append(value)
    return {channel: v[0] if len(v) == 1 else v for channel, v in found.items()}


def in_prompt(execution: Execution, call: ModelCall, *, alone: bool = False) -> list[str]:
    """Return what the model was given in its system prompt: the values of the placeholders.

    All of it, where these cannot be told from the text around them, or where the execution read no
    parameter and the prompt is `alone`, all that the model was given.
    """
    said = [text_of(m) for m in call.messages if m["role"] == "system"]
    shown: list[str] = []
    unclear = alone and not execution.prompts
    for text in execution.prompts.values():
        instruction, _ = split_demos(text)
        names = find_placeholders(instruction)
        if not names:
            continue
        skeleton = from_placeholders(instruction, names)
        *constants, last = skeleton.constants
        whole = Skeleton((*constants, last + text.removeprefix(instruction)), skeleton.names)
        values = next((v for each in said if (v := whole.match(each)) is not None), None)
        unclear = unclear or values is None
        shown += [f"{n}: {v}" for n, v in (values or {}).items() if v != f"{{{n}}}"]
    if unclear:
        shown += [f"system: {each}" for each in said if each not in execution.prompts.values()]
    return shown


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


def general(
    rule: str, scored: Scored, execution: Execution, others: Iterable[str] = ()
) -> str:
    """Return a critic's rule in one line, or nothing where it only tells about this example.

    A rule that quotes the example, repeats its numbers, or was cut off at the limit is no rule.
    `others` are values of other executions that the critic was shown and that it must not quote.
    """
    change = " ".join(rule.split())
    example = [scored.run.example.inputs, *shown_values(execution)]
    is_quoted = Quotations([*example, *others]).find(change) is not None
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
