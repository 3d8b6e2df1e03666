"""Constructs of one graph: chains, edges, channels and states."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.channels import DeltaChannel, EphemeralValue, LastValue, Topic
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import Command, Overwrite, RetryPolicy, Send
from pydantic import BaseModel

from tests.recording.conformance.kit import Ask, Construct


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    c: str
    n: int
    items: Annotated[list, operator.add]


def graph(k, nodes, edges=(), conditional=(), schema=S, **options):
    """Compile a graph of bodies, or of (body, options of add_node)."""
    compiled = {n: options.pop(n) for n in ("interrupt_before", "cache") if n in options}
    builder = StateGraph(schema, **options)
    for name, node in nodes.items():
        body, more = node if isinstance(node, tuple) else (node, {})
        builder.add_node(name, k.node(body) if callable(body) else body, **more)
    for edge in edges:
        builder.add_edge(*edge)
    for source, router, ends in conditional:
        builder.add_conditional_edges(source, router, ends)
    return builder.compile(checkpointer=k.saver, **compiled)


def chain(k):
    def one(s):
        return {"a": (yield Ask("one", s["q"]))}

    def two(s):
        return {"b": (yield Ask("two", s["a"]))}

    return graph(k, {"one": one, "two": two}, [(START, "one"), ("one", "two")])


def choice(k):
    def judge(s):
        return {"a": (yield Ask("judge", s["q"]))}

    def left(s):
        return {"b": (yield Ask("left", s["q"]))}

    def other(s):
        return {"c": "not judged"}

    def by_length(s):
        return "short" if len(s["q"]) < 5 else "long"

    ends = {"short": "left", "long": "right"}
    return graph(
        k,
        # Both could lead to `left` and to `right`; one of them does to each.
        {"judge": judge, "other": other, "left": left, "right": lambda s: {"c": s["q"]}},
        [(START, "judge"), (START, "other")],
        [("judge", by_length, ends), ("other", lambda s: "long", ends)],
    )


def cycle(k):
    def step(s):
        return {"a": (yield Ask("step", s.get("a", "")))}

    def done(s):
        return {"b": s["a"]}

    def again(s) -> Literal["step", "done"]:
        return "done" if s["a"].count("step") == 3 else "step"

    return graph(k, {"step": step, "done": done}, [(START, "step")], [("step", again, None)])


def fan_in(k):
    def left(s):
        return {"items": [(yield Ask("left", s["q"]))]}

    def right(s):
        return {"items": [(yield Ask("right", s["q"]))]}

    def far(s):
        return {"items": ["far"]}

    def join(s):
        return {"a": (yield Ask("join", " ".join(s["items"])))}

    return graph(
        k,
        {"left": left, "right": right, "far": far, "join": join},
        [(START, "left"), (START, "right"), ("right", "far"), (["left", "far"], "join")],
    )


def map_reduce(k):
    def plan(s):
        return {"a": (yield Ask("plan", s["q"]))}

    def work(s):
        return {"items": [(yield Ask("work", s["part"]))]}

    def write(s):
        return {"b": " ".join(s["items"])}

    def spread(s):
        return [Send("work", {"part": part}) for part in ("x", "y", "z")]

    nodes = {"plan": plan, "work": work, "write": write}
    return graph(k, nodes, [(START, "plan"), ("work", "write")], [("plan", spread, ["work"])])


def same_sends(k):
    def plan(name):
        def body(s):
            # Both send the same object: which task comes from whom is told by their order.
            return Command(update={"items": [name]}, goto=[Send("work", "part")])

        return body

    def work(part):
        return {"a": "x"} if part == "none" else {"items": [(yield Ask("work", part))]}

    nodes = {"l": plan("l"), "r": plan("r"), "work": work}
    return graph(k, nodes, [(START, "l"), (START, "r")])


def start_router(k):
    def work(s):
        return {"items": [(yield Ask("work", s["part"]))]}

    def spread(s):
        return [Send("work", {"part": part}) for part in s["q"]]

    return graph(k, {"work": work}, conditional=[(START, spread, ["work"])])


def handoff(k):
    def route(s) -> Command[Literal["left", "right"]]:
        return Command(update={"a": (yield Ask("route", s["q"]))}, goto=["left", "right"])

    def left(s):
        return {"b": s["a"]}

    nodes = {"route": route, "left": left, "right": lambda s: {"c": "right"}}
    return graph(k, nodes, [(START, "route")])


def overwrite(k):
    def one(s):
        return {"items": ["1"]}

    def two(s):
        return {"items": Overwrite([(yield Ask("two", s["q"]))])}

    def three(s):
        return {"a": "".join(s["items"])}

    nodes = {"one": one, "two": two, "three": three}
    return graph(k, nodes, [(START, "one"), ("one", "two"), ("two", "three")])


class M(TypedDict):
    messages: Annotated[list, add_messages]
    summary: str


def forgotten(k):
    def first(s):
        return {"messages": [AIMessage((yield Ask("first", "x")), id="1")]}

    def second(s):
        return {"messages": [AIMessage("second", id="2")]}

    def forget(s):
        # It drops the first message, and says the second anew.
        return {"messages": [RemoveMessage("1"), AIMessage("anew", id="2")]}

    def last(s):
        return {"summary": (yield Ask("last", s["messages"][-1].content))}

    nodes = {"first": first, "second": second, "forget": forget, "last": last}
    names = list(nodes)
    return graph(k, nodes, zip([START, *names], names, strict=False), schema=M)


def deferred(k):
    def choose(s):
        return {"a": (yield Ask("choose", s["q"]))}

    def near(s):
        return {"items": ["near"]}

    def far(s):
        return {"items": ["far"]}

    def late(s):
        return {"b": (yield Ask("late", " ".join(s["items"])))}

    nodes = {"choose": choose, "near": near, "far": far, "late": (late, {"defer": True})}
    return graph(
        k, nodes, [(START, "choose"), (START, "near"), ("near", "far"), ("far", "late")],
        [("choose", lambda s: "late", ["late"])],
    )  # fmt: skip


class Model(BaseModel):
    q: str = ""
    a: str = ""
    b: str = "set by nobody"


@dataclass
class Data:
    q: str = ""
    a: str = ""
    b: str = ""


def objects(schema):
    def build(k):
        def one(s):
            return {"a": (yield Ask("one", s.q))}

        def two(s):
            # All of it is written that says something.
            return schema(q=s.q, b=(yield Ask("two", s.a)))

        def three(s):
            return {"a": s.b}

        nodes = {"one": one, "two": two, "three": three}
        edges = [(START, "one"), ("one", "two"), ("two", "three")]
        return graph(k, nodes, edges, schema=schema)

    return build


class In(TypedDict):
    q: str


class Out(TypedDict):
    b: str


class Private(TypedDict):
    secret: str


def schemas(k):
    def hide(s: In) -> Private:
        return {"secret": (yield Ask("hide", s["q"]))}

    def show(s: Private) -> Out:
        # Nothing but the secret is in its schema.
        return {"b": (yield Ask("show", s["secret"])), "unknown": "dropped"}

    nodes = {"hide": hide, "show": (show, {"input_schema": Private})}
    edges = [(START, "hide"), ("hide", "show")]
    return graph(k, nodes, edges, input_schema=In, output_schema=Out)


def reads(k):
    def one(s):
        return {"a": "x", "b": (yield Ask("one", s["q"])), "c": "y"}

    def some(s):
        return {"n": 1, "q": s["b"]}

    def whole(s):
        return {"n": len(dict(s))}

    nodes = {"one": one, "some": some, "whole": whole}
    return graph(k, nodes, [(START, "one"), ("one", "some"), ("some", "whole")])


def retried(k):
    tries = {}

    def flaky(s):
        said = yield Ask("flaky", s["q"])
        tries[id(s)] = tries.get(id(s), 0) + 1
        if said not in tries:
            tries[said] = True
            raise ValueError("not yet")
        tries.pop(said)
        return {"a": said}

    retry = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=ValueError)
    nodes = {"flaky": (flaky, {"retry_policy": retry}), "after": lambda s: {"b": s["a"]}}
    return graph(k, nodes, [(START, "flaky"), ("flaky", "after")])


def crash(k):
    def one(s):
        return {"a": (yield Ask("one", s["q"]))}

    def bad(s):
        yield Ask("bad", s["a"])
        if s["q"] == "topic":
            raise ValueError("no such team")

    return graph(k, {"one": one, "bad": bad}, [(START, "one"), ("one", "bad")])


def handled(k):
    def one(s):
        return {"a": (yield Ask("one", s["q"]))}

    def bad(s):
        raise ValueError(s["a"])

    def repair(s) -> Command[Literal["after"]]:
        return Command(update={"b": (yield Ask("repair", s["a"]))}, goto="after")

    def after(s):
        return {"c": s["b"]}

    nodes = {"one": one, "bad": (bad, {"error_handler": k.node(repair)}), "after": after}
    return graph(k, nodes, [(START, "one"), ("one", "bad")])


def whole_value(k):
    def one(s):
        return [(yield Ask("one", s[-1]))]

    def two(s):
        return [("a", "pair"), s[0]]

    edges = [(START, "one"), ("one", "two")]
    return graph(k, {"one": one, "two": two}, edges, schema=Annotated[list, operator.add])


def by_hand(k):
    def double(text):
        return (yield Ask("double", text))

    def both(given):
        return given["b"] + given["seen"][0]

    nodes = {
        "one": NodeBuilder().subscribe_only("a").do(k.node(double)).write_to("b", "seen"),
        "two": NodeBuilder().subscribe_to("b").read_from("seen").do(k.node(both)).write_to("c"),
    }
    channels = {
        "a": EphemeralValue(str), "b": LastValue(str), "c": LastValue(str),
        "seen": Topic(str, accumulate=True),
    }  # fmt: skip
    return Pregel(
        nodes=nodes, channels=channels, input_channels=["a"], output_channels=["c"],
        checkpointer=k.saver,
    )  # fmt: skip


def _joined(left, writes):
    return [*(left or ()), *(x for write in writes for x in write)]


class Delta(TypedDict, total=False):
    q: str
    a: str
    items: Annotated[list, DeltaChannel(_joined)]


def delta(k):
    def one(s):
        return {"items": [(yield Ask("one", s["q"]))]}

    def two(s):
        return {"items": ["two"]}

    def three(s):
        return {"a": "".join(s["items"])}

    nodes = {"one": one, "two": two, "three": three}
    names = list(nodes)
    return graph(k, nodes, zip([START, *names], names, strict=False), schema=Delta)


TOPIC = {"q": "topic"}
ROWS = [
    Construct(
        "Chain", chain, TOPIC,
        "one#0 > two#0 a",
        {"one#0": "one", "two#0": "two"},
    ),
    Construct(
        "Conditional edges, two that could lead to the same nodes", choice, {"q": "abc"},
        """
        judge#0 > left#0 __route__
        other#0 > right#0 __route__
        """,
        {"judge#0": "judge", "left#0": "left"},
    ),
    Construct(
        "Cycle", cycle, TOPIC,
        """
        step#0 > step#1 a
        step#0 > step#1 __route__
        step#1 > step#2 a
        step#1 > step#2 __route__
        step#2 > done#0 a
        step#2 > done#0 __route__
        """,
        {"step#0": "step", "step#1": "step", "step#2": "step"},
    ),
    Construct(
        "Parallel branches with fan-in over a reducer", fan_in, TOPIC,
        """
        left#0 > join#0 items
        right#0 > join#0 items
        far#0 > join#0 items
        """,
        {"left#0": "left", "right#0": "right", "join#0": "join"},
    ),
    Construct(
        "`Send` map-reduce", map_reduce, TOPIC,
        """
        plan#0 > work#0 __send__
        plan#0 > work#1 __send__
        plan#0 > work#2 __send__
        work#0 > write#0 items
        work#1 > write#0 items
        work#2 > write#0 items
        """,
        {"plan#0": "plan", "work#0": "work", "work#1": "work", "work#2": "work"},
    ),
    Construct(
        "`Send`s of the same object from two nodes, by `Command`", same_sends, TOPIC,
        """
        l#0 > work#0 __send__
        r#0 > work#1 __send__
        """,
        {"work#0": "work", "work#1": "work"},
    ),
    Construct(
        "Conditional entry point that sends", start_router, {"q": "ab"},
        """
        __start__#0 > work#0 __send__
        __start__#0 > work#1 __send__
        """,
        {"work#0": "work", "work#1": "work"},
    ),
    Construct(
        "`Command(goto, update)`", handoff, TOPIC,
        """
        route#0 > left#0 a
        route#0 > left#0 __route__
        route#0 > right#0 __route__
        """,
        {"route#0": "route"},
    ),
    Construct(
        "`Overwrite` of a reducer channel", overwrite, TOPIC,
        "two#0 > three#0 items",
        {"two#0": "two"},
        executions="one#0",
    ),
    Construct(
        "Messages that are removed and replaced by id", forgotten,
        {"messages": [HumanMessage("hi", id="0")], "summary": ""},
        "forget#0 > last#0 messages",
        {"first#0": "first", "last#0": "last"},
        executions="first#0 second#0",
    ),
    Construct(
        "`DeltaChannel`", delta, TOPIC,
        """
        one#0 > three#0 items
        two#0 > three#0 items
        """,
        {"one#0": "one"},
    ),
    Construct(
        "Deferred node, chosen long before it runs", deferred, TOPIC,
        """
        near#0 > late#0 items
        far#0 > late#0 items
        choose#0 > late#0 __route__
        """,
        {"choose#0": "choose", "late#0": "late"},
    ),
    Construct(
        "Pydantic state", objects(Model), TOPIC,
        """
        one#0 > two#0 a
        two#0 > three#0 b
        """,
        {"one#0": "one", "two#0": "two"},
    ),
    Construct(
        "Dataclass state", objects(Data), TOPIC,
        """
        one#0 > two#0 a
        two#0 > three#0 b
        """,
        {"one#0": "one", "two#0": "two"},
    ),
    Construct(
        "Private state, input and output schemas", schemas, TOPIC,
        "hide#0 > show#0 secret",
        {"hide#0": "hide", "show#0": "show"},
    ),
    Construct(
        "Reads of some keys, and of the whole state", reads, TOPIC,
        """
        one#0 > some#0 b
        some#0 > whole#0 q
        one#0 > whole#0 a
        one#0 > whole#0 b
        one#0 > whole#0 c
        some#0 > whole#0 n
        """,
        {"one#0": "one"},
    ),
    Construct(
        "Retry of a node", retried, TOPIC,
        "flaky#0 > after#0 a",
        {"flaky#0": "flaky flaky"},
    ),
    Construct(
        "Crash in a node", crash, TOPIC,
        "one#0 > bad#0 a",
        {"one#0": "one", "bad#0": "bad"},
        raises="ValueError: no such team",
        discovered_on={"q": "something else"},
    ),
    Construct(
        "Error handler of a node", handled, TOPIC,
        """
        one#0 > bad#0 a
        one#0 > bad/__error_handler__bad#0 a
        bad#0 > bad/__error_handler__bad#0 __route__
        bad/__error_handler__bad#0 > after#0 b
        bad/__error_handler__bad#0 > after#0 __route__
        """,
        {"one#0": "one", "bad/__error_handler__bad#0": "repair"},
    ),
    Construct(
        "State that is one value", whole_value, {"__root__": ["topic"]},
        "one#0 > two#0 __root__",
        {"one#0": "one"},
        sinks={"output": "one#0 two#0"},
    ),
    Construct(
        "`Pregel` made by hand", by_hand, {"a": "topic"},
        """
        one#0 > two#0 b
        one#0 > two#0 seen
        """,
        {"one#0": "double"},
    ),
]  # fmt: skip
