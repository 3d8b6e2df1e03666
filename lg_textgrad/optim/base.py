"""What an optimizer is, and what the tuning loop by hand needs of it."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad._sync import run_sync
from lg_textgrad.errors import ParameterError
from lg_textgrad.parameter import Edit, Parameter, candidate_hash, candidate_of
from lg_textgrad.run import Candidate


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate, and how it came to be."""

    candidate: Candidate
    edits: Sequence[Edit] = ()
    instead_of: str | None = None
    """Hash of a bigger proposal: this one is only worth trying when that one was refused."""

    @property
    def hash(self) -> str:
        return candidate_hash(self.candidate)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A proposal that was tried, and what came of it."""

    proposal: Proposal
    accepted: bool
    reason: str


class Optimizer(abc.ABC):
    """Turns the gradients in `parameters` and the history of attempts into proposals.

    A new optimizer is one file in this folder that implements `apropose_edits`.
    """

    def __init__(self, parameters: Mapping[str, Parameter] | Iterable[Parameter] = ()) -> None:
        self.parameters: dict[str, Parameter] = {}
        self.history: list[Attempt] = []
        self.refused: list[str] = []
        """Why proposals never left the optimizer: malformed replies, broken promises."""
        self.bind(parameters)

    def bind(self, parameters: Mapping[str, Parameter] | Iterable[Parameter]) -> None:
        """Work on these parameters from now on."""
        found = parameters.values() if isinstance(parameters, Mapping) else parameters
        self.parameters = {p.name: p for p in found}

    @property
    @abc.abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the proposals besides the gradients, as plain data."""

    @abc.abstractmethod
    async def aproposals(self) -> list[Proposal]:
        """Return what to try, the most promising first. Changes no parameter."""

    def zero_grad(self) -> None:
        """Empty the gradients of all parameters."""
        for parameter in self.parameters.values():
            parameter.grad.clear()

    def observe(self, attempt: Attempt) -> None:
        """Take note of what came of a proposal."""
        self.history.append(attempt)

    async def apropose(self) -> list[Candidate]:
        """Return the candidates of `aproposals`."""
        return [proposal.candidate for proposal in await self.aproposals()]

    def propose(self) -> list[Candidate]:
        """`apropose` for sync code."""
        return run_sync(self.apropose())

    async def astep(self) -> Candidate:
        """Propose and take the first candidate, ungated: TextGrad's behaviour.

        Returns the candidate that is now in the parameters, the old one when nothing was proposed.
        """
        self._need_parameters()
        candidates = await self.apropose()
        if candidates:
            for name, text in candidates[0].items():
                self.parameters[name].value = text
        return candidate_of(self.parameters)

    def step(self) -> Candidate:
        """`astep` for sync code."""
        return run_sync(self.astep())

    def _need_parameters(self) -> None:
        if not self.parameters:
            raise ParameterError(
                "The optimizer has no parameters; pass them: "
                "TextualGradientDescent(model, parameters=graph.parameters)."
            )
