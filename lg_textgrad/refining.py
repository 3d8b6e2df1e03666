"""Improve one text of one run: criticized, revised, and scored again. No prompt changes."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from langgraph.pregel import Pregel

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_function, check_kind, check_numbers, check_store
from lg_textgrad._hashing import digest, to_plain
from lg_textgrad._sync import all_at_once, run_sync
from lg_textgrad.asking import Writer
from lg_textgrad.budget import Account, Budget
from lg_textgrad.critics.cutting import cut
from lg_textgrad.errors import (
    BudgetExceededError,
    BudgetTooSmallError,
    ConfigurationError,
    GraphError,
    ParameterError,
)
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.ledger import Ledger, ledger_in_scope, use_ledger
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Objective, Scored
from lg_textgrad.run import Example, Usage
from lg_textgrad.store import Store
from lg_textgrad.variables import Place

logger = logging.getLogger(__name__)

_MOST_TEXT = 20000
"""Characters of a revision; twice as many as the text has, where that is more."""
_LEAST_TOKENS = 1500
_EARLIER = 3
"""Earlier versions that the critic sees."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One version of the text, and what it came to."""

    text: str
    scored: Scored
    """The run with the text in it, judged."""
    advice: str = ""
    """What the critic said of the version that it was made from; empty for the graph's own."""
    votes: int = 1
    """How many of the samples said this."""

    @property
    def score(self) -> float:
        """In [0, 1], higher is better."""
        return self.scored.score


@dataclass(frozen=True, slots=True)
class Refined:
    """What came of it."""

    variable: str
    drafts: Sequence[Draft]
    """Every version that was scored, the graph's own first."""
    stopped_by: str
    """`enough`, `patience`, `rounds`, or `budget_calls`, `budget_tokens`, `budget_seconds`."""
    spent: Usage
    """What was paid meanwhile, the graph and the evaluators included."""
    refused: Sequence[str] = field(default=())
    """Why replies could not be used."""

    @property
    def best(self) -> Draft:
        """The version with the best score; of equals, the earliest."""
        return max(self.drafts, key=lambda d: d.score)

    @property
    def text(self) -> str:
        return self.best.text

    @property
    def score(self) -> float:
        return self.best.score

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The graph's output with the best text in it."""
        return self.best.scored.run.outputs or {}


def refine(
    graph: TrainableGraph | Pregel[Any, Any, Any, Any],
    inputs: Mapping[str, Any],
    objective: Objective,
    *,
    model: ChatModel,
    critic: ChatModel | None = None,
    variable: str | None = None,
    reference_outputs: Mapping[str, Any] | None = None,
    rounds: int = 3,
    patience: int = 2,
    enough: float = 1.0,
    votes: int = 1,
    answer_of: Callable[[str], Hashable] | None = None,
    constraints: Sequence[str] = (),
    budget: Budget | None = None,
    store: Store | str | Path | None = None,
    seed: int = 0,
) -> Refined:
    """`arefine` for sync code."""
    return run_sync(
        arefine(
            graph,
            inputs,
            objective,
            model=model,
            critic=critic,
            variable=variable,
            reference_outputs=reference_outputs,
            rounds=rounds,
            patience=patience,
            enough=enough,
            votes=votes,
            answer_of=answer_of,
            constraints=constraints,
            budget=budget,
            store=store,
            seed=seed,
        )
    )


