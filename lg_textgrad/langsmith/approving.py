"""A person's word through a LangSmith annotation queue."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from langsmith.utils import LangSmithNotFoundError

from lg_textgrad.approval import NUMBERS, Approval, Review, numbers_in
from lg_textgrad.errors import (
    DataError,
    InterruptedRunError,
    LangSmithError,
    LangSmithUnavailableError,
)
from lg_textgrad.langsmith.connection import LangSmith, scrubbed
from lg_textgrad.langsmith.queries import Queries

logger = logging.getLogger(__name__)

KEY = "approve"
"""The feedback that decides: 1 accepts, 0 refuses; its comment says why."""
_RUBRIC = (
    "A tuned prompt waits for your word. The outputs have the diff, the scores on the validation "
    f"examples, and which of these it won and lost. Give '{KEY}' 1 to accept it or 0 to refuse it; "
    "say in the comment why not, and the next proposal will be told. To refuse some of the changes "
    "only, give 0 and begin the comment with their numbers and a full stop, as in "
    "'without 2, 3.'; what is left is measured anew."
)

_WITHOUT = re.compile(rf"\s*without\s+({NUMBERS})\s*(?:[.:;]\s*|$)", re.IGNORECASE)
"""How a comment begins that refuses some changes. "Without 2 examples I can't say" does not."""


class Queue:
    """Puts each review as a run into an annotation queue, and waits for feedback on it.

    The queue is made if need be. The reviews are runs of `project`. LangSmith is asked every
    `interval` seconds, for at most `wait` seconds (None: until somebody decides); then the run
    stops, and a resumed run looks for the same review's feedback again. `identity` tells this run
    directory's reviews from others'.
    """

    def __init__(
        self,
        langsmith: LangSmith,
        queue: str,
        project: str,
        identity: UUID,
        *,
        interval: float = 15.0,
        wait: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.langsmith = langsmith
        self.queue = queue
        self.project = project
        self.identity = identity
        self.interval = interval
        self.wait = wait
        self._sleep = sleep
        self._queries = Queries(langsmith)
        self._put: set[UUID] = set()

    async def areview(self, review: Review) -> Approval:
        run_id = uuid5(self.identity, f"{review.proposal}/{review.step}")
        started = time.monotonic()
        while True:
            try:
                if run_id not in self._put:
                    await self.langsmith.acall(lambda _: self._show(run_id, review))
                    self._put.add(run_id)
                found = await self.langsmith.acall(
                    lambda client: self._decided(client, run_id, len(review.changes))
                )
            except LangSmithUnavailableError as error:
                logger.info("%s", error)
                found = None
            if found is not None:
                return found
            waited = time.monotonic() - started
            if self.wait is not None and waited + self.interval > self.wait:
                raise InterruptedRunError(
                    f"The candidate {review.proposal[:8]} waits for a decision in the annotation "
                    f"queue '{self.queue}' of LangSmith at {self.langsmith.url}; resume the run "
                    "when there is one."
                )
            await self._sleep(self.interval)

    def _show(self, run_id: UUID, review: Review) -> None:
        """Post the review and put it into the queue, where an earlier session hasn't."""
        queue = self._queries.queue_id(self.queue)
        if queue is None:
            made = self.langsmith.call(
                lambda client: client.create_annotation_queue(
                    name=self.queue,
                    description="Tuned prompts that wait for a person's word.",
                    rubric_instructions=_RUBRIC,
                )
            )
            queue = str(made.id)
        if any(item["run_id"] == str(run_id) for item in self._queries.queued(self.queue)):
            return
        now = datetime.now(UTC)
        body = {
            "id": str(run_id),
            "trace_id": str(run_id),
            "dotted_order": f"{now.strftime('%Y%m%dT%H%M%S%fZ')}{run_id}",
            "name": f"review {review.proposal[:8]}",
            "run_type": "chain",
            "start_time": now.isoformat(),
            "end_time": now.isoformat(),
            "session_name": self.project,
            "inputs": {"prompts": {n: review.before.get(n, "") for n in review.changed}},
            "outputs": {"prompts": {n: review.after[n] for n in review.changed}}
            | review.to_plain(),
            "extra": {"metadata": {"candidate": review.proposal, "step": review.step}},
        }
        clean = scrubbed(body, self.langsmith.secrets)
        self.langsmith.call(lambda client: client.multipart_ingest(create=[clean]))
        try:
            project = self._queries.project_id(self.project)
        except DataError as error:  # a project is made of its first run, which is taken in first
            raise LangSmithUnavailableError(f"The review is not there yet: {error}") from error
        try:
            self._queries.enqueue(queue, str(run_id), project, now)
        except LangSmithError as error:
            if isinstance(error.__cause__, LangSmithNotFoundError):
                raise LangSmithUnavailableError(f"The review is not there yet: {error}") from error
            raise

    def _decided(self, client: Any, run_id: UUID, count: int) -> Approval | None:
        found = client.list_feedback(run_ids=[run_id], feedback_key=[KEY])
        told = [f for f in found if f.score is not None]
        if not told:
            return None
        last = max(told, key=lambda f: f.modified_at or f.created_at)
        source = last.feedback_source
        by = str((source and (source.user_name or source.user_id)) or "")
        comment, approved = str(last.comment or ""), float(last.score) >= 0.5
        some = _WITHOUT.match(comment)
        numbers = numbers_in(some[1], count) if some else ()
        approved = approved and not some  # who leaves something out has not accepted all of it
        if some and numbers:
            comment = comment[some.end() :].strip()
        return Approval(approved, comment, by, numbers)
