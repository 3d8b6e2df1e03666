"""Evaluators -> Feedback -> Loss."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lg_textgrad._hashing import digest
from lg_textgrad._sync import run_sync, task_group
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.errors import ConfigurationError, EvaluatorError
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.recording.isolation import isolated
from lg_textgrad.run import Feedback, Run
from lg_textgrad.tracking import ReadTrackingDict

if TYPE_CHECKING:
    from lg_textgrad.critics.base import Critic
    from lg_textgrad.parameter import Gradient

Evaluator = Callable[..., Any]

_ARGUMENTS = ("run", "example", "inputs", "outputs", "reference_outputs", "attachments")


@dataclass(frozen=True, slots=True)
class Scored:
    """A run with what the evaluators said of it."""

    run: Run
    score: float
    """In [0, 1], higher is better; 0 for a run that failed."""
    feedback: Sequence[Feedback]

    @property
    def text(self) -> str:
        """The comments of what was not perfect, one a line."""
        return "\n".join(
            f"{f.key}: {f.comment or f'scored {f.score:.2f}'}"
            for f in self.feedback
            if f.score is None or f.score < 1
        )


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
        gradients in the order of the runs. Raises what the model raises when it cannot be asked;
        then no parameter was touched.
        """
        from lg_textgrad.backward import abackward

        return await abackward(self, critic)


class Objective:
    """Reduces what evaluators say of a run to one score in [0, 1].

    `evaluators` are functions that LangSmith's `evaluate` accepts, sync or async. `weights` says
    how much each feedback key counts (default 1 each); the score is the weighted mean.
    """

    def __init__(
        self, evaluators: Iterable[Evaluator], *, weights: Mapping[str, float] | None = None
    ) -> None:
        self.evaluators = list(evaluators)
        self.weights = dict(weights or {})
        if not self.evaluators:
            raise ConfigurationError("An objective needs at least one evaluator.")
        for evaluator in self.evaluators:
            if not callable(evaluator):
                raise ConfigurationError(
                    f"An evaluator must be a function, not {type(evaluator).__name__}."
                )
        for key, weight in self.weights.items():
            if weight < 0:
                raise ConfigurationError(f"The weight of '{key}' must not be negative: {weight}.")

    @property
    def fingerprint(self) -> str:
        """A hash of the evaluators' code and the weights: feedback is kept under it."""
        return digest("objective", [_source(e) for e in self.evaluators], self.weights)[:16]

    def __call__(self, runs: Iterable[Run]) -> Loss:
        """`acall` for sync code."""
        return run_sync(self.acall(runs))

    async def acall(self, runs: Iterable[Run]) -> Loss:
        """Score the runs, all at once. Cost: the model calls that the evaluators make.

        A run that failed scores 0 without asking anyone, and its error is the comment. Raises
        `EvaluatorError` when an evaluator raises or returns something that is no score.
        """
        async with task_group() as group:
            tasks = [group.create_task(self._score(run)) for run in runs]
        return Loss(tuple(task.result() for task in tasks))

    async def _score(self, run: Run) -> Scored:
        ledger = ledger_in_scope()
        if ledger is not None:
            known = ledger.store.get_feedback(run.id, self.fingerprint)
            if known is not None:
                return Scored(run, self._reduce(known, run), known)
        if run.error is not None:
            feedback = [Feedback("error", 0.0, f"The run failed: {run.error}")]
        else:
            feedback = []
            for evaluator in self.evaluators:
                feedback.extend(await _ask(evaluator, run))
        score = self._reduce(feedback, run)
        if ledger is not None:
            ledger.store.put_feedback(run.id, self.fingerprint, score, feedback)
        return Scored(run, score, tuple(feedback))

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
            raise EvaluatorError(
                f"No evaluator gave a score for example '{run.example.id}'; at least one must "
                "return a number between 0 and 1, or a dict with 'score'.",
                run_id=run.id,
            )
        return total / weight


async def _ask(evaluator: Evaluator, run: Run) -> list[Feedback]:
    outputs = ReadTrackingDict(run.outputs or {})
    name = _name(evaluator)
    arguments = _arguments(evaluator, run, outputs)
    ledger = ledger_in_scope()
    try:
        with isolated():
            if ledger is None:
                result = await _call(evaluator, arguments)
            else:
                scope = BoundaryScope(ledger, kind="judge", sample=run.sample)
                with pay_through(scope):
                    result = await _call(evaluator, arguments)
                if scope.failure is not None:
                    raise scope.failure
    except Exception as error:
        if type(error).__module__.startswith("lg_textgrad"):
            raise
        raise EvaluatorError(
            f"The evaluator '{name}' raised {type(error).__name__} on example "
            f"'{run.example.id}': {error}. Mend the evaluator and resume; the runs are kept.",
            run_id=run.id,
        ) from error
    reads = frozenset(outputs.keys_read) or None
    return [
        Feedback(f.key, f.score, f.comment, reads)
        for f in read_result(result, name, run.example.id)
    ]


