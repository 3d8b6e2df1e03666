"""Parameter.middleware(): real create_agent graphs with tools, other middleware, and crowds."""

from __future__ import annotations

import asyncio
import builtins

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, TodoListMiddleware, wrap_model_call
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.errors import MissingExtraError
from lg_textgrad.inspecting import held
from tests.parts import Chat


class Agent(Chat):
    """Asks for the tool first, then answers with the system prompt that it saw."""

    def bind_tools(self, tools, **kwargs):
        return self

    @property
    def prompts(self):
        return [next((m.content for m in c if m.type == "system"), None) for c in self.calls]


def looks_once(messages):
    system = next((str(m.content) for m in messages if m.type == "system"), "none")
    if messages[-1].type == "human":
        return AIMessage("", tool_calls=[{"name": "look", "args": {"word": "x"}, "id": "c1"}])
    return f"{system} > {messages[-1].content}"


@tool
def look(word: str) -> str:
    """Look a word up."""
    return f"found {word}"


def agent_with(*middleware, answer=looks_once, **options):
    model = Agent(answer=answer)
    return model, create_agent(model, [look], middleware=list(middleware), **options)


BATCH = [{"inputs": {"messages": [{"role": "user", "content": "hi"}]}}]


def said(run):
    assert run.error is None, run.error
    return run.outputs["messages"][-1].content


def readers(run):
    return {(e.path, *item) for e in run.executions for item in e.prompts.items()}


@pytest.mark.parametrize("sync", [True, False])
async def test_hundred_candidates_at_once_each_with_its_own_system_message(sync):
    p = tg.Parameter("p", "default")
    _, agent = agent_with(p.middleware())
    if sync:

        def outer(state):
            return agent.invoke(state)

        builder = StateGraph(AgentState).add_node("outer", outer).add_edge(START, "outer")
        agent_graph, at = builder.compile(), "outer/model"
    else:
        agent_graph, at = agent, "model"
    graph = tg.TrainableGraph(agent_graph, [p])
    with tg.use_ledger(tg.Ledger(max_concurrency=100)):
        runs = await asyncio.gather(
            *(graph.arecord(BATCH, prompts={"p": f"text {i}"}) for i in range(100))
        )
    for i, [run] in enumerate(runs):
        assert said(run) == f"text {i} > found x"
        assert readers(run) == {(at, "p", f"text {i}")}
        assert sum(bool(e.prompts) for e in run.executions) == 2  # before and after the tool
    assert p.value == "default"


def test_outside_a_run_the_value_is_the_system_prompt():
    p = tg.Parameter("p", "default", demos=[tg.Demo("a", "b")])
    _, agent = agent_with(p.middleware())
    out = agent.invoke(BATCH[0]["inputs"])["messages"][-1].content
    assert out == "default\n\nExamples:\n\nInput: a\nOutput: b > found x"


def test_how_it_is_held_is_told_from_what_a_node_reads():
    by_agent, by_node = tg.Parameter("by_agent", "one"), tg.Parameter("by_node", "two")
    _, agent = agent_with(by_agent.middleware())
    graph = tg.TrainableGraph(agent, [by_agent, by_node])
    assert {n: held(graph, n).how for n in graph.parameters} == {
        "by_agent": "put in by create_agent middleware",
        "by_node": "declared in the node",
    }


async def test_two_agents_in_one_graph_read_each_its_own():
    first, second = tg.Parameter("first", "one"), tg.Parameter("second", "two")

    def once(messages):
        return str(messages[0].content)

    builder = StateGraph(AgentState)
    for p in (first, second):
        builder.add_node(p.name, agent_with(p.middleware(), answer=once)[1])
    builder.add_edge(START, "first").add_edge("first", "second")
    graph = tg.TrainableGraph(builder.compile(), [first, second])
    [run] = await graph.arecord(BATCH, prompts={"second": "new"})
    assert readers(run) == {("first/model", "first", "one"), ("second/model", "second", "new")}
    assert [m.content for m in run.outputs["messages"]] == ["hi", "one", "new"]


