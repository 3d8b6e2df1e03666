"""`init` and `inspect`: a look at a graph, before it is tuned."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from lg_textgrad import inspecting
from lg_textgrad.cli.options import add_inputs
from lg_textgrad.cli.output import console, write, write_json
from lg_textgrad.cli.settings import first_rows, made_model
from lg_textgrad.cli.status import DONE
from lg_textgrad.errors import ConfigurationError, ModelUnreachableError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.loading import Config, config_text, load_graph, write_text
from lg_textgrad.opening import wants_discovery


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the commands that a graph is enough for."""
    init = add("init", _init, "write a commented optimize.toml for a graph of yours")
    init.add_argument("graph", metavar="MODULE:GRAPH")
    init.add_argument("--out", default="optimize.toml", help="file to write (%(default)s)")
    add_inputs(init)
    inspect = add("inspect", _inspect, "draw a graph and show each trainable prompt")
    inspect.add_argument("graph", metavar="MODULE:GRAPH")
    add_inputs(inspect)
    inspect.add_argument("--mermaid", action="store_true", help="print the drawing as Mermaid text")


def _init(options: argparse.Namespace, people: Console) -> int:
    target = Path(options.out)
    if target.exists():
        raise ConfigurationError(f"'{target}' is there already; give another --out.")
    given = load_graph(options.graph)
    with ExitStack() as held:
        looked = _inspected(given, options, people, held)
    graph = looked.graph
    discover = wants_discovery(given, options.discover)
    text = config_text(target.name, options.graph, graph, discover=discover)
    write_text(target, text)
    said = inspecting.written(target.name, looked, discover=discover)
    people.print(said, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        document = {"parameters": list(graph.parameters), "discover": discover}
        write_json(options, {"out": str(target), **document}, indent=None)
    return DONE


def _inspect(options: argparse.Namespace, people: Console) -> int:
    graph = load_graph(options.graph)
    with ExitStack() as held:
        looked = _inspected(graph, options, people, held)
    document = inspecting.document(options.graph, looked)
    if options.json:
        write_json(options, document)
    elif options.mermaid:
        write(options, document["mermaid"] or "")
    else:
        inspecting.show(console(options), looked, document)
    return DONE


@contextmanager
def _hinting(options: argparse.Namespace) -> Iterator[None]:
    """Say how to start the embedded model, where it may be the one that did not answer."""
    try:
        yield
    except ModelUnreachableError as error:
        if options.local:
            raise
        raise ModelUnreachableError(
            f"{error} If the graph asks the embedded model, add --local, which starts it.",
            fault=error.fault,
        ) from None


def _inspected(
    graph: TrainableGraph, options: argparse.Namespace, people: Console, held: ExitStack
) -> inspecting.Inspected:
    """Run the graph on the first rows of `--inputs`, if there are."""
    if options.discover and not options.inputs:
        raise ConfigurationError(
            "Prompts are discovered by running the graph; give --inputs FILE to run it on."
        )
    if options.rows < 1:
        raise ConfigurationError(f"--rows must be at least 1, not {options.rows}.")
    rows = first_rows(options.inputs, options.rows)
    if rows and options.local:
        made_model(Config(), "local", people, held)
    with people.status(f"running the graph on {len(rows)} inputs"), _hinting(options):
        looked = inspecting.inspected(
            graph, rows, discover=options.discover, tools=bool(options.discover_tools)
        )
    inspecting.tell_troubles(people, looked)
    return looked
