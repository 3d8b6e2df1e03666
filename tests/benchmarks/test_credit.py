"""The desks of the credit benchmark, and what it measures."""

from __future__ import annotations

import argparse
import json

import pytest

import lg_textgrad as tg
from evals.benchmarks.credit import __main__ as credit
from evals.benchmarks.credit.desks import DESKS
from tests.parts import Scripted

FAULTS = [(desk, node) for desk in DESKS for node in DESKS[desk].nodes]


def oracle(blames="last"):
    """A model that knows what each node should have written, and blames whomever it is told to."""

    def reply(request):
        if "faults" in request.schema["properties"]:
            steps = request.schema["properties"]["faults"]["items"]["properties"]["step"]["enum"]
            step = steps[-1 if blames == "last" else 0]
            return {"faults": [{"step": step, "general_rule": "Try.", "weight": 1}]}
        if "general_rule" in request.schema["properties"]:
            return {"general_rule": "Do your work right.", "weight": 0.5}
        text = request.messages[-1]["content"]
        name = text.split("Step: ")[1].split(" ")[0]
        given = text.split("It was given:\n")[1].split("\n\nIt wrote:")[0]
        node = next(desk.nodes[name] for desk in DESKS.values() if name in desk.nodes)
        return {"output": node.reply(given, False)}

    return Scripted(reply)


@pytest.mark.parametrize("desk", DESKS)
async def test_desk_without_a_fault_gets_full_marks(desk):
    graph, objective = DESKS[desk].graph(None), tg.Objective([DESKS[desk].evaluator])
    loss = await objective.acall(await graph.arecord(DESKS[desk].rows))
    assert [s.score for s in loss.scored] == [1.0] * len(DESKS[desk].rows)
    assert len(graph.parameters) == 6


@pytest.mark.parametrize(("desk", "faulty"), FAULTS)
async def test_each_fault_costs_points_and_is_a_line_that_the_prompt_lacks(desk, faulty):
    graph, _, cases = await credit.cases_of(DESKS[desk], faulty, 2)
    assert len(cases) == 2
    node = DESKS[desk].nodes[faulty]
    assert node.decisive in node.prompt.split("\n")
    right = DESKS[desk].graph(None).parameters
    changed = {n for n, p in graph.parameters.items() if p.value != right[n].value}
    assert changed == {faulty}
    assert node.decisive not in graph.parameters[faulty].value


@pytest.mark.parametrize("blames", ["first", "last"])
@pytest.mark.parametrize(("desk", "faulty"), FAULTS)
async def test_proof_finds_every_fault_when_corrections_are_right_whomever_the_critic_blames(
    desk, faulty, blames
):
    with tg.use_ledger(tg.Ledger()):
        graph, objective, [case] = await credit.cases_of(DESKS[desk], faulty, 1)
        found = await credit.weights_of("proven", oracle(blames), graph, objective, case)
    assert credit.hit(found, faulty) == 1
    assert found[faulty] == 1


@pytest.mark.parametrize("blames", ["first", "last"])
@pytest.mark.parametrize("desk", DESKS)
async def test_calls_stay_within_what_is_foretold(desk, blames):
    for faulty in DESKS[desk].nodes:
        ledger = tg.Ledger()
        with tg.use_ledger(ledger):
            graph, objective, [case] = await credit.cases_of(DESKS[desk], faulty, 1)
            await credit.weights_of("proven", oracle(blames), graph, objective, case)
            spent = ledger.account.by_kind
        critic = credit.critic_of("proven", oracle(), graph, objective)
        assert spent["critic"].calls + spent["proof"].calls <= critic.most_calls(6) == 1 + 18 + 15


async def test_the_same_feedback_for_all_finds_a_fault_once_in_six(tmp_path):
    options = argparse.Namespace(
        ways=["same"], desks=["hotel"], nodes=None, rows=1, concurrency=4, results=tmp_path / "r.json"
    )
    records = await credit.measure(options, Scripted(None))
    assert [r["faulty"] for r in records] == list(DESKS["hotel"].nodes)
    assert {r["hit"] for r in records} == {1 / 6}
    assert json.loads(options.results.read_text()) == records
    assert "| same | - | 17% of 6 | 17% of 6 | 0.0 | 0 |" in credit.table(records)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"a": 0.5, "b": 0.4}, 1), ({"a": 0.5, "b": 0.5}, 0.5), ({"a": 0.4, "b": 0.5}, 0), ({"a": 0, "b": 0}, 0)],
)
def test_hit_is_shared_by_those_that_are_as_large(weights, expected):
    assert credit.hit(weights, "a") == expected
