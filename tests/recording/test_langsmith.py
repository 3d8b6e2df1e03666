"""Traces that LangSmith's own tracer stored, against live recordings of the same graphs."""

from __future__ import annotations

import asyncio
import operator
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypedDict

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_core.tracers import LangChainTracer
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Overwrite, RetryPolicy, Send, interrupt
from langsmith import Client
from langsmith.run_helpers import tracing_context
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad.recording.langsmith import recorded_from
from lg_textgrad.recording.reprs import parse_error, parse_repr, parse_send
from lg_textgrad.trace import Trace
from tests.parts import Chat, echo
from tests.servers.langsmith_server import LangSmithServer
from tests.servers.openai_server import OpenAIServer, Reply


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    items: Annotated[list, operator.add]


class M(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    topic: str


def build(nodes, edges=(), conditional=(), schema=S, **compiled):
    builder = StateGraph(schema)
    for name, node in nodes.items():
        more: dict[str, Any] = {}
        if isinstance(node, tuple):
            node, more = node
        builder.add_node(name, node, **more)
    for a, b in edges:
        builder.add_edge(a, b)
    for where in conditional:
        builder.add_conditional_edges(*where)
    return builder.compile(**compiled)


class Named(Chat):
    model: str = "by-hand-1"


model = Named(answer=echo)


async def ask(s):
    said = await model.ainvoke([SystemMessage("Be kind."), HumanMessage(s["q"])])
    return {"a": said.content}


def use(s):
    return {"b": s["a"] + "!"}


def fail(s):
    raise KeyError("team")


def step(s):
    return {"a": s.get("a", "") + "i"}


inner = build({"v": lambda s: {"b": s["q"]}, "w": ask}, [(START, "v"), ("v", "w")])


def hand(s):
    return Command(graph=Command.PARENT, goto="last", update={"a": s["q"] + "?", "items": [AIMessage("x", id="m1")]})


@tool
def look(word: str) -> str:
    """Look a word up."""
    if word == "bad":
        raise ValueError("no such word")
    return f"{word} means cat"


def agent_model(word="neko"):
    def answer(messages):
        if messages[-1].type == "human":
            return AIMessage("", tool_calls=[{"name": "look", "args": {"word": word}, "id": "c1"}])
        return AIMessage("It is a cat.", usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
                         response_metadata={"finish_reason": "stop"})  # fmt: skip

    class Tooled(Named):
        def bind_tools(self, tools, **_):
            return self

    return Tooled(answer=answer)


def agent_by_hand():
    llm = agent_model()

    async def agent(s):
        return {"messages": [await llm.ainvoke([SystemMessage("Be kind."), *s["messages"]])]}

    return build(
        {"agent": agent, "tools": ToolNode([look])}, [(START, "agent"), ("tools", "agent")],
        [("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])], M,
    )  # fmt: skip


def flaky():
    tries = []

    async def node(s):
        tries.append(1)
        said = await model.ainvoke(s["q"])
        if len(tries) % 3:
            raise ValueError("not yet")
        return {"a": said.content}

    retry = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ValueError)
    return build({"flaky": (node, {"retry_policy": retry}), "use": use}, [(START, "flaky"), ("flaky", "use")])


@task
async def double(n):
    return n * 2


@task
def describe(n, word="n"):
    return {"a": f"{word}={n}"}


@entrypoint()
async def functional(state):
    doubled = await asyncio.gather(*(double(n) for n in state["n"]))
    return {"r": [(await describe(n))["a"] for n in doubled]}


@dataclass
class Data:
    q: str = ""
    a: str = ""


class Model(BaseModel):
    q: str = ""
    a: str = ""


Q = {"q": "hi"}
SENT = [("plan", lambda s: [Send("work", {"q": i}) for i in s["q"]], ["work"])]
WORK = {"plan": lambda s: {"a": "p"}, "work": lambda s: {"items": [s["q"]]}, "sum": lambda s: {"b": str(s["items"])}}

GRAPHS = {
    "chain": (lambda: build({"one": ask, "two": use}, [(START, "one"), ("one", "two")]), Q),
    "conditional": (lambda: build(
        {"one": ask, "x": use, "y": use}, [(START, "one")],
        [("one", lambda s: "x" if "hi" in s["a"] else "y", ["x", "y"])]), Q),
    "cycle": (lambda: build(
        {"step": step, "use": use}, [(START, "step")],
        [("step", lambda s: "use" if len(s["a"]) == 3 else "step", ["step", "use"])]), Q),
    "fan-in": (lambda: build(
        {"l": lambda s: {"items": ["l"]}, "r": lambda s: {"items": ["r"]}, "join": lambda s: {"a": str(s["items"])}},
        [(START, "l"), (START, "r"), (["l", "r"], "join")]), Q),
    "send": (lambda: build(WORK, [(START, "plan"), ("work", "sum")], SENT), Q),
    "send-command": (lambda: build(
        {**WORK, "plan": lambda s: Command(update={"a": "x"}, goto=[Send("work", {"q": 1}), Send("work", {"q": 2}), "sum"])},
        [(START, "plan")]), Q),
    "send-messages": (lambda: build(
        {"plan": lambda s: {"topic": "t"}, "work": lambda s: {"messages": [AIMessage(s["m"].content, id="w" + s["m"].id)]}},
        [(START, "plan")], [("plan", lambda s: [Send("work", {"m": m}) for m in s["messages"]], ["work"])], M),
        {"messages": [HumanMessage("a", id="1"), HumanMessage("it's", id="2")]}),
    "send-unreadable": (lambda: build(
        {"plan": lambda s: {"a": "x"}, "work": lambda s: {"items": [s["f"] is print]}},
        [(START, "plan")], [("plan", lambda s: [Send("work", {"f": print})], ["work"])]), Q),
    "command": (lambda: build(
        {"route": route, "left": use, "right": use}, [(START, "route")]), Q),
    "parent": (lambda: build(
        {"sub": build({"hand": hand}, [(START, "hand")]), "last": use}, [(START, "sub")]), Q),
    "subgraph": (lambda: build(
        {"first": lambda s: {"q": "new"}, "sub": inner, "last": use}, [(START, "first"), ("first", "sub"), ("sub", "last")]), Q),
    "subgraph-inside": (lambda: build(
        {"first": lambda s: {"a": "x"}, "host": host}, [(START, "first"), ("first", "host")]), Q),
    "tool-node": (agent_by_hand, {"messages": [HumanMessage("?", id="1")]}),
    "create-agent": (lambda: create_agent(agent_model(), [look], system_prompt="Be kind."), {"messages": [HumanMessage("?", id="1")]}),
    "tool-error": (lambda: create_agent(agent_model("bad"), [look]), {"messages": [HumanMessage("?", id="1")]}),
    "functional": (lambda: functional, {"n": [1, 2, 3]}),
    "retry": (flaky, Q),
    "error": (lambda: build({"one": ask, "bad": fail}, [(START, "one"), ("one", "bad")]), Q),
    "error-inside": (lambda: build({"sub": build({"bad": fail}, [(START, "bad")])}, [(START, "sub")]), Q),
    "overwrite": (lambda: build(
        {"one": lambda s: {"items": ["1"]}, "two": lambda s: {"items": Overwrite(["2"])}, "three": lambda s: {"a": str(s["items"])}},
        [(START, "one"), ("one", "two"), ("two", "three")]), Q),
    "interrupt": (lambda: build(
        {"one": ask, "stop": lambda s: {"b": interrupt("who?")}}, [(START, "one"), ("one", "stop")], checkpointer=InMemorySaver()), Q),
    "dataclass": (lambda: build(
        {"n": lambda s: {"a": s.q}, "m": lambda s: {"a": s.a + "m"}}, [(START, "n"), ("n", "m")], schema=Data), Q),
    "pydantic": (lambda: build(
        {"n": lambda s: {"a": s.q}, "m": lambda s: {"a": s.a + "m"}}, [(START, "n"), ("n", "m")], schema=Model), Q),
    "input-channel": (lambda: build(
        {"n": lambda s: {"output": s["input"]}, "m": lambda s: {"input": s["output"]}}, [(START, "n"), ("n", "m")],
        schema=TypedDict("IO", {"input": Any, "output": Any}, total=False)), {"input": "x"}),
}  # fmt: skip


def route(s) -> Command[Literal["left", "right"]]:
    return Command(update={"a": "L"}, goto="left")


async def host(s):
    return {"b": (await inner.ainvoke({"q": s["a"]}))["a"]}


@pytest.fixture(scope="module")
def stored():
    """Every graph run once under the real tracer; what LangSmith then has, by the graph's name."""
    with LangSmithServer() as server:
        client = Client(server.url, api_key=server.api_key)

        async def run_all():
            for name, (make, inputs) in GRAPHS.items():
                graph = make()
                config: Any = {
                    "callbacks": [LangChainTracer(project_name=name, client=client)],
                    "configurable": {"thread_id": "t"},
                }
                with suppress(KeyError, ValueError):
                    await graph.ainvoke(inputs, config)

        asyncio.run(run_all())
        client.flush()
        client.close()
        yield {name: [server._shown_run(r) for r in server.runs_of(name)] for name in GRAPHS}


def comparable(execution):
    """What two recordings have in common: no ids of tasks, no times, no reads, no object's identity."""
    calls = tuple(replace(c, usage=replace(c.usage, seconds=0)) for c in execution.model_calls)
    names = "|".join(part.split(":")[0] for part in execution.namespace.split("|"))
    return replace(
        execution, namespace=names, seconds=0, started=0, reads=None, model_calls=calls,
        sources=None, passed={}, erased={}, interrupts=(),
    )  # fmt: skip


def edges(run):
    return {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}


PROMPT = {"p": "Be kind."}
WIDER = {"subgraph-inside", "functional"}
"""There a live recording knows which object came from where, and a stored trace doesn't."""


async def live(name):
    make, inputs = GRAPHS[name]
    graph = make()
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": inputs}])
    # A prompt in the text is known by what the model got, a declared one also by who read it.
    found = [
        replace(e, prompts=PROMPT if any("Be kind." in str(c.messages[0]) for c in e.model_calls) else {}, reads=None)
        for e in run.executions
    ]  # fmt: skip
    return graph, replace(run, executions=tuple(found))


@pytest.mark.parametrize("name", GRAPHS)
async def test_stored_trace_gives_the_executions_and_edges_of_a_live_recording(stored, name):
    graph, here = await live(name)
    recorded, usage, seconds = recorded_from(stored[name], graph, PROMPT, {})
    there = replace(here, outputs=recorded.outputs, executions=tuple(recorded.executions), error=recorded.error)
    assert [comparable(e) for e in there.executions] == [comparable(e) for e in here.executions]
    if name in WIDER:
        assert edges(there) > edges(here)
    else:
        assert edges(there) == edges(here)
    kept = {path: names for path, names in here.accumulating.items() if names}
    assert {p: n for p, n in recorded.accumulating.items() if n} == kept
    assert recorded.error == here.error
    assert usage.prompt_tokens == sum(c.usage.prompt_tokens for e in here.executions for c in e.model_calls)
    assert seconds > 0


@pytest.mark.parametrize("name", GRAPHS)
async def test_without_the_graph_executions_are_the_same_but_for_what_its_routers_chose(stored, name):
    _, here = await live(name)
    recorded, _, _ = recorded_from(list(reversed(stored[name])), None, PROMPT, {})
    found = [replace(comparable(e), goto=()) for e in recorded.executions]
    if name == "input-channel":  # what is a channel of that name looks like the tracer's own wrapping
        assert found[0].writes == (("__root__", "x"),)
        return
    assert found == [replace(comparable(e), goto=()) for e in here.executions]
    # Which channels accumulate shows where a step's value isn't what was written before it.
    kept = {path: names for path, names in here.accumulating.items() if names}
    for path, names in recorded.accumulating.items():
        assert set(names) <= set(kept.get(path, ()))
    if name in ("fan-in", "send", "tool-node", "create-agent"):
        assert dict(recorded.accumulating) == kept


async def test_prompt_is_read_where_its_nodes_are_named_or_its_text_was_sent(stored):
    graph, _ = await live("subgraph")

    def readers(text, nodes=()):
        recorded, _, _ = recorded_from(stored["subgraph"], graph, {"p": text}, {"p": nodes})
        return {e.id for e in recorded.executions if e.prompts}

    assert readers("Be kind.") == {"sub/w#0"}
    assert readers("Be very kind.") == set()
    assert readers("Be very kind.", ["last"]) == {"last#0"}


def test_trace_without_a_root_is_none(stored):
    with pytest.raises(ValueError, match="no root run"):
        recorded_from(stored["chain"][1:], None, {}, {})


async def test_run_that_never_ended_and_model_without_messages(stored):
    runs = [dict(r) for r in stored["chain"]]
    for run in runs:
        run["end_time"] = None if run["name"] == "two" else run["end_time"]
    runs.append({**runs[1], "id": runs[1]["id"][:-4] + "0000", "run_type": "llm", "inputs": {"prompts": ["x"]},
                 "dotted_order": runs[1]["dotted_order"] + ".x"})  # fmt: skip
    recorded, _, _ = recorded_from(runs, None, {}, {})
    assert [e.id for e in recorded.executions] == ["one#0", "two#0"]
    assert [len(e.model_calls) for e in recorded.executions] == [1, 0]


@pytest.mark.parametrize("args", ['{"word": "neko"}', "{no json"])
def test_calls_that_langsmiths_openai_wrapper_traced_have_their_replies(args):
    """A node that asks the openai SDK itself, wrapped by LangSmith, as production code has it."""
    replies = [
        Reply("payments", finish_reason="length"),
        Reply(tool_calls=[{"name": "look", "args": args, "id": "c1"}]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of its modules was moved
        from langsmith.wrappers import wrap_openai
    with (
        LangSmithServer() as server,
        OpenAIServer(lambda _: replies.pop(0)) as models,
        openai.OpenAI(base_url=models.base_url, api_key="k") as plain,
    ):
        client = Client(server.url, api_key=server.api_key)
        asked = wrap_openai(plain, tracing_extra={"client": client})

        def node(state):
            for _ in range(2):
                asked.chat.completions.create(model="test-model", messages=[{"role": "user", "content": state["q"]}])
            return {"a": "x"}

        with tracing_context(enabled=True, client=client, project_name="p"):
            build({"node": node}, [(START, "node")]).invoke(
                {"q": "hi"}, {"callbacks": [LangChainTracer(project_name="p", client=client)]}
            )
        client.flush()
        client.close()
        recorded, usage, _ = recorded_from(server.runs_of("p"), None, {}, {})
    [execution] = recorded.executions
    said, looked = execution.model_calls
    assert (said.output["content"], said.finish_reason, said.usage.prompt_tokens > 0) == ("payments", "length", True)
    [call] = looked.output["tool_calls"]
    assert (call["name"], call["id"]) == ("look", "c1")
    assert call["args"] == ({"word": "neko"} if args.endswith("}") else {"arguments": args})
    assert (usage.calls, usage.completion_tokens > 0) == (2, True)


# What is stored as text only.


class Strange(Exception):
    def __repr__(self):
        return "<strange>"


class Two(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        KeyError("team"), ValueError("no such team"), ValueError(), ValueError(1, "x"), Two("it's (odd)"),
        RuntimeError("many\nlines\n\nof it"), FileNotFoundError(2, "gone", "x.txt"), Strange("what it says"),
        ValueError(object()), ValueError({"a": 1}), ZeroDivisionError("division by zero"),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_stored_error_says_what_the_exception_said(error):
    import traceback

    try:
        try:
            raise error
        except Exception as raised:
            raised.add_note("During task with name 'two' and id 'x'")
            raise
    except Exception as raised:
        text = repr(raised) + "\n\n".join(traceback.format_exception(raised))
        found = parse_error(text)
        expected = f"{type(raised).__name__}: {raised}"
    assert f"{type(found).__name__}: {found}" == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("boom", "Error: boom"),
        ("Cancelled()", "Cancelled: "),
        ("<odd>Traceback (most recent call last):\n  x\nmod.Odd: why not", "Odd: why not"),
    ],
)
def test_stored_error_of_another_tracer(text, expected):
    found = parse_error(text)
    assert f"{type(found).__name__}: {found}" == expected


def test_command_for_the_parent_that_cannot_be_read_still_leads_somewhere():
    found = parse_error("ParentCommand(Command(graph='__parent__', update={'f': <function f>}, goto='two'))Traceback (most recent call last):")
    assert (found.args[0].goto, found.args[0].update) == ("two", None)
    nowhere = parse_error("ParentCommand(Command(graph='__parent__', update={'f': <function f>}))")
    assert nowhere.args[0].goto == ()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(values, st.text())
def test_repr_of_plain_values_sends_and_messages_is_read_back(value, text):
    assert parse_repr(repr(value)) == value
    made = [AIMessage(text, tool_calls=[{"name": "f", "args": {"a": text}, "id": "1"}]), HumanMessage(text, id="2")]
    send = Send("n", {"m": made, "v": value})
    found = parse_send(repr(send))
    assert (found.node, found.arg) == (send.node, send.arg)


@pytest.mark.parametrize("text", ["<object at 0x1>", "open('x')", "f.x", "1 +", "(" * 500, "Send(1, 2, 3)", "x"])
def test_text_that_is_no_value_is_refused_and_nothing_is_called(text):
    with pytest.raises(ValueError):
        parse_repr(text)


def test_unknown_object_becomes_its_fields():
    assert parse_repr("mod.Thing(x=1, y=[Other(z='a')])") == {"x": 1, "y": [{"z": "a"}]}
    assert parse_send("no") is None
    assert parse_send("Send(node='n', arg=<x>)") == Send("n", None)
