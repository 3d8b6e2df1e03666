"""Which proposals are worth a comparison on validation: a cheap look before the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lg_textgrad.acceptance import Better, Verdict
from lg_textgrad.bench import Workbench, outcomes_of
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Proposal


@dataclass(frozen=True, slots=True)
class Screened:
    """One proposal after the look."""

    proposal: Proposal
    verdict: Verdict
    scores: Mapping[str, float]
    """Example id -> its score."""


class Screening(Protocol):
    """A policy. `scored` are the batch's runs under the step's parent."""

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    async def ascreen(
        self, bench: Workbench, proposals: Sequence[Proposal], scored: Sequence[Scored]
    ) -> list[Screened]:
        """Return the proposals with a verdict each, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class OnBatch:
    """Try every proposal on the batch that it came from, all at once; better is good enough."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"screening": "batch"}

    async def ascreen(
        self, bench: Workbench, proposals: Sequence[Proposal], scored: Sequence[Scored]
    ) -> list[Screened]:
        batch = [s.run.example for s in scored]
        before = outcomes_of(scored)
        tried = await bench.ascore_all(batch, [p.candidate for p in proposals])
        found = []
        for proposal, after_it in zip(proposals, tried, strict=True):
            after = outcomes_of(after_it)
            scores = {e: o.score for e, o in after.items()}
            found.append(Screened(proposal, Better().decide(before, after), scores))
        return found
