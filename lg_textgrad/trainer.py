"""The loop, run for you: gated, budgeted, durable. The only module that wires all the parts."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lg_textgrad._given import check_counts, check_store
from lg_textgrad._hashing import digest, to_plain
from lg_textgrad._sync import run_sync, task_group
from lg_textgrad.acceptance import Acceptance, Better, Verdict, check_policy
from lg_textgrad.approval import Approver, Review, areviewed, left_of
from lg_textgrad.bench import OnEvent, Workbench, outcomes_of
from lg_textgrad.budget import Budget
from lg_textgrad.critics.base import Critic, tell
from lg_textgrad.data import batches, unique
from lg_textgrad.differences import data_parts, row_details
from lg_textgrad.errors import (
    BudgetExceededError,
    BudgetTooSmallError,
    ConfigurationError,
    ParameterError,
)
from lg_textgrad.evaluators import identity_of
from lg_textgrad.graph import TrainableGraph, as_examples
from lg_textgrad.ledger import Ledger, account_of, ledger_in_scope, use_ledger
from lg_textgrad.noticing import Logged
from lg_textgrad.objective import Loss, Objective, Scored
from lg_textgrad.optim.base import Attempt, Optimizer, Proposal, Search, merged_within
from lg_textgrad.parameter import Gradient, Parameter, candidate_hash, candidate_of
from lg_textgrad.planning import (
    Schedule,
    check_options,
    check_parts,
    check_policies,
    check_reads,
    check_secrets,
    estimate,
    match,
    shared_inputs,
    tell_unused,
    told_prices,
)
from lg_textgrad.redaction import Redact, Redaction
from lg_textgrad.result import Result, Scores, Spent
from lg_textgrad.run import Candidate, Example
from lg_textgrad.screening import OnBatch, Screening
from lg_textgrad.selection import Entry, Incumbent, Progress, Selection, merging
from lg_textgrad.store import Store
from lg_textgrad.traffic import Patience

logger = logging.getLogger(__name__)


class Trainer:
    """Tunes the parameters of `graph` towards `objective`.

    Each step starts from the candidate that `selection` picks. Proposals go through `screening`,
    by default side by side on the batch that their gradients came from. What helped there is joined
    into one candidate and tried on the validation examples, paired with the incumbent, and kept
    only when `acceptance` says so. An optimizer that is a `Search` has its own loop; what it yields
    goes to acceptance the same way. `store` is a run
    directory (None keeps everything in memory): a run that was stopped goes on there when `fit` is
    called again with the same configuration, and pays for nothing twice. Model results that another
    run has in `reuse` are not paid for again. `approve` is a person who has to agree before a
    candidate is accepted. `redact` sees every text before it is stored, shown or sent to the
    critic, see `Redaction`. `on_event(kind, data)` is told what happens; without it, what runs
    failed with and warned of is logged, and at the level INFO how it goes on. Raises
    `ConfigurationError` for a part of another kind, `ParameterError` when nothing is trainable.
    """

    def __init__(
        self,
        graph: TrainableGraph,
        objective: Objective,
        *,
        critic: Critic,
        optimizer: Optimizer,
        acceptance: Acceptance | None = None,
        selection: Selection | None = None,
        screening: Screening | None = None,
        budget: Budget | None = None,
        schedule: Schedule | None = None,
        store: Store | str | Path | None = None,
        max_concurrency: int = 8,
        reuse: Store | None = None,
        patience: Patience | None = None,
        on_event: OnEvent | None = None,
        approve: Approver | None = None,
        redact: Redact | None = None,
    ) -> None:
        check_parts(graph, objective, critic, optimizer)
        hooks = {"redact": redact, "on_event": on_event}
        check_options(budget, schedule, patience, reuse, approve, **hooks)
        check_policies(acceptance, selection, screening)
        check_store(store, "`store` of Trainer")
        check_counts("Trainer", max_concurrency=max_concurrency)
        if not any(p.requires_grad for p in graph.parameters.values()):
            raise ParameterError(
                "There is nothing to train: the graph has no parameter with requires_grad=True."
            )
        self.graph = graph
        self.objective = objective
        self.critic = critic
        self.optimizer = optimizer
        self.acceptance = acceptance or Better()
        self.selection = selection or Incumbent()
        self.screening = screening or OnBatch()
        self.budget = budget or Budget()
        self.schedule = schedule or Schedule()
        self.store = store
        self.max_concurrency = max_concurrency
        self.reuse = reuse
        self.patience = patience
        self.approve = approve
        self.redaction = Redaction(redact)
        self._on_event = Logged() if on_event is None else on_event
        tell_unused(optimizer, self.schedule, self.selection, self.screening)
        self._at_work = threading.Lock()
        self._moved: tuple[Candidate, Candidate] | None = None
        """The values that the last `fit` began with, and those that it left."""

    def fit(
        self,
        train: Iterable[Example | Mapping[str, Any]],
        val: Iterable[Example | Mapping[str, Any]],
        test: Iterable[Example | Mapping[str, Any]] | None = None,
        *,
        reference: Mapping[str, str] | None = None,
    ) -> Result:
        """`afit` for sync code."""
        return run_sync(self.afit(train, val, test, reference=reference))

    async def afit(
        self,
        train: Iterable[Example | Mapping[str, Any]],
        val: Iterable[Example | Mapping[str, Any]],
        test: Iterable[Example | Mapping[str, Any]] | None = None,
        *,
        reference: Mapping[str, str] | None = None,
    ) -> Result:
        """Train and return the result; the accepted texts are then the parameters' values.

        `test` is scored only before and after, and never decides anything. `reference` is a
        candidate that is scored on `test` for comparison.

        Cost: a run for each of `val`; a step, those of its batch, of the batch and of `val` under
        what is tried, and the critic's and rewriter's calls; for each of `test` two, three with
        `reference`. The event "start" has an `estimate`. Raises `BudgetTooSmallError` when the
        budget ends before the baseline is scored, `RunMismatchError` when the run directory
        belongs to another configuration, and what models, evaluators and the store raise when
        going on is pointless. Whatever was paid for stays in the store.
        """
        splits = {
            "train": unique(as_examples(train), "the training examples"),
            "val": unique(as_examples(val), "the validation examples"),
            "test": unique(as_examples(test or ()), "the test examples"),
        }
        for name in ("train", "val"):
            if not splits[name]:
                raise ConfigurationError(f"There are no {name} examples; training needs some.")
        check_policy(self.acceptance, splits["val"])
        # Two would pay twice, and take turns with one optimizer and the same parameters.
        if not self._at_work.acquire(blocking=False):
            raise ConfigurationError(
                "This Trainer is in the middle of a fit, in another thread or task. Wait for it, "
                "or make another Trainer, with a graph, an optimizer and a store of its own."
            )
        try:
            owned = not isinstance(self.store, Store)
            store = Store(self.store) if not isinstance(self.store, Store) else self.store
            try:
                return await self._fit(store, splits, reference)
            finally:
                if owned:
                    store.close()
        finally:
            self._at_work.release()

    async def _fit(
        self, store: Store, splits: Mapping[str, list[Example]], reference: Mapping[str, str] | None
    ) -> Result:
        start = self._start(store)
        if reference is not None:  # before anything is paid for, and over untrained prompts
            reference = self.graph.candidate({**start, **reference})
        check_secrets(self.redaction, {**(reference or {}), **start})
        first = store.get_meta("configuration") is None
        if first:
            self.redaction.try_out(e for examples in splits.values() for e in examples)
        details = {"graph": self.graph.parts, "evaluators": self.objective.parts}
        match(store, self._made_of(splits, start), start, details | row_details(splits))
        store.put_meta("result", None)  # that of an earlier session, when it goes on
        account = account_of(store, self.budget)
        prices = told_prices(account, (self.critic, self.optimizer))
        ledger = Ledger(
            store, account, self.max_concurrency, self.reuse, self.patience, self.redaction
        )
        self.optimizer.bind(self.graph.parameters)
        self.optimizer.reset()
        self.optimizer.see_examples([self.redaction.example(e) for e in splits["train"]])
        tell(self.critic, "reset")
        known = store.get_meta("calls_a_run")  # where discovery ran the graph
        before: int = store.get_meta("discovery_calls") or 0
        expected = estimate(
            len(self.graph.parameters), self.schedule, splits, self.critic, known,
            optimizer=self.optimizer, budget=self.budget.calls, before=before,
            joins=hasattr(self.selection, "merge"), tested=2 if reference is None else 3,
        )  # fmt: skip
        shared = shared_inputs(splits)
        self._event(
            "start",
            resumed=not first,
            estimate=expected,
            parameters=[n for n, p in self.graph.parameters.items() if p.requires_grad],
            account=account,
            prices=prices,
            faults=ledger.traffic.faults,
            shared=shared,
        )
        progress = Progress(start)
        bench = Workbench(
            self.graph,
            self.objective,
            self.critic,
            splits["train"],
            splits["val"],
            self.schedule.seed,
            self.max_concurrency,
            self._on_event,
            dict(start),
        )

        def keep_gradients(gradients: Sequence[Gradient]) -> None:
            step = progress.steps + 1
            store.put_gradients(step, gradients)
            self._event("gradients", step=step, gradients=gradients)

        bench.keep_gradients = keep_gradients
        finished: tuple[Scores, Scores, Scores | None] = Scores(), Scores(), None
        with use_ledger(ledger):
            try:
                await self._baseline(store, bench, progress)
                if isinstance(self.optimizer, Search):
                    stopped_by = await self._search(store, bench, self.optimizer, progress)
                else:
                    stopped_by = await self._steps(store, bench, progress)
                finished = await self._test(bench, splits["test"], progress, reference)
            except BudgetExceededError as reached:
                if progress.incumbent is None:
                    raise BudgetTooSmallError(
                        f"The budget does not cover the baseline: {reached} "
                        f"At least {before + (expected['baseline_calls'] or 0)} calls are needed"
                        f"{f', {before} of them to find the prompts' if before else ''}.",
                        limit=reached.limit,
                    ) from None
                stopped_by = f"budget_{reached.limit}"
            finally:
                if ledger.sent:
                    self._event("finishing", calls=ledger.sent)
                await ledger.aclose()
                self._moved = start, candidate_of(self.graph.parameters)
                store.put_meta("elapsed", account.elapsed)
        baseline, best, compared = finished
        result = Result(
            run_dir=store.where,
            stopped_by=stopped_by,
            baseline=Scores(progress.pool[0].score, baseline.test),
            best=Scores(progress.best.score, best.test),
            reference=compared,
            before=start,
            after=dict(progress.best.candidate),
            candidates=store.candidates(),
            lineage=tuple(progress.lineage),
            steps=progress.steps,
            accepted=progress.accepted,
            rejected=progress.rejected,
            shared=shared,
            spent=Spent(
                account.spent,
                account.by_kind,
                account.elapsed,
                dict(ledger.traffic.faults),
                sorted({*account.prices.unknown, *store.unpriced()}),
            ),
        )
        store.put_meta("result", result.to_json())
        self._event("end", result=result)
        return result

    def _start(self, store: Store) -> Candidate:
        """Return the prompts to start from.

        Going on in the process that was stopped, the parameters already have what was accepted so
        far; the run is gone through again from the prompts that it began with.
        """
        now = candidate_of(self.graph.parameters)
        if self._moved is not None and self._moved[1] == now:
            begun = self._moved[0]
            if store.get_meta("start") == begun:
                for name, text in begun.items():
                    self.graph.parameters[name].adopt(text)
                return dict(begun)
        return now

    def _made_of(
        self, splits: Mapping[str, list[Example]], start: Candidate
    ) -> Mapping[str, Any]:
        """Return part -> fingerprint of everything that decides what this run does."""
        hook = self.redaction.hook
        return {
            "graph": self.graph.fingerprint,
            "prompts at the start": candidate_hash(start),
            "evaluators": self.objective.fingerprint,
            "critic": to_plain(getattr(self.critic, "fingerprint", type(self.critic).__name__)),
            "optimizer": to_plain(self.optimizer.fingerprint),
            "acceptance": to_plain(self.acceptance.fingerprint),
            "selection": to_plain(self.selection.fingerprint),
            "screening": to_plain(self.screening.fingerprint),
            "schedule": to_plain(self.schedule),
            "redaction": None if hook is None else digest(identity_of(hook))[:16],
            **data_parts(splits),
        }

    async def _baseline(self, store: Store, bench: Workbench, progress: Progress) -> None:
        baseline = candidate_hash(progress.baseline)
        store.put_candidate(baseline, progress.baseline, parent=None, step=0, edits=())
        scored = await bench.ascore(bench.val, progress.baseline, "baseline")
        unread, never_ran = check_reads(self.graph, scored)
        if unread:
            self._event("unread", parameters=unread, never_ran=never_ran)
        progress.incumbent = Entry(baseline, progress.baseline, outcomes_of(scored))
        progress.pool.append(progress.incumbent)
        progress.lineage.append(baseline)
        store.put_meta("baseline", progress.best.score)
        self._event("baseline", val=progress.best.score, scored=scored)

    async def _steps(self, store: Store, bench: Workbench, progress: Progress) -> str:
        schedule = self.schedule
        stream = batches(bench.train, schedule.batch_size, schedule.seed)
        for step, batch in enumerate(islice(stream, schedule.steps), start=1):
            if progress.best.score >= 1:
                return "full_marks"
            self._event("step", step=step, steps=schedule.steps)
            before = progress.accepted
            await self._step(store, step, batch, bench, progress)
            progress.steps = step
            self._keep_time(store)
            progress.idle = 0 if progress.accepted > before else progress.idle + 1
            if schedule.patience is not None and progress.idle >= schedule.patience:
                return "patience"
        return "steps"

    async def _step(
        self,
        store: Store,
        step: int,
        batch: Sequence[Example],
        bench: Workbench,
        progress: Progress,
    ) -> None:
        dice = random.Random(f"{self.schedule.seed}/{step}")
        pool = bench.unrefused(progress.pool)
        parent = self.selection.parent(pool, progress.best, dice)
        scored = await bench.ascore(batch, parent.candidate, "batch")
        self._event("batch", step=step, score=Loss(tuple(scored)).score)
        working = self._working(parent, progress)
        self.optimizer.bind(working)
        self.optimizer.zero_grad()
        self.optimizer.see(scored)
        if self.optimizer.needs_gradients:
            await bench.abackward(scored, working)
        proposals = self.optimizer.allowed(await self.optimizer.aproposals(), bench)
        self._event("proposals", step=step, proposals=proposals, refused=self.optimizer.refused)
        helped = await self._screen(store, step, bench, proposals, scored, parent, progress)
        joined = merging(self.selection)(pool, progress.best, dice)
        await self._gate(store, step, helped, joined, bench, parent, progress)
        self.optimizer.bind(self.graph.parameters)

    def _working(self, parent: Entry, progress: Progress) -> Mapping[str, Parameter]:
        """Return the parameters with the parent's texts: copies, where it is not the incumbent."""
        if parent.hash == progress.best.hash:
            return self.graph.parameters
        return {n: p.at(parent.candidate[n]) for n, p in self.graph.parameters.items()}

    async def _search(
        self, store: Store, bench: Workbench, search: Search, progress: Progress
    ) -> str:
        """Let the optimizer's own loop run; each candidate that it yields goes to acceptance."""
        try:
            async for proposal in search.asearch(bench):
                progress.steps += 1
                kept = self.optimizer.allowed([proposal], bench)
                if kept and proposal.candidate != progress.best.candidate:
                    await self._gate(store, progress.steps, kept, None, bench, None, progress)
                self._keep_time(store)
                if progress.best.score >= 1:
                    return "full_marks"
            return "steps"
        finally:  # also where the budget ends it
            self._event("proposals", step=progress.steps, proposals=[], refused=search.refused)

    async def _screen(
        self,
        store: Store,
        step: int,
        bench: Workbench,
        proposals: Sequence[Proposal],
        scored: Sequence[Scored],
        parent: Entry,
        progress: Progress,
    ) -> list[Proposal]:
        """Return the proposals that are worth a look on validation, the best first."""
        for proposal in proposals:
            self._keep(store, step, proposal, parent, progress)
        helped: list[tuple[float, Proposal]] = []
        for one in await self.screening.ascreen(bench, proposals, scored):
            verdict = one.verdict
            if verdict.accepted:
                helped.append((verdict.gain, one.proposal))
            else:
                progress.rejected += 1
                self._observe(one.proposal, verdict, "batch", one.scores)
            self._record(store, step, "batch", one.proposal, verdict, progress, None)
        helped.sort(key=lambda pair: -pair[0])
        return [proposal for _, proposal in helped]

    async def _gate(
        self,
        store: Store,
        step: int,
        helped: Sequence[Proposal],
        joined: Proposal | None,
        bench: Workbench,
        parent: Entry | None,
        progress: Progress,
    ) -> None:
        """Let the validation examples decide: what helped together, the best alone, the joined."""
        base = parent or progress.best
        tries: dict[str, Proposal] = {}
        if helped:
            together = merged_within(helped, base.candidate, bench.refusal)
            tries = {together.hash: together, helped[0].hash: helped[0]}
        if joined is not None and bench.refusal(joined) is None:
            tries.setdefault(joined.hash, joined)
        waiting = list(tries.values())
        while waiting:
            proposal = waiting.pop(0)
            if progress.was_tried(proposal.hash):  # what was left of another may be the same
                continue
            self._keep(store, step, proposal, base, progress)
            verdict, outcomes, scored = await bench.acompare(
                progress.best.outcomes, proposal.candidate, bench.val, self.acceptance
            )
            stage = "val"
            if verdict.accepted:
                best = progress.best
                seen = Review.of(
                    step, best.candidate, proposal.candidate, verdict, best.outcomes, outcomes
                )
                verdict, refused = await areviewed(
                    self.approve, store, seen, self.redaction.text
                )
                stage = "val" if verdict.accepted else "review"
                if refused:
                    bench.refused.add(refused)
                    rest = left_of(proposal, base.candidate, seen, refused)
                    waiting = [p for p in (rest, *waiting) if bench.refusal(p) is None]
                    if rest not in waiting:
                        logger.warning("What is left is not tried. %s", bench.refusal(rest))
            whole = len(outcomes) == len(bench.val)
            after = Loss(tuple(scored)).score if whole else None
            self._record(store, step, "val", proposal, verdict, progress, after)
            scores = {e: o.score for e, o in outcomes.items()}
            self._observe(proposal, verdict, stage, scores)
            parents = proposal.parents or (base.hash,)
            entry = Entry(proposal.hash, proposal.candidate, outcomes, parents)
            if stage == "review":
                # Whatever its scores: a person's no holds for what would be made from it too.
                progress.refused_by_people.add(proposal.hash)
            elif whole:
                progress.pool.append(entry)
            if not verdict.accepted:
                progress.rejected += 1
                continue
            progress.accepted += 1
            progress.incumbent = entry
            progress.lineage.append(proposal.hash)
            bench.incumbent = dict(proposal.candidate)
            for name, text in proposal.candidate.items():
                self.graph.parameters[name].adopt(text)
            return

    def _observe(
        self, proposal: Proposal, verdict: Verdict, stage: str, scores: Mapping[str, float]
    ) -> None:
        self.optimizer.observe(
            Attempt(proposal, verdict.accepted, verdict.reason, stage, verdict.gain, scores)
        )
        tell(self.critic, "observe", proposal.edits, verdict.gain)

    def _keep(
        self, store: Store, step: int, proposal: Proposal, parent: Entry, progress: Progress
    ) -> None:
        if proposal.hash not in progress.lineage:  # a step back is no new candidate
            made = proposal.hash, proposal.candidate
            origin = proposal.parents[0] if proposal.parents else parent.hash
            store.put_candidate(*made, parent=origin, step=step, edits=proposal.edits)

    def _keep_time(self, store: Store) -> None:
        """Note the time spent: a killed run has no other record of it."""
        if (ledger := ledger_in_scope()) is not None:
            store.put_meta("elapsed", ledger.account.elapsed)

    def _record(
        self,
        store: Store,
        step: int,
        stage: str,
        proposal: Proposal,
        verdict: Verdict,
        progress: Progress,
        after: float | None,
    ) -> None:
        progress.decisions += 1
        payload = {
            "stage": stage,
            "kind": proposal.kind,
            "parents": list(proposal.parents),
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            "gain": verdict.gain,
            "won": verdict.won,
            "lost": verdict.lost,
            "val_before": progress.best.score,
            "val_after": after,
        }
        store.put_decision(step, progress.decisions, proposal.hash, stage, payload)
        self._event("decision", step=step, proposal=proposal, **payload)

    async def _test(
        self,
        bench: Workbench,
        examples: Sequence[Example],
        progress: Progress,
        reference: Mapping[str, str] | None,
    ) -> tuple[Scores, Scores, Scores | None]:
        """Score what training never saw: baseline, best and reference, all at once."""
        if not examples:
            return Scores(), Scores(), None
        wanted = {"baseline": progress.baseline, "best": progress.best.candidate}
        if reference is not None:
            wanted["reference"] = dict(reference)
        if wanted["baseline"] == wanted["best"]:
            del wanted["best"]
        async with task_group() as group:
            tasks = {
                name: group.create_task(bench.ascore(examples, candidate, f"test {name}"))
                for name, candidate in wanted.items()
            }
        scores = {name: Scores(test=Loss(task.result()).score) for name, task in tasks.items()}
        self._event("test", scores={name: s.test for name, s in scores.items()})
        return scores["baseline"], scores.get("best", scores["baseline"]), scores.get("reference")

    def _event(self, kind: str, /, **data: Any) -> None:
        self._on_event(kind, data)
