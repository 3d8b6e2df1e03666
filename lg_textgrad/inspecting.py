"""What `inspect` and `init` find out about a graph, as a document and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from lg_textgrad._sync import run_sync
from lg_textgrad.bindings.base import Held
from lg_textgrad.discovery import find_in
from lg_textgrad.drawing import Row, Shape, draw, mermaid, shape_of, walk, with_taken
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.noticing import counted
from lg_textgrad.opening import wants_discovery
from lg_textgrad.parameter import count_tokens
from lg_textgrad.planning import all_failed
from lg_textgrad.run import Example, Execution

_NONE_FOUND = "No prompt was found that can be tuned; declare one with Parameter('name', 'text')."


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of the graph, as far as it matters here."""

    example: str
    error: str | None
    executions: Sequence[Execution]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A graph with the prompts that it holds or that were found, and the runs that were made."""

    graph: TrainableGraph
    runs: tuple[Seen, ...] = ()


async def ainspected(
    graph: TrainableGraph,
    inputs: Sequence[Example],
    *,
    discover: bool | None = None,
    tools: bool = False,
) -> Inspected:
    """Run the graph once on each of `inputs` and return what that showed; none makes no run.

    Prompts are looked for where the graph holds none, or as `discover` says. Cost: the graph's own
    model calls. Raises `GraphError` when discovery gets no run through.
    """
    if not inputs:
        return Inspected(graph)
    if wants_discovery(graph, discover):
        found = await find_in(graph, inputs, tools=tools)
        seen = [
            Seen(e.id, r.error, r.executions, r.warnings)
            for e, r in zip(found.examples, found.runs, strict=True)
        ]
        return Inspected(graph.holding(*found.bindings), tuple(seen))
    runs = await graph.arecord(inputs)
    return Inspected(
        graph, tuple(Seen(r.example.id, r.error, r.executions, r.warnings) for r in runs)
    )


def inspected(
    graph: TrainableGraph,
    inputs: Sequence[Example],
    *,
    discover: bool | None = None,
    tools: bool = False,
) -> Inspected:
    """`ainspected` for sync code."""
    return run_sync(ainspected(graph, inputs, discover=discover, tools=tools))


def held(graph: TrainableGraph, name: str) -> Held:
    """Return how a graph holds one of its parameters."""
    return next(b.held(name) for b in graph.bindings if name in b.parameters)


def document(spec: str, looked: Inspected) -> dict[str, Any]:
    """Return everything that is known, as JSON data.

    `nodes` and `edges` are by the path of the graph that they are in, "" at the top. `read_by` and
    `read_in` of a parameter, and `without_prompt`, are None where nothing was run.
    """
    graph, ran = looked.graph, bool(looked.runs)
    shape = _shape(looked)
    shapes = dict(walk(shape)) if shape is not None else {}
    parameters = {name: _parameter(looked, name) for name in graph.parameters}
    return {
        "graph": spec,
        "nodes": {
            path: [n for n in one.nodes if not n.startswith("__")] for path, one in shapes.items()
        },
        "edges": {
            path: [
                {
                    "from": a.source,
                    "to": a.target,
                    "conditional": a.conditional,
                    "label": a.label,
                    "only_in_runs": a.only_in_runs,
                }
                for a in one.arrows
            ]
            for path, one in shapes.items()
        },
        "parameters": parameters,
        "found": [
            {"node": f.node, "parameter": f.parameter, "why": f.why, "text": f.text}
            for f in graph.found
        ],
        "without_prompt": _without_prompt(looked) if ran else None,
        "only_in_runs": _only_in_runs(looked),
        "runs": [
            {
                "example": run.example,
                "error": run.error,
                "warnings": list(run.warnings),
                "executions": [
                    {
                        "id": e.id,
                        "path": e.path,
                        "prompts": list(e.prompts),
                        "model_calls": len(e.model_calls),
                        "tool_calls": len(e.tool_calls),
                    }
                    for e in run.executions
                ],
            }
            for run in looked.runs
        ],
        "mermaid": mermaid(shape, _notes(parameters)) if shape is not None else None,
    }


def _shape(looked: Inspected) -> Shape | None:
    """Return the graph's shape, with the ways that the runs took; None where it runs elsewhere."""
    if looked.graph.graph is None:
        return None
    taken = [
        (e.path, f"{outer}/{target}" if outer else target)
        for run in looked.runs
        for e in run.executions
        for outer in [e.path.rpartition("/")[0]]
        for target in (*e.goto, *e.sends)
    ]
    return with_taken(shape_of(looked.graph.graph), taken)


