"""Graphs of other packages, as they are: found, recorded as expected by hand, given other prompts."""

from __future__ import annotations

import asyncio

import openai
import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

import lg_textgrad as tg
from lg_textgrad.trace import Trace
from tests.servers.openai_server import OpenAIServer, Reply

# langgraph-supervisor is built on what LangGraph calls deprecated since version 1.
pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def search(query: str) -> str:
    """Searches the web."""
    return f"{query}: 1950"


@pytest.fixture
async def model(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)
    with OpenAIServer(script) as server:
        async with openai.DefaultAsyncHttpxClient(trust_env=False) as later:
            with openai.DefaultHttpxClient(trust_env=False) as now:
                yield ChatOpenAI(
                    model="test-model", api_key="k", base_url=server.base_url, max_retries=0,
                    http_client=now, http_async_client=later,
                )  # fmt: skip


def calls(name, **args):
    return Reply(None, tool_calls=[{"name": name, "args": args}])


def script(body):
    """The model: who it is shows in its tools; how often it was asked, in the messages.

    A last word repeats the system prompt and the descriptions of the tools.
    """
    tools = {t["function"]["name"]: t["function"]["description"] for t in body.get("tools", ())}
    last, system = body["messages"][-1], body["messages"][0]["content"]
    came_back = sum(
        m["role"] == "tool" and m["content"].startswith("Successfully transferred back")
        for m in body["messages"]
    )
    # Sorted: langgraph-supervisor has its agents in a set.
    said = " ".join([system, *(tools[name] for name in sorted(tools))])
    if "transfer_to_math" in tools:
        script_ = [calls("transfer_to_research"), calls("transfer_to_math"), said]
        return script_[came_back]
    if "transfer_to_team" in tools:
        return calls("transfer_to_team") if not came_back else said
    if "transfer_to_bob" in tools:
        return calls("add", a=1, b=2) if last["role"] == "user" else calls("transfer_to_bob")
    if "transfer_to_alice" in tools:
        return said
    if "add" in tools:
        return said if last["content"] == "3" else calls("add", a=1, b=2)
    return said if "1950" in str(last["content"]) else calls("search", query="x")


def supervisor(model):
    math = create_agent(model, tools=[add], name="math", system_prompt="You add numbers.")
    research = create_agent(model, tools=[search], name="research", system_prompt="You look up.")
    return create_supervisor([research, math], model=model, prompt="You manage a team.")


def swarm(model):
    alice = create_agent(
        model, tools=[add, create_handoff_tool(agent_name="bob")], name="alice", system_prompt="You are Alice."
    )
    bob = create_agent(
        model, tools=[create_handoff_tool(agent_name="alice")], name="bob", system_prompt="You are Bob."
    )
    return create_swarm([alice, bob], default_active_agent="alice")


INPUTS = {"messages": [("user", "hi")]}

SUPERVISOR = {
    "supervisor": "You manage a team.",
    "research": "You look up.",
    "math": "You add numbers.",
    "supervisor.tools.transfer_to_math": "Ask agent 'math' for help",
    "supervisor.tools.transfer_to_research": "Ask agent 'research' for help",
    "research.tools.search": "Searches the web.",
    "math.tools.add": "Adds two numbers.",
}
SWARM = {
    "alice": "You are Alice.",
    "bob": "You are Bob.",
    "alice.tools.add": "Adds two numbers.",
    "alice.tools.transfer_to_bob": "Ask agent 'bob' for help",
    "bob.tools.transfer_to_alice": "Ask agent 'alice' for help",
}


@pytest.mark.parametrize(
    ("build", "expected", "unreached"),
    [(supervisor, SUPERVISOR, []), (swarm, SWARM, ["bob/tools"])],
)
async def test_prompts_and_tools_are_found(model, build, expected, unreached):
    graph = await tg.adiscover(build(model).compile(), [INPUTS], tools=True)
    assert {n: p.value for n, p in graph.parameters.items()} == expected
    prompts = await tg.adiscover(build(model).compile(), [INPUTS])
    assert list(prompts.parameters) == [n for n in expected if ".tools." not in n]
    assert [f.node for f in graph.found if f.parameter is None] == unreached


def shape(run):
    """Each execution, in order: who called a model, who ran which tool."""
    return [
        (e.id, len(e.model_calls), [c.name for c in e.tool_calls]) for e in run.executions
        if e.model_calls or e.tool_calls
    ]  # fmt: skip


def fed(run):
    """Consumer -> who fed it over its messages or sent it a tool call, and who chose it."""
    found = {}
    for edge in Trace.of(run).edges:
        if edge.channel in ("messages", "__send__", "__route__"):
            how = {"messages": "", "__send__": "sent by ", "__route__": "chosen by "}[edge.channel]
            found.setdefault(edge.consumer, set()).add(f"{how}{edge.producer}")
    return found


