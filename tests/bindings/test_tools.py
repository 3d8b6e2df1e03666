"""Descriptions of tools and of their arguments: found in what graphs offer, replaced at the boundary."""

from __future__ import annotations

import asyncio
import copy
from typing import Annotated, TypedDict

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field, PrivateAttr

import lg_textgrad as tg
from lg_textgrad.bindings.tools import DiscoveredTools, descriptions, tool_name
from lg_textgrad.errors import DataError, ParameterError
from tests.parts import BlamesUpstream, Chat, echo
from tests.servers.openai_server import OpenAIServer, Reply


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)


class S(TypedDict, total=False):
    q: str
    a: str
    messages: Annotated[list, add_messages]


SCHEMA = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "What to look for."},
        "limit": {"type": "integer"},
    },
}
OPENAI = {"type": "function", "function": {"name": "search", "description": "Searches.", "parameters": SCHEMA}}
FLAT = {"type": "function", "name": "search", "description": "Searches.", "parameters": SCHEMA}
ANTHROPIC = {"name": "search", "description": "Searches.", "input_schema": SCHEMA}
BEDROCK = {"toolSpec": {"name": "search", "description": "Searches.", "inputSchema": {"json": SCHEMA}}}
JSON_SCHEMA = {"title": "search", "description": "Searches.", **SCHEMA}
FORMATS = [OPENAI, FLAT, ANTHROPIC, BEDROCK, JSON_SCHEMA]


