"""TrainableGraph: a compiled LangGraph graph whose prompts are parameters."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any
from uuid import uuid4

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad._sync import run_sync, task_group
from lg_textgrad.bindings.base import Binding, Declared
from lg_textgrad.bindings.boundary import BoundaryScope, pay_through
from lg_textgrad.data import example_from
from lg_textgrad.errors import GraphError, ParameterError
from lg_textgrad.ledger import Ledger, ledger_in_scope
from lg_textgrad.parameter import (
    Parameter,
    candidate_hash,
    candidate_of,
    observe_reads,
    values_in_scope,
)
from lg_textgrad.recording.isolation import isolated
from lg_textgrad.recording.live import Recorder, accumulating_channels, graphs_by_path, observing
from lg_textgrad.run import Candidate, Example, Run, Usage


class TrainableGraph:
    """A compiled graph and the parameters that its nodes read.

    The graph itself is never changed: runs use a copy without node caches, and with a checkpointer
    of its own in memory when the graph has one. Raises `GraphError` for what is not a compiled
    graph, `ParameterError` for names used twice.
    """

    def __init__(
        self, graph: Pregel[Any, Any, Any, Any], parameters: Iterable[Parameter] = ()
    ) -> None:
        if not isinstance(graph, Pregel):
            hint = (
                "call .compile() on it first"
                if hasattr(graph, "compile")
                else "give what StateGraph(...).compile() returns"
            )
            raise GraphError(f"A {type(graph).__name__} is not a compiled LangGraph graph; {hint}.")
        named: dict[str, Parameter] = {}
        for parameter in parameters:
            if not isinstance(parameter, Parameter):
                raise ParameterError(
                    f"Parameters must be lg_textgrad.Parameter objects, not "
                    f"{type(parameter).__name__}; write Parameter('name', 'text')."
                )
            if parameter.name in named:
                raise ParameterError(
                    f"Two parameters are named '{parameter.name}'; give each a name of its own.",
                    parameter=parameter.name,
                )
            named[parameter.name] = parameter
        self.graph = graph
        self.bindings: tuple[Binding, ...] = (Declared(named),)
        self._observing = observing(graph)
        self._accumulating = accumulating_channels(graph)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every parameter by its name."""
        return {n: p for binding in self.bindings for n, p in binding.parameters.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of nodes, edges, channels and the nodes' own code, of every graph in it."""
        shape = {}
        for path, sub in graphs_by_path(self.graph).items():
            shape[path] = {
                "channels": {n: type(c).__name__ for n, c in sub.channels.items()},
                "nodes": {
                    n: {
                        "triggers": list(p.triggers),
                        "channels": to_plain(p.channels),
                        "code": _code(p.bound),
                    }
                    for n, p in sub.nodes.items()
                },
            }
        return digest("graph", shape)[:16]

    def candidate(self, prompts: Mapping[str, str] | None = None) -> Candidate:
        """Return the texts of all parameters, with those of `prompts` put over them.

        Raises `ParameterError` when `prompts` names a parameter that the graph doesn't have.
        """
        values = candidate_of(self.parameters)
        scoped = {n: t for n, t in values_in_scope().items() if n in values}
        unknown = [n for n in (prompts or {}) if n not in values]
        if unknown:
            raise ParameterError(
                f"There is no parameter '{unknown[0]}'; the graph has {_names(values)}.",
                parameter=unknown[0],
            )
        return {**values, **scoped, **(prompts or {})}

    def run_id(self, example: Example, candidate: Mapping[str, str], sample: int = 0) -> str:
        """Return the id of the run of `example` under `candidate`: the same run, the same id."""
        return digest(
            "run", self.fingerprint, dict(candidate), example.id, example.inputs, sample
        )[:32]

    async def arecord(
        self,
        batch: Iterable[Example | Mapping[str, Any]],
        *,
        prompts: Mapping[str, str] | None = None,
        sample: int = 0,
        max_runs: int = 16,
        on_run: Callable[[Run], None] | None = None,
    ) -> list[Run]:
        """Run the graph on each example and return the runs, in the order of the examples.

        All go at once, at most `max_runs` in memory. A run whose node raises comes back with
        `error` set; an error that would repeat in every run (a refused key, a used-up budget) is
        raised. Cost: the graph's own model calls, those in the store for nothing.
        """
        examples = as_examples(batch)
        candidate = self.candidate(prompts)
        room = asyncio.Semaphore(max_runs)
        ledger = ledger_in_scope()

        async def one(example: Example) -> Run:
            async with room:
                run = await self._run(example, candidate, sample, ledger)
                if on_run is not None:
                    on_run(run)
                return run

        async with task_group() as group:
            tasks = [group.create_task(one(example)) for example in examples]
        return [task.result() for task in tasks]

    def record(
        self,
        batch: Iterable[Example | Mapping[str, Any]],
        *,
        prompts: Mapping[str, str] | None = None,
        sample: int = 0,
        max_runs: int = 16,
    ) -> list[Run]:
        """`arecord` for sync code."""
        return run_sync(
            self.arecord(batch, prompts=prompts, sample=sample, max_runs=max_runs)
        )

    async def _run(
        self, example: Example, candidate: Candidate, sample: int, ledger: Ledger | None
    ) -> Run:
        run_id = self.run_id(example, candidate, sample)
        store = ledger.store if ledger is not None else None
        if store is not None and (known := store.get_run(run_id, example)) is not None:
            return replace(known, parameters=self.parameters)
        scope = BoundaryScope(ledger or Ledger(max_concurrency=64), sample=sample)
        run = await self._invoke(run_id, example, candidate, sample, scope)
        if scope.failure is not None:
            raise scope.failure
        if store is not None:
            store.put_run(run)
        return run

    async def _invoke(
        self,
        run_id: str,
        example: Example,
        candidate: Candidate,
        sample: int,
        scope: BoundaryScope,
    ) -> Run:
        recorder = Recorder()
        graph = self._observing
        if graph.checkpointer:
            graph = graph.copy({"checkpointer": InMemorySaver()})
        config: Any = {
            "callbacks": [recorder],
            "configurable": {"thread_id": f"lg_textgrad-{uuid4()}"},
        }
        more: dict[str, Any] = {}
        for binding in self.bindings:
            more.update(binding.invocation(candidate))

        async def invoke() -> Any:
            with isolated(), observe_reads(recorder.note_read), pay_through(scope):
                return await _entered(
                    [binding.scope(candidate) for binding in self.bindings],
                    lambda: graph.ainvoke(dict(example.inputs), config, **more),
                )

        outputs: Any = None
        error: str | None = None
        started = time.monotonic()
        # A context of its own, so that nothing that the graph sets reaches the caller.
        task = asyncio.get_running_loop().create_task(invoke(), context=copy_context())
        try:
            outputs = await task
        except asyncio.CancelledError:
            task.cancel()
            raise
        except Exception as raised:  # one failed example is data, evidence for the critic
            error = f"{type(raised).__name__}: {raised}"
        executions = recorder.executions(self.graph)
        if outputs is not None and not isinstance(outputs, Mapping):
            outputs = to_plain(outputs) if not isinstance(outputs, str | list) else outputs
            outputs = outputs if isinstance(outputs, Mapping) else {"output": outputs}
        return Run(
            id=run_id,
            example=example,
            candidate=candidate_hash(candidate),
            outputs=outputs,
            executions=executions,
            error=error,
            failed_in=(
                next((e.id for e in reversed(executions) if e.error), None) if error else None
            ),
            usage=scope.usage if scope.usage.calls + scope.usage.cached_calls else Usage(),
            seconds=time.monotonic() - started,
            sample=sample,
            accumulating=self._accumulating,
            parameters=self.parameters,
        )


async def _entered(scopes: Sequence[Any], run: Callable[[], Any]) -> Any:
    if not scopes:
        return await run()
    with scopes[0]:
        return await _entered(scopes[1:], run)


def _code(bound: Any) -> str | None:
    """Return the source of a node's function; None where it has none that can be read."""
    function: Any = getattr(bound, "afunc", None) or getattr(bound, "func", None)
    try:
        return inspect.getsource(inspect.unwrap(getattr(function, "func", function)))
    except (OSError, TypeError):
        return None


def _names(names: Iterable[str]) -> str:
    found = [f"'{n}'" for n in names]
    return ", ".join(found) if found else "none"


def as_examples(batch: Iterable[Example | Mapping[str, Any]]) -> list[Example]:
    """Return the rows as Examples. A dict has `inputs`, and may have `outputs`, `metadata`, `id`.

    Raises `DataError` for a row that has no `inputs`.
    """
    return [
        row if isinstance(row, Example) else example_from(row, f"example {number}")
        for number, row in enumerate(batch)
    ]