def _parameter(looked: Inspected, name: str) -> dict[str, Any]:
    parameter, how = looked.graph.parameters[name], held(looked.graph, name)
    reading = {
        run.example: [e for e in run.executions if name in e.prompts] for run in looked.runs
    }
    ran = bool(looked.runs)
    return {
        "value": parameter.value,
        "role": parameter.role,
        "held": how.how,
        "nodes": list(how.nodes),
        "tokens": count_tokens(parameter.value),
        "placeholders": list(parameter.placeholders),
        "requires_grad": parameter.requires_grad,
        "read_by": sorted({e.path for es in reading.values() for e in es}) if ran else None,
        "read_in": {run: [e.id for e in es] for run, es in reading.items() if es} if ran else None,
    }


def _without_prompt(looked: Inspected) -> list[str]:
    """Return the nodes that asked a model without a prompt that is held."""
    asked = {e.path for run in looked.runs for e in run.executions if e.model_calls}
    reading = {e.path for run in looked.runs for e in run.executions if e.prompts}
    return sorted(asked - reading)


def _only_in_runs(looked: Inspected) -> list[str]:
    """Return the nodes that ran though LangGraph cannot tell of them without a run."""
    known = set(looked.graph.nodes)
    ran = {e.path for run in looked.runs for e in run.executions}
    return sorted(p for p in ran - known if not p.rpartition("/")[2].startswith("__"))


