"""Graphs that declare no prompts, from the command line: found once, paid once, tuned, resumed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import lg_textgrad as tg
from lg_textgrad import _render, opening
from lg_textgrad.data import read_prompts
from lg_textgrad.errors import BudgetTooSmallError, GraphError, RunMismatchError
from lg_textgrad.loading import read_config
from lg_textgrad.objective import Loss
from lg_textgrad.store import Store
from tests import desk
from tests.desk import ENDING, START_PROMPTS, Script
from tests.servers.openai_server import Fault, OpenAIServer
from tests.test_cli import here, one_error, settle

__all__ = ["here"]  # the fixture

FOUND = "Discovery found the prompts triage, writer, polish."


@pytest.fixture
def plain(here):
    """`here`, with a graph that never imports lg_textgrad."""
    desk.project(here.folder, made="build_plain()")
    return here


def total(server):
    return len(server.chats)


# Tuning.


def test_optimize_finds_the_prompts_of_a_plain_graph_and_pays_once(plain):
    done = plain.run("optimize", "optimize.toml", "--out", "r", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert FOUND in done.err
    assert document["best"] == {"val": 1.0, "test": 1.0}
    assert {n: p["before"] for n, p in document["parameters"].items()} == START_PROMPTS
    assert document["spent"]["calls"] == total(plain.server)
    assert desk.repeats(plain.server) == {}


def test_looking_at_a_run_and_ending_it_needs_no_graph_call(plain):
    done = plain.run("optimize", "optimize.toml", "--out", "r", "--json")
    asked, after = total(plain.server), json.loads(done.out)["parameters"]
    plain.server.handler = None  # whatever is asked now fails
    again = plain.run("resume", "r", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["parameters"] == after
    assert json.loads(plain.run("show", "r", "--json").out)["parameters"] == after
    changes = json.loads(plain.run("diff", "r", "--json").out)
    assert {n: c["after"] for n, c in changes.items()} == {n: p["after"] for n, p in after.items()}
    plain.run("export", "r", "--out", "p.toml")
    assert read_prompts("p.toml") == {n: p["after"] for n, p in after.items()}
    assert total(plain.server) == asked


def test_a_budget_that_ends_anywhere_is_kept_and_the_run_goes_on(plain):
    whole = json.loads(plain.run("optimize", "optimize.toml", "--out", "whole", "--json").out)
    for calls, in_discovery in ((4, True), (9, False)):  # three rows of three calls
        before, out = total(plain.server), f"r{calls}"
        done = plain.run("optimize", "optimize.toml", "--out", out, "--budget-calls", calls)
        assert done.code == 3
        assert total(plain.server) - before == calls
        assert ("in which the graph's prompts are found" in one_error(done.err)) is in_discovery
        needed = "At least 18 calls are needed, 9 of them to find the prompts."
        assert (needed in done.err) is not in_discovery
        with Store(plain.folder / out, read_only=True) as store:
            assert (store.get_meta("discovered") is None) is in_discovery
            assert sum(u.calls for u in store.paid().values()) == calls
        done = plain.run("resume", out, "--budget-calls", "1000", "--json")
        assert done.code == 0, done.err
        ended = json.loads(done.out)
        assert ended["parameters"] == whole["parameters"]
        assert ended["spent"]["calls"] == whole["spent"]["calls"] == total(plain.server) - before


def test_discover_rows_says_how_many_inputs_are_run_for_it(plain):
    plain.run(
        "optimize", "optimize.toml", "--out", "r", "--discover-rows", "1", "--budget-calls", "3"
    )
    with Store(plain.folder / "r", read_only=True) as store:
        assert store.get_meta("discovered") is not None
        assert sum(u.calls for u in store.paid().values()) == 3


def test_discovery_beside_declared_parameters_finds_the_others(here):
    (here.folder / "desk_app.py").write_text(
        "import lg_textgrad as tg\n"
        "from tests.desk import EVALUATORS, START_PROMPTS, build_plain\n"
        "writer = tg.Parameter('writer', START_PROMPTS['writer'])\n"
        "graph = build_plain(writer=writer)\n"
    )
    done = here.run("optimize", "optimize.toml", "--discover", "--out", "b", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"].keys() == set(START_PROMPTS)
    assert json.loads(done.out)["best"]["val"] == 1
    done = here.run("inspect", "desk_app:graph", "--discover", "--inputs", "train.jsonl", "--json")
    found = json.loads(done.out)["parameters"]
    assert {n: p["held"] for n, p in found.items()} == {
        "writer": "declared in the node",
        "triage": "found in the system message",
        "polish": "found in the system message",
    }
    assert all(p["read_by"] == [name] for name, p in found.items())


def test_without_discovery_there_is_nothing_to_train(plain):
    done = plain.run("optimize", "optimize.toml", "--no-discover", "--out", "r")
    assert (done.code, "nothing to train" in one_error(done.err)) == (2, True)
    assert total(plain.server) == 0


def test_a_run_begun_without_discovery_refuses_it(here):
    assert here.run("optimize", "optimize.toml", "--out", "r", "--budget-calls", "12").code == 0
    asked = total(here.server)
    done = here.run("resume", "r")
    assert done.code == 0, done.err
    asked = total(here.server)
    done = here.run("optimize", "optimize.toml", "--out", "r", "--discover")
    assert (done.code, "begun without discovery" in one_error(done.err)) == (2, True)
    assert total(here.server) == asked


def test_a_graph_without_a_prompt_is_told_why(plain):
    (plain.folder / "desk_app.py").write_text(
        "from langgraph.graph import START, StateGraph\n"
        "from tests.desk import EVALUATORS, Desk\n"
        "def copy(state): return {'answer': state['message'], 'team': 'x'}\n"
        "graph = StateGraph(Desk).add_node('copy', copy).add_edge(START, 'copy').compile()\n"
    )
    done = plain.run("optimize", "optimize.toml", "--out", "r")
    assert done.code == 2
    assert "no prompt that can be tuned in 3 runs: no node calls a chat model" in one_error(done.err)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"executor": "rya"}, "There is no executor 'rya'"),
        ({"executor": "ray", "executor_options": {"workers": 2}}, "no option 'workers'"),
        ({"critic_options": {"max_token": 2}}, "The critic 'node' has no option 'max_token'"),
        ({"critic": "auto", "critic_options": {"share": 2.0}}, "`share` of AutoCritic must be a number above 0 and at most 1, not 2.0"),
    ],
)
def test_what_critic_and_executor_do_not_have_is_told_before_the_graph_runs(here, settings, said):
    desk.project(here.folder, made="build_plain()", **settings)
    done = here.run("optimize", "optimize.toml", "--out", "r")
    assert (done.code, said in one_error(done.err)) == (2, True)
    assert total(here.server) == 0


DATED = """\
import os
from langgraph.graph import START, StateGraph
from tests.desk import Desk, chat, team

