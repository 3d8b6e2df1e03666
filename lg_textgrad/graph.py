"""TrainableGraph: a compiled LangGraph graph whose prompts are parameters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import finalize

from langchain_core.messages import AIMessage
from langgraph.pregel import Pregel

from lg_textgrad._hashing import digest
from lg_textgrad._sync import all_at_once, run_sync
from lg_textgrad.bindings.answering import Correction
from lg_textgrad.bindings.base import Binding, Declared, with_readers
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.bindings.context import ContextBinding, schema_of
from lg_textgrad.bindings.tool_modes import ToolDesk, Tools
from lg_textgrad.data import example_from
from lg_textgrad.errors import ConfigurationError, DataError, GraphError, ParameterError
from lg_textgrad.ledger import Ledger, ledger_at_hand, ledger_in_scope
from lg_textgrad.parameter import (
    Parameter,
    candidate_hash,
    candidate_of,
    values_in_scope,
)
from lg_textgrad.recording.base import Executor, Source
from lg_textgrad.recording.live import LiveSource
from lg_textgrad.recording.remote import RemoteSource
from lg_textgrad.recording.structure import graphs_by_path
from lg_textgrad.run import Candidate, Example, Execution, Run


class TrainableGraph:
    """A compiled graph and the parameters that its nodes read.

    `parameters` are those that the nodes read themselves; `bindings` hold others. The graph is
    never changed. Fields of its `context_schema` that are marked as prompts are parameters as they
    are; `context_prompts` names further ones, and none at all are when it is empty. `context` has
    values for the other fields, an example's `metadata["context"]` those that differ. Raises
    `GraphError` for what is not a compiled graph, `ParameterError` for names used twice and for a
    context field that has no text to begin with.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any] | Source,
        parameters: Iterable[Parameter] = (),
        *,
        bindings: Iterable[Binding] = (),
        context: Any = None,
        context_prompts: Iterable[str | Parameter] | None = None,
        tools: Tools | None = None,
    ) -> None:
        if isinstance(graph, Pregel):
            self.source: Source = LiveSource(graph)
        elif hasattr(graph, "arun") and hasattr(graph, "fingerprint"):
            self.source = graph
        elif type(graph).__name__ == "RemoteGraph" and hasattr(graph, "assistant_id"):
            self.source = RemoteSource.of(graph)
        else:
            hint = (
                "call .compile() on it first"
                if hasattr(graph, "compile")
                else "give what StateGraph(...).compile() returns"
            )
            raise GraphError(f"A {type(graph).__name__} is not a compiled LangGraph graph; {hint}.")
        self.tools = tools or Tools()
        """What tools do in runs; may be replaced before the first one."""
        self.executor: Executor | None = None
        """Where runs are made, such as `executors.Ray`; None makes them in this process."""
        self._masked: dict[int, Example] = {}  # by the id of what is shown, as long as that lives
        self._context = ContextBinding(schema_of(self.source), context, context_prompts)
        declared = Declared(_named(parameters))
        self.bindings = _distinct((declared, self._context, *bindings))

    def holding(self, *bindings: Binding) -> TrainableGraph:
        """Return the same graph with further bindings; this one stays as it is.

        Raises `ParameterError` for names used twice.
        """
        other = copy(self)
        other.bindings = _distinct((*self.bindings, *bindings))
        return other

    @property
    def graph(self) -> Pregel[Any, Any, Any, Any] | None:
        """The compiled graph; None where it doesn't run in this process."""
        return getattr(self.source, "graph", None)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every parameter by its name."""
        return {n: p for binding in self.bindings for n, p in binding.parameters.items()}

    @property
    def found(self) -> tuple[Any, ...]:
        """What discovery has to say, a `Finding` for each prompt; empty without discovery."""
        return tuple(f for binding in self.bindings for f in getattr(binding, "findings", ()))

    @property
    def fingerprint(self) -> str:
        """A hash of everything about the graph that decides what a run does."""
        tools = self.tools.identity
        own = self.source.fingerprint
        return own if tools is None else digest("graph", own, tools)[:32]

    @property
    def parts(self) -> dict[str, str]:
        """What the fingerprint is made of, by node; empty where that is not known."""
        return dict(getattr(self.source, "parts", {}))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Paths of all nodes that LangGraph can tell without a run; empty for a remote graph."""
        found = graphs_by_path(self.graph) if self.graph is not None else {}
        return tuple(
            f"{path}/{node}" if path else node
            for path, sub in found.items()
            for node in sub.nodes
            if not node.startswith("__")
        )

    @property
    def lacking(self) -> str | None:
        """What the nodes miss by which they may fail, for people; None where nothing is known."""
        return self._context.lacking

    def unread(self, runs: Iterable[Run]) -> list[str]:
        """Return the trainable parameters that no execution of `runs` read."""
        read = {name for run in runs for e in run.executions for name in e.prompts}
        return [n for n, p in self.parameters.items() if p.requires_grad and n not in read]

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
        context = self._context.at(example).identity
        resume = example.metadata.get("resume")
        given = [] if context is None else [context]
        given += [] if resume is None else [{"resume": resume}]
        others = (getattr(b, "identity", None) for b in self.bindings if b is not self._context)
        given += [identity for identity in others if identity is not None]
        return digest(
            "run", self.fingerprint, dict(candidate), example.id, example.inputs, sample, *given
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
        kept = ledger_in_scope() is not None

        async def one(example: Example, ledger: Ledger) -> Run:
            async with room:
                run = await self._run(example, candidate, sample, ledger, kept=kept)
                if on_run is not None:
                    on_run(run)
                return run

        async with ledger_at_hand() as ledger:
            return await all_at_once(one(example, ledger) for example in examples)

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

    def example_of(self, run: Run) -> Example:
        """Return the example that `run` was recorded on, as it is; `run.example` may be masked."""
        return self._masked.get(id(run.example), run.example)

    async def areplay(self, run: Run, execution: Execution, reply: AIMessage) -> Run | None:
        """Return what `run` would have been, had the model last told `execution` `reply`.

        The example runs again with the texts that its nodes read then. What asks what it asked
        before is answered from the ledger in scope, so only what follows the reply is paid, as
        `proof`; code and tools run again. None when the execution did not come to ask again.
        Raises `ConfigurationError` without a ledger in scope.
        """
        ledger = ledger_in_scope()
        if ledger is None:
            raise ConfigurationError(
                "A run is replayed from the ledger that it was recorded in, and there is none in "
                "scope; record and replay inside `with tg.use_ledger(tg.Ledger()):`."
            )
        correction = Correction(run, execution, reply, ledger.redaction.value)
        read = {name: text for e in run.executions for name, text in e.prompts.items()}
        candidate = {**candidate_of(run.parameters or self.parameters), **read}
        scope = BoundaryScope(ledger, "proof", run.sample, correction=correction)
        said = [reply.content, [dict(call) for call in reply.tool_calls]]
        run_id = digest("replay", run.id, execution.id, said)[:32]
        replayed = await self._record(self.example_of(run), candidate, run_id, scope)
        return replayed if correction.said else None

    def replay(self, run: Run, execution: Execution, reply: AIMessage) -> Run | None:
        """`areplay` for sync code."""
        return run_sync(self.areplay(run, execution, reply))

    async def _run(
        self, example: Example, candidate: Candidate, sample: int, ledger: Ledger, *, kept: bool
    ) -> Run:
        run_id = self.run_id(example, candidate, sample)
        store = ledger.store if kept else None
        if store is not None and (known := await store.aget_run(run_id, example)) is not None:
            ledger.account.note(known.usage.saved, "rollout")
            return self._shown(replace(known, parameters=self.parameters), example, ledger)
        scope = BoundaryScope(ledger, sample=sample)
        run = await self._record(example, candidate, run_id, scope)
        if store is not None and not run.provisional:
            await store.aput_run(run)
        return run

    async def _record(
        self, example: Example, candidate: Candidate, run_id: str, scope: BoundaryScope
    ) -> Run:
        scope.tools = ToolDesk(scope.ledger, self.tools, example)
        started = time.monotonic()
        context = self._context
        bindings = [context.at(example) if b is context else b for b in self.bindings]
        # A replay has words for a model's mouth, which do not travel.
        elsewhere = self.executor if scope.correction is None else None
        recorded = await (elsewhere or self.source).arun(example, candidate, bindings, scope)
        if scope.failure is not None:
            raise scope.failure
        failed = (e.id for e in reversed(recorded.executions) if e.error)
        run = Run(
            id=run_id,
            example=example,
            candidate=candidate_hash(candidate),
            outputs=recorded.outputs,
            executions=with_readers(recorded.executions, bindings, candidate),
            error=recorded.error,
            failed_in=next(failed, None) if recorded.error else None,
            usage=scope.usage,
            seconds=time.monotonic() - started,
            sample=scope.sample,
            warnings=recorded.warnings,
            accumulating=recorded.accumulating,
            parameters=self.parameters,
            provisional=scope.lost,
        )
        return self._shown(scope.ledger.redaction.run(run), example, scope.ledger)

    def _shown(self, run: Run, example: Example, ledger: Ledger) -> Run:
        """Return the run with its example as it may be known; a replay needs it as it is."""
        shown = ledger.redaction.example(example)
        if shown is example:
            return run
        self._masked[id(shown)] = example
        finalize(shown, self._masked.pop, id(shown), None).atexit = False
        return replace(run, example=shown)


def _named(parameters: Iterable[Parameter]) -> dict[str, Parameter]:
    named: dict[str, Parameter] = {}
    for parameter in parameters:
        if not isinstance(parameter, Parameter):
            raise ParameterError(
                f"Parameters must be lg_textgrad.Parameter objects, not "
                f"{type(parameter).__name__}; write Parameter('name', 'text')."
            )
        if parameter.name in named:
            raise _taken(parameter.name)
        named[parameter.name] = parameter
    return named


def _distinct(bindings: tuple[Binding, ...]) -> tuple[Binding, ...]:
    names: set[str] = set()
    for binding in bindings:
        for name in binding.parameters:
            if name in names:
                raise _taken(name)
            names.add(name)
    return bindings


def _taken(name: str) -> ParameterError:
    return ParameterError(
        f"Two parameters are named '{name}'; give each a name of its own.", parameter=name
    )


def _names(names: Iterable[str]) -> str:
    found = [f"'{n}'" for n in names]
    return ", ".join(found) if found else "none"


def as_examples(batch: Iterable[Example | Mapping[str, Any]]) -> list[Example]:
    """Return the rows as Examples. A dict has `inputs`, and may have `outputs`, `metadata`, `id`.

    Raises `DataError` for a row that has no `inputs`, and for what is no rows but one, or a file.
    """
    if isinstance(batch, (str, Path, Mapping)):
        # What a row says is the user's, and stays out of errors.
        given = "one row" if isinstance(batch, Mapping) else repr(str(batch))
        raise DataError(
            f"Examples are a list of rows, not {given}; read a file with "
            "tg.read_examples(PATH), and put a row into a list."
        )
    return [
        row
        if isinstance(row, Example)
        else example_from(row, f"example {number}", f"row {number}")
        for number, row in enumerate(batch)
    ]
