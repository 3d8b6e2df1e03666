"""Evaluators -> Feedback -> Loss."""

from __future__ import annotations

import math
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lg_textgrad._given import check_counts, check_kind
from lg_textgrad._hashing import digest
from lg_textgrad._sync import all_at_once, run_sync, task_group
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.bindings.patching import at_hand
from lg_textgrad.errors import ConfigurationError, EvaluatorError
from lg_textgrad.evaluators import (
    Evaluator,
    acall_evaluator,
    acall_summary,
    check_evaluators,
    identity_of,
    name_of,
)
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.recording.isolation import isolated
from lg_textgrad.redaction import Redaction, brief
from lg_textgrad.run import Example, Feedback, Run
from lg_textgrad.tracking import ReadTrackingDict

if TYPE_CHECKING:
    from lg_textgrad.critics.base import Critic
    from lg_textgrad.parameter import Gradient


@dataclass(frozen=True, slots=True)
class Scored:
    """A run with what the evaluators said of it."""

    run: Run
    score: float
    """In [0, 1], higher is better; 0 for a run that failed."""
    feedback: Sequence[Feedback]
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much a feedback key counts in the score; 1 for those that are not named."""

    def blame(self, feedback: Feedback) -> float:
        """Return how much a complaint weighs: what it took away, and 1 without a score.

        A key that counts less than another, which is there too, weighs as much less.
        """
        most = max((self.weights.get(f.key, 1.0) for f in self.feedback), default=1.0)
        share = self.weights.get(feedback.key, 1.0) / most if most else 0.0
        return share * (1.0 if feedback.score is None else 1.0 - feedback.score)

    @property
    def text(self) -> str:
        """The comments of what was not perfect, one a line."""
        return "\n".join(
            f"{f.key}: {f.comment or f'scored {f.score:.2f}'}"
            for f in self.feedback
            if f.score is None or f.score < 1
        )


def masked(scored: Scored, redaction: Redaction) -> Scored:
    """Return a scored run as everybody may know it."""
    run = redaction.run(scored.run)
    run = replace(run, example=redaction.example(run.example))
    return replace(scored, run=run, feedback=_said(scored.feedback, redaction))


def _said(feedback: Sequence[Feedback], redaction: Redaction) -> tuple[Feedback, ...]:
    return tuple(replace(f, comment=redaction.text(f.comment)) for f in feedback)


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch of runs, scored."""

    scored: Sequence[Scored]

    @property
    def score(self) -> float:
        """The mean score in [0, 1], higher is better."""
        return math.fsum(s.score for s in self.scored) / len(self.scored) if self.scored else 0.0

    @property
    def by_key(self) -> dict[str, float]:
        """The mean score of each feedback key; not of those that only comment."""
        scores: dict[str, list[float]] = {}
        for feedback in (f for s in self.scored for f in s.feedback):
            if feedback.score is not None:
                scores.setdefault(feedback.key, []).append(feedback.score)
        return {key: math.fsum(values) / len(values) for key, values in scores.items()}

    @property
    def text(self) -> str:
        return "\n\n".join(f"{s.run.example.id}\n{s.text}" for s in self.scored if s.text)

    def backward(self, critic: Critic) -> list[Gradient]:
        """`abackward` for sync code."""
        return run_sync(self.abackward(critic))

    async def abackward(self, critic: Critic) -> list[Gradient]:
        """Append the critic's gradients to `grad` of the parameters that the runs read.

        At most one critic call per model-calling execution of a run below full marks. Returns the
        gradients in the order of the runs. Raises `ConfigurationError` for what is no critic, and
        what the model raises when it cannot be asked; then no parameter was touched.
        """
        from lg_textgrad.backward import abackward

        return await abackward(self, critic)


