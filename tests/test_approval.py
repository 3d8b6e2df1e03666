"""A person's word: what they see, what they say, and what is kept of it."""

from __future__ import annotations

from typing import TypedDict

import pytest
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.acceptance import Outcome, Verdict
from lg_textgrad.approval import Approval, Review, Terminal, approvals, areviewed
from lg_textgrad.errors import InterruptedRunError
from lg_textgrad.optim.base import Attempt, Proposal
from lg_textgrad.parameter import Edit, candidate_hash
from lg_textgrad.store import Store
from tests.parts import Scripted

BEFORE = {"a": "One.\nTwo.", "b": "Same."}
AFTER = {"a": "One.\nThree.", "b": "Same."}
VERDICT = Verdict(True, "better by +0.250: 2 of 4 examples better, 1 worse", 0.25, 2, 1)
OLD = {e: Outcome(s) for e, s in {"w": 0, "x": 0.5, "y": 1, "z": 1, "more": 0}.items()}
NEW = {e: Outcome(s) for e, s in {"w": 1, "x": 1, "y": 0.5, "z": 1}.items()}


def review(after=AFTER):
    return Review.of(3, BEFORE, after, VERDICT, OLD, NEW)


class Says:
    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def areview(self, review):
        self.asked.append(review)
        return self.answers.pop(0)


def test_review_has_diff_scores_and_examples_won_and_lost():
    seen = review()
    assert (seen.proposal, seen.changed) == (candidate_hash(AFTER), ("a",))
    assert seen.diff == "--- a\n+++ a\n@@ -1,2 +1,2 @@\n One.\n-Two.\n+Three."
    assert (seen.score_before, seen.score_after) == (0.625, 0.875)
    assert (seen.won, seen.lost) == (("w", "x"), ("y",))
    assert seen.to_plain()["verdict"] == VERDICT.reason


def terminal(*answers):
    shown, questions, left = [], [], list(answers)

    def ask(question):
        questions.append(question)
        if not left:
            raise EOFError
        return left.pop(0)

    return Terminal(shown.append, ask), shown, questions


async def test_terminal_shows_asks_and_asks_again_until_it_is_answered():
    approver, shown, questions = terminal("what?", "", " Yes ")
    assert await approver.areview(review()) == Approval(True)
    assert shown == [review()]
    assert len(questions) == 3


async def test_terminal_asks_why_not():
    approver, _, questions = terminal("n", " Too long. ")
    assert await approver.areview(review()) == Approval(False, "Too long.")
    assert questions[-1].startswith("Why not?")


async def test_nobody_at_the_terminal_leaves_a_run_that_can_be_resumed():
    approver, _, _ = terminal()
    with pytest.raises(InterruptedRunError, match="resume the run at a terminal"):
        await approver.areview(review())


async def test_refusal_becomes_the_verdict_and_is_kept(tmp_path):
    says = Says(Approval(False, "Too long.", "ann"), Approval(True))
    with Store(tmp_path) as store:
        verdict = await areviewed(says, store, review())
        assert (verdict.accepted, verdict.reason) == (False, "refused by a reviewer: Too long.")
        assert (verdict.gain, verdict.won) == (VERDICT.gain, VERDICT.won)
        assert await areviewed(says, store, review({**AFTER, "b": "Other."})) == VERDICT
    with Store(tmp_path) as store:  # a run that goes on asks nobody again
        assert await areviewed(Says(), store, review()) == verdict
        told = approvals(store)
    assert [(t["approved"], t["comment"], t["by"], t["step"]) for t in told] == [(False, "Too long.", "ann", 3), (True, "", "", 3)]
    assert told[0]["candidate"] == candidate_hash(AFTER)


async def test_what_a_person_refused_is_no_parent_of_what_follows_and_not_tried_again():
    class State(TypedDict, total=False):
        q: str
        a: str

    prompt = tg.Parameter("say", "start")
    builder = StateGraph(State).add_node("node", lambda s: {"a": str(prompt)}).add_edge(START, "node")
    scores = {"start": 0.2, "start, banned": 0.9, "start, banned, banned": 1.0}

    class Appends(tg.optim.Optimizer):
        needs_gradients = False
        fingerprint = {"optimizer": "appends"}
        began = []

        async def aproposals(self):
            now = self.parameters["say"].value
            self.began.append(now)
            return [Proposal({"say": f"{now}, banned"})]

    says = Says(*[Approval(False)] * 2)
    result = await tg.Trainer(
        tg.TrainableGraph(builder.compile(), [prompt]),
        tg.Objective([lambda outputs: scores[outputs["a"]]]),
        critic=None, optimizer=Appends(), selection=tg.Pareto(), approve=says,
        schedule=tg.Schedule(steps=3, batch_size=1),
    ).afit([{"inputs": {"q": "t"}}], [{"inputs": {"q": "v"}}])  # fmt: skip
    assert (result.after, Appends.began, len(says.asked)) == ({"say": "start"}, ["start"] * 3, 1)


async def test_refusal_without_a_word_is_told_too():
    with Store() as store:
        verdict = await areviewed(Says(Approval(False)), store, review())
    assert verdict.reason == "refused by a reviewer"


async def test_reviewers_comment_is_told_to_the_rewriter_of_the_prompts_that_were_refused():
    model = Scripted(lambda request: {"edits": [{"op": "add", "line": 1, "text": "New.", "notes": [1]}]})
    optimizer = tg.optim.TextualGradientDescent(model, notes_as_lines=False)
    parameters = {n: tg.Parameter(n, t) for n, t in BEFORE.items()}
    for name, parameter in parameters.items():
        parameter.grad.append(tg.Gradient(name, "r", "x#0", "Say more."))
    optimizer.bind(parameters)
    refused = Proposal(AFTER, (Edit("a", "replace", 2, "Three."),))
    optimizer.observe(Attempt(refused, False, "refused by a reviewer: Too long.", "review"))
    optimizer.observe(Attempt(Proposal(AFTER, (Edit("b", "add", 1, "x"),)), False, "not better", "val"))
    await optimizer.aproposals()
    asked = {r.messages[1]["content"].split("\n")[0]: r.messages[1]["content"] for r in model.requests}
    [about_a] = [text for text in asked.values() if "1: One." in text]
    [about_b] = [text for text in asked.values() if "1: Same." in text]
    assert "The last proposal was refused by a reviewer: Too long." in about_a
    assert "reviewer" not in about_b
