"""What LangSmith has to do with one training: everything that was asked for, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from lg_textgrad._hashing import to_plain
from lg_textgrad.approval import Approver
from lg_textgrad.errors import LangSmithError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.langsmith.approving import Queue
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.datasets import PARTS, divide, read_dataset
from lg_textgrad.langsmith.hub import Hub
from lg_textgrad.langsmith.journal import Journal, Reporting
from lg_textgrad.langsmith.outbox import Delivery, Outbox
from lg_textgrad.langsmith.promotion import begin, go_on, keep_hub, push_accepted, said_of, to_push
from lg_textgrad.langsmith.reporting import Reporter, links
from lg_textgrad.langsmith.traces import (
    Choice,
    Traces,
    keep_traces,
    kept_traces,
    need_traces,
    parse_ranges,
    parse_since,
    read_traces,
)
from lg_textgrad.objective import Objective, masked
from lg_textgrad.optim import FromRuns, Optimizer
from lg_textgrad.parameter import candidate_hash
from lg_textgrad.redaction import Redact, Redaction
from lg_textgrad.run import Example
from lg_textgrad.store import Store

TERMINAL = "terminal"
"""What `approve` says for a person at the terminal; anything else is an annotation queue."""
_DATASET = "dataset"
_REVIEWS = "reviews"

Splits = dict[str, list[Example]]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; the names are those of the settings."""

    dataset: str | None = None
    dataset_splits: str | None = None
    dataset_version: str | None = None
    train_rows: int | None = None
    val_rows: int | None = None
    test_rows: int | None = None
    langsmith: bool = False
    langsmith_project: str | None = None
    hub: Sequence[str] = ()
    hub_version: str | None = None
    traces: str | None = None
    since: str | None = None
    until: str | None = None
    trace_filter: str | None = None
    feedback: Sequence[str] = ()
    feedback_range: Sequence[str] = ()
    queue: str | None = None
    trace_limit: int = 50
    approve: str | None = None
    approve_wait: float | None = None

    @property
    def project(self) -> str:
        return self.langsmith_project or "lg_textgrad"

    def choice(self, project: str) -> Choice:
        """Return which traces of `project` to learn from.

        Raises `ConfigurationError` for what is no time, condition, range or number of traces.
        """
        now = datetime.now(UTC)
        return Choice(
            project,
            since=parse_since(self.since, now) if self.since else None,
            until=parse_since(self.until, now) if self.until else None,
            where=self.trace_filter,
            feedback=tuple(self.feedback),
            queue=self.queue,
            ranges=parse_ranges(self.feedback_range),
            limit=self.trace_limit,
        )