class Objective:
    """Reduces what evaluators say of a run to one score in [0, 1].

    `evaluators` are what LangSmith's `evaluate` accepts, sync or async. `weights` says how much
    each feedback key counts (default 1 each); the score is the weighted mean. `summary` evaluators
    look at all runs of a batch at once; what they say is reported and decides nothing. With
    `repeats` n each evaluator is asked n times about each run, for judges that waver: scores are
    means, and the comment is that of the judgement nearest to the mean.

    Cost of scoring: the evaluators' own model calls, `repeats` times. Raises `ConfigurationError`
    for no evaluators, what is none or of another sort, a negative weight, and `repeats` below 1.
    """

    def __init__(
        self,
        evaluators: Iterable[Evaluator],
        *,
        weights: Mapping[str, float] | None = None,
        summary: Iterable[Evaluator] = (),
        repeats: int = 1,
    ) -> None:
        check_counts("Objective", repeats=repeats)
        for name, given in (("evaluators", evaluators), ("summary", summary)):
            check_kind(given, Iterable, f"`{name}` of Objective", "write a list: [evaluator]")
        self.repeats = repeats
        self.evaluators = list(evaluators)
        self.weights = dict(weights or {})
        self.summary = list(summary)
        if not self.evaluators:
            raise ConfigurationError("An objective needs at least one evaluator.")
        check_evaluators(self.evaluators, self.summary)
        # Now, since an evaluator that counts its calls must not become another one by it.
        self._told = [f"{name_of(e)}\n{identity_of(e)}" for e in self.evaluators]
        # What each evaluator said first: the keys that one gives are known from that alone.
        self._heard: dict[int, Sequence[Feedback]] = {}
        for key, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ConfigurationError(
                    f"The weight of '{key}' must not be negative, infinite or nan: {weight}."
                )

    @property
    def fingerprint(self) -> str:
        """A hash of the evaluators' code and the weights."""
        again = (self.repeats,) if self.repeats > 1 else ()
        return digest("objective", self._told, self.weights, *again)[:16]

    @property
    def parts(self) -> dict[str, str]:
        """What the fingerprint is made of: each evaluator's hash, and that of the weights."""
        named = zip(self.evaluators, self._told, strict=True)
        found = {name_of(e): digest(told)[:12] for e, told in named}
        return {**found, "weights and repeats": digest(self.weights, self.repeats)[:12]}

    def __call__(self, runs: Iterable[Run]) -> Loss:
        """`acall` for sync code."""
        return run_sync(self.acall(runs))

    async def acall(self, runs: Iterable[Run]) -> Loss:
        """Score the runs, all at once. Cost: the model calls that the evaluators make.

        A run that failed scores 0 without asking anyone, and its error is the comment. An evaluator
        whose judge could not be reached, though others could, gives 0 for as long as that lasts:
        under the keys that it has had, and under its function's name before it has had any. Of
        repeated judgements those count that could be had. Raises `EvaluatorError` when an
        evaluator raises or returns something that is no score.
        """
        with nullcontext() if ledger_in_scope() is None else at_hand():
            return Loss(tuple(await all_at_once(self._score(run) for run in runs)))

    async def asummarize(self, scored: Sequence[Scored]) -> list[Feedback]:
        """Return what the summary evaluators say of a whole batch; scores in their own unit.

        Cost: the model calls that they make. Raises `EvaluatorError` like `acall`.
        """
        runs = [s.run for s in scored]
        found: list[Feedback] = []
        for evaluator in self.summary if runs else ():
            name = name_of(evaluator)

            async def call(evaluator: Evaluator = evaluator) -> Any:
                return await acall_summary(evaluator, runs)

            result = await _paid(call, name, f"{len(runs)} runs", 0, None)
            found.extend(read_result(result, name, f"{len(runs)} runs", bounded=False))
        ledger = ledger_in_scope()
        return found if ledger is None else list(_said(found, ledger.redaction))

    def summarize(self, scored: Sequence[Scored]) -> list[Feedback]:
        """`asummarize` for sync code."""
        return run_sync(self.asummarize(scored))

    async def _score(self, run: Run) -> Scored:
        ledger = ledger_in_scope()
        key = feedback_key(self.fingerprint, run.example)
        if ledger is not None:
            known = await ledger.store.aget_feedback(run.id, key)
            if known is not None:
                if run.error is None and len(known) == len(self.evaluators):  # one of each
                    self._known_as([[f] for f in known])
                return Scored(run, self._reduce(known, run), known, self.weights)
        unheard: set[str] = set()
        if run.error is not None:
            feedback = [Feedback("error", 0.0, f"The run failed: {run.error}")]
        else:
            async with task_group() as group:
                asked = [
                    [group.create_task(_ask(e, run, unheard, n)) for n in range(self.repeats)]
                    for e in self.evaluators
                ]
            said = [_settled([t.result() for t in tasks]) for tasks in asked]
            feedback = [f for judgement in self._known_as(said) for f in judgement]
        if ledger is not None:
            feedback = list(_said(feedback, ledger.redaction))
        score = self._reduce(feedback, run)
        if ledger is not None and not unheard and not run.provisional:
            await ledger.store.aput_feedback(run.id, key, score, feedback)
        return Scored(run, score, tuple(feedback), self.weights)

    def _known_as(self, said: Sequence[list[Feedback]]) -> list[list[Feedback]]:
        """Return what each evaluator said; of one that was not heard under the keys it had before.

        The weights know it by them.
        """
        found = []
        for n, judgement in enumerate(said):
            if isinstance(judgement, _Unheard):
                why = judgement[0].comment
                found.append([
                    Feedback(f.key, None if f.score is None else 0.0, why)
                    for f in self._heard.get(n, judgement)
                ])
            else:
                self._heard.setdefault(n, judgement)
                found.append(judgement)
        return found

    def _reduce(self, feedback: Sequence[Feedback], run: Run) -> float:
        if run.error is not None:
            return 0.0
        total = weight = 0.0
        for f in feedback:
            if f.score is not None:
                w = self.weights.get(f.key, 1.0)
                total += w * f.score
                weight += w
        if weight == 0:
            scored = [f.key for f in feedback if f.score is not None]
            raise EvaluatorError(
                f"All scores for example {run.example.named} have the weight 0 "
                f"({', '.join(scored)}); give one that counts a weight above 0."
                if scored
                else f"No evaluator gave a score for example {run.example.named}"
                f"{_said_only(feedback)}; at least one must return a number between 0 and 1, or a "
                "dict with 'score'.",
                run_id=run.id,
            )
        return total / weight


