"""Graphs that code calls on a thread of their own, whose namespaces are as if they were at the top."""

from __future__ import annotations

from typing import Annotated, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

import lg_textgrad as tg
from lg_textgrad.trace import RETURN, Trace
from tests.parts import Chat, ToolChat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    messages: Annotated[list, add_messages]


def supervisor():
    """An agent with an agent as its tool, which has its memory; both have a node 'model'."""
    helper = create_agent(
        ToolChat(answer=lambda m: AIMessage(f"{m[0].content} {m[-1].content}")),
        system_prompt="You are a helper.",
        checkpointer=InMemorySaver(),
    )

    @tool
    def ask(question: str) -> str:
        """Asks the helper."""
        thread = {"configurable": {"thread_id": "helper"}}
        out = helper.invoke({"messages": [HumanMessage(question)]}, thread)
        return out["messages"][-1].content

    def answer(messages):
        if messages[-1].type == "human":
            return AIMessage("", tool_calls=[{"name": "ask", "args": {"question": "how?"}, "id": "1"}])
        return AIMessage(f"{messages[0].content} {messages[-1].content}")

    return create_agent(ToolChat(answer=answer), tools=[ask], system_prompt="You are a leader.")


INPUTS = {"messages": [HumanMessage("hi")]}


async def test_prompts_of_agents_within_agents_are_told_apart_and_replaced():
    graph = await tg.adiscover(supervisor(), [INPUTS])
    assert {n: p.value for n, p in graph.parameters.items()} == {
        "model": "You are a leader.", "tools": "You are a helper.",
    }
    texts = {"model": "Lead.", "tools": "Help."}
    [run] = await graph.arecord([{"inputs": INPUTS}], prompts=texts)
    assert run.outputs["messages"][-1].content == "Lead. Help. how?"
    assert {e.id: dict(e.prompts) for e in run.executions} == {
        "model#0": {"model": "Lead."}, "tools#0": {}, "tools/model#0": {"tools": "Help."},
        "model#1": {"model": "Lead."},
    }
    assert run.warnings == ()
    edges = {(e.producer, e.consumer) for e in Trace.of(run).edges}
    assert {("model#0", "tools/model#0"), ("tools/model#0", "tools#0"), ("tools#0", "model#1")} <= edges
    assert ("tools/model#0", "model#1") not in edges


async def test_runs_of_ones_own_name_the_same_nodes_and_get_the_same_texts():
    graph = await tg.adiscover(supervisor(), [INPUTS])
    with tg.prompts({"tools": "Help."}), tg.watch(graph) as watched:
        out = await watched.graph.ainvoke(INPUTS)
    assert out["messages"][-1].content == "You are a leader. Help. how?"
    [run] = watched.runs
    assert [e.path for e in run.executions] == ["model", "tools", "tools/model", "model"]


async def test_reply_is_replaced_inside_of_such_a_graph():
    graph = tg.TrainableGraph(supervisor())
    with tg.use_ledger(tg.Ledger()):
        [run] = await graph.arecord([{"inputs": INPUTS}])
        [inner] = [e for e in run.executions if e.path == "tools/model"]
        replayed = await graph.areplay(run, inner, AIMessage("no"))
    assert replayed.outputs["messages"][-1].content == "You are a leader. no"


async def test_same_thread_goes_on_with_what_was_written_there_and_another_does_not():
    model = Chat(answer=echo)

    def write(state):
        return {"messages": [model.invoke([SystemMessage("You write."), *state["messages"]])]}

    inner = StateGraph(S).add_node("write", write).add_edge(START, "write")
    inner = {"graph": inner.compile(checkpointer=InMemorySaver())}

    async def say(text, thread):
        given = {"messages": [HumanMessage(text)]}
        await inner["graph"].ainvoke(given, {"configurable": {"thread_id": thread}})

    async def host(state):
        await say("one", "x")
        await say("two", "x")
        await say("three", "y")
        return {"a": "done"}

    graph = StateGraph(S).add_node("host", host).add_edge(START, "host").compile()
    run = (await tg.TrainableGraph(graph).arecord([{"inputs": {"q": "hi"}}]))[0]
    first, second, third = (f"host/write#{n}" for n in range(3))
    assert [e.id for e in run.executions] == ["host#0", first, second, third]
    edges = {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}
    assert edges == {
        (first, second, "messages"), (second, "host#0", RETURN), (third, "host#0", RETURN),
    }
