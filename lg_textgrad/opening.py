"""Give a graph the prompts that only a run of it can show, once for each run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lg_textgrad._hashing import digest
from lg_textgrad._sync import run_sync
from lg_textgrad.bindings.discovered import Finding
from lg_textgrad.budget import Budget
from lg_textgrad.discovery import FOUND, find_in
from lg_textgrad.errors import (
    BudgetExceededError,
    BudgetTooSmallError,
    GraphError,
    RunMismatchError,
)
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.ledger import Ledger, account_of, use_ledger
from lg_textgrad.loading import Config
from lg_textgrad.redaction import Redaction
from lg_textgrad.run import Example
from lg_textgrad.store import Store
from lg_textgrad.traffic import Patience

ROWS = 3
"""Inputs that discovery runs the graph on, unless the user says otherwise."""
_KEPT = "discovered"


def wants_discovery(graph: TrainableGraph, asked: bool | None) -> bool:
    """Return whether to look for prompts: as asked, else where the graph holds none itself."""
    return not graph.parameters if asked is None else asked


async def awith_discovered(
    graph: TrainableGraph,
    inputs: Sequence[Example],
    store: Store,
    *,
    tools: bool = False,
    budget: Budget | None = None,
    max_concurrency: int = 8,
    reuse: Store | None = None,
    patience: Patience | None = None,
    redaction: Redaction | None = None,
) -> TrainableGraph:
    """Return `graph` with the prompts that its nodes send when it runs on `inputs`.

    They are found once for each store, and come from there ever after, so that a run that goes on
    has the same parameters. With `tools` they include the descriptions of tools. Cost: the graph's
    own model calls on the inputs, paid under the store's budget. Raises `BudgetTooSmallError` when
    that ends first, `GraphError` when there is nothing to tune, `RunMismatchError` for a run that
    was begun without discovery.
    """
    asked = digest("discovery", graph.fingerprint, [e.inputs for e in inputs], tools)
    kept = _found_before(graph, store, asked)
    if kept is not None:
        return kept
    account = account_of(store, budget or Budget())
    ledger = Ledger(store, account, max_concurrency, reuse, patience, redaction)
    try:
        with use_ledger(ledger):
            discovery = await find_in(graph, inputs, tools=tools)
    except BudgetExceededError as reached:
        raise BudgetTooSmallError(
            f"The budget does not cover the runs in which the graph's prompts are found: {reached}",
            limit=reached.limit,
        ) from None
    finally:
        await ledger.aclose()
        store.put_meta("elapsed", account.elapsed)
    found = discovery.bindings
    opened = graph.holding(*found)
    if not opened.parameters:
        raise GraphError(
            f"The graph sent no prompt that can be tuned in {len(inputs)} runs: "
            f"{reasons(opened.found)}. Declare a Parameter, or give inputs that reach its "
            "model-calling nodes."
        )
    plain = {type(binding).__name__: binding.to_plain() for binding in found}
    calls = [sum(len(e.model_calls) for e in run.executions) for run in discovery.runs]
    store.put_meta("calls_a_run", max(calls))  # the trainer's estimate begins with it
    store.put_meta("discovery_calls", account.spent.calls)  # that is spent before it, as well
    store.put_meta(_KEPT, {"asked": asked, "found": plain})
    return opened


def _found_before(
    graph: TrainableGraph, store: Store, asked: str | None = None
) -> TrainableGraph | None:
    """Return the graph with what the store has for it; None where discovery has yet to be made.

    Of a run that has begun, whatever else has changed since is for the trainer to tell.
    """
    kept = store.get_meta(_KEPT)
    begun = store.get_meta("configuration") is not None
    if kept is not None and (begun or kept["asked"] == asked):
        return graph.holding(*(FOUND[n].from_plain(b) for n, b in kept["found"].items()))
    if begun:
        raise RunMismatchError(
            f"The run in '{store.where}' was begun without discovery, so it has other parameters. "
            "Set discover = false to go on, or start a new run with another --out."
        )
    return None


def with_discovered(
    graph: TrainableGraph,
    inputs: Sequence[Example],
    store: Store,
    *,
    tools: bool = False,
    budget: Budget | None = None,
    max_concurrency: int = 8,
    reuse: Store | None = None,
    patience: Patience | None = None,
    redaction: Redaction | None = None,
) -> TrainableGraph:
    """`awith_discovered` for sync code."""
    return run_sync(
        awith_discovered(
            graph,
            inputs,
            store,
            tools=tools,
            budget=budget,
            max_concurrency=max_concurrency,
            reuse=reuse,
            patience=patience,
            redaction=redaction,
        )
    )


def open_graph(
    graph: TrainableGraph,
    config: Config,
    rows: Callable[[], Sequence[Example]],
    store: Store,
    *,
    reuse: Store | None = None,
    redaction: Redaction | None = None,
) -> TrainableGraph:
    """Return `graph`, or it with its prompts found, as the configuration of a run says.

    `rows` gives inputs, where they are needed. Call it where the graph can run: its models at hand,
    the store open. `with_discovered` says what it costs and raises.
    """
    if not wants_discovery(graph, config.discover):
        return graph
    kept = _found_before(graph, store)
    if kept is not None:
        return kept
    store.put_meta("command", config.kept())  # what this pays for can be gone on with
    return with_discovered(
        graph,
        rows()[: config.discover_rows],
        store,
        tools=config.discover_tools,
        budget=config.budget,
        max_concurrency=config.max_concurrency,
        reuse=reuse,
        patience=config.patience,
        redaction=redaction,
    )


def reasons(findings: Iterable[Finding]) -> str:
    """Return why the nodes have no prompt that can be tuned, in one line."""
    missing = dict.fromkeys((f.node, f.why) for f in findings if f.parameter is None)
    said = [f"{node}: {why}" if node else why for node, why in missing]
    return "; ".join(said) or "no node calls a chat model"
