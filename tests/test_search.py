"""Optimizers with a loop of their own, other parents than the incumbent, early verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import pytest
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim import OutputRules, Portfolio, Proposal, Search
from lg_textgrad.optim.base import merged
from lg_textgrad.parameter import apply_edits
from lg_textgrad.screening import OnBatch
from tests.optim import router
from tests.parts import BlamesUpstream


class S(TypedDict, total=False):
    q: str
    a: str


def words_graph():
    """One node that answers with the words of its prompt."""
    prompt = tg.Parameter("say", "zero")

    def node(state):
        return {"a": str(prompt)}

    return tg.TrainableGraph(StateGraph(S).add_node(node).add_edge(START, "node").compile(), [prompt])


def share(outputs, reference_outputs):
    wanted = reference_outputs["words"]
    return sum(w in outputs["a"] for w in wanted) / len(wanted)


def rows(*words):
    return [{"inputs": {"q": w}, "outputs": {"words": [w]}} for w in words]


class Words(Search):
    """Yields one text after another; notes what it was told."""

    needs_gradients = False

    def __init__(self, *texts):
        super().__init__()
        self.texts = texts

    @property
    def fingerprint(self):
        return {"optimizer": "words"}

    async def asearch(self, bench):
        for text in self.texts:
            scored = await bench.ascore(bench.train, {"say": text})
            if any(s.score for s in scored):
                yield Proposal({"say": text}, kind="words")


class NeverAsked:
    async def acriticize(self, request):
        raise AssertionError("a search asked for no gradients")


def fit(optimizer, **options):
    events = []
    trainer = tg.Trainer(
        words_graph(), tg.Objective([share]), critic=NeverAsked(), optimizer=optimizer,
        on_event=lambda kind, data: events.append((kind, data)), **options,
    )  # fmt: skip
    return trainer.fit(rows("one", "two", "three"), rows("one", "two", "four")), trainer, events


def test_search_is_gated_and_told_what_came_of_each_candidate():
    search = Words("nothing", "one", "two", "one two", "two one four")
    result, trainer, _ = fit(search)
    assert result.after == {"say": "two one four"}
    assert (result.best.val, result.steps, result.accepted, result.rejected) == (1.0, 4, 3, 1)
    assert [(a.proposal.candidate["say"], a.accepted, a.stage) for a in search.history] == [
        ("one", True, "val"), ("two", False, "val"), ("one two", True, "val"), ("two one four", True, "val"),
    ]  # fmt: skip
    assert set(search.history[0].scores.values()) == {0.0, 1.0}
    assert trainer.graph.parameters["say"].value == "two one four"
    assert result.stopped_by == "full_marks"


@pytest.mark.parametrize(("more", "ended"), [([], "steps"), (["two"], "full_marks")])
def test_searched_candidate_that_breaks_a_promise_costs_no_validation_run(more, ended):
    search = Words("one two forbidden", *more)
    graph = words_graph()
    graph.parameters["say"].forbidden = ("forbidden",)
    told = []
    trainer = tg.Trainer(
        graph, tg.Objective([share]), critic=NeverAsked(), optimizer=search,
        on_event=lambda kind, data: told.append((kind, list(data.get("refused", ())))),
    )  # fmt: skip
    result = trainer.fit(rows("one", "two"), rows("two"))
    assert (result.accepted, result.rejected, result.stopped_by) == (len(more), 0, ended)
    assert "forbidden" in search.refused[0]
    assert ("proposals", search.refused) in told  # else nobody would know why nothing was tried


@dataclass(frozen=True)
class EarlyNo:
    """Refuses after two examples without a win."""

    chunk = 2
    fingerprint = {"acceptance": "early"}

    def settled(self, incumbent, candidate, total):
        verdict = tg.Better().decide(incumbent, candidate)
        return None if verdict.won else verdict

    def decide(self, incumbent, candidate):
        return tg.Better().decide(incumbent, candidate)


class Looking(Search):
    """Tries one prompt after another and notes what is left of the budget."""

    fingerprint = {"optimizer": "looking"}

    async def asearch(self, bench):
        self.looks = []
        for n in range(4):
            self.looks.append(bench.left)
            await bench.ascore(bench.train, {"triage": f"Route {n}.", "answer": "Answer."})
        yield Proposal({"triage": "Route.", "answer": "Answer."})


def test_what_is_left_of_the_budget_is_told_again_as_it_was_when_a_run_goes_on():
    def looks(store, calls):
        search = Looking()
        trainer = tg.Trainer(
            router.build(), router.OBJECTIVE, critic=NeverAsked(), optimizer=search, store=store,
            budget=tg.Budget(calls=calls),
        )  # fmt: skip
        trainer.fit(router.rows(words=["shoe"]), router.rows(words=["tent"]))
        return search.looks

    with tg.Store() as whole, tg.Store() as store:
        expected = looks(whole, 60)
        assert expected == sorted(expected, reverse=True)
        assert len(set(expected)) == 4
        assert looks(store, 20) == [n - 40 for n in expected[:3]]
        assert looks(store, 60) == expected


def test_acceptance_that_can_tell_early_spares_the_rest_of_validation():
    result, trainer, events = fit(Words("three", "one"), acceptance=EarlyNo())
    tried = [d["scored"].run.example.inputs["q"] for k, d in events if k == "run" and d["purpose"] == "val"]
    assert (len(tried), len(set(tried[:2]))) == (5, 2)
    assert set(tried[2:]) == {"one", "two", "four"}
    assert result.after == {"say": "one"}
    early = [d for k, d in events if k == "decision"][0]
    assert early["val_after"] is None


def test_two_candidates_that_are_clearly_better_are_accepted_one_after_the_other():
    words = [f"w{n}" for n in range(24)]
    search = Words("w0 " + " ".join(words[:17]), "w0 " + " ".join(words))
    graph = words_graph()
    trainer = tg.Trainer(
        graph, tg.Objective([share]), critic=NeverAsked(), optimizer=search, acceptance=tg.Sequential()
    )
    result = trainer.fit(rows("w0"), rows(*words))
    assert (result.accepted, result.best.val) == (2, 1.0)


def test_early_look_does_not_take_the_first_topic_of_a_sorted_file_for_all():
    rare, often = ([f"{w}{n}." for n in range(many)] for w, many in (("rare", 16), ("often", 48)))
    graph = words_graph()
    graph.parameters["say"].value = " ".join(rare)
    trainer = tg.Trainer(
        graph, tg.Objective([share]), critic=NeverAsked(), optimizer=Words("often0. " + " ".join(often)),
        acceptance=tg.Sequential(),
    )  # fmt: skip
    result = trainer.fit(rows("often0."), rows(*rare, *often))
    assert (result.baseline.val, result.best.val, result.accepted) == (0.25, 0.75, 1)


def test_guard_of_what_no_row_has_is_refused_before_any_run():
    guarded = tg.Guarded(slices=("langauge",))
    with pytest.raises(ConfigurationError, match="langauge"):
        _, _, events = fit(Words("one"), acceptance=guarded)


class Pair(tg.optim.Optimizer):
    """Proposes these edits, each alone."""

    def __init__(self, *edits):
        super().__init__()
        self.edits = edits

    @property
    def fingerprint(self):
        return {"optimizer": "pair"}

    async def aproposals(self):
        now = self.parameters["say"].value
        return [Proposal({"say": apply_edits(now, [e])}, (e,)) for e in self.edits]


@pytest.mark.parametrize(
    ("value", "promise", "edits"),
    [
        ("zero", {"max_tokens": 2}, [("add", 1, "one"), ("add", 1, "two")]),
        ("zero\n{x}\n{x}", {}, [("replace", 2, "one"), ("replace", 3, "two")]),
    ],
)
def test_proposals_that_break_a_promise_together_are_not_joined(value, promise, edits):
    prompt = tg.Parameter("say", value, **promise)
    graph = StateGraph(S).add_node("node", lambda state: {"a": str(prompt)}).add_edge(START, "node").compile()
    optimizer = Pair(*(tg.Edit("say", *edit) for edit in edits))
    trainer = tg.Trainer(
        tg.TrainableGraph(graph, [prompt]), tg.Objective([share]), critic=BlamesUpstream(),
        optimizer=optimizer, schedule=tg.Schedule(steps=1, batch_size=2),
    )  # fmt: skip
    result = trainer.fit(rows("one", "two"), rows("one", "two", "four"))
    assert result.accepted == 1
    prompt.check(result.after["say"])
    assert ("one" in result.after["say"]) != ("two" in result.after["say"])


def test_step_by_hand_does_not_join_what_breaks_a_promise_together():
    prompt = tg.Parameter("say", "zero", max_tokens=2)
    optimizer = Pair(tg.Edit("say", "add", 1, "one"), tg.Edit("say", "add", 1, "two"))
    optimizer.bind({"say": prompt})
    assert optimizer.step() == {"say": "zero\none"}


class Growing(tg.optim.Optimizer):
    """Adds a word to whatever text it works on."""

    words = iter(())

    @property
    def fingerprint(self):
        return {"optimizer": "growing"}

    async def aproposals(self):
        text = self.parameters["say"].value
        self.seen.append((text, [g.parameter for g in self.parameters["say"].grad]))
        return [Proposal({"say": f"{text} {next(self.words)}"})]


@dataclass
class First:
    """Starts every step from the baseline."""

    fingerprint = {"selection": "first"}

    def parent(self, pool, incumbent, random):
        return pool[0]


def test_step_from_another_parent_works_on_its_texts_and_leaves_the_incumbent_alone():
    optimizer = Growing()
    optimizer.words, optimizer.seen = iter(["one two", "four", "one two four"]), []
    graph = words_graph()
    trainer = tg.Trainer(
        graph, tg.Objective([share]), critic=BlamesUpstream(), optimizer=optimizer, selection=First(),
        schedule=tg.Schedule(steps=3, batch_size=3),
    )  # fmt: skip
    result = trainer.fit(rows("one", "two", "four"), rows("one", "two", "four", "five"))
    assert [text for text, _ in optimizer.seen] == ["zero", "zero", "zero"]
    assert result.after == {"say": "zero one two four"}
    assert len(result.lineage) == 3
    parents = {c["texts"]["say"]: c["parent"] for c in result.candidates.values()}
    assert parents["zero one two four"] == parents["zero four"] == result.lineage[0]
    assert optimizer.parameters["say"] is graph.parameters["say"]


BEFORE = {"a": "Old.\n\nExamples:\n\nInput: 1\nOutput: 2", "b": "Be."}


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ({"b": "Be kind."}, {"a": "New."}, {"b": "Be kind.", "a": "New."}),
        (
            {"a": "New.\n\nExamples:\n\nInput: 1\nOutput: 2"},
            {"a": "Old.\n\nExamples:\n\nInput: 3\nOutput: 4"},
            {"a": "New.\n\nExamples:\n\nInput: 3\nOutput: 4"},
        ),
        ({"b": "Be kind."}, {"b": "Be quick.", "a": "New."}, {"b": "Be kind."}),
    ],
)
def test_merged_proposals_change_instruction_and_demonstrations_independently(first, second, together):
    made = merged([Proposal({**BEFORE, **first}, kind="x"), Proposal({**BEFORE, **second}, kind="y")], BEFORE)
    assert made.candidate == {**BEFORE, **together}


def edited(text, *edits):
    return Proposal({**BEFORE, "b": apply_edits(BEFORE["b"], edits)}, tuple(edits), text)


def add(text):
    return tg.Edit("b", "add", 1, text)


def replace(text):
    return tg.Edit("b", "replace", 1, text)


def test_merged_proposals_keep_the_lines_that_both_add():
    made = merged([edited("x", add("Be kind.")), edited("y", add("Be quick."), replace("Exist."))], BEFORE)
    assert made.candidate["b"] == "Exist.\nBe kind.\nBe quick."
    assert [e.text for e in made.edits] == ["Be kind.", "Be quick.", "Exist."]
    assert made.kind == "x, y"


def test_line_that_two_proposals_add_stands_once_with_the_gradients_of_both():
    one, other = (tg.Edit("b", "add", 1, "Be kind.", (g,)) for g in ("g1", "g2"))
    made = merged([edited("x", one), edited("y", other, add("Be quick."))], BEFORE)
    assert made.candidate["b"] == "Be.\nBe kind.\nBe quick."
    assert made.edits[0].gradients == ("g1", "g2")


def test_merged_proposals_keep_a_blank_line_that_one_adds_where_another_deletes_a_line():
    before = {"p": "one\ntwo\nthree"}
    shorter = Proposal({"p": "two\nthree"}, [tg.Edit("p", "delete", 1)])
    looser = Proposal({"p": "one\ntwo\n\nthree"}, [tg.Edit("p", "add", 2, "")])
    assert merged([shorter, looser], before).candidate == {"p": "two\n\nthree"}


def test_merged_proposals_that_rewrite_one_line_are_at_odds():
    made = merged([edited("x", replace("Exist.")), edited("y", replace("Vanish."), add("Z."))], BEFORE)
    assert (made.candidate["b"], made.kind) == ("Exist.", "x")
    rewritten = Proposal({**BEFORE, "b": "Anew."}, kind="rewrite")
    assert merged([edited("x", add("Z.")), rewritten], BEFORE).candidate["b"] == "Be.\nZ."


def test_proposal_that_is_at_odds_somewhere_is_left_out_whole():
    other = Proposal({"a": "New.", "b": "Be.\nZ."}, (add("Z."),), "z")
    first = Proposal({**edited("", add("Be kind.")).candidate, "a": "Newer."}, (add("Be kind."),), "x")
    made = merged([first, other], BEFORE)
    assert made.candidate == {"a": "Newer.", "b": "Be.\nBe kind."}


class Thorough(OnBatch):
    """A screening of one's own."""

    fingerprint = {"screening": "thorough"}


@pytest.mark.parametrize(
    ("optimizer", "options", "told"),
    [
        (Words("one"), {}, None),
        (Words("one"), {"schedule": tg.Schedule(seed=3)}, None),
        (Words("one"), {"schedule": tg.Schedule(steps=9)}, "steps has no effect; its own options are texts."),
        (
            Portfolio(members=[OutputRules()], batch_size=3),
            {"schedule": tg.Schedule(5, 7, patience=2)},
            "steps, batch_size and patience have no effect; its own options are members",
        ),
        (Portfolio(members=[OutputRules()], batch_size=7), {"schedule": tg.Schedule(batch_size=7)}, None),
        (Words("one"), {"selection": tg.Pareto(), "screening": Thorough()}, "selection and screening have no effect"),
        (OutputRules(), {"schedule": tg.Schedule(9, 9, patience=2), "selection": tg.Pareto()}, None),
    ],
)
def test_settings_without_effect_on_a_search_are_told(optimizer, options, told, caplog):
    tg.Trainer(words_graph(), tg.Objective([share]), critic=NeverAsked(), optimizer=optimizer, **options)
    assert (told in caplog.text) if told else not caplog.text