def _said_only(feedback: Sequence[Feedback]) -> str:
    mask = Redaction().text  # what is scored outside of a run was not masked yet
    said = [f"'{f.key}' said only {brief(mask(f.comment), 80)!r}" for f in feedback if f.comment]
    return f" ({', '.join(said)})" if said else ""


def feedback_key(fingerprint: str, example: Example) -> str:
    """Return what the feedback of an objective on a run of the example is kept under.

    The run's id says what went into the graph; evaluators are also given the references and the
    metadata, so a corrected label is another question.
    """
    return digest("feedback", fingerprint, example.outputs, example.metadata)[:16]


def _settled(judgements: Sequence[list[Feedback]]) -> list[Feedback]:
    """Return one evaluator's repeated judgements as one: of each key the mean score.

    Those that could not be had don't count; where none could, the first is what comes back.
    """
    heard = [j for j in judgements if not isinstance(j, _Unheard)]
    if len(heard) < 2:
        return (heard or judgements)[0]
    judgements = heard
    by_key: dict[str, list[Feedback]] = {}
    for feedback in judgements:
        for f in feedback:
            by_key.setdefault(f.key, []).append(f)
    found = []
    for key, said in by_key.items():
        scores = [f.score for f in said if f.score is not None]
        mean = math.fsum(scores) / len(scores) if scores else None
        nearest = said[0]
        if mean is not None:
            scored = [f for f in said if f.score is not None]
            nearest = min(scored, key=lambda f: abs((f.score or 0.0) - mean))
        reads = [f.reads for f in said]
        together = frozenset(k for r in reads for k in r or ())
        found.append(
            Feedback(key, mean, nearest.comment, None if None in reads else together)
        )
    return found


class _Unheard(list[Feedback]):
    """What stands for the judgement of an evaluator whose judge could not be reached."""


class _NotAskedError(Exception):
    """A judge's model call failed on its way for good."""


async def _ask(
    evaluator: Evaluator, run: Run, unheard: set[str], repeat: int = 0
) -> list[Feedback]:
    """Return one judgement. Each repeat is another sample, so a judge is really asked again.

    One whose judge could not be reached, though others could, scores 0 and is named in `unheard`.
    """
    outputs = ReadTrackingDict(run.outputs or {})
    name = name_of(evaluator)

    async def call() -> Any:
        return await acall_evaluator(evaluator, run, outputs)

    where = f"example {run.example.named}"
    try:
        result = await _paid(call, name, where, run.sample + _REPEAT * repeat, run.id)
    except _NotAskedError as error:
        unheard.add(name)
        return _Unheard([Feedback(name, 0.0, str(error))])
    reads = frozenset(outputs.keys_read) or None
    return [
        Feedback(f.key, f.score, f.comment, reads)
        for f in read_result(result, name, where)
    ]


