"""Where candidates are tried: run, scored, compared. Everything is paid once and counted."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from lg_textgrad._hashing import to_plain
from lg_textgrad._sync import all_at_once
from lg_textgrad.acceptance import Acceptance, Outcome, Verdict
from lg_textgrad.changes import Refused
from lg_textgrad.critics.base import Critic
from lg_textgrad.demos import readings_of, split_demos
from lg_textgrad.errors import ParameterError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.guards import Answers, Quotations, new_lines, seams, stretches, strings, words
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.objective import Loss, Objective, Scored
from lg_textgrad.optim.base import Proposal
from lg_textgrad.parameter import Gradient, Parameter, candidate_hash, candidate_of
from lg_textgrad.planted import outward, planted
from lg_textgrad.provenance import Provenance
from lg_textgrad.run import Candidate, Example
from lg_textgrad.selection import Entry
from lg_textgrad.symptoms import remark_in

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
    refused: Refused = field(default_factory=Refused)
    """What people refused, which is not proposed again."""
    _quotations: Quotations = field(init=False)
    _rows: dict[str, Example] = field(default_factory=dict, init=False)
    _answers: Answers = field(init=False)
    _provenance: Provenance = field(init=False)
    _owned: list[str] = field(init=False)
    """Texts of the user's: prompts at the start and reference outputs."""
    _looks: Iterator[int] = field(default_factory=count, init=False)
    """Numbers of the looks at what is left."""

    def __post_init__(self) -> None:
        rows = (*self.train, *self.val)
        self._quotations = Quotations()
        prompts = [t for p in self.graph.parameters.values() for t in (p.full, p.role, p.name)]
        references = [text for e in rows for text in strings(to_plain(e.outputs or {}))]
        self._owned = [*prompts, *references]
        self._answers = Answers(prompts)
        for example in rows:
            self._know(example)
        self._provenance = Provenance(self._owned)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.graph.parameters

    @property
    def left(self) -> int | None:
        """How many model calls the budget still has; None without a cap on calls.

        What was spent is written down each time that it is asked for: a run that goes on is gone
        through from the top with all of it paid, and must decide again as it did.
        """
        ledger = ledger_in_scope()
        if ledger is None:
            return None
        key = f"spent at look {next(self._looks)}"
        spent = ledger.store.get_meta(key)
        if spent is None:
            spent = ledger.account.spent.calls
            ledger.store.put_meta(key, spent)
        cap = ledger.account.budget.calls
        return None if cap is None else max(0, cap - int(spent))

    def event(self, kind: str, /, **data: Any) -> None:
        """Tell whoever watches."""
        if self.on_event is not None:
            self.on_event(kind, data)

    async def ascore(
        self,
        examples: Sequence[Example],
        candidate: Candidate,
        purpose: str = "trial",
        *,
        at_once: int | None = None,
    ) -> list[Scored]:
        """Record and score. Nothing is run or evaluated twice: the store knows it by its hash."""
        done = 0
        room = asyncio.Semaphore(at_once or 4 * self.max_concurrency)

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

        scored = await all_at_once(one(example) for example in examples)
        if purpose == "batch":  # what critics read, and rewriters after them
            self._see(scored)
        if self.objective.summary and purpose != "trial":
            told = await self.objective.asummarize(scored)
            self.event(
                "summary", purpose=purpose, candidate=candidate_hash(candidate), feedback=told
            )
        return scored

    async def ascore_all(
        self, examples: Sequence[Example], candidates: Sequence[Candidate], purpose: str = "trial"
    ) -> list[list[Scored]]:
        """Score several candidates on the same examples, and return the scores of each.

        As many runs as the limit allows go at once, but few of each candidate and those one after
        another: servers keep what they worked out of a prompt's beginning, and of few prompts.
        """
        if not candidates:
            return []
        lanes = asyncio.Semaphore(self.max_concurrency)
        each = -(-self.max_concurrency // len(candidates))

        async def one(candidate: Candidate) -> list[Scored]:
            async with lanes:
                return await self.ascore(examples, candidate, purpose, at_once=each)

        return await all_at_once(one(candidate) for candidate in candidates)

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
        unless the policy refused it early. What is accepted is tried on all in any case: the next
        candidate is compared with it. A policy that looks early sees them in an order that the seed
        decides.
        """
        settled = getattr(acceptance, "settled", None)
        chunk = int(getattr(acceptance, "chunk", None) or len(examples))
        if chunk < len(examples):
            # A file often has its rows by topic; the first of them stand for all only when mixed.
            mixed = sorted(examples, key=lambda e: e.id)
            random.Random(f"{self.seed}/looks").shuffle(mixed)
            examples = mixed
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
                if verdict is not None and not verdict.accepted:
                    return verdict, outcomes, scored
        return acceptance.decide({e: incumbent[e] for e in outcomes}, outcomes), outcomes, scored

    async def abackward(
        self, scored: Sequence[Scored], parameters: Mapping[str, Parameter] | None = None
    ) -> list[Gradient]:
        """Make the reverse pass. With `parameters` the gradients go to these instead."""
        if parameters is not None:
            scored = [replace(s, run=replace(s.run, parameters=parameters)) for s in scored]
        self._see(scored)  # recorded runs were never scored here
        gradients = await Loss(tuple(scored)).abackward(self.critic)
        self.keep_gradients(gradients)
        return gradients

    def _see(self, scored: Sequence[Scored]) -> None:
        """Take what critics are about to read, so that its words are known for what they are."""
        for one in scored:
            self._know(one.run.example)
            self._provenance.see(one)
            for feedback in one.feedback:
                self._answers.trust(feedback.comment)

    def _know(self, example: Example) -> None:
        """Take a row, whose words no prompt may repeat. To take it again changes nothing."""
        known = self._rows.get(example.id)
        if known is None or known.inputs is not example.inputs:
            self._rows[example.id] = example
            self._quotations.add(example.inputs)
            self._answers.add(example.id, to_plain(example.outputs or {}))

    def refusal(self, proposal: Proposal) -> str | None:
        """Return which promise a proposal breaks; None where it keeps all of them.

        Demonstrations are examples word for word, so only instructions are searched for quotations
        and for words that only a run's own text has.
        """
        now = candidate_of(self.graph.parameters)
        for name in sorted(proposal.changed(now)):
            why = self._objection(name, now[name], proposal.candidate[name])
            if why is not None:
                logger.info("%s", why)
                return why
        return None

    def unrefused(self, pool: Sequence[Entry]) -> list[Entry]:
        """Return the entries without those that have what a person has refused since.

        All that a step proposes from such a one would be refused, after it was paid for. The first
        one stays: it is what was there before anybody proposed anything.
        """
        now = candidate_of(self.graph.parameters)
        return [
            entry
            for number, entry in enumerate(pool)
            if number == 0
            or not any(self.refused.find(n, now[n], t) for n, t in entry.candidate.items())
        ]

    def _objection(self, name: str, before: str, after: str) -> str | None:
        try:
            self.graph.parameters[name].check(after)
        except ParameterError as error:
            return str(error)
        if (change := self.refused.find(name, before, after)) is not None:
            return f"A person refused this change of '{name}' before: {change}."
        (old, shown), (new, demos) = split_demos(before), split_demos(after)
        lines = "\n".join(new_lines(new, old))
        quoted = self._quotations.find(lines) or self._answers.find(lines)
        if quoted is not None:
            return f"A proposed line of '{name}' quotes an example: {quoted!r}."
        for line in new_lines(new, old):
            said = remark_in(line)
            if said is not None and not self._is_owned(said):
                what = f"A proposed line of '{name}' is refused"
                return f"{what}, since a model speaks to who asked it there: {said!r}."
        for stretch in stretches(new, old):
            why = (
                planted(stretch)
                or outward(stretch, (before, *self._owned))
                or self._provenance.objection(stretch)
            )
            if why is not None:
                return f"A proposed line of '{name}' is refused, since it {why}."
        for seam in seams(new, old):
            if (why := planted(seam)) is not None and planted(old) is None:
                what = f"A proposed line of '{name}' is refused"
                return f"{what}, since with its neighbours it {why}."
        known = set(readings_of(shown))
        for read in readings_of(demos):
            if read not in known and (why := planted(read)) is not None:
                return f"A demonstration for '{name}' is refused, since it {why}."
        return None

    def _is_owned(self, sentence: str) -> bool:
        """Return whether a prompt at the start or a reference output says this too."""
        said = " ".join(words(sentence))
        return any(said in " ".join(words(text)) for text in self._owned)


def outcomes_of(scored: Sequence[Scored]) -> dict[str, Outcome]:
    """Return example id -> outcome."""
    return {s.run.example.id: Outcome.of(s) for s in scored}
