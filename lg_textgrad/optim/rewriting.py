"""What a rewriter is asked beside its notes: what was tried, examples, and the whole prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad import templates
from lg_textgrad.critics.cutting import cut
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim.base import Attempt
from lg_textgrad.optim.writing import edits_between
from lg_textgrad.parameter import Edit, Gradient, Parameter, count_tokens

MOST_PROMPT = 20000  # characters of a prompt that is written anew
_SHOWN = {"add": "added", "replace": "put in place of line {}", "delete": "line {} taken out"}
_MOST_EDITS = 6


def several(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts. Raises `ConfigurationError` for one text in place of a list of them."""
    if isinstance(texts, str):
        raise ConfigurationError(
            f"`{name}` is a list of texts, not one text: write [{cut(texts, 40)!r}]."
        )
    return tuple(texts)


def tried(history: Sequence[Attempt], name: str, most: int) -> str:
    """Return the last `most` changes of a parameter and what came of them, the newest last."""
    last: dict[str, Attempt] = {}
    for attempt in history:
        if any(edit.parameter == name for edit in attempt.proposal.edits):
            last.pop(attempt.proposal.hash, None)
            last[attempt.proposal.hash] = attempt  # of several looks at it, the last counts
    return "\n".join(f"- {_outcome(a, name)}" for a in list(last.values())[-most:])


def _outcome(attempt: Attempt, name: str) -> str:
    edits = [edit for edit in attempt.proposal.edits if edit.parameter == name]
    told = [
        _SHOWN[edit.op].format(edit.line) + (f": {cut(edit.text, 200)}" if edit.text else "")
        for edit in edits[:_MOST_EDITS]
    ]
    if len(edits) > _MOST_EDITS:
        told.append(f"and {len(edits) - _MOST_EDITS} more lines changed")
    kept = "kept" if attempt.accepted else f"refused, {cut(attempt.reason, 160)}"
    return f"{'; '.join(told)} => score {attempt.gain:+.3f}, {kept}"


def share(gradients: Sequence[Gradient], sample: int, beam: int) -> Sequence[Gradient]:
    """Return what the rewriter's `sample`th proposal of `beam` answers.

    The first answers all gradients; the others have a part each, so that they differ in more than
    chance, and together they answer all.
    """
    if sample == 0 or beam <= 2:
        return gradients
    by_weight = sorted(gradients, key=lambda g: -g.weight)
    part = by_weight[sample - 1 :: beam - 1]
    return part if any(g.change for g in part) else gradients


def with_examples(
    messages: Sequence[Mapping[str, str]], examples: Sequence[str]
) -> list[dict[str, str]]:
    """Return the messages with the examples at the end of the last one."""
    *first, last = (dict(m) for m in messages)
    if examples:
        shown = "\n\n".join(f"Example {n}:\n{text}" for n, text in enumerate(examples, start=1))
        more = templates.fill("rewriter_examples", mark=templates.fence(shown), examples=shown)
        last["content"] += f"\n{more}"
    return [*first, last]


def whole_schema() -> dict[str, Any]:
    """Return the form of a reply that is the whole prompt."""
    return {
        "type": "object",
        "properties": {"prompt": {"type": "string", "maxLength": MOST_PROMPT}},
        "required": ["prompt"],
        "additionalProperties": False,
    }


def whole_tokens(parameter: Parameter, least: int) -> int:
    """Return how long a reply may be, so that a prompt that grows is not cut off."""
    return max(least, 2 * count_tokens(parameter.value) + 200)


def read_whole(
    parameter: Parameter, data: Mapping[str, Any], gradients: Sequence[str]
) -> list[Edit]:
    """Return the edits that make the prompt of a reply; none when it is empty or cut off.

    Lines end as they do in the prompt, so that those that stay are the same.
    """
    text = str(data["prompt"]).strip()
    if not text or len(text) >= MOST_PROMPT - 1:
        return []
    if "\r\n" in parameter.value:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return list(edits_between(parameter.name, parameter.value, text, gradients=gradients))
