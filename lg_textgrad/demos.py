"""Demonstrations: worked examples that render after a prompt's instruction.

They are part of the prompt's text, in one form that can be read back. So a candidate stays one text
for each parameter, and a person who exports, reviews or edits it sees all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_BEFORE = "\n\nExamples:\n\n"
_INPUT, _OUTPUT, _NEXT = "Input: ", "\nOutput: ", "\n\nInput: "


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example, rendered after the instruction."""

    inputs: str
    output: str

    @property
    def readable(self) -> bool:
        """Whether it is read back as it is, whatever other demonstrations stand around it."""
        both = self.inputs, self.output
        marks = _BEFORE.rstrip("\n"), _NEXT
        return _OUTPUT not in self.inputs and not any(m in text for m in marks for text in both)


def readings_of(demos: Sequence[Demo]) -> list[str]:
    """Return what can be read as one text: each demonstration, and the end of one with the next.

    A sentence can begin in an input and go on in the output behind it.
    """
    behind = [f"{one.output}\n{other.inputs}" for one, other in pairwise(demos)]
    return [*(f"{demo.inputs}\n{demo.output}" for demo in demos), *behind]


def render_demos(instruction: str, demos: Sequence[Demo]) -> str:
    """Return the instruction with the demonstrations after it."""
    if not demos:
        return instruction
    shown = _NEXT.join(f"{d.inputs}{_OUTPUT}{d.output}" for d in demos)
    return f"{instruction}{_BEFORE}{_INPUT}{shown}"


def split_demos(text: str) -> tuple[str, tuple[Demo, ...]]:
    """Return the instruction and the demonstrations of a rendered text.

    A text without any is all instruction. For every text,
    `render_demos(*split_demos(text)) == text`.
    """
    instruction, before, shown = text.rpartition(_BEFORE)
    if not before or not shown.startswith(_INPUT):
        return text, ()
    parts = [part.partition(_OUTPUT) for part in shown.removeprefix(_INPUT).split(_NEXT)]
    if not all(mark for _, mark, _ in parts):
        return text, ()
    return instruction, tuple(Demo(inputs, output) for inputs, _, output in parts)
