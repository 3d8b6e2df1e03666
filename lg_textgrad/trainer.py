"""The loop, run for you: gated, budgeted, durable. The only module that wires all the parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad._sync import run_sync, task_group
from lg_textgrad.acceptance import Acceptance, Better, Verdict
from lg_textgrad.budget import Account, Budget
from lg_textgrad.critics.base import Critic
from lg_textgrad.data import batches, unique
from lg_textgrad.errors import (
    BudgetExceededError,
    BudgetTooSmallError,
    ConfigurationError,
    ParameterError,
    RunMismatchError,
)
from lg_textgrad.graph import TrainableGraph, as_examples
from lg_textgrad.guards import Quotations
from lg_textgrad.ledger import Ledger, ledger_in_scope, use_ledger
from lg_textgrad.objective import Loss, Objective, Scored
from lg_textgrad.optim.base import Attempt, Optimizer, Proposal, merged
from lg_textgrad.parameter import candidate_hash, candidate_of
from lg_textgrad.result import Result, Scores, Spent
from lg_textgrad.run import Candidate, Example, Usage
from lg_textgrad.store import Store

logger = logging.getLogger(__name__)

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train, and on how much at a time."""

    steps: int = 4
    batch_size: int = 6
    seed: int = 0
    patience: int | None = None
    """Stop after this many steps in a row without an accepted candidate; None never does."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass
class _Progress:
    """Where the loop stands."""

    baseline: Candidate
    incumbent: Candidate
    lineage: list[str]
    baseline_val: float = 0.0
    best_val: float = 0.0
    val: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    idle: int = 0
    decisions: int = 0


class Trainer:
    """Tunes the parameters of `graph` towards `objective`.

    Proposals are tried side by side on the batch that their gradients came from. What helped there
    is joined into one candidate and tried on the validation examples, paired with the incumbent,
    and kept only when `acceptance` says so. `store` is a run
    directory (None keeps everything in memory): a run that was stopped goes on there when `fit` is
    called again with the same configuration, and pays for nothing twice. Model results that another
    run has in `reuse` are not paid for again. `on_event(kind, data)` is
    told what happens.
    """

    def __init__(
        self,
        graph: TrainableGraph,
        objective: Objective,
        *,
        critic: Critic,
        optimizer: Optimizer,
        acceptance: Acceptance | None = None,
        budget: Budget | None = None,
        schedule: Schedule | None = None,
        store: Store | str | Path | None = None,
        max_concurrency: int = 8,
        reuse: Store | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency}.")
        if not any(p.requires_grad for p in graph.parameters.values()):
            raise ParameterError(
                "There is nothing to train: the graph has no parameter with requires_grad=True."
            )
        self.graph = graph
        self.objective = objective
        self.critic = critic
        self.optimizer = optimizer
        self.acceptance = acceptance or Better()
        self.budget = budget or Budget()
        self.schedule = schedule or Schedule()
        self.store = store
        self.max_concurrency = max_concurrency
        self.reuse = reuse
        self._on_event = on_event
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
        candidate that is scored on `test` for comparison. Raises `BudgetTooSmallError` when the
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
        owned = not isinstance(self.store, Store)
        store = Store(self.store) if not isinstance(self.store, Store) else self.store
        try:
            return await self._fit(store, splits, reference)
        finally:
            if owned:
                store.close()

    async def _fit(
        self, store: Store, splits: Mapping[str, list[Example]], reference: Mapping[str, str] | None
    ) -> Result:
        start = self._start(store)
        if reference is not None:  # before anything is paid for, and over untrained prompts
            reference = self.graph.candidate({**start, **reference})
        first = store.get_meta("configuration") is None
        self._match(store, splits, start)
        store.put_meta("result", None)  # that of an earlier session, when it goes on
        paid = store.paid()
        account = Account(
            self.budget,
            spent=sum(paid.values(), Usage()),
            elapsed=float(store.get_meta("elapsed") or 0.0),
        )
        for kind, usage in paid.items():
            account.seed(kind, usage)
        ledger = Ledger(store, account, self.max_concurrency, self.reuse)
        self.optimizer.bind(self.graph.parameters)
        self.optimizer.history.clear()
        self._event(
            "start",
            resumed=not first,
            estimate=self._estimate(splits),
            parameters=list(start),
            account=account,
        )
        progress = _Progress(start, dict(start), [candidate_hash(start)])
        finished: tuple[Scores, Scores, Scores | None] = Scores(), Scores(), None
        with use_ledger(ledger):
            try:
                await self._baseline(store, splits, progress)
                stopped_by = await self._steps(store, splits, progress)
                finished = await self._test(splits["test"], progress, reference)
            except BudgetExceededError as reached:
                if not progress.val:
                    raise BudgetTooSmallError(
                        f"The budget does not cover the baseline: {reached} "
                        f"At least {self._estimate(splits)['baseline_calls']} calls are needed.",
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
            run_dir=str(store.directory) if store.directory is not None else None,
            stopped_by=stopped_by,
            baseline=Scores(progress.baseline_val, baseline.test),
            best=Scores(progress.best_val, best.test),
            reference=compared,
            before=start,
            after=dict(progress.incumbent),
            candidates=store.candidates(),
            lineage=tuple(progress.lineage),
            steps=progress.steps,
            accepted=progress.accepted,
            rejected=progress.rejected,
            spent=Spent(account.spent, account.by_kind, account.elapsed),
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
                    self.graph.parameters[name].value = text
                return dict(begun)
        return now

    def _match(
        self, store: Store, splits: Mapping[str, list[Example]], start: Candidate
    ) -> None:
        """Write down what this run is made of, or refuse a store that was made of other things."""
        now = {
            "graph": self.graph.fingerprint,
            "prompts at the start": candidate_hash(start),
            "evaluators": self.objective.fingerprint,
            "critic": to_plain(getattr(self.critic, "fingerprint", type(self.critic).__name__)),
            "optimizer": to_plain(self.optimizer.fingerprint),
            "acceptance": to_plain(self.acceptance.fingerprint),
            "schedule": to_plain(self.schedule),
            **{
                f"{name} data": digest([(e.id, e.inputs, e.outputs) for e in examples])[:16]
                for name, examples in splits.items()
            },
        }
        then = store.get_meta("configuration")
        if then is None:
            store.put_meta("configuration", now)
            store.put_meta("start", start)
            return
        changed = [name for name in now if then.get(name) != now[name]]
        if changed:
            raise RunMismatchError(
                f"The run directory '{store.directory}' was made with another configuration: "
                f"changed are {', '.join(changed)}. Change it back to go on, or start a new run "
                "with another --out."
            )

    def _estimate(self, splits: Mapping[str, list[Example]]) -> dict[str, int]:
        """Return upper bounds in model calls, taking one call for each parameter and run."""
        nodes = max(1, len(self.graph.parameters))
        batch = min(self.schedule.batch_size, len(splits["train"]))
        rollouts = batch * (2 + nodes) + len(splits["val"])
        step = nodes * rollouts + nodes * batch + nodes
        tests = 2 * nodes * len(splits["test"])
        baseline = nodes * len(splits["val"])
        return {
            "baseline_calls": baseline,
            "calls": baseline + self.schedule.steps * step + tests,
        }

    async def _score(
        self, examples: Sequence[Example], candidate: Candidate, purpose: str
    ) -> list[Scored]:
        """Record and score. Nothing is run or evaluated twice: the store knows it by its hash."""
        done = 0

        async def one(example: Example) -> Scored:
            nonlocal done
            runs = await self.graph.arecord([example], prompts=candidate)
            loss = await self.objective.acall(runs)
            done += 1
            self._event(
                "run", purpose=purpose, done=done, total=len(examples), scored=loss.scored[0]
            )
            return loss.scored[0]

        room = asyncio.Semaphore(4 * self.max_concurrency)

        async def within(example: Example) -> Scored:
            async with room:
                return await one(example)

        async with task_group() as group:
            tasks = [group.create_task(within(example)) for example in examples]
        return [task.result() for task in tasks]

    async def _baseline(
        self, store: Store, splits: Mapping[str, list[Example]], progress: _Progress
    ) -> None:
        store.put_candidate(
            progress.lineage[0], progress.baseline, parent=None, step=0, edits=()
        )
        scored = await self._score(splits["val"], progress.baseline, "baseline")
        self._check_reads(scored)
        progress.val = {s.run.example.id: s.score for s in scored}
        progress.baseline_val = progress.best_val = Loss(scored).score
        self._event("baseline", val=progress.baseline_val, scored=scored)

    def _check_reads(self, scored: Sequence[Scored]) -> None:
        """Raise `ParameterError` for a parameter that no node reads; tell of one that may be read.

        A node that the validation examples never reached may still read it on others.
        """
        runs = [s.run for s in scored]
        unread = self.graph.unread(runs)
        if not unread:
            return
        ran = {e.path for r in runs for e in r.executions if not e.path.startswith("__")}
        skipped = [n for n in self.graph.nodes if n not in ran]
        trainable = [n for n, p in self.graph.parameters.items() if p.requires_grad]
        failed = [r.error for r in runs if r.error]
        hopeless = len(unread) == len(trainable) or len(failed) == len(runs)
        if self.graph.nodes and (not skipped or hopeless):
            name = unread[0]
            also = f" {len(failed)} runs failed, the first with {failed[0]}." if failed else ""
            raise ParameterError(
                f"No node read the parameter '{name}' in any of {len(runs)} runs "
                f"(nodes that ran: {', '.join(sorted(ran)) or 'none'}).{also} Read it inside the "
                f"node with {name}.message() or str(...), or give it requires_grad=False.",
                parameter=name,
            )
        logger.warning(
            "No validation run read %s; the nodes that never ran are %s.",
            ", ".join(unread), ", ".join(skipped) or "not known",
        )  # fmt: skip
        self._event("unread", parameters=unread, never_ran=skipped)

    async def _steps(
        self, store: Store, splits: Mapping[str, list[Example]], progress: _Progress
    ) -> str:
        schedule = self.schedule
        stream = batches(splits["train"], schedule.batch_size, schedule.seed)
        for step, batch in enumerate(islice(stream, schedule.steps), start=1):
            if progress.best_val >= 1:
                return "full_marks"
            self._event("step", step=step, steps=schedule.steps)
            before = progress.accepted
            await self._step(store, step, batch, splits, progress)
            progress.steps = step
            if (ledger := ledger_in_scope()) is not None:  # a killed run has no other record of it
                store.put_meta("elapsed", ledger.account.elapsed)
            progress.idle = 0 if progress.accepted > before else progress.idle + 1
            if schedule.patience is not None and progress.idle >= schedule.patience:
                return "patience"
        return "steps"

    async def _step(
        self,
        store: Store,
        step: int,
        batch: Sequence[Example],
        splits: Mapping[str, list[Example]],
        progress: _Progress,
    ) -> None:
        scored = await self._score(batch, progress.incumbent, "batch")
        loss = Loss(tuple(scored))
        self._event("batch", step=step, score=loss.score)
        self.optimizer.zero_grad()
        gradients = await loss.abackward(self.critic)
        store.put_gradients(step, gradients)
        self._event("gradients", step=step, gradients=gradients)
        proposals = self._guarded(await self.optimizer.aproposals(), splits)
        self._event("proposals", step=step, proposals=proposals, refused=self.optimizer.refused)
        helped = await self._screen(store, step, proposals, scored, progress)
        await self._gate(store, step, helped, splits["val"], progress)

    def _guarded(
        self, proposals: Sequence[Proposal], splits: Mapping[str, list[Example]]
    ) -> list[Proposal]:
        """Return the proposals that keep every promise; what breaks one costs no rollout."""
        quotations = Quotations(e.inputs for name in ("train", "val") for e in splits[name])
        kept = []
        for proposal in proposals:
            before = candidate_of(self.graph.parameters)
            try:
                for name in proposal.changed(before):
                    self.graph.parameters[name].check(proposal.candidate[name])
                for edit in proposal.edits:
                    if (quoted := quotations.find(edit.text)) is not None:
                        raise ParameterError(
                            f"A proposed line of '{edit.parameter}' quotes an example: {quoted!r}.",
                            parameter=edit.parameter,
                        )
            except ParameterError as error:
                self.optimizer.refused.append(str(error))
                logger.info("%s", error)
            else:
                kept.append(proposal)
        return kept

    async def _screen(
        self,
        store: Store,
        step: int,
        proposals: Sequence[Proposal],
        scored: Sequence[Scored],
        progress: _Progress,
    ) -> list[Proposal]:
        """Try each proposal on the batch that its gradients came from, all at once.

        Returns those that are better there, the best first.
        """
        batch = [s.run.example for s in scored]
        on_batch = {s.run.example.id: s.score for s in scored}
        for proposal in proposals:
            self._keep(store, step, proposal, progress)
        async with task_group() as group:
            tasks = [
                group.create_task(self._score(batch, p.candidate, "trial")) for p in proposals
            ]
        helped: list[tuple[float, Proposal]] = []
        for proposal, task in zip(proposals, tasks, strict=True):
            verdict = Better().decide(on_batch, {s.run.example.id: s.score for s in task.result()})
            if verdict.accepted:
                helped.append((verdict.gain, proposal))
            else:
                progress.rejected += 1
                self.optimizer.observe(Attempt(proposal, accepted=False, reason=verdict.reason))
            self._record(store, step, "batch", proposal, verdict, progress, None)
        helped.sort(key=lambda pair: -pair[0])
        return [proposal for _, proposal in helped]

    async def _gate(
        self,
        store: Store,
        step: int,
        helped: Sequence[Proposal],
        val: Sequence[Example],
        progress: _Progress,
    ) -> None:
        """Let the validation examples decide: first what helped together, then the best alone."""
        if not helped:
            return
        joined = merged(helped, progress.incumbent)
        tries = [joined] + ([helped[0]] if helped[0].hash != joined.hash else [])
        for proposal in tries:
            self._keep(store, step, proposal, progress)
            scored = await self._score(val, proposal.candidate, "val")
            scores = {s.run.example.id: s.score for s in scored}
            verdict = self.acceptance.decide(progress.val, scores)
            after = Loss(tuple(scored)).score
            self._record(store, step, "val", proposal, verdict, progress, after)
            self.optimizer.observe(Attempt(proposal, verdict.accepted, verdict.reason))
            if not verdict.accepted:
                progress.rejected += 1
                continue
            progress.accepted += 1
            progress.val, progress.best_val = scores, after
            progress.incumbent = dict(proposal.candidate)
            progress.lineage.append(proposal.hash)
            for name, text in proposal.candidate.items():
                self.graph.parameters[name].value = text
            return

    def _keep(self, store: Store, step: int, proposal: Proposal, progress: _Progress) -> None:
        if proposal.hash not in progress.lineage:  # a step back is no new candidate
            store.put_candidate(
                proposal.hash,
                proposal.candidate,
                parent=progress.lineage[-1],
                step=step,
                edits=proposal.edits,
            )

    def _record(
        self,
        store: Store,
        step: int,
        stage: str,
        proposal: Proposal,
        verdict: Verdict,
        progress: _Progress,
        after: float | None,
    ) -> None:
        progress.decisions += 1
        payload = {
            "stage": stage,
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            "gain": verdict.gain,
            "won": verdict.won,
            "lost": verdict.lost,
            "val_before": progress.best_val,
            "val_after": after,
        }
        store.put_decision(step, progress.decisions, proposal.hash, stage, payload)
        self._event("decision", step=step, proposal=proposal, **payload)

    async def _test(
        self,
        examples: Sequence[Example],
        progress: _Progress,
        reference: Mapping[str, str] | None,
    ) -> tuple[Scores, Scores, Scores | None]:
        """Score what training never saw: baseline, best and reference, all at once."""
        if not examples:
            return Scores(), Scores(), None
        wanted = {"baseline": progress.baseline, "best": progress.incumbent}
        if reference is not None:
            wanted["reference"] = dict(reference)
        if wanted["baseline"] == wanted["best"]:
            del wanted["best"]
        async with task_group() as group:
            tasks = {
                name: group.create_task(self._score(examples, candidate, f"test {name}"))
                for name, candidate in wanted.items()
            }
        scores = {name: Scores(test=Loss(task.result()).score) for name, task in tasks.items()}
        self._event("test", scores={name: s.test for name, s in scores.items()})
        return scores["baseline"], scores.get("best", scores["baseline"]), scores.get("reference")

    def _event(self, kind: str, **data: Any) -> None:
        if self._on_event is not None:
            self._on_event(kind, data)
