"""The support desk of Fernhill, an invented shop for hiking, camping and cycling gear.

    triage -> specialist -> lookup -> writer -> checker -> (writer once more, or the end)

Four nodes ask a language model, `lookup` calls a tool. Each of the four reads its system prompt
from a `Parameter`; apart from that this is an ordinary LangGraph graph.

The model is any that speaks OpenAI's API: `SUPPORT_MODEL`, `SUPPORT_BASE_URL` and `SUPPORT_API_KEY`
name it; without them the embedded model that `lg-textgrad` started is used.
"""

from __future__ import annotations

import functools
import os
from typing import Literal, TypedDict

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from pydantic import SecretStr

import lg_textgrad as tg
from graphs.support.books import ARTICLES, entry, reference_in, request, sent_back, team_in

triage = tg.Parameter(
    "triage",
    "You send each customer's message to the right team.\nReply with the team's name only.",
    role="names the team that a customer's message belongs to",
    max_tokens=300,
)
specialist = tg.Parameter(
    "specialist",
    "You decide what to look up for a customer's message.\n"
    "If it has an order number such as F-1234, reply with that number only.\n"
    f"Otherwise reply with one article only: {', '.join(ARTICLES)}.",
    role="chooses the order number or the help article to look up",
    max_tokens=400,
)
writer = tg.Parameter(
    "writer",
    "You answer the customer's message with the help of what was found.",
    role="writes the answer to the customer",
    max_tokens=300,
)
checker = tg.Parameter(
    "checker",
    "You check an answer before it goes to the customer.\n"
    "Reply OK if it is polite, otherwise REVISE and what to change.",
    role="lets an answer go out with OK, or sends it back with REVISE and what to change",
    max_tokens=300,
)


class Desk(TypedDict, total=False):
    message: str
    team: str
    reference: str
    found: str
    answer: str
    verdict: str
    rounds: int


class Incoming(TypedDict):
    message: str


class Outgoing(TypedDict):
    team: str
    answer: str


@functools.cache
def model(max_tokens: int) -> ChatOpenAI:
    return ChatOpenAI(
        model=os.environ.get("SUPPORT_MODEL", "local"),
        base_url=os.environ.get("SUPPORT_BASE_URL") or os.environ.get("LG_TEXTGRAD_LOCAL_URL"),
        api_key=SecretStr(os.environ.get("SUPPORT_API_KEY", "none")),
        temperature=0,
        max_completion_tokens=max_tokens,
        timeout=300,
    )


async def ask(prompt: SystemMessage, text: str, max_tokens: int) -> str:
    reply = await model(max_tokens).ainvoke([prompt, HumanMessage(text)])
    return str(reply.content).strip()


@tool
def look_up(reference: str) -> str:
    """Return what Fernhill's books say about an order number or a help article."""
    return entry(reference)


async def run_triage(state: Desk) -> Desk:
    return {"team": team_in(await ask(triage.message(), state["message"], 8))}


async def run_specialist(state: Desk) -> Desk:
    return {"reference": reference_in(await ask(specialist.message(), state["message"], 10))}


async def run_lookup(state: Desk) -> Desk:
    return {"found": await look_up.ainvoke({"reference": state["reference"]})}


async def run_writer(state: Desk) -> Desk:
    last = state.get("answer", ""), state.get("verdict", "")
    asked = request(state["message"], state["team"], state["found"], *last)
    answer = await ask(writer.message(), asked, 80)
    return {"answer": answer, "rounds": state.get("rounds", 0) + 1}


async def run_checker(state: Desk) -> Desk:
    return {"verdict": await ask(checker.message(), state["answer"], 24)}


def after_check(state: Desk) -> Literal["writer", "__end__"]:
    return "writer" if sent_back(state["verdict"]) and state["rounds"] < 2 else "__end__"


builder = StateGraph(Desk, input_schema=Incoming, output_schema=Outgoing)
builder.add_node("triage", run_triage)
builder.add_node("specialist", run_specialist)
builder.add_node("lookup", run_lookup)
builder.add_node("writer", run_writer)
builder.add_node("checker", run_checker)
builder.add_edge(START, "triage")
builder.add_edge("triage", "specialist")
builder.add_edge("specialist", "lookup")
builder.add_edge("lookup", "writer")
builder.add_edge("writer", "checker")
builder.add_conditional_edges("checker", after_check)

graph = tg.TrainableGraph(builder.compile(), parameters=[triage, specialist, writer, checker])