def _notes(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return node path -> a line for each prompt that it reads."""
    notes: dict[str, list[str]] = {}
    for name, p in parameters.items():
        for node in p["nodes"] if p["read_by"] is None else (p["read_by"] or p["nodes"]):
            notes.setdefault(node, []).append(f"✎ {name}, {counted(p['tokens'], 'token')}")
    return notes


def show(console: Console, looked: Inspected, said: Mapping[str, Any]) -> None:
    """Print a drawing of the graph, then each prompt, then what was not found and why."""
    console.print(f"[bold]{escape(said['graph'])}[/bold]  [dim]{_size(said)}[/dim]\n")
    shape = _shape(looked)
    if shape is None:
        console.print("It runs elsewhere, so its inside is not known here.\n")
    else:
        _show_drawing(console, shape, said)
    for name, p in said["parameters"].items():
        _show_parameter(console, name, p, len(said["runs"]))
    missing = [f for f in said["found"] if f["parameter"] is None]
    if missing:
        console.print("[bold]Not found[/bold]")
        for f in missing:
            _indented(console, f"{f['node'] or 'graph'}: {f['why']}", 2)
        console.print()
    hint = _hint(said)
    if hint:
        console.print(hint, markup=False, highlight=False)


def _size(said: Mapping[str, Any]) -> str:
    nodes = sum(len(n) for n in said["nodes"].values())
    parts = [counted(nodes, "node")]
    if len(said["nodes"]) > 1:
        parts.append(counted(len(said["nodes"]) - 1, "subgraph"))
    parts.append(counted(len(said["parameters"]), "prompt"))
    if said["runs"]:
        parts.append(counted(len(said["runs"]), "run"))
    return ", ".join(parts)


def _show_drawing(console: Console, shape: Shape, said: Mapping[str, Any]) -> None:
    notes = _notes(said["parameters"])
    room = max(30, console.width - 2)
    longest = max((len(n[0]) for n in notes.values()), default=-2)
    rows = draw(shape, width=max(24, room - longest - 2))
    wide = max(len(row.art) for row in rows)
    for row in rows:
        own = notes.get(row.path, []) if row.path else []
        line = Text("  " + (row.art.ljust(wide) if own else row.art))
        if own:
            name = row.path.rpartition("/")[2]
            start = 2 + row.art.find("●")
            line.stylize("bold green", start, start + 2 + len(name))
            line.append(f"  {own[0]}", style="green")
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        for more in own[1:]:
            console.print(Text(" " * (wide + 4) + more, style="green"), no_wrap=True)
    if said["only_in_runs"]:
        console.print()
        _indented(console, f"only seen in runs: {', '.join(said['only_in_runs'])}", 2)
    legend = _legend(rows)
    if legend:
        console.print()
        _indented(console, legend, 2, "dim")
    console.print()


def _legend(rows: Sequence[Row]) -> str:
    drawn = "".join(row.art for row in rows)
    signs = {"┊┄": "┄ conditional", "↺": "↺ leads to itself"}
    return "   ".join(said for sign, said in signs.items() if any(c in drawn for c in sign))


def _show_parameter(console: Console, name: str, p: Mapping[str, Any], runs: int) -> None:
    console.print(f"[bold green]✎ {escape(name)}[/bold green]  {escape(p['held'])}")
    facts = [counted(p["tokens"], "token")]
    if p["placeholders"]:
        facts.append("keeps " + ", ".join(f"{{{n}}}" for n in p["placeholders"]))
    if not p["requires_grad"]:
        facts.append("not trained")
    if p["read_by"] is not None:
        by = ", ".join(p["read_by"])
        facts.append(
            f"read by {by} in {len(p['read_in'])} of {runs} runs" if by else "read by no node"
        )
    elif p["nodes"]:
        facts.append(f"read by {', '.join(p['nodes'])}")
    _indented(console, "; ".join(facts), 2, "dim")
    for line in p["value"].split("\n"):
        _indented(console, line, 4)
    console.print()


def _indented(console: Console, text: str, by: int, style: str = "") -> None:
    """Print the text with each of its lines so far to the right, and none longer than fits."""
    for line in Text(text, style).wrap(console, max(20, console.width - by)):
        console.print(Text(" " * by).append_text(line), no_wrap=True)


def _hint(said: Mapping[str, Any]) -> str:
    """Return what the user could do next, where there is something."""
    failed = all_failed([run["error"] for run in said["runs"]])
    if failed is not None:
        return failed
    if not said["parameters"] and not said["runs"]:
        return (
            "The graph declares no prompts. With --inputs FILE they are found by running it on the "
            "first rows."
        )
    if not said["runs"] and not any(p["nodes"] for p in said["parameters"].values()):
        return "Which node reads which prompt shows when the graph runs: --inputs FILE does that."
    if said["without_prompt"] and not said["found"]:
        nodes = ", ".join(said["without_prompt"])
        return f"No parameter is read by {nodes}, though a model is asked there; try --discover."
    if not said["parameters"]:
        return _NONE_FOUND
    return ""


def tell_troubles(console: Console, looked: Inspected) -> None:
    """Print a sentence for each run that failed, and for each thing that runs warned of."""
    failures = [
        f"The run of example '{r.example}' failed: {r.error}" for r in looked.runs if r.error
    ]
    warnings = dict.fromkeys(warning for run in looked.runs for warning in run.warnings)
    for said in (*failures, *warnings):
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def tell_found(console: Console, graph: TrainableGraph) -> None:
    """Print which prompts discovery found; nothing where there was none."""
    if graph.found:
        said = f"Discovery {summary(graph)}."
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def summary(graph: TrainableGraph) -> str:
    """Return in one line which prompts were found, and of which nodes none."""
    found = [f.parameter for f in graph.found if f.parameter is not None]
    missing = dict.fromkeys(f.node or "graph" for f in graph.found if f.parameter is None)
    names = list(dict.fromkeys(found))
    said = "found no prompts"
    if names:
        said = f"found the prompt{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return f"{said}; none for {', '.join(missing)}" if missing else said


def written(file: str, looked: Inspected, *, discover: bool) -> str:
    """Return what `init` says when it has written its file."""
    graph = looked.graph
    said = f"Wrote {file}. The graph's parameters: {', '.join(graph.parameters) or 'none yet'}."
    if graph.found:
        return f"{said} Discovery {summary(graph)}."
    if looked.runs and not graph.parameters:
        return f"{said} {all_failed([run.error for run in looked.runs]) or _NONE_FOUND}"
    if discover and not graph.parameters:
        return (
            f"{said} It declares none, so they are found by running it when it is tuned; "
            "--inputs FILE finds them now."
        )
    return said