async def test_supervisor_is_recorded_as_it_runs(model):
    graph = tg.TrainableGraph(supervisor(model).compile())
    [run] = await graph.arecord([{"inputs": INPUTS}])
    assert (run.error, run.warnings, run.usage.calls) == (None, (), 7)
    assert shape(run) == [
        ("supervisor/agent#0", 1, []),
        ("supervisor/tools#0", 0, ["transfer_to_research"]),
        ("research/model#0", 1, []),
        ("research/tools#0", 0, ["search"]),
        ("research/model#1", 1, []),
        ("supervisor/agent#1", 1, []),
        ("supervisor/tools#1", 0, ["transfer_to_math"]),
        ("math/model#0", 1, []),
        ("math/tools#0", 0, ["add"]),
        ("math/model#1", 1, []),
        ("supervisor/agent#2", 1, []),
    ]
    # By hand: a handoff passes on the whole conversation, with the supervisor's call and the tool's
    # answer; an agent's node hands back its last word, which it wrote together with "transferring
    # back".
    first = {"supervisor/agent#0", "supervisor/tools#0"}
    second = first | {"research#0", "supervisor/agent#1", "supervisor/tools#1"}
    assert fed(run) == {
        "supervisor/tools#0": {"sent by supervisor/agent#0"},
        "research#0": first | {"chosen by supervisor/tools#0"},
        "research/model#0": first,
        "research/tools#0": {"sent by research/model#0"},
        "research/model#1": first
        | {"research/model#0", "research/tools#0", "chosen by research/tools#0"},
        "supervisor/agent#1": first | {"research#0"},
        "supervisor/tools#1": {"sent by supervisor/agent#1"},
        "math#0": second | {"chosen by supervisor/tools#1"},
        "math/model#0": second,
        "math/tools#0": {"sent by math/model#0"},
        "math/model#1": second | {"math/model#0", "math/tools#0", "chosen by math/tools#0"},
        "supervisor/agent#2": second | {"math#0"},
    }
    assert {e.parent for e in run.executions if e.path.startswith("research/")} == {"research#0"}


async def test_swarm_is_recorded_as_it_runs(model):
    graph = tg.TrainableGraph(swarm(model).compile())
    [run] = await graph.arecord([{"inputs": INPUTS}])
    assert (run.error, run.warnings, run.usage.calls) == (None, (), 3)
    assert shape(run) == [
        ("alice/model#0", 1, []),
        ("alice/tools#0", 0, ["add"]),
        ("alice/model#1", 1, []),
        ("alice/tools#1", 0, ["transfer_to_bob"]),
        ("bob/model#0", 1, []),
    ]
    # By hand: the swarm's router is a conditional entry, so it hands on the input and chooses
    # Alice; her handoff leaves with the whole conversation and chooses Bob.
    start, chosen = "__start__#0", "chosen by __start__#0"
    talk = {start, "alice/model#0", "alice/tools#0"}
    assert fed(run) == {
        "alice#0": {chosen},
        "alice/model#0": {start, chosen},
        "alice/tools#0": {"sent by alice/model#0"},
        "alice/model#1": talk | {"chosen by alice/tools#0"},
        "alice/tools#1": {"sent by alice/model#1"},
        "bob#0": {"chosen by alice/tools#1"},
        "bob/model#0": talk | {"alice/model#1", "alice/tools#1", "chosen by alice/tools#1"},
    }
    assert run.outputs["active_agent"] == "bob"


@pytest.mark.parametrize(
    ("build", "names", "last"),
    [
        (supervisor, SUPERVISOR, ["supervisor", "supervisor.tools.transfer_to_math", "supervisor.tools.transfer_to_research"]),
        (swarm, SWARM, ["bob", "bob.tools.transfer_to_alice"]),
    ],
)  # fmt: skip
async def test_many_candidates_are_tried_at_once_and_the_graph_stays_as_it_is(model, build, names, last):
    compiled = build(model).compile()
    graph = await tg.adiscover(compiled, [INPUTS], tools=True)

    def candidate(number):
        return {n: f"{n} {number}" for n in names}

    runs = await asyncio.gather(
        *(graph.arecord([{"inputs": INPUTS}], prompts=candidate(n)) for n in range(10))
    )
    for number, [run] in enumerate(runs):
        texts = candidate(number)
        assert run.warnings == ()
        assert run.outputs["messages"][-1].content == " ".join(texts[n] for n in last)
        for execution in run.executions:
            for call in execution.model_calls:
                agent = execution.path.split("/")[0]
                assert call.messages[0]["content"] == texts[agent]
                assert dict(execution.prompts) == {
                    n: t for n, t in texts.items() if n.split(".")[0] == agent
                }
    # Outside of a run it says what it always said.
    out = await compiled.ainvoke(INPUTS)
    assert out["messages"][-1].content == " ".join(names[n] for n in last)


async def test_supervisor_of_a_supervisor_is_found_and_given_other_prompts(model):
    team = supervisor(model).compile(name="team")
    boss = create_supervisor([team], model=model, prompt="You are the boss.", supervisor_name="boss")
    graph = await tg.adiscover(boss.compile(), [INPUTS])
    assert {n: p.value for n, p in graph.parameters.items()} == {
        "boss": "You are the boss.",
        "team/supervisor": "You manage a team.",
        "team/research": "You look up.",
        "team/math": "You add numbers.",
    }
    [run] = await graph.arecord([{"inputs": INPUTS}], prompts={"team/math": "New.", "boss": "Boss."})
    assert run.warnings == ()
    assert run.outputs["messages"][-1].content.startswith("Boss.")
    sent = {e.path: c.messages[0]["content"] for e in run.executions for c in e.model_calls}
    assert sent == {
        "boss/agent": "Boss.",
        "team/supervisor/agent": "You manage a team.",
        "team/research/model": "You look up.",
        "team/math/model": "New.",
    }


async def test_gradients_go_back_over_the_handoffs_to_every_agent(model):
    from tests.parts import BlamesUpstream

    for build, names in ((supervisor, SUPERVISOR), (swarm, SWARM)):
        graph = await tg.adiscover(build(model).compile(), [INPUTS])
        runs = await graph.arecord([{"inputs": INPUTS}])
        loss = await tg.Objective([lambda outputs: 0.0]).acall(runs)
        await loss.abackward(BlamesUpstream(also_self=True))
        assert [n for n, p in graph.parameters.items() if p.grad] == [n for n in names if ".tools." not in n]
