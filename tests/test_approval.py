"""A person's word: what they see, what they say, and what is kept of it."""

from __future__ import annotations

import contextlib
from typing import TypedDict

import pytest
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.acceptance import Outcome, Verdict
from lg_textgrad.approval import Approval, Review, Terminal, approvals, areviewed, left_of
from lg_textgrad.errors import ConfigurationError, InterruptedRunError
from lg_textgrad.explaining import explain
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
    assert questions[0] == "Accept this? [y/n] "
    assert questions[1:] == ["That is no answer; type y, n: "] * 2


async def test_terminal_asks_why_not():
    approver, _, questions = terminal("n", " Too long. ")
    assert await approver.areview(review()) == Approval(False, "Too long.")
    assert questions[-1].startswith("Why not?")


@pytest.mark.parametrize(("answer", "without"), [("n", ()), ("2", (2,))])
async def test_input_that_ends_at_why_not_is_still_a_refusal(answer, without):
    approver, _, questions = terminal(answer)
    two = review(after={"a": "One!\nThree.", "b": "Same."})
    assert await approver.areview(two) == Approval(False, without=without)
    assert questions[-1].startswith("Why not?")


async def test_nobody_at_the_terminal_leaves_a_run_that_can_be_resumed():
    approver, _, _ = terminal()
    with pytest.raises(InterruptedRunError, match="resume the run at a terminal"):
        await approver.areview(review())


async def test_refusal_becomes_the_verdict_and_is_kept(tmp_path):
    says = Says(Approval(False, "Too long.", "ann"), Approval(True))
    with Store(tmp_path) as store:
        verdict, _ = await areviewed(says, store, review())
        assert (verdict.accepted, verdict.reason) == (False, "refused by a reviewer: Too long.")
        assert (verdict.gain, verdict.won) == (VERDICT.gain, VERDICT.won)
        assert await areviewed(says, store, review({**AFTER, "b": "Other."})) == (VERDICT, ())
    with Store(tmp_path) as store:  # a run that goes on asks nobody again
        assert await areviewed(Says(), store, review()) == (verdict, ())
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


class State(TypedDict, total=False):
    q: str
    a: str


def trained(proposals, approve, score, *, locked=(), **options):
    """Train a graph that says its prompt, on proposals made of what stands; return the result."""
    prompt = tg.Parameter("say", "Be kind.", locked=locked)
    builder = StateGraph(State).add_node("node", lambda s: {"a": str(prompt)}).add_edge(START, "node")

    class Proposes(tg.optim.Optimizer):
        needs_gradients = False
        fingerprint = {"optimizer": "proposes"}

        async def aproposals(self):
            made = [p(self.parameters["say"].value) for p in proposals]
            return [p for p in made if p is not None]

    return tg.Trainer(
        tg.TrainableGraph(builder.compile(), [prompt]), tg.Objective([lambda outputs: score(outputs["a"])]),
        critic=None, optimizer=Proposes(), approve=approve, **options,
    ).fit([{"inputs": {"q": "t"}}], [{"inputs": {"q": "v"}}])  # fmt: skip


def adds(*lines):
    def proposal(text):
        edits = tuple(Edit("say", "add", len(text.split("\n")), line, why=line) for line in lines)
        return Proposal({"say": "\n".join([text, *lines])}, edits)

    return proposal


def rated(text):
    return sum(0.2 for word in ("brief", "polite", "sell") if word in text) + 0.1


