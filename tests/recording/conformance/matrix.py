"""Rows, columns, and how a cell is run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langgraph.types import Command

import lg_textgrad as tg
from lg_textgrad.recording.belongings import Belongings
from tests.recording.conformance import nested, plain
from tests.recording.conformance.kit import Construct, Kit, text_of
from tests.recording.conformance.truth import Truth

ROWS: list[Construct] = [*plain.ROWS, *nested.ROWS]


@dataclass(frozen=True)
class Column:
    name: str
    sync: bool
    """Whether the nodes are plain functions."""
    declared: bool
    """Whether prompts are declared as parameters; else they are discovered."""
    drive: Callable[[Any, Any, Any], Any] | None = None
    """How the user runs the graph, under `tg.watch`; None where `arecord` does."""


def _stream(graph, inputs, config):
    return list(graph.stream(inputs, config, stream_mode=["updates", "messages"], subgraphs=True))


async def _astream(graph, inputs, config):
    return [c async for c in graph.astream(inputs, config, stream_mode="debug", subgraphs=True)]


COLUMNS = [
    Column("sync, declared", True, True),
    Column("sync, discovered", True, False),
    Column("async, declared", False, True),
    Column("async, discovered", False, False),
    Column("invoke", True, True, lambda graph, inputs, config: graph.invoke(inputs, config)),
    Column("stream", True, True, _stream),
    Column("batch", True, True, lambda graph, inputs, config: graph.batch([inputs], [config])),
    Column("ainvoke", False, True, lambda graph, inputs, config: graph.ainvoke(inputs, config)),
    Column("astream", False, True, _astream),
    Column("abatch", False, True, lambda graph, inputs, config: graph.abatch([inputs], [config])),
]


@dataclass(frozen=True)
class Cell:
    run: tg.Run
    truth: Truth
    texts: dict[str, str]
    """Prompt -> the text that it had in the run."""


async def run_cell(row: Construct, column: Column, monkeypatch: Any) -> Cell:
    """Build the construct as the column says, run it, and return what was recorded and the truth."""
    kit = Kit(sync=column.sync, declared=column.declared)
    truth = Truth()
    if column.drive is not None:
        kit.saver = truth
        graph = row.build(kit)
        texts = {name: text_of(name) for name in row.prompt_names()}
        return Cell(await _driven(graph, row, column, kit), truth, texts)
    graph = row.build(kit)
    example = {"inputs": row.inputs, "metadata": row.metadata}
    if column.declared:
        for name in row.prompt_names():
            kit.prompt(name)
        trainable = tg.TrainableGraph(graph, kit.parameters.values())
    else:
        found_on = {**example, "inputs": row.discovered_on or row.inputs}
        trainable = await tg.adiscover(graph, [found_on])
    # Another candidate than what the nodes have, so that it is seen to arrive.
    texts = {name: f"{text_of(name)} Be brief." for name in row.prompt_names()}
    named = {parameter.value: name for name, parameter in trainable.parameters.items()}
    candidate = {named[text_of(name)]: text for name, text in texts.items()}
    monkeypatch.setattr(Belongings, "saver", lambda *_: truth)
    [run] = await trainable.arecord([example], prompts=candidate)
    return Cell(run, truth, texts)


async def _driven(graph: Any, row: Construct, column: Column, kit: Kit) -> tg.Run:
    for name in row.prompt_names():
        kit.prompt(name)
    inputs = row.inputs["__root__"] if row.inputs.keys() == {"__root__"} else row.inputs
    config = {"configurable": {"thread_id": "one"}}
    if row.warm:
        await _run(graph, column, inputs, {"configurable": {"thread_id": "before"}})
        kit.saver.forget()
    with tg.watch(graph, kit.parameters.values()) as watched:
        given = [inputs]
        for value in row.metadata.get("resume", ()):
            given.append(None if value is None else Command(resume=value))
        for one in given:
            try:
                await _run(watched.graph, column, one, config)
            except ValueError as error:
                assert row.raises and row.raises in f"ValueError: {error}"
    [run] = watched.runs
    return run


async def _run(graph: Any, column: Column, inputs: Any, config: Any) -> None:
    assert column.drive is not None
    # Sync ways to run a graph belong into a thread without a loop, as a script's are.
    if column.sync:
        await asyncio.to_thread(column.drive, graph, inputs, config)
    else:
        await column.drive(graph, inputs, config)
