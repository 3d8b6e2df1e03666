"""Run a compiled graph in this process and record what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import cached_property
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.base import BaseCheckpointSaver

from lg_textgrad._hashing import to_plain
from lg_textgrad.bindings.base import Binding
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.bindings.nesting import note_dependence
from lg_textgrad.bindings.patching import paths_by
from lg_textgrad.copies import anew
from lg_textgrad.parameter import observe_reads
from lg_textgrad.recording.base import Recorded
from lg_textgrad.recording.belongings import Belongings, having
from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.isolation import isolated
from lg_textgrad.recording.observing import observing
from lg_textgrad.recording.resuming import arun_resumed, at_breakpoint, resume_values
from lg_textgrad.recording.structure import (
    AnyGraph,
    Structure,
    fingerprint,
    graphs_by_path,
    parts,
)
from lg_textgrad.run import Candidate, Example


class LiveSource:
    """Runs a compiled graph in this process, under a callback recorder.

    The graph itself is never changed: runs use a copy without node caches, and with a checkpointer
    of its own in memory when the graph has one, or needs one to go on after an interrupt. What is
    in the graph's store is read, and what a run writes there only that run sees. The same goes for
    the graphs that the code of nodes and tools calls. Inputs
    that are `{"__root__": value}` hand the graph the value itself.
    """

    def __init__(self, graph: AnyGraph, *, callbacks: Sequence[BaseCallbackHandler] = ()) -> None:
        self.graph = graph
        self._callbacks = tuple(callbacks)
        self._observing = observing(graph)
        self._structure = Structure.of(graph)
        self._saves = any(
            isinstance(g.checkpointer, BaseCheckpointSaver) for g in graphs_by_path(graph).values()
        )
        self._breaks = bool(graph.interrupt_before_nodes or graph.interrupt_after_nodes)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of nodes, edges, channels and the nodes' own code, of every graph in it.

        Worked out once: every run's id is made from it, and reading code takes time.
        """
        return fingerprint(self.graph)

    @property
    def parts(self) -> dict[str, str]:
        """What the fingerprint is made of, by node."""
        return parts(self.graph)

    async def arun(
        self,
        example: Example,
        candidate: Candidate,
        bindings: Sequence[Binding],
        scope: BoundaryScope,
    ) -> Recorded:
        """Run the graph once, past the interrupts that the example has values for.

        Cost: the graph's own model calls, those in the store for nothing.
        """
        recorder = Recorder(self._structure)
        scope.witness, scope.stranger = recorder.witness, recorder.stranger
        scope.place, scope.timed = recorder.place, recorder.timed
        resume = resume_values(example)
        # What runs have in a checkpointer is theirs alone.
        own = Belongings(self.graph.store)
        if scope.tools is not None:
            scope.tools.store = own.own_store
        graph = observing(self.graph, saver=own.saver) if self._saves else self._observing
        saves = graph.checkpointer or self._breaks or resume
        if saves and not isinstance(graph.checkpointer, BaseCheckpointSaver):
            graph = graph.copy({"checkpointer": own.saver()})
        graph = own.graph(graph)
        # A node may change in place what it is given; the next run starts from the same again.
        given = anew(dict(example.inputs))
        more: dict[str, Any] = {}
        configured: dict[str, Any] = {}
        for binding in bindings:
            given = dict(binding.inputs(candidate, given))
            asked = dict(binding.invocation(candidate))
            configured.update(asked.pop("config", {}).get("configurable", {}))
            more.update(asked)
        config: Any = {
            "callbacks": [recorder, *self._callbacks],
            "configurable": {**configured, "thread_id": f"lg_textgrad-{uuid4()}"},
        }
        inputs = given["__root__"] if given.keys() == {"__root__"} else given
        notes: list[str] = []

        async def run() -> Any:
            outputs, warnings = await arun_resumed(
                graph, config, resume or (), inputs, lambda i: graph.ainvoke(i, config, **more)
            )
            notes.extend(warnings)
            if self._breaks and (stopped := (await graph.aget_state(config)).next):
                notes.append(at_breakpoint(stopped))
            return outputs

        def note_read(name: str, text: str) -> None:
            note_dependence()
            recorder.note_read(name, text)

        async def invoke() -> Any:
            with (
                isolated(), having(own), paths_by(recorder.path_of),
                observe_reads(note_read), pay_through(scope),
            ):  # fmt: skip
                return await _entered([binding.scope(candidate) for binding in bindings], run)

        outputs: Any = None
        error: str | None = None
        # A context of its own, so that nothing that the graph sets reaches the caller.
        task = asyncio.get_running_loop().create_task(invoke(), context=copy_context())
        try:
            outputs = await task
        except asyncio.CancelledError:
            task.cancel()
            raise
        except Exception as raised:  # one failed example is data, evidence for the critic
            error = f"{type(raised).__name__}: {raised}"
        found = recorder.assembled()
        return Recorded(
            outputs=as_outputs(outputs),
            executions=found.executions,
            error=error,
            warnings=tuple(sorted({*scope.warnings, *found.warnings, *notes})),
            accumulating=found.accumulating,
        )


def as_outputs(outputs: Any) -> Mapping[str, Any] | None:
    """Return a graph's output by key: what has none stands under `output`."""
    if outputs is None or isinstance(outputs, Mapping):
        return outputs
    plain = outputs if isinstance(outputs, str | list) else to_plain(outputs)
    return plain if isinstance(plain, Mapping) else {"output": plain}


async def _entered(scopes: Sequence[Any], run: Callable[[], Any]) -> Any:
    if not scopes:
        return await run()
    with scopes[0]:
        return await _entered(scopes[1:], run)
