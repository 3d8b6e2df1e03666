"""Proposals of several optimizers, raced on validation rows; what helps is joined."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad._hashing import canonical
from lg_textgrad._sync import all_at_once
from lg_textgrad.data import batches
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Attempt, Bench, Optimizer, Proposal, Search, Sizes, merged
from lg_textgrad.optim.collected import Collected
from lg_textgrad.optim.fewshot import FewShot
from lg_textgrad.optim.guided import free_replies, with_their_own_runs
from lg_textgrad.optim.output_rules import OutputRules
from lg_textgrad.optim.strategies import ADVICE, Strategies
from lg_textgrad.optim.tgd import TextualGradientDescent
from lg_textgrad.parameter import Parameter
from lg_textgrad.run import Example


@dataclass(frozen=True, slots=True)
class _Runner:
    """A proposal in the race."""

    proposal: Proposal
    gain: float
    """Mean score over the incumbent's, on the rows so far."""


class Portfolio(Search):
    """Lets several optimizers propose, and races what they propose.

    Each round records a batch of `batch_size` training examples, makes the reverse pass when a
    member wants gradients, and asks every member. All proposals start on the first `heat` rows of
    the validation examples, paired with the incumbent; the best share `keep` of them goes on to
    twice the rows, and so on. After the first heat those that helped are also joined, lines with
    lines and demonstrations with instructions, and the joined ones race along. The winner goes to
    acceptance, where the rows that it has run are not paid again; the second too when it is
    refused. Where replies may give reasons, the lines of `Strategies` are tried on the batch first,
    and what they led to is raced as demonstrations too.

    Members, unless given: `OutputRules`, `FewShot`, `TextualGradientDescent` with `model`,
    `Strategies`. Cost: a round is about `batch_size` runs, as many for each line of `Strategies`
    where replies may give reasons, the members' calls, and three times `heat` runs for each
    proposal; it is made smaller where the budget has not that much left, and is over where nobody
    proposes anything.
    Successive halving after Jamieson and Talwalkar 2016. Raises `ConfigurationError` with neither
    `model` nor `members`, for numbers below 1, and for a `keep` outside (0, 1).
    """

    def __init__(
        self,
        model: ChatModel | None = None,
        *,
        members: Sequence[Optimizer] | None = None,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        rounds: int = 3,
        batch_size: int = 8,
        heat: int = 6,
        keep: float = 1 / 3,
        max_proposals: int = 16,
        seed: int = 0,
    ) -> None:
        if members is None:
            if model is None:
                raise ConfigurationError("Portfolio needs a model, or members of its own.")
            members = [
                OutputRules(),
                FewShot(seed=seed),
                TextualGradientDescent(model, seed=seed),
                Strategies(),
            ]
        counts = {"rounds": rounds, "batch_size": batch_size, "heat": heat}
        check_counts("Portfolio", **counts, max_proposals=max_proposals)
        check_numbers("Portfolio", lambda n: 0 < n < 1, "between 0 and 1", keep=keep)
        self.members = tuple(members)
        super().__init__(parameters)
        self.rounds = rounds
        self.batch_size = batch_size
        self.heat = heat
        self.keep = keep
        self.max_proposals = max_proposals
        self.seed = seed
        self.collected = Collected()
        self._told = [0] * len(self.members)
        """How many refusals of each member are known."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "optimizer": "portfolio",
            "version": 2,
            "members": [dict(m.fingerprint) for m in self.members],
            "rounds": self.rounds,
            "batch_size": self.batch_size,
            "heat": self.heat,
            "keep": self.keep,
            "max_proposals": self.max_proposals,
            "seed": self.seed,
        }

    def bind(self, parameters: Mapping[str, Parameter] | Iterable[Parameter]) -> None:
        super().bind(parameters)
        for member in self.members:
            member.bind(self.parameters)

    def reset(self) -> None:
        super().reset()
        self.collected = Collected()
        for member in self.members:
            member.reset()
        self._told = [0] * len(self.members)

    def see_examples(self, train: Sequence[Example]) -> None:
        for member in self.members:
            member.see_examples(train)

    def observe(self, attempt: Attempt) -> None:
        super().observe(attempt)
        for member in self.members:
            member.observe(attempt)

    def most_calls(self, sizes: Sizes) -> int:
        batch = min(self.batch_size, sizes.train)
        lines = sum(len(m.lines) for m in self.members if isinstance(m, Strategies))
        advised = batch * lines * sizes.prompts
        rows = min(self.heat, sizes.val)
        racing = self.max_proposals
        runs = batch + racing * rows
        joined = 2
        while rows * 2 <= sizes.val:  # as in _race: further rows, and all of them for the joined
            racing = max(2, math.ceil(self.keep * racing))
            runs += racing * rows + joined * 2 * rows
            racing, joined, rows = racing + joined, 0, rows * 2
        runs += 2 * (sizes.val - rows)  # two come to acceptance
        own = sum(member.step_calls(sizes.prompts) for member in self.members)
        blame = sizes.blame * batch if any(m.needs_gradients for m in self.members) else 0
        return self.rounds * ((runs + advised) * sizes.run + own + blame)

    async def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        stream = batches(bench.train, self.batch_size, self.seed)
        val = varied(bench.val, f"{self.seed}/val")
        for batch in islice(stream, self.rounds):
            scored = await bench.ascore(batch, bench.incumbent, "batch")
            proposals = await self._proposed(bench, scored)
            places = self._places(bench, scored)
            if not places:
                return
            if not proposals:  # a batch with full marks; the next one may teach something
                continue
            for runner in await self._race(bench, proposals[:places], val):
                before = bench.incumbent
                yield runner.proposal
                if bench.incumbent != before:
                    break

    async def _proposed(self, bench: Bench, scored: Sequence[Scored]) -> list[Proposal]:
        """Return what the members propose, one of each in turn, without what was tried before."""
        self.bind(bench.parameters)
        self.zero_grad()
        for member in self.members:
            member.see(scored)
        if any(member.needs_gradients for member in self.members):
            await bench.abackward(scored)
        proposed = await all_at_once(member.aproposals() for member in self.members)
        for n, member in enumerate(self.members):
            self.refused += member.refused[self._told[n] :]
            self._told[n] = len(member.refused)
        tried = {a.proposal.hash for a in self.history}
        found: dict[str, Proposal] = {}
        for turn in zip_longest(*proposed):
            for proposal in turn:
                if proposal is not None and proposal.hash not in tried:
                    found.setdefault(proposal.hash, proposal)
        return await self._guided(bench, scored, self.allowed(found.values(), bench))

    async def _guided(
        self, bench: Bench, scored: Sequence[Scored], proposals: Sequence[Proposal]
    ) -> list[Proposal]:
        """Return the proposals, before them advice with what it led to, without what did harm."""
        for one in scored:
            self.collected.add(one, 1.0)
        advice = [
            p
            for p in proposals
            if p.kind == ADVICE
            and all(free_replies(self.collected, n) for n in p.changed(bench.incumbent))
        ]
        runs = len(advice) * len(scored)
        if not advice or (bench.left is not None and 3 * runs * _calls(scored) > bench.left):
            return list(proposals)
        shown, harmful = await with_their_own_runs(bench, advice, scored)
        for attempt in harmful:
            self.observe(attempt)
        lost = {attempt.proposal.hash for attempt in harmful}
        return [*self.allowed(shown, bench), *(p for p in proposals if p.hash not in lost)]

    def _places(self, bench: Bench, scored: Sequence[Scored]) -> int:
        """Return how many proposals the budget can still race: what a race costs is known."""
        if bench.left is None:
            return self.max_proposals
        return min(self.max_proposals, int(bench.left / (3 * self.heat * _calls(scored))))

    async def _race(
        self, bench: Bench, proposals: Sequence[Proposal], val: Sequence[Example]
    ) -> list[_Runner]:
        """Return at most two proposals that were better to the end, the best first."""
        running, rows = list(proposals), min(self.heat, len(val))
        first = True
        while True:
            ranked = await self._heat(bench, running, val[:rows])
            better = [r for r in ranked if r.gain > 0]
            for lost in ranked[len(better) :]:
                why = f"lost a heat ({lost.gain:+.3f})"
                self.observe(Attempt(lost.proposal, False, why, "race", lost.gain))
            kept = better[: max(2, math.ceil(self.keep * len(running)))]
            if not kept or rows * 2 > len(val):
                return kept[:2]
            running = [r.proposal for r in kept]
            if first:
                running = _with_joined(better, running, bench.incumbent)
            elif len(running) == 1:
                return kept
            running = [p for p in running if bench.refusal(p) is None]
            first = False
            rows *= 2

    async def _heat(
        self, bench: Bench, running: Sequence[Proposal], rows: Sequence[Example]
    ) -> list[_Runner]:
        """Return the proposals by their mean gain on the rows; of equals, the first proposed."""
        base = await bench.ascore(rows, bench.incumbent, "race")
        found = await bench.ascore_all(rows, [p.candidate for p in running], "race")
        before = math.fsum(s.score for s in base)
        runners = [
            _Runner(p, (math.fsum(s.score for s in scored) - before) / len(rows))
            for p, scored in zip(running, found, strict=True)
        ]
        return sorted(runners, key=lambda r: -r.gain)


def _calls(scored: Sequence[Scored]) -> float:
    """Return how many model calls a run makes."""
    calls = sum(len(e.model_calls) for s in scored for e in s.run.executions)
    return max(1.0, calls / max(1, len(scored)))


def varied(examples: Sequence[Example], seed: str) -> list[Example]:
    """Return the examples in an order whose every beginning has as many expected outputs as can be.

    So that a short heat is no lottery over which of them it sees.
    """
    shuffled = sorted(examples, key=lambda e: e.id)
    random.Random(seed).shuffle(shuffled)
    groups: dict[str, list[Example]] = {}
    for example in shuffled:
        first = next(iter((example.outputs or {}).values()), None)
        groups.setdefault(canonical(first), []).append(example)
    return [e for turn in zip_longest(*groups.values()) for e in turn if e is not None]


def _with_joined(
    better: Sequence[_Runner], running: Sequence[Proposal], incumbent: Mapping[str, str]
) -> list[Proposal]:
    """Return the proposals with what comes of joining all that helped, and of joining the best."""
    joined = [
        merged([r.proposal for r in better], dict(incumbent)),
        merged([r.proposal for r in better[:2]], dict(incumbent)),
    ]
    found = {p.hash: p for p in (*joined, *running)}
    return list(found.values())
