"""A person's word through an annotation queue."""

from __future__ import annotations

import re
from uuid import UUID

import pytest

from lg_textgrad.approval import Approval
from lg_textgrad.errors import InterruptedRunError
from lg_textgrad.langsmith.approving import Queue
from lg_textgrad.langsmith.connection import LangSmith
from tests.servers.langsmith_server import Fault, LangSmithServer
from tests.test_approval import AFTER, review

IDENTITY = UUID(int=7)


class Person:
    """Looks into the queue at the n-th pause, and decides."""

    def __init__(self, server, score=1, comment=None, at=2):
        self.server, self.score, self.comment, self.at = server, score, comment, at
        self.pauses = 0

    async def __call__(self, seconds):
        self.pauses += 1
        assert seconds == 15.0
        if self.pauses == self.at:
            decide(self.server, self.score, self.comment)


def decide(server, score, comment=None):
    [item] = server.queued("prompt-reviews")
    with LangSmith(server.url, server.api_key) as person:
        person.client.create_feedback(
            run_id=item["run_id"], session_id=item["project_id"], key="approve", score=score, comment=comment
        )


def queue(langsmith, person=None, **more):
    options = {} if person is None else {"sleep": person}
    return Queue(langsmith, "prompt-reviews", "nightly-reviews", IDENTITY, **options, **more)


@pytest.mark.parametrize(("score", "comment", "expected"), [
    (1, None, Approval(True)), (0, "Too long.", Approval(False, "Too long.")),
    (0, "Without 1. Too long.", Approval(False, "Too long.", without=(1,))),
    (0, "without 1", Approval(False, without=(1,))),
    (0, "without 7.", Approval(False, "without 7.")),  # there is no such change
    (0, "Without 1 example I can't say.", Approval(False, "Without 1 example I can't say.")),
    (1, "without 1.", Approval(False, without=(1,))),  # all of it was not accepted
    (1, "without 7.", Approval(False, "without 7.")),
])  # fmt: skip
async def test_review_waits_in_the_queue_until_somebody_decides(server, langsmith, score, comment, expected):
    person = Person(server, score, comment, at=3)
    assert await queue(langsmith, person).areview(review()) == expected
    assert person.pauses == 3
    [item] = server.queued("prompt-reviews")
    shown = server.runs[item["run_id"]]
    assert shown["session_id"] == server.project("nightly-reviews")["id"]
    assert "-Two.\n+Three." in shown["outputs"]["diff"]
    assert shown["outputs"]["changes"] == {"1": "a: Two. -> Three."}
    assert shown["outputs"]["prompts"] == {"a": AFTER["a"]}
    assert (shown["outputs"]["won"], shown["outputs"]["lost"]) == (["w", "x"], ["y"])
    assert shown["outputs"]["val"] == {"before": 0.625, "after": 0.875}
    [made] = server.queues.values()
    assert "Give 'approve' 1 to accept" in made["rubric_instructions"]


async def test_run_stops_when_nobody_decides_and_goes_on_with_the_decision(server, langsmith):
    with pytest.raises(InterruptedRunError, match="waits for a decision in the annotation queue 'prompt-reviews'"):
        await queue(langsmith, wait=0).areview(review())
    decide(server, 0, "Not like this.")
    again = queue(langsmith, wait=0)  # another session
    assert await again.areview(review()) == Approval(False, "Not like this.")
    assert len(server.queued("prompt-reviews")) == 1
    assert server.repeated == []


async def test_last_word_counts(server, langsmith):
    with pytest.raises(InterruptedRunError):
        await queue(langsmith, wait=0).areview(review())
    decide(server, 0)
    decide(server, 1, "After all.")
    assert (await queue(langsmith).areview(review())).approved


async def test_outage_while_waiting_is_waited_out(server, langsmith):
    seen = iter(range(10**6))
    server.fault = lambda request: Fault.down() if next(seen) % 2 else None

    class Mends(Person):
        async def __call__(self, seconds):
            if self.pauses > 12:
                server.fault = None
            await super().__call__(seconds)

    person = Mends(server, at=16)
    assert (await queue(langsmith, person).areview(review())).approved


@pytest.mark.parametrize("late", ["GET .*/sessions", "POST .*/annotation-queues/.+"])
@pytest.mark.parametrize("old", [False, True])
async def test_review_that_is_not_found_at_once_is_waited_for(late, old):
    """LangSmith takes runs in before it finds them, or a project that they are the first of."""
    seen = []

    def fault(request):
        if not re.fullmatch(late, str(request)) or len(seen) > 2:
            return None
        seen.append(request)
        return Fault.answer(404)

    with LangSmithServer(new=not old, old=old) as server, LangSmith(server.url, server.api_key, patient=False) as langsmith:
        server.fault = fault
        assert (await queue(langsmith, Person(server, at=6)).areview(review())).approved
        assert len(server.queued("prompt-reviews")) == 1


@pytest.mark.parametrize(("new", "old"), [(True, False), (False, True)])
async def test_queue_of_new_and_old_deployments(new, old):
    with LangSmithServer(new=new, old=old) as server, LangSmith(server.url, server.api_key, patient=False) as langsmith:
        assert (await queue(langsmith, Person(server)).areview(review())).approved
