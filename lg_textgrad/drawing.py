"""Draw a compiled graph: in a terminal, a row for each node, or as Mermaid text."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from langgraph.constants import END, START

from lg_textgrad.recording.structure import AnyGraph, graphs_by_path

_TITLES = {START: "start", END: "end"}
_RESERVED = {
    "call", "class", "classdef", "click", "default", "direction", "end", "flowchart", "graph",
    "href", "linkstyle", "style", "subgraph",
}  # fmt: skip
"""Words that Mermaid doesn't take as the name of a node."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """One edge between two nodes of one graph."""

    source: str
    target: str
    conditional: bool = False
    label: str = ""
    """What the router returns for it, where that is another word than the target."""
    only_in_runs: bool = False
    """Whether only a run has shown it, as of a `Command` whose targets the code doesn't name."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The nodes and edges of one graph, as far as LangGraph can tell without a run."""

    nodes: tuple[str, ...]
    """In the order in which they were added; start and end included."""
    arrows: tuple[Arrow, ...]
    inner: Mapping[str, Shape] = field(default_factory=dict)
    """Node -> the graph that it is, or runs."""


def shape_of(graph: AnyGraph) -> Shape:
    """Return the shape of a graph, with those of its subgraphs in it."""
    return _shape(graphs_by_path(graph), "")


def _shape(graphs: Mapping[str, AnyGraph], path: str) -> Shape:
    drawn = graphs[path].get_graph()
    arrows = tuple(
        Arrow(e.source, e.target, e.conditional, "" if e.data is None else str(e.data))
        for e in drawn.edges
    )
    ends = [n for a in arrows for n in (a.source, a.target)]
    known = [START, *(n for n in graphs[path].nodes if n != START), *drawn.nodes, *ends]
    inner = {
        name: _shape(graphs, below)
        for name in dict.fromkeys(known)
        if (below := f"{path}/{name}" if path else name) in graphs
    }
    wanted = [n for n in dict.fromkeys(known) if n not in _TITLES or n in ends]
    return Shape(tuple(wanted), arrows, inner)


def with_taken(shape: Shape, taken: Iterable[tuple[str, str]]) -> Shape:
    """Return the shape with the ways that runs took added, where it doesn't know them.

    `taken` are pairs of node paths; those that lead out of their graph are left out.
    """
    return _with_taken(shape, "", sorted(set(taken)))


def _with_taken(shape: Shape, path: str, taken: Sequence[tuple[str, str]]) -> Shape:
    inside = f"{path}/" if path else ""
    known = {(a.source, a.target) for a in shape.arrows}
    seen = [(s.removeprefix(inside), t.removeprefix(inside)) for s, t in taken
            if s.startswith(inside) and t.startswith(inside)]  # fmt: skip
    new = [
        Arrow(s, t, conditional=True, only_in_runs=True)
        for s, t in seen
        if s in shape.nodes and t in shape.nodes and (s, t) not in known
    ]
    inner = {name: _with_taken(one, inside + name, taken) for name, one in shape.inner.items()}
    return Shape(shape.nodes, (*shape.arrows, *new), inner)


def walk(shape: Shape, path: str = "") -> Iterator[tuple[str, Shape]]:
    """Yield the path and the shape of a graph and of each one inside it."""
    yield path, shape
    for name, inner in shape.inner.items():
        yield from walk(inner, f"{path}/{name}" if path else name)


# In a terminal: nodes stand below each other, and what doesn't lead to the next row takes a lane at
# the side. To the left are the lanes that lead back up, to the right those that skip rows.


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a drawing."""

    art: str
    path: str = ""
    """The node's path where the line is a node's."""


@dataclass(frozen=True, slots=True)
class _Line:
    """What stands between the lanes."""

    text: str
    path: str = ""
    """The node's path where the line is a node's; that of an inner node where it is one's."""


