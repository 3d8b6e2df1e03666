"""Sends to LangSmith what a run's journal and store say that it doesn't have yet.

Every item has an id of its own that is made from what it is. So an answer that was lost does no
harm: what is sent again is known there by its id, and taken once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from langsmith import Client
from langsmith.utils import LangSmithNotFoundError

from lg_textgrad.errors import LangSmithError, LangSmithUnavailableError, LGTextGradError
from lg_textgrad.langsmith import bodies
from lg_textgrad.langsmith.connection import LangSmith, scrubbed
from lg_textgrad.langsmith.journal import Experiment, Journal, Noted, Reporting
from lg_textgrad.langsmith.traces import TRACES, Place
from lg_textgrad.objective import feedback_key
from lg_textgrad.parameter import Gradient
from lg_textgrad.store import Store

logger = logging.getLogger(__name__)

OPTIMIZER_KINDS = ("critic", "rewriter", "judge")
"""Model calls that are no part of the graph's runs; they go to a project of their own."""
_PIECE = 100  # runs of one trace in one request
_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to send."""

    name: str
    send: Callable[[], Any]
    """Sends it and returns what of LangSmith's answer is kept; what comes is plain data."""


Chain = Callable[[], Iterable[Item]]
"""Makes items in the order in which they have to go, late, so that few are in memory at once."""


@dataclass(slots=True)
class Delivery:
    """What came of one round."""

    sent: int = 0
    left: int = 0
    """Runs, model calls and ends of experiments that have to wait for another round."""
    refused: list[str] = field(default_factory=list)
    """What LangSmith will not have, and why."""
    error: LGTextGradError | None = None
    """Why the round ended early; None when it didn't."""

    def __str__(self) -> str:
        text = f"{self.sent} sent, {self.left} left"
        return text + (f", {len(self.refused)} refused" if self.refused else "")