def test_line_that_a_person_refuses_is_left_out_and_the_rest_measured_shown_and_kept(tmp_path):
    says = Says(Approval(False, "We sell nothing.", without=(2,)), Approval(True))
    schedule = tg.Schedule(steps=1, batch_size=1)
    rules = ("Stay brief.", "Always sell a plan.", "Stay polite.")
    result = trained([adds(*rules)], says, rated, schedule=schedule, store=tmp_path)
    assert result.after == {"say": "Be kind.\nStay brief.\nStay polite."}
    assert (result.accepted, result.best.val) == (1, pytest.approx(0.5))
    first, second = says.asked
    assert [str(c) for c in first.changes] == [f"say: + {rule}" for rule in rules]
    assert (first.score_after, second.score_after) == (pytest.approx(0.7), pytest.approx(0.5))
    with Store(tmp_path, read_only=True) as store:
        reasons = [d["reason"] for d in store.decisions() if d["stage"] == "val"]
        assert reasons[0] == "refused by a reviewer, who leaves out 'say: + Always sell a plan.': We sell nothing."
        assert [e.text for e in store.candidates()[result.lineage[-1]]["edits"]] == ["Stay brief.", "Stay polite."]
        assert [line["because"][0]["why"] for line in explain(store)["say"]["lines"]] == ["Stay brief.", "Stay polite."]
        assert [a["without"] for a in approvals(store)] == [[2], []]
    # A run that goes on asks nobody, and ends where it ended.
    assert trained([adds(*rules)], Says(), rated, schedule=schedule, store=tmp_path).after == result.after


def test_refused_line_does_not_come_back(tmp_path):
    says = Says(Approval(False, without=(1,)), *[Approval(True)] * 5)
    again = adds("- always SELL a plan!", "Stay polite.")  # other marks and capitals
    proposals = [adds("Always sell a plan."), again, adds("Stay brief.")]
    result = trained(proposals, says, rated, schedule=tg.Schedule(steps=3, batch_size=1))
    assert "sell" not in result.after["say"].lower()
    assert "Stay brief." in result.after["say"]


def test_what_is_left_that_breaks_a_promise_is_told_and_not_tried(caplog):
    def moved(_text):
        return Proposal({"say": "Stay brief.\nMind every kind of person."})

    says = Says(Approval(False, without=(3,)))  # after the loss of a line, and a new one
    schedule = tg.Schedule(steps=1, batch_size=1)
    result = trained([moved], says, rated, locked=("kind",), schedule=schedule)
    assert (result.after, says.answers) == ({"say": "Be kind."}, [])
    assert "What is left is not tried. The text proposed for parameter 'say' is refused: it changes the locked span 'kind'." in caplog.text


async def test_numbers_at_the_terminal_say_what_to_leave_out():
    asked, answers = [], ["4", "2, 9", "1 and 2", "Too pushy. "]

    def ask(question):
        asked.append(question)
        return answers.pop(0)

    shown = review({"a": "One.\nThree.\nFour.", "b": "Same."})
    approval = await Terminal(lambda _: None, ask).areview(shown)
    assert approval == Approval(False, "Too pushy.", without=(1, 2))
    again = "That is no answer; type y, n, or numbers from 1 to 3: "
    assert asked == ["Accept this? [y/n, or the numbers of what to leave out] ", again, again, "Why not? "]


async def test_approver_that_names_changes_that_are_not_there_is_told():
    with Store() as store, pytest.raises(ConfigurationError, match=r"leaves out the changes \[2\], but this candidate has 1"):
        await areviewed(Says(Approval(False, without=(2,))), store, review())


@pytest.mark.parametrize("writes", range(3))
async def test_who_decided_is_told_whatever_write_the_process_was_killed_after(tmp_path, writes):
    with Store(tmp_path) as store:
        write, left = store._place.write, iter(range(writes))

        def dying(rows):
            if next(left, None) is None:
                raise OSError("killed")
            write(rows)

        store._place.write = dying
        with contextlib.suppress(OSError):
            await areviewed(Says(Approval(True, by="ann")), store, review())
    with Store(tmp_path) as store:
        await areviewed(Says(Approval(True, by="ann")), store, review())  # who is asked again, if it was lost
        assert [(a["by"], a["approved"]) for a in approvals(store)] == [("ann", True)]


async def test_refusal_without_a_word_is_told_too():
    with Store() as store:
        verdict, _ = await areviewed(Says(Approval(False)), store, review())
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


