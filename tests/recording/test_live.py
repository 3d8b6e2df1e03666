"""Recording real LangGraph graphs: executions and edges, written out by hand."""

from __future__ import annotations

import functools
import json
import operator
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Overwrite, RetryPolicy, Send, interrupt
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad._hashing import canonical, to_plain
from lg_textgrad.errors import DataError
from lg_textgrad.store import decode_run, encode_run
from lg_textgrad.trace import RETURN, ROUTE, SEND, Trace
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    c: str
    items: Annotated[list, operator.add]


def build(schema=S, nodes=None, edges=(), conditional=(), **compiled):
    builder = StateGraph(schema)
    for name, node in nodes.items():
        builder.add_node(name, *(node if isinstance(node, tuple) else (node,)))
    for a, b in edges:
        builder.add_edge(a, b)
    for where in conditional:
        builder.add_conditional_edges(*where)
    return builder.compile(**compiled)


async def recorded(graph, parameters=(), **inputs):
    [run] = await tg.TrainableGraph(graph, parameters).arecord([{"inputs": inputs or {"q": "hi"}}])
    return run


def edges(run):
    return {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}


def ids(run):
    return [e.id for e in run.executions]


async def test_chain_records_each_node_with_inputs_writes_and_reads():
    graph = build(
        nodes={"one": lambda s: {"a": s["q"] + "!"}, "two": lambda s: {"b": s["a"] + "?"}},
        edges=[(START, "one"), ("one", "two")],
    )
    run = await recorded(graph)
    one, two = run.executions
    assert (one.id, one.path, one.superstep, one.inputs, one.writes, one.reads) == (
        "one#0", "one", 1, {"q": "hi", "items": []}, (("a", "hi!"),), {"q"},
    )
    assert (two.superstep, two.inputs["a"], two.writes, two.reads) == (2, "hi!", (("b", "hi!?"),), {"a"})
    assert edges(run) == {("one#0", "two#0", "a")}
    assert run.outputs["b"] == "hi!?"
    assert run.error is run.failed_in is None


@pytest.mark.parametrize("sync", [True, False])
async def test_sync_and_async_nodes_record_the_same(sync):
    def plain(s):
        return {"a": s["q"]}

    async def awaited(s):
        return {"a": s["q"]}

    graph = build(nodes={"n": plain if sync else awaited}, edges=[(START, "n")])
    [e] = (await recorded(graph)).executions
    assert (e.reads, e.writes, e.parent, e.sent_by) == ({"q"}, (("a", "hi"),), None, None)


async def test_fan_out_joins_over_a_reducer_channel():
    graph = build(
        nodes={
            "l": lambda s: {"items": ["l"]},
            "r": lambda s: {"items": ["r"]},
            "join": lambda s: {"a": str(s["items"])},
        },
        edges=[(START, "l"), (START, "r"), (["l", "r"], "join")],
    )
    run = await recorded(graph)
    assert ids(run) == ["l#0", "r#0", "join#0"]
    assert edges(run) == {("l#0", "join#0", "items"), ("r#0", "join#0", "items")}


async def test_overwrite_hides_what_was_accumulated_before():
    graph = build(
        nodes={
            "one": lambda s: {"items": ["1"]},
            "two": lambda s: {"items": Overwrite(["2"])},
            "three": lambda s: {"a": str(s["items"])},
        },
        edges=[(START, "one"), ("one", "two"), ("two", "three")],
    )
    run = await recorded(graph)
    assert run.outputs["a"] == "['2']"
    assert run.executions[1].overwrites == {"items"}
    assert edges(run) == {("two#0", "three#0", "items")}