class Outbox:
    """What a run directory still has for LangSmith."""

    def __init__(self, store: Store, journal: Journal, langsmith: LangSmith) -> None:
        self.store = store
        self.journal = journal
        self.langsmith = langsmith
        self._secrets = langsmith.secrets
        self._refused: dict[str, str] = {}
        self._after = 0.0
        self._blamed: dict[str, list[Gradient]] = {}

    @property
    def reporting(self) -> Reporting:
        assert self.journal.reporting is not None, "nothing is sent before the journal is begun"
        return self.journal.reporting

    def deliver(self, given_up: Callable[[], bool] = lambda: False) -> Delivery:
        """Send all that is not known to be there, until LangSmith does not answer.

        `given_up` is asked before each thing that is sent.
        """
        delivery = Delivery()
        if self.journal.reporting is None:
            return delivery
        self._blamed = self._gradients()
        for make in (self._experiments, self._contents, self._ends):
            self._round(list(make()), delivery, given_up)
        delivery.left = self.left()
        delivery.refused = [f"{name}: {why}" for name, why in self._refused.items()]
        return delivery

    def left(self) -> int:
        """Return how many runs, model calls, gradients and ends of experiments are still here."""
        self._blamed = self._gradients()
        runs = [n for n in self.journal.runs() if self._unsent(n)]
        traces = [place for place in self._places() if self._blames(*place)]
        calls = [r for r in self._results() if not self.journal.sent(_called(r))]
        ends = [e for e in self.journal.experiments() if self._to_end(e)]
        return len(runs) + len(traces) + len(calls) + len(ends)

    def _unsent(self, noted: Noted) -> bool:
        names = [f"{_at(noted)}/done", *(f"{_at(noted)}/{g.id}" for g in self._blaming(noted))]
        return not all(self.journal.sent(name) for name in names)

    def _blaming(self, noted: Noted) -> list[Gradient]:
        return self._blamed.get(noted.run_id, []) if noted.experiment.split == "train" else []

    def _places(self) -> list[tuple[str, Place]]:
        """Return run id -> where it is, of the production traces that were learned from."""
        kept = self.store.get_meta(TRACES) or {"traces": ()}
        return [(row["run"], Place(**row["place"])) for row in kept["traces"]]

    def _blames(self, run_id: str, place: Place) -> list[Item]:
        """Return the gradients of a production trace that it doesn't have yet."""
        items = []
        for gradient in self._blamed.get(run_id, ()):
            name = f"trace/{run_id}/{gradient.id}"
            step = place.runs.get(gradient.execution)
            if step is not None and not self.journal.sent(name):
                given = {
                    "run_id": step, "trace_id": place.trace, "session_id": place.session,
                    "feedback_id": self.journal.id_for("trace", gradient.id),
                    "extend_trace_retention": False,  # how long users' data is kept is not ours
                    **bodies.blame_of(gradient),
                }  # fmt: skip
                items.append(Item(name, partial(self._judge, given)))
        return items

    def _gradients(self) -> dict[str, list[Gradient]]:
        """Return run id -> the gradients that it gave."""
        found: dict[str, list[Gradient]] = {}
        for gradient in self.store.gradients().values():
            found.setdefault(gradient.run_id, []).append(gradient)
        return found

    def _results(self) -> list[dict[str, Any]]:
        """Return the optimizer's calls from the first one on that is still to be sent."""
        found = self.store.results(OPTIMIZER_KINDS, self._after)
        for result in found:
            if not self.journal.sent(_called(result)):
                break
            self._after = result["created"]
        return found

    def _to_end(self, experiment: Experiment) -> bool:
        return self.journal.ended(experiment) is not None and not self.journal.sent(
            f"{_begun(experiment)}/end"
        )

    def _round(
        self, chains: Sequence[Chain], delivery: Delivery, given_up: Callable[[], bool]
    ) -> None:
        stop = threading.Event()
        if delivery.error is not None:
            stop.set()
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="lg_textgrad-langsmith") as pool:
            for sent, error in pool.map(partial(self._send, stop, given_up), chains):
                delivery.sent += sent
                delivery.error = delivery.error or error

    def _send(
        self, stop: threading.Event, given_up: Callable[[], bool], chain: Chain
    ) -> tuple[int, LGTextGradError | None]:
        """Send a chain as far as it goes. Returns how much of it was sent, and what stopped it."""
        done: dict[str, Any] = {}
        error: LGTextGradError | None = None
        for item in () if stop.is_set() else chain():
            if item.name in self._refused or stop.is_set() or given_up():
                break
            if self.journal.sent(item.name):
                continue
            try:
                done[item.name] = item.send()
            except LGTextGradError as failure:
                if type(failure) is LangSmithError:
                    self._refused[item.name] = str(failure)
                    logger.warning("LangSmith refused '%s': %s", item.name, failure)
                else:  # it doesn't answer, or refuses the key: the rest would fail like it
                    stop.set()
                    error = failure
                break
        if done:
            self.journal.note_sent(done)
        return len(done), error

    # What there is to send. A chain's items need those before them.

    def _experiments(self) -> Iterable[Chain]:
        candidates = self.store.candidates()
        for experiment in self.journal.experiments():
            if not self.journal.sent(_begun(experiment)):
                begin = partial(self._begin, experiment, candidates)
                yield partial(iter, [Item(_begun(experiment), begin)])

    def _contents(self) -> Iterable[Chain]:
        for noted in self.journal.runs():
            if self.journal.sent(_begun(noted.experiment)) and self._unsent(noted):
                yield partial(self._run, noted, self._blaming(noted))
        for place in self._places():
            if items := self._blames(*place):
                yield partial(iter, items)
        for result in self._results():
            if not self.journal.sent(_called(result)):
                yield partial(iter, [Item(_called(result), partial(self._call, result))])

    def _ends(self) -> Iterable[Chain]:
        unfinished = {n.experiment.key for n in self.journal.runs() if self._unsent(n)}
        candidates = self.store.candidates()
        for experiment in self.journal.experiments():
            if self._to_end(experiment) and experiment.key not in unfinished:
                yield partial(self._close, experiment, candidates)

    def _close(self, experiment: Experiment, candidates: Any) -> Iterator[Item]:
        ended = self.journal.ended(experiment)
        assert ended is not None, "only what ended is closed"
        session = self.journal.answer(_begun(experiment))["id"]
        for number, feedback in enumerate(self.journal.summary(experiment)):
            name = f"{_begun(experiment)}/summary/{number}"
            given = {
                "project_id": session, "key": feedback.key, "score": feedback.score,
                "comment": feedback.comment or None, "feedback_id": self.journal.id_for(name),
            }  # fmt: skip
            yield Item(name, partial(self._judge, given))
        end = partial(self._end, experiment, candidates, ended)
        yield Item(f"{_begun(experiment)}/end", end)

    def _run(self, noted: Noted, blamed: Sequence[Gradient]) -> Iterator[Item]:
        example, objective = self.journal.example(noted), self.reporting.objective
        run = self.store.get_run(noted.run_id, example)
        feedback = self.store.get_feedback(noted.run_id, feedback_key(objective, example))
        if feedback is None:  # older versions kept it under the objective alone
            feedback = self.store.get_feedback(noted.run_id, objective)
        if run is None or feedback is None:
            return
        make_id = partial(self.journal.id_for, noted.experiment.key)
        told = bodies.trace_of(
            run,
            noted.at,
            self.experiment_name(noted.experiment),
            make_id,
            reference=noted.example if self._referenced(noted.experiment) else None,
        )
        for start in range(0, len(told), _PIECE):
            piece = told[start : start + _PIECE]
            yield Item(f"{_at(noted)}/{start // _PIECE}", partial(self._post, piece))
        root, session = make_id(run.id), self.journal.answer(_begun(noted.experiment))["id"]
        where = {"trace_id": root, "session_id": session}
        for number, body in enumerate(bodies.scores_of(noted.score, feedback)):
            own = {"run_id": root, "feedback_id": make_id(run.id, "feedback", str(number))}
            name = f"{_at(noted)}/feedback/{number}"
            yield Item(name, partial(self._judge, {**where, **own, **body}))
        yield Item(f"{_at(noted)}/done", lambda: None)
        for gradient in blamed:
            execution = bodies.execution_id(make_id, run.id, gradient.execution)
            own = {"run_id": execution, "feedback_id": make_id(gradient.id)}
            given = {**where, **own, **bodies.blame_of(gradient)}
            yield Item(f"{_at(noted)}/{gradient.id}", partial(self._judge, given))

    def _referenced(self, experiment: Experiment) -> bool:
        return experiment.split in self.reporting.splits

    def experiment_name(self, experiment: Experiment) -> str:
        """Return what an experiment is called."""
        reporting = self.reporting
        return (
            f"{reporting.project}-{reporting.id[:6]}-{experiment.split}-{experiment.candidate[:8]}"
        )

    @property
    def optimizer_project(self) -> str:
        """The name of the project with the optimizer's own calls."""
        return f"{self.reporting.project}-{self.reporting.id[:6]}-optimizer"

    # Sending one thing.

    def _metadata(self, experiment: Experiment, candidates: Any) -> dict[str, Any]:
        known, reporting = candidates.get(experiment.candidate), self.reporting
        found: dict[str, Any] = {
            "lg_textgrad_run": reporting.id,
            "candidate": experiment.candidate,
            "split": experiment.split,
            "objective": reporting.objective,
        }
        if known is not None:
            found |= {
                "step": known["step"], "parent": known["parent"], "parameters": known["texts"]
            }  # fmt: skip
            if known["parent"] is not None:
                found["parent_experiment"] = self.experiment_name(
                    Experiment(experiment.split, known["parent"])
                )
        if self._referenced(experiment) and reporting.dataset is not None:
            found["dataset_version"] = reporting.dataset["as_of"]
            found["dataset_splits"] = [experiment.split]
        clean: dict[str, Any] = scrubbed(found, self._secrets)
        return clean

    def _begin(self, experiment: Experiment, candidates: Any) -> dict[str, str]:
        dataset = self.reporting.dataset if self._referenced(experiment) else None

        def ask(client: Client) -> Any:
            return client.create_project(
                self.experiment_name(experiment),
                description=f"lg_textgrad: candidate {experiment.candidate} on {experiment.split}",
                metadata=self._metadata(experiment, candidates),
                reference_dataset_id=dataset["id"] if dataset else None,
                upsert=True,
            )

        made = self.langsmith.call(ask)
        return {"id": str(made.id), "name": str(made.name), "url": str(made.url or "")}

    def _end(self, experiment: Experiment, candidates: Any, when: float) -> None:
        session = self.journal.answer(_begun(experiment))["id"]
        at = datetime.fromtimestamp(when, UTC)
        metadata = self._metadata(experiment, candidates)
        self.langsmith.call(lambda c: c.update_project(session, end_time=at, metadata=metadata))

    def _post(self, runs: Sequence[bodies.Body]) -> None:
        clean = scrubbed(runs, self._secrets)
        self.langsmith.call(lambda c: c.multipart_ingest(create=clean))

    def _call(self, result: Any) -> None:
        self._post([bodies.call_of(result, self.optimizer_project, self.journal.id_for)])

    def _judge(self, given: dict[str, Any]) -> None:
        given = {**given, "comment": scrubbed(given["comment"], self._secrets)}
        try:
            more: Any = {"feedback_source_type": "model", "stop_after_attempt": 1, **given}
            self.langsmith.call(lambda c: c.create_feedback(**more))
        except LangSmithError as error:
            if isinstance(error.__cause__, LangSmithNotFoundError):
                # Runs are taken in before they can be found.
                raise LangSmithUnavailableError(f"The run is not there yet: {error}") from error
            raise


def _called(result: Mapping[str, Any]) -> str:
    return f"call/{result['key']}"


def _begun(experiment: Experiment) -> str:
    return f"experiment/{experiment.key}"


def _at(noted: Noted) -> str:
    return f"run/{noted.experiment.key}/{noted.run_id}"
