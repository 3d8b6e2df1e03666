"""Random graphs whose values say who wrote them: the edges of a recording are what readers saw."""

from __future__ import annotations

import asyncio
import operator
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import Overwrite

import lg_textgrad as tg
from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.structure import Structure
from lg_textgrad.trace import Trace

LAST, GROWING = ["a", "b", "c"], ["x", "y"]


class S(TypedDict, total=False):
    a: str
    b: str
    c: str
    x: Annotated[list, operator.add]
    y: Annotated[list, operator.add]


@dataclass
class Node:
    reads: list[str]
    writes: list[str]
    anew: bool
    """Whether it overwrites the growing channels that it writes."""


@dataclass
class Graph:
    stages: list[list[Node | Graph]] = field(default_factory=list)
    """What runs at once, stage by stage; a graph runs alone, since it writes every channel."""


def nodes(free):
    """Nodes that run at once: each last-value channel is written by one, and overwritten by none."""
    return st.builds(
        Node,
        st.lists(st.sampled_from(LAST + GROWING), unique=True, max_size=3),
        st.lists(st.sampled_from(free + GROWING), unique=True, min_size=1, max_size=2),
        st.booleans() if len(free) == len(LAST) else st.just(False),
    )


alone = nodes(LAST).map(lambda n: [n])
together = st.tuples(nodes(["a"]), nodes(["b"]), nodes(["c"])).map(list)


def graphs(depth):
    stage = alone | together
    if depth:
        stage = stage | graphs(depth - 1).map(lambda g: [g])
    return st.builds(Graph, st.lists(stage, min_size=1, max_size=4))


def built(graph, path, seen):
    """Compile a graph; its nodes note in `seen` whose values they read, and sign what they write."""
    builder, before = StateGraph(S), []
    for number, stage in enumerate(graph.stages):
        names = []
        for place, node in enumerate(stage):
            name = f"n{number}{place}"
            names.append(name)
            inside = f"{path}{name}"
            if isinstance(node, Graph):
                builder.add_node(name, built(node, f"{inside}/", seen))
            else:
                builder.add_node(name, body(node, f"{inside}#0", seen))
            if before:
                builder.add_edge(before, name)
            else:
                builder.add_edge(START, name)
        before = names
    return builder.compile()


def body(node, me, seen):
    def run(state):
        for key in node.reads:
            value = state.get(key)
            for writer in value if isinstance(value, list) else [value]:
                if writer is not None and "#" in writer:
                    seen.add((writer, me, key))
        update: dict[str, Any] = {}
        for key in node.writes:
            update[key] = me if key in LAST else Overwrite([me]) if node.anew else [me]
        return update

    def blind(_):
        return run({})

    return run if node.reads else blind


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(2), st.lists(st.sampled_from(LAST + GROWING), unique=True))
def test_edges_are_what_readers_saw_of_each_other(graph, inputs):
    seen: set[tuple[str, str, str]] = set()
    compiled = built(graph, "", seen)
    given_ = {key: "input" if key in LAST else ["input"] for key in inputs}
    [run] = asyncio.run(tg.TrainableGraph(compiled).arecord([{"inputs": given_}]))
    assert (run.error, run.warnings) == (None, ())
    found = {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}
    hosts = {e.parent for e in run.executions}
    assert {e for e in found if e[1] not in hosts} == seen
    # What the run gives back says who wrote it, too.
    for key, writers in Trace.of(run).sinks.items():
        value = run.outputs[key]
        signed = {v for v in (value if isinstance(value, list) else [value]) if "#" in v}
        assert set(writers) == signed


def test_call_that_begins_late_is_made_of_nothing_that_was_called_after_it():
    second_ended = threading.Event()

    @task
    def part(n):
        return f"part {n}"

    @entrypoint()
    def steps(topic):
        both = [part(n) for n in range(2)]
        return " and ".join(one.result() for one in both)

    class FirstBeginsLast(BaseCallbackHandler):
        """Holds the thread of the first call until the second one has ended."""

        raise_error = True

        def on_chain_start(self, serialized, inputs, **_):
            if inputs == {"n": 0}:
                assert second_ended.wait(10)

        def on_chain_end(self, outputs, **_):
            if outputs == "part 1":
                second_ended.set()

    recorder = Recorder(Structure.of(steps))
    steps.invoke("", {"callbacks": [FirstBeginsLast(), recorder]})

    sources = {e.id: e.sources for e in recorder.executions() if e.called}
    assert sources == {"steps/part#0": {"n": [["", "*"]]}, "steps/part#1": {"n": [["", "*"]]}}