async def test_send_map_reduce():
    def work(s):
        return {"items": [s["item"] * 2]}

    graph = build(
        nodes={"plan": lambda s: {"a": s["q"]}, "work": work, "sum": lambda s: {"b": str(s["items"])}},
        edges=[(START, "plan"), ("work", "sum")],
        conditional=[("plan", lambda s: [Send("work", {"item": i}) for i in (1, 2, 3)], ["work"])],
    )
    run = await recorded(graph)
    assert ids(run) == ["plan#0", "work#0", "work#1", "work#2", "sum#0"]
    assert [e.inputs["item"] for e in run.executions[1:4]] == [1, 2, 3]
    assert run.executions[0].sends == ("work",) * 3
    assert edges(run) == {("plan#0", f"work#{i}", SEND) for i in range(3)} | {
        (f"work#{i}", "sum#0", "items") for i in range(3)
    }


async def test_send_from_a_command_knows_its_sender():
    graph = build(
        nodes={
            "plan": (lambda s: Command(update={"a": "x"}, goto=[Send("work", {"item": 1})])),
            "work": lambda s: {"items": [s["item"]]},
        },
        edges=[(START, "plan")],
    )
    run = await recorded(graph)
    assert run.executions[0].writes == (("a", "x"),)
    assert edges(run) == {("plan#0", "work#0", SEND)}


async def test_command_goto_is_an_edge_by_routing():
    def route(s) -> Command[Literal["left", "right"]]:
        return Command(update={"a": "L"}, goto="left")

    graph = build(
        nodes={"route": route, "left": lambda s: {"b": s["q"]}, "right": lambda s: {"b": "r"}},
        edges=[(START, "route")],
    )
    run = await recorded(graph)
    assert run.executions[0].goto == ("left",)
    assert edges(run) == {("route#0", "left#0", ROUTE)}


async def test_conditional_edge_is_an_edge_by_routing():
    graph = build(
        nodes={"n": lambda s: {"a": "yes"}, "x": lambda s: {"b": s["q"]}, "y": lambda s: {"b": "y"}},
        edges=[(START, "n")],
        conditional=[("n", lambda s: "x" if s["a"] == "yes" else "y", ["x", "y"])],
    )
    run = await recorded(graph)
    assert run.executions[0].goto == ("x",)
    assert edges(run) == {("n#0", "x#0", ROUTE)}


async def test_cycle_gives_an_execution_for_each_visit():
    def step(s):
        return {"a": s.get("a", "") + "i"}

    graph = build(
        nodes={"step": step, "done": lambda s: {"b": s["a"]}},
        edges=[(START, "step")],
        conditional=[("step", lambda s: "done" if len(s["a"]) == 3 else "step", ["step", "done"])],
    )
    run = await recorded(graph)
    assert ids(run) == ["step#0", "step#1", "step#2", "done#0"]
    assert edges(run) == {
        ("step#0", "step#1", "a"), ("step#0", "step#1", ROUTE),
        ("step#1", "step#2", "a"), ("step#1", "step#2", ROUTE),
        ("step#2", "done#0", "a"), ("step#2", "done#0", ROUTE),
    }  # fmt: skip


async def test_retried_node_is_one_execution_with_the_calls_of_all_attempts():
    tries = []
    model = Chat(answer=echo)

    async def flaky(s):
        tries.append(1)
        said = await model.ainvoke(s["q"])
        if len(tries) < 3:
            raise ValueError("not yet")
        return {"a": said.content}

    retry = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ValueError)
    builder = StateGraph(S).add_node("flaky", flaky, retry_policy=retry).add_edge(START, "flaky")
    run = await recorded(builder.compile())
    [e] = run.executions
    assert (e.id, len(e.model_calls), e.writes, e.error) == ("flaky#0", 3, (("a", "hi"),), None)
    assert run.error is None


class Inner(TypedDict, total=False):
    q: str
    b: str


