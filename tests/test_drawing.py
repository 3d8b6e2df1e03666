"""Drawings of graphs: every edge can be followed, and Mermaid says what LangGraph's own says."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph

from lg_textgrad.drawing import Arrow, Shape, draw, mermaid, ordered, shape_of, walk, with_taken
from tests.parts import Chat, echo


class S(TypedDict, total=False):
    a: str


def shape(nodes, *edges):
    """A shape from words: `a>b` is an edge, `a>b?` a conditional one."""
    arrows = [Arrow(*e.rstrip("?").split(">"), e.endswith("?")) for e in edges]
    return Shape((START, *nodes.split(), END), tuple(arrows))


def art(drawn):
    return "\n".join(row.art for row in drawn)


# Reading a drawing back, as eyes do: from each node along the lines that leave it.


def followed(rows):
    """Return the edges that a flat drawing shows: (from, to, conditional)."""
    width = max(len(r.art) for r in rows) + 2
    lines = [r.art.ljust(width) for r in rows]
    centre = next(r.art for r in rows if r.path).index("○")
    shown = {n: re.split(r"[○●] ", lines[n])[1].split()[0] for n, r in enumerate(rows) if r.path}
    names = {n: {"start": START, "end": END}.get(name, name) for n, name in shown.items()}
    nodes = sorted(names)
    edges = {(names[n], names[n], True) for n in nodes if "↺" in lines[n]}
    for n, after in pairwise(nodes):  # straight down
        between = [lines[row][centre] for row in range(n + 1, after)]
        if between and all(c in "│┊" or (c in "├┤" and row) for row, c in enumerate(between, 1)):
            edges.add((names[n], names[after], "┊" in between))
    for mirrored in (False, True):
        side = [line[::-1].translate(str.maketrans("►┌└├┤", "◄┐┘┤├")) if mirrored else line
                for line in lines]  # fmt: skip
        middle = width - 1 - centre if mirrored else centre
        lanes = {}
        for row, line in enumerate(side):
            met = joint(line, middle, names.get(row), mirrored=mirrored)
            if met is not None:
                place, dashed, leads_here = met
                top = row
                while side[top][place] not in "┐":
                    top -= 1
                node = owner(row, nodes, leads_here=leads_here)
                ins, outs = lanes.setdefault((place, top), (set(), set()))
                (ins if leads_here else outs).add((names[node], dashed))
        edges |= {
            (s, t, dashed) for ins, outs in lanes.values() for s, dashed in outs for t, _ in ins
        }
    return edges


def joint(line, middle, name, *, mirrored):
    """Return where a row's line meets its lane, whether it is dashed, and where it leads."""
    at = middle + 1
    if name is not None and not mirrored:
        text = re.match(r"[○●] \S+( ↺)? ?", line[middle:])
        at = middle + text.end()
    if at >= len(line):
        return None
    leads_here = line[at] == "◄"
    if leads_here:
        at += 1
    elif line[at] not in "─┄":
        return None
    dashed = False
    while line[at] not in "┐┘┤":
        if line[at] not in "─┄│┊":
            return None
        dashed |= line[at] == "┄"
        at += 1
    return at, dashed or line[at - 1] == "┄", leads_here


def owner(row, nodes, *, leads_here):
    """Return the row of the node that a line belongs to: what leads here stands above its node."""
    if row in nodes:
        return row
    return min(n for n in nodes if n > row) if leads_here else max(n for n in nodes if n < row)


@st.composite
def shapes(draw_):
    count = draw_(st.integers(1, 6))
    names = [f"n{i}" for i in range(count)]
    places = st.integers(0, count - 1)
    pairs = draw_(st.dictionaries(st.tuples(places, places), st.booleans(), max_size=12))
    arrows = [Arrow(names[s], names[t], c or s == t) for (s, t), c in pairs.items()]
    begins = draw_(st.sets(places, min_size=1, max_size=3))
    ends = draw_(st.sets(places, max_size=3))
    arrows += [Arrow(START, names[n], conditional=len(begins) > 1) for n in sorted(begins)]
    arrows += [Arrow(names[n], END, conditional=draw_(st.booleans())) for n in sorted(ends)]
    return Shape((START, *names, END), tuple(draw_(st.permutations(arrows))))