class Tooled(Chat):
    """A chat model whose reply is the tools that it was offered."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self._offered.append(kwargs.get("tools"))
        return super()._generate(messages)

    _offered: list = PrivateAttr(default_factory=list)


def asking(tools, model=None):
    model = model or Tooled(answer=echo)

    async def agent(state):
        return {"a": (await model.bind(tools=tools).ainvoke([("system", "You look."), ("user", "x")])).content}

    return StateGraph(S).add_node("agent", agent).add_edge(START, "agent").compile(), model


def values(graph):
    return {n: p.value for n, p in graph.parameters.items()}


ONE = [{"q": "a"}]


@pytest.mark.parametrize("offered", FORMATS)
async def test_descriptions_are_found_and_replaced_in_every_format(offered):
    before = copy.deepcopy(offered)
    compiled, model = asking([offered, {"type": "web_search"}])
    graph = await tg.adiscover(compiled, ONE, tools=True)
    assert values(graph) == {
        "agent": "You look.",
        "agent.tools.search": "Searches.",
        "agent.tools.search.query": "What to look for.",
    }
    [run] = await graph.arecord(
        [{"inputs": ONE[0]}],
        prompts={"agent.tools.search": "Finds {x}.", "agent.tools.search.query": "One word."},
    )
    sent, other = model._offered[-1]
    expected = copy.deepcopy(before)
    for argument, place, _ in descriptions(before):
        at = expected
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = "One word." if argument else "Finds {x}."
    assert sent == expected != before
    assert (offered, other) == (before, {"type": "web_search"})
    assert run.executions[0].prompts == {
        "agent": "You look.",
        "agent.tools.search": "Finds {x}.",
        "agent.tools.search.query": "One word.",
    }
    assert run.warnings == ()


async def test_tools_are_left_alone_unless_asked_for():
    compiled, model = asking([OPENAI])
    graph = await tg.adiscover(compiled, ONE)
    assert list(graph.parameters) == ["agent"]
    await graph.arecord([{"inputs": ONE[0]}], prompts={"agent": "new"})
    assert model._offered[-1] == [OPENAI]


def test_sync_twin_and_how_they_are_held():
    compiled, _ = asking([OPENAI])
    graph = tg.discover(compiled, ONE, tools=True)
    [binding] = [b for b in graph.bindings if isinstance(b, DiscoveredTools)]
    held = [binding.held(n) for n in ("agent.tools.search", "agent.tools.search.query")]
    assert [(h.how, h.nodes) for h in held] == [
        ("description of the tool 'search'", ("agent",)),
        ("description of the argument 'query' of the tool 'search'", ("agent",)),
    ]
    assert [(f.node, f.parameter, f.text) for f in graph.found] == [
        ("agent", "agent", "You look."),
        ("agent", "agent.tools.search", "Searches."),
        ("agent", "agent.tools.search.query", "What to look for."),
    ]
    assert "search" in graph.parameters["agent.tools.search"].role


async def test_descriptions_stay_as_short_as_servers_want_them():
    long = "x" * 2000
    compiled, _ = asking([OPENAI, {**FLAT, "name": "long", "description": long}])
    graph = await tg.adiscover(compiled, ONE, tools=True)
    with pytest.raises(ParameterError, match="more than the limit of 256"):
        graph.parameters["agent.tools.search"].check("y" * 1025)
    graph.parameters["agent.tools.search"].check("y" * 1024)
    graph.parameters["agent.tools.long"].check(long)


class Address(BaseModel):
    street: str = Field(description="With its number.")


class Order(BaseModel):
    """Orders a thing."""

    home: Address = Field(description="Where to.")
    work: Address | None = None
    items: list[Address] = []


def test_arguments_inside_of_arguments_are_found_once_where_they_stand():
    bare = {"title": "Order", "description": "Orders.", **Order.model_json_schema()}
    found = {argument: place for argument, place, _ in descriptions(bare)}
    assert found == {
        "": ("description",),
        "home": ("properties", "home", "description"),
        "home.street": ("$defs", "Address", "properties", "street", "description"),
    }
    inlined = {
        "name": "order",
        "parameters": {
            "properties": {
                "a": {"properties": {"b": {"description": "x"}}},
                "c": {"type": "array", "items": {"properties": {"d": {"description": "y"}}}},
                "e": {"anyOf": [{"properties": {"f": {"description": "z"}}}, {"type": "null"}]},
            }
        },
    }
    assert [(a, t) for a, _, t in descriptions(inlined)] == [("a.b", "x"), ("c.d", "y"), ("e.f", "z")]
    recursive = {
        "name": "tree",
        "parameters": {"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"t": {"$ref": "#/$defs/T"}}}}},
    }
    assert list(descriptions(recursive)) == []


@pytest.mark.parametrize("other", [{"type": "web_search"}, {"name": 3}, {}, "x", None, {"function": {}}])
def test_what_is_no_tool_of_the_graphs_own_is_left(other):
    assert tool_name(other) is None


@tool
def look_up(order: Annotated[str, "The order's number."]) -> str:
    """Looks an order up."""
    return f"order {order} is late"


def replying(body):
    """Call the tool once, then say which descriptions were offered and what came back."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return f"{body['tools'][0]['function']['description']} {last['content']}"
    return Reply(None, tool_calls=[{"name": "look_up", "args": {"order": "7"}}])


@pytest.fixture
async def chat_openai():
    with OpenAIServer(replying) as server:
        async with openai.DefaultAsyncHttpxClient(trust_env=False) as later:
            with openai.DefaultHttpxClient(trust_env=False) as now:
                yield ChatOpenAI(
                    model="test-model", api_key="k", base_url=server.base_url, max_retries=0,
                    http_client=now, http_async_client=later,
                ), server  # fmt: skip


def by_create_agent(model):
    return create_agent(model, tools=[look_up], system_prompt="You help.", name="desk"), "desk"


def by_tool_node(model):
    bound = model.bind_tools([look_up])

    def assistant(state):
        return {"messages": [bound.invoke([("system", "You help."), *state["messages"]])]}

    builder = StateGraph(S).add_node("assistant", assistant).add_node("tools", ToolNode([look_up]))
    builder.add_edge(START, "assistant").add_conditional_edges("assistant", tools_condition)
    return builder.add_edge("tools", "assistant").compile(), "assistant"


