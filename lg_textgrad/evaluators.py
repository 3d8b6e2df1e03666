"""Evaluators in every shape that LangSmith's `evaluate` takes: how to call one, and what it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad._sync import in_thread
from lg_textgrad.errors import ConfigurationError, EvaluatorError
from lg_textgrad.run import Example, Execution, Run

Evaluator = Callable[..., Any]
"""A function, or an object with `evaluate_run` or `aevaluate_run`."""

_ROW = ("run", "example", "inputs", "outputs", "reference_outputs", "attachments")
_SUMMARY = ("runs", "examples", "inputs", "outputs", "reference_outputs")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DEPTH = 6  # functions inside of functions, when it is told one evaluator from another
_PLAIN = (str, int, float, bool, type(None))

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SeenRun(Run):
    """A run as evaluators see it: what LangSmith's own has is there too."""

    name = "LangGraph"
    run_type = "chain"
    start_time = _EPOCH
    """A run doesn't know when it was; the time between start and end is right."""
    parent_run_id = None
    session_id = None
    serialized = None
    feedback_stats = None
    tags: Sequence[str] = ()

    @classmethod
    def of(cls, run: Run, outputs: Mapping[str, Any] | None = None) -> SeenRun:
        values = {f.name: getattr(run, f.name) for f in fields(Run)}
        return cls(**values | ({} if outputs is None else {"outputs": outputs}))

    @property
    def end_time(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.seconds)

    @property
    def trace_id(self) -> str:
        return self.id

    @property
    def reference_example_id(self) -> str:
        return self.example.id

    @property
    def metadata(self) -> dict[str, Any]:
        return {"candidate": self.candidate, "sample": self.sample}

    @property
    def extra(self) -> dict[str, Any]:
        return {"metadata": self.metadata}

    @property
    def total_tokens(self) -> int:
        return self.usage.tokens

    @property
    def child_runs(self) -> list[Any]:
        """The executions as child runs, with those inside of them, model and tool calls below."""
        return self._children(None)

    def _children(self, parent: str | None) -> list[Any]:
        return [self._child(e) for e in self.executions if e.parent == parent]

    def _child(self, execution: Execution) -> Any:
        calls = [
            _seen(c.model, "llm", {"messages": list(c.messages)}, c.output, c.error)
            for c in execution.model_calls
        ]
        tools = [
            _seen(c.name, "tool", c.inputs, c.output, c.error) for c in execution.tool_calls
        ]
        name = execution.path.rpartition("/")[2]
        below = [*self._children(execution.id), *calls, *tools]
        written = dict(execution.writes)
        seen = _seen(name, "chain", execution.inputs, written, execution.error, below)
        seen.id = execution.id
        return seen


def _seen(
    name: str, kind: str, inputs: Any, outputs: Any, error: str | None, below: Sequence[Any] = ()
) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        run_type=kind,
        inputs=inputs if isinstance(inputs, Mapping) else {"input": inputs},
        outputs=outputs if isinstance(outputs, Mapping) or outputs is None else {"output": outputs},
        error=error,
        child_runs=list(below),
    )


@dataclass(frozen=True, slots=True)
class SeenExample(Example):
    """An example as evaluators see it."""

    attachments: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, example: Example) -> SeenExample:
        return cls(**{f.name: getattr(example, f.name) for f in fields(Example)})


def check_evaluators(evaluators: Sequence[Any], summary: Sequence[Any] = ()) -> None:
    """Raise `ConfigurationError` for what is no evaluator, or one of another sort."""
    for evaluator in (*evaluators, *summary):
        if not callable(evaluator) and not _is_object(evaluator):
            raise ConfigurationError(
                f"An evaluator must be a function, not {type(evaluator).__name__}."
            )
    for evaluator in evaluators:
        names = _names(evaluator)
        if hasattr(evaluator, "compare_runs") or ("runs" in names and "examples" not in names):
            raise ConfigurationError(
                f"The evaluator '{name_of(evaluator)}' compares the runs of several experiments. "
                "An objective scores one run at a time; give an evaluator that takes 'run', or "
                "'outputs' and 'reference_outputs'."
            )
        if "runs" in names:
            raise ConfigurationError(
                f"The evaluator '{name_of(evaluator)}' takes all runs of a batch at once, so it "
                "is a summary evaluator: give it as Objective(..., summary=[...])."
            )


def name_of(evaluator: Evaluator) -> str:
    """Return the key of feedback that has none of its own."""
    bare: Any = evaluator
    while isinstance(bare, partial):
        bare = bare.func
    return str(getattr(bare, "__name__", None) or type(bare).__name__)


async def acall_evaluator(evaluator: Evaluator, run: Run, outputs: Mapping[str, Any]) -> Any:
    """Call the evaluator on a run and return its result. `outputs` are those that it gets to see.

    Sync ones run in a thread, since a judge may block on the network. Raises `EvaluatorError` for
    arguments that nobody has, and what the evaluator raises.
    """
    seen, example = SeenRun.of(run, outputs), SeenExample.of(run.example)
    if _is_object(evaluator):
        awaited = _prefers_async(evaluator)
        method = evaluator.aevaluate_run if awaited else evaluator.evaluate_run  # type: ignore[attr-defined]
        return await _acall(method, ((seen, example), {}))
    values = {
        "run": seen,
        "example": example,
        "inputs": dict(run.example.inputs),
        "outputs": outputs,
        "reference_outputs": dict(run.example.outputs or {}),
        "attachments": {},
    }
    return await _acall(evaluator, _arguments(evaluator, _ROW, values))


