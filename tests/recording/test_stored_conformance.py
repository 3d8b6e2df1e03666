"""The conformance matrix, stored by LangSmith's own tracer and rebuilt from what was stored.

Held against the edges written by hand. What a trace does not say makes edges wider, or leads them
over the node around (docs/langsmith.md); nobody who fed an execution is left out.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from langchain_core.tracers import LangChainTracer
from langgraph.types import Command
from langsmith import Client

import lg_textgrad as tg
from lg_textgrad.recording.langsmith import recorded_from
from lg_textgrad.trace import Trace
from tests.recording.conformance.kit import Kit, text_of
from tests.recording.conformance.matrix import ROWS
from tests.servers.langsmith_server import LangSmithServer

SEVERAL = {row.title for row in ROWS if "resume" in row.metadata}
"""Each invocation is a trace by itself, and the executions before a pause are in an earlier one."""

EXACT = {
    "Chain",
    "Cycle",
    "`Send`s of the same object from two nodes, by `Command`",
    "Conditional entry point that sends",
    "Private state, input and output schemas",
    "Retry of a node",
    "Crash in a node",
    "State that is one value",
    "`Pregel` made by hand",
    "`@task`s at once, and a value computed from theirs",
    "`@task` called inside a `@task`",
    "Node cache",
    "Model called in a raw thread",
    "Model called with `callbacks: []`",
}
"""What was read, and which object went where, makes no difference in these."""


@pytest.fixture(scope="module")
def stored():
    """Title -> the graph, and what LangSmith has of each invocation of it."""
    with LangSmithServer() as server:
        client = Client(server.url, api_key=server.api_key)
        graphs = {}

        async def run_all():
            for number, row in enumerate(ROWS):
                kit = Kit(sync=False, declared=True)
                graph = graphs[row.title] = row.build(kit)
                inputs = row.inputs["__root__"] if row.inputs.keys() == {"__root__"} else row.inputs
                if row.warm:
                    await graph.ainvoke(inputs, {"configurable": {"thread_id": "before"}})
                resumed = [None if v is None else Command(resume=v) for v in row.metadata.get("resume", ())]
                for time, given in enumerate([inputs, *resumed]):
                    tracer = LangChainTracer(project_name=f"{number}/{time}", client=client)
                    with suppress(ValueError):
                        await graph.ainvoke(given, {"callbacks": [tracer], "configurable": {"thread_id": "one"}})

        asyncio.run(run_all())
        client.flush()
        client.close()

        def kept(number):
            times = len(ROWS[number].metadata.get("resume", ())) + 1
            return [[server._shown_run(r) for r in server.runs_of(f"{number}/{time}")] for time in range(times)]

        yield {row.title: (graphs[row.title], kept(number)) for number, row in enumerate(ROWS)}


def rebuilt(row, graph, runs):
    texts = {name: text_of(name) for name in row.prompt_names()}
    recorded, _, _ = recorded_from(runs, graph, texts, {})
    example = tg.Example("e", row.inputs)
    return tg.Run(
        "r", example, "c", recorded.outputs, tuple(recorded.executions), error=recorded.error,
        accumulating=recorded.accumulating,
    )  # fmt: skip


def prompts_of(run):
    return {e.id: tuple(sorted(e.prompts)) for e in run.executions if e.prompts}


@pytest.mark.parametrize("row", [r for r in ROWS if r.title not in SEVERAL], ids=lambda row: row.title)
def test_stored_construct_has_the_executions_and_everybody_who_fed_them(row, stored):
    graph, [runs] = stored[row.title]
    row = row.under(watched=True)
    run = rebuilt(row, graph, runs)
    trace = Trace.of(run)
    assert {e.id for e in run.executions} == row.ids()
    assert (run.error or "").startswith(row.raises)
    assert bool(run.error) == bool(row.raises)
    if "callbacks" not in row.title:  # LangSmith's tracer hears of that call, and `tg.watch` doesn't
        calls = {e.id: len(e.model_calls) for e in run.executions if e.model_calls}
        assert calls == {e: len(names.split()) for e, names in row.prompts.items()}
    assert prompts_of(run) == {e: tuple(sorted(set(names.split()))) for e, names in row.prompts.items()}
    edges = {(e.producer, e.consumer, e.channel) for e in trace.edges}
    if row.title in EXACT:
        assert edges == row.expected
    else:
        assert edges != row.expected
    for producer, consumer, _ in row.expected:
        assert producer in trace.reached_from([consumer]), (producer, consumer)
    for key, writers in row.sinks.items():
        assert set(writers.split()) <= trace.reached_from(trace.sinks[key])


@pytest.mark.parametrize("row", [r for r in ROWS if r.title in SEVERAL], ids=lambda row: row.title)
def test_invocations_of_a_paused_run_are_traces_that_have_its_executions_together(row, stored):
    graph, invocations = stored[row.title]
    runs = [rebuilt(row, graph, one) for one in invocations]
    assert len(runs) == 2
    assert set.union(*({e.id for e in run.executions} for run in runs)) == row.ids()
    assert all({e.id for e in run.executions} < row.ids() for run in runs)
    calls = sum(len(e.model_calls) for run in runs for e in run.executions)
    assert calls == sum(len(names.split()) for names in row.prompts.values())
