"""Rewriters change what models are asked: before callbacks, before the store, in scope only."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from threading import Thread
from typing import Annotated, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import START, StateGraph
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad.bindings import patching
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.bindings.patching import register, replaced
from lg_textgrad.bindings.rewriting import rewriting
from tests.parts import Chat, echo

METHODS = (
    "generate",
    "agenerate",
    "_generate_with_cache",
    "_agenerate_with_cache",
    "stream",
    "astream",
)


def methods():
    return {name: BaseChatModel.__dict__[name] for name in METHODS}


class Says:
    """Puts a text in place of every system message, and notes who asked."""

    def __init__(self, text="new", options=None):
        self.text = text
        self.options = options or {}
        self.nodes = []
        self.seen = []

    def rewrite(self, node, messages, options):
        self.nodes.append(node)
        self.seen.append(dict(options))
        sent = [SystemMessage(self.text) if m.type == "system" else m for m in messages]
        return sent, {**options, **self.options}


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    all: Annotated[list, lambda a, b: a + b]


ASKED = [("system", "old"), ("user", "hi")]


async def ask(model, how, asked=ASKED):
    if how == "invoke":
        return model.invoke(asked).content
    if how == "ainvoke":
        return (await model.ainvoke(asked)).content
    if how == "stream":
        return "".join(c.content for c in model.stream(asked))
    if how == "astream":
        return "".join([c.content async for c in model.astream(asked)])
    if how == "batch":
        return "|".join(m.content for m in model.batch([asked, asked]))
    if how == "generate":
        return model.generate([[SystemMessage("old")]]).generations[0][0].text
    return "|".join(m.content for m in await model.abatch([asked, asked]))


HOWS = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"]


@pytest.mark.parametrize("how", HOWS)
async def test_call_is_rewritten_however_it_is_made(how):
    model = Chat(answer=echo)
    with rewriting(Says()):
        said = await ask(model, how)
    assert set(said.split("|")) == {"new / hi"}
    assert "old / hi" in await ask(model, how)


async def test_direct_generate_is_rewritten():
    with rewriting(Says()):
        assert await ask(Chat(answer=echo), "generate") == "new"


@pytest.mark.parametrize("how", HOWS)
async def test_model_wrapped_by_langchain_is_rewritten(how):
    model, seen = Chat(answer=echo), Says()
    broken = Chat(answer=lambda m: ValueError("down"))
    wrapped = [
        model.bind(tools=[{"name": "t"}]),
        model.with_retry(),
        broken.with_fallbacks([model]),
        model.with_config(tags=["x"]),
    ]
    with rewriting(seen):
        for one in wrapped:
            assert set((await ask(one, how)).split("|")) == {"new / hi"}
    assert seen.seen[0]["tools"] == [{"name": "t"}]


async def test_structured_output_is_rewritten():
    class Team(BaseModel):
        name: str

    class Structured(Chat):
        def bind_tools(self, tools, **kwargs):
            return self.bind(tools=tools, **kwargs)

    said = []

    def answer(messages):
        said.append(echo(messages))
        return AIMessage("", tool_calls=[{"name": "Team", "args": {"name": "x"}, "id": "1"}])

    with rewriting(Says()):
        model = Structured(answer=answer).with_structured_output(Team)
        assert await model.ainvoke(ASKED) == Team(name="x")
    assert said == ["new / hi"]


async def test_options_are_what_the_model_is_called_with():
    class Takes(Chat):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            return super()._generate([SystemMessage(str((stop, kwargs)))])

    with rewriting(Says(options={"tools": [{"name": "new"}]})):
        said = await Takes(answer=echo).bind(tools=[{"name": "old"}], x=1).ainvoke("hi", stop=["."])
    assert said.content == "(['.'], {'tools': [{'name': 'new'}], 'x': 1})"


async def test_outer_scope_rewrites_first():
    class Adds(Says):
        def rewrite(self, node, messages, options):
            return [SystemMessage(messages[0].content + self.text), *messages[1:]], options

    with rewriting(Adds("1")), rewriting(Adds("2")):
        assert (await Chat(answer=echo).ainvoke(ASKED)).content == "old12 / hi"


def graph(model):
    async def writer(state):
        return {"a": (await model.ainvoke([("system", "old"), ("user", state["q"])])).content}

    def sync_writer(state):
        return {"b": model.invoke([("system", "old"), ("user", state["q"])]).content}

    inner = StateGraph(S).add_node("writer", writer).add_edge(START, "writer").compile()
    return (
        StateGraph(S)
        .add_node("sub", inner)
        .add_node("plain", sync_writer)
        .add_edge(START, "sub")
        .add_edge("sub", "plain")
        .compile()
    )


async def test_rewriter_is_told_the_path_of_the_node():
    says = Says()
    with rewriting(says):
        out = await graph(Chat(answer=echo)).ainvoke({"q": "hi"})
    assert (out["a"], out["b"]) == ("new / hi", "new / hi")
    assert says.nodes == ["sub/writer", "plain"]


async def test_path_of_the_node_is_known_where_the_node_gives_metadata_of_its_own():
    model, says = Chat(answer=echo), Says()

    async def node(state):
        chain = ChatPromptTemplate.from_messages(ASKED) | model
        await model.ainvoke(ASKED, {"metadata": {"mine": 1}})
        await model.ainvoke(ASKED, {"callbacks": [], "metadata": {"mine": 1}})
        return {"a": (await chain.ainvoke({})).content}

    with rewriting(says):
        await StateGraph(S).add_node("n", node).add_edge(START, "n").compile().ainvoke({"q": ""})
    assert says.nodes == ["n"] * 3


async def test_recorded_trace_and_store_have_what_was_sent():
    model = Chat(answer=echo)
    ledger = tg.Ledger()

    class Rewrites:
        parameters = {"p": tg.Parameter("p", "new")}

        def inputs(self, candidate, inputs):
            return inputs

        def invocation(self, candidate):
            return {}

        def scope(self, candidate):
            return rewriting(Says())

    plain = tg.TrainableGraph(graph(model))
    changed = tg.TrainableGraph(graph(model), bindings=[Rewrites()])
    with tg.use_ledger(ledger):
        await plain.arecord([{"inputs": {"q": "hi"}}])
        [run] = await changed.arecord([{"inputs": {"q": "hi"}}])
    sent = [[m["content"] for m in c.messages] for e in run.executions for c in e.model_calls]
    assert sent == [["new", "hi"], ["new", "hi"]]
    assert len(model.calls) == 4


async def test_rewritten_request_is_answered_from_what_was_paid_for_it():
    model, ledger = Chat(answer=echo), tg.Ledger()
    with pay_through(BoundaryScope(ledger)):
        await model.ainvoke([("system", "new"), ("user", "hi")])
    with pay_through(BoundaryScope(ledger)), rewriting(Says()):
        await model.ainvoke(ASKED)
    assert len(model.calls) == 1


class Streams(Chat):
    """A subclass that defines the public methods itself."""

    def generate(self, messages, *args, **kwargs):
        return super().generate(messages, *args, **kwargs)

    async def agenerate(self, messages, *args, **kwargs):
        return await super().agenerate(messages, *args, **kwargs)

    def stream(self, input, config=None, *, stop=None, **kwargs):
        for m in self._convert_input(input).to_messages():
            yield AIMessageChunk(m.content)

    async def astream(self, input, config=None, *, stop=None, **kwargs):
        for m in self._convert_input(input).to_messages():
            yield AIMessageChunk(m.content)


@pytest.mark.parametrize("how", HOWS)
async def test_subclass_that_overrides_the_methods_is_rewritten_once_and_left_as_it_was(how):
    own = {name: Streams.__dict__[name] for name in METHODS if name in Streams.__dict__}
    says = Says()
    with rewriting(says):
        said = await ask(Streams(answer=echo), how)
        assert set(said.split("|")) == {"new / hi"}
    assert len(says.nodes) == len(said.split("|"))
    assert {name: Streams.__dict__[name] for name in own} == own
    assert await ask(Streams(answer=echo), "stream") == "oldhi"


async def test_model_that_hands_its_call_on_is_rewritten_once():
    class Router(Chat):
        inner: BaseChatModel

        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            return self._generate([await self.inner.ainvoke(messages)])

    says = Says()
    with rewriting(says):
        said = await Router(answer=echo, inner=Chat(answer=echo)).ainvoke(ASKED)
    assert (said.content, len(says.nodes)) == ("new / hi", 1)


async def test_classes_are_as_they_were_after_errors_and_overlapping_scopes():
    before = methods()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def other():
        with rewriting(Says("other")):
            entered.set()
            await leave.wait()
            return (await Chat(answer=echo).ainvoke(ASKED)).content

    task = asyncio.create_task(other())
    await entered.wait()
    with pytest.raises(RuntimeError), rewriting(Says()):
        raise RuntimeError
    assert methods() != before
    assert (await Chat(answer=echo).ainvoke(ASKED)).content == "old / hi"
    leave.set()
    assert await task == "other / hi"
    assert methods() == before


async def test_concurrent_runs_do_not_see_each_others_rewriters():
    compiled = graph(Chat(answer=echo))

    async def one(text):
        with rewriting(Says(text)):
            out = await compiled.ainvoke({"q": "hi"})
        return out["a"], out["b"]

    texts = [f"text {n}" for n in range(100)]
    found = await asyncio.gather(*(one(t) for t in texts))
    assert list(found) == [(f"{t} / hi", f"{t} / hi") for t in texts]


async def test_plain_stream_is_not_touched_outside_a_scope():
    class Chunks(Chat):
        async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
            from langchain_core.outputs import ChatGenerationChunk

            for word in ("a", "b"):
                yield ChatGenerationChunk(message=AIMessageChunk(word))

    model = Chunks(answer=echo)
    inside = asyncio.Event()
    done = asyncio.Event()

    async def other():
        with rewriting(Says()):
            inside.set()
            await done.wait()

    task = asyncio.create_task(other())
    await inside.wait()
    assert [c.content async for c in model.astream("hi") if c.content] == ["a", "b"]
    done.set()
    await task


class Never:
    def __await__(self):
        yield


async def left_open():
    with replaced():
        await Never()


def test_scope_that_the_collector_closes_leaves_nothing_changed():
    before = methods()
    run = left_open()
    # As in a task of an event loop that is gone: in a context of its own.
    copy_context().run(run.send, None)
    assert methods() != before
    with pytest.raises(ValueError, match="different Context"):
        run.close()
    assert methods() == before


def test_scope_that_the_collector_closes_while_another_is_opened_does_not_stop_that():
    before = methods()
    held = [left_open()]

    class Base:
        def method(self):
            pass

    def collected(original):
        held.clear()  # nobody has it any more, so it is closed here and now
        return original

    def opens():
        held[0].send(None)
        register("method", collected, of=Base)
        with replaced():
            pass

    try:
        thread = Thread(target=opens, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    finally:
        del patching._wraps[Base]
    assert methods() == before
