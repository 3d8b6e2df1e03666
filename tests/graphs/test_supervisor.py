"""The supervisor example: its data, its evaluators, and what a run of it records."""

from __future__ import annotations

import json
import re

import pytest

import lg_textgrad as tg
from evals.evaluators import supervisor as evaluators
from graphs.supervisor import graph as module
from lg_textgrad.data import read_prompts
from tests.graphs.parts import comments, imported, rows, scores, system_prompt
from tests.servers.openai_server import OpenAIServer

ROWS = rows("supervisor")
ALL_ROWS = [row for split in ROWS.values() for row in split]
MESSAGE = {"messages": [{"role": "user", "content": "Where does the van of B-104 go?"}]}
REFERENCE = {
    "desk": "steward",
    "about": "vehicles and animals",
    "facts": [["lane 4"]],
    "form": {"begins": "Skerry Line:", "ends": "Fair winds!", "most_words": 30},
}


def scripted(body):
    """Hand over to the steward, look up B-104, answer with what was found."""
    system, said = system_prompt(body), body["messages"][-1]["content"]
    if "response_format" not in body:
        return f"Skerry Line: {said.partition('The desk found: ')[2]} Fair winds!"
    return json.dumps({"call": "ask_steward" if "supervisor" in system else "look_up B-104"})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("SUPERVISOR_BASE_URL", raising=False)
    monkeypatch.delenv("SUPERVISOR_MODEL", raising=False)
    with OpenAIServer(scripted, models=None) as server:
        monkeypatch.setenv("LG_TEXTGRAD_LOCAL_URL", server.base_url)
        module.model.cache_clear()
        yield server
        module.model.cache_clear()


def test_the_graph_never_imports_the_tuner():
    assert "langchain" in (names := imported("graphs/supervisor/graph.py"))
    assert "lg_textgrad" not in names


def test_the_splits_share_no_message_and_each_has_all_desks():
    messages = [row.inputs["messages"][0]["content"] for row in ALL_ROWS]
    assert len(set(messages)) == len(messages) >= 40
    assert len({row.id for row in ALL_ROWS}) == len(ALL_ROWS)
    for split in ROWS.values():
        assert {row.outputs["desk"] for row in split} == set(module.DESKS)


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.id)
def test_the_right_desk_can_find_every_expected_fact(row):
    desk, text = row.outputs["desk"], row.inputs["messages"][0]["content"]
    number = re.search(r"B-\d{3}", text)
    found = [module.BOOKS[number[0]][desk]] if number else module.RULES[desk]
    right = [
        f"Skerry Line: {entry} Fair winds!"
        for entry in found
        if scores(evaluators.ALL, {"answer": entry}, row.outputs)["facts"] == 1
    ]
    assert len(right) == 1
    best = scores(evaluators.ALL, {"desk": desk, "answer": right[0]}, row.outputs)
    assert best == {"desk": 1, "facts": 1, "form": 1}


def test_a_wrong_answer_is_told_desk_facts_and_form():
    wrong = {"desk": "pier", "answer": " ".join(["word"] * 31)}
    assert scores(evaluators.ALL, wrong, REFERENCE) == {"desk": 0, "facts": 0, "form": 0}
    said = comments(evaluators.ALL, wrong, REFERENCE)
    assert said["desk"] == (
        "Desk: messages about vehicles and animals must go to the steward desk; "
        "this one went to pier."
    )
    assert said["facts"] == "The answer does not state: lane 4."
    for words in ("begin with the words 'Skerry Line:'", "end with the words 'Fair winds!'", "30"):
        assert words in said["form"]


def test_an_answer_that_never_came_scores_nothing_for_any_fact():
    assert scores(evaluators.ALL, {}, REFERENCE) == {"desk": 0, "facts": 0, "form": 0}


async def test_every_reference_prompt_is_one_that_discovery_finds(server):
    graph = await tg.adiscover(module.graph, ROWS["train"][:3])
    reference = read_prompts("graphs/supervisor/reference.toml")
    assert reference.keys() <= graph.parameters.keys()
    for name, text in reference.items():
        graph.parameters[name].check(text)


@pytest.mark.parametrize("sync", [True, False])
async def test_a_message_goes_to_the_desk_and_comes_back_as_an_answer(server, sync):
    graph = module.graph
    outputs = graph.invoke(MESSAGE) if sync else await graph.ainvoke(MESSAGE)
    assert outputs == {
        "desk": "steward",
        "answer": "Skerry Line: A grey van, lane 4, in front of the ramp. Fair winds!",
    }
    assert scores(evaluators.ALL, outputs, REFERENCE) == {"desk": 1, "facts": 1, "form": 1}
    assert len(server.chats) == 3


async def test_a_run_records_the_hand_over_the_desk_and_the_answer(server):
    [run] = await tg.TrainableGraph(module.graph).arecord([{"inputs": MESSAGE}])
    assert run.error is None
    assert [e.path for e in run.executions] == [
        "supervisor",
        "supervisor/model",
        "supervisor/tools",
        "steward",
        "steward/model",
        "steward/tools",
        "supervisor",
        "supervisor/model",
        "supervisor/publish.after_agent",
    ]
    asking = [e.path for e in run.executions if e.model_calls]
    assert asking == ["supervisor/model", "steward/model", "supervisor/model"]
    handed, looked_up = (e for e in run.executions if e.path.endswith("/tools"))
    assert [c.name for c in handed.tool_calls] == ["ask_steward"]
    assert [(c.name, c.inputs) for c in looked_up.tool_calls] == [("look_up", {"booking": "B-104"})]


async def test_a_call_for_a_tool_is_held_to_the_tools_at_hand(server):
    await module.graph.ainvoke(MESSAGE)
    hand_over, look_up, write = server.chats
    patterns = [
        body["response_format"]["json_schema"]["schema"]["properties"]["call"]["pattern"]
        for body in (hand_over, look_up)
    ]
    assert patterns == [
        "^(ask_pier|ask_cashier|ask_steward)$",
        "^(look_up B-[0-9]{3})$",
    ]
    assert "tools" not in write