@settings(max_examples=150, deadline=None)
@given(shapes())
def test_every_edge_and_no_other_can_be_followed_in_a_drawing(one):
    rows = draw(one, width=1000)
    expected = {(a.source, a.target, a.conditional) for a in one.arrows}
    assert followed(rows) == expected, f"\n{art(rows)}"


@settings(max_examples=150, deadline=None)
@given(shapes())
def test_order_has_every_node_once_and_goes_along_the_edges_where_there_is_no_loop(one):
    order = ordered(one)
    assert sorted(order) == sorted(one.nodes)
    assert order[0] == START
    place = {n: i for i, n in enumerate(order)}
    reach = {n: {n} for n in order}
    for _ in order:
        for a in one.arrows:
            reach[a.source] |= reach[a.target]
    for a in one.arrows:
        assert place[a.source] < place[a.target] or a.source in reach[a.target]


# What it looks like.


def test_a_loop_goes_back_up_at_the_left():
    drawn = draw(shape("plan act", "__start__>plan", "plan>act", "act>plan?", "act>__end__?"))
    assert art(drawn) == (
        "  ○ start\n"
        "  │\n"
        "┌►● plan\n"
        "┊ │\n"
        "└┄● act\n"
        "  ┊\n"
        "  ○ end"
    )  # fmt: skip
    assert [r.path for r in drawn if r.path] == [START, "plan", "act", END]


def test_branches_share_a_line_at_the_right():
    drawn = draw(
        shape("a b c d", "__start__>a", "a>b?", "a>c?", "b>d", "c>d", "d>__end__")
    )
    assert art(drawn) == (
        "○ start\n"
        "│\n"
        "● a ┄┄┄┄┄┐\n"
        "┊        ┊\n"
        "● b ─────┊─┐\n"
        "● c ◄┄┄┄┄┘ │\n"
        "│          │\n"
        "● d ◄──────┘\n"
        "│\n"
        "○ end"
    )


def test_a_node_that_leads_to_itself_is_marked():
    assert "● a ↺\n" in art(draw(shape("a", "__start__>a", "a>a?", "a>__end__")))


def test_too_wide_a_graph_is_a_list():
    names = [f"node_{n}" for n in range(9)]
    edges = [f"{s}>{t}" for s in names for t in names if s != t]
    crowded = shape(" ".join(names), "__start__>node_0", *edges, "node_0>__end__?")
    wide = draw(crowded, width=40)
    assert "● node_0\n  ─► node_1, node_2, node_3, node_4,\n     node_5, node_6, node_7, node_8" in art(
        wide
    )
    assert "  ┄► end\n" in art(wide)
    assert all(len(r.art) <= 40 for r in wide)


# Real graphs.


def same(state):
    return state


def agent(name):
    return create_agent(Chat(answer=echo), [], system_prompt="You help.", name=name)


def test_subgraphs_are_drawn_inside_their_nodes():
    inner = StateGraph(S).add_sequence([("one", same), ("two", same)]).add_edge(START, "one")
    builder = StateGraph(S).add_node("sub", inner.compile()).add_node("last", same)
    graph = builder.add_edge(START, "sub").add_edge("sub", "last").compile()
    drawn = draw(shape_of(graph))
    assert art(drawn) == (
        "○ start\n"
        "│\n"
        "● sub\n"
        "│   ● one\n"
        "│   │\n"
        "│   ● two\n"
        "│\n"
        "● last\n"
        "│\n"
        "○ end"
    )
    assert [r.path for r in drawn if r.path] == [START, "sub", "sub/one", "sub/two", "last", END]


def nested():
    """Two agents in a graph in a graph, with a router whose answers have names of their own."""
    team = StateGraph(S).add_node("x", agent("x")).add_node("y", agent("y"))
    team.add_edge(START, "x")
    team.add_conditional_edges("x", lambda _: "on", {"on": "y", "stop": END})
    builder = StateGraph(S).add_node("team", team.compile()).add_node("solo", agent("solo"))
    return builder.add_edge(START, "team").add_edge("team", "solo").compile()


def loop():
    builder = StateGraph(S).add_node("a", same).add_node("b", same).add_edge(START, "a")
    return builder.add_edge("a", "b").add_conditional_edges("b", lambda _: END, ["a", END]).compile()


