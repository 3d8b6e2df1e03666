"""What a critic is asked and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lg_textgrad.objective import Scored
from lg_textgrad.parameter import Gradient, Parameter
from lg_textgrad.run import Execution
from lg_textgrad.trace import Trace


@dataclass(frozen=True, slots=True)
class Blame:
    """A complaint that reached an execution: from an evaluator, or from one of its consumers."""

    text: str
    weight: float
    """In [0, 1]: how much of the loss it stands for."""
    source: str
    """An evaluator's key, the id of the consumer that complained, or the kind of a symptom."""
    settled: bool = False
    """Whether the prompt's rule about it is known already, so that it alone is worth no call."""
    visible: bool = False
    """Whether it is a symptom; an evaluator's key may be the name of one."""


@dataclass(frozen=True, slots=True)
class Producer:
    """Who fed the execution, as far as blaming it makes sense."""

    execution: str
    node: str
    channels: Sequence[str]


@dataclass(frozen=True, slots=True)
class CriticRequest:
    """One execution to judge."""

    scored: Scored
    execution: Execution
    parameters: Mapping[str, Parameter]
    """The trainable parameters that the execution read."""
    producers: Sequence[Producer]
    blames: Sequence[Blame]


@dataclass(frozen=True, slots=True)
class Critique:
    """The critic's answer."""

    gradients: Sequence[Gradient] = ()
    upstream: Mapping[str, Blame] = field(default_factory=dict)
    """Producer's execution id -> what it is blamed for."""


def most_calls(critic: Any, nodes: int) -> int:
    """Return how many calls at most a critic makes about a run of `nodes` model calls."""
    told = getattr(critic, "most_calls", None)
    return nodes if told is None else int(told(nodes))


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One run below full marks to judge."""

    scored: Scored
    trace: Trace
    trainable: Collection[str]
    """Names of the parameters that can be changed."""
    worth: Collection[str]
    """Executions that read one of them or have an ancestor that did."""
    blames: Mapping[str, Sequence[Blame]]
    """Execution -> complaints of evaluators about what it wrote, and what visibly went wrong."""
    threshold: float
    """Blame below this stops where it is."""
    beside: int = 1
    """How many runs of this reverse pass are below full marks, this one included."""

    @property
    def complaint(self) -> str:
        """What evaluators say of the run, one complaint a line."""
        told = [b.text for found in self.blames.values() for b in found if self.is_said(b)]
        return "\n".join(dict.fromkeys(told))

    def is_said(self, blame: Blame) -> bool:
        """Return whether an evaluator says it of the run."""
        return not blame.visible and any(blame.source == f.key for f in self.scored.feedback)

    @property
    def suspects(self) -> list[Execution]:
        """The executions that read a trainable parameter and can have caused a complaint."""
        blamed = [e for e, b in self.blames.items() if any(x.weight >= self.threshold for x in b)]
        reached = self.trace.reached_from(blamed)
        return [
            execution
            for name, execution in self.trace.executions.items()
            if name in reached and any(p in self.trainable for p in execution.prompts)
        ]

    @property
    def asked_by_node(self) -> int:
        """How many critic calls the run costs at most when it is judged node by node."""
        blamed = [e for e, b in self.blames.items() if any(x.weight >= self.threshold for x in b)]
        executions = self.trace.executions
        return sum(
            bool(executions[name].model_calls or executions[name].prompts.keys() & self.trainable)
            for name in self.trace.reached_from(blamed)
            if name in self.worth
        )


def tell(critic: Any, what: str, *arguments: Any) -> None:
    """Tell a critic that learns; others have no ear for it."""
    ear = getattr(critic, what, None)
    if ear is not None:
        ear(*arguments)


class Critic(Protocol):
    """Judges one execution. At most one model call, plus one repetition of a malformed reply.

    A critic may have more to offer; the reverse pass looks for these methods:

    - `async acriticize_run(request: RunRequest) -> Sequence[Gradient] | None` judges a whole run at
      once; None asks to be given this run execution by execution.
    - `async aweigh(request: RunRequest, gradients: Sequence[Gradient]) -> Sequence[Gradient]` is
      told what was found in a run, and returns it with better weights.
    - `most_calls(nodes: int) -> int` is how many calls a run of so many model-calling executions
      costs at most; without it, one for each.

    A critic that learns also has `observe(edits, gain)`, which is told how much every proposal
    gained over its incumbent, and `reset()`, which is called before a run begins or goes on.
    """

    async def acriticize(self, request: CriticRequest) -> Critique:
        """Return gradients for the execution's parameters and blame for its producers.

        Raises `CriticError` when the reply is malformed twice; the reverse pass then goes on
        without this execution.
        """
        ...
