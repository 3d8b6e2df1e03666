"""Dollars, tools and secrets on the command line, end to end with a real server and real files."""

from __future__ import annotations

import json
import logging

import pytest

from lg_textgrad.loading import Config, read_config
from lg_textgrad.store import Store, tables
from tests import desk
from tests.servers.openai_server import OpenAIServer
from tests.test_cli import here  # noqa: F401 - a fixture

PASSWORD = "correct-horse-battery"

TOOL_APP = '''
import os
from typing import TypedDict

import lg_textgrad as tg
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from tests.desk import EVALUATORS, chat

triage = tg.Parameter("triage", "You are the desk's triage.\\nReply with the team's name only.")


@tool
def vault(name: str) -> str:
    """Open it."""
    with open("calls.log", "a") as log:
        log.write(name + "\\n")
    return f"{name} opens with {os.environ.get('DB_PASSWORD', 'nothing')}"


class S(TypedDict, total=False):
    message: str
    team: str
    answer: str
    found: str


def node(state):
    found = vault.invoke({"name": state["message"]})
    model = chat(os.environ["DESK_BASE_URL"], "k", "test-model")
    reply = model.invoke([triage.message(), HumanMessage(state["message"])])
    return {"team": reply.content, "answer": f"{found} {state['message']}", "found": found}


graph = StateGraph(S).add_node("triage", node).add_edge(START, "triage").compile()


def team(outputs, reference_outputs):
    ok = outputs["team"] == reference_outputs["team"]
    told = "" if ok else f"{reference_outputs['rule']} ({outputs['found']})"
    return {"key": "team", "score": ok, "comment": told}


def mask(value):
    return value.replace("Bergen", "[city]") if isinstance(value, str) else value


def broken(value):
    raise KeyError(value)
'''


@pytest.fixture
def tools_here(here):  # noqa: F811
    (here.folder / "tool_app.py").write_text(TOOL_APP)
    desk.project(
        here.folder, graph="tool_app:graph", evaluator=["tool_app:team"], test=None, train_rows=3
    )
    here.calls = lambda: (here.folder / "calls.log").read_text().splitlines()
    return here


def everything_in(where):
    """Return all that a store holds, unpacked, as one text."""
    found = []
    with Store(where, read_only=True) as store:
        for table in tables.tables.sorted_tables:
            for row in store._rows(tables.sa.select(table)):
                found += [repr(tables.unpack(v) if isinstance(v, bytes) else v) for v in row]
    return "\n".join(found)


# Dollars.


def test_dollars_are_told_for_people_and_machines_and_add_up(here):  # noqa: F811
    done = here.run("optimize", "optimize.toml", "--price", "test-model=100,200", "--json", "--out", "a")
    assert done.code == 0, done.err
    spent = json.loads(done.out)["spent"]
    assert spent["usd"] == pytest.approx(
        (100 * spent["prompt_tokens"] + 200 * spent["completion_tokens"]) / 1e6, abs=1e-6
    )
    assert spent["unpriced"] == []
    assert spent["saved_usd"] > 0
    for said in (
        "test-model at http://127.0.0.1", "$100 in, $200 out per million tokens",
        "the whole run at most about $", f"tokens, ${spent['usd']:.4f},",
        f"saved: {spent['cached_calls']} calls, {spent['saved_tokens']:,} tokens, ${spent['saved_usd']:.4f}",
    ):  # fmt: skip
        assert said in done.err
    shown = json.loads(here.run("show", "a", "--json").out)["spent"]
    assert shown == spent


def test_unknown_price_is_told_and_refused_under_a_cap_in_dollars(here):  # noqa: F811
    done = here.run("optimize", "optimize.toml", "--json", "--out", "a")
    spent = json.loads(done.out)["spent"]
    assert (spent["usd"], spent["unpriced"]) == (None, ["test-model"])
    assert spent["unpriced_calls"] == spent["calls"]
    assert "test-model at http" in done.err
    assert "price unknown: test-model" in done.err
    asked = len(here.server.chats)
    again = here.run("resume", "a", "--json")
    assert json.loads(again.out)["spent"]["unpriced"] == ["test-model"]
    assert "price unknown: test-model" in again.err
    with Store(here.folder / "a") as store:
        store.put_meta("result", None)  # as a run has it that has not ended
    assert json.loads(here.run("show", "a", "--json").out)["spent"]["unpriced"] == ["test-model"]
    done = here.run("optimize", "optimize.toml", "--budget-usd", "1", "--out", "b")
    assert done.code == 2
    assert "The price of test-model at" in done.err
    assert len(here.server.chats) == asked


