"""Nodes that stream: the same whether a call is made or answered from the store, and rewritten."""

from __future__ import annotations

from typing import Annotated, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

import lg_textgrad as tg
from tests.parts import Chat, echo


class Words(Chat):
    """A chat model that streams its answer word by word."""

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        message = self._generate(messages).generations[0].message
        for word in str(message.content).split(" "):
            chunk = ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
            if run_manager:
                run_manager.on_llm_new_token(chunk.message.content, chunk=chunk)
            yield chunk


class S(TypedDict, total=False):
    q: str
    a: str
    messages: Annotated[list, add_messages]


def asked(state):
    return [("system", "You write."), ("user", state["q"])]


def inner(model):
    async def speak(state):
        return {"messages": [await model.ainvoke(asked(state))]}

    return StateGraph(S).add_node("speak", speak).add_edge(START, "speak").compile()


async def by_stream(model, state):
    return "".join(chunk.content for chunk in model.stream(asked(state)))


async def by_astream(model, state):
    return "".join([chunk.content async for chunk in model.astream(asked(state))])


async def by_events(model, state):
    return "".join(
        [
            e["data"]["chunk"].content
            async for e in model.astream_events(asked(state), version="v2")
            if e["event"] == "on_chat_model_stream"
        ]
    )


async def by_events_of_a_chain(model, state):
    chain = ChatPromptTemplate.from_messages([("system", "You write."), ("user", "{q}")]) | model
    return "".join(
        [
            e["data"]["chunk"].content
            async for e in chain.astream_events({"q": state["q"]}, version="v2")
            if e["event"] == "on_chat_model_stream"
        ]
    )


async def by_parser(model, state):
    return "".join([text async for text in (model | StrOutputParser()).astream(asked(state))])


async def by_v3(model, state):
    return model.stream_events(asked(state), version="v3").output.text


async def by_text_of_v3(model, state):
    return "".join(model.stream_events(asked(state), version="v3").text)


async def by_async_v3(model, state):
    stream = await model.astream_events(asked(state), version="v3")
    return "".join([piece async for piece in stream.text])


async def by_messages_of_a_graph(model, state):
    found = []
    async for chunk, _ in inner(model).astream({"q": state["q"]}, stream_mode="messages"):
        found.append(chunk.content)
    return "".join(found)


async def by_events_of_a_graph(model, state):
    return "".join(
        [
            e["data"]["chunk"].content
            async for e in inner(model).astream_events({"q": state["q"]}, version="v2")
            if e["event"] == "on_chat_model_stream"
        ]
    )


async def by_v3_of_a_graph(model, state):
    run = await inner(model).astream_events({"q": state["q"]}, version="v3")
    return "".join(["".join([t async for t in message.text]) async for message in run.messages])


WAYS = [
    by_stream, by_astream, by_parser, by_events, by_events_of_a_chain, by_v3, by_text_of_v3, by_async_v3,
    by_messages_of_a_graph, by_events_of_a_graph, by_v3_of_a_graph,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # of plain v3
@pytest.mark.parametrize("model", [Words, Chat])
@pytest.mark.parametrize("way", WAYS)
async def test_streaming_node_is_rewritten_and_answered_from_the_store_as_outside(way, model):
    model = model(answer=echo)
    try:
        plain = (await way(model, {"q": "hi"})).strip().replace("write", "sing")
    except NotImplementedError:
        plain = "You sing. / hi"  # version 3 needs a model that streams, but not from us
    outside = len(model.calls)

    async def writer(state):
        return {"a": await way(model, state)}

    compiled = StateGraph(S).add_node("writer", writer).add_edge(START, "writer").compile()
    with tg.use_ledger(tg.Ledger()):
        graph = await tg.adiscover(compiled, [{"q": "first"}])
        [name] = graph.parameters
        outs = []
        for again in range(2):
            # Another run, but the same question to the model.
            [run] = await graph.arecord(
                [{"id": str(again), "inputs": {"q": "hi"}}], prompts={name: "You sing."}
            )
            outs.append(run)
    assert [r.outputs["a"].strip() for r in outs] == [plain] * 2
    assert plain in ("You sing. / hi", "")
    assert [(r.usage.calls, r.usage.cached_calls) for r in outs] == [(1, 0), (0, 1)]
    assert len(model.calls) == outside + 2
    for run in outs:
        [call] = [c for e in run.executions for c in e.model_calls]
        assert [m["content"] for m in call.messages] == ["You sing.", "hi"]


async def test_streaming_outside_a_run_is_word_by_word_as_ever():
    model = Words(answer=lambda m: "one two")
    events = [e async for e in model.astream_events("x", version="v2") if e["event"].endswith("stream")]
    assert "".join(e["data"]["chunk"].content for e in events) == "one two "
    assert len(events) >= 2
    assert BaseChatModel.stream_events.__module__ == BaseChatModel.__module__
