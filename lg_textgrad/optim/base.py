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

    @property
    def hash(self) -> str:
        return candidate_hash(self.candidate)

    def changed(self, incumbent: Mapping[str, str]) -> set[str]:
        """Return the names of the parameters that it changes."""
        return {name for name, text in self.candidate.items() if text != incumbent.get(name)}


def merged(proposals: Sequence[Proposal], incumbent: Candidate) -> Proposal:
    """Return one proposal with the changes of all.

    Of two that change the same parameter the first wins.
    """
    candidate, edits, taken = dict(incumbent), list[Edit](), set[str]()
    for proposal in proposals:
        names = proposal.changed(incumbent)
        if names & taken:
            continue
        taken |= names
        candidate.update({name: proposal.candidate[name] for name in names})
        edits.extend(proposal.edits)
    return Proposal(candidate, tuple(edits))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A proposal that was tried, and what came of it."""

    proposal: Proposal
    accepted: bool
    reason: str


class Optimizer(abc.ABC):
    """Turns the gradients in `parameters` and the history of attempts into proposals.

    A new optimizer is one file in this folder that implements `aproposals`.
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
        """Return what to try, the most promising first, each for itself. Changes no parameter.

        The trainer tries them side by side and joins those that help.
        """

    def zero_grad(self) -> None:
        """Empty the gradients of all parameters."""
        for parameter in self.parameters.values():
            parameter.grad.clear()

    def observe(self, attempt: Attempt) -> None:
        """Take note of what came of a proposal."""
        self.history.append(attempt)

    async def apropose(self) -> list[Candidate]:
        """Return candidates: first with the changes to all parameters, then each alone."""
        proposals = await self.aproposals()
        if not proposals:
            return []
        together = merged(proposals, candidate_of(self.parameters)).candidate
        alone = [proposal.candidate for proposal in proposals]
        return [together, *(candidate for candidate in alone if candidate != together)]

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
