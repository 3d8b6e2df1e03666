"""New instructions: kept to what is promised, and told as edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from lg_textgrad._hashing import canonical
from lg_textgrad.asking import Refusal, quoting
from lg_textgrad.changes import split_lines
from lg_textgrad.critics.cutting import cut
from lg_textgrad.demos import render_demos, split_demos
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Bench, Proposal
from lg_textgrad.parameter import Edit, Parameter
from lg_textgrad.run import Candidate


def with_instruction(base: Mapping[str, str], name: str, instruction: str) -> Candidate:
    """Return the candidate with another instruction for one parameter; demonstrations stay."""
    return {**base, name: render_demos(instruction, split_demos(base[name])[1])}


def instructions_of(candidate: Mapping[str, str]) -> Candidate:
    """Return the texts without their demonstrations."""
    return {name: split_demos(text)[0] for name, text in candidate.items()}


def usable(
    bench: Bench, base: Mapping[str, str], name: str, seen: Iterable[str] = ()
) -> Refusal:
    """Return what says why an instruction for one parameter cannot be tried.

    `seen` are texts of runs that the writer was shown: no new line may quote one of them, so that
    what a user, a tool or a model said in a run doesn't become an instruction.
    """
    now = split_demos(base[name])[0]
    quotes = quoting(seen, now)

    def refusal(text: str) -> str | None:
        if text == now:
            return "It is the instruction that there is already."
        return quotes(text) or bench.refusal(Proposal(with_instruction(base, name, text)))

    return refusal


def promises(parameter: Parameter) -> str:
    """Return what a new instruction has to keep, in words; empty when there is nothing."""
    told = []
    if parameter.placeholders:
        told.append("Keep " + ", ".join(f"{{{p}}}" for p in parameter.placeholders) + ".")
    told += [f"Keep these words as they are: {span}" for span in parameter.locked]
    if parameter.forbidden:
        told.append("Never use: " + ", ".join(parameter.forbidden) + ".")
    if parameter.max_tokens is not None:
        told.append(f"At most {parameter.max_tokens * 3 // 4} words.")
    return "\n".join(told)


def edits_between(
    name: str, before: str, after: str, *, gradients: Sequence[str] = (), why: str = ""
) -> tuple[Edit, ...]:
    """Return edits of lines that turn one instruction into another; all answer `gradients`.

    `apply_edits(before, edits_between(name, before, after)) == after` for any two texts.
    """
    # The one line of an empty text goes with the first that is added, see `apply_edits`.
    old, new = split_lines(before), split_lines(after)
    ids = tuple(gradients)
    edits: list[Edit] = []
    for op, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if op == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        edits += [
            Edit(name, "replace", i1 + k + 1, new[j1 + k], ids, why) for k in range(both)
        ]
        edits += [Edit(name, "delete", line + 1, "", ids, why) for line in range(i1 + both, i2)]
        edits += [Edit(name, "add", i1 + both, text, ids, why) for text in new[j1 + both : j2]]
    return tuple(edits)


def all_edits(
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    gradients: Mapping[str, Sequence[str]] | None = None,
    why: str = "",
) -> tuple[Edit, ...]:
    """Return the edits of all instructions that differ. `gradients`: parameter -> ids."""
    old, new = instructions_of(before), instructions_of(after)
    return tuple(
        edit
        for name in old
        for edit in edits_between(
            name, old[name], new[name], gradients=(gradients or {}).get(name, ()), why=why
        )
    )


def calls_a_run(scored: Sequence[Scored]) -> float:
    """Return how many model calls one run of the graph makes, at least one."""
    calls = sum(len(e.model_calls) for s in scored for e in s.run.executions)
    return max(1.0, calls / max(1, len(scored)))


def shown(value: Any, longest: int = 400) -> str:
    """Return a value as text for a model, its middle cut out and marked where it is long."""
    return cut(value if isinstance(value, str) else canonical(value), longest)
