"""`local serve`: the embedded model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lg_textgrad.cli.output import write_json
from lg_textgrad.cli.status import DONE

if TYPE_CHECKING:
    from lg_textgrad.models.local import Local


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the command that serves."""
    local = add("local", _local, "serve the embedded model on loopback, until Ctrl-C")
    local.add_argument("action", choices=["serve"])
    local.add_argument("--port", type=int, help="a free one when not given")


def _local(options: argparse.Namespace, people: Console) -> int:
    from lg_textgrad.models.local import serve
    from lg_textgrad.models.model_file import rich_progress

    def ready(local: Local) -> None:
        people.print(f"Serving {local.model} at {local.base_url} until Ctrl-C.", markup=False)
        if options.json:
            write_json(options, {"base_url": local.base_url, "model": local.model}, indent=None)

    with rich_progress(people) as progress:
        serve(port=options.port, on_ready=ready, progress=progress)
    return DONE