async def test_subgraph_as_a_node():
    inner = build(
        Inner,
        nodes={"v": lambda s: {"b": s["q"]}, "w": lambda s: {"b": s["b"] + "w"}},
        edges=[(START, "v"), ("v", "w")],
    )
    graph = build(
        nodes={"first": lambda s: {"q": "new"}, "sub": inner, "last": lambda s: {"c": s["b"]}},
        edges=[(START, "first"), ("first", "sub"), ("sub", "last")],
    )
    run = await recorded(graph)
    assert sorted(ids(run)) == ["first#0", "last#0", "sub#0", "sub/v#0", "sub/w#0"]
    inside = {e.id: e.parent for e in run.executions}
    assert inside["sub/v#0"] == inside["sub/w#0"] == "sub#0"
    assert edges(run) == {
        ("first#0", "sub/v#0", "q"),
        ("sub/v#0", "sub/w#0", "b"),
        ("sub/w#0", "last#0", "b"),
        ("sub/w#0", "sub#0", RETURN),
    }
    assert Trace.of(run).sinks["b"] == ("sub/w#0",)


async def test_subgraph_called_inside_a_node_with_a_state_of_its_own():
    class Other(TypedDict, total=False):
        question: str
        answer: str

    inner = build(
        Other, nodes={"w": lambda s: {"answer": s["question"] + "!"}}, edges=[(START, "w")]
    )

    async def host(s):
        return {"b": (await inner.ainvoke({"question": s["a"]}))["answer"]}

    graph = build(
        nodes={"first": lambda s: {"a": "x"}, "host": host},
        edges=[(START, "first"), ("first", "host")],
    )
    run = await recorded(graph)
    assert run.outputs["b"] == "x!"
    assert edges(run) == {
        ("first#0", "host#0", "a"),
        ("first#0", "host/w#0", "question"),
        ("host/w#0", "host#0", RETURN),
    }


async def test_sync_subgraph_called_inside_a_sync_node():
    inner = build(Inner, nodes={"w": lambda s: {"b": s["q"] + "!"}}, edges=[(START, "w")])
    graph = build(nodes={"host": lambda s: {"b": inner.invoke({"q": s["q"]})["b"]}}, edges=[(START, "host")])
    run = await recorded(graph)
    assert sorted(ids(run)) == ["host#0", "host/w#0"]
    assert ("host/w#0", "host#0", RETURN) in edges(run)