@dataclass(slots=True)
class _Lane:
    """Edges that share one line: they have one end, the hub, in common."""

    ins: set[int]
    """Nodes, by their place in the order, that it leads to."""
    outs: set[int]
    """Nodes that it comes from."""
    dashed: bool
    column: int = 0
    """Counted from the inside."""
    heads: dict[int, bool] = field(default_factory=dict)
    """Line in which it meets a node -> whether it leads to that node."""

    @property
    def nodes(self) -> set[int]:
        return self.ins | self.outs


def draw(shape: Shape, path: str = "", width: int = 76) -> list[Row]:
    """Return the lines of a drawing, none wider than `width` where that can be.

    A solid line is an edge, a dashed one is conditional; without an arrow's head it leads down. A
    graph with too many edges for the width is a list of its nodes and where each leads.
    """
    rows = _drawn(shape, path)
    return rows if all(len(r.art) <= width for r in rows) else _listed(shape, path, width)


def _drawn(shape: Shape, path: str) -> list[Row]:
    order = _without_ends(shape, ordered(shape)) if path else ordered(shape)
    place = {name: n for n, name in enumerate(order)}
    loops = {a.source for a in shape.arrows if a.source == a.target}
    pairs: dict[tuple[int, int], bool] = {}
    for a in shape.arrows:
        if a.source in place and a.target in place:
            ends = place[a.source], place[a.target]
            pairs[ends] = pairs.get(ends, True) and a.conditional
    direct = {s: _vertical(dashed=dashed) for (s, t), dashed in pairs.items() if t == s + 1}
    sides = (
        _lanes({e: dashed for e, dashed in pairs.items() if e[0] > e[1]}),
        _lanes({e: dashed for e, dashed in pairs.items() if e[1] > e[0] + 1}),
    )
    content: list[_Line] = []
    for n, name in enumerate(order):
        below = f"{path}/{name}" if path else name
        # Beside the node is room for one lane on each side; more of them get a line each, those
        # that lead here above, the others below: so no two of them ever meet.
        arriving, leaving = (_waiting(sides, n, ins=ins) for ins in (True, False))
        beside = [next((lane for lane in side if n in lane.nodes), None) for side in sides]
        beside = [
            next((lane for lane in side if n in lane.ins), first)
            for side, first in zip(sides, beside, strict=True)
        ]
        arriving = [a for a in arriving if a[1] not in beside]
        leaving = [a for a in leaving if a[1] not in beside]
        from_above = direct.get(n - 1, "")
        for number, (at, lane) in enumerate(arriving):
            lane.heads[len(content)] = True
            content.append(_Line(from_above or ("│" if number else "┐┌"[at])))
        for lane in filter(None, beside):
            lane.heads[len(content)] = n in lane.ins
        mark = "○" if name in _TITLES else "●"
        content.append(_Line(f"{mark} {shown(name)}{' ↺' if name in loops else ''}", below))
        down = direct.get(n, "")
        inner = _drawn(shape.inner[name], below) if name in shape.inner else []
        through = down or ("│" if leaving else " ")
        content += [_Line(f"{through}   {row.art}", row.path) for row in inner]
        for number, (at, lane) in enumerate(leaving, start=1):
            lane.heads[len(content)] = False
            content.append(_Line(("┤├" if down or number < len(leaving) else "┘└")[at]))
        # A dashed line is seen to be one where nothing leaves it.
        if (not leaving and (down or inner)) or (leaving and down == _vertical(dashed=True)):
            content.append(_Line(through))
    left, right = (_sides(lanes, len(content)) for lanes in sides)
    wide = max(len(line.text) for line in content)
    rows = []
    for line, before, after in zip(content, left, right, strict=True):
        near = f"{before.head}{before.art[len(before.head) :]}"[::-1].translate(_MIRRORED)
        reach = f" {after.head}" if line.path else after.head or after.line
        reach = reach.ljust(wide - len(line.text) + 1, after.line or " ")
        far = after.art[len(line.text + reach) - wide - 1 :]
        rows.append(Row(f"{near}{line.text}{reach}{far}".rstrip(), line.path))
    return rows


def _waiting(
    sides: Sequence[Sequence[_Lane]], node: int, *, ins: bool
) -> list[tuple[int, _Lane]]:
    """Return the lanes that lead to a node, or come from it, with the side that they are at."""
    return [
        (at, lane)
        for at, lanes in enumerate(sides)
        for lane in lanes
        if node in (lane.ins if ins else lane.outs)
    ]


