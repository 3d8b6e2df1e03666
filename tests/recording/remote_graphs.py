"""Graphs that a LangGraph server and a test both load. Plain LangGraph, models by hand."""

import operator
from typing import Annotated, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import dynamic_prompt
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, Field


class Echo(BaseChatModel):
    """Answers with all that it was sent; as an agent it asks for its tool first."""

    model: str = "echo"
    agent: bool = False

    @property
    def _llm_type(self):
        return "echo"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        text = " / ".join(str(m.content) for m in messages)
        if "refuse" in text:
            raise ValueError("the model refuses")
        counted = {"input_tokens": len(messages), "output_tokens": 1}
        usage = {**counted, "total_tokens": len(messages) + 1}
        said = AIMessage(text, usage_metadata=usage)
        if self.agent and messages[-1].type == "human":
            call = {"name": "look", "args": {"word": "x"}, "id": "c1"}
            said = AIMessage("", tool_calls=[call], usage_metadata=usage)
        info = {"finish_reason": "stop"}
        return ChatResult(generations=[ChatGeneration(message=said, generation_info=info)])


class Context(BaseModel):
    triage: str = Field(
        default="Triage.",
        json_schema_extra={"langgraph_type": "prompt", "langgraph_nodes": ["one", "inner"]},
    )
    answer: str = "Answer."
    user: str = "nobody"


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    items: Annotated[list, operator.add]


class AuthenticationError(Exception):
    """As openai names it."""


model = Echo()


async def one(s: S, runtime: Runtime[Context]):
    asked = [SystemMessage(runtime.context.triage), HumanMessage(s["q"])]
    return {"a": (await model.ainvoke(asked)).content, "items": ["one"]}


async def two(s: S, runtime: Runtime[Context]):
    if s["q"] == "fail":
        raise KeyError("team")
    if s["q"] == "key":
        raise AuthenticationError("wrong key sk-123")
    asked = [SystemMessage(runtime.context.answer), HumanMessage(s["a"] + runtime.context.user)]
    return {"b": (await model.ainvoke(asked)).content, "items": ["two"]}


def graph(nodes, edges, conditional=()):
    builder = StateGraph(S, context_schema=Context)
    for name, node in nodes.items():
        builder.add_node(name, *(node if isinstance(node, tuple) else (node,)))
    for a, b in edges:
        builder.add_edge(a, b)
    for where in conditional:
        builder.add_conditional_edges(*where)
    return builder.compile()


chain = graph({"one": one, "two": two}, [(START, "one"), ("one", "two")])
inner = graph({"inner": one}, [(START, "inner")])
nested = graph({"sub": inner, "two": two}, [(START, "sub"), ("sub", "two")])


@tool
def look(word: str) -> str:
    """Look a word up."""
    return f"found {word}"


@dynamic_prompt
def prompt(request):
    return request.runtime.context.answer


agent = create_agent(Echo(agent=True), [look], middleware=[prompt], context_schema=Context)


async def hand(s: S):
    return Command(graph=Command.PARENT, goto="two", update={"a": s["q"] + "!", "items": ["hand"]})


hands = graph({"hand": hand}, [(START, "hand")])
handoff = graph({"sub": hands, "two": two}, [(START, "sub")])


async def ask(s: S):
    return {"a": interrupt("who?")}


stops = graph({"ask": ask, "two": two}, [(START, "ask"), ("ask", "two")])


async def plan(s: S):
    return {"a": s["q"]}


async def work(s: S):
    return {"items": [s["q"]]}


async def join(s: S):
    return Command(update={"b": "".join(s["items"])}, goto="last")


async def last(s: S):
    return {"a": s["b"]}


def spread(s: S):
    return [Send("work", {"q": letter}) for letter in s["a"]]


def where(s: S):
    return "last" if s["q"] == "short" else "join"


fan = graph(
    {"plan": plan, "work": work, "join": join, "last": last},
    [(START, "plan"), ("work", "join"), ("last", END)],
    [("plan", spread, ["work"])],
)
choice = graph(
    {"plan": plan, "join": join, "last": last},
    [(START, "plan"), ("last", END)],
    [("plan", where, ["join", "last"])],
)