class Dated(Desk, total=False):
    day: str

async def triage(state):
    asked = [("system", f"You are the desk's triage on {state['day']}."), ("user", state["message"])]
    return {"team": (await chat(os.environ["DESK_BASE_URL"], "k", "test-model").ainvoke(asked)).content}

graph = StateGraph(Dated).add_node("triage", triage).add_edge(START, "triage").compile()
"""


def dated(here, *days):
    """Make the graph one whose prompt has the day in it: Monday in train, and `days` in val."""
    desk.project(here.folder, evaluator=["desk_app:team"], test=None, steps=1)
    (here.folder / "desk_app.py").write_text(DATED)
    for name, own in (("train", ["Monday"] * 3), ("val", days)):
        made = desk.rows(len(own), 10 * len(name))
        for row, day in zip(made, own, strict=True):
            row["inputs"]["day"] = day
        desk.write_jsonl(here.folder / f"{name}.jsonl", made)


def test_rows_on_which_a_prompt_is_another_than_was_found_are_told(here):
    dated(here, "Monday", "Tuesday", "Friday")
    done = here.run("optimize", "optimize.toml", "--out", "r")
    assert done.code == 0, done.err
    assert "in 2 of 3 runs: The node 'triage' sent a system message that is not the prompt" in done.err
    assert done.err.count("that is not the prompt which was found there") == 1
    here.run("export", "r", "--out", "p.toml")
    done = here.run("evaluate", "optimize.toml", "--split", "val", "--prompts", "p.toml")
    assert done.code == 0, done.err
    assert "in 2 of 3 runs: The node 'triage' sent" in done.err


def test_a_prompt_that_no_validation_run_sends_as_found_is_told_with_what_to_do(here):
    dated(here, "Tuesday", "Friday")
    done = here.run("optimize", "optimize.toml", "--out", "r")
    assert done.code == 2
    told = one_error(done.err)
    assert "The node 'triage' sent a system message that is not the prompt" in told
    assert "discover_rows" in told
    assert "triage.message()" not in told  # which a graph that declares nothing doesn't have


def test_no_more_than_a_few_of_the_things_that_runs_warn_of_are_told():
    runs = [SimpleNamespace(warnings=(f"once {n}", "always"), error=None) for n in range(9)]
    scored = [SimpleNamespace(run=r, score=1.0, feedback=(), weights={}) for r in runs]
    console = Console(file=io.StringIO(), width=100)
    _render.show_scores(console, "val", Loss(scored), {})
    said = console.file.getvalue()
    assert "in 9 of 9 runs: always" in said
    assert said.count("once") == 4


# Scoring and looking.


def test_evaluate_puts_exported_prompts_into_a_plain_graph(plain):
    plain.run("optimize", "optimize.toml", "--out", "r")
    plain.run("export", "r", "--out", "p.toml")
    before = total(plain.server)
    done = plain.run("evaluate", "optimize.toml", "--prompts", "p.toml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["score"] == 1
    asked = total(plain.server) - before
    assert asked == 3 * 3 + 2 * 3  # discovery on train, then the two rows of test
    assert f"spent: {asked} calls" in done.err
    again = plain.run("evaluate", "optimize.toml", "--prompts", "p.toml", "--reuse", "r")
    assert "spent: 0 calls" in again.err


def test_evaluate_without_prompts_needs_no_discovery(plain):
    done = plain.run("evaluate", "optimize.toml", "--json")
    assert done.code == 0, done.err
    assert total(plain.server) == 6


def test_inspect_of_a_plain_graph_says_how_its_prompts_are_found(plain):
    done = plain.run("inspect", "desk_app:graph")
    assert done.code == 0
    assert "With --inputs FILE they are found" in done.out
    done = plain.run("inspect", "desk_app:graph", "--discover")
    assert (done.code, "give --inputs FILE" in one_error(done.err)) == (2, True)
    assert total(plain.server) == 0


def test_inspect_runs_a_plain_graph_once_on_each_input(plain, monkeypatch):
    ran = []
    monkeypatch.setattr(desk, "RAN", ran)
    desk.project(plain.folder, made="build_plain(desk.RAN)")
    source = Path("desk_app.py").read_text()
    Path("desk_app.py").write_text(f"from tests import desk\n{source}")
    done = plain.run("inspect", "desk_app:graph", "--inputs", "test.jsonl", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert sorted(ran) == sorted(2 * ["triage", "writer", "polish"])
    for name, text in START_PROMPTS.items():
        parameter = document["parameters"][name]
        assert parameter["value"] == text
        assert parameter["held"] == "found in the system message"
        assert parameter["nodes"] == parameter["read_by"] == [name]
        assert parameter["read_in"] == {"e6": [f"{name}#0"], "e7": [f"{name}#0"]}
    assert [(f["node"], f["parameter"]) for f in document["found"]] == [
        (name, name) for name in START_PROMPTS
    ]


def test_inspect_points_at_nodes_that_ask_a_model_without_a_parameter(plain):
    done = plain.run("inspect", "desk_app:graph", "--inputs", "test.jsonl", "--no-discover")
    assert done.code == 0
    assert "No parameter is read by polish, triage, writer" in done.out
    with (plain.folder / "desk_app.py").open("a") as file:
        file.write("import lg_textgrad as tg\nspare = tg.Parameter('spare', 'x')\n")
    done = plain.run("inspect", "desk_app:graph", "--inputs", "test.jsonl")
    assert "No parameter is read by polish, triage, writer" in done.out
    assert "try --discover" in done.out


def test_inspect_says_what_was_not_found_and_why(plain):
    (plain.folder / "half.py").write_text(
        "from langgraph.graph import START, StateGraph\n"
        "from langchain_core.messages import HumanMessage, SystemMessage\n"
        "from tests.desk import Desk\n"
        "from tests.parts import Chat, echo\n"
        "model = Chat(answer=echo)\n"
        "async def writer(state):\n"
        "    said = [SystemMessage('You write.'), HumanMessage(state['message'])]\n"
        "    return {'draft': (await model.ainvoke(said)).content}\n"
        "async def rare(state): return {}\n"
        "builder = StateGraph(Desk).add_node('writer', writer).add_node('rare', rare)\n"
        "builder.add_edge(START, 'writer')\n"
        "builder.add_conditional_edges('writer', lambda s: '__end__', ['rare', '__end__'])\n"
        "graph = builder.compile()\n"
    )
    done = plain.run("inspect", "half:graph", "--inputs", "test.jsonl")
    assert "✎ writer  found in the system message\n" in done.out
    assert "Not found\n  rare: no run reached it; give inputs that lead there\n" in done.out
    document = json.loads(plain.run("inspect", "half:graph", "--inputs", "test.jsonl", "--json").out)
    assert {"node": "rare", "parameter": None, "why": "no run reached it; give inputs that lead there",
            "text": ""} in document["found"]  # fmt: skip


def test_inspect_says_where_runs_wait_and_takes_tools_that_are_only_names(plain):
    (plain.folder / "waits.py").write_text(
        "from langgraph.checkpoint.memory import InMemorySaver\n"
        "from langgraph.graph import START, StateGraph\n"
        "from langgraph.types import interrupt\n"
        "from langchain_core.messages import HumanMessage, SystemMessage\n"
        "from tests.desk import Desk\n"
        "from tests.parts import Chat, echo\n"
        "model = Chat(answer=echo).bind(tools=['web_search'])\n"
        "async def writer(state):\n"
        "    said = [SystemMessage('You write.'), HumanMessage(state['message'])]\n"
        "    return {'draft': (await model.ainvoke(said)).content}\n"
        "def ask(state): return {'answer': interrupt('May it go?')}\n"
        "builder = StateGraph(Desk).add_sequence([writer, ask]).add_edge(START, 'writer')\n"
        "graph = builder.compile(checkpointer=InMemorySaver())\n"
    )
    command = ["inspect", "waits:graph", "--inputs", "test.jsonl", "--discover-tools"]
    done = plain.run(*command)
    assert done.code == 0, done.err
    assert "✎ writer  found in the system message\n" in done.out
    assert done.err.count("waits at an interrupt in the node 'ask'") == 1  # for all runs
    assert "Traceback" not in done.err


# Beginning.


def test_init_of_a_plain_graph_leaves_finding_to_the_run(plain):
    done = plain.run("init", "desk_app:graph", "--out", "new.toml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"out": "new.toml", "parameters": [], "discover": True}
    assert "found by running it" in done.err
    assert read_config("new.toml").discover is True
    assert total(plain.server) == 0


def test_a_factory_is_called_once_for_a_command(plain):
    (plain.folder / "made.py").write_text(
        "from tests.desk import build_plain\n"
        "def make():\n"
        "    print('made')\n"
        "    return build_plain()\n"
    )
    for command in (["init", "--out", "m.toml"], ["inspect"]):
        done = plain.run(command[0], "made:make", *command[1:], "--inputs", "test.jsonl")
        assert (done.code, done.err.count("made\n")) == (0, 1), done.err


def test_init_with_inputs_shows_the_prompts_that_it_found(plain):
    done = plain.run(
        "init", "desk_app:graph", "--out", "new.toml", "--inputs", "train.jsonl", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] == list(START_PROMPTS)
    assert FOUND in done.err
    assert read_config("new.toml").discover is True
    text = Path("new.toml").read_text()
    for prompt in START_PROMPTS.values():
        assert all(f"# {line}\n" in text for line in prompt.splitlines())


def test_init_of_a_graph_with_parameters_shows_discovery_as_a_comment(here):
    here.run("init", "desk_app:graph", "--out", "new.toml")
    assert read_config("new.toml").discover is None
    assert re.search(r"^# discover = true ", Path("new.toml").read_text(), re.M)


# Without the command line.


@pytest.fixture
def asked(tmp_path, monkeypatch):
    with OpenAIServer(Script()) as server:
        settle(monkeypatch, tmp_path, server)
        yield server


def inputs(count):
    return [tg.Example(r["id"], r["inputs"], r["outputs"]) for r in desk.rows(count)]


async def test_found_prompts_come_from_the_store_the_second_time(asked, tmp_path):
    graph = tg.TrainableGraph(desk.build_plain())
    with Store(tmp_path / "r") as store:
        first = await opening.awith_discovered(graph, inputs(2), store)
        assert total(asked) == 6
        assert store.get_meta("elapsed") > 0
        ran = []
        again = tg.TrainableGraph(desk.build_plain(ran))
        second = await opening.awith_discovered(again, inputs(2), store)
    assert ran == []
    assert {n: p.value for n, p in second.parameters.items()} == START_PROMPTS
    assert second.found == first.found
    assert graph.parameters == {}  # it stays as it was


async def test_other_inputs_are_looked_at_as_long_as_the_run_has_not_begun(asked, tmp_path):
    ran = []
    graph = tg.TrainableGraph(desk.build_plain(ran))
    with Store(tmp_path / "r") as store:
        await opening.awith_discovered(graph, inputs(1), store)
        await opening.awith_discovered(graph, inputs(2), store)
        assert (len(ran), total(asked)) == (3 + 6, 6)
        store.put_meta("configuration", {})
        await opening.awith_discovered(graph, inputs(3), store)
        assert (len(ran), total(asked)) == (3 + 6, 6)


async def test_discovery_is_refused_in_a_run_that_has_begun_without(asked):
    with Store() as store:
        store.put_meta("configuration", {})
        with pytest.raises(RunMismatchError, match="discover = false"):
            await opening.awith_discovered(
                tg.TrainableGraph(desk.build_plain()), inputs(1), store
            )
    assert total(asked) == 0


async def test_discovery_keeps_to_the_budget(asked):
    with Store() as store:
        graph = tg.TrainableGraph(desk.build_plain())
        with pytest.raises(BudgetTooSmallError, match="prompts are found.*budget_calls"):
            await opening.awith_discovered(graph, inputs(2), store, budget=tg.Budget(calls=4))
        assert total(asked) == sum(u.calls for u in store.paid().values()) == 4


async def test_discovery_of_a_graph_that_always_fails_says_so(asked):
    asked.handler = lambda _: Fault(400)
    with Store() as store, pytest.raises(GraphError, match="failed on every input"):
        await opening.awith_discovered(tg.TrainableGraph(desk.build_plain()), inputs(2), store)


async def test_found_prompts_of_another_store_are_paid_for_there(asked, tmp_path):
    graph = tg.TrainableGraph(desk.build_plain())
    with Store(tmp_path / "a") as first, Store(tmp_path / "b") as second:
        await opening.awith_discovered(graph, inputs(2), first)
        found = await opening.awith_discovered(graph, inputs(2), second, reuse=first)
        assert total(asked) == 6
        assert second.paid() == {}
    assert set(found.parameters) == set(START_PROMPTS)


async def test_found_prompts_take_other_texts(asked, tmp_path):
    with Store() as store:
        graph = await opening.awith_discovered(
            tg.TrainableGraph(desk.build_plain()), inputs(2), store
        )
    text = f"{START_PROMPTS['polish']}\n{ENDING}"
    [run] = await graph.arecord(inputs(1), prompts={"polish": text})
    assert run.outputs["answer"].endswith("Kind regards.")
