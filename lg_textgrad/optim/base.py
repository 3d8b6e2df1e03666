"""What an optimizer is, and what the tuning loop by hand needs of it."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lg_textgrad._sync import run_sync
from lg_textgrad.demos import render_demos, split_demos
from lg_textgrad.errors import ParameterError
from lg_textgrad.objective import Scored
from lg_textgrad.parameter import (
    Edit,
    Gradient,
    Parameter,
    apply_edits,
    candidate_hash,
    candidate_of,
)
from lg_textgrad.run import Candidate, Example


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate, and how it came to be."""

    candidate: Candidate
    edits: Sequence[Edit] = ()
    kind: str = "edits"
    """What made it, for people: `edits`, `gradients as lines`, `demonstrations`, `rewrite`, …"""
    parents: tuple[str, ...] = ()
    """Hashes of the candidates that it joins; empty when it comes from the step's own parent."""

    @property
    def hash(self) -> str:
        return candidate_hash(self.candidate)

    def changed(self, incumbent: Mapping[str, str]) -> set[str]:
        """Return the names of the parameters that it changes."""
        return {name for name, text in self.candidate.items() if text != incumbent.get(name)}


def merged(proposals: Sequence[Proposal], incumbent: Candidate) -> Proposal:
    """Return one proposal with the changes of all, the first winning where two are at odds.

    A parameter's instruction and its demonstrations change independently, and so do lines of one
    instruction where edits say all that was done to it.
    """
    parts: dict[tuple[str, int], Any] = {}
    edits: dict[str, list[Edit]] = {}
    kinds: dict[str, None] = {}
    for proposal in proposals:
        own: dict[tuple[str, int], Any] = {}
        joined: dict[str, list[Edit]] = {}
        settled: set[tuple[str, int]] = set()
        for name in proposal.changed(incumbent):
            before, after = split_demos(incumbent[name]), split_demos(proposal.candidate[name])
            own |= {(name, part): after[part] for part in (0, 1) if after[part] != before[part]}
            if (name, 0) in own:
                joined[name] = [e for e in proposal.edits if e.parameter == name]
                if (name, 0) in parts:
                    both = _joined(before[0], edits[name], joined[name], parts[name, 0], after[0])
                    if both is not None:
                        own[name, 0], joined[name] = both
                        settled.add((name, 0))
        if own.keys() & parts.keys() - settled:
            continue
        parts |= own
        edits |= joined
        kinds[proposal.kind] = None
    candidate = dict(incumbent)
    for name in {name for name, _ in parts}:
        instruction, demos = split_demos(incumbent[name])
        candidate[name] = render_demos(
            parts.get((name, 0), instruction), parts.get((name, 1), demos)
        )
    return Proposal(candidate, tuple(e for own in edits.values() for e in own), ", ".join(kinds))


def merged_within(
    proposals: Sequence[Proposal], incumbent: Candidate, refusal: Callable[[Proposal], str | None]
) -> Proposal:
    """Return the first proposal with the changes of those that it can take.

    Promises that each keeps alone may be broken together: a limit, a placeholder of two lines.
    """
    taken = list(proposals[:1])
    for proposal in proposals[1:]:
        if refusal(merged([*taken, proposal], incumbent)) is None:
            taken.append(proposal)
    return merged(taken, incumbent)


def _joined(
    before: str, first: Sequence[Edit], second: Sequence[Edit], one: str, other: str
) -> tuple[str, list[Edit]] | None:
    """Return the text with both lists of edits, and the edits; None where that can't be."""
    try:
        if not (first and second) or apply_edits(before, first) != one:
            return None
        if apply_edits(before, second) != other:
            return None
        both = list(first)
        for edit in second:
            same = [n for n, e in enumerate(both) if e.op != "delete" and e.text == edit.text]
            if not edit.text.strip():  # blank lines are the same in the same place only
                same = [n for n in same if both[n].line == edit.line]
            if edit.op == "add" and same:  # the same line, found twice
                known = both[same[0]]
                ids = dict.fromkeys((*known.gradients, *edit.gradients))
                both[same[0]] = replace(known, gradients=tuple(ids))
            elif edit not in both:
                both.append(edit)
        return apply_edits(before, both), both
    except ParameterError:
        return None


def taken_apart(parameter: Parameter) -> Parameter:
    """Return the parameter with its instruction and its demonstrations apart, as candidates are.

    A value that a user gives, such as a text that was exported, may have both.
    """
    copy = parameter.at(parameter.full)
    copy.grad = parameter.grad
    return copy


@dataclass(frozen=True, slots=True)
class Attempt:
    """A proposal that was tried, and what came of it."""

    proposal: Proposal
    accepted: bool
    reason: str
    stage: str = "val"
    """`batch` where its gradients came from, `race` on some validation rows, or `val`."""
    gain: float = 0.0
    """Mean score over the incumbent's, on the same examples."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Example id -> score in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the cost of a training depends on."""

    prompts: int
    """Parameters that are trained."""
    train: int
    """Training examples."""
    val: int
    """Validation examples."""
    run: int
    """Model calls of one run of the graph."""
    blame: int
    """Critic calls about one run, at most."""


