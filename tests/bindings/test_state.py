"""Texts in the graph's input state as parameters: `StateText`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad.errors import DataError, ParameterError
from tests.parts import BlamesUpstream, Chat, echo


class S(TypedDict, total=False):
    q: str
    policy: str
    rules: Any
    messages: list
    a: str
    b: str


def policy(value="Be kind."):
    return tg.Parameter("policy", value)


def follow(policy_of, name="writer", model=None):
    """A graph of one node whose system prompt has a text of the state in it."""
    model = model or Chat(answer=echo)

    async def writer(state):
        asked = [("system", policy_of(state)), ("user", state["q"])]
        return {"a": (await model.ainvoke(asked)).content}

    return StateGraph(S).add_node(name, writer).add_edge(START, name).compile()


async def record(graph, inputs, **prompts):
    [run] = await graph.arecord([{"inputs": inputs}], prompts=prompts)
    return run


async def test_text_of_the_candidate_is_in_the_inputs_and_its_reader_is_noted():
    graph = tg.TrainableGraph(follow(lambda s: s["policy"]), bindings=[tg.StateText(policy())])
    before = await record(graph, {"q": "hi"})
    after = await record(graph, {"q": "hi", "policy": "the example's own"}, policy="Be curt.")
    assert (before.outputs["a"], after.outputs["a"]) == ("Be kind. / hi", "Be curt. / hi")
    assert [dict(r.executions[0].prompts) for r in (before, after)] == [
        {"policy": "Be kind."}, {"policy": "Be curt."},
    ]  # fmt: skip
    assert after.example.inputs == {"q": "hi", "policy": "the example's own"}
    assert graph.unread([before]) == []
    [binding] = [b for b in graph.bindings if "policy" in b.parameters]
    assert binding.held("policy").how == "text in the state, under 'policy'"


@dataclass
class Rules:
    refund: str = ""
    other: int = 3


class Model(BaseModel):
    refund: str = ""
    other: int = 3


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("rules.refund", {"refund": "x", "n": 1}, {"refund": "NEW", "n": 1}),
        ("rules.refund", None, {"refund": "NEW"}),
        ("rules.a.b", {}, {"a": {"b": "NEW"}}),
        ("rules.1", ["x", "y"], ["x", "NEW"]),
        ("rules.0.1", [("system", "x")], [("system", "NEW")]),
        ("rules.refund", Rules("x"), Rules("NEW")),
        ("rules.refund", Model(refund="x"), Model(refund="NEW")),
        ("rules.0.content", [SystemMessage("x", id="7")], [SystemMessage("NEW", id="7")]),
    ],
)
async def test_dotted_key_leads_into_what_the_state_has(key, given, expected):
    seen = []

    def node(state):
        seen.append(state["rules"])

    compiled = StateGraph(S).add_node("n", node).add_edge(START, "n").compile()
    graph = tg.TrainableGraph(compiled, bindings=[tg.StateText(policy("NEW"), key)])
    inputs = {} if given is None else {"rules": given}
    run = await record(graph, inputs)
    assert seen == [expected]
    assert given is None or (given != expected and inputs == {"rules": given})
    assert dict(run.executions[0].prompts) == {"policy": "NEW"}


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        ("rules.refund", "text", "there is a str that has no 'refund'"),
        ("rules.2", ["x"], "there is a list of 1 that has no '2'"),
        ("rules.x", ["x"], "there is a list of 1 that has no 'x'"),
        ("rules.nope", Model(), "there is a Model that has no 'nope'"),
    ],
)
async def test_key_that_leads_nowhere_is_refused(key, given, said):
    graph = tg.TrainableGraph(follow(lambda s: "x"), bindings=[tg.StateText(policy(), key)])
    with pytest.raises(DataError, match=said):
        await record(graph, {"q": "", "rules": given})


@pytest.mark.parametrize("key", ["", ".", "a..b", "a."])
def test_key_that_names_no_place_is_refused(key):
    with pytest.raises(ParameterError, match="names no place in the state"):
        tg.StateText(policy(), key)


async def test_only_nodes_that_look_at_the_key_while_it_has_the_text_are_readers():
    model = Chat(answer=echo)

    async def reads(state):
        return {"a": (await model.ainvoke(state["policy"])).content}

    async def looks_elsewhere(state):
        return {"b": (await model.ainvoke(state["q"])).content}

    def overwrites(state):
        return {"policy": "Mine."}

    async def reads_too_late(state):
        return {"b": (await model.ainvoke(state["policy"])).content}

    compiled = (
        StateGraph(S)
        .add_sequence([reads, looks_elsewhere, overwrites, reads_too_late])
        .add_edge(START, "reads")
        .compile()
    )
    graph = tg.TrainableGraph(compiled, bindings=[tg.StateText(policy())])
    run = await record(graph, {"q": "hi"})
    assert {e.path: dict(e.prompts) for e in run.executions} == {
        "reads": {"policy": "Be kind."},
        "looks_elsewhere": {},
        "overwrites": {},
        "reads_too_late": {},
    }


async def test_readers_inside_of_subgraphs_and_behind_sends_are_noted_and_their_hosts_are_not():
    def inside(state):
        return {"a": state["policy"]}

    sub = StateGraph(S).add_node("inside", inside).add_edge(START, "inside").compile()

    def sent(state):
        return {"b": state["policy"]}

    compiled = (
        StateGraph(S)
        .add_node("sub", sub)
        .add_node("sent", sent)
        .add_edge(START, "sub")
        .add_conditional_edges("sub", lambda s: [Send("sent", {"policy": s["policy"]})], ["sent"])
        .compile()
    )
    graph = tg.TrainableGraph(compiled, bindings=[tg.StateText(policy())])
    run = await record(graph, {"q": "hi"}, policy="Be curt.")
    assert {e.path for e in run.executions if e.prompts} == {"sub/inside", "sent"}


async def test_pydantic_state_counts_as_read_where_nothing_tells():
    class P(BaseModel):
        policy: str = ""
        a: str = ""

    compiled = StateGraph(P).add_node("n", lambda s: {"a": s.policy}).add_edge(START, "n").compile()
    run = await record(tg.TrainableGraph(compiled, bindings=[tg.StateText(policy())]), {})
    assert (run.outputs["a"], dict(run.executions[0].prompts)) == ("Be kind.", {"policy": "Be kind."})


async def test_gradients_reach_the_text_of_the_state():
    graph = tg.TrainableGraph(follow(lambda s: s["policy"]), bindings=[tg.StateText(policy())])
    runs = [await record(graph, {"q": "hi"})]
    loss = await tg.Objective([lambda outputs: 0.0]).acall(runs)
    await loss.abackward(BlamesUpstream())
    assert len(graph.parameters["policy"].grad) == 1


async def test_prompt_that_is_made_of_it_is_not_found_again():
    compiled = follow(lambda s: f"You write. {s['policy']}")
    graph = await tg.adiscover(compiled, [{"q": "a"}, {"q": "b"}], bindings=[tg.StateText(policy())])
    assert list(graph.parameters) == ["policy"]
    assert [(f.node, f.parameter) for f in graph.found] == [("writer", "policy")]
    run = await record(graph, {"q": "c"}, policy="Be curt.")
    assert (run.outputs["a"], run.warnings) == ("You write. Be curt. / c", ())


async def test_another_key_is_another_run():
    compiled = follow(lambda s: f"{s.get('policy')} {s.get('rules')}")
    with tg.use_ledger(tg.Ledger()):
        outs = [
            (await record(tg.TrainableGraph(compiled, bindings=[tg.StateText(policy(), k)]), {"q": "x"})).outputs["a"]
            for k in ("policy", "rules", "policy")
        ]
    assert outs == ["Be kind. None / x", "None Be kind. / x", "Be kind. None / x"]


async def test_message_in_the_state_is_a_text_like_any_other():
    model = Chat(answer=echo)

    async def n(state):
        return {"a": (await model.ainvoke(state["messages"])).content}

    compiled = StateGraph(S).add_node("n", n).add_edge(START, "n").compile()
    graph = tg.TrainableGraph(compiled, bindings=[tg.StateText(policy(), "messages.0.content")])
    inputs = {"messages": [SystemMessage("old"), HumanMessage("hi")]}
    run = await record(graph, inputs)
    assert run.outputs["a"] == "Be kind. / hi"
    assert dict(run.executions[0].prompts) == {"policy": "Be kind."}


async def test_fifty_candidates_at_once_do_not_meet():
    graph = tg.TrainableGraph(follow(lambda s: s["policy"]), bindings=[tg.StateText(policy())])
    texts = [f"Policy {n}." for n in range(50)]
    runs = await asyncio.gather(*(record(graph, {"q": "x"}, policy=t) for t in texts))
    assert [r.outputs["a"] for r in runs] == [f"{t} / x" for t in texts]
    assert [dict(r.executions[0].prompts) for r in runs] == [{"policy": t} for t in texts]