async def acall_summary(evaluator: Evaluator, runs: Sequence[Run]) -> Any:
    """Call a summary evaluator on all runs of a batch and return its result."""
    values = {
        "runs": [SeenRun.of(run) for run in runs],
        "examples": [SeenExample.of(run.example) for run in runs],
        "inputs": [dict(run.example.inputs) for run in runs],
        "outputs": [dict(run.outputs or {}) for run in runs],
        "reference_outputs": [dict(run.example.outputs or {}) for run in runs],
    }
    return await _acall(evaluator, _arguments(evaluator, _SUMMARY, values))


async def _acall(function: Callable[..., Any], arguments: Arguments) -> Any:
    args, kwargs = arguments
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    ):
        return await function(*args, **kwargs)
    result = await in_thread(lambda: function(*args, **kwargs))
    return await result if inspect.isawaitable(result) else result


def _is_object(evaluator: Any) -> bool:
    return hasattr(evaluator, "evaluate_run") or hasattr(evaluator, "aevaluate_run")


def _prefers_async(evaluator: Any) -> bool:
    """Return whether the object's own way is the async one; a base class often adds the other."""
    if hasattr(evaluator, "is_async"):
        return bool(evaluator.is_async)
    defined = [
        next((n for n, c in enumerate(type(evaluator).__mro__) if name in vars(c)), None)
        for name in ("aevaluate_run", "evaluate_run")
    ]
    return defined[0] is not None and (defined[1] is None or defined[0] <= defined[1])


def _names(evaluator: Any) -> list[str]:
    try:
        return list(inspect.signature(evaluator).parameters)
    except (TypeError, ValueError):
        return []


def _arguments(
    evaluator: Evaluator, ours: Sequence[str], values: Mapping[str, Any]
) -> Arguments:
    """Return what to call with: by the names that are ours, or the first two by position."""
    first_two = tuple(values[name] for name in ours[:2])
    try:
        parameters = inspect.signature(evaluator).parameters.values()
    except (TypeError, ValueError):
        return first_two, {}
    given = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in given if p.default is p.empty]
    unknown = [p for p in required if p.name not in ours]
    if unknown:
        # Two names of the user's own are the first two; one beside ours is a slip.
        slip = {p.name for p in required} & set(ours[2:])
        by_position = all(p.kind is not p.KEYWORD_ONLY for p in required)
        if len(required) == 2 and by_position and not slip:
            return first_two, {}
        raise EvaluatorError(
            f"The evaluator '{name_of(evaluator)}' asks for '{unknown[0].name}'; evaluators take "
            f"any of {', '.join(ours)}, or two positional arguments ({ours[0]}, {ours[1]})."
        )
    found = [p for p in given if p.name in values]
    args = tuple(values[p.name] for p in found if p.kind is p.POSITIONAL_ONLY)
    kwargs = {p.name: values[p.name] for p in found if p.kind is not p.POSITIONAL_ONLY}
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        rest = ("inputs", "outputs", "reference_outputs")
        kwargs |= {n: values[n] for n in rest if n not in kwargs}
    return args, kwargs


def identity_of(evaluator: Evaluator) -> str:
    """Return a hash of what decides the evaluator's results, as far as that can be seen.

    Its source, and what it holds on to: an evaluator made by a factory, such as openevals' judges,
    has its prompt and model only there. Lists and dicts don't count, since many an evaluator notes
    something in one.
    """
    return digest("evaluator", _described(evaluator, _DEPTH, set()))


def _described(value: Any, depth: int, seen: set[int]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if depth == 0 or id(value) in seen:
        return f"{type(value).__module__}.{type(value).__qualname__}"
    seen = seen | {id(value)}

    def inside(part: Any) -> Any:
        return _described(part, depth - 1, seen)

    if isinstance(value, tuple):
        return [inside(v) for v in value]
    if isinstance(value, partial):
        named = {n: inside(v) for n, v in sorted(value.keywords.items())}
        return [inside(value.func), inside(value.args), named]
    if inspect.isfunction(value) or inspect.ismethod(value):
        function = inspect.unwrap(value)
        held = _held(function)
        own = inside(value.__self__) if inspect.ismethod(value) else None
        return [_source(function), {n: inside(v) for n, v in sorted(held.items())}, own]
    if callable(value) or _is_object(value):
        held = getattr(value, "__dict__", {})
        return [_source(type(value)), {n: inside(v) for n, v in sorted(held.items())}]
    names = ("model", "model_name", "temperature", "template", "messages")
    told = {n: inside(getattr(value, n)) for n in names if hasattr(value, n)}
    return [f"{type(value).__module__}.{type(value).__qualname__}", told]


def _held(function: Any) -> dict[str, Any]:
    """Return the variables of the functions around it that a function uses."""
    found = {}
    code = getattr(function, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False
    ):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # it is not set yet
            continue
    return found


def _source(value: Any) -> str:
    try:
        return f"{getattr(value, '__qualname__', '')}\n{inspect.getsource(value)}"
    except (OSError, TypeError):
        module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
        return f"{module}.{name}"