def _without_ends(shape: Shape, order: list[str]) -> list[str]:
    """Return the order without a start and an end that say no more than the order itself."""
    begins = [(a.target, a.conditional) for a in shape.arrows if a.source == START]
    ends = [(a.source, a.conditional) for a in shape.arrows if a.target == END]
    if len(order) > 1 and order[0] == START and begins == [(order[1], False)]:
        order = order[1:]
    if len(order) > 1 and order[-1] == END and ends == [(order[-2], False)]:
        order = order[:-1]
    return order


def ordered(shape: Shape) -> list[str]:
    """Return the nodes from start to end: each after those that lead to it, loops left out."""
    follows: dict[str, list[str]] = {n: [] for n in shape.nodes}
    for a in shape.arrows:
        if a.target not in follows[a.source]:
            follows[a.source].append(a.target)
    back = _back(shape.nodes, follows)
    waits = Counter(
        t for s, targets in follows.items() for t in targets if (s, t) not in back
    )
    rank = {name: n for n, name in enumerate(shape.nodes)}
    ready = [n for n in shape.nodes if not waits[n]]
    order: list[str] = []
    while ready:
        last = follows[order[-1]] if order else []
        # A chain stays together; the end comes when nothing else is left.
        ready.sort(key=lambda n: (n == END, n not in last, rank[n]))
        order.append(ready.pop(0))
        for target in follows[order[-1]]:
            if (order[-1], target) not in back:
                waits[target] -= 1
                if not waits[target]:
                    ready.append(target)
    return order


