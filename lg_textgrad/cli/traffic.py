"""The command line's options for what is paid, what tools do and what may be known."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from rich.console import Console

from lg_textgrad.errors import LGTextGradError, RedactionError
from lg_textgrad.executors import make_executor
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.ledger import Ledger, account_of
from lg_textgrad.loading import Config, load_graph
from lg_textgrad.recording.structure import graphs_by_path
from lg_textgrad.redaction import Redaction
from lg_textgrad.result import Spent
from lg_textgrad.store import Store


def add_limits(command: argparse.ArgumentParser) -> None:
    """Add what may change between the sessions of one run."""
    command.add_argument("--budget-usd", type=float, metavar="X", help="cap in dollars")
    command.add_argument(
        "--price", metavar="MODEL=IN,OUT", action="append", help="dollars per million tokens"
    )
    command.add_argument(
        "--executor", metavar="local|ray[:ADDRESS]", help="where runs of the graph are made"
    )


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what belongs to a run."""
    command.add_argument("--tools", metavar="MODE", help="live, record, replay, replay-else-live")
    command.add_argument("--tool", metavar="NAME=MODE", action="append", help="for one of them")
    command.add_argument("--redact", metavar="MODULE:FN", help="sees every text before it is kept")


def shown(redaction: Redaction, error: LGTextGradError) -> str:
    """Return what an error says, as it may be known."""
    if isinstance(error, RedactionError):  # the hook would only fail again
        redaction = Redaction()
    return redaction.text(str(error))


def graph_of(config: Config) -> TrainableGraph:
    """Return the graph that a configuration names, with its tools as they are set."""
    graph = load_graph(config.graph)
    graph.tools = config.tools_of(graph.tools)
    return graph


def tell_tools(people: Console, graph: TrainableGraph) -> None:
    """Say, before the first run, which tools have a mode and are in no ToolNode of the graph.

    A slip in a name leaves the tool with the default mode, which may send what was to be replayed.
    """
    subgraphs = graphs_by_path(graph.graph).values() if graph.graph is not None else ()
    nodes = [node for sub in subgraphs for node in sub.nodes.values()]
    has = {name for node in nodes for name in getattr(node.bound, "tools_by_name", ())}
    unknown = sorted({*graph.tools.modes, *graph.tools.shared} - has)
    if has and unknown:
        people.print(
            f"No ToolNode of the graph has {', '.join(unknown)}, which the settings of tools name; "
            f"there are {', '.join(sorted(has))}.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def executor_of(config: Config, graph: TrainableGraph) -> AbstractContextManager[Any]:
    """Return where runs of the graph are made, as a context to enter before the first one."""
    return make_executor(config.executor, config.executor_options, graph, config.graph)


def reused(config: Config, held: ExitStack) -> Store | None:
    """Return the store of the run whose results are taken; None where there is none."""
    return held.enter_context(Store(config.reuse, read_only=True)) if config.reuse else None


def ledger_of(
    config: Config, redaction: Redaction, store: Store, reuse: Store | None
) -> Ledger:
    """Return a ledger on the store, under the configuration's limits."""
    return Ledger(
        store,
        account_of(store, config.budget),
        max_concurrency=config.max_concurrency,
        reuse=reuse,
        patience=config.patience,
        redaction=redaction,
    )


def spent_of(ledger: Ledger) -> Spent:
    """Return what went through a ledger."""
    account = ledger.account
    faults = dict(ledger.traffic.faults)
    return Spent(
        account.spent, account.by_kind, account.elapsed, faults, account.prices.unknown
    )