def test_cap_in_dollars_stops_the_run_and_can_be_raised_on_resume(here):  # noqa: F811
    settings = ("optimize", "optimize.toml", "--price", "test-model=100,100", "--max-concurrency", "1")
    whole = json.loads(here.run(*settings, "--json", "--out", "whole").out)
    cap = whole["spent"]["usd"] / 2
    done = here.run(*settings, "--budget-usd", str(cap), "--json", "--out", "capped")
    document = json.loads(done.out)
    assert (done.code, document["stopped_by"]) == (0, "budget_usd")
    dearest = max(usd for (usd,) in prices_in("capped"))
    assert cap / 2 < document["spent"]["usd"] <= cap + dearest
    done = here.run("resume", "capped", "--budget-usd", "1000", "--json")
    document = json.loads(done.out)
    assert document["parameters"] == whole["parameters"]
    assert document["spent"]["usd"] == pytest.approx(whole["spent"]["usd"])


def prices_in(where):
    with Store(where, read_only=True) as store:
        return [tuple(row) for row in store._rows(tables.sa.select(tables.results.c.usd))]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--price", "test-model"), "'test-model' is no price; write MODEL=IN,OUT"),
        (("--price", "m=1"), "price of 'm' must be two numbers"),
        (("--budget-usd", "-1"), "usd must be positive"),
        (("--tools", "sometimes"), "'sometimes' is no mode for the default"),
        (("--tool", "mail"), "'mail' is no tool's mode; write NAME=MODE"),
        (("--tool", "mail=maybe"), "'maybe' is no mode for mail"),
        (("--redact", "desk_app:nothing"), "nothing"),
        (("--redact", "desk_app:graph"), "cannot be called"),
    ],
)
def test_bad_settings_are_refused_before_the_first_call(here, arguments, said):  # noqa: F811
    done = here.run("optimize", "optimize.toml", *arguments, "--out", "x")
    assert done.code == 2
    assert said in done.err
    assert here.server.chats == []


# Tools.


