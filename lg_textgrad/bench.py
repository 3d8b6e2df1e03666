"""Where candidates are tried: run, scored, compared. Everything is paid once and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lg_textgrad._sync import task_group
from lg_textgrad.acceptance import Acceptance, Outcome, Verdict
from lg_textgrad.critics.base import Critic
from lg_textgrad.demos import split_demos
from lg_textgrad.errors import ParameterError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.guards import Quotations
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.objective import Loss, Objective, Scored
from lg_textgrad.optim.base import Proposal
from lg_textgrad.parameter import Gradient, Parameter, candidate_of
from lg_textgrad.run import Candidate, Example

logger = logging.getLogger(__name__)

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Workbench:
    """The `optim.Bench` of a trainer."""

    graph: TrainableGraph
    objective: Objective
    critic: Critic
    train: Sequence[Example]
    val: Sequence[Example]
    seed: int
    max_concurrency: int
    on_event: OnEvent | None
    incumbent: Candidate
    keep_gradients: Callable[[Sequence[Gradient]], None] = lambda _: None
    """Told of the gradients of each reverse pass."""
    _quotations: Quotations = field(init=False)

    def __post_init__(self) -> None:
        self._quotations = Quotations(e.inputs for e in (*self.train, *self.val))

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.graph.parameters

    @property
    def left(self) -> int | None:
        ledger = ledger_in_scope()
        cap = ledger.account.budget.calls if ledger is not None else None
        return None if ledger is None or cap is None else max(0, cap - ledger.account.spent.calls)

    def event(self, kind: str, /, **data: Any) -> None:
        """Tell whoever watches."""
        if self.on_event is not None:
            self.on_event(kind, data)

    async def ascore(
        self, examples: Sequence[Example], candidate: Candidate, purpose: str = "trial"
    ) -> list[Scored]:
        """Record and score. Nothing is run or evaluated twice: the store knows it by its hash."""
        done = 0
        room = asyncio.Semaphore(4 * self.max_concurrency)

        async def one(example: Example) -> Scored:
            nonlocal done
            async with room:
                runs = await self.graph.arecord([example], prompts=candidate)
                loss = await self.objective.acall(runs)
            done += 1
            self.event(
                "run", purpose=purpose, done=done, total=len(examples), scored=loss.scored[0]
            )
            return loss.scored[0]

        async with task_group() as group:
            tasks = [group.create_task(one(example)) for example in examples]
        return [task.result() for task in tasks]

    async def acompare(
        self,
        incumbent: Mapping[str, Outcome],
        candidate: Candidate,
        examples: Sequence[Example],
        acceptance: Acceptance,
        purpose: str = "val",
    ) -> tuple[Verdict, dict[str, Outcome], list[Scored]]:
        """Try `candidate` on the examples until acceptance has a verdict.

        Returns the verdict and what the candidate did on the examples that it was tried on: all,
        unless the policy could tell early.
        """
        settled = getattr(acceptance, "settled", None)
        chunk = int(getattr(acceptance, "chunk", len(examples))) if settled else len(examples)
        outcomes: dict[str, Outcome] = {}
        scored: list[Scored] = []
        for start in range(0, len(examples), max(1, chunk)):
            part = examples[start : start + chunk]
            found = await self.ascore(part, candidate, purpose)
            scored += found
            outcomes |= outcomes_of(found)
            if settled is not None and len(outcomes) < len(examples):
                known = {e: incumbent[e] for e in outcomes}
                verdict = settled(known, outcomes, len(examples))
                if verdict is not None:
                    return verdict, outcomes, scored
        return acceptance.decide({e: incumbent[e] for e in outcomes}, outcomes), outcomes, scored

    async def abackward(
        self, scored: Sequence[Scored], parameters: Mapping[str, Parameter] | None = None
    ) -> list[Gradient]:
        """Make the reverse pass. With `parameters` the gradients go to these instead."""
        if parameters is not None:
            scored = [replace(s, run=replace(s.run, parameters=parameters)) for s in scored]
        gradients = await Loss(tuple(scored)).abackward(self.critic)
        self.keep_gradients(gradients)
        return gradients

    def refusal(self, proposal: Proposal) -> str | None:
        """Return which promise a proposal breaks; None where it keeps all of them.

        Demonstrations are examples word for word, so only instructions are searched for quotations.
        """
        now = candidate_of(self.graph.parameters)
        try:
            for name in sorted(proposal.changed(now)):
                self.graph.parameters[name].check(proposal.candidate[name])
                before, after = split_demos(now[name])[0], split_demos(proposal.candidate[name])[0]
                old = set(before.split("\n"))
                for line in after.split("\n"):
                    quoted = None if line in old else self._quotations.find(line)
                    if quoted is not None:
                        raise ParameterError(
                            f"A proposed line of '{name}' quotes an example: {quoted!r}.",
                            parameter=name,
                        )
        except ParameterError as error:
            logger.info("%s", error)
            return str(error)
        return None


def outcomes_of(scored: Sequence[Scored]) -> dict[str, Outcome]:
    """Return example id -> outcome."""
    return {s.run.example.id: Outcome.of(s) for s in scored}
