"""Evidence that needs no critic: what earned full marks, and what visibly went wrong."""

from __future__ import annotations

from collections.abc import Collection

from lg_textgrad.critics.base import Blame
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.showing import shown_values
from lg_textgrad.objective import Scored
from lg_textgrad.parameter import Gradient
from lg_textgrad.symptoms import symptoms_of
from lg_textgrad.trace import Trace

_SURE = 0.5
"""Share of the loss that a symptom stands for: it is there for certain, its effect is not."""


def full_marks(scored: Scored, trainable: Collection[str]) -> list[Gradient]:
    """Return what a run with full marks says: one gradient to keep each prompt that it read.

    `change` is empty and `weight` 0, since there is no blame; `keep` names what was judged,
    `evidence` is the last thing that the prompt's node wrote.
    """
    run = scored.run
    keys = [f.key for f in scored.feedback if f.score is not None]
    found: dict[str, Gradient] = {}
    for execution in run.executions:
        for name in execution.prompts:
            if name in trainable and not execution.discarded:
                found[name] = Gradient(
                    parameter=name,
                    run_id=run.id,
                    execution=execution.id,
                    change="",
                    keep=f"what earns full marks for {', '.join(dict.fromkeys(keys))}",
                    evidence=cut(shown_values(execution)[1], 120),
                    weight=0.0,
                    example_id=run.example.id,
                    score=scored.score,
                )
    return list(found.values())


def visible(
    scored: Scored, trace: Trace, among: Collection[str], trainable: Collection[str]
) -> tuple[list[Gradient], dict[str, list[Blame]]]:
    """Return gradients and blame for what visibly went wrong in the executions `among`.

    Where it is clear what the prompt has to say, the gradient says it, and the blame is settled.
    """
    run, loss = scored.run, _SURE * (1 - scored.score)
    gradients: list[Gradient] = []
    blames: dict[str, list[Blame]] = {}
    for name, execution in trace.executions.items():
        if name not in among or execution.discarded:
            continue
        own = [p for p in execution.prompts if p in trainable]
        for symptom in symptoms_of(execution):
            if symptom.kind == "exception" and run.failed_in == name:
                continue  # the evaluator's complaint is this very error
            settled = bool(symptom.rule and own)
            blames.setdefault(name, []).append(
                Blame(symptom.text, loss, symptom.kind, settled=settled, visible=True)
            )
            gradients += [
                Gradient(
                    parameter=parameter,
                    run_id=run.id,
                    execution=name,
                    change=symptom.rule,
                    evidence=symptom.evidence,
                    weight=loss,
                    example_id=run.example.id,
                    score=scored.score,
                )
                for parameter in (own if settled else ())
            ]
    return gradients, blames
