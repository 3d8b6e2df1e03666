"""Production traces as scored runs: rebuilt from what LangSmith kept, judged by its feedback."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lg_textgrad._hashing import canonical, digest, to_plain
from lg_textgrad.errors import ConfigurationError, DataError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.queries import Queries, StoredRun
from lg_textgrad.objective import Loss, Scored
from lg_textgrad.parameter import candidate_hash
from lg_textgrad.recording.langsmith import recorded_from
from lg_textgrad.run import Example, Feedback, Run
from lg_textgrad.store import Store

_CONDITION = re.compile(r"\s*([^<>=]+?)\s*(?:(<=|>=|<|>|=)\s*(-?\d+(?:\.\d+)?))?\s*")
_COMPARISON = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "=": "eq"}
_AGO = re.compile(r"(\d+)\s*([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_RANGE = re.compile(r"\s*([^=]+?)\s*=\s*(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)\s*")
_IDS_AT_ONCE = 50
TRACES = "traces"
"""Where the store keeps the traces that a run learns from."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which traces to learn from: all of these have to hold.

    Raises `ConfigurationError` for conditions that make no sense.
    """

    project: str
    since: datetime | None = None
    until: datetime | None = None
    where: str | None = None
    """A filter in LangSmith's language, on the root run."""
    feedback: Sequence[str] = ()
    """`KEY<X`, `KEY=X`, …, or `KEY` for any: each must hold, and these keys make the loss. Without
    any, all keys do."""
    queue: str | None = None
    """The name of an annotation queue that the trace must be in."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Feedback key -> worst and best score, where that isn't 0 to 1."""
    limit: int = 50
    """At most so many traces, the youngest."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigurationError(f"'trace_limit' must be at least 1, not {self.limit}.")
        for text in self.feedback:
            _parsed(text)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rebuilt run is in LangSmith."""

    trace: str
    session: str
    runs: Mapping[str, str]
    """Execution -> id of the run that stands for it."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What was read."""

    scored: Sequence[Scored]
    """One for each trace, with its feedback as the loss; the youngest first."""
    places: Mapping[str, Place]
    """Run id -> where it is."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Why traces were left out -> how many."""

    @property
    def loss(self) -> Loss:
        """The traces as a loss: `traces.loss.backward(critic)` goes over them."""
        return Loss(tuple(self.scored))


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time that `24h`, `7d`, `90m`, `2w` ago or an ISO time is."""
    found = _AGO.fullmatch(text.strip())
    if found is not None:
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(
            f"'{text}' is no time; write 24h, 7d, 90m, 2w, or one like 2026-01-31T06:00:00Z."
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def parse_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return key -> worst and best score, from texts like `stars=1..5`."""
    found = {}
    for text in texts:
        parts = _RANGE.fullmatch(text)
        if parts is None or float(parts[2]) == float(parts[3]):
            raise ConfigurationError(
                f"'{text}' is no range of scores; write the worst and the best, like stars=1..5."
            )
        found[parts[1]] = float(parts[2]), float(parts[3])
    return found


def read_traces(langsmith: LangSmith, choice: Choice, graph: TrainableGraph) -> Traces:
    """Return the chosen traces as scored runs of `graph`, without running anything.

    The loss is the feedback that people and evaluators left there, on the trace or on a step of
    it; a trace that failed scores 0. Left out are traces without a score and those in which no
    trainable prompt of the graph, as it is now, was sent to a model. Raises `DataError` for a
    project or queue that is not there.
    """
    queries = Queries(langsmith)
    conditions = [_parsed(text) for text in choice.feedback]
    parts = [choice.where] if choice.where else []
    parts += [_filter(*condition) for condition in conditions]
    where = None if not parts else parts[0] if len(parts) == 1 else f"and({', '.join(parts)})"
    project = queries.project_id(choice.project)
    named = None
    if choice.queue is not None:
        named = [i["run_id"] for i in queries.queued(choice.queue) if i["project_id"] == project]
        if not named:
            return Traces((), {}, {"not in the queue": 0})
    roots = queries.runs(
        project, where=where, root=True, ids=named, since=choice.since, until=choice.until,
        limit=choice.limit,
    )  # fmt: skip
    keys = [key for key, _, _ in conditions] or None
    reader = _Reader(langsmith, queries, graph, project, keys, choice.ranges)
    found: list[Scored] = []
    places: dict[str, Place] = {}
    skipped: dict[str, int] = {}
    for root in roots:
        scored, place, reason = reader.read(root)
        if scored is None:
            skipped[reason] = skipped.get(reason, 0) + 1
        elif place is not None:
            found.append(scored)
            places[scored.run.id] = place
    return Traces(tuple(found), places, skipped)