async def arefine(
    graph: TrainableGraph | Pregel[Any, Any, Any, Any],
    inputs: Mapping[str, Any],
    objective: Objective,
    *,
    model: ChatModel,
    critic: ChatModel | None = None,
    variable: str | None = None,
    reference_outputs: Mapping[str, Any] | None = None,
    rounds: int = 3,
    patience: int = 2,
    enough: float = 1.0,
    votes: int = 1,
    answer_of: Callable[[str], Hashable] | None = None,
    constraints: Sequence[str] = (),
    budget: Budget | None = None,
    store: Store | str | Path | None = None,
    seed: int = 0,
) -> Refined:
    """Return the graph's answer to one input, improved by criticism and revision.

    `variable` is the state key whose text is improved: by default the text of the graph's output
    that was written last, or the last message. A text that later nodes read is put in place of what
    its node wrote and the graph runs again, with what did not change taken from the ledger; any
    other is put into the output. Each round, `critic` (by default `model`) says what has to change
    in the best version, in view of the evaluators' comments and of earlier versions, and `model`
    revises it. It ends at a score of `enough`, after `patience` rounds without a better one, after
    `rounds`, or when the budget is used up.

    With `votes`, the graph and the reviser are asked so many times, and what most of the samples
    say is scored: `answer_of(text)` is what they are compared by, by default the text without
    regard to case and space.

    Cost: `votes` runs of the graph; a round, 1 call of the critic and `votes` of `model` (twice as
    many when replies can't be used), the evaluators' calls, and what runs again. Calls are paid
    through the ledger in scope, or else through one for `budget` and `store`; what the store knows
    costs nothing. Raises `GraphError` when the graph fails, `ConfigurationError` when there is no
    such text, `BudgetTooSmallError` when the budget ends before anything was scored. After
    Yuksekgonul et al. 2024 (TextGrad, solution optimization), Shinn et al. 2023 (Reflexion), Wang
    et al. 2022 (self-consistency).
    """
    example = _example(inputs, reference_outputs)
    check_kind(objective, Objective, "refine", "give tg.Objective([evaluator])")
    _check(rounds, patience, votes, enough, constraints)
    if budget is not None:
        check_kind(budget, Budget, "`budget` of refine", "make one: tg.Budget(calls=500)")
    check_store(store, "`store` of refine")
    check_function(answer_of, "answer_of", "refine")
    trainable = graph if isinstance(graph, TrainableGraph) else TrainableGraph(graph)
    temperature = 0.7 if votes > 1 else 0.0
    refinement = _Refinement(
        trainable,
        example,
        objective,
        Writer(model, _LEAST_TOKENS, temperature, seed),
        Writer(critic or model, 500, 0.0, seed, "critic"),
        votes,
        answer_of or _plainly,
        constraints,
        enough,
    )
    async with _ledger(budget, store) as ledger:
        before = ledger.account.spent
        stopped_by = await refinement.arun(variable, rounds, patience)
        spent = _less(ledger.account.spent, before)
    drafts, refused = tuple(refinement.drafts), tuple(refinement.refused)
    return Refined(refinement.variable, drafts, stopped_by, spent, refused)


@contextlib.asynccontextmanager
async def _ledger(
    budget: Budget | None, store: Store | str | Path | None
) -> AsyncIterator[Ledger]:
    """Yield the ledger in scope, or put one for this input there."""
    known = ledger_in_scope()
    if known is not None and budget is None and store is None:
        yield known
        return
    owned = not isinstance(store, Store)
    kept = Store(store) if not isinstance(store, Store) else store
    try:
        ledger = Ledger(kept, Account(budget or Budget()))
        try:
            with use_ledger(ledger):
                yield ledger
        finally:
            await ledger.aclose()
    finally:
        if owned:
            kept.close()


def _example(inputs: Any, reference_outputs: Any) -> Example:
    """Return the input as an example, with an id of its own."""
    for name, value in (("inputs", inputs), ("reference_outputs", reference_outputs)):
        if not isinstance(value, Mapping) and not (value is None and name != "inputs"):
            raise ConfigurationError(
                f"refine takes `{name}` as a mapping, like the graph itself, not a "
                f"{type(value).__name__}."
            )
    references = None if reference_outputs is None else dict(reference_outputs)
    return Example(digest("refine", inputs, references)[:12], dict(inputs), references)


def _check(
    rounds: int, patience: int, votes: int, enough: float, constraints: Sequence[str]
) -> None:
    check_counts("refine", rounds=rounds, patience=patience, votes=votes)
    check_numbers("refine", lambda n: 0 < n <= 1, "above 0 and at most 1", enough=enough)
    if isinstance(constraints, str):
        raise ConfigurationError(
            f"Constraints are a list of sentences, not one text: write [{constraints!r}]."
        )


def _less(now: Usage, before: Usage) -> Usage:
    return Usage(*(getattr(now, f.name) - getattr(before, f.name) for f in fields(Usage)))