class Session:
    """A context manager around one training. Without options it does nothing and asks nobody.

    `say` tells people a line. Leaving it waits at most `seconds` for the upload. `redact` is the
    trainer's hook, since traces and a dataset's rows are kept too.
    """

    def __init__(
        self,
        options: Options,
        store: Store,
        graph: TrainableGraph,
        objective: Objective,
        *,
        say: Callable[[str], None] = lambda _: None,
        terminal: Approver | None = None,
        seconds: float = 30.0,
        redact: Redact | None = None,
    ) -> None:
        self.redaction = Redaction(redact)
        self.options = options
        self.store = store
        self.graph = graph
        self.objective = objective
        self._say = say
        self._terminal = terminal
        self._seconds = seconds
        self._held = ExitStack()
        self._langsmith: LangSmith | None = None
        self._reporter: Reporter | None = None
        self._traces: Traces | None = None
        self._dataset: dict[str, Any] | None = None
        self._hub: dict[str, Any] | None = None
        self._screen: Sequence[Example] = ()
        self.delivery = Delivery()
        self.told: dict[str, Any] = {}
        """What `finish` returns, as far as it has come."""

    @property
    def langsmith(self) -> LangSmith:
        """The connection, made when it is first needed."""
        if self._langsmith is None:
            self._langsmith = self._held.enter_context(LangSmith())
        return self._langsmith

    def __enter__(self) -> Self:
        if self.options.hub:
            version = self.options.hub_version or "latest"
            if not go_on(self.store, self.graph):
                hub = Hub(self.langsmith)
                self._hub = begin(self.store, hub, self.graph, self.options.hub, version)
                self._say(said_of(self._hub))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._reporter is not None:
                self.delivery = self._reporter.close(self._seconds if error is None else 5.0)
        finally:
            self._held.close()

    def splits(self, given: Mapping[str, Sequence[Example]]) -> Splits:
        """Return the examples of each part: those of files where there are any, else LangSmith's.

        With traces to learn from, these are what is trained on; training examples then only say
        which proposals are worth a look.
        """
        splits: Splits = {part: list(given.get(part, ())) for part in PARTS}
        from_dataset: list[str] = []
        if self.options.dataset is not None:
            self._dataset = self._read_dataset(self.options.dataset)
            for part, rows in self._dataset["parts"].items():
                if not splits[part]:
                    wanted: int | None = getattr(self.options, f"{part}_rows")
                    splits[part] = [Example(**row) for row in rows[:wanted]]
                    from_dataset.append(part)
        if self.options.traces is not None:
            self._traces = self._read_traces(self.options.traces)
            self._screen = splits["train"]
            splits["train"] = [s.run.example for s in self._traces.scored]
        if self.options.langsmith:
            reporting = Reporting(
                self.options.project,
                self.objective.fingerprint,
                self._dataset and self._dataset["named"],
                tuple(from_dataset),
            )
            sender = self._held.enter_context(LangSmith(patient=False))
            self._reporter = Reporter(self.store, reporting, sender)
        return splits

    def _read_dataset(self, name: str) -> dict[str, Any]:
        asked = [name, self.options.dataset_splits, self.options.dataset_version]
        kept: dict[str, Any] | None = self.store.get_meta(_DATASET)
        again = kept is not None and kept["asked"] == asked
        if kept is not None and again and kept["parts"] is not None:
            return kept  # a run that goes on needs nobody for it
        version = self.options.dataset_version
        if kept is not None and again:
            name, version = kept["named"]["id"], kept["named"]["as_of"]
        dataset = read_dataset(self.langsmith, name, version)
        parts = divide(dataset, self.options.dataset_splits)
        counts = ", ".join(f"{len(rows)} {part}" for part, rows in parts.items())
        self._say(f"dataset {dataset.name} as of {dataset.as_of}: {counts}")
        return {
            "asked": asked,
            "named": dataset.named(),
            "parts": {part: [to_plain(e) for e in rows] for part, rows in parts.items()},
        }

    def _keepable(self, dataset: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a dataset is kept: its version alone, where something must be masked.

        The graph needs the rows as they are, so a run that goes on reads that version again.
        """
        rows = [Example(**row) for part in dataset["parts"].values() for row in part]
        clean = all(self.redaction.example(row) is row for row in rows)
        return {**dataset, "parts": dataset["parts"] if clean else None}

    def _read_traces(self, project: str) -> Traces:
        kept = kept_traces(self.store, self.graph)
        if kept is not None:
            return kept
        choice = self.options.choice(project)
        traces = read_traces(self.langsmith, choice, self.graph)
        need_traces(traces, choice)
        traces = replace(traces, scored=tuple(masked(s, self.redaction) for s in traces.scored))
        left = "".join(f", {count} {reason}" for reason, count in traces.skipped.items())
        self._say(f"traces of {project}: {len(traces.scored)} to learn from{left}")
        return traces

    def optimizer(self, optimizer: Optimizer, steps: int, batch_size: int) -> Optimizer:
        """Return the optimizer, which learns from the traces where there are any."""
        if self._traces is None:
            return optimizer
        return FromRuns(
            optimizer,
            self._traces.scored,
            steps=steps,
            batch_size=batch_size,
            screen=self._screen,
        )

    @property
    def approver(self) -> Approver | None:
        """Whoever has to agree before a candidate is accepted; None when nobody has to."""
        if self.options.approve is None:
            return None
        if self.options.approve == TERMINAL:
            return self._terminal
        identity = self.store.get_meta(_REVIEWS)
        if identity is None:
            identity = uuid4().hex
            self.store.put_meta(_REVIEWS, identity)
        return Queue(
            self.langsmith,
            self.options.approve,
            f"{self.options.project}-reviews",
            UUID(identity),
            wait=self.options.approve_wait,
        )

    def on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take note of an event of the trainer."""
        if kind == "start":  # only now is it known that the store is this run's
            if self._dataset is not None:
                self.store.put_meta(_DATASET, self._keepable(self._dataset))
            if self._traces is not None and kept_traces(self.store, self.graph) is None:
                keep_traces(self.store, self._traces)
            if self._hub is not None:
                keep_hub(self.store, self._hub)
        if self._reporter is not None:
            self._reporter(kind, data)

    def finish(self) -> dict[str, Any]:
        """Send what is left, put what was accepted on the hub, and return what there is to tell.

        An outage is told and costs nothing but the upload: `make_up` does it later. Raises
        `ConfigurationError` where a prompt moved on, or cannot hold its new text.
        """
        told: dict[str, Any] = {}
        found: dict[str, str] = {}
        if self._reporter is not None:
            self.delivery = self._reporter.close(self._seconds)
            found = links(self._reporter.journal)
            told |= {"experiments": found, "sent": self.delivery.sent, "left": self.delivery.left}
            self.told = {"langsmith": told}
        if self.options.hub:
            told["pushed"] = None
            self.told = {"langsmith": told}
            try:
                hub, best = Hub(self.langsmith), _best(self.store, found)
                told["pushed"] = push_accepted(self.store, hub, best)
            except LangSmithError as error:
                self._say(f"The prompts are not on the hub yet: {error}")
        return self.told


def _best(store: Store, found: Mapping[str, str]) -> dict[str, str]:
    """Return the validation experiment of what was accepted, which is what a commit points to."""
    result = store.get_meta("result") or {"parameters": {}}
    texts = {name: row["after"] for name, row in result["parameters"].items()}
    key = f"val/{candidate_hash(texts)}"
    return {key: found[key]} if found.get(key) else {}


def make_up(store: Store, langsmith: LangSmith) -> dict[str, Any]:
    """Send what a run still has for LangSmith: experiments, feedback, prompts. Returns what came.

    Raises `LangSmithError` when there are prompts for the hub and it does not answer.
    """
    journal = Journal(store)
    delivery = Outbox(store, journal, langsmith).deliver()
    found = links(journal) if journal.reporting is not None else {}
    told: dict[str, Any] = {
        "sent": delivery.sent,
        "left": delivery.left,
        "refused": delivery.refused,
        "error": None if delivery.error is None else str(delivery.error),
        "experiments": found,
        "pushed": [],
    }
    if to_push(store) and delivery.error is None:
        told["pushed"] = push_accepted(store, Hub(langsmith), _best(store, found))
    return told


def with_settings(settings: Mapping[str, Any]) -> Options:
    """Return the options among a configuration's settings."""
    names = Options.__dataclass_fields__
    return replace(Options(), **{n: v for n, v in settings.items() if n in names and v is not None})