def _parsed(text: str) -> tuple[str, str | None, float]:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"'{text}' is no condition on feedback; write KEY<0.5, KEY>=3, KEY=0, or KEY alone."
        )
    return found[1], found[2], float(found[3] or 0)


def _filter(key: str, comparison: str | None, score: float) -> str:
    quoted = key.replace('"', '\\"')
    about = f'eq(feedback_key, "{quoted}")'
    if comparison is None:
        return about
    return f"and({about}, {_COMPARISON[comparison]}(feedback_score, {score:.15g}))"


class _Reader:
    """Reads one trace at a time."""

    def __init__(
        self,
        langsmith: LangSmith,
        queries: Queries,
        graph: TrainableGraph,
        project: str,
        keys: Sequence[str] | None,
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        self.langsmith = langsmith
        self.queries = queries
        self.graph = graph
        self.project = project
        self.keys = keys
        self.ranges = dict(ranges)
        self.texts = graph.candidate()
        self.trainable = {n for n, p in graph.parameters.items() if p.requires_grad}
        self.readers = {n: b.held(n).nodes for b in graph.bindings for n in b.parameters}

    def read(self, root: StoredRun) -> tuple[Scored | None, Place | None, str]:
        """Return the scored run and its place, or why there is none."""
        if not root.get("end_time"):
            return None, None, "not ended"
        runs = self.queries.runs(self.project, trace=str(root["trace_id"]))
        told = self._feedback([str(run["id"]) for run in runs])
        recorded, usage, seconds = recorded_from(runs, self.graph.graph, self.texts, self.readers)
        read = {name for e in recorded.executions for name in e.prompts}
        if not read & self.trainable:
            return None, None, "ran under other prompts"
        places = _places(runs, {e.namespace: e.id for e in recorded.executions})
        failed = (e.id for e in reversed(recorded.executions) if e.error)
        run = Run(
            id=digest("trace", self.project, str(root["trace_id"]))[:32],
            example=Example(
                id=str(root["trace_id"]),
                inputs=to_plain(root.get("inputs") or {}),
                outputs=next((f["correction"] for f in told if _is_output(f)), None),
                metadata={"langsmith_project": self.project},
            ),
            candidate=candidate_hash(self.texts),
            outputs=recorded.outputs,
            executions=recorded.executions,
            error=recorded.error,
            failed_in=next(failed, None) if recorded.error else None,
            usage=usage,
            seconds=seconds,
            warnings=recorded.warnings,
            accumulating=recorded.accumulating,
            parameters=self.graph.parameters,
        )
        steps = {run_id: execution for execution, run_id in places.items()}
        feedback = [self._told(f, steps) for f in told]
        if run.error is not None:
            feedback.insert(0, Feedback("error", 0.0, f"The run failed: {run.error}"))
        scores = [f.score for f in feedback if f.score is not None]
        if not scores:
            return None, None, "no score"
        score = 0.0 if run.error is not None else math.fsum(scores) / len(scores)
        place = Place(str(root["trace_id"]), self.project, places)
        return Scored(run, score, tuple(feedback)), place, ""

    def _feedback(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _IDS_AT_ONCE):
            asked = list(ids[start : start + _IDS_AT_ONCE])
            rows = self.langsmith.call(
                lambda c, asked=asked: list(c.list_feedback(run_ids=asked))  # type: ignore[misc]
            )
            found.extend(row.model_dump(mode="json") for row in rows)
        wanted = [
            f
            for f in found
            if not _is_ours(f) and (self.keys is None or f["key"] in self.keys)
        ]
        return sorted(wanted, key=lambda f: (f["created_at"] or "", f["id"]))

    def _told(self, told: Mapping[str, Any], steps: Mapping[str, str]) -> Feedback:
        said = [str(told["comment"])] if told.get("comment") else []
        if isinstance(told.get("value"), str) and told["value"] not in said:
            said.append(told["value"])
        if told.get("correction"):
            said.append(f"It should have been: {_readable(told['correction'])}")
        where = steps.get(str(told["run_id"]))
        if where is not None:
            said.insert(0, f"About the step {where}:")
        score = told.get("score")
        return Feedback(
            told["key"],
            None if score is None else self._scaled(told["key"], float(score)),
            "\n".join(said),
        )

    def _scaled(self, key: str, score: float) -> float:
        """Return a score in [0, 1], by the range that was given or that LangSmith has for it."""
        if key not in self.ranges:
            self.ranges[key] = self._range(key)
        worst, best = self.ranges[key]
        scaled = (score - worst) / (best - worst)
        if not -1e-9 <= scaled <= 1 + 1e-9:
            raise ConfigurationError(
                f"Feedback '{key}' has the score {score:g}, which is not between {worst:g} and "
                f"{best:g}; say what is worst and best, for instance --feedback-range {key}=1..5."
            )
        return min(1.0, max(0.0, scaled))

    def _range(self, key: str) -> tuple[float, float]:
        configs = self.langsmith.find(lambda c: list(c.list_feedback_configs(feedback_key=[key])))
        # Of several, what is said without naming one means the enforced one, else the first.
        ranked = sorted(
            configs or (),
            key=lambda c: (not getattr(c, "is_enforced", 0), not getattr(c, "is_first", 0)),
        )
        for config in ranked[:1]:
            told: Any = config.feedback_config or {}
            low, high = told.get("min"), told.get("max")
            values = [c["value"] for c in told.get("categories") or ()]
            if values and (low is None or high is None):
                low, high = min(values), max(values)
            if low is None or high is None or low == high:
                low, high = 0.0, 1.0
            worse = bool(getattr(config, "is_lower_score_better", False))
            return (float(high), float(low)) if worse else (float(low), float(high))
        return 0.0, 1.0


def _readable(correction: Any) -> str:
    return correction if isinstance(correction, str) else canonical(correction)


def _is_ours(told: Mapping[str, Any]) -> bool:
    """Return whether this is a gradient, put there by a run that learned from the trace before."""
    return "gradient" in ((told.get("feedback_source") or {}).get("metadata") or {})


def _is_output(told: Mapping[str, Any]) -> bool:
    return isinstance(told.get("correction"), dict)


def _places(runs: Sequence[StoredRun], executions: Mapping[str, str]) -> dict[str, str]:
    """Return execution -> the id of its run; of several attempts the last."""
    spaces: dict[str, Any] = {
        str(r["id"]): ((r.get("extra") or {}).get("metadata") or {}).get("langgraph_checkpoint_ns")
        for r in runs
    }
    found: dict[str, str] = {}
    for run in sorted(runs, key=lambda r: str(r["dotted_order"])):
        own = spaces[str(run["id"])]
        if own in executions and own != spaces.get(str(run.get("parent_run_id"))):
            found[executions[own]] = str(run["id"])
    return found


def keep_traces(store: Store, traces: Traces) -> None:
    """Keep the traces in the run's store, so that it can go on with the very same ones."""
    for scored in traces.scored:
        store.put_run(scored.run)
    rows = [
        {
            "run": s.run.id,
            "example": to_plain(s.run.example),
            "score": s.score,
            "feedback": [[f.key, f.score, f.comment] for f in s.feedback],
            "place": to_plain(traces.places[s.run.id]),
        }
        for s in traces.scored
    ]
    store.put_meta(TRACES, {"traces": rows, "skipped": dict(traces.skipped)})


def kept_traces(store: Store, graph: TrainableGraph) -> Traces | None:
    """Return the traces that the run began with; None for a run that has none."""
    kept = store.get_meta(TRACES)
    if kept is None:
        return None
    found: list[Scored] = []
    places: dict[str, Place] = {}
    for row in kept["traces"]:
        run = store.get_run(row["run"], Example(**row["example"]))
        if run is not None:
            told = tuple(Feedback(key, score, comment) for key, score, comment in row["feedback"])
            found.append(Scored(replace(run, parameters=graph.parameters), row["score"], told))
            places[run.id] = Place(**row["place"])
    return Traces(tuple(found), places, kept["skipped"])


def need_traces(traces: Traces, choice: Choice) -> None:
    """Raise `DataError` when there is nothing to learn from."""
    if traces.scored:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in traces.skipped.items() if count)
    raise DataError(
        f"No trace of the project '{choice.project}' can be learned from"
        + (f" (left out: {reasons})" if reasons else " (none fits the time, filter and feedback)")
        + ". Traces have to have run under the graph's prompts as they are now; pull those with "
        "--hub, or widen --since and --feedback."
    )
