"""Run a compiled graph in this process and record what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver

from lg_textgrad._hashing import to_plain
from lg_textgrad.bindings.base import Binding
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.parameter import observe_reads
from lg_textgrad.recording.base import Recorded
from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.isolation import isolated
from lg_textgrad.recording.structure import AnyGraph, accumulating_channels, fingerprint, parts
from lg_textgrad.run import Candidate, Example
from lg_textgrad.tracking import ReadTrackingDict

_START = "__start__"


class LiveSource:
    """Runs a compiled graph in this process, under a callback recorder.

    The graph itself is never changed: runs use a copy without node caches, and with a checkpointer
    of its own in memory when the graph has one.
    """

    def __init__(self, graph: AnyGraph, *, callbacks: Sequence[BaseCallbackHandler] = ()) -> None:
        self.graph = graph
        self._callbacks = tuple(callbacks)
        self._observing = observing(graph)
        self._accumulating = accumulating_channels(graph)

    @property
    def fingerprint(self) -> str:
        """A hash of nodes, edges, channels and the nodes' own code, of every graph in it."""
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
        """Run the graph once. Cost: the graph's own model calls, those in the store for nothing."""
        recorder = Recorder()
        graph = self._observing
        if graph.checkpointer:
            graph = graph.copy({"checkpointer": InMemorySaver()})
        config: Any = {
            "callbacks": [recorder, *self._callbacks],
            "configurable": {"thread_id": f"lg_textgrad-{uuid4()}"},
        }
        inputs = dict(example.inputs)
        more: dict[str, Any] = {}
        for binding in bindings:
            inputs = dict(binding.inputs(candidate, inputs))
            more.update(binding.invocation(candidate))

        async def invoke() -> Any:
            with isolated(), observe_reads(recorder.note_read), pay_through(scope):
                return await _entered(
                    [binding.scope(candidate) for binding in bindings],
                    lambda: graph.ainvoke(inputs, config, **more),
                )

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
        if outputs is not None and not isinstance(outputs, Mapping):
            outputs = to_plain(outputs) if not isinstance(outputs, str | list) else outputs
            outputs = outputs if isinstance(outputs, Mapping) else {"output": outputs}
        return Recorded(
            outputs=outputs,
            executions=recorder.executions(self.graph),
            error=error,
            warnings=tuple(sorted(scope.warnings)),
            accumulating=self._accumulating,
        )


async def _entered(scopes: Sequence[Any], run: Callable[[], Any]) -> Any:
    if not scopes:
        return await run()
    with scopes[0]:
        return await _entered(scopes[1:], run)


def observing(graph: AnyGraph) -> AnyGraph:
    """Return a copy of `graph` that notes which state keys a node reads, and caches no node.

    A node cache is keyed by the node's input alone, so it would answer one candidate with the
    result of another. Nothing is recompiled and `graph` itself stays as it is.
    """
    nodes = {}
    for name, node in graph.nodes.items():
        plain_state = node.mapper is None and isinstance(node.channels, list)
        if name == _START or not plain_state or node.subgraphs:
            nodes[name] = node
        else:
            nodes[name] = node.copy({"mapper": _track})
    return graph.copy({"nodes": nodes, "cache": None})


def _track(value: Any) -> Any:
    return ReadTrackingDict(value) if type(value) is dict else value
