"""Where a recording could miss something, a warning names the node."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langgraph.graph import START, StateGraph
from pydantic import BaseModel

import lg_textgrad as tg
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    q: str
    a: str
    notes: list
    nested: dict


model = Chat(answer=echo)


def chain(schema=S, **nodes):
    return StateGraph(schema).add_sequence(list(nodes.items())).add_edge(START, next(iter(nodes))).compile()


async def warnings_of(graph, **inputs):
    [run] = await tg.TrainableGraph(graph).arecord([{"inputs": inputs or {"q": "hi"}}])
    assert run.error is None
    return list(run.warnings)


async def test_exact_run_has_no_warnings():
    graph = chain(one=lambda s: {"a": model.invoke(s["q"]).content}, two=lambda s: {"q": s["a"]})
    assert await warnings_of(graph) == []


async def test_model_call_with_callbacks_of_its_own():
    [warning] = await warnings_of(
        chain(one=lambda s: {"a": model.invoke(s["q"], {"callbacks": []}).content}, two=lambda s: {"q": "x"})
    )
    assert warning.startswith("The node 'one' called a model with callbacks of its own; the call is not")


async def test_model_that_asks_another_inside_its_own_call_is_one_call():
    outer = Chat(answer=lambda messages: model.generate([messages]).generations[0][0].text)
    assert await warnings_of(chain(one=lambda s: {"a": outer.invoke(s["q"]).content})) == []


def in_thread(s):
    said = []
    thread = threading.Thread(target=lambda: said.append(model.invoke(s["q"]).content))
    thread.start()
    thread.join()
    return {"a": said[0]}


def in_pool(s):
    with ThreadPoolExecutor(1) as pool:
        return {"a": pool.submit(model.invoke, s["q"]).result().content}


@pytest.mark.parametrize("node", [in_thread, in_pool])
async def test_model_call_in_a_raw_thread(node):
    [warning] = await warnings_of(chain(before=lambda s: {"q": "x"}, one=node, after=lambda s: {"q": "y"}))
    assert warning.startswith("While the node 'one' ran, a model was called in a thread that has nothing")


async def test_thread_that_carries_the_context_is_recorded():
    def node(s):
        with ContextThreadPoolExecutor(1) as pool:
            return {"a": pool.submit(model.invoke, s["q"]).result().content}

    [run] = await tg.TrainableGraph(chain(one=node)).arecord([{"inputs": {"q": "hi"}}])
    assert (run.warnings, len(run.executions[0].model_calls)) == ((), 1)


async def test_calls_of_others_in_the_process_are_nobodys_warning():
    start, done = threading.Event(), threading.Event()

    def other():
        start.wait(10)
        model.invoke("something else")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def node(s):
        start.set()
        done.wait(10)
        return {"a": "x"}

    assert await warnings_of(chain(one=node)) == []
    thread.join()


async def test_state_changed_in_place():
    def one(s):
        s["notes"].append("left behind")
        return {"a": "x"}

    [run] = await tg.TrainableGraph(chain(one=one, two=lambda s: {"q": str(s["notes"])})).arecord(
        [{"inputs": {"q": "hi", "notes": ["n"]}}]
    )
    [warning] = run.warnings
    assert warning.startswith("While the node 'one' ran, the value of 'notes' that it was given was changed")
    first, second = run.executions
    # Each execution has what it was given, at the moment when it was.
    assert (first.inputs["notes"], second.inputs["notes"]) == (["n"], ["n", "left behind"])


def deep(s):
    s["nested"]["inner"]["list"].append(1)


def message(s):
    s["notes"][0].content = "changed"


@pytest.mark.parametrize("change", [deep, message])
async def test_change_deep_inside_is_seen(change):
    def one(s):
        change(s)
        return {"a": "x"}

    inputs = {"q": "hi", "notes": [HumanMessage("n")], "nested": {"inner": {"list": []}}}
    [warning] = await warnings_of(chain(one=one, two=lambda s: {"q": "x"}), **inputs)
    assert "'one' ran" in warning


async def test_change_that_is_also_returned_is_a_write():
    def one(s):
        s["notes"].append("x")
        return {"notes": s["notes"]}

    assert await warnings_of(chain(one=one), notes=["n"]) == []


@dataclass
class Data:
    q: str = ""
    notes: list = field(default_factory=list)


class Thing(BaseModel):
    x: int = 1


class Model(BaseModel):
    q: str = ""
    thing: Thing = Thing()


@pytest.mark.parametrize(
    ("schema", "change", "name"),
    [(Data, lambda s: s.notes.append(1), "notes"), (Model, lambda s: setattr(s.thing, "x", 2), "thing")],
)
async def test_change_in_a_state_that_is_an_object(schema, change, name):
    def one(s):
        change(s)
        return {"q": "x"}

    inputs = {"q": "hi", "notes": ["n"]} if schema is Data else {"q": "hi", "thing": Thing()}
    [warning] = await warnings_of(chain(schema, one=one), **inputs)
    assert f"the value of '{name}'" in warning


async def test_value_that_cannot_be_shown_is_told_and_the_run_goes_on():
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    [warning] = await warnings_of(chain(one=lambda s: {"a": Odd()}))
    assert warning == (
        "A value in the node 'one' could not be recorded (RuntimeError: no); the trace has its type's name."
    )