@pytest.mark.parametrize("build", [by_create_agent, by_tool_node])
async def test_agents_choose_by_the_candidates_descriptions_and_tools_run_as_they_are(chat_openai, build):
    model, server = chat_openai
    compiled, name = build(model)
    batch = [{"messages": [("user", "where is 7")]}]
    graph = await tg.adiscover(compiled, batch, tools=True)
    assert values(graph) == {
        name: "You help.",
        f"{name}.tools.look_up": "Looks an order up.",
        f"{name}.tools.look_up.order": "The order's number.",
    }
    [run] = await graph.arecord([{"inputs": batch[0]}], prompts={f"{name}.tools.look_up": "Finds out."})
    assert run.outputs["messages"][-1].content == "Finds out. order 7 is late"
    assert server.chats[-1]["tools"][0]["function"]["description"] == "Finds out."
    assert look_up.description == "Looks an order up."
    asked = [e for e in run.executions if e.model_calls]
    assert [dict(e.prompts)[f"{name}.tools.look_up"] for e in asked] == ["Finds out."] * 2
    assert [c.tools[0]["function"]["description"] for e in asked for c in e.model_calls] == ["Finds out."] * 2
    [ran] = [c for e in run.executions for c in e.tool_calls]
    assert (ran.name, ran.inputs) == ("look_up", {"order": "7"})


async def test_tools_of_raw_openai_calls_are_replaced(chat_openai):
    _, server = chat_openai
    client = openai.AsyncOpenAI(
        api_key="k", base_url=server.base_url, http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
    )
    async with client:
        wrapped = tg.models.wrap_openai(client)

        async def agent(state):
            await wrapped.chat.completions.create(
                model="test-model", messages=[{"role": "user", "content": "x"}], tools=[OPENAI]
            )

        compiled = StateGraph(S).add_node("agent", agent).add_edge(START, "agent").compile()
        graph = await tg.adiscover(compiled, ONE, tools=True)
        await graph.arecord([{"inputs": ONE[0]}], prompts={"agent.tools.search.query": "Short."})
    sent = server.chats[-1]["tools"][0]["function"]
    assert sent["parameters"]["properties"]["query"]["description"] == "Short."
    assert sent["description"] == "Searches."


async def test_schema_of_structured_output_is_a_tool_too(chat_openai):
    model, _ = chat_openai

    class Verdict(BaseModel):
        """Judges the answer."""

        good: bool = Field(description="Whether it is right.")

    offered = []

    def answer(body):
        offered.append(body["tools"][0]["function"])
        return Reply(None, tool_calls=[{"name": "Verdict", "args": {"good": True}}])

    with OpenAIServer(answer) as server:
        judge = ChatOpenAI(
            model="test-model", api_key="k", base_url=server.base_url,
            http_client=model.http_client, http_async_client=model.http_async_client,
        ).with_structured_output(Verdict, method="function_calling")  # fmt: skip

        async def check(state):
            return {"a": str((await judge.ainvoke("x")).good)}

        compiled = StateGraph(S).add_node("check", check).add_edge(START, "check").compile()
        graph = await tg.adiscover(compiled, ONE, tools=True)
        [run] = await graph.arecord([{"inputs": ONE[0]}], prompts={"check.tools.Verdict.good": "Really?"})
    assert list(graph.parameters) == ["check.tools.Verdict", "check.tools.Verdict.good"]
    assert run.outputs["a"] == "True"
    assert offered[-1]["parameters"]["properties"]["good"]["description"] == "Really?"


async def test_description_that_differs_from_call_to_call_is_reported_and_left():
    model = Tooled(answer=echo)

    async def agent(state):
        tools = [{**FLAT, "description": f"Searches {state['q']}."}]
        await model.bind(tools=tools).ainvoke("x")

    compiled = StateGraph(S).add_node("agent", agent).add_edge(START, "agent").compile()
    graph = await tg.adiscover(compiled, [{"q": "a"}, {"q": "b"}], tools=True)
    assert list(graph.parameters) == ["agent", "agent.tools.search.query"]
    assert any("differs from call to call" in f.why and f.parameter is None for f in graph.found)