@pytest.mark.parametrize("make", [loop, lambda: agent("one"), nested])
def test_shape_has_the_edges_that_langgraph_draws(make):
    graph = make()
    expected = {
        (e.source.replace(":", "/"), e.target.replace(":", "/"), e.conditional)
        for e in graph.get_graph(xray=True).edges
    }
    ours = set()
    shapes_by_path = dict(walk(shape_of(graph)))
    for path, one in shapes_by_path.items():
        inside = f"{path}/" if path else ""
        for a in one.arrows:
            ours.add((inside + a.source, inside + a.target, a.conditional))
    # Where LangGraph leads an edge into a subgraph, ours leads to the subgraph as a whole.
    hosts = set(shapes_by_path) - {""}

    def whole(path):
        outer = [h for h in hosts if path.startswith(f"{h}/")]
        return {path, *outer}

    for source, target, conditional in expected:
        assert any(
            (s, t, conditional) in ours for s in whole(source) for t in whole(target)
        ), (source, target)
    kept = {n for source, target, _ in expected for n in (source, target)}
    for source, target, conditional in ours:
        ends = [n for n in (source, target) if n.endswith(("/__start__", "/__end__"))]
        if any(n not in kept for n in ends):
            continue  # LangGraph leaves out an inner start or end that says nothing
        assert any(
            source in whole(s) and target in whole(t) and conditional is c
            for s, t, c in expected
        ), (source, target)


def test_ways_that_only_runs_show_are_added_where_they_are_not_known():
    inner = shape("x y", "__start__>x")
    outer = Shape((START, "a", "b", END), (Arrow(START, "a"), Arrow("a", "b")), {"b": inner})
    taken = [("a", "b"), ("b/x", "b/y"), ("b", "a"), ("b/y", "b/a"), ("a", "nowhere")]
    more = with_taken(outer, [*taken, ("b", "a")])
    new = {path: [a for a in one.arrows if a.only_in_runs] for path, one in walk(more)}
    assert new == {
        "": [Arrow("b", "a", conditional=True, only_in_runs=True)],
        "b": [Arrow("x", "y", conditional=True, only_in_runs=True)],
    }


def test_functional_graph_is_drawn():
    @entrypoint()
    def work(x: str) -> str:
        return x

    assert art(draw(shape_of(work))) == "○ start\n│\n● work\n┊\n○ end"


# Mermaid.


def test_mermaid_of_a_flat_graph():
    assert mermaid(shape_of(loop()), {"a": ["✎ a, 3 tokens"]}) == (
        "graph TD\n"
        '    start(["start"])\n'
        '    a["a<br/>✎ a, 3 tokens"]:::prompt\n'
        '    b["b"]\n'
        '    end_(["end"])\n'
        "    start --> a\n"
        "    a --> b\n"
        "    b -.-> end_\n"
        "    b -.-> a\n"
        "    classDef prompt fill:#fff3c4,stroke:#b58900\n"
    ).replace("    b -.-> end_\n    b -.-> a\n", "".join(
        f"    b -.-> {({END: 'end_'}).get(a.target, a.target)}\n"
        for a in shape_of(loop()).arrows if a.source == "b"
    ))  # fmt: skip


def test_mermaid_nests_subgraphs_with_names_of_their_own():
    text = mermaid(shape_of(nested()))
    opened = re.findall(r"subgraph (\w+)\[", text)
    assert opened == ["team", "team_x", "team_y", "solo"]
    assert len(re.findall(r"^ +end$", text, re.M)) == len(opened)
    defined = re.findall(r"^ +(\w+)[(\[]", text, re.M)
    used = re.findall(r"^ +(\w+) -.*> (\w+)$", text, re.M)
    assert len(defined) == len(set(defined))
    assert {n for pair in used for n in pair} <= {*defined, *opened}
    assert '    team_x -.->|"on"| team_y\n' in text


def test_mermaid_takes_any_name():
    odd = Shape(
        (START, "end", 'say "hi" <b>', "say-hi", "say_hi", END),
        (Arrow(START, "end"), Arrow("end", 'say "hi" <b>', label="a|b #1")),
    )
    text = mermaid(odd)
    assert '    say_hi_b["say #quot;hi#quot; #lt;b#gt;"]\n' in text
    assert '-->|"a|b #35;1"| say_hi_b\n' in text
    names = re.findall(r"^ +(\w+)\(?\[", text, re.M)
    assert len(names) == len(set(names)) == 6
    assert "end" not in names
