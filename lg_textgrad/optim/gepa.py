"""GEPA: the `gepa` package's evolution, on our runs, gradients, budget and store."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from lg_textgrad import templates
from lg_textgrad._given import check_counts
from lg_textgrad._sync import task_group
from lg_textgrad.asking import Writer
from lg_textgrad.errors import MissingExtraError, ParameterError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Bench, Proposal, Search, Sizes
from lg_textgrad.optim.records import Record, records_of
from lg_textgrad.optim.writing import (
    all_edits,
    instructions_of,
    promises,
    usable,
    with_instruction,
)
from lg_textgrad.parameter import Gradient, Parameter
from lg_textgrad.run import Candidate, Example

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MERGE_ROWS = 5
"""Validation rows on which gepa tries a merged candidate first."""


class GEPA(Search):
    """Lets the `gepa` package evolve the instructions, through its adapter protocol.

    gepa keeps a pool of candidates that are each best on some validation example, takes one of
    them, runs it on `minibatch` training examples, changes the instruction of one node, and takes
    the child into the pool when it is better on them; up to `merges` times it joins two lines of
    descent. Ours are the runs, the critic, whose gradients for that very node are what the writer
    reflects on, the writer `model`, and the gate: each child that gepa takes in goes to acceptance.
    With `focus` the node to change is the most blamed one, else each in turn. Demonstrations stay.

    Cost: an iteration is at most twice `minibatch` runs (the parent's are known when it was tried
    on them before), the critic's calls for them, one call of the writer, two when its reply breaks
    a promise, and all validation examples for a child that is taken in; acceptance then pays
    nothing for them again. After Agrawal et al. 2025. Raises `MissingExtraError` without the extra
    `gepa`, `ConfigurationError` for numbers that are too small.
    """

    needs_gradients = False

    def __init__(
        self,
        model: ChatModel,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        iterations: int = 12,
        minibatch: int = 3,
        merges: int = 3,
        focus: bool = True,
        max_records: int = 6,
        max_tokens: int = 700,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> None:
        if importlib.util.find_spec("gepa") is None:
            raise MissingExtraError("GEPA needs gepa: pip install 'lg-textgrad[gepa]'.")
        counts = {"iterations": iterations, "minibatch": minibatch, "max_records": max_records}
        check_counts("GEPA", **counts)
        check_counts("GEPA", 0, merges=merges)
        super().__init__(parameters)
        self.model = model
        self.iterations = iterations
        self.minibatch = minibatch
        self.merges = merges
        self.focus = focus
        self.max_records = max_records
        self.writer = Writer(model, max_tokens, temperature, seed)
        self.seed = seed

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "optimizer": "gepa",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint("gepa", "gepa_case", "again"),
            "iterations": self.iterations,
            "minibatch": self.minibatch,
            "merges": self.merges,
            "focus": self.focus,
            "max_records": self.max_records,
            "max_tokens": self.writer.max_tokens,
            "temperature": self.writer.temperature,
            "seed": self.seed,
        }

    def most_calls(self, sizes: Sizes) -> int:
        batch = min(self.minibatch, sizes.train)
        tried = max(2 * batch, _MERGE_ROWS if self.merges else 0)
        runs = tried + sizes.val  # a child that was better, or merged, goes over all of them
        return self.iterations * (runs * sizes.run + batch * sizes.blame + 1)

    async def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        base = dict(bench.incumbent)
        seed = {n: t for n, t in instructions_of(base).items() if bench.parameters[n].requires_grad}
        if not seed:
            return
        bridge = _Bridge()
        adapter = _Adapter(self, bench, bridge, base)
        bridge.start(lambda: self._evolve(adapter, seed, bench))
        try:
            while (wish := await bridge.wishes.get()) is not None:
                if isinstance(wish.what, Mapping):
                    yield adapter.proposal(wish.what, bench.incumbent)
                    wish.answer.set_result(None)
                else:
                    wish.answer.set_result(await wish.what())
        finally:
            await bridge.aend()
        if bridge.failure is not None:
            raise bridge.failure

    def _evolve(self, adapter: _Adapter, seed: Candidate, bench: Bench) -> None:
        """Run gepa's own loop. It blocks, so it has a thread to itself."""
        from gepa import optimize

        optimize(
            seed_candidate=seed,
            trainset=list(bench.train),
            valset=list(bench.val),
            adapter=adapter,
            module_selector=adapter.most_blamed if self.focus else "round_robin",
            reflection_minibatch_size=min(self.minibatch, len(bench.train)),
            use_merge=self.merges > 0,
            max_merge_invocations=self.merges,
            stop_callbacks=lambda state: state.i + 1 >= self.iterations,
            callbacks=[adapter],
            logger=_Log(),
            track_best_outputs=False,
            seed=self.seed,
        )


