"""The support desk that peers tune is the one that we tune."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from contextlib import contextmanager

import pytest

import lg_textgrad as tg
from evals.benchmarks.support_peers.__main__ import _run, rows_of, start
from evals.benchmarks.support_peers.desk import CAPS, score, serve
from evals.evaluators.support import ALL
from graphs.support import graph as support
from tests.servers.openai_server import OpenAIServer

ROWS = rows_of(0, val=12, test=12)["test"]


def reply_to(prompt, text):
    """Return what the model says, now and then REVISE, a team or an article."""
    said = ("REVISE: shorter", "OK", "To payments!", "repairs", "sizes", "See F-1234.", "Ja")
    return said[int(hashlib.sha256((prompt + text).encode()).hexdigest(), 16) % len(said)]


@contextmanager
def serving(monkeypatch, answer):
    """The graph's server, with `answer` for each request's body."""
    with OpenAIServer(answer) as server:
        monkeypatch.setenv("SUPPORT_BASE_URL", server.base_url)
        monkeypatch.setenv("SUPPORT_MODEL", "test-model")
        support.model.cache_clear()
        yield server
    support.model.cache_clear()


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch, lambda b: reply_to(*(m["content"] for m in b["messages"]))) as server:
        yield server


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
async def test_desk_without_langgraph_asks_and_answers_as_the_graph_does(server, row):
    prompts = {name: p.value for name, p in support.graph.parameters.items()}
    steps = []

    def ask(node, text):
        steps.append((prompts[node], text, CAPS[node]))
        return reply_to(prompts[node], text)

    served = serve(ask, row["inputs"]["message"])
    with tg.use_ledger(tg.Ledger(max_concurrency=1)):
        [run] = await support.graph.arecord([tg.Example(row["id"], row["inputs"], row["outputs"])])
        loss = await tg.Objective(ALL).acall([run])
    assert (run.outputs["team"], run.outputs["answer"]) == (served.team, served.answer)
    assert steps == [
        (*(m["content"] for m in body["messages"]), body["max_completion_tokens"])
        for body in server.chats
    ]
    assert score(served.team, served.answer, row["outputs"])[0] == pytest.approx(loss.score)


def test_some_answer_is_sent_back_and_some_is_not():
    prompts = {name: p.value for name, p in support.graph.parameters.items()}
    served = [
        serve(lambda node, text: reply_to(prompts[node], text), row["inputs"]["message"])
        for row in ROWS
    ]
    assert {len(s.steps) for s in served} == {4, 6}


def test_validation_and_test_rows_are_drawn_by_the_seed_and_stay_apart():
    first, again, other = (rows_of(seed, val=12, test=24) for seed in (0, 0, 1))
    assert first == again != other
    ids = [{r["id"] for r in own} for own in first.values()]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert list(map(len, ids)) == [129, 12, 24]


RULE = (
    "An answer must begin with the words 'Good day from Fernhill.' and end with the words "
    "'Warm regards, Fernhill'; an answer must have at most 40 words."
)


def learner(body):
    """The model of a desk whose writer keeps to the form once its prompt tells it."""
    system = body["messages"][0]["content"]
    if "response_format" in body:
        wanted = body["response_format"]["json_schema"]["schema"]["properties"]
        known = {"general_rule": RULE, "weight": 1, "reason": "form"}
        return {name: known.get(name, []) for name in wanted}
    if system.startswith("You answer"):
        return "Good day from Fernhill. Warm regards, Fernhill" if RULE in system else "Hello"
    return "OK"


def test_who_comes_after_us_begins_where_we_began(monkeypatch, tmp_path):
    with serving(monkeypatch, learner) as server:
        options = argparse.Namespace(
            base_url=server.base_url, model="test-model", calls=300, val=6, test=2, runs=tmp_path
        )
        ours = _run("lg_textgrad", 0, options)
        again = _run("lg_textgrad", 0, argparse.Namespace(**{**vars(options), "runs": tmp_path / "b"}))
    assert RULE in ours["prompts"]["writer"], "nothing was learned"
    assert {name: p.full for name, p in support.graph.parameters.items()} == start()
    assert RULE not in start()["writer"]
    assert again["way"][0][1] == ours["way"][0][1] < ours["way"][-1][1]


def test_process_that_trains_and_ends_leaves_no_connection_open(tmp_path):
    with OpenAIServer(learner) as server:
        done = subprocess.run(
            [sys.executable, "-m", "evals.benchmarks.support_peers", "--base-url", server.base_url,
             "--model", "test-model", "--seeds", "0", "--methods", "lg_textgrad", "--val", "2",
             "--test", "2", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "r.json")],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "lg_textgrad" in done.stdout
    assert "Unclosed" not in done.stderr
