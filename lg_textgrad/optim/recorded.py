"""Learn from runs that were recorded and judged elsewhere, without running the graph on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.data import batches
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.objective import Scored, masked
from lg_textgrad.optim.base import Attempt, Bench, Optimizer, Proposal, Search, merged_within
from lg_textgrad.run import Candidate, Example


class FromRuns(Search):
    """Takes gradients from `scored`, and lets another optimizer make proposals of them.

    Each step makes the reverse pass over a batch of the runs, for the prompts as they are by then;
    each run is gone over once before any comes again. A proposal is tried on `screen`, where there
    are examples, against the incumbent; what is better there, or all of it without `screen`, goes
    to acceptance, first joined, then the best alone. Cost a step: the critic's calls for a batch,
    the optimizer's own, and the runs on `screen`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scored: Sequence[Scored],
        *,
        steps: int = 4,
        batch_size: int = 6,
        screen: Sequence[Example] = (),
    ) -> None:
        if isinstance(optimizer, Search) or not optimizer.needs_gradients:
            raise ConfigurationError(
                f"The optimizer '{type(optimizer).__name__}' makes nothing of gradients, which is "
                "all that recorded runs give; use one that does, such as 'tgd'."
            )
        if not scored:
            raise ConfigurationError("There are no recorded runs to learn from.")
        self.optimizer = optimizer
        self.scored = {s.run.example.id: s for s in scored}
        self.steps = steps
        self.batch_size = batch_size
        self.screen = tuple(screen)
        super().__init__()
        self.refused = optimizer.refused

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        told = [(s.run.id, s.score, s.text) for s in self.scored.values()]
        return {
            "optimizer": "from_runs",
            "by": dict(self.optimizer.fingerprint),
            "runs": digest("runs", told)[:16],
            "steps": self.steps,
            "batch_size": self.batch_size,
            "screen": digest("screen", [(e.id, e.inputs) for e in self.screen])[:16],
        }

    def reset(self) -> None:
        super().reset()
        self.optimizer.reset()

    def observe(self, attempt: Attempt) -> None:
        super().observe(attempt)
        self.optimizer.observe(attempt)

    async def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        examples = [s.run.example for s in self.scored.values()]
        stream = batches(examples, self.batch_size, bench.seed)
        for step, batch in enumerate(islice(stream, self.steps), start=1):
            incumbent = dict(bench.incumbent)
            helped = await self._helped(step, [self.scored[e.id] for e in batch], bench)
            if not helped:
                continue
            together = merged_within(helped, incumbent, bench.refusal)
            for proposal in {together.hash: together, helped[0].hash: helped[0]}.values():
                yield proposal
                if bench.incumbent != incumbent:
                    break  # it was accepted

    async def _helped(
        self, step: int, scored: Sequence[Scored], bench: Bench
    ) -> list[Proposal]:
        """Return what the optimizer makes of a batch, without what breaks promises or is worse."""
        incumbent: Candidate = dict(bench.incumbent)
        working = {n: p.at(incumbent[n]) for n, p in bench.parameters.items()}
        self.optimizer.bind(working)
        self.optimizer.zero_grad()
        runs = [replace(s, run=replace(s.run, parameters=working)) for s in scored]
        if (ledger := ledger_in_scope()) is not None:
            runs = [masked(s, ledger.redaction) for s in runs]
        gradients = await bench.abackward(runs)
        if ledger is not None:
            ledger.store.put_gradients(step, gradients)
        _tell(bench, "gradients", step=step, gradients=gradients)
        proposals = self.allowed(await self.optimizer.aproposals(), bench)
        _tell(bench, "proposals", step=step, proposals=proposals, refused=self.refused)
        return await self._screened(proposals, incumbent, bench)

    async def _screened(
        self, proposals: Sequence[Proposal], incumbent: Candidate, bench: Bench
    ) -> list[Proposal]:
        """Return those that are better than the incumbent on `screen`, the best first."""
        if not self.screen or not proposals:
            return list(proposals)
        before = _total(await bench.ascore(self.screen, incumbent))
        helped = []
        for proposal in proposals:
            gain = _total(await bench.ascore(self.screen, proposal.candidate)) - before
            if gain > 0:
                helped.append((gain, proposal))
            else:
                reason = f"not better on {len(self.screen)} training examples"
                self.observe(Attempt(proposal, False, reason, "batch", gain / len(self.screen)))
        helped.sort(key=lambda pair: -pair[0])
        return [proposal for _, proposal in helped]


def _total(scored: Sequence[Scored]) -> float:
    return round(sum(s.score for s in scored), 9)


def _tell(bench: Bench, kind: str, **data: Any) -> None:
    """Tell whoever watches, where the bench can."""
    event = getattr(bench, "event", None)
    if event is not None:
        event(kind, **data)
