"""Offline is offline: as a library, too, whatever the environment says."""

from __future__ import annotations

import pytest
from langsmith import run_trees, traceable, utils
from langsmith.run_helpers import tracing_context
from langsmith.run_trees import get_cached_client

import lg_textgrad as tg
from lg_textgrad.langsmith.session import Options, Session
from lg_textgrad.recording.isolation import untraced_process
from lg_textgrad.store import Store
from tests import desk
from tests.desk import Script
from tests.langsmith.judges import polite
from tests.servers.openai_server import OpenAIServer
from tests.test_objective import Asyncly, Syncly, decorated, decorated_async


@pytest.fixture
def tracing(server, monkeypatch):
    """An environment in which LangChain and LangSmith trace all that they can, to `server`."""
    for name, value in {
        "LANGSMITH_TRACING": "true", "LANGCHAIN_TRACING_V2": "true", "LANGSMITH_ENDPOINT": server.url,
        "LANGSMITH_API_KEY": server.api_key, "LANGSMITH_PROJECT": "leaks",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    utils.get_env_var.cache_clear()
    monkeypatch.setattr(run_trees, "_CLIENT", None)
    yield server
    if run_trees._CLIENT is not None:
        run_trees._CLIENT.close()
    utils.get_env_var.cache_clear()


@traceable
def helper(text):
    return text


def test_everything_by_hand_sends_nothing(tracing, monkeypatch):
    with OpenAIServer(Script()) as models:
        monkeypatch.setenv("DESK_BASE_URL", models.base_url)
        graph = desk.build()
        model = tg.models.OpenAI("test-model", base_url=models.base_url, api_key="k")

        def traced(outputs):
            return {"key": "traced", "score": bool(helper(outputs["answer"]))}

        def a_is_out(run, example):
            return {"key": "k", "score": "a" not in (run.outputs or {})}

        evaluators = [*desk.EVALUATORS, polite, traced, a_is_out]
        runs = graph.record(desk.rows(3))
        loss = tg.Objective(evaluators)(runs)
        optimizer = tg.optim.TextualGradientDescent(model, parameters=graph.parameters)
        loss.backward(tg.LLMCritic(model))
        assert optimizer.step() != desk.START_PROMPTS
        objects = tg.Objective([Syncly(), Asyncly(), decorated, decorated_async])
        seen = tg.Run("r", tg.Example("e", {"q": "in"}, {"a": "ref"}), "c", {"a": "out"})
        assert objects([seen]).score == 1
        with Store() as store, Session(Options(), store, graph, tg.Objective(evaluators)) as session:
            assert session.approver is None
            assert session.optimizer(optimizer, 1, 1) is optimizer
            session.on_event("start", {})
            assert session.finish() == {}
    assert tracing.requests == []
    helper("traced on its own")  # so the server would have heard it
    get_cached_client().flush()
    assert tracing.requests != []


def test_process_is_untraced_and_then_as_before(tracing, monkeypatch):
    monkeypatch.delenv("LANGCHAIN_TRACING_V2")
    with untraced_process():
        assert not utils.tracing_is_enabled()
        with tracing_context(enabled=True):
            assert utils.tracing_is_enabled()  # whoever says so in the code still gets it
    assert utils.tracing_is_enabled()
    import os

    assert "LANGCHAIN_TRACING_V2" not in os.environ


def test_session_in_python_as_it_is_documented(server, client, monkeypatch, tmp_path):
    import re
    from pathlib import Path

    from tests.langsmith.parts import desk_dataset

    desk_dataset(client, "support")
    text = (Path(__file__).parent.parent.parent / "docs" / "langsmith.md").read_text(encoding="utf-8")
    code = re.search(r"## In Python\n```python\n(.*?)```", text, re.S)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", server.url)
    monkeypatch.setenv("LANGSMITH_API_KEY", server.api_key)
    with OpenAIServer(Script()) as models:
        monkeypatch.setenv("DESK_BASE_URL", models.base_url)
        model = tg.models.OpenAI("test-model", base_url=models.base_url, api_key="k")
        names = {
            "tg": tg, "graph": desk.build(), "objective": tg.Objective(desk.EVALUATORS),
            "critic": tg.LLMCritic(model), "optimizer": tg.optim.TextualGradientDescent(model),
        }  # fmt: skip
        exec(code, names)
    assert names["session"].delivery.left == 0
    assert {s["name"].split("-")[2] for s in server.sessions.values()} == {"train", "val", "test", "optimizer"}
    assert server.repos