class _Log:
    """gepa's messages, which it would print."""

    def log(self, message: str) -> None:
        logger.debug("%s", message)


class _EndedError(BaseException):
    """Ends gepa's loop from inside. No Exception, because gepa goes on after those."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What gepa's thread waits for: something to be done, or a candidate to be judged."""

    what: Callable[[], Awaitable[Any]] | Mapping[str, str]
    answer: Future[Any] = field(default_factory=Future)


class _Bridge:
    """Hands gepa's wishes to the search, one at a time.

    The search does all the work in its own task. So calls are paid for by the ledger in scope, what
    fails is raised there, and gepa's thread stands still while acceptance decides: the order of
    events is always the same.
    """

    def __init__(self) -> None:
        self.wishes: asyncio.Queue[_Wish | None] = asyncio.Queue()
        self.failure: Exception | None = None
        """What ended gepa's loop, when that was gepa itself."""
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._ended = False
        self._open: _Wish | None = None
        self._thread: threading.Thread | None = None

    def start(self, loop: Callable[[], None]) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="lg_textgrad-gepa", daemon=True
        )
        self._thread.start()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except _EndedError:
            pass
        except Exception as error:  # raised again in the search
            self.failure = error
        with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nobody
            self._loop.call_soon_threadsafe(self.wishes.put_nowait, None)

    def wish(self, what: Callable[[], Awaitable[T]] | Mapping[str, str]) -> T:
        """Return what comes of it. Called in gepa's thread."""
        made = _Wish(what)
        with self._guard:
            if self._ended:
                raise _EndedError
            self._open = made
        self._loop.call_soon_threadsafe(self.wishes.put_nowait, made)
        return cast(T, made.answer.result())

    async def aend(self) -> None:
        """End gepa's loop where it stands, and wait until it has ended."""
        with self._guard:
            self._ended = True
            waiting = self._open
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_exception(_EndedError())
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)