async def test_messages_tools_and_model_calls_of_an_agent_loop():
    @tool
    def lookup(word: str) -> str:
        """Look a word up."""
        return f"{word} means cat"

    def answer(messages):
        if isinstance(messages[-1], HumanMessage):
            call = {"name": "lookup", "args": {"word": "neko"}, "id": "r4nd0m"}
            return AIMessage("", tool_calls=[call])
        return "It is a cat."

    class M(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    prompt = tg.Parameter("agent", "Use the tool.")
    model = Chat(answer=answer)

    async def agent(s):
        return {"messages": [await model.ainvoke([prompt.message(), *s["messages"]])]}

    graph = build(
        M,
        nodes={"agent": agent, "tools": ToolNode([lookup])},
        edges=[(START, "agent"), ("tools", "agent")],
        conditional=[("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])],
    )
    run = await recorded(graph, [prompt], messages=[("user", "What is neko?")])
    assert ids(run) == ["agent#0", "tools#0", "agent#1"]
    first, tools, second = run.executions
    assert first.prompts == second.prompts == {"agent": "Use the tool."}
    assert tools.prompts == {}
    [asked] = first.model_calls
    assert asked.messages[0] == {"role": "system", "content": "Use the tool."}
    assert asked.output["tool_calls"][0]["args"] == {"word": "neko"}
    [called] = tools.tool_calls
    assert (called.name, called.inputs, called.output["content"]) == (
        "lookup", {"word": "neko"}, "neko means cat",
    )
    assert ("agent#0", "tools#0", "messages") in edges(run)
    assert {p for p, c, _ in edges(run) if c == "agent#1"} == {"agent#0", "tools#0"}
    assert run.outputs["messages"][-1].content == "It is a cat."


async def test_failed_run_says_what_and_where():
    def bad(s):
        raise ValueError("no such team")

    graph = build(nodes={"one": lambda s: {"a": "x"}, "bad": bad}, edges=[(START, "one"), ("one", "bad")])
    run = await recorded(graph)
    assert (run.error, run.failed_in, run.outputs) == ("ValueError: no such team", "bad#0", None)
    assert run.executions[1].error == "ValueError: no such team"


async def test_failure_inside_a_subgraph_is_blamed_inside():
    def bad(s):
        raise ValueError("deep")

    graph = build(nodes={"sub": build(Inner, nodes={"w": bad}, edges=[(START, "w")])}, edges=[(START, "sub")])
    assert (await recorded(graph)).failed_in == "sub/w#0"


@dataclass
class Data:
    q: str = ""
    a: str = ""


class Model(BaseModel):
    q: str = ""
    a: str = ""


@pytest.mark.parametrize("schema", [Data, Model])
async def test_state_as_an_object_is_recorded_with_the_fields_that_were_read(schema):
    graph = build(
        schema,
        nodes={"n": lambda s: {"a": s.q}, "m": lambda s: {"a": s.a + "m"}},
        edges=[(START, "n"), ("n", "m")],
    )
    run = await recorded(graph)
    assert run.executions[0].inputs == {"q": "hi", "a": ""}
    assert [e.reads for e in run.executions] == [{"q"}, {"a"}]
    assert edges(run) == {("n#0", "m#0", "a")}


async def test_node_that_validates_its_state_with_pydantic_still_depends_on_it():
    # pydantic reads dicts from C, where nobody can watch it.
    graph = build(
        nodes={"n": lambda s: {"a": "x"}, "m": lambda s: {"b": Model.model_validate(s).a}},
        edges=[(START, "n"), ("n", "m")],
    )
    run = await recorded(graph)
    assert run.outputs["b"] == "x"
    assert ("n#0", "m#0", "a") in edges(run)


class Writes:
    def all(self, state):
        return {"b": orjson.dumps(state).decode()}

    def nothing(self, state):
        return {"b": "fixed"}


def _unseen(state):
    return {"b": orjson.dumps(state).decode()}


async def _unseen_too(state):
    def written():
        return orjson.dumps(state).decode()

    return {"b": written()}


def _packed(*states):
    return {"b": orjson.dumps(states[0]).decode()}


def decorated(node):
    @functools.wraps(node)
    def call(*args, **kwargs):
        return node(*args, **kwargs)

    return call


def _fails(state):
    raise ValueError(orjson.dumps(state).decode())


def _blind(state):
    del state
    return {"b": "fixed"}


@pytest.mark.parametrize(
    ("node", "is_seen"),
    [
        (_unseen, True), (_unseen_too, True), (_packed, True), (_fails, True), (Writes().all, True),
        (decorated(_unseen), True), (decorated(lambda _: {"b": "fixed"}), False),
        (functools.partial(_unseen), True), (RunnableLambda(_unseen) | RunnableLambda(lambda found: found), True),
        (lambda _: {"b": "fixed"}, False), (_blind, False), (Writes().nothing, False),
    ],
)  # fmt: skip
async def test_node_whose_reads_nobody_could_notice_has_read_everything(node, is_seen):
    # orjson reads dicts from C, where nobody can watch it.
    graph = build(nodes={"n": lambda _: {"a": "x"}, "m": node}, edges=[(START, "n"), ("n", "m")])
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}}])
    assert (("n#0", "m#0", "a") in edges(run)) == is_seen
    assert run.executions[1].reads == ({"q", "a", "items"} if is_seen else set())


async def test_conditional_edge_whose_reads_nobody_could_notice_has_read_everything():
    def route(state):
        return "m" if b"x" in orjson.dumps(state) else END

    graph = build(
        nodes={"n": lambda s: {"a": s["q"]}, "k": lambda _: {"b": "y"}, "m": lambda s: {"c": s["b"]}},
        edges=[(START, "n"), ("n", "k")],
        conditional=[("k", route, ["m", END])],
    )
    run = await recorded(graph, q="x")
    assert run.executions[1].reads == {"q", "a", "items"}


