"""What a critic is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lg_textgrad.objective import Scored
from lg_textgrad.parameter import Gradient, Parameter
from lg_textgrad.run import Execution


@dataclass(frozen=True, slots=True)
class Blame:
    """A complaint that reached an execution: from an evaluator, or from one of its consumers."""

    text: str
    weight: float
    """In [0, 1]: how much of the loss it stands for."""
    source: str
    """An evaluator's key, or the id of the consumer that complained."""


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


def tell(critic: Any, what: str, *arguments: Any) -> None:
    """Tell a critic that learns; others have no ear for it."""
    ear = getattr(critic, what, None)
    if ear is not None:
        ear(*arguments)


class Critic(Protocol):
    """Judges one execution. At most one model call, plus one repetition of a malformed reply.

    A critic that learns also has `observe(edits, gain)`, which is told how much every proposal
    gained over its incumbent, and `reset()`, which is called before a run begins or goes on.
    """

    async def acriticize(self, request: CriticRequest) -> Critique:
        """Return gradients for the execution's parameters and blame for its producers.

        Raises `CriticError` when the reply is malformed twice; the reverse pass then goes on
        without this execution.
        """
        ...