def _back(nodes: Sequence[str], follows: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """Return the edges that close a loop, in a walk in depth from the start."""
    back: set[tuple[str, str]] = set()
    entered: set[str] = set()
    for first in nodes:
        if first in entered:
            continue
        entered.add(first)
        trail = [(first, iter(follows[first]))]
        on_trail = {first}
        while trail:
            node, targets = trail[-1]
            for target in targets:
                if target in on_trail:
                    back.add((node, target))
                elif target not in entered:
                    entered.add(target)
                    on_trail.add(target)
                    trail.append((target, iter(follows[target])))
                    break
            else:
                on_trail.discard(node)
                trail.pop()
    return back


def _lanes(pairs: Mapping[tuple[int, int], bool]) -> list[_Lane]:
    """Return few lanes for the edges, and columns in which none lies upon another."""
    left = dict(pairs)
    lanes: list[_Lane] = []
    while left:
        counts = Counter(
            hub for (s, t), dashed in left.items() for hub in ((s, -1, dashed), (-1, t, dashed))
        )
        (source, target, dashed), _ = max(counts.items(), key=lambda c: (c[1], c[0][0] >= 0))
        taken = [
            (s, t)
            for (s, t), d in left.items()
            if d == dashed and (s == source or t == target)
        ]
        lanes.append(_Lane({t for _, t in taken}, {s for s, _ in taken}, dashed))
        for pair in taken:
            del left[pair]
    lanes.sort(key=lambda lane: (max(lane.nodes) - min(lane.nodes), min(lane.nodes)))
    for number, lane in enumerate(lanes):
        used = {
            other.column
            for other in lanes[:number]
            if min(other.nodes) <= max(lane.nodes) and min(lane.nodes) <= max(other.nodes)
        }
        lane.column = next(c for c in range(len(lanes)) if c not in used)
    return lanes


@dataclass(frozen=True, slots=True)
class _Side:
    """What stands at one side of a line, from the inside to the outside."""

    art: str
    line: str
    """What reaches over to the node: a solid or a dashed line, or nothing."""
    head: str
    """An arrow's head at the node, or nothing."""


def _sides(lanes: Sequence[_Lane], count: int) -> list[_Side]:
    """Return what stands at the right of each of `count` lines; the left is its mirror image."""
    wide = 2 + 2 * max((lane.column for lane in lanes), default=-1)
    grid = [[" "] * wide for _ in range(count)]
    here: dict[int, _Lane] = {}
    for lane in lanes:
        first, last = min(lane.heads), max(lane.heads)
        for row in range(first, last + 1):
            joint = "┐" if row == first else "┘" if row == last else "┤"
            grid[row][2 * lane.column + 1] = (
                joint if row in lane.heads else _vertical(dashed=lane.dashed)
            )
        here |= dict.fromkeys(lane.heads, lane)
    sides = []
    for row, cells in enumerate(grid):
        lane_here = here.get(row)
        if lane_here is None:
            sides.append(_Side("".join(cells), "", ""))
            continue
        line = "┄" if lane_here.dashed else "─"
        for x in range(2 * lane_here.column + 1):
            if cells[x] == " ":  # else it passes below what is there
                cells[x] = line
        sides.append(_Side("".join(cells), line, "◄" if lane_here.heads[row] else ""))
    return sides


_MIRRORED = str.maketrans("◄┐┘┤", "►┌└├")


def _vertical(*, dashed: bool) -> str:
    return "┊" if dashed else "│"


def shown(name: str) -> str:
    """Return a node's name as people know it."""
    return _TITLES.get(name, name)


def _listed(shape: Shape, path: str, width: int) -> list[Row]:
    rows = []
    for name in ordered(shape):
        below = f"{path}/{name}" if path else name
        rows.append(Row(f"{'○' if name in _TITLES else '●'} {shown(name)}", below))
        for conditional, sign in ((False, "─►"), (True, "┄►")):
            targets = [
                shown(a.target)
                for a in shape.arrows
                if a.source == name and a.conditional is conditional
            ]
            said = textwrap.wrap(", ".join(targets), max(20, width - 6))
            rows += [Row(f"  {sign if n == 0 else '  '} {part}") for n, part in enumerate(said)]
        if name in shape.inner:
            rows += [
                Row(f"    {row.art}", row.path) for row in draw(shape.inner[name], below, width - 4)
            ]
    return rows


# As Mermaid text. LangGraph's own needs distinct names of subgraphs, and labels without brackets.


def mermaid(shape: Shape, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the graph as a Mermaid flowchart; `notes` has further lines for nodes, by path.

    Nodes with notes have the class `prompt`. An edge to a subgraph leads to it as a whole.
    """
    notes = notes or {}
    names: dict[str, str] = {}
    lines = ["graph TD", *_mermaid(shape, "", notes, names, "    ")]
    lines.append("    classDef prompt fill:#fff3c4,stroke:#b58900")
    return "\n".join(lines) + "\n"


def _mermaid(
    shape: Shape,
    path: str,
    notes: Mapping[str, Sequence[str]],
    names: dict[str, str],
    indent: str,
) -> Iterator[str]:
    def of(name: str) -> str:
        return _identifier(f"{path}/{name}" if path else name, names)

    for name in shape.nodes:
        below = f"{path}/{name}" if path else name
        label = _quoted(shown(name), notes.get(below, ()))
        if name in shape.inner:
            yield f"{indent}subgraph {of(name)}[{label}]"
            yield from _mermaid(shape.inner[name], below, notes, names, indent + "    ")
            yield f"{indent}end"
        elif name in _TITLES:
            yield f"{indent}{of(name)}([{label}])"
        else:
            yield f"{indent}{of(name)}[{label}]{':::prompt' if notes.get(below) else ''}"
    for a in shape.arrows:
        label = f"|{_quoted(a.label)}|" if a.label else ""
        line = "-.->" if a.conditional else "-->"
        yield f"{indent}{of(a.source)} {line}{label} {of(a.target)}"


def _identifier(path: str, names: dict[str, str]) -> str:
    """Return a name that Mermaid takes, one for each path."""
    if path not in names:
        name = re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_") or "node"
        while name in names.values() or name.lower() in _RESERVED:
            name += "_"
        names[path] = name
    return names[path]


def _quoted(text: str, more: Iterable[str] = ()) -> str:
    safe = [
        line.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
        for line in (text, *more)
    ]
    return '"' + "<br/>".join(" ".join(line.split()) for line in safe) + '"'