async def test_node_that_waits_before_it_reads_has_read_what_it_reads_afterwards():
    def ask(state):
        return {"b": interrupt("?") + state["a"]}

    builder = StateGraph(S).add_node("n", lambda _: {"a": "x", "c": "y"}).add_node("ask", ask)
    graph = builder.add_edge(START, "n").add_edge("n", "ask").compile(checkpointer=InMemorySaver())
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}, "metadata": {"resume": ["yes"]}}])
    assert (run.outputs["b"], run.executions[1].reads) == ("yesx", {"a"})


async def test_parallel_executions_of_one_node_are_numbered_by_input_not_by_finish():
    import asyncio

    async def work(s):
        await asyncio.sleep(0.002 * (3 - s["i"]))
        return {"items": [s["i"]]}

    graph = build(
        nodes={"work": work},
        conditional=[(START, lambda s: [Send("work", {"i": i}) for i in range(3)], ["work"])],
    )
    first, second = await recorded(graph), await recorded(graph)
    assert [(e.id, e.inputs) for e in first.executions] == [(e.id, e.inputs) for e in second.executions]


async def test_observing_changes_nothing_in_the_users_graph():
    graph = build(nodes={"n": lambda s: {"a": type(s).__name__}}, edges=[(START, "n")])
    before = {n: id(p) for n, p in graph.nodes.items()}
    await recorded(graph)
    assert {n: id(p) for n, p in graph.nodes.items()} == before
    assert (await graph.ainvoke({"q": "hi"}))["a"] == "dict"


async def test_users_checkpointer_stays_empty():
    saver = InMemorySaver()
    graph = build(nodes={"n": lambda s: {"a": s["q"]}}, edges=[(START, "n")], checkpointer=saver)
    run = await recorded(graph)
    assert run.outputs["a"] == "hi"
    assert list(saver.list(None)) == []


# Runs as data.


async def test_stored_run_is_the_recorded_run():
    model = Chat(answer=echo)
    prompt = tg.Parameter("p", "Be kind.")

    async def n(s):
        said = await model.ainvoke([prompt.message(), HumanMessage(s["q"])])
        return {"a": said.content, "items": Overwrite([said])}

    graph = build(nodes={"n": n, "m": lambda s: {"b": s["a"]}}, edges=[(START, "n"), ("n", "m")])
    run = await recorded(graph, [prompt])
    again = decode_run(json.loads(json.dumps(encode_run(run))), run.example)
    assert again.executions == run.executions
    assert Trace.of(again).edges == Trace.of(run).edges
    assert encode_run(again) == encode_run(run)
    assert again.outputs["b"] == run.outputs["b"]


