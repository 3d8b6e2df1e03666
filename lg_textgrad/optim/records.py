"""What a node was given, what it wrote, and what the critic says of it: cases for a writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad.objective import Scored
from lg_textgrad.optim.expected import asked_and_replied
from lg_textgrad.optim.writing import shown
from lg_textgrad.parameter import Gradient
from lg_textgrad.run import Execution


@dataclass(frozen=True, slots=True)
class Record:
    """One execution of a parameter's node, with its own share of the blame."""

    given: str
    wrote: str
    feedback: str
    score: float
    """The run's score in [0, 1]."""
    gradients: tuple[str, ...] = ()
    """Ids of the gradients that the feedback is made of."""
    evidence: str = ""
    """What the critic quoted, of the run or of a complaint."""

    @property
    def seen(self) -> tuple[str, ...]:
        """What it shows in the words of users, tools and models; evidence may be a rule's own."""
        return self.given, self.wrote

    @property
    def text(self) -> str:
        return (
            f"It was given:\n{self.given}\nIt wrote:\n{self.wrote}\n"
            f"The critic (score {self.score:.2f}):\n{self.feedback}"
            + (f"\nSeen in: {self.evidence}" if self.evidence else "")
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it in the form of gepa's reflective datasets."""
        return {
            "Inputs": self.given,
            "Generated Outputs": self.wrote,
            "Feedback": self.feedback,
            "score": self.score,
            "gradients": list(self.gradients),
            "evidence": self.evidence,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Return the record that `as_dict` made `data` from."""
        return cls(
            data["Inputs"],
            data["Generated Outputs"],
            data["Feedback"],
            data["score"],
            tuple(data["gradients"]),
            data["evidence"],
        )


def records_of(
    parameter: str, gradients: Sequence[Gradient], scored: Sequence[Scored]
) -> list[Record]:
    """Return a record for each execution with gradients for the parameter, the most blamed first.

    Executions that the critic has nothing against, and nothing to praise in, have none.
    """
    executions = {
        (s.run.id, e.id): (s, e) for s in scored for e in s.run.executions
    }
    said: dict[tuple[str, str], list[Gradient]] = {}
    for gradient in gradients:
        where = gradient.run_id, gradient.execution
        if gradient.parameter == parameter and where in executions:
            said.setdefault(where, []).append(gradient)
    heaviest = sorted(said, key=lambda where: -max(g.weight for g in said[where]))
    found = []
    for where in heaviest:
        run, execution = executions[where]
        given, wrote = given_and_wrote(execution)
        told = [line for g in said[where] for line in _lines(g)]
        ids = tuple(g.id for g in said[where] if g.change)
        if ids:
            evidence = "; ".join(dict.fromkeys(shown(g.evidence, 200) for g in said[where]))
            found.append(Record(given, wrote, "\n".join(told), run.score, ids, evidence))
    return found


def _lines(gradient: Gradient) -> list[str]:
    told = [gradient.change] if gradient.change else []
    if gradient.keep:
        told.append(f"Keep: {gradient.keep}")
    return told


def given_and_wrote(execution: Execution) -> tuple[str, str]:
    """Return what the execution was given and what it wrote: its model's turn, else its state."""
    turn = asked_and_replied(execution)
    if turn is None:
        turn = shown(execution.inputs), shown(dict(execution.writes))
    given, wrote = (shown(text, 600) for text in turn)
    if execution.error:
        wrote += f"\n(then it failed: {execution.error})"
    return given, wrote