@pytest.mark.parametrize("selection", [None, tg.Pareto(merge_every=0)])
def test_what_is_left_that_another_proposal_is_too_is_tried_once(tmp_path, selection):
    def score(text):  # together they are better, and one of them alone is not
        return {"Be kind.": 0.3}.get(text, 0.1) + 0.5 * ("sell" in text)

    says = Says(Approval(False, without=(2,)))
    proposals = [lambda text: Proposal({"say": f"{text}\nStay brief.\nAlways sell."}), lambda text: Proposal({"say": f"{text}\nStay brief."})]

    class Both:
        """A policy that joins: what it proposes is tried beside the step's own."""

        fingerprint = {"selection": "both"}

        def parent(self, pool, incumbent, random):
            return (selection or tg.Incumbent()).parent(pool, incumbent, random)

        def merge(self, pool, incumbent, random):
            return proposals[1]("Be kind.")

    result = trained(proposals[:1], says, score, selection=Both(), schedule=tg.Schedule(steps=2, batch_size=1), store=tmp_path)
    assert result.after == {"say": "Be kind."}
    with Store(tmp_path, read_only=True) as store:
        on_val = [d["candidate"] for d in store.decisions() if d["stage"] == "val"]
    assert len(on_val) == len(set(on_val)) == 2


def test_refusal_holds_where_a_run_goes_on_with_nobody_to_ask(tmp_path):
    schedule = tg.Schedule(steps=1, batch_size=1)
    rules = adds("Stay brief.", "Always sell a plan.")
    first = trained([rules], Says(Approval(False)), rated, schedule=schedule, store=tmp_path)
    assert first.after == trained([rules], None, rated, schedule=schedule, store=tmp_path).after == {"say": "Be kind."}


def test_word_that_is_no_approval_is_refused_with_what_to_return():
    class Bare:
        async def areview(self, review):
            return True

    with pytest.raises(ConfigurationError, match=r"`approve` needs an Approval, not a bool; return tg\.Approval\(True\)"):
        trained([adds("Stay brief.")], Bare(), rated, schedule=tg.Schedule(steps=1, batch_size=1))


def test_candidate_with_what_a_person_refused_later_is_no_parent():
    seen = []

    class Seeing:
        fingerprint = {"selection": "seeing"}

        def parent(self, pool, incumbent, random):
            seen.append([e.candidate["say"] for e in pool])
            return incumbent

    made = iter([adds("Always sell."), adds("Always sell.", "Stay brief.", "Stay polite."), adds("Stay short.")])
    trained(
        [lambda text: next(made)(text)], Says(Approval(False, without=(1,)), Approval(True)), rated, selection=Seeing(),
        acceptance=tg.acceptance.Better(min_gain=0.3), schedule=tg.Schedule(steps=3, batch_size=1),
    )  # fmt: skip
    assert seen[1] == ["Be kind.", "Be kind.\nAlways sell."]
    assert seen[2] == ["Be kind.", "Be kind.\nStay brief.\nStay polite."]


def test_edits_of_a_refused_line_are_gone_with_it_also_where_two_edits_made_it():
    base, after = {"say": "Be kind to all.\nEnd."}, {"say": "Be kind to everybody.\nEnd.\nStay brief."}
    edits = (
        Edit("say", "delete", 1, ""), Edit("say", "add", 1, "Be kind to everybody."), Edit("say", "add", 2, "Stay brief."),
    )  # fmt: skip
    shown = Review.of(1, base, after, VERDICT, OLD, NEW)
    left = left_of(Proposal(after, edits), base, shown, shown.changes[:1])
    assert left.candidate == {"say": "Be kind to all.\nEnd.\nStay brief."}
    assert left.edits == edits[2:]


def test_secret_in_what_a_person_said_is_masked_where_it_is_kept(tmp_path):
    says = Says(Approval(False, "It has sk-proj-0123456789abcdef0123456789abcdef in it."))
    trained([adds("Stay brief.")], says, rated, schedule=tg.Schedule(steps=1, batch_size=1), store=tmp_path)
    with Store(tmp_path, read_only=True) as store:
        [kept], reasons = approvals(store), [d["reason"] for d in store.decisions()]
    assert kept["comment"].startswith("It has [") and kept["comment"].endswith("] in it.")
    assert "0123456789abcdef" not in "".join(reasons)
