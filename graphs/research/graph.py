"""Research in the archive of Holm Island, an invented place: plan, fan out, write.

    planner -> one reader for each box that it names, side by side -> writer -> end

The planner names the boxes to read, in JSON; each reader searches its box with a tool and notes
what bears on the question; the writer answers from the notes. A question costs three or four model
calls. The archive is in `archive/`, one entry a line.

The model is any that speaks OpenAI's API: `RESEARCH_MODEL`, `RESEARCH_BASE_URL` and
`RESEARCH_API_KEY` name it; without them it is the server at `LG_TEXTGRAD_LOCAL_URL`.
"""

from __future__ import annotations

import functools
import operator
import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel, Field, SecretStr

ARCHIVE = Path(__file__).parent / "archive"
BOXES = ("attic", "chapel", "harbour", "school")
ENTRIES = {box: (ARCHIVE / f"{box}.txt").read_text(encoding="utf-8").splitlines() for box in BOXES}
COMMON = """
a about all an and any anyone are as at be been before but by can come could did do does ever
exactly far first for from get give given go had has have he her him his holm how i if in into is
island it its long many may me much my name new of off old on one or our out over own people she so
some tell than that the their them then there they this to up us was we were what when where which
who whom whose why with would year years you
"""
"""Words that say nothing of what a text is about."""


class Plan(BaseModel):
    boxes: list[Literal["attic", "chapel", "harbour", "school"]] = Field(min_length=1, max_length=2)


class Note(TypedDict):
    box: str
    text: str


class Question(TypedDict):
    question: str


class Reading(TypedDict):
    question: str
    box: str


class Report(TypedDict):
    boxes: list[str]
    answer: str


class Research(Question, Report):
    notes: Annotated[list[Note], operator.add]


@functools.cache
def model(max_tokens: int) -> ChatOpenAI:
    return ChatOpenAI(
        model=os.environ.get("RESEARCH_MODEL", "local"),
        base_url=os.environ.get("RESEARCH_BASE_URL") or os.environ.get("LG_TEXTGRAD_LOCAL_URL"),
        api_key=SecretStr(os.environ.get("RESEARCH_API_KEY", "none")),
        temperature=0,
        max_completion_tokens=max_tokens,
        timeout=300,
    )


@tool
def search(box: str, question: str) -> str:
    """Return the two entries of a box of the archive that share most words with a question."""
    asked = stems(question)
    ranked = sorted(ENTRIES[box], key=lambda entry: -len(asked & stems(entry)))
    return "\n".join(ranked[:2])


def stems(text: str) -> set[str]:
    """Return the beginnings of the words of a text that say what it is about."""
    words = set(re.findall(r"[a-z]+", text.lower())) - set(COMMON.split())
    return {word[:5] for word in words}


async def planner(state: Question) -> dict[str, list[str]]:
    prompt = (
        "You plan the research for a question about Holm Island.\n"
        f"Name the boxes of the archive to read: {', '.join(BOXES)}."
    )
    structured = model(40).with_structured_output(Plan, method="json_schema")
    plan = await structured.ainvoke([SystemMessage(prompt), HumanMessage(state["question"])])
    assert isinstance(plan, Plan)
    return {"boxes": list(dict.fromkeys(plan.boxes))}


def fan_out(state: Research) -> list[Send]:
    return [Send("reader", {"question": state["question"], "box": box}) for box in state["boxes"]]


async def reader(state: Reading) -> dict[str, list[Note]]:
    entries = await search.ainvoke({"box": state["box"], "question": state["question"]})
    prompt = (
        f"You read entries from the {state['box']} box of an archive.\n"
        "Copy what answers the question, in a few words."
    )
    asked = f"Entries:\n{entries}\nQuestion: {state['question']}"
    reply = await model(40).ainvoke([SystemMessage(prompt), HumanMessage(asked)])
    return {"notes": [{"box": state["box"], "text": reply.text.strip()}]}


async def writer(state: Research) -> dict[str, str]:
    prompt = "You answer a question about Holm Island from the notes of its readers."
    notes = "\n".join(f"[{note['box']}] {note['text']}" for note in state["notes"])
    asked = f"Question: {state['question']}\nNotes:\n{notes}"
    reply = await model(60).ainvoke([SystemMessage(prompt), HumanMessage(asked)])
    return {"answer": reply.text.strip()}


builder = StateGraph(Research, input_schema=Question, output_schema=Report)
builder.add_node("planner", planner)
builder.add_node("reader", reader, input_schema=Reading)
builder.add_node("writer", writer)
builder.add_edge(START, "planner")
builder.add_conditional_edges("planner", fan_out, ["reader"])
builder.add_edge("reader", "writer")
builder.add_edge("writer", END)

graph = builder.compile()