async def test_two_parameters_in_one_agent_stand_in_the_order_of_the_list():
    a, b = tg.Parameter("a", "A"), tg.Parameter("b", "B")
    model, agent = agent_with(a.middleware(), b.middleware())
    [run] = await tg.TrainableGraph(agent, [a, b]).arecord(BATCH, prompts={"b": "B2"})
    assert model.prompts == ["A\n\nB2"] * 2
    assert readers(run) == {("model", "a", "A"), ("model", "b", "B2")}


async def test_what_other_middleware_added_before_and_after_stays():
    p = tg.Parameter("p", "mine")

    def adds(text):
        async def add(request, handler):
            before = request.system_message.text if request.system_message else ""
            return await handler(request.override(system_message=SystemMessage(before + text)))

        return wrap_model_call(add, name=f"Adds{len(text)}")

    model, agent = agent_with(adds("[before]"), p.middleware(), adds("[after it]"))
    await tg.TrainableGraph(agent, [p]).arecord(BATCH, prompts={"p": "new"})
    assert model.prompts == ["[before]\n\nnew[after it]"] * 2


async def test_langchains_own_todo_middleware_keeps_its_part():
    p = tg.Parameter("p", "mine")
    for middleware in ([TodoListMiddleware(system_prompt="TODO"), p.middleware()],
                       [p.middleware(), TodoListMiddleware(system_prompt="TODO")]):  # fmt: skip
        model, agent = agent_with(*middleware)
        await tg.TrainableGraph(agent, [p]).arecord(BATCH, prompts={"p": "new"})
        text = SystemMessage(model.prompts[0]).text
        assert "TODO" in text
        assert "new" in text
        assert "mine" not in text


async def test_retry_around_it_reads_again_and_adds_nothing_twice():
    p = tg.Parameter("p", "mine")

    class Twice(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            await handler(request)
            return await handler(request)

    model, agent = agent_with(Twice(), p.middleware(), system_prompt="base")
    await tg.TrainableGraph(agent, [p]).arecord(BATCH)
    assert model.prompts == ["base\n\nmine"] * 4


async def test_agents_own_copy_of_the_text_is_replaced():
    p = tg.Parameter("p", "Be kind.")
    model, agent = agent_with(p.middleware(), system_prompt=f"Fixed. {p.value} End.")
    p.value = "accepted since"
    await tg.TrainableGraph(agent, [p]).arecord(BATCH, prompts={"p": "new"})
    assert model.prompts == ["Fixed. new End."] * 2


async def test_content_blocks_stay_with_what_is_set_on_them():
    p = tg.Parameter("p", "Be kind.")
    cached = {"type": "text", "text": "law", "cache_control": {"type": "ephemeral"}}
    own = {"type": "text", "text": "Be kind."}
    for content, expected in (
        ([cached, own], [cached, {"type": "text", "text": "new"}]),
        ([cached], [cached, {"type": "text", "text": "new"}]),
    ):
        model, agent = agent_with(p.middleware(), system_prompt=SystemMessage(content))
        await tg.TrainableGraph(agent, [p]).arecord(BATCH, prompts={"p": "new"})
        assert model.prompts == [expected] * 2


class TeamState(AgentState):
    team: str


async def test_placeholders_are_filled_from_the_agents_state():
    p = tg.Parameter("p", 'You serve {team}. Answer as {"json": 1}.')
    model, agent = agent_with(p.middleware(), state_schema=TeamState)
    [run] = await tg.TrainableGraph(agent, [p]).arecord(
        [{"inputs": {**BATCH[0]["inputs"], "team": "{sales}"}}], prompts={"p": "New {team}"}
    )
    assert model.prompts == ["New {sales}"] * 2
    assert readers(run) == {("model", "p", "New {team}")}


async def test_placeholder_that_the_state_lacks_is_named():
    p = tg.Parameter("p", "You serve {team}.")
    _, agent = agent_with(p.middleware())
    [run] = await tg.TrainableGraph(agent, [p]).arecord(BATCH)
    assert "placeholder {team}, but the agent's state has no 'team'" in run.error
    assert run.failed_in == "model#0"


def test_without_langchain_the_command_that_mends_it_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "langchain":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'lg-textgrad\[langchain\]'"):
        tg.Parameter("p", "v").middleware()