async def test_description_that_was_not_found_so_is_left_with_a_warning():
    model = Tooled(answer=echo)

    async def agent(state):
        await model.bind(tools=[{**FLAT, "description": f"Searches {state['q']}."}]).ainvoke("x")

    compiled = StateGraph(S).add_node("agent", agent).add_edge(START, "agent").compile()
    graph = await tg.adiscover(compiled, ONE, tools=True)
    [run] = await graph.arecord([{"inputs": {"q": "b"}}], prompts={"agent.tools.search": "new"})
    assert model._offered[-1][0]["description"] == "Searches b."
    [warning] = run.warnings
    assert "'agent.tools.search'" in warning
    assert dict(run.executions[0].prompts) == {"agent.tools.search.query": "What to look for."}


async def test_tools_without_descriptions_and_tools_that_are_objects_are_reported():
    compiled, _ = asking([{**FLAT, "description": " ", "name": "mute"}, look_up])
    graph = await tg.adiscover(compiled, ONE, tools=True)
    assert list(graph.parameters) == ["agent", "agent.tools.mute.query"]
    assert [f.why for f in graph.found if f.parameter is None] == [
        "it offers tools as StructuredTool objects, which cannot be rewritten",
        "the tool 'mute' has no description",
    ]


async def test_each_node_has_descriptions_of_its_own():
    model = Tooled(answer=echo)

    def node(name):
        async def run(state):
            await model.bind(tools=[FLAT]).ainvoke(name)

        return run

    builder = StateGraph(S).add_node("one", node("1")).add_node("two", node("2"))
    compiled = builder.add_edge(START, "one").add_edge("one", "two").compile()
    graph = await tg.adiscover(compiled, ONE, tools=True)
    assert [n for n in graph.parameters if n.endswith("search")] == ["one.tools.search", "two.tools.search"]
    await graph.arecord([{"inputs": ONE[0]}], prompts={"two.tools.search": "new"})
    assert [tools[0]["description"] for tools in model._offered[-2:]] == ["Searches.", "new"]


async def test_gradients_reach_the_descriptions_that_an_execution_read():
    compiled, _ = asking([OPENAI])
    graph = await tg.adiscover(compiled, ONE, tools=True)
    runs = await graph.arecord([{"inputs": ONE[0]}])
    loss = await tg.Objective([lambda outputs: 0.0]).acall(runs)
    critic = BlamesUpstream()
    await loss.abackward(critic)
    [request] = critic.asked
    assert list(request.parameters) == ["agent", "agent.tools.search", "agent.tools.search.query"]
    assert all(len(p.grad) == 1 for p in graph.parameters.values())


async def test_stored_discovery_of_tools_needs_no_run():
    compiled, model = asking([OPENAI])
    graph = await tg.adiscover(compiled, ONE, tools=True)
    [binding] = [b for b in graph.bindings if isinstance(b, DiscoveredTools)]
    again = tg.TrainableGraph(compiled, bindings=[DiscoveredTools.from_plain(binding.to_plain())])
    await again.arecord([{"inputs": ONE[0]}], prompts={"agent.tools.search": "new"})
    assert model._offered[-1][0]["function"]["description"] == "new"
    with pytest.raises(DataError, match="discover the graph again"):
        DiscoveredTools.from_plain({"found": [{"nome": 1}]})


@pytest.mark.parametrize("sync", [False, True])
async def test_fifty_candidates_at_once_do_not_meet(sync):
    class Tells(Tooled):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            return super()._generate([AIMessage(kwargs["tools"][0]["function"]["description"])])

    model = Tells(answer=echo).bind(tools=[OPENAI])

    async def awaited(state):
        await asyncio.sleep(0)
        return {"a": (await model.ainvoke("x")).content}

    node = (lambda s: {"a": model.invoke("x").content}) if sync else awaited
    compiled = StateGraph(S).add_node("agent", node).add_edge(START, "agent").compile()
    graph = await tg.adiscover(compiled, ONE, tools=True)
    texts = [f"Searches {n}." for n in range(50)]
    runs = await asyncio.gather(
        *(graph.arecord([{"inputs": ONE[0]}], prompts={"agent.tools.search": t}) for t in texts)
    )
    assert [r.outputs["a"] for [r] in runs] == texts
