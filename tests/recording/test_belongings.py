"""What graphs keep from one run to the next: each recorded run has its own, wherever they are called."""

from __future__ import annotations

from typing import Annotated, TypedDict

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.pregel import Pregel
from langgraph.types import CachePolicy

import lg_textgrad as tg
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    messages: Annotated[list, add_messages]


def one(node, name="host", policy=None, **compiled):
    builder = StateGraph(S).add_node(name, node, cache_policy=policy)
    return builder.add_edge(START, name).compile(**compiled)


def writer(**compiled):
    """A graph that answers with its prompt and with the whole conversation."""
    model = Chat(answer=echo)

    def write(state):
        return {"messages": [model.invoke([SystemMessage("You write."), *state["messages"]])]}

    return one(write, "write", CachePolicy(), **compiled)


class Calls:
    """A node that holds its graph where LangGraph does not look for it."""

    def __init__(self, graph, config, sync, turns=1):
        self.graphs, self.config, self.sync, self.turns = {"writer": graph}, config, sync, turns

    async def __call__(self, state):
        for _ in range(self.turns):
            given = {"messages": [HumanMessage(state["q"])]}
            if self.sync:
                out = self.graphs["writer"].invoke(given, self.config)
            else:
                out = await self.graphs["writer"].ainvoke(given, self.config)
        return {"a": out["messages"][-1].content}


THREAD = {"configurable": {"thread_id": "always the same"}}


@pytest.mark.parametrize("config", [None, THREAD])
@pytest.mark.parametrize("sync", [True, False])
async def test_cache_of_a_graph_that_a_node_calls_answers_no_candidate_with_anothers(sync, config):
    cache = InMemoryCache()
    graph = await tg.adiscover(one(Calls(writer(cache=cache), config, sync)), [{"q": "hi"}])
    [name] = graph.parameters
    for text in ("You sing.", "You dance."):
        [run] = await graph.arecord([{"inputs": {"q": "hi"}}], prompts={name: text})
        assert (run.outputs["a"], run.warnings) == (f"{text} / hi", ())
    assert not cache._cache


@pytest.mark.parametrize("sync", [True, False])
async def test_memory_of_a_graph_that_a_node_calls_is_the_runs_own(sync):
    saver = InMemorySaver()
    node = Calls(writer(checkpointer=saver), THREAD, sync, turns=2)
    graph = await tg.adiscover(one(node), [{"q": "hi"}])
    [name] = graph.parameters
    for text in ("You sing.", "You dance."):
        [run] = await graph.arecord([{"inputs": {"q": "hi"}}], prompts={name: text})
        assert run.outputs["a"] == f"{text} / hi / {text} / hi / hi"
    assert list(saver.list(None)) == []


async def test_state_of_a_graph_that_a_node_calls_is_that_of_the_run():
    saver = InMemorySaver()
    inner = writer(checkpointer=saver)

    async def host(state):
        await inner.ainvoke({"messages": [HumanMessage(state["q"])]}, THREAD)
        inner.update_state(THREAD, {"a": "noted"})
        return {"a": [(await inner.aget_state(THREAD)).values["a"], len(inner.get_state(THREAD).values)]}

    [run] = await tg.TrainableGraph(one(host)).arecord([{"inputs": {"q": "hi"}}])
    assert (run.error, run.outputs["a"]) == (None, ["noted", 2])
    assert list(saver.list(None)) == []


async def test_outside_of_runs_graphs_keep_what_they_keep():
    before = {name: vars(Pregel)[name] for name in ("stream", "astream", "invoke", "ainvoke")}
    saver, cache = InMemorySaver(), InMemoryCache()
    inner = writer(checkpointer=saver, cache=cache)
    graph = one(Calls(inner, THREAD, sync=False))
    await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}}])
    assert {name: vars(Pregel)[name] for name in before} == before
    assert (await graph.ainvoke({"q": "hi"}))["a"] == "You write. / hi"
    assert (await graph.ainvoke({"q": "hi"}))["a"] == "You write. / hi / You write. / hi / hi"
    assert cache._cache


class Odd:
    """What msgpack can't write."""

    def __init__(self, text):
        self.text = text


async def test_values_that_only_the_users_checkpointer_can_write_are_written():
    saver = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True))
    graph = one(lambda state: {"a": Odd(state["q"])}, checkpointer=saver)
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}}])
    assert (run.error, run.outputs["a"].text) == (None, "hi")