class Thing(BaseModel):
    x: int = 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4)
    | st.dates() | st.uuids() | st.sampled_from([Thing(), Data("q"), object(), len, HumanMessage("h"), SystemMessage([{"type": "text", "text": "t"}])]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    | st.sets(st.text(max_size=2) | st.integers(), max_size=3)
    | st.tuples(inner, inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(values)
def test_to_plain_is_json_and_idempotent(value):
    plain = to_plain(value)
    assert to_plain(plain) == plain
    assert json.loads(canonical(value)) == plain
    assert canonical(plain) == canonical(value)


async def test_lone_surrogates_survive_the_store():
    # A reply that was cut inside an emoji, in JSON, leaves half of it.
    half = json.loads('"\\ud83d"')
    graph = tg.TrainableGraph(build(nodes={"n": lambda s: {"a": half}}, edges=[(START, "n")]))
    store = tg.Store()
    with tg.use_ledger(tg.Ledger(store)):
        [run] = await graph.arecord([{"inputs": {"q": half}}])
        [again] = await graph.arecord([{"inputs": {"q": half}}])
    assert again.executions == run.executions
    assert again.executions[0].writes == (("a", "\ufffd"),)
    store.close()


# Isolation.

SCRIPT = """
import asyncio, http.server, json, os, sys, threading
seen = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.path)
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.do_GET()
    do_PATCH = do_POST
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(LANGSMITH_TRACING="true", LANGCHAIN_TRACING_V2="true", LANGSMITH_API_KEY="lsv2_x",
                  LANGSMITH_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
from langchain_core.tracers.langchain import wait_for_all_tracers
from langsmith import traceable
from langgraph.graph import START, StateGraph
import lg_textgrad as tg
from tests.parts import BlamesUpstream, Chat, echo
p = tg.Parameter("p", "hello")
model = Chat(answer=echo)
@traceable
def helper(text): return text
async def node(s): return {"a": helper((await model.ainvoke([p.message()])).content)}
def judge(outputs): return helper(len(model.invoke("judge").content) > 99)
graph = StateGraph(dict).add_node("n", node).add_edge(START, "n").compile()
runs = tg.TrainableGraph(graph, [p]).record([{"inputs": {"q": 1}}])
loss = tg.Objective([judge])(runs)
loss.backward(BlamesUpstream())
wait_for_all_tracers()
quiet = len(seen)
asyncio.run(graph.ainvoke({"q": 1}))   # the same graph on its own is traced, so the server listens
wait_for_all_tracers()
print(json.dumps({"error": runs[0].error, "grads": len(p.grad), "quiet": quiet, "after": len(seen)}))
"""


def test_nothing_leaves_for_langsmith_whatever_the_environment_says():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["error"], told["grads"], told["quiet"]) == (None, 1, 0)
    assert told["after"] > 0


@pytest.mark.parametrize("sync", [True, False])
async def test_graph_recorded_inside_another_graphs_node_inherits_nothing(sync):
    from langchain_core.callbacks import BaseCallbackHandler

    class Watch(BaseCallbackHandler):
        def __init__(self):
            self.inner = 0

        def on_chain_start(self, serialized, inputs, **kwargs):
            self.inner += "marker" in str(inputs)

    inner = tg.TrainableGraph(
        build(nodes={"n": lambda s: {"a": s["q"]}}, edges=[(START, "n")])
    )
    batch = [{"inputs": {"q": "marker"}}]
    kept: list[Any] = []

    async def awaited(s):
        kept.extend(await inner.arecord(batch))
        return {"a": "done"}

    def plain(s):
        kept.extend(inner.record(batch))
        return {"a": "done"}

    saver, watch = InMemorySaver(), Watch()
    outer = build(nodes={"o": plain if sync else awaited}, edges=[(START, "o")], checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}, "callbacks": [watch], "recursion_limit": 9}
    assert (await outer.ainvoke({"q": "x"}, config))["a"] == "done"
    assert [e.id for e in kept[0].executions] == ["n#0"]
    assert watch.inner == 0
    assert {c.config["configurable"]["checkpoint_ns"] for c in saver.list(None)} == {""}
    assert "marker" not in str(list(saver.list(None)))


# What runs inside of a node's execution is not another attempt of it.


async def test_chain_inside_a_tool_leaves_the_nodes_own_writes_alone():
    from langchain_core.runnables import RunnableLambda

    shout = RunnableLambda(lambda text: {"q": text.upper()})

    @tool
    def loud(word: str) -> str:
        """Say it loudly."""
        return shout.invoke(word)["q"]

    class M(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    asks = AIMessage("", tool_calls=[{"name": "loud", "args": {"word": "cat"}, "id": "1"}])
    graph = build(M, nodes={"tools": ToolNode([loud])}, edges=[(START, "tools")])
    [e] = (await recorded(graph, messages=[asks])).executions
    assert [channel for channel, _ in e.writes] == ["messages"]
    assert (e.attempts, e.tool_calls[0].output["content"]) == (1, "CAT")


async def test_router_is_the_one_that_chose_when_others_could_have():
    graph = build(
        nodes={
            "l": lambda s: {"a": "1"}, "r": lambda s: {"b": "1"},
            "x": lambda s: {"c": "x"}, "y": lambda s: {"q": "y"},
        },
        edges=[(START, "l"), (START, "r")],
        conditional=[
            ("l", lambda s: "go", {"go": "x", "stay": "y"}),
            ("r", lambda s: "stay", {"go": "x", "stay": "y"}),
        ],
    )  # fmt: skip
    run = await recorded(graph)
    assert {e for e in edges(run) if e[2] == ROUTE} == {("l#0", "x#0", ROUTE), ("r#0", "y#0", ROUTE)}


async def test_reads_of_a_failed_attempt_and_of_an_error_handler_are_kept_apart():
    tries = []

    def flaky(s):
        tries.append(s["a" if not tries else "b"])
        if len(tries) < 2:
            raise ValueError("not yet")
        return {"c": "done"}

    retry = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=ValueError)
    builder = StateGraph(S).add_node("first", lambda s: {"a": "x", "b": "y"})
    builder.add_node("flaky", flaky, retry_policy=retry)
    builder.add_edge(START, "first").add_edge("first", "flaky")
    run = await recorded(builder.compile())
    assert (run.executions[1].reads, run.executions[1].attempts) == ({"a", "b"}, 2)


