"""Find the prompts of a graph as it is, by running it: `discover(graph, inputs)`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langgraph.pregel import Pregel

from lg_textgrad._sync import all_at_once, run_sync
from lg_textgrad.bindings.base import Binding, with_readers
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.bindings.context import ContextBinding
from lg_textgrad.bindings.discovered import Discovered, Finding, texts_of
from lg_textgrad.bindings.finding import Template, find_prompts, names_of, templates_in
from lg_textgrad.bindings.patching import path_here
from lg_textgrad.bindings.rewriting import rewriting
from lg_textgrad.bindings.tools import DiscoveredTools, NotesTools, Offered, find_tools
from lg_textgrad.errors import DataError, GraphError
from lg_textgrad.graph import TrainableGraph, as_examples
from lg_textgrad.ledger import Ledger, ledger_at_hand
from lg_textgrad.parameter import Parameter
from lg_textgrad.recording.base import Recorded
from lg_textgrad.recording.live import LiveSource
from lg_textgrad.recording.structure import AnyGraph
from lg_textgrad.run import Example, Execution

logger = logging.getLogger("lg_textgrad")

FOUND: Mapping[str, type[Discovered | DiscoveredTools]] = {
    binding.__name__: binding for binding in (Discovered, DiscoveredTools)
}
"""What discovery finds, by the name under which it is stored and travels."""

_OF_A_STORE = re.compile(
    "'NoneType' object has no attribute 'a?(get|put|search|delete|batch|list_namespaces)'"
)


_elsewhere: ContextVar[Sequence[Binding] | None] = ContextVar(
    "lg_textgrad_discovered_elsewhere", default=None
)


@contextmanager
def discovered_elsewhere(bindings: Sequence[Binding]) -> Iterator[None]:
    """Have `discover` run nothing inside, and find what `bindings` hold: another process ran it."""
    token = _elsewhere.set(bindings)
    try:
        yield
    finally:
        _elsewhere.reset(token)


async def adiscover(
    graph: AnyGraph,
    inputs: Iterable[Example | Mapping[str, Any]],
    *,
    parameters: Iterable[Parameter] = (),
    bindings: Iterable[Binding] = (),
    context: Any = None,
    context_prompts: Iterable[str | Parameter] | None = None,
    tools: bool = False,
) -> TrainableGraph:
    """Run `graph` on each of `inputs` and return it with the prompts that it sent as parameters.

    Inputs are Examples, dicts with `inputs`, or plain inputs of the graph; two that differ are
    needed to tell a template from a constant text. With `tools`, the descriptions of the tools that
    it offered to its models, and of their arguments, are parameters too: `NODE.tools.TOOL` and
    `NODE.tools.TOOL.ARGUMENT`. The other arguments are `TrainableGraph`'s, and prompts that they
    hold already are not found again. `graph.found` says what was found, what was
    not, and why. The graph itself stays as it is.

    Cost: the graph's own model calls on these inputs, those in the ledger's store for nothing.
    Raises `GraphError` when no run gets through, `DataError` without inputs.
    """
    plain = TrainableGraph(
        graph, parameters, bindings=bindings, context=context, context_prompts=context_prompts
    )
    elsewhere = _elsewhere.get()
    if elsewhere is not None:
        return plain.holding(*elsewhere)
    found = await find_in(plain, inputs, tools=tools)
    return plain.holding(*found.bindings)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What runs of a graph showed of its prompts."""

    bindings: tuple[Discovered | DiscoveredTools, ...]
    examples: tuple[Example, ...]
    runs: tuple[Recorded, ...]
    """The run of each example, as it was before anything was held: its executions name those
    prompts that the graph held already, and those that were found."""


async def find_in(
    plain: TrainableGraph,
    inputs: Iterable[Example | Mapping[str, Any]],
    *,
    tools: bool = False,
) -> Discovery:
    """Run `plain` on each of `inputs` and return what it sent besides the prompts that it holds.

    `adiscover` says what it costs and raises.
    """
    graph = plain.graph
    if not isinstance(graph, Pregel):
        raise GraphError(
            "Discovery runs the graph in this process; give what StateGraph(...).compile() "
            "returns, or declare the parameters of a graph that runs elsewhere."
        )
    examples = as_examples(_row(row) for row in inputs)
    if not examples:
        raise DataError("Discovery needs at least one input to run the graph on, better two.")
    began = datetime.now(UTC)
    async with ledger_at_hand() as ledger:
        done = await all_at_once(_run(graph, plain, example, ledger) for example in examples)
    runs = [one.run for one in done]
    failures = [_failure(run) for run in runs if run.error]
    for (node, why), number in Counter((f.node, f.why) for f in failures).items():
        where = f" in '{node}'" if node else ""
        logger.warning("In discovery, %d of %d: %s%s", number, len(runs), why, where)
    if len(failures) == len(runs):
        raise GraphError(
            f"The graph failed on every input that it was given to discover its prompts: "
            f"{failures[0].why}. {_advice(plain, failures[0].why)}"
        )
    top = None if graph.name == "LangGraph" else graph.name
    found, findings = find_prompts(
        [run.executions for run in runs],
        [template for one in done for template in one.notes.templates],
        plain.parameters,
        top,
        (began, datetime.now(UTC)),
        {sent: agent for one in done for sent, agent in one.notes.agents.items()},
    )
    bindings: list[Discovered | DiscoveredTools] = [
        Discovered(found, [*findings, *failures, *_not_reached(plain, runs)])
    ]
    if tools:
        nodes = dict.fromkeys(e.path for run in runs for e in run.executions if e.model_calls)
        taken = [*plain.parameters, *(one.name for one in found)]
        bindings.append(
            DiscoveredTools(
                *find_tools([one.tools for one in done], names_of(list(nodes), top), taken)
            )
        )
    noted = [
        replace(run, executions=[_noted(execution, bindings) for execution in run.executions])
        for run in runs
    ]
    return Discovery(tuple(bindings), tuple(examples), tuple(noted))


