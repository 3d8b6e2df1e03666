"""What graphs keep from one run to the next: each recorded run has its own, wherever they are called."""

from __future__ import annotations

import copy
from typing import Annotated, TypedDict

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedStore, ToolNode
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore, SearchOp
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy

import lg_textgrad as tg
from lg_textgrad.recording.stores import RunStore
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    b: int
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


# Stores.


def remembers(store):
    """A graph that answers with its prompt and all that it remembers, and remembers that."""
    model = Chat(answer=echo)

    def host(state, *, store: BaseStore):
        known = [item.value["text"] for item in store.search(("memories", "bob"))]
        said = model.invoke([SystemMessage("You write."), HumanMessage(str(known))]).content
        store.put(("memories", "bob"), said, {"text": said})
        return {"a": said}

    def again(state, *, store: BaseStore):
        return {"b": len(store.search(("memories",)))}

    builder = StateGraph(S).add_node("host", host).add_node("again", again)
    return builder.add_edge(START, "host").add_edge("host", "again").compile(store=store)


async def test_runs_read_the_store_and_write_to_nobody_elses():
    store = InMemoryStore()
    store.put(("memories", "bob"), "old", {"text": "likes tea"})
    graph = await tg.adiscover(remembers(store), [{"q": "hi"}])
    for text in ("You sing.", "You dance."):
        [run] = await graph.arecord([{"inputs": {"q": "hi"}}], prompts={"host": text})
        assert (run.error, run.outputs["a"]) == (None, f"{text} / ['likes tea']")
        assert run.outputs["b"] == 2
    assert [item.key for item in store.search(("memories",))] == ["old"]


class Newest(InMemoryStore):
    """A store that gives the latest first, as those in databases do."""

    def batch(self, ops):
        return [self._one(op) for op in ops]

    async def abatch(self, ops):
        return self.batch(ops)

    def _one(self, op):
        if not isinstance(op, SearchOp):
            return super().batch([op])[0]
        [found] = super().batch([op._replace(limit=1000, offset=0)])
        return found[::-1][op.offset : op.offset + op.limit]


@pytest.mark.parametrize("kind", [InMemoryStore, Newest])
async def test_own_view_of_a_store_is_like_the_store(kind):
    def used(store):
        store.put(("a",), "one", {"n": 1, "tags": ["x"]})
        return store

    real, behind = used(kind()), used(kind())
    own = RunStore(behind)
    for store in (real, own):
        store.put(("a", "b"), "two", {"n": 2})
        store.delete(("a",), "gone")
        store.put(("c",), "three", {"n": 3})
        store.put(("c",), "four", {"n": 4})
        await store.adelete(("c",), "three")

    async def looks(store):
        return [
            [(i.key, i.value) for i in store.search(("a",))],
            [(i.key, i.value) for i in await store.asearch((), limit=2, offset=1)],
            [i.key for i in store.search((), filter={"n": 2})],
            [getattr(store.get(("c",), k), "value", None) for k in ("three", "four")],
            sorted(store.list_namespaces(prefix=("a",))), len(store.list_namespaces(limit=1)),
        ]

    assert await looks(own) == await looks(real)
    own.get(("a",), "one").value["tags"].append("changed")
    own.delete(("a",), "one")
    assert own.get(("a",), "one") is None
    assert [i.value for i in behind.search(())] == [{"n": 1, "tags": ["x"]}]


class Undated(Newest):
    """A store whose dates have no time zone, as SQLite's."""

    def _one(self, op):
        found = super()._one(op)
        for item in found if isinstance(op, SearchOp) else ():
            item.updated_at = item.updated_at.replace(tzinfo=None)
        return found


def test_store_whose_dates_have_no_time_zone_is_searched():
    behind = Undated()
    behind.put(("a",), "one", {"n": 1})
    own = RunStore(behind)
    own.put(("a",), "two", {"n": 2})
    assert [i.key for i in own.search(("a",))] == ["two", "one"]


def test_store_of_a_run_can_be_copied():
    own = RunStore(InMemoryStore())
    own.put(("a",), "one", {"n": 1})
    assert copy.copy(own).get(("a",), "one").value == {"n": 1}


async def test_search_by_meaning_finds_what_the_run_wrote_too():
    def embed(texts):
        return [[float(text.count("tea")), float(text.count("tax")), 0.1] for text in texts]

    store = InMemoryStore(index={"dims": 3, "embed": embed})
    store.put(("a",), "tax", {"text": "pays tax"})
    own = RunStore(store)
    own.put(("a",), "tea", {"text": "likes tea"})
    for word in ("tea", "tax"):
        assert [i.key for i in own.search(("a",), query=word, limit=1)] == [word]
        assert [i.key for i in await own.asearch(("a",), query=word, limit=1)] == [word]
    assert len(store.search(())) == 1