async def _call(evaluator: Evaluator, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = arguments
    if inspect.iscoroutinefunction(evaluator) or inspect.iscoroutinefunction(
        getattr(evaluator, "__call__", None)  # noqa: B004 - an object with an async __call__
    ):
        return await evaluator(*args, **kwargs)
    # A judge may block on the network, so sync evaluators don't hold the loop.
    context = copy_context()
    result = await asyncio.get_running_loop().run_in_executor(
        None, lambda: context.run(evaluator, *args, **kwargs)
    )
    return await result if inspect.isawaitable(result) else result


def _arguments(
    evaluator: Evaluator, run: Run, outputs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what to call the evaluator with: LangSmith's names, or (run, example) by position."""
    shown = replace(run, outputs=outputs)
    values = {
        "run": shown,
        "example": run.example,
        "inputs": dict(run.example.inputs),
        "outputs": outputs,
        "reference_outputs": dict(run.example.outputs or {}),
        "attachments": {},
    }
    try:
        parameters = inspect.signature(evaluator).parameters.values()
    except (TypeError, ValueError):
        return (shown, run.example), {}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return (), {k: values[k] for k in ("inputs", "outputs", "reference_outputs")}
    unknown = [p for p in named if p.name not in _ARGUMENTS and p.default is p.empty]
    if unknown:
        positional = [
            p for p in named if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty
        ]
        required = [p for p in named if p.default is p.empty]
        # Two names of the user's own are (run, example); one beside ours is a slip.
        ours = {p.name for p in positional} & set(_ARGUMENTS[2:])
        if len(positional) == 2 and len(required) == 2 and not ours:
            return (shown, run.example), {}
        raise EvaluatorError(
            f"The evaluator '{_name(evaluator)}' asks for '{unknown[0].name}'; evaluators take any "
            f"of {', '.join(_ARGUMENTS)}, or two positional arguments (run, example)."
        )
    return (), {p.name: values[p.name] for p in named if p.name in values}


def read_result(result: Any, name: str, example: str) -> list[Feedback]:
    """Return an evaluator's result, in any of LangSmith's shapes, as Feedback.

    Raises `EvaluatorError` for what is no score: nothing, a number outside [0, 1], another type.
    """
    if hasattr(result, "model_dump"):
        result = result.model_dump()
    if isinstance(result, Mapping) and "results" in result:
        result = list(result["results"])
    if isinstance(result, list | tuple):
        found = [f for part in result for f in read_result(part, name, example)]
        if not found:
            raise _nonsense(name, example, "an empty list")
        return found
    if isinstance(result, bool | int | float):
        return [Feedback(name, _score_of(result, name, example))]
    if isinstance(result, str):
        return [Feedback(name, None, result)]
    if isinstance(result, Mapping):
        key = str(result.get("key") or name)
        score = result.get("score")
        comment = str(result.get("comment") or "")
        if score is None and result.get("value") is None and not comment:
            raise _nonsense(name, example, "a dict without 'score'")
        value = result.get("value")
        if score is None and isinstance(value, bool | int | float):
            score = value
        if score is None and value is not None and not comment:
            comment = str(value)
        return [Feedback(key, None if score is None else _score_of(score, name, example), comment)]
    raise _nonsense(name, example, "nothing" if result is None else f"a {type(result).__name__}")


def _score_of(score: Any, name: str, example: str) -> float:
    if not isinstance(score, bool | int | float) or math.isnan(score):
        raise _nonsense(name, example, f"the score {score!r}")
    if not 0 <= score <= 1:
        raise _nonsense(name, example, f"the score {score:g}, which is not between 0 and 1")
    return float(score)


def _nonsense(name: str, example: str, what: str) -> EvaluatorError:
    return EvaluatorError(
        f"The evaluator '{name}' returned {what} for example '{example}'; it must return a number "
        "between 0 and 1, a boolean, or {'key', 'score', 'comment'}."
    )


def _name(evaluator: Evaluator) -> str:
    return str(getattr(evaluator, "__name__", None) or type(evaluator).__name__)


def _source(evaluator: Evaluator) -> str:
    try:
        return _name(evaluator) + "\n" + inspect.getsource(evaluator)
    except (OSError, TypeError):
        return f"{getattr(evaluator, '__module__', '')}.{_name(evaluator)}"
