"""The Pareto front against brute force, merges by ancestry, and a run that greed can't end."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.pareto import front
from lg_textgrad.parameter import candidate_hash


def entry(scores, candidate=None, parents=()):
    candidate = candidate or {"p": repr(scores)}
    outcomes = {str(n): tg.Outcome(score) for n, score in enumerate(scores)}
    return tg.Entry(candidate_hash(candidate), candidate, outcomes, parents)


POOLS = st.integers(1, 4).flatmap(
    lambda rows: st.lists(
        st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * rows), min_size=1, max_size=6, unique=True
    )
)


@given(POOLS)
def test_front_leads_everywhere_and_nobody_in_it_is_needless(rows):
    pool = [entry(scores) for scores in rows]
    wins = front(pool)
    best = [max(column) for column in zip(*rows, strict=True)]
    for e in pool:
        if e.hash in wins:
            assert wins[e.hash] == {str(n) for n, b in enumerate(best) if e.outcomes[str(n)].score == b}
    covered = set().union(*wins.values())
    assert covered == {str(n) for n in range(len(best))}
    for left_out in wins:
        rest = set().union(*(w for h, w in wins.items() if h != left_out))
        assert rest < covered
    assert front(pool) == wins


def test_parents_are_drawn_as_often_as_they_lead():
    pool = [entry([1, 1, 1, 0]), entry([0, 0, 0, 1]), entry([0.5, 0.5, 0.5, 0.5])]
    dice = random.Random(0)
    drawn = [tg.Pareto().parent(pool, pool[0], dice).hash for _ in range(400)]
    assert drawn.count(pool[2].hash) == 0
    assert 260 < drawn.count(pool[0].hash) < 340


def family():
    base = entry([0, 0, 0], {"a": "A", "b": "B", "c": "C"})
    one = entry([1, 1, 0], {"a": "A1", "b": "B", "c": "C1"}, (base.hash,))
    other = entry([0, 0, 1], {"a": "A", "b": "B2", "c": "C2"}, (base.hash,))
    return [base, one, other]


def test_merge_takes_each_text_from_the_one_that_changed_it():
    pool = family()
    merged = tg.Pareto(merge_every=1).merge(pool, pool[1], random.Random(0))
    assert merged.candidate == {"a": "A1", "b": "B2", "c": "C1"}
    assert merged.parents == (pool[1].hash, pool[2].hash)


def test_nothing_is_merged_with_its_own_ancestor_or_twice_or_when_it_is_not_the_time():
    base, one, other = family()
    child = entry([0, 1, 1], {**one.candidate, "b": "B9"}, (one.hash,))
    policy = tg.Pareto(merge_every=1)
    assert policy.merge([base, one, child], one, random.Random(0)) is None
    done = entry([0, 0, 0], {"a": "A1", "b": "B2", "c": "C1"}, (base.hash,))
    assert policy.merge([base, one, other, done], one, random.Random(0)) is None
    assert tg.Pareto(merge_every=0).merge([base, one, other], one, random.Random(0)) is None


class Ladder(tg.optim.Optimizer):
    """Adds the word that the text it works on lacks for its own topic; never both."""

    needs_gradients = False

    @property
    def fingerprint(self):
        return {"optimizer": "ladder"}

    async def aproposals(self):
        now = {n: p.value for n, p in self.parameters.items()}
        steps = {"start": "left", "left": "leftmost", "leftmost": "goal"}
        if now["say"] in steps:
            return [tg.optim.Proposal({"say": steps[now["say"]]})]
        return []


def test_pareto_reaches_what_greed_gives_up():
    from typing import TypedDict

    from langgraph.graph import START, StateGraph

    class S(TypedDict, total=False):
        q: str
        a: str

    scores = {
        "start": {"x": 0.5, "y": 0.5, "z": 0.5},
        "left": {"x": 0.6, "y": 0.3, "z": 0.3},  # worse on the whole, best on one
        "leftmost": {"x": 0.7, "y": 0.3, "z": 0.3},
        "goal": {"x": 1.0, "y": 1.0, "z": 1.0},
    }

    def fit(selection):
        prompt = tg.Parameter("say", "start")
        builder = StateGraph(S).add_node("node", lambda s: {"a": str(prompt)}).add_edge(START, "node")
        graph = tg.TrainableGraph(builder.compile(), [prompt])

        def score(inputs, outputs):
            return scores[outputs["a"]][inputs["q"]]

        trainer = tg.Trainer(
            graph, tg.Objective([score]), critic=None, optimizer=Ladder(), selection=selection,
            schedule=tg.Schedule(steps=12, batch_size=1, seed=1),
        )  # fmt: skip
        return trainer.fit([{"inputs": {"q": "x"}}], [{"inputs": {"q": q}} for q in "xyz"]).after["say"]

    assert fit(tg.Incumbent()) == "start"
    assert fit(tg.Pareto()) == "goal"


def test_merge_every_must_make_sense():
    with pytest.raises(ConfigurationError, match="merge_every"):
        tg.Pareto(merge_every=-1)


def test_brute_force_agrees_on_small_fronts():
    for rows in itertools.product(itertools.product((0, 1), repeat=2), repeat=3):
        if len(set(rows)) == 3:
            pool = [entry(scores) for scores in rows]
            wins = front(pool)
            smallest = min(
                (c for k in range(1, 4) for c in itertools.combinations(pool, k) if _covers(c, pool)), key=len
            )
            assert len(wins) == len(smallest)


def _covers(chosen, pool):
    return all(
        max(e.outcomes[str(n)].score for e in chosen) == max(e.outcomes[str(n)].score for e in pool) for n in range(2)
    )