def test_tools_of_a_configuration_and_flags_go_over_the_graphs_own(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('tools = {default = "record", modes = {a = "live", b = "live"}, shared = ["s"]}\ntool = "b=replay"')
    own = Config().tools_of(Config(tools="live").tools_of(None))
    assert own.default == "live"
    tools = read_config(path).tools_of(own)
    assert (tools.default, tools.modes, tools.shared) == (
        "record", {"a": "live", "b": "replay"}, {"s"}
    )  # fmt: skip
    path.write_text("tools = 3")
    with pytest.raises(Exception, match="'tools' must be a string or a table"):
        read_config(path)


@pytest.mark.parametrize(
    ("mode", "called_once"), [("replay-else-live", True), ("live", False), ("record", False)]
)
def test_tools_are_called_as_the_flag_says(tools_here, mode, called_once):
    done = tools_here.run("optimize", "optimize.toml", "--tools", mode, "--out", "a")
    assert done.code == 0, done.err
    calls = tools_here.calls()
    examples = len(set(calls))
    assert (len(calls) == examples) is called_once


def test_recording_is_replayed_by_another_command_and_what_is_missing_is_refused(tools_here):
    assert tools_here.run("optimize", "optimize.toml", "--out", "a").code == 0
    before = tools_here.calls()
    scored = ("evaluate", "optimize.toml", "--split", "val", "--json")
    done = tools_here.run(*scored, "--tool", "vault=replay", "--reuse", "a")
    document = json.loads(done.out)
    assert document["spent"]["calls"] == 0
    assert document["spent"]["cached_calls"] == document["rows"]
    assert tools_here.calls() == before
    done = tools_here.run(*scored, "--tools", "replay")
    assert json.loads(done.out)["score"] == 0  # nothing is recorded there, so each run fails
    assert tools_here.calls() == before
    done = tools_here.run("optimize", "optimize.toml", "--tools", "live", "--out", "a")
    assert done.code == 2
    assert "changed are graph" in done.err


def test_a_mode_of_a_tool_that_the_graph_does_not_have_is_told(tools_here):
    (tools_here.folder / "tool_app.py").write_text(
        f"{TOOL_APP}\n"
        "from langgraph.prebuilt import ToolNode\n"
        "builder = StateGraph(S).add_node('triage', node).add_node('tools', ToolNode([vault]))\n"
        "builder.add_edge(START, 'triage')\n"
        "builder.add_conditional_edges('triage', lambda _: '__end__', ['tools', '__end__'])\n"
        "graph = builder.compile()\n"
    )
    scored = ("evaluate", "optimize.toml", "--split", "val")
    said = "No ToolNode of the graph has valut, which the settings of tools name; there are vault."
    assert said in tools_here.run(*scored, "--tool", "valut=replay").err
    assert said in tools_here.run("optimize", "optimize.toml", "--tool", "valut=replay").err
    assert "No ToolNode" not in tools_here.run(*scored, "--tool", "vault=live").err


# Secrets.


def test_secret_that_tools_and_evaluators_tell_comes_out_nowhere(tools_here, monkeypatch, caplog):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    caplog.set_level(logging.DEBUG)
    done = tools_here.run("optimize", "optimize.toml", "--json", "--out", "a")
    assert done.code == 0, done.err
    told = [done.out, done.err]
    for command in (("show", "a", "--json"), ("diff", "a"), ("diff", "a", "--json"),
                    ("export", "a", "--out", "prompts.toml", "--json"),
                    ("evaluate", "optimize.toml", "--split", "val", "--json")):  # fmt: skip
        done = tools_here.run(*command)
        assert done.code == 0, done.err
        told += [done.out, done.err]
    told.append((tools_here.folder / "prompts.toml").read_text())
    told.append(caplog.text)
    kept = everything_in("a")
    assert "opens with [API key]" in kept
    assert PASSWORD not in kept
    assert all(PASSWORD not in text for text in told)
    assert all(
        PASSWORD.encode() not in file.read_bytes() for file in (tools_here.folder / "a").iterdir()
    )
    assert all(PASSWORD not in json.dumps(body) for body in tools_here.server.chats)


def test_secret_in_an_error_is_not_shown(tools_here, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    app = tools_here.folder / "tool_app.py"
    app.write_text(
        TOOL_APP + "\n\ndef failing(outputs):\n    raise RuntimeError(os.environ['DB_PASSWORD'])\n"
    )
    done = tools_here.run("optimize", "optimize.toml", "--evaluator", "tool_app:failing", "--out", "a")
    assert done.code == 2
    assert "raised RuntimeError" in done.err
    assert PASSWORD not in done.err + everything_in("a")


def test_hook_of_the_configuration_masks_what_is_kept_and_shown(tools_here):
    done = tools_here.run("optimize", "optimize.toml", "--redact", "tool_app:mask", "--json", "--out", "a")
    assert done.code == 0, done.err
    kept = everything_in("a")
    assert "[city]" in kept
    assert "Bergen" not in kept + done.out + done.err
    assert any("Bergen" in json.dumps(b) for b in tools_here.server.chats if desk.who(b)[0] == "rollout")
    assert not any(
        "Bergen" in json.dumps(b) for b in tools_here.server.chats if desk.who(b)[0] != "rollout"
    )


def test_hook_that_fails_ends_the_run_without_a_word_of_what_it_saw(tools_here):
    done = tools_here.run("optimize", "optimize.toml", "--redact", "tool_app:broken", "--out", "a")
    assert done.code == 2
    assert "The redaction hook raised KeyError" in done.err
    assert "Bergen" not in done.err + everything_in("a")