class Optimizer(abc.ABC):
    """Turns the gradients in `parameters` and the history of attempts into proposals.

    A new optimizer is one file in this folder that implements `aproposals`.
    """

    needs_gradients = True
    """Whether the trainer has to make the reverse pass before it asks for proposals."""

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

    def see(self, scored: Sequence[Scored]) -> None:  # noqa: B027 - most have no use for it
        """Take note of runs of the training examples under the incumbent, with their scores."""

    def reset(self) -> None:
        """Forget what earlier runs have shown: a run that goes on is gone through from the top."""
        self.history.clear()
        self.refused.clear()

    def see_examples(self, train: Sequence[Example]) -> None:  # noqa: B027
        """Take note of all training examples, before the first step."""

    def step_calls(self, prompts: int) -> int:
        """Return how many model calls `aproposals` makes for so many parameters, for an estimate.

        Calls that are made once more, since a reply was refused, don't count.
        """
        return prompts

    def step_proposals(self, prompts: int) -> int:
        """Return how many proposals `aproposals` has at most for so many parameters."""
        return prompts

    def zero_grad(self) -> None:
        """Empty the gradients of all parameters."""
        for parameter in self.parameters.values():
            parameter.grad.clear()

    def allowed(self, proposals: Iterable[Proposal], bench: Bench) -> list[Proposal]:
        """Return the proposals that keep every promise; why others don't is in `refused`.

        Before any rollout: what breaks a promise costs none.
        """
        kept = []
        for proposal in proposals:
            refusal = bench.refusal(proposal)
            if refusal is None:
                kept.append(proposal)
            else:
                self.refused.append(refusal)
        return kept

    def observe(self, attempt: Attempt) -> None:
        """Take note of what came of a proposal."""
        self.history.append(attempt)

    async def apropose(self) -> list[Candidate]:
        """Return candidates: first with all changes that go together, then each proposal alone."""
        proposals = await self.aproposals()
        if not proposals:
            return []
        now = candidate_of(self.parameters)
        together = merged_within(proposals, now, self._broken).candidate
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
                self.parameters[name].adopt(text)
        return candidate_of(self.parameters)

    def step(self) -> Candidate:
        """`astep` for sync code."""
        return run_sync(self.astep())

    def _broken(self, proposal: Proposal) -> str | None:
        """Return which promise of a parameter a proposal breaks; None where it keeps all."""
        try:
            for name in sorted(proposal.changed(candidate_of(self.parameters))):
                self.parameters[name].check(proposal.candidate[name])
        except ParameterError as error:
            return str(error)
        return None

    def _need_parameters(self) -> None:
        if not self.parameters:
            raise ParameterError(
                "The optimizer has no parameters; pass them: "
                "TextualGradientDescent(model, parameters=graph.parameters)."
            )


class Bench(Protocol):
    """What a search may do: try candidates on examples. Everything is paid once, and counted."""

    @property
    def parameters(self) -> Mapping[str, Parameter]: ...

    @property
    def train(self) -> Sequence[Example]: ...

    @property
    def val(self) -> Sequence[Example]: ...

    @property
    def seed(self) -> int: ...

    @property
    def incumbent(self) -> Candidate:
        """The best accepted candidate so far."""
        ...

    @property
    def left(self) -> int | None:
        """How many model calls the budget still has; None without a cap on calls."""
        ...

    async def ascore(
        self, examples: Sequence[Example], candidate: Candidate, purpose: str = "trial"
    ) -> list[Scored]:
        """Run `candidate` on the examples and score it, all at once."""
        ...

    async def ascore_all(
        self, examples: Sequence[Example], candidates: Sequence[Candidate], purpose: str = "trial"
    ) -> list[list[Scored]]:
        """Score several candidates on the same examples, and return the scores of each."""
        ...

    async def abackward(self, scored: Sequence[Scored]) -> list[Gradient]:
        """Make the reverse pass over the runs. The gradients are also in `Parameter.grad`."""
        ...

    def refusal(self, proposal: Proposal) -> str | None:
        """Return which promise a proposal breaks; None where it keeps all and may be tried."""
        ...


class Search(Optimizer):
    """An optimizer with a loop of its own, over candidates that it tries by itself.

    It yields what it believes to be better; the trainer lets acceptance decide on all validation
    examples and tells it by `observe` before it goes on.
    """

    @abc.abstractmethod
    def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        """Yield proposals that are worth a full comparison, until there is nothing more to try."""

    def most_calls(self, sizes: Sizes) -> int | None:  # noqa: ARG002
        """Return how many model calls the whole search makes at most, acceptance included.

        For the estimate before the first call: one call for each that is stored, none for a second
        attempt. None where the search can't tell; then only the budget says so.
        """
        return None

    async def aproposals(self) -> list[Proposal]:
        """Return nothing: a search needs a trainer, which lets it try its candidates."""
        return []
