"""A whole run as a critic is asked about it: what is shown, and the text around it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lg_textgrad import templates
from lg_textgrad.critics.base import RunRequest
from lg_textgrad.run import Execution


@dataclass(frozen=True, slots=True)
class Step:
    """One execution, as the critic sees it."""

    number: int
    """Counted from 1, in order of execution."""
    execution: Execution
    parameters: tuple[str, ...]
    """The trainable parameters that it read; empty for a step that is shown for the others."""
    given: str
    wrote: str
    notes: tuple[str, ...]
    """What visibly went wrong."""


@dataclass(frozen=True, slots=True)
class Compact:
    """A run, ready to be shown."""

    steps: tuple[Step, ...]
    complaint: str
    left_out: int = 0
    """How many steps had no room."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> its text, cut where it is long."""

    @property
    def judged(self) -> list[Step]:
        return [step for step in self.steps if step.parameters]

    def texts(self) -> list[str]:
        """Return everything that came out of the run."""
        return [self.complaint, *(t for s in self.steps for t in (s.wrote, s.given, *s.notes))]


def _labels(shown: Compact) -> list[str]:
    """Return what each step is called: its node, and where that ran several times the execution."""
    paths = [step.execution.path for step in shown.steps]
    return [
        step.execution.path if paths.count(step.execution.path) == 1 else step.execution.id
        for step in shown.steps
    ]


def targets(shown: Compact) -> dict[str, tuple[Step, str]]:
    """Return what the critic may blame -> the step and the parameter that it means."""
    return {
        label if len(step.parameters) == 1 else f"{label} [{name}]": (step, name)
        for label, step in zip(_labels(shown), shown.steps, strict=True)
        for name in step.parameters
    }


def case(shown: Compact, request: RunRequest, *, brief: bool) -> str:
    """Return what the critic is asked about the run."""
    mark = templates.fence(*shown.texts())
    known: dict[tuple[str, str], int] = {}
    steps = []
    if shown.left_out:
        steps.append(f"(There were {shown.left_out} earlier steps; they are left out here.)")
    for label, step in zip(_labels(shown), shown.steps, strict=True):
        named = [request.scored.run.parameters[n] for n in step.parameters]
        steps.append(
            templates.fill(
                "critic_run_step",
                number=str(step.number),
                node=label,
                role="; ".join(p.role for p in named if p.role) or "a step of the program",
                prompt=_prompts(shown, step, known),
                mark=mark,
                inputs=step.given,
                output="\n".join([step.wrote, *(f"({note})" for note in step.notes)]),
            )
        )
    return templates.fill(
        "critic_run_case",
        steps="\n\n".join(steps),
        mark=mark,
        complaint=shown.complaint,
        names=", ".join(targets(shown)),
        more="" if brief else templates.source("critic_run_detail"),
    ).strip()


def _prompts(shown: Compact, step: Step, known: dict[tuple[str, str], int]) -> str:
    """Return the prompts of a step, those that stood in an earlier one as a reference to it."""
    if not step.parameters:
        return "(it cannot be changed)"
    texts = []
    for name in step.parameters:
        text = shown.prompts[name]
        first = known.setdefault((name, step.execution.prompts[name]), step.number)
        said = text if first == step.number else f"(the same as in step {first})"
        texts.append(said if len(step.parameters) == 1 else f"[{name}]\n{said}")
    return "\n\n".join(texts)
