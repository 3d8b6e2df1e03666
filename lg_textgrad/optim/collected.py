"""What runs of the training examples show about each parameter's node. Costs no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lg_textgrad.bindings.skeleton import Skeleton, align, state_of
from lg_textgrad.objective import Scored
from lg_textgrad.optim.expected import (
    ReplyForm,
    asked_and_replied,
    learn_form,
    replies_through,
)
from lg_textgrad.run import Example
from lg_textgrad.trace import Trace


@dataclass(frozen=True, slots=True)
class Turn:
    """What one execution was asked and what it replied, on one example."""

    example: Example
    asked: str
    replied: str
    keys: tuple[str, ...] = ()
    """The graph's outputs that the reply became."""


class Collected:
    """What runs of the training examples show about each parameter's node. Costs no call."""

    def __init__(self) -> None:
        self.good: dict[str, dict[str, Turn]] = {}
        """Parameter -> example id -> a turn that nothing was wrong with."""
        self.final: dict[str, dict[str, Turn]] = {}
        """Parameter -> example id -> a turn whose reply became an output of the graph."""
        self.examples: tuple[Example, ...] = ()
        """All training examples, run or not."""

    def add(self, scored: Scored, threshold: float) -> None:
        """Take note of one run. It succeeded when it scored `threshold` or more."""
        run = scored.run
        if run.error is not None:
            return
        trace = Trace.of(run)
        wrote: dict[str, list[str]] = {}
        for key, writers in trace.sinks.items():
            for writer in writers:
                wrote.setdefault(writer, []).append(key)
        for execution in run.executions:
            turn = asked_and_replied(execution)
            if turn is None or execution.error is not None:
                continue
            keys = wrote.get(execution.id, [])
            good = scored.score >= threshold or _full_marks(scored, keys)
            for name in execution.prompts:
                known = Turn(run.example, *turn, tuple(keys))
                if good:
                    self.good.setdefault(name, {})[run.example.id] = known
                if replies_through(execution, known.replied, keys):
                    self.final.setdefault(name, {})[run.example.id] = known

    def form(self, name: str) -> ReplyForm | None:
        """Return how a parameter's node should reply, as far as the runs so far tell."""
        seen = self.final.get(name, {}).values()
        written = dict.fromkeys(key for turn in seen for key in turn.keys)
        pairs = ((turn.replied, turn.example.outputs or {}) for turn in seen)
        return learn_form(pairs, list(written), alone=len(self.final) == 1)

    def expected(self, name: str) -> list[Turn]:
        """Return turns whose replies are what the reference outputs ask for.

        Of examples that ran and, where the user's turn is made of their inputs alone, of all.
        """
        form = self.form(name)
        if form is None:
            return []
        seen = self.final[name]
        asked = {turn.example.id: turn.asked for turn in seen.values()}
        question = _question(list(seen.values()))
        turns = []
        examples = {e.id: e for e in (*(t.example for t in seen.values()), *self.examples)}
        for example in examples.values():
            text = asked.get(example.id) or (question and _asked(question, example))
            reply = form.reply(example.outputs or {})
            if text and reply:
                turns.append(Turn(example, text, reply))
        return turns


def _full_marks(scored: Scored, keys: Sequence[str]) -> bool:
    """Return whether every evaluator that looked at `keys` gave full marks, and some did.

    One that read nothing in particular judged all of it, so then only the score counts.
    """
    looked = [
        f.score
        for f in scored.feedback
        if f.score is not None and f.reads and f.reads & set(keys)
    ]
    return bool(looked) and min(looked) >= 1 and all(f.reads for f in scored.feedback)


def _question(seen: Sequence[Turn]) -> Skeleton | None:
    """Return the template of the user's turn when it is made of the examples' inputs alone."""
    samples = [(turn.asked, state_of(dict(turn.example.inputs))) for turn in seen]
    if len({asked for asked, _ in samples}) < 2:
        return None
    found = align(samples)
    for asked, state in samples:
        variables = found.match(asked)
        if not variables or any(state.get(n, "").strip() != v for n, v in variables.items()):
            return None
    return found


def _asked(question: Skeleton, example: Example) -> str | None:
    state = state_of(dict(example.inputs))
    if any(name not in state for name in question.names):
        return None
    return question.fill({n: state[n].strip() for n in question.names}).strip()