# Interrupts.


def asking(**compiled):
    model = Chat(answer=echo)

    async def ask(s):
        draft = (await model.ainvoke(s["q"])).content
        return {"a": f"{draft}, {interrupt('fine?')}, {interrupt('sure?')}"}

    return build(
        nodes={"ask": ask, "end": lambda s: {"b": s["a"] + "!"}},
        edges=[(START, "ask"), ("ask", "end")],
        **compiled,
    )


async def run_of(graph, **row):
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}, **row}])
    return run


async def test_run_that_interrupts_ends_as_it_stands_with_a_note():
    run = await run_of(asking())
    [e] = run.executions
    assert (e.interrupts, e.writes, e.error, run.error) == (["fine?"], (), None, None)
    assert [i.value for i in run.outputs["__interrupt__"]] == ["fine?"]
    assert run.warnings == (
        "The run waits at an interrupt in the node 'ask'; give a value for it in the example's "
        "metadata['resume'] to have it go on.",
    )


@pytest.mark.parametrize("saved", [True, False])
async def test_resumed_run_is_one_run_with_all_model_calls(saved):
    graph = asking(checkpointer=InMemorySaver()) if saved else asking()
    run = await run_of(graph, metadata={"resume": ["yes", "really"]})
    assert (run.outputs["b"], run.warnings) == ("hi, yes, really!", ())
    ask, end = run.executions
    assert (ask.interrupts, ask.attempts, len(ask.model_calls)) == (["fine?", "sure?"], 3, 3)
    assert (ask.writes, end.superstep) == ((("a", "hi, yes, really"),), 2)
    assert edges(run) == {("ask#0", "end#0", "a")}


async def test_values_that_no_interrupt_asked_for_are_told():
    run = await run_of(asking(), metadata={"resume": ["yes", "really", "no"]})
    assert run.warnings == (
        "The run came to its end after 2 of the 3 values in metadata['resume'].",
    )


async def test_resume_that_is_no_list_is_refused():
    with pytest.raises(DataError, match="'resume'\\] must be a list with a value for each interrupt"):
        await run_of(asking(), metadata={"resume": "yes"})


async def test_other_values_to_resume_with_make_another_run():
    graph = tg.TrainableGraph(asking())
    rows = [{"id": "x", "inputs": {"q": "hi"}, "metadata": {"resume": [a, "b"]}} for a in "12"]
    with tg.use_ledger(tg.Ledger(tg.Store())) as _:
        first, second = await graph.arecord(rows)
    assert (first.outputs["b"], second.outputs["b"]) == ("hi, 1, b!", "hi, 2, b!")
    assert first.id != second.id


@pytest.mark.parametrize("late", [0, 0.1])  # seconds after which the first one asks
async def test_interrupts_at_once_take_their_values_in_order(late):
    def left(_state):
        time.sleep(late)
        return {"a": interrupt("l")}

    graph = build(
        nodes={"l": left, "r": lambda s: {"b": interrupt("r")},
               "end": lambda s: {"c": s["a"] + s["b"]}},
        edges=[(START, "l"), (START, "r"), (["l", "r"], "end")],
    )  # fmt: skip
    run = await run_of(graph, metadata={"resume": ["1", "2"]})
    assert run.outputs["c"] == "12"
    assert edges(run) == {("l#0", "end#0", "a"), ("r#0", "end#0", "b")}
    half = await run_of(graph, metadata={"resume": ["1"]})
    assert [(e.id, e.writes) for e in half.executions] == [("l#0", (("a", "1"),)), ("r#0", ())]
    assert half.warnings[0].startswith("The run waits at an interrupt in the node 'r'")


