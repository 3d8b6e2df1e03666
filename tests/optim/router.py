"""A small graph that routes messages: one node decides, another answers; models by hand."""

from __future__ import annotations

from typing import TypedDict

from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from tests.parts import Chat

TEAMS = {"refund": "payments", "parcel": "delivery", "broken": "repairs", "size": "advice"}
WORDS = ("shoe", "tent", "lamp", "rope", "boot", "map", "cup", "sock", "knife", "stove")


class S(TypedDict, total=False):
    message: str
    team: str
    answer: str


def message(topic, word):
    return f"My {topic} of the {word}, please."


def rows(topics=tuple(TEAMS), words=WORDS):
    return [
        {"id": f"{topic}-{word}", "inputs": {"message": message(topic, word)}, "outputs": {"team": TEAMS[topic]}}
        for word in words
        for topic in topics
    ]


def knows(prompt, topic):
    """A model that routes a topic when its prompt shows or says where it goes."""
    team = TEAMS[topic]
    shown = any(f"My {topic} of" in part and f"Output: {team}" in part for part in prompt.split("\n\n"))
    return shown or f"{topic} goes to {team}" in prompt


def route(messages):
    prompt, asked = messages[0].content, messages[1].content
    topic = next(t for t in TEAMS if f"My {t} " in asked)
    return TEAMS[topic] if knows(prompt, topic) or topic == "refund" else "front desk"


def reply(messages):
    return f"We will see to it. {'Kind regards' if 'Kind regards' in messages[0].content else 'Bye'}"


def build(said=lambda answer: answer, **options):
    """Return a fresh graph. `said` may wrap what its models answer."""
    triage = tg.Parameter("triage", "You route.\nName the team.", role="routes", **options)
    answer = tg.Parameter("answer", "You answer.")
    router, writer = Chat(answer=said(route)), Chat(answer=said(reply))

    async def first(state):
        said = await router.ainvoke([triage.message(), HumanMessage(state["message"])])
        return {"team": said.content}

    async def second(state):
        told = f"For {state['team']}: {state['message']}"
        said = await writer.ainvoke([answer.message(), HumanMessage(told)])
        return {"answer": said.content}

    builder = StateGraph(S).add_node("first", first).add_node("second", second)
    builder = builder.add_edge(START, "first").add_edge("first", "second")
    return tg.TrainableGraph(builder.compile(), [triage, answer])


def right_team(outputs, reference_outputs):
    right = outputs["team"] == reference_outputs["team"]
    return {"key": "team", "score": right, "comment": f"The team is {reference_outputs['team']}."}


def kind_ending(outputs):
    return {"key": "ending", "score": "Kind regards" in outputs["answer"], "comment": "End with Kind regards."}


OBJECTIVE = tg.Objective([right_team, kind_ending])


def examples(some):
    return [tg.Example(r["id"], r["inputs"], r["outputs"]) for r in some]