_REPEAT = 1_000_000
"""Keeps the samples of repeated judgements apart from those of repeated runs."""


async def _paid(
    call: Callable[[], Awaitable[Any]], name: str, where: str, sample: int, run_id: str | None
) -> Any:
    """Call an evaluator: untraced, and its model calls paid for by the ledger in scope."""
    ledger = ledger_in_scope()
    scope = None if ledger is None else BoundaryScope(ledger, kind="judge", sample=sample)
    try:
        with isolated(), nullcontext() if scope is None else pay_through(scope):
            result = await call()
        if scope is not None and scope.failure is not None:
            raise scope.failure
        return result
    except Exception as error:
        if scope is not None and scope.failure is not None:
            raise scope.failure from None
        if scope is not None and scope.lost and run_id is not None:
            raise _NotAskedError(f"The judge of '{name}' could not be reached: {error}") from None
        if type(error).__module__.startswith("lg_textgrad"):
            raise
        redaction = Redaction() if ledger is None else ledger.redaction
        led_to_it = "".join(traceback.format_exception(error))
        raise EvaluatorError(
            f"The evaluator '{name}' raised {type(error).__name__} on {where}: "
            f"{redaction.text(str(error))}. Mend it; what a run directory has is kept. With other "
            "code it is another run, which takes that over: `lg-textgrad optimize --fork RUN_DIR "
            "--out NEW`, in Python Store(new).take_over(Store(old)). Where its code is the same, "
            "resume.",
            run_id=run_id,
        ) from (error if redaction.text(led_to_it) == led_to_it else None)


def read_result(
    result: Any, name: str, where: str, *, bounded: bool = True
) -> list[Feedback]:
    """Return an evaluator's result, in any of LangSmith's shapes, as Feedback.

    `where` names the example in errors. Without `bounded` scores may be any number. Raises
    `EvaluatorError` for what is no score: nothing, a number outside [0, 1], another type.
    """

    def again(part: Any) -> list[Feedback]:
        return read_result(part, name, where, bounded=bounded)

    def score_of(score: Any) -> float:
        return _score_of(score, name, where, bounded=bounded)

    if hasattr(result, "model_dump"):
        result = result.model_dump()
    if isinstance(result, Mapping) and "results" in result:
        result = list(result["results"])
    if isinstance(result, list | tuple):
        found = [f for part in result for f in again(part)]
        if not found:
            raise _nonsense(name, where, "an empty list")
        return found
    if isinstance(result, bool | int | float):
        return [Feedback(name, score_of(result))]
    if isinstance(result, str):
        return [Feedback(name, None, result)]
    if isinstance(result, Mapping):
        key = str(result.get("key") or name)
        score = result.get("score")
        comment = str(result.get("comment") or "")
        if score is None and result.get("value") is None and not comment:
            raise _nonsense(name, where, "a dict without 'score'")
        value = result.get("value")
        if score is None and isinstance(value, bool | int | float):
            score = value
        if score is None and value is not None and not comment:
            comment = str(value)
        return [Feedback(key, None if score is None else score_of(score), comment)]
    raise _nonsense(name, where, "nothing" if result is None else f"a {type(result).__name__}")


_LAST_DIGITS = 1e-9
"""What sums and means of floats may miss 0 and 1 by."""


def _score_of(score: Any, name: str, where: str, *, bounded: bool) -> float:
    if not isinstance(score, bool | int | float) or math.isnan(score):
        raise _nonsense(name, where, f"the score {score!r}")
    if not bounded:
        return float(score)
    # A mean of ten tenths is 0.9999999999999999: full marks all the same, and no complaint.
    near = next((whole for whole in (0.0, 1.0) if abs(score - whole) <= _LAST_DIGITS), score)
    if not 0 <= near <= 1:
        raise _nonsense(name, where, f"the score {score!r}, which is not between 0 and 1")
    return float(near)


def _nonsense(name: str, where: str, what: str) -> EvaluatorError:
    return EvaluatorError(
        f"The evaluator '{name}' returned {what} for {where}; it must return a number "
        "between 0 and 1, a boolean, or {'key', 'score', 'comment'}."
    )
