"""The information counter of Skerry Line, an invented ferry company: a supervisor and three desks.

    supervisor -> pier, cashier or steward -> supervisor -> end

All four are agents of `langchain.agents.create_agent`. The supervisor hands a message to one desk
by calling a tool, the desk looks it up in its own books, and the supervisor writes the answer. A
message costs three model calls.

The model is any that speaks OpenAI's API: `SUPERVISOR_MODEL`, `SUPERVISOR_BASE_URL` and
`SUPERVISOR_API_KEY` name it; without them it is the server at `LG_TEXTGRAD_LOCAL_URL`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, after_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph, add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import BaseModel, Field, SecretStr

DATA = Path(__file__).parent / "data"
DESKS = ("pier", "cashier", "steward")
BOOKS: dict[str, dict[str, str]] = json.loads((DATA / "books.json").read_text(encoding="utf-8"))
"""Booking number -> desk -> what the desk's book says about it."""
RULES: dict[str, list[str]] = json.loads((DATA / "rules.json").read_text(encoding="utf-8"))
"""Desk -> what holds for everybody."""


class Incoming(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class Outgoing(TypedDict, total=False):
    desk: str
    """The desk that the message was handed to."""
    answer: str


class Counter(Incoming, Outgoing):
    pass


class SupervisorState(AgentState[Any]):
    desk: NotRequired[str]
    answer: NotRequired[str]


class Booking(BaseModel):
    booking: str = Field(pattern="^B-[0-9]{3}$")


class CallsAsJSON(AgentMiddleware[Any, Any, Any]):
    """Have the model name its tool call in JSON, and make a tool call of that.

    Small models don't call tools reliably on their own; held to a schema they do. Once a tool has
    answered, what is left is to write, without tools.
    """

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        if _found(request):
            return handler(_writing(request))
        return _called(request, handler(_calling(request)))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        if _found(request):
            return await handler(_writing(request))
        return _called(request, await handler(_calling(request)))


def _found(request: ModelRequest[Any]) -> bool:
    return isinstance(request.messages[-1], ToolMessage)


def _writing(request: ModelRequest[Any]) -> ModelRequest[Any]:
    # In plain words: with its own tool call before it, a small model answers with another.
    asked = "\n".join(m.text for m in request.messages if isinstance(m, HumanMessage))
    found = HumanMessage(f"Traveller: {asked}\nThe desk found: {request.messages[-1].text}")
    return request.override(tools=[], messages=[found], model=model(60))


def _tools(request: ModelRequest[Any]) -> list[BaseTool]:
    return [t for t in request.tools if isinstance(t, BaseTool)]


def _calling(request: ModelRequest[Any]) -> ModelRequest[Any]:
    tools = _tools(request)
    offered = "\n".join(f"{t.name}: {t.description}" for t in tools)
    return request.override(
        tools=[],
        messages=[HumanMessage(f"Tools:\n{offered}"), *request.messages],
        model=model(30),
        model_settings={"response_format": _schema(tools)},
    )


def _called(request: ModelRequest[Any], response: ModelResponse[Any]) -> ModelResponse[Any]:
    reply = response.result[0]
    name, *values = json.loads(reply.text)["call"].split(" ", 1)
    names = next(list(t.args) for t in _tools(request) if t.name == name)
    args = dict(zip(names, values, strict=True))
    call = ToolCall(name=name, args=args, id=f"call-{reply.id}")
    return ModelResponse([AIMessage("", id=reply.id, tool_calls=[call])])


def _schema(tools: Sequence[BaseTool]) -> dict[str, Any]:
    """Return the response format that is one call, as in `look_up B-104` or `ask_pier`."""
    calls = []
    for t in tools:
        values = [str(argument["pattern"]).strip("^$") for argument in t.args.values()]
        calls.append(" ".join([t.name, *values]))
    call = {"type": "string", "pattern": f"^({'|'.join(calls)})$"}
    schema = {
        "type": "object",
        "properties": {"call": call},
        "required": ["call"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "tool_call", "schema": schema}}


@functools.cache
def model(max_tokens: int) -> ChatOpenAI:
    return ChatOpenAI(
        model=os.environ.get("SUPERVISOR_MODEL", "local"),
        base_url=os.environ.get("SUPERVISOR_BASE_URL") or os.environ.get("LG_TEXTGRAD_LOCAL_URL"),
        api_key=SecretStr(os.environ.get("SUPERVISOR_API_KEY", "none")),
        temperature=0,
        max_completion_tokens=max_tokens,
        timeout=300,
    )


def ask(desk: str) -> BaseTool:
    """Return the tool by which the supervisor hands a message to `desk`."""

    def hand_over() -> Command[Any]:
        return Command(goto=desk, update={"desk": desk}, graph=Command.PARENT)

    return StructuredTool.from_function(
        hand_over, name=f"ask_{desk}", description=f"Hand the message to the {desk} desk."
    )


def books(desk: str) -> BaseTool:
    """Return the tool of `desk`, which is its book. What it says goes back to the supervisor."""

    def look_up(booking: str) -> str:
        return BOOKS.get(booking, {}).get(desk) or " ".join(RULES[desk])

    return StructuredTool.from_function(
        look_up,
        description="Look up a booking. B-000 gives the rules for everybody.",
        args_schema=Booking,
        return_direct=True,
    )


@after_agent(state_schema=SupervisorState)
def publish(state: SupervisorState, runtime: Runtime[Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return the supervisor's last words as the answer to the traveller."""
    return {"answer": state["messages"][-1].text}


# Which model it is, is read from the environment when the first message comes in.
LATER = ChatOpenAI(model="local", api_key=SecretStr("none"))

supervisor = create_agent(
    LATER,
    [ask(desk) for desk in DESKS],
    system_prompt="You are the supervisor of Skerry Line's desks.\n"
    "You hand each message to one desk, then answer the traveller.",
    middleware=[CallsAsJSON(), publish],
    state_schema=SupervisorState,
    name="supervisor",
)

builder = StateGraph(Counter, input_schema=Incoming, output_schema=Outgoing)
builder.add_node("supervisor", supervisor, destinations=DESKS)
builder.add_edge(START, "supervisor")
for name in DESKS:
    agent = create_agent(
        LATER,
        [books(name)],
        system_prompt=f"You work at the {name} desk of Skerry Line.\n"
        "You look up the booking that a message names.",
        middleware=[CallsAsJSON()],
        name=name,
    )
    builder.add_node(name, agent)
    builder.add_edge(name, "supervisor")

graph = builder.compile()
