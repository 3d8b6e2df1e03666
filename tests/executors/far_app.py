"""A graph that asks in every way there is: async, sync in a thread, sync in a coroutine, a tool.

    plan -> (left | blocking) -> lookup -> answer

Workers import it by its name. Its server is at `FAR_URL`; `FAR_LOG` is a file to which the tool adds
a line each time it is really called, `FAR_PAUSE` how long that takes, and `FAR_DEADLY` a word in a message that ends the process.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import signal
from dataclasses import dataclass, field, replace
from typing import Annotated, TypedDict

import openai
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph, add_messages
from langgraph.runtime import Runtime

import lg_textgrad as tg

plan = tg.Parameter("plan", "You plan.", role="plans")
answer = tg.Parameter("answer", "You answer.", role="answers")


@dataclass
class Shop:
    house: str = "Fernhill"
    tone: str = field(default="Be kind.", metadata={"langgraph_type": "prompt"})


class State(TypedDict, total=False):
    message: str
    plan: str
    left: str
    blocking: str
    found: str
    messages: Annotated[list[AnyMessage], add_messages]


@functools.cache
def chat(url):
    return ChatOpenAI(
        model="test-model", base_url=url, api_key=os.environ.get("FAR_KEY", "k"), max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
        http_async_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )  # fmt: skip


async def aclose():
    """Close the connections, in the loop in which they were made."""
    await model().root_async_client.close()
    model().root_client.close()
    chat.cache_clear()


def model():
    return chat(os.environ["FAR_URL"])


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    with open(os.environ["FAR_LOG"], "a") as file:
        file.write(f"{word}\n")
    await asyncio.sleep(float(os.environ.get("FAR_PAUSE", 0)))
    return f"{word} has {len(word)} letters"


async def plan_node(state: State) -> State:
    if os.environ.get("FAR_DEADLY", "\0") in state["message"]:
        os.kill(os.getpid(), signal.SIGKILL)
    reply = await model().ainvoke([plan.message(), HumanMessage(state["message"])])
    return {"plan": reply.content}


def left_node(state: State) -> State:
    return {"left": model().invoke([SystemMessage("You are left."), HumanMessage(state["plan"])]).content}


async def blocking_node(state: State) -> State:
    asked = [SystemMessage("You block."), HumanMessage(state["plan"])]
    return {"blocking": model().invoke(asked).content}


async def lookup_node(state: State) -> State:
    return {"found": await look_up.ainvoke({"word": state["message"].split()[0]})}


async def answer_node(state: State, runtime: Runtime[Shop]) -> State:
    text = f"{state['left']} | {state['blocking']} | {state['found']}"
    asked = [answer.message(), SystemMessage(runtime.context.tone), HumanMessage(text)]
    return {"messages": [await model().ainvoke(asked)]}


def build() -> tg.TrainableGraph:
    builder = StateGraph(State, context_schema=Shop)
    builder.add_node("plan", plan_node).add_node("left", left_node)
    builder.add_node("blocking", blocking_node).add_node("lookup", lookup_node)
    builder.add_node("answer", answer_node)
    builder.add_edge(START, "plan").add_edge("plan", "left").add_edge("plan", "blocking")
    builder.add_edge(["left", "blocking"], "lookup").add_edge("lookup", "answer")
    return tg.TrainableGraph(builder.compile(), [plan, answer])


graph = build()
SPEC = f"{__name__}:graph"


def play(body):
    """Play the model: a function of the request."""
    seen = hashlib.sha256(str(body["messages"]).encode()).hexdigest()
    return f"{body['messages'][0]['content'][4:8]} {seen[:6]}"


def rows(count):
    words = ("Parcels", "Stoves", "Tents", "Bills", "Boots", "Maps", "Ropes", "Lamps")
    return [tg.Example(f"e{n}", {"message": f"{words[n % 8]} {n} please"}) for n in range(count)]


def long_answers(outputs):
    return {"key": "length", "score": min(1.0, len(outputs["messages"][-1].content) / 20)}


def told(run):
    """Return what must be the same wherever a run is made: all but times and what starts first."""
    executions = [
        replace(
            e, seconds=0.0, started=0.0, namespace="", order=0,
            model_calls=[replace(c, usage=replace(c.usage, seconds=0.0)) for c in e.model_calls],
        )
        for e in run.executions
    ]  # fmt: skip
    order = sorted(executions, key=lambda e: e.id)
    return run.id, run.error, run.failed_in, run.warnings, run.accumulating, order


def kept(store):
    """Return what a store has by its key, without the ids that LangChain draws for messages."""
    found = {}
    for result in store.results(("rollout", "tool")):
        reply = result["reply"]
        if "message" in reply:
            reply["message"]["data"].pop("id", None)
        found[result["key"]] = result["request"], reply
    return found

