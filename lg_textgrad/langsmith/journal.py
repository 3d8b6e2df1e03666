"""What a run has done that LangSmith is to know, and what LangSmith is known to have.

Kept in the run's own store as events, which are only ever added. What is to be sent is worked out
from them and from the runs, feedback, gradients and results in the store, so an upload that failed
can be made up for at any time, by any process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID, uuid4, uuid5

from lg_textgrad._hashing import to_plain
from lg_textgrad.objective import Scored
from lg_textgrad.run import Example, Feedback
from lg_textgrad.store import Store

_META = "langsmith"
_EVENT = "langsmith"

_SPLITS = {"baseline": "val", "val": "val", "batch": "train", "test": "test"}
"""First word of a scoring's purpose -> whose experiment it is; what isn't here has none."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """What is reported, and where to."""

    project: str
    """What the names of experiments begin with."""
    objective: str
    """The fingerprint of the objective that the feedback is from."""
    dataset: Mapping[str, str] | None = None
    """`id`, `name`, `as_of` of the LangSmith dataset that examples are from; None without one."""
    splits: Sequence[str] = ()
    """Which of train, val and test are from the dataset."""
    id: str = ""
    """Makes the ids of everything that this run sends."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One candidate on one split."""

    split: str
    candidate: str

    @property
    def key(self) -> str:
        return f"{self.split}/{self.candidate}"


@dataclass(frozen=True, slots=True)
class Noted:
    """A run of an experiment."""

    experiment: Experiment
    run_id: str
    example: str
    at: float
    """When it was scored, in seconds since 1970."""
    score: float


class Journal:
    """The journal of one run directory; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._guard = threading.Lock()
        self._examples: dict[tuple[str, str], Example] = {}
        self._runs: dict[tuple[str, str], Noted] = {}
        self._ended: dict[str, float] = {}
        self._summaries: dict[str, list[Feedback]] = {}
        self._sent: dict[str, Any] = {}
        found = store.get_meta(_META)
        self.reporting: Reporting | None = Reporting(**found) if found else None
        for event in store.events():
            if event["kind"] == _EVENT:
                self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        what = event["what"]
        if what == "example":
            example = Example(**event["example"])
            self._examples[event["split"], example.id] = example
        elif what == "run":
            noted = Noted(
                Experiment(event["split"], event["candidate"]),
                event["run"], event["example"], event["when"], event["score"],
            )  # fmt: skip
            self._runs[noted.experiment.key, noted.run_id] = noted
        elif what == "end":
            self._ended[event["experiment"]] = event["when"]
        elif what == "summary":
            told = [Feedback(f["key"], f["score"], f["comment"]) for f in event["feedback"]]
            self._summaries[event["experiment"]] = told
        elif what == "sent":
            self._sent.update(event["items"])

    def _add(self, what: str, **more: Any) -> None:
        event = {"what": what, **more}
        self.store.add_event(_EVENT, event)
        self._take(event)

    def begin(self, reporting: Reporting) -> Reporting:
        """Set what is reported, once for the run directory; a later call changes nothing."""
        with self._guard:
            if self.reporting is None:
                self.reporting = replace(reporting, id=uuid4().hex)
                self.store.put_meta(_META, asdict(self.reporting))
            return self.reporting

    def id_for(self, *parts: str) -> UUID:
        """Return the id of something that is sent: the same parts, the same id."""
        assert self.reporting is not None, "a journal is begun before anything is named"
        return uuid5(UUID(self.reporting.id), "/".join(parts))

    def note_run(self, purpose: str, scored: Scored) -> bool:
        """Note that a run was scored. Returns whether that was news."""
        run = scored.run
        experiment = experiment_of(purpose, run.candidate)
        if experiment is None:
            return False
        split = experiment.split
        with self._guard:
            if (experiment.key, run.id) in self._runs:
                return False
            if (split, run.example.id) not in self._examples:
                self._add("example", split=split, example=to_plain(run.example))
            self._add(
                "run", split=split, candidate=run.candidate, run=run.id, example=run.example.id,
                score=scored.score, when=time.time(),
            )  # fmt: skip
        return True

    def note_end(self, experiment: Experiment) -> bool:
        """Note that all runs of an experiment are there. Returns whether that was news."""
        with self._guard:
            if experiment.key in self._ended:
                return False
            self._add("end", experiment=experiment.key, when=time.time())
            return True

    def note_summary(self, experiment: Experiment, feedback: Sequence[Feedback]) -> None:
        """Note what the summary evaluators said of all runs of an experiment."""
        with self._guard:
            if experiment.key not in self._summaries:
                told = [{"key": f.key, "score": f.score, "comment": f.comment} for f in feedback]
                self._add("summary", experiment=experiment.key, feedback=told)

    def note_sent(self, items: Mapping[str, Any]) -> None:
        """Note what LangSmith has confirmed: item -> what it said of it, as far as that matters."""
        with self._guard:
            self._add("sent", items=dict(items))

    def sent(self, item: str) -> bool:
        return item in self._sent

    def answer(self, item: str) -> Any:
        """Return what LangSmith said when it confirmed an item; None for what it didn't."""
        return self._sent.get(item)

    def example(self, noted: Noted) -> Example:
        """Return the example of a run."""
        return self._examples[noted.experiment.split, noted.example]

    def runs(self) -> list[Noted]:
        """Return the runs of all experiments, in the order in which they were scored."""
        with self._guard:
            return list(self._runs.values())

    def experiments(self) -> list[Experiment]:
        """Return the experiments that have a run, in the order of their first."""
        return list({noted.experiment.key: noted.experiment for noted in self.runs()}.values())

    def ended(self, experiment: Experiment) -> float | None:
        """Return when an experiment ended; None while it goes on."""
        return self._ended.get(experiment.key)

    def summary(self, experiment: Experiment) -> Sequence[Feedback]:
        return self._summaries.get(experiment.key, ())


def experiment_of(purpose: str, candidate: str) -> Experiment | None:
    """Return the experiment that a scoring of the trainer belongs to; None where it has none."""
    split = _SPLITS.get(purpose.split(maxsplit=1)[0])
    return None if split is None else Experiment(split, candidate)


def ended_by(
    kind: str, data: Mapping[str, Any], experiments: Sequence[Experiment]
) -> list[Experiment]:
    """Return those of the experiments that have all their runs when the trainer says this."""
    if kind == "baseline":
        return [e for e in experiments if e.split == "val"]
    if kind == "decision" and data["stage"] == "val":
        return [e for e in experiments if e == Experiment("val", data["proposal"].hash)]
    if kind == "test":
        return [e for e in experiments if e.split == "test"]
    return list(experiments) if kind == "end" else []