async def test_search_by_meaning_embeds_once_where_the_run_wrote_nothing():
    class Counting(Embeddings):
        def embed_documents(self, texts):
            return [self.embed_query(text) for text in texts]

        def embed_query(self, text):
            asked.append(text)
            return [float(len(text))]

    asked: list[str] = []
    store = InMemoryStore(index={"dims": 1, "embed": Counting()})
    store.put(("a",), "tea", {"text": "likes tea"})
    asked.clear()
    own = RunStore(store)
    assert [i.key for i in own.search(("a",), query="tea")] == ["tea"]
    assert [i.key for i in await own.asearch(("a",), query="drinks")] == ["tea"]
    assert (asked, own.list_namespaces()) == (["tea", "drinks"], [("a",)])


def test_embeddings_that_a_store_has_by_name_are_not_made_for_each_run(monkeypatch):
    def made(name, **_):
        names.append(name)
        return DeterministicFakeEmbedding(size=3)

    names: list[str] = []
    # LangGraph looks langchain's function up once, and keeps it.
    monkeypatch.setattr("langgraph.store.base.embed._get_init_embeddings", lambda: made)
    store = InMemoryStore(index={"dims": 3, "embed": "openai:text-embedding-3-small"})
    own = RunStore(store)
    own.put(("a",), "tea", {"text": "likes tea"})
    assert (len(own.search(("a",), query="tea")), len(names)) == (1, 1)


def recalling(remember, recall):
    """A graph that calls the tool once and then asks what it has left."""
    calls = [{"name": "remember", "args": {"text": "tea"}, "id": "1", "type": "tool_call"}]
    builder = StateGraph(S).add_node("call", lambda _: {"messages": [AIMessage("", tool_calls=calls)]})
    builder.add_node("tools", ToolNode([remember])).add_node("recall", recall)
    return builder.add_edge(START, "call").add_edge("call", "tools").add_edge("tools", "recall")


async def test_tool_that_is_replayed_has_written_in_the_store_of_the_run():
    store = InMemoryStore()

    @tool
    def remember(text: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Remembers a text."""
        made.append(text)
        store.put(("memories",), text, {"text": text})
        return "done"

    made: list[str] = []

    def recall(state, *, store: BaseStore):
        return {"a": [item.key for item in store.search(("memories",))]}

    graph = tg.TrainableGraph(recalling(remember, recall).compile(store=store))
    with tg.use_ledger(tg.Ledger()):
        for sample in range(3):
            [run] = await graph.arecord([{"inputs": {"q": "hi"}}], sample=sample)
            assert (run.error, run.outputs["a"]) == (None, ["tea"])
    assert (made, store.search(())) == (["tea"], [])


async def test_async_tool_that_is_replayed_writes_by_an_async_function_for_embeddings():
    async def embed(texts):
        return [[float(len(text))] for text in texts]

    store = InMemoryStore(index={"dims": 1, "embed": embed})

    @tool
    async def remember(text: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Remembers a text."""
        await store.aput(("memories",), text, {"text": text})
        return "done"

    async def recall(state, *, store: BaseStore):
        return {"a": [item.key for item in await store.asearch(("memories",), query="tea")]}

    graph = tg.TrainableGraph(recalling(remember, recall).compile(store=store))
    with tg.use_ledger(tg.Ledger()):
        for sample in range(2):
            [run] = await graph.arecord([{"inputs": {"q": "hi"}}], sample=sample)
            assert (run.error, run.outputs and run.outputs["a"]) == (None, ["tea"])


async def test_value_that_a_tool_stores_and_that_cannot_be_kept_is_no_value_that_it_returns():
    @tool
    def remember(text: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Remembers a text."""
        store.put(("memories",), text, {"text": Odd(text)})
        return "done"

    calls = [{"name": "remember", "args": {"text": "tea"}, "id": "1", "type": "tool_call"}]
    builder = StateGraph(S).add_node("call", lambda _: {"messages": [AIMessage("", tool_calls=calls)]})
    builder.add_node("tools", ToolNode([remember])).add_edge(START, "call").add_edge("call", "tools")
    graph = tg.TrainableGraph(builder.compile(store=InMemoryStore()))
    with tg.use_ledger(tg.Ledger()):
        [run] = await graph.arecord([{"inputs": {"q": "hi"}}])
    [said] = run.warnings
    assert said.startswith("The tool 'remember' returns or writes into the store a tests.")


async def test_store_of_a_graph_that_a_node_calls_is_written_by_nobody():
    store = InMemoryStore()
    inner = {"graph": remembers(store)}

    async def host(state):
        return {"a": (await inner["graph"].ainvoke({"q": "hi"}, THREAD))["a"]}

    [run] = await tg.TrainableGraph(one(host)).arecord([{"inputs": {"q": "hi"}}])
    assert (run.error, run.outputs["a"]) == (None, "You write. / []")
    assert store.search(()) == []
