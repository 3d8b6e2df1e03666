"""Give a graph the prompts that only a run of it can show, once for each run directory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from lg_textgrad._hashing import digest
from lg_textgrad._sync import run_sync
from lg_textgrad.bindings.discovered import Discovered, Finding
from lg_textgrad.budget import Budget
from lg_textgrad.discovery import find_in
from lg_textgrad.errors import (
    BudgetExceededError,
    BudgetTooSmallError,
    GraphError,
    RunMismatchError,
)
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.ledger import Ledger, account_of, use_ledger
from lg_textgrad.loading import Config
from lg_textgrad.run import Example
from lg_textgrad.store import Store

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
    budget: Budget | None = None,
    max_concurrency: int = 8,
    reuse: Store | None = None,
) -> TrainableGraph:
    """Return `graph` with the prompts that its nodes send when it runs on `inputs`.

    They are found once for each store, and come from there ever after, so that a run that goes on
    has the same parameters. Cost: the graph's own model calls on the inputs, paid under the store's
    budget. Raises `BudgetTooSmallError` when that ends first, `GraphError` when there is nothing
    to tune, `RunMismatchError` for a run that was begun without discovery.
    """
    begun = store.get_meta("configuration") is not None
    asked = digest("discovery", graph.fingerprint, [e.inputs for e in inputs])
    kept = store.get_meta(_KEPT)
    # Of a run that has begun, whatever else has changed since is for the trainer to tell.
    if kept is not None and (begun or kept["asked"] == asked):
        return graph.holding(Discovered.from_plain(kept["prompts"]))
    if begun:
        raise RunMismatchError(
            f"The run directory '{store.directory}' was begun without discovery, so it has other "
            "parameters. Set discover = false to go on, or start a new run with another --out."
        )
    account = account_of(store, budget or Budget())
    ledger = Ledger(store, account, max_concurrency, reuse)
    try:
        with use_ledger(ledger):
            binding = (await find_in(graph, inputs)).binding
    except BudgetExceededError as reached:
        raise BudgetTooSmallError(
            f"The budget does not cover the runs in which the graph's prompts are found: {reached}",
            limit=reached.limit,
        ) from None
    finally:
        await ledger.aclose()
        store.put_meta("elapsed", account.elapsed)
    opened = graph.holding(binding)
    if not opened.parameters:
        raise GraphError(
            f"The graph sent no prompt that can be tuned in {len(inputs)} runs: "
            f"{reasons(binding.findings)}. Declare a Parameter, or give inputs that reach its "
            "model-calling nodes."
        )
    store.put_meta(_KEPT, {"asked": asked, "prompts": binding.to_plain()})
    return opened


def with_discovered(
    graph: TrainableGraph,
    inputs: Sequence[Example],
    store: Store,
    *,
    budget: Budget | None = None,
    max_concurrency: int = 8,
    reuse: Store | None = None,
) -> TrainableGraph:
    """`awith_discovered` for sync code."""
    return run_sync(
        awith_discovered(
            graph,
            inputs,
            store,
            budget=budget,
            max_concurrency=max_concurrency,
            reuse=reuse,
        )
    )


def open_graph(
    graph: TrainableGraph,
    config: Config,
    train: Sequence[Example],
    store: Store,
    reuse: Store | None = None,
) -> TrainableGraph:
    """Return `graph`, or it with its prompts found, as the configuration of a run says.

    Call it where the graph can run: its models at hand, the store open. `with_discovered` says what
    it costs and raises.
    """
    if not wants_discovery(graph, config.discover):
        return graph
    if store.get_meta("configuration") is None:  # what this pays for can be gone on with
        store.put_meta("command", asdict(config))
    return with_discovered(
        graph,
        train[: config.discover_rows],
        store,
        budget=Budget(config.budget_calls, config.budget_tokens, config.budget_seconds),
        max_concurrency=config.max_concurrency,
        reuse=reuse,
    )


def reasons(findings: Iterable[Finding]) -> str:
    """Return why the nodes have no prompt that can be tuned, in one line."""
    missing = dict.fromkeys((f.node, f.why) for f in findings if f.parameter is None)
    said = [f"{node}: {why}" if node else why for node, why in missing]
    return "; ".join(said) or "no node calls a chat model"
