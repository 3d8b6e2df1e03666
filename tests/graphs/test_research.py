"""The research example: its archive, its evaluators, and what a run of it records."""

from __future__ import annotations

import json

import pytest

import lg_textgrad as tg
from evals.evaluators import research as evaluators
from graphs.research import graph as module
from lg_textgrad import cli
from lg_textgrad.data import read_prompts
from tests.graphs.parts import ROOT, comments, imported, rows, scores, system_prompt
from tests.servers.openai_server import OpenAIServer

ROWS = rows("research")
ALL_ROWS = [row for split in ROWS.values() for row in split]
QUESTION = {"question": "Who rang the church bell, and what did the new one cost?"}
REFERENCE = {
    "boxes": ["attic", "harbour"],
    "facts": [["Pia"], ["640 crowns"]],
    "form": {"begins": "Holm archive:", "most_words": 35},
}


def scripted(body):
    """Name two boxes, note the first entry that was found, answer with the notes."""
    system, said = system_prompt(body), body["messages"][-1]["content"]
    if "plan" in system:
        return json.dumps({"boxes": ["attic", "harbour"]})
    if "read entries" in system:
        return said.split("\n")[1]
    notes = said.split("\n")[2:]
    return f"Holm archive: {' '.join(notes)}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("RESEARCH_BASE_URL", raising=False)
    monkeypatch.delenv("RESEARCH_MODEL", raising=False)
    with OpenAIServer(scripted, models=None) as server:
        monkeypatch.setenv("LG_TEXTGRAD_LOCAL_URL", server.base_url)
        module.model.cache_clear()
        yield server
        module.model.cache_clear()


def test_the_graph_never_imports_the_tuner():
    assert "langgraph" in (names := imported("graphs/research/graph.py"))
    assert "lg_textgrad" not in names


def test_the_splits_share_no_question_and_each_needs_all_boxes():
    questions = [row.inputs["question"] for row in ALL_ROWS]
    assert len(set(questions)) == len(questions) >= 40
    assert len({row.id for row in ALL_ROWS}) == len(ALL_ROWS)
    for split in ROWS.values():
        assert {box for row in split for box in row.outputs["boxes"]} == set(module.BOXES)


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.id)
def test_a_search_of_the_right_boxes_finds_every_expected_fact(row):
    asked = row.inputs["question"]
    boxes = row.outputs["boxes"]
    found = [module.search.invoke({"box": box, "question": asked}) for box in boxes]
    outputs = {"boxes": boxes, "answer": "\n".join(found)}
    said = scores(evaluators.ALL, outputs, row.outputs)
    assert (said["boxes"], said["facts"]) == (1, 1)


def test_a_right_answer_has_full_marks():
    answer = "Holm archive: Pia and Sanna Holt rang it [attic], 640 crowns were paid [harbour]."
    outputs = {"boxes": ["harbour", "attic"], "answer": answer}
    assert scores(evaluators.ALL, outputs, REFERENCE) == {"boxes": 1, "facts": 1, "form": 1}


def test_a_wrong_answer_is_told_boxes_facts_and_form():
    wrong = {"boxes": ["attic", "school"], "answer": "Pia " + "word " * 35}
    said = scores(evaluators.ALL, wrong, REFERENCE)
    assert said == {"boxes": pytest.approx(1 / 3), "facts": 0.5, "form": 0}
    told = comments(evaluators.ALL, wrong, REFERENCE)
    assert told["boxes"] == (
        "Boxes: questions about money and cargo must be looked up in the box 'harbour'; "
        "boxes that the question does not need must be left out, here ['school']."
    )
    assert told["facts"] == "The answer does not state: 640 crowns."
    for words in ("begin with the words 'Holm archive:'", "square brackets", "at most 35 words"):
        assert words in told["form"]


def test_an_answer_that_never_came_scores_nothing():
    assert scores(evaluators.ALL, {}, REFERENCE) == {"boxes": 0, "facts": 0, "form": 0}


async def test_every_reference_prompt_is_one_that_discovery_finds(server):
    graph = await tg.adiscover(module.graph, ROWS["train"][:3])
    reference = read_prompts("graphs/research/reference.toml")
    assert reference.keys() <= graph.parameters.keys()
    for name, text in reference.items():
        graph.parameters[name].check(text)


async def test_a_question_becomes_an_answer_from_both_boxes(server):
    outputs = await module.graph.ainvoke(QUESTION)
    assert outputs["boxes"] == ["attic", "harbour"]
    assert scores(evaluators.ALL, outputs, REFERENCE) == {"boxes": 1, "facts": 1, "form": 1}
    assert len(server.chats) == 4


async def test_a_run_records_the_plan_a_reader_for_each_box_and_the_writer(server):
    [run] = await tg.TrainableGraph(module.graph).arecord([{"inputs": QUESTION}])
    assert run.error is None
    assert [e.id for e in run.executions] == ["planner#0", "reader#0", "reader#1", "writer#0"]
    planner, one, other, writer = run.executions
    assert list(planner.sends) == ["reader", "reader"]
    assert {one.inputs["box"], other.inputs["box"]} == {"attic", "harbour"}
    for reader in (one, other):
        assert reader.sent_by == "planner#0"
        assert [c.name for c in reader.tool_calls] == ["search"]
        assert len(reader.model_calls) == 1
    assert len(writer.inputs["notes"]) == 2


async def test_readers_of_different_boxes_have_different_system_prompts(server):
    await module.graph.ainvoke(QUESTION)
    prompts = {system_prompt(body) for body in server.chats}
    for box in ("attic", "harbour"):
        assert any(f"from the {box} box" in prompt for prompt in prompts)


def test_documented_drawing_is_what_inspect_prints(server, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["inspect", "graphs.research.graph:graph"]
    command += ["--inputs", "graphs/research/data/train.jsonl"]
    documented = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    shown = documented.partition(" ".join(command))[2].split("```")[1].strip("\n")
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for part in shown.split("\n\n"):
        assert part.removesuffix("\n…") in printed