class _Adapter:
    """gepa's adapter protocol and its callbacks, on a bench. Its methods run in gepa's thread."""

    def __init__(self, search: GEPA, bench: Bench, bridge: _Bridge, base: Candidate) -> None:
        self.search = search
        self.bench = bench
        self.bridge = bridge
        self.base = base
        """The candidate that the search began with; its demonstrations and frozen texts stay."""
        self.answered: dict[tuple[str, str], tuple[str, ...]] = {}
        """(parameter, instruction) -> ids of the gradients that it answers."""
        self.asked = 0
        self.last: tuple[tuple[str, ...], list[Gradient]] = (), []
        """The runs of the last reverse pass, and what it gave."""

    def whole(self, candidate: Mapping[str, str]) -> Candidate:
        """Return gepa's candidate, which has instructions only, as one of ours."""
        found = dict(self.base)
        for name, instruction in candidate.items():
            found = with_instruction(found, name, instruction)
        return found

    def proposal(self, candidate: Mapping[str, str], incumbent: Candidate) -> Proposal:
        made = self.whole(candidate)
        gradients = {n: self.answered.get((n, t), ()) for n, t in candidate.items()}
        return Proposal(made, all_edits(incumbent, made, gradients=gradients), "gepa")

    # gepa's adapter protocol.

    def evaluate(
        self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False
    ) -> Any:
        [found] = self.batch_evaluate([(candidate, batch)])
        if not capture_traces:
            found.trajectories = None
        return found

    def batch_evaluate(self, items: list[tuple[dict[str, str], list[Example]]]) -> list[Any]:
        from gepa.core.adapter import EvaluationBatch

        async def score() -> list[list[Scored]]:
            async with task_group() as group:
                tasks = [
                    group.create_task(
                        self.bench.ascore(batch, self.whole(candidate), self._purpose(batch))
                    )
                    for candidate, batch in items
                ]
            return [task.result() for task in tasks]

        return [
            EvaluationBatch(
                outputs=[s.run.id for s in scored],
                scores=[s.score for s in scored],
                trajectories=scored,
            )
            for scored in self.bridge.wish(score)
        ]

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        del candidate  # its runs say with which texts they were made
        scored, gradients = eval_batch.trajectories, self._gradients(eval_batch.trajectories)
        found = {
            name: records_of(name, gradients, scored)[: self.search.max_records]
            for name in components_to_update
        }
        return {n: [r.as_dict() for r in records] for n, records in found.items() if records}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        texts = {}
        for name in components_to_update:
            records = reflective_dataset.get(name)
            if not records:
                continue
            text = self.bridge.wish(partial(self._awrite, candidate, name, records))
            if text is not None:
                ids = tuple(dict.fromkeys(i for r in records for i in r["gradients"]))
                self.answered[name, text] = ids
                texts[name] = text
        return texts

    # Its component selector and its callback.

    def most_blamed(
        self,
        state: Any,
        trajectories: list[Scored],
        subsample_scores: list[float],
        candidate_idx: int,
        candidate: dict[str, str],
    ) -> list[str]:
        """Return the parameter that most of the blame falls on; of equals, the first."""
        del state, subsample_scores, candidate_idx
        blame = dict.fromkeys(candidate, 0.0)
        for gradient in self._gradients(trajectories):
            if gradient.parameter in blame and gradient.change:
                blame[gradient.parameter] += gradient.weight
        most = max(blame, key=lambda name: blame[name])
        return [most] if blame[most] > 0 else []

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Have each candidate that gepa took into its pool judged by acceptance."""
        if event["candidate_idx"] > 0:
            self.bridge.wish(dict(event["candidate"]))

    def _purpose(self, batch: Sequence[Example]) -> str:
        """Return `batch` for training examples, whose runs critics and writers read."""
        return "batch" if all(e in self.bench.train for e in batch) else "trial"

    def _gradients(self, scored: Sequence[Scored]) -> list[Gradient]:
        """Return the gradients of these runs. The selector and the dataset share one pass."""
        runs = tuple(s.run.id for s in scored)
        if self.last[0] == runs:
            return self.last[1]

        async def backward() -> list[Gradient]:
            self.search.zero_grad()
            gradients = await self.bench.abackward(scored)
            self.search.zero_grad()
            return gradients

        gradients = self.bridge.wish(backward)
        self.last = runs, gradients
        return gradients

    async def _awrite(
        self, candidate: dict[str, str], name: str, records: Sequence[Mapping[str, Any]]
    ) -> str | None:
        parameter = self.bench.parameters[name]
        shown = [Record.from_dict(r) for r in records]
        cases = "\n\n".join(record.text for record in shown)
        case = templates.fill(
            "gepa_case",
            role=parameter.role or name,
            instruction=candidate[name],
            mark=templates.fence(cases),
            records=cases,
            promises=promises(parameter),
        )
        messages = [
            {"role": "system", "content": templates.source("gepa")},
            {"role": "user", "content": case},
        ]
        self.asked += 1
        seen = [text for record in shown for text in record.seen]
        refusal = usable(self.bench, self.whole(candidate), name, seen)
        try:
            # The same parent may be reflected on again, and should then get another child.
            return await self.search.writer.awrite(messages, refusal, seed=2 * self.asked)
        except ParameterError as error:
            self.search.refused.append(f"{name}: {error}")
            return None
