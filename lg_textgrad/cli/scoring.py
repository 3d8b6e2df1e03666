"""`evaluate`: scores without training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from lg_textgrad import _render, inspecting
from lg_textgrad.cli import langsmith, traffic
from lg_textgrad.cli.options import add_settings
from lg_textgrad.cli.output import write_json
from lg_textgrad.cli.settings import (
    configured,
    first_rows,
    inputs_at_hand,
    made_model,
    made_objective,
)
from lg_textgrad.cli.status import DONE, FAILED
from lg_textgrad.data import read_prompts
from lg_textgrad.ledger import use_ledger
from lg_textgrad.loading import load_redact
from lg_textgrad.noticing import counted
from lg_textgrad.opening import open_graph
from lg_textgrad.redaction import Redaction
from lg_textgrad.store import Store


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the command that scores."""
    evaluate = add("evaluate", _evaluate, "score the prompts, without training")
    add_settings(evaluate)
    langsmith.add_dataset(evaluate)
    evaluate.add_argument("--prompts", help="prompts file to score instead of the graph's own")
    evaluate.add_argument("--split", default="test", choices=("train", "val", "test"))
    evaluate.add_argument(
        "--at-least", type=_share, metavar="X", help="fail (status 1) where the score is lower"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score is a number from 0 to 1, not {text!r}")
    return value


def _evaluate(options: argparse.Namespace, people: Console) -> int:
    config = configured(options)
    config.check(needs=("graph", options.split, "evaluator"))
    redaction = options.redaction = Redaction(load_redact(config.redact))
    graph, objective = traffic.graph_of(config), made_objective(config)
    traffic.tell_tools(people, graph)
    traffic.executor_of(config, graph)  # made once more for the graph with its prompts
    prompts = read_prompts(options.prompts) if options.prompts else {}
    rows = first_rows(getattr(config, options.split), getattr(config, f"{options.split}_rows"))
    if not rows:
        rows = langsmith.rows_of(config, options.split)
    with ExitStack() as held:
        if config.model == "local":  # the graph may rely on it
            made_model(config, "local", people, held)
        store = held.enter_context(Store())
        reuse = traffic.reused(config, held)
        if prompts:  # else there is nothing to put in place of what is found
            given = {"train": first_rows(config.train, config.train_rows), "val": rows}
            graph = open_graph(
                graph,
                config,
                lambda: inputs_at_hand(config, given),
                store,
                reuse=reuse,
                redaction=redaction,
            )
            inspecting.tell_found(people, graph)
        held.enter_context(traffic.executor_of(config, graph))
        ledger = traffic.ledger_of(config, redaction, store, reuse)
        with use_ledger(ledger), people.status(
            f"scoring {counted(len(rows), f'{options.split} example')}"
        ):
            loss = objective(graph.record(rows, prompts=prompts))
            summary = {f.key: f.score for f in objective.summarize(loss.scored)}
    _render.show_scores(people, options.split, loss, summary)
    failed = sum(bool(s.run.error) for s in loss.scored)
    spent = traffic.spent_of(ledger)
    _render.show_spent(people, spent)
    low = options.at_least is not None and loss.score < options.at_least - 1e-9
    if low:
        people.print(
            f"The {options.split} score is {loss.score:.3f}, below --at-least {options.at_least}."
        )
    if options.json:
        document = {
            "split": options.split, "score": loss.score, "feedback": loss.by_key,
            "rows": len(rows), "failed": failed,
            "spent": spent.to_json(),
            **({"summary": summary} if summary else {}),
        }  # fmt: skip
        if options.at_least is not None:
            document |= {"at_least": options.at_least, "passed": not low}
        write_json(options, document)
    return FAILED if low or failed == len(rows) else DONE