def _advice(plain: TrainableGraph, why: str) -> str:
    if plain.lacking is not None:
        return plain.lacking
    if getattr(plain.graph, "store", None) is None and _OF_A_STORE.search(why):
        return (
            "Its nodes may miss a store, which LangGraph's server gives every graph: name the "
            "graph by its langgraph.json (FILE.json:NAME), or give a store where it is compiled."
        )
    return "Correct the graph or the inputs."


def _noted(execution: Execution, bindings: Iterable[Discovered | DiscoveredTools]) -> Execution:
    """Return the execution with what it sent, as a run under the bindings would note it."""
    sent = {name: text for binding in bindings for name, text in binding.sent_by(execution)}
    return replace(execution, prompts={**execution.prompts, **sent}) if sent else execution


def _not_reached(plain: TrainableGraph, runs: Iterable[Recorded]) -> Iterator[Finding]:
    """Yield the nodes that no run came to; of a subgraph that was not entered, only itself."""
    ran = {execution.path for run in runs for execution in run.executions}
    for node in plain.nodes:
        outer = node.rpartition("/")[0]
        if node not in ran and (not outer or outer in ran):
            yield Finding(node, None, "no run reached it; give inputs that lead there")


def discover(
    graph: AnyGraph,
    inputs: Iterable[Example | Mapping[str, Any]],
    *,
    parameters: Iterable[Parameter] = (),
    bindings: Iterable[Binding] = (),
    context: Any = None,
    context_prompts: Iterable[str | Parameter] | None = None,
    tools: bool = False,
) -> TrainableGraph:
    """`adiscover` for sync code."""
    return run_sync(
        adiscover(
            graph,
            inputs,
            parameters=parameters,
            bindings=bindings,
            context=context,
            context_prompts=context_prompts,
            tools=tools,
        )
    )


@dataclass(frozen=True, slots=True)
class _Done:
    """One run of discovery."""

    run: Recorded
    notes: _Notes
    tools: list[Offered]


class _Notes(BaseCallbackHandler):
    """Notes the prompt templates that run, and where, and which agent sends what."""

    run_inline = True

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self.agents: dict[tuple[str, str], str] = {}
        """Path of the node and text of a system message -> name of the `create_agent` agent."""

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,  # noqa: ARG002
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        name = (metadata or {}).get("lc_agent_name")
        for message in (m for batch in messages for m in batch if name and m.type == "system"):
            for text in texts_of(message.content):
                self.agents[path_here(metadata), text] = str(name)

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,  # noqa: ARG002
        *,
        run_id: UUID,  # noqa: ARG002
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("run_type") == "prompt":
            self.templates.extend(templates_in(serialized, path_here(metadata)))


async def _run(
    graph: AnyGraph, plain: TrainableGraph, example: Example, ledger: Ledger
) -> _Done:
    # Not through `arecord`: a run that the store has already would show no templates.
    notes, tools, candidate = _Notes(), NotesTools(), plain.candidate()
    scope = BoundaryScope(ledger)
    source = LiveSource(graph, callbacks=[notes])
    bindings = [b.at(example) if isinstance(b, ContextBinding) else b for b in plain.bindings]
    with rewriting(tools):
        recorded = await source.arun(example, candidate, bindings, scope)
    if scope.failure is not None:
        raise scope.failure
    noted = replace(
        recorded, executions=with_readers(recorded.executions, bindings, candidate)
    )
    return _Done(noted, notes, tools.found)


def _failure(run: Recorded) -> Finding:
    failed = [e.path for e in run.executions if e.error]
    return Finding(failed[-1] if failed else "", None, f"a run failed: {run.error}")


def _row(row: Example | Mapping[str, Any]) -> Example | Mapping[str, Any]:
    if isinstance(row, Mapping) and not isinstance(row.get("inputs"), Mapping):
        return {"inputs": row}
    return row
