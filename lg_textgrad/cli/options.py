"""Options that several commands take."""

from __future__ import annotations

import argparse

from lg_textgrad.assembly import ACCEPTANCE, CRITICS, OPTIMIZERS
from lg_textgrad.cli import traffic
from lg_textgrad.opening import ROWS


def add_inputs(command: argparse.ArgumentParser) -> None:
    """Add what a look at a graph may run it on."""
    command.add_argument(
        "--inputs", metavar="FILE", help="JSONL examples: run the graph to see who reads what"
    )
    command.add_argument(
        "--rows", type=int, metavar="N", default=ROWS, help="run the first N of them (%(default)s)"
    )
    add_discover(command)
    command.add_argument(
        "--local", action="store_true", help="start the embedded model, for a graph that uses it"
    )


def add_discover(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--discover", action=argparse.BooleanOptionalAction, default=None,
        help="find prompts by running the graph, beside declared ones too (else if there are none)",
    )  # fmt: skip
    command.add_argument(
        "--discover-tools", action="store_true", default=None, help="and descriptions of tools"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", nargs="?", metavar="CONFIG.toml")
    command.add_argument("--graph", metavar="MODULE:GRAPH")
    for name in ("train", "val", "test"):
        command.add_argument(f"--{name}", metavar="FILE", help="JSONL examples")
        command.add_argument(f"--{name}-rows", type=int, metavar="N", help="use the first N rows")
    add_discover(command)
    command.add_argument("--discover-rows", type=int, metavar="N", help="rows of train for that")
    command.add_argument("--evaluator", metavar="MODULE:FN", action="append")
    command.add_argument("--model", help="critic and rewriter; 'local' is the embedded model")
    command.add_argument("--rewriter-model", metavar="NAME")
    command.add_argument("--api-key-env", metavar="VAR", help="variable that holds the API key")
    command.add_argument("--critic", choices=CRITICS, help="how blame is given; 'node' by default")
    command.add_argument(
        "--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)}, or MODULE:CLASS"
    )
    command.add_argument(
        "--optimizer-option", metavar="NAME=VALUE", action="append", help="one of its settings"
    )
    for name in ("steps", "batch-size", "seed"):
        command.add_argument(f"--{name}", type=int, metavar="N")
    add_limits(command)
    traffic.add_options(command)
    command.add_argument(
        "--min-gain", type=float, metavar="X", help="how much better a candidate must be on val"
    )
    command.add_argument(
        "--acceptance", choices=ACCEPTANCE, help="what is kept; 'better' by default"
    )
    command.add_argument(
        "--brief-critic", action="store_true", default=None, help="for small critic models"
    )
    command.add_argument(
        "--reuse", metavar="RUN_DIR", help="take model results that this run has paid for"
    )
    command.add_argument(
        "--reference", metavar="FILE", help="prompts file to score beside the result"
    )


def add_limits(command: argparse.ArgumentParser) -> None:
    """Add what may change between the sessions of one run."""
    for name in ("budget-calls", "budget-tokens", "max-concurrency", "retries"):
        command.add_argument(f"--{name}", type=int, metavar="N")
    for name in ("budget-seconds", "call-timeout"):
        command.add_argument(f"--{name}", type=float, metavar="S")
    command.add_argument("--base-url", metavar="URL", help="address of the critic's model server")
    traffic.add_limits(command)