async def test_interrupt_inside_a_subgraph_is_the_inner_nodes():
    inner = build(Inner, nodes={"w": lambda s: {"b": interrupt("b?")}}, edges=[(START, "w")])
    graph = build(nodes={"sub": inner, "end": lambda s: {"c": s["b"]}}, edges=[(START, "sub"), ("sub", "end")])
    run = await run_of(graph, metadata={"resume": ["x"]})
    assert {e.id: e.interrupts for e in run.executions} == {"sub#0": [], "sub/w#0": ["b?"], "end#0": []}
    assert (run.outputs["c"], Trace.of(run).producers("end#0")) == ("x", {"sub/w#0": ["b"]})


async def test_breakpoint_ends_the_run_or_takes_a_value():
    graph = build(
        nodes={"x": lambda s: {"a": "1"}, "y": lambda s: {"b": s["a"]}},
        edges=[(START, "x"), ("x", "y")], interrupt_before=["y"],
    )  # fmt: skip
    run = await run_of(graph)
    assert ids(run) == ["x#0"]
    assert run.warnings[0].startswith("The run stopped at a breakpoint, with 'y' to go on with")
    run = await run_of(graph, metadata={"resume": [None]})
    assert (ids(run), run.outputs["b"], run.warnings) == (["x#0", "y#0"], "1", ())


async def test_inputs_that_are_no_state_are_handed_over_as_they_are():
    builder = StateGraph(Annotated[list, operator.add])
    builder.add_node("n", lambda s: [s[-1] + "!"]).add_edge(START, "n")
    run = await run_of(builder.compile(), inputs={"__root__": ["hi"]})
    assert run.outputs == {"output": ["hi", "hi!"]}
    assert run.executions[0].writes == (("__root__", ["hi!"]),)
    assert Trace.of(run).sinks == {"output": ("n#0",)}


async def test_users_checkpointer_of_a_subgraph_stays_empty():
    saver = InMemorySaver()
    inner = build(Inner, nodes={"w": lambda s: {"b": s["q"]}}, edges=[(START, "w")], checkpointer=saver)
    run = await run_of(build(nodes={"sub": inner}, edges=[(START, "sub")]))
    assert run.outputs["b"] == "hi"
    assert list(saver.list(None)) == []


@pytest.mark.parametrize(
    "again",
    [
        lambda m: AIMessage("Better.", id=m.id),
        lambda m: {"role": "assistant", "id": m.id, "content": "Better."},
        lambda m: {"type": "ai", "id": m.id, "content": "Better."},
        lambda m: {
            "role": "assistant", "id": m.id, "content": "Better.",
            "tool_calls": [{"name": "send", "args": {"text": "Better."}, "id": "call"}],
        },
    ],
    ids=["message", "role", "type", "tool call"],
)  # fmt: skip
@pytest.mark.parametrize("draft", [{"role": "assistant", "id": "1", "content": "Draft."}, AIMessage("Draft.")])
async def test_message_that_was_replaced_is_nobodys_however_the_messages_are_written(draft, again):
    class Talk(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    def write(s):
        return {"messages": [draft]}

    def better(s):
        return {"messages": again(s["messages"][-1])}

    def end(s):
        return {"messages": [("user", s["messages"][-1].content)]}

    builder = StateGraph(Talk).add_sequence([write, better, end]).add_edge(START, "write")
    [run] = await tg.TrainableGraph(builder.compile()).arecord([{"inputs": {"messages": []}}])
    assert [m.content for m in run.outputs["messages"]] == ["Better.", "Better."]
    assert edges(run) == {("write#0", "better#0", "messages"), ("better#0", "end#0", "messages")}
