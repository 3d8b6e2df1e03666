"""Tells LangSmith of a run while it goes on, without ever holding it up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from lg_textgrad.errors import LangSmithUnavailableError, LGTextGradError
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.journal import Journal, Reporting, ended_by, experiment_of
from lg_textgrad.langsmith.outbox import Delivery, Outbox
from lg_textgrad.store import Store

logger = logging.getLogger(__name__)

_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries while LangSmith does not answer
_TRIES = 3  # without anything sent, until the upload is left for later when the run is over


class Reporter:
    """A trainer's `on_event`. What it is told is noted in the store and sent by a thread.

    A LangSmith that is down, slow or refuses costs the run nothing: what could not be sent stays
    noted, `close` says how much that is, and `Outbox(...).deliver()` makes up for it, also in
    another process.
    """

    def __init__(
        self,
        store: Store,
        reporting: Reporting,
        langsmith: LangSmith,
        *,
        pause: float | None = None,
    ) -> None:
        self.journal = Journal(store)
        self.outbox = Outbox(store, self.journal, langsmith)
        self._reporting = reporting
        self._pause = _PAUSE if pause is None else pause
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = Delivery()
        self._deadline = float("inf")

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take note of an event of the trainer."""
        if kind == "start":
            self.journal.begin(self._reporting)
            self._thread = threading.Thread(
                target=self._deliver, name="lg_textgrad-langsmith", daemon=True
            )
            self._thread.start()
        news = kind in ("start", "gradients", "end")
        if kind == "run":
            news = self.journal.note_run(data["purpose"], data["scored"])
        elif kind == "summary":
            experiment = experiment_of(data["purpose"], data["candidate"])
            if experiment is not None:
                self.journal.note_summary(experiment, data["feedback"])
        for experiment in ended_by(kind, data, self.journal.experiments()):
            news |= self.journal.note_end(experiment)
        if news:
            self._wake.set()

    def close(self, seconds: float = 30.0) -> Delivery:
        """Wait at most `seconds` until everything is sent, and return what came of it.

        A LangSmith that doesn't answer three times in a row is not waited for any longer.
        Nothing more is sent afterwards, and the store may be closed.
        """
        if self._thread is None:
            return self._last
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._thread = None
        return self._last

    def _deliver(self) -> None:
        pause, fruitless = self._pause, 0
        while True:
            self._wake.wait()
            closing = self._closing.is_set()
            self._wake.clear()
            before = self._last
            try:
                self._last = self.outbox.deliver(self._late)
            except LGTextGradError as failure:  # the store: the run itself will say so
                self._last = Delivery(error=failure)
            if self._late() and self._last.left:
                self._last.error = self._last.error or before.error
                return
            error = self._last.error
            if error is None:
                pause, fruitless = self._pause, 0
                if closing:
                    return
                continue
            logger.info("LangSmith: %s", error)
            if self._last.sent:
                pause, fruitless = self._pause, 0
            elif closing:
                pause = self._pause if not fruitless else pause
                fruitless += 1
            later = isinstance(error, LangSmithUnavailableError)
            if closing and (not later or fruitless >= _TRIES):
                return
            if closing:
                time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            else:
                self._closing.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._wake.set()

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def links(journal: Journal) -> dict[str, str]:
    """Return experiment -> its address in LangSmith, of those that are there."""
    found = {}
    for experiment in journal.experiments():
        answer = journal.answer(f"experiment/{experiment.key}")
        if answer:
            found[experiment.key] = str(answer["url"])
    return found
