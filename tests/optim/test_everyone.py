"""What holds for every optimizer in a whole training: killed, or out of budget, it loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.assembly import OPTIMIZERS
from lg_textgrad.demos import split_demos
from lg_textgrad.optim import FewShot, Proposal, Strategies
from lg_textgrad.parameter import apply_edits, candidate_of
from lg_textgrad.selection import Incumbent
from tests.optim import router
from tests.optim.everyone import ALL, STEPPERS, TRAIN, fit, write
from tests.optim.test_search_contract import Knows, same_but_for_seconds
from tests.parts import BlamesUpstream, Chat, Scripted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole():
    """Each training from beginning to end."""
    return {name: fit(name)[0] for name in ALL}


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """Run directories of trainings that were killed after two thirds."""
    folder = tmp_path_factory.mktemp("killed")
    calls = {name: max(2, result.spent.usage.calls * 2 // 3) for name, result in whole.items()}
    subprocess.run(
        [sys.executable, "-m", "tests.optim.everyone", folder, json.dumps(calls)],
        cwd=ROOT, check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return folder


def test_every_optimizer_is_here():
    assert OPTIMIZERS.keys() <= ALL.keys()


@pytest.mark.parametrize("name", sorted(ALL))
def test_killed_training_goes_on_repays_nothing_and_ends_the_same(name, whole, killed):
    with tg.Store(killed / name, read_only=True) as store:
        paid = sum(usage.calls for usage in store.paid().values())
    asked = []
    resumed, _ = fit(name, store=killed / name, at_call=lambda: asked.append(None))
    assert same_but_for_seconds(resumed) == same_but_for_seconds(whole[name])
    assert resumed.spent.usage.calls == whole[name].spent.usage.calls
    assert 0 < paid == resumed.spent.usage.calls - len(asked)


@pytest.mark.parametrize("name", sorted(STEPPERS))
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_used_up_budget_keeps_what_was_accepted_until_then(name, part, whole):
    calls = max(9, int(whole[name].spent.usage.calls * part))
    result, graph = fit(name, budget=tg.Budget(calls=calls))
    assert result.stopped_by == "budget_calls"
    assert result.spent.usage.calls <= calls
    assert candidate_of(graph.parameters) == result.after
    assert list(result.lineage) == list(whole[name].lineage[: len(result.lineage)])
    assert result.best.val >= result.baseline.val


# The rules of outputs tell the form of replies, and no reply of this graph has a wrong one.
@pytest.mark.parametrize("name", sorted(ALL.keys() - {"output_rules"}))
def test_whole_training_ends_better_than_it_began(name, whole):
    assert whole[name].best.val > whole[name].baseline.val
    assert len(whole[name].lineage) > 1


class S(TypedDict, total=False):
    message: str
    said: str


def one_node():
    """A graph of one call, whose reply depends on every word of the prompt: nothing is shared."""
    say = tg.Parameter("say", "You answer.\nBe brief.")
    model = Chat(answer=lambda messages: f"{len(messages[0].content)} {messages[1].content}")

    async def node(state):
        said = await model.ainvoke([say.message(), HumanMessage(state["message"])])
        return {"said": said.content}

    return tg.TrainableGraph(StateGraph(S).add_node("say", node).add_edge(START, "say").compile(), [say])


def longer(outputs):
    return {"key": "long", "score": min(1.0, int(outputs["said"].split()[0]) / 2000), "comment": "Say more."}


MANY = {
    "fewshot": lambda model: FewShot(threshold=0.0, sizes=(1, 2, 3)),
    "strategies": lambda model: Strategies(),
    "tgd_beam": ALL["tgd_beam"],
}


class Joining(Incumbent):
    """Joins something at each step."""

    def merge(self, pool, incumbent, random):
        return Proposal({"say": f"Joined {len(pool)}."})


@pytest.mark.parametrize("name", sorted(MANY))
def test_no_step_takes_more_calls_than_the_estimate_says(name):
    rows = {s: [{"inputs": {"message": f"{s}{n}"}, "outputs": {"said": "x"}} for n in range(m)]
            for s, m in (("train", 8), ("val", 12), ("test", 5))}  # fmt: skip
    told = []
    trainer = tg.Trainer(
        one_node(), tg.Objective([longer]), critic=BlamesUpstream(), optimizer=MANY[name](Scripted(write)),
        schedule=tg.Schedule(steps=1, batch_size=4), acceptance=tg.Significant(alpha=1e-9), selection=Joining(),
        on_event=lambda kind, data: told.append((kind, data)),
    )  # fmt: skip
    result = trainer.fit(**rows, reference={"say": "Answer at length."})
    made = [data["proposals"] for kind, data in told if kind == "proposals"][0]
    assert 2 < len(made) <= trainer.optimizer.step_proposals(1)
    [estimate] = [data["estimate"]["calls"] for kind, data in told if kind == "start"]
    assert result.spent.usage.calls <= estimate < 2 * result.spent.usage.calls


async def proposed(name, value=None, **options):
    """Let an optimizer see a recorded batch, its gradients included. Returns what it proposes, and the graph."""
    graph = router.build(**options)
    graph.parameters["triage"].value = value or graph.parameters["triage"].value
    graph.parameters["answer"].requires_grad = False
    examples = router.examples(TRAIN)
    loss = await router.OBJECTIVE.acall(await graph.arecord(examples))
    optimizer = STEPPERS[name](Scripted(write))
    optimizer.bind(graph.parameters)
    optimizer.see_examples(examples)
    optimizer.see(loss.scored)
    await loss.abackward(Knows())
    return await optimizer.aproposals(), graph


@pytest.mark.parametrize("name", sorted(STEPPERS.keys() - {"output_rules"}))
async def test_what_is_proposed_keeps_every_promise_and_is_not_applied(name):
    promises = {"locked": ["Name the team."], "forbidden": ["size goes"], "max_tokens": 200}
    proposals, graph = await proposed(name, **promises)
    untouched = {n: (p.value, p.demos) for n, p in router.build(**promises).parameters.items()}
    assert {n: (p.value, p.demos) for n, p in graph.parameters.items()} == untouched
    assert proposals
    assert len({p.hash for p in proposals}) == len(proposals)
    for proposal in proposals:
        assert proposal.candidate.keys() == untouched.keys()
        assert proposal.changed(candidate_of(graph.parameters)) == {"triage"}
        graph.parameters["triage"].check(proposal.candidate["triage"])
        edited = apply_edits(graph.parameters["triage"].value, proposal.edits)
        assert edited == split_demos(proposal.candidate["triage"])[0]


@pytest.mark.parametrize("name", sorted(STEPPERS.keys() - {"output_rules"}))
async def test_value_that_has_demonstrations_is_edited_before_them_and_they_stay_whole(name):
    """Such as a tuned text that was exported, and is tuned again."""
    shown = "\n\nExamples:\n\nInput: My size of the cup, please.\nOutput: advice"
    proposals, _ = await proposed(name, f"You route.\nName the team.{shown}")
    assert proposals
    for proposal in proposals:
        instruction, demos = split_demos(proposal.candidate["triage"])
        assert apply_edits("You route.\nName the team.", proposal.edits) == instruction
        assert name == "fewshot" or demos == (tg.Demo("My size of the cup, please.", "advice"),)
        assert demos


@pytest.mark.parametrize("name", sorted(STEPPERS))
async def test_same_batch_makes_the_same_proposals(name):
    (one, _), (two, _) = await proposed(name), await proposed(name)
    assert one == two


def test_fingerprints_are_plain_data_and_differ():
    prints = {name: dict(make(Scripted(write)).fingerprint) for name, make in ALL.items()}
    assert json.loads(json.dumps(prints)) == prints
    assert len({json.dumps(found, sort_keys=True) for found in prints.values()}) == len(ALL)
