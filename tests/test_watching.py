"""Runs that the user makes, recorded as they go: every way to run a graph, sync and async."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import SystemMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import CachePolicy, Command, interrupt

import lg_textgrad as tg
from lg_textgrad.errors import GraphError
from lg_textgrad.trace import Trace
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    b: str


model = Chat(answer=echo)
PROMPT = tg.Parameter("kind", "Be kind.")


def chain(**compiled):
    def one(s):
        return {"a": model.invoke([PROMPT.message(), ("user", s["q"])]).content}

    def two(s):
        return {"b": s["a"] + "!"}

    builder = StateGraph(S).add_sequence([("one", one), ("two", two)]).add_edge(START, "one")
    return builder.compile(**compiled)


def edges(run):
    return {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}


async def by_ainvoke(graph, rows):
    for row in rows:
        await graph.ainvoke(row)


async def by_astream(graph, rows):
    for row in rows:
        assert [c async for c in graph.astream(row, stream_mode=["updates", "messages"])]


async def by_abatch(graph, rows):
    await graph.abatch(rows)


async def at_once(graph, rows):
    await asyncio.gather(*(graph.ainvoke(row) for row in rows))


WAYS = {
    "invoke": lambda graph, rows: [graph.invoke(row) for row in rows],
    "stream": lambda graph, rows: [list(graph.stream(row, stream_mode="debug")) for row in rows],
    "batch": lambda graph, rows: graph.batch(rows),
    "ainvoke": by_ainvoke,
    "astream": by_astream,
    "abatch": by_abatch,
    "gather": at_once,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_a_graph_is_recorded(way):
    graph = chain()
    with tg.watch(graph, [PROMPT]) as watched:
        done = WAYS[way](watched.graph, [{"q": "x"}, {"q": "y"}])
        if asyncio.iscoroutine(done):
            asyncio.run(done)
    runs = sorted(watched.runs, key=lambda r: r.inputs["q"])
    assert [r.outputs["b"] for r in runs] == ["Be kind. / x!", "Be kind. / y!"]
    for run in runs:
        one, two = run.executions
        assert (one.path, one.reads, one.prompts, len(one.model_calls)) == (
            "one", {"q"}, {"kind": "Be kind."}, 1,
        )  # fmt: skip
        assert edges(run) == {("one#0", "two#0", "a")}
        assert (run.error, run.warnings) == (None, ())
    assert len({r.id for r in runs}) == 2


def test_same_inputs_twice_are_two_runs():
    with tg.watch(chain()) as watched:
        watched.graph.invoke({"q": "x"})
        watched.graph.invoke({"q": "x"})
    first, second = watched.runs
    assert (first.sample, second.sample) == (0, 1)
    assert first.id != second.id


def test_recorded_run_can_be_trained_on_like_any_other():
    trainable = tg.TrainableGraph(chain(), [PROMPT])
    with tg.watch(trainable) as watched:
        watched.graph.invoke({"q": "x"})
    assert trainable.unread(watched.runs) == []
    [again] = trainable.record([watched.runs[0].example])
    assert again.id == watched.runs[0].id
    assert [e.id for e in again.executions] == [e.id for e in watched.runs[0].executions]


def test_discovered_prompts_are_noted():
    def one(s):
        return {"a": model.invoke([SystemMessage("Be brief."), ("user", s["q"])]).content}

    graph = StateGraph(S).add_node("one", one).add_edge(START, "one").compile()
    trainable = tg.discover(graph, [{"q": "x"}, {"q": "y"}])
    with tg.watch(trainable) as watched:
        watched.graph.invoke({"q": "z"})
    assert watched.runs[0].executions[0].prompts == {"one": "Be brief."}


def test_error_reaches_the_caller_and_the_trace_is_kept_up_to_it():
    def bad(s):
        raise ValueError("no")

    graph = StateGraph(S).add_sequence([("one", lambda s: {"a": "x"}), ("bad", bad)]).add_edge(START, "one")
    with tg.watch(graph.compile()) as watched:
        with pytest.raises(ValueError, match="no"):
            watched.graph.invoke({"q": "x"})
    [run] = watched.runs
    assert (run.error, run.failed_in) == ("ValueError: no", "bad#0")
    assert [e.id for e in run.executions] == ["one#0", "bad#0"]


def test_stream_that_is_left_early_has_what_had_run():
    with tg.watch(chain()) as watched:
        stream = watched.graph.stream({"q": "x"}, stream_mode="updates")
        next(stream)
        assert [e.id for e in watched.runs[0].executions][:1] == ["one#0"]
        stream.close()


def test_outside_the_block_and_on_the_graph_itself_nothing_is_recorded():
    graph = chain()
    with tg.watch(graph) as watched:
        graph.invoke({"q": "x"})
    assert watched.runs == []


def test_own_callbacks_and_configuration_stay():
    from langchain_core.callbacks import BaseCallbackHandler

    class Watch(BaseCallbackHandler):
        seen = 0

        def on_chain_start(self, *args, **kwargs):
            self.seen += 1

    watch = Watch()
    with tg.watch(chain().with_config({"tags": ["t"]})) as watched:
        watched.graph.invoke({"q": "x"}, {"callbacks": [watch]})
    assert watch.seen == 3
    assert len(watched.runs[0].executions) == 2


# Threads.


def asking(**compiled):
    def ask(s):
        return {"a": interrupt("who?")}

    builder = StateGraph(S).add_sequence([("ask", ask), ("two", lambda s: {"b": s["a"] + "!"})])
    return builder.add_edge(START, "ask").compile(checkpointer=InMemorySaver(), **compiled)


def test_resumed_invocation_goes_on_with_its_run():
    config: Any = {"configurable": {"thread_id": "t"}}
    with tg.watch(asking()) as watched:
        watched.graph.invoke({"q": "x"}, config)
        [waiting] = watched.runs
        assert waiting.warnings[0].startswith("The run waits at an interrupt in the node 'ask'")
        watched.graph.invoke(Command(resume="me"), config)
    [run] = watched.runs
    assert ([e.id for e in run.executions], run.outputs["b"], run.warnings) == (["ask#0", "two#0"], "me!", ())
    assert (run.executions[0].interrupts, run.executions[0].attempts) == (["who?"], 2)
    assert edges(run) == {("ask#0", "two#0", "a")}


def test_breakpoint_is_passed_in_the_same_run():
    config: Any = {"configurable": {"thread_id": "t"}}
    graph = chain(checkpointer=InMemorySaver(), interrupt_before=["two"])
    with tg.watch(graph) as watched:
        watched.graph.invoke({"q": "x"}, config)
        watched.graph.invoke(None, config)
    [run] = watched.runs
    assert [e.id for e in run.executions] == ["one#0", "two#0"]


def test_turns_of_a_conversation_are_runs_of_their_own():
    class M(TypedDict):
        messages: Annotated[list, add_messages]

    builder = StateGraph(M).add_node("n", lambda s: {"messages": [("ai", str(len(s["messages"])))]})
    graph = builder.add_edge(START, "n").compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    with tg.watch(graph) as watched:
        for text in ("hi", "again"):
            watched.graph.invoke({"messages": [("user", text)]}, config)
    first, second = watched.runs
    assert [len(r.executions) for r in (first, second)] == [1, 1]
    assert len(second.executions[0].inputs["messages"]) == 3


# What a node cache answers is told.


def test_cached_node_is_told_and_only_in_the_run_that_it_was_answered_in():
    builder = StateGraph(S)
    builder.add_node("slow", lambda s: {"a": s["q"]}, cache_policy=CachePolicy())
    builder.add_node("two", lambda s: {"b": s["a"]}).add_edge(START, "slow").add_edge("slow", "two")
    with tg.watch(builder.compile(cache=InMemoryCache())) as watched:
        watched.graph.invoke({"q": "x"})
        watched.graph.invoke({"q": "x"})
    first, second = watched.runs
    assert ([e.id for e in first.executions], first.warnings) == (["slow#0", "two#0"], ())
    assert [e.id for e in second.executions] == ["two#0"]
    assert second.warnings[0].startswith("The node 'slow' was answered from its cache, so it is not in")


async def test_cached_task_is_told():
    @task(cache_policy=CachePolicy())
    async def slow(x):
        return x

    @entrypoint(cache=InMemoryCache())
    async def flow(q):
        return await slow(q)

    with tg.watch(flow) as watched:
        assert [await flow_.ainvoke("x") for flow_ in [watched.graph] * 2] == ["x", "x"]
    first, second = watched.runs
    assert (first.inputs, first.outputs, first.warnings) == ({"__root__": "x"}, {"output": "x"}, ())
    assert "'slow' was answered from its cache" in second.warnings[0]


# A graph that is recorded inside of another.


def test_recording_inside_a_node_of_another_graph():
    inner = chain()
    kept: list[tg.Run] = []

    def host(s):
        with tg.watch(inner) as watched:
            answer = watched.graph.invoke({"q": s["q"]})["b"]
        kept.extend(watched.runs)
        return {"b": answer}

    outer = StateGraph(S).add_node("host", host).add_edge(START, "host").compile()
    assert outer.invoke({"q": "x"})["b"] == "Be kind. / x!"
    [run] = kept
    assert [(e.path, e.parent) for e in run.executions] == [("one", None), ("two", None)]
    assert edges(run) == {("one#0", "two#0", "a")}


def test_graph_on_a_server_is_refused():
    class Elsewhere:
        fingerprint = "f"

        async def arun(self, *args):
            raise NotImplementedError

    with pytest.raises(GraphError, match="can only be recorded by graph.record"):
        with tg.watch(tg.TrainableGraph(Elsewhere())):
            pass
