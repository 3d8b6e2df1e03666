"""The command line: arguments and printing only."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lg_textgrad._version import __version__
from lg_textgrad.cli import langsmith, looking, results, scoring, serving, traffic, training
from lg_textgrad.cli.line import Line
from lg_textgrad.cli.output import Screen, own_output
from lg_textgrad.cli.status import BAD_INPUT, DONE, FAILED, RESUMABLE, SMALL_BUDGET, status_of
from lg_textgrad.errors import LGTextGradError
from lg_textgrad.recording.isolation import untraced_process
from lg_textgrad.redaction import Redaction
from lg_textgrad.sessions import resumable
from lg_textgrad.store import without_password

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RESUMABLE", "SMALL_BUDGET", "main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 done, 1 failed, 2 bad configuration or input, 3 budget too small for the baseline, 4 stopped
    and resumable.
    """
    options = parser().parse_args(arguments)
    people = Screen(stderr=True)
    options.redaction = Redaction()
    try:
        with untraced_process(), own_output() as options.output:
            return int(options.command(options, people))
    except KeyboardInterrupt:
        people.print("\n[yellow]Stopped.[/yellow]", highlight=False)
        _how_to_resume(options, people)
        return RESUMABLE
    except LGTextGradError as error:
        people.print("[red]Error:[/red]", end=" ")
        said = traffic.shown(options.redaction, error)
        people.print(said, markup=False, highlight=False, soft_wrap=True)
        status = status_of(error)
        if status in (FAILED, RESUMABLE):
            _how_to_resume(options, people)
        return status


def _how_to_resume(options: argparse.Namespace, people: Console) -> None:
    if not getattr(options, "trains", False):
        return
    run_dir = getattr(options, "run_dir", None) or options.out
    if not (run_dir and resumable(run_dir)):
        return
    said = "Run the same command again; what is stored is not paid for again."
    if options.begun:  # before that, the directory does not know how to go on
        said = (
            "What is stored is not paid for again. Go on with: "
            f"lg-textgrad resume {shlex.quote(without_password(run_dir))}"
        )
    people.print(said, markup=False, highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the `command` of what it parses runs the one given."""
    top = Line(
        prog="lg-textgrad",
        description="Tune the prompts of a LangGraph agent by backpropagation through text.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument(
            "--json", action="store_true", help="one JSON object on standard output"
        )
        return command

    for module in (looking, training, scoring, results, langsmith, serving):
        module.add_commands(add)
    return top