@dataclass
class _Refinement:
    """The loop, and where it stands."""

    graph: TrainableGraph
    example: Example
    objective: Objective
    reviser: Writer
    critic: Writer
    votes: int
    answer_of: Callable[[str], Hashable]
    constraints: Sequence[str]
    enough: float
    variable: str = ""
    drafts: list[Draft] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def best(self) -> Draft:
        return max(self.drafts, key=lambda d: d.score)

    async def arun(self, variable: str | None, rounds: int, patience: int) -> str:
        """Fill `drafts`. Returns what it stopped by."""
        idle = 0
        try:
            place = await self._afirst(variable)
            for number in range(rounds):
                if self.best.score >= self.enough:
                    return "enough"
                if idle >= patience:
                    return "patience"
                before = self.best.score
                await self._around(place, number)
                idle = 0 if self.best.score > before else idle + 1
        except BudgetExceededError as reached:
            if not self.drafts:
                raise BudgetTooSmallError(
                    f"The budget does not cover the graph's own answer: {reached}",
                    limit=reached.limit,
                ) from None
            return f"budget_{reached.limit}"
        if self.best.score >= self.enough:
            return "enough"
        return "patience" if idle >= patience else "rounds"

    async def _afirst(self, variable: str | None) -> Place:
        """Take the graph's own answer, the one that most samples give, for the first draft."""
        found = await all_at_once(
            self.graph.arecord([self.example], sample=n) for n in range(self.votes)
        )
        runs = [run for each in found for run in each]
        good = [run for run in runs if run.error is None]
        if not good:
            raise GraphError(f"The graph failed on this input: {runs[0].error}", run_id=runs[0].id)
        places = [Place.of(run, variable) for run in good]
        self.variable = places[0].variable
        places = [p for p in places if p.variable == self.variable]
        text, votes = self._majority([p.text for p in places])
        place = next(p for p in places if p.text == text)
        [scored] = (await self.objective.acall([place.run])).scored
        self.drafts.append(Draft(text, scored, votes=votes))
        return place

    async def _around(self, place: Place, number: int) -> None:
        """Criticize the best draft, revise it, and score what most revisions say."""
        best = self.best
        given = cut(_shown(best.scored.run.example.inputs), 6000)  # masked
        earlier = [d for d in self.drafts if d is not best][-_EARLIER:]
        told = "\n\n".join(_told(d) for d in earlier)
        case = templates.fill(
            "refine_critic_case",
            mark=templates.fence(given, best.text, best.scored.text, told),
            inputs=given,
            variable=self.variable,
            score=f"{best.score:.2f}",
            text=best.text,
            complaints=best.scored.text or "(none; but the score is not full)",
            earlier=told or "(none)",
        )
        try:
            advice = await self.critic.awrite(
                _messages("refine_critic", case), _nothing, key="advice", longest=1500, seed=number
            )
        except ParameterError as error:
            self.refused.append(f"critic: {error}")
            return
        texts = await self._arevised(given, best, advice, number)
        if not texts:
            return
        text, votes = self._majority(texts)
        if any(text == d.text for d in self.drafts):
            return
        run = await place.awith(self.graph, text)
        if run is None:
            self.refused.append(f"{self.variable}: its node was not reached with the new text.")
            return
        [scored] = (await self.objective.acall([run])).scored
        self.drafts.append(Draft(text, scored, advice, votes))

    async def _arevised(
        self, given: str, draft: Draft, advice: str, number: int
    ) -> list[str]:
        """Return a revision from each sample that can be used."""
        case = templates.fill(
            "refine_case",
            mark=templates.fence(given, draft.text, advice),
            inputs=given,
            variable=self.variable,
            text=draft.text,
            advice=advice,
            constraints="\n".join(self.constraints),
        )

        reviser = replace(self.reviser, max_tokens=_tokens(draft.text))

        async def one(sample: int) -> str | ParameterError:
            try:
                return await reviser.awrite(
                    _messages("refine", case),
                    _nothing,
                    key="text",
                    longest=max(_MOST_TEXT, 2 * len(draft.text)),
                    seed=2 * (number * self.votes + sample),
                )
            except ParameterError as error:
                return error

        made = await all_at_once(one(sample) for sample in range(self.votes))
        self.refused += [f"reviser: {why}" for why in made if isinstance(why, ParameterError)]
        return [text for text in made if isinstance(text, str)]

    def _majority(self, texts: Sequence[str]) -> tuple[str, int]:
        """Return the first text of the largest group, and how many are in it."""
        groups: dict[Hashable, list[str]] = {}
        for text in texts:
            groups.setdefault(self.answer_of(text), []).append(text)
        largest = max(groups.values(), key=len)  # of equals, the group that came first
        return largest[0], len(largest)


def _told(draft: Draft) -> str:
    """Return an earlier version for the critic: what became of which advice."""
    after = f", after the advice '{cut(draft.advice, 500)}'" if draft.advice else ""
    return f"Scored {draft.score:.2f}{after}:\n{cut(draft.text, 1500)}"


def _tokens(text: str) -> int:
    """Return how long a revision may be, so that a text that grows to twice its length fits.

    A token is four letters, or less than one Chinese character, which has three bytes.
    """
    return max(_LEAST_TOKENS, len(text.encode("utf-8", "replace")) // 2 + 200)


def _messages(template: str, case: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": templates.source(template)},
        {"role": "user", "content": case},
    ]


def _nothing(_: str) -> None:
    return None


def _plainly(text: str) -> str:
    return " ".join(text.split()).casefold()


def _shown(inputs: Mapping[str, Any]) -> str:
    return json.dumps(to_plain(inputs), ensure_ascii=False, indent=1)
