"""The trace: who fed whom, checked against a brute force written here, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lg_textgrad.run import Example, Execution, Run
from lg_textgrad.trace import RETURN, ROUTE, SEND, Edge, Trace

EXAMPLE = Example("e", {"q": 1})


def execution(id, step, reads=(), writes=(), **more):
    path = id.rpartition("#")[0]
    more.setdefault("order", 0)
    return Execution(
        id=id,
        namespace=id,
        path=path,
        superstep=step,
        inputs=more.pop("inputs", dict.fromkeys(reads, 0)),
        writes=tuple((c, 0) for c in writes),
        **more,
    )


def trace(*executions, accumulating=(), inner=None, outputs=None, **more):
    return Trace.of(
        Run(
            "r", EXAMPLE, "c", outputs, executions,
            accumulating={"": tuple(accumulating), **(inner or {})}, **more,
        )
    )


def edges(t):
    return {(e.producer, e.consumer, e.channel) for e in t.edges}


# Random runs against a naive reference.

CHANNELS = ["a", "b", "c", "d"]
NODES = ["n0", "n1", "n2"]
some = st.lists(st.sampled_from(CHANNELS), max_size=3, unique=True)


@st.composite
def runs(draw):
    accumulating = draw(st.lists(st.sampled_from(CHANNELS), unique=True))
    counts = dict.fromkeys(NODES, 0)
    levels = []
    for step in range(draw(st.integers(1, 6))):
        nodes = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=4))
        before = levels[-1] if levels else []
        level, overwritten = [], set()
        for node in nodes:
            by = draw(st.sampled_from([None, *(e.id for e in before)])) if before else None
            given_, writes = draw(some), draw(some)
            over = [
                c for c in writes
                if c in accumulating and c not in overwritten and draw(st.integers(0, 4)) == 0
            ]  # LangGraph allows one Overwrite a channel and superstep
            overwritten.update(over)
            level.append(
                Execution(
                    id=f"{node}#{counts[node]}", namespace=f"{node}#{counts[node]}", path=node,
                    superstep=step, order=0, inputs=dict.fromkeys(given_, 0),
                    writes=tuple((c, 0) for c in writes), overwrites=frozenset(over),
                    reads=draw(st.none() | some.map(frozenset)), sent_by=by,
                    goto=tuple(draw(st.lists(st.sampled_from(NODES), max_size=2, unique=True))),
                    prompts={p: "t" for p in draw(st.lists(st.sampled_from("pq"), unique=True))},
                )
            )
            counts[node] += 1
        levels.append(level)
    flat = tuple(e for level in levels for e in level)
    return Run("r", EXAMPLE, "c", dict.fromkeys(CHANNELS, 0), flat, accumulating={"": accumulating})


def naive_writers(run, channel, before):
    """Who stands behind `channel` for a reader in superstep `before`."""
    wrote = [
        e for e in run.executions if e.superstep < before and channel in [c for c, _ in e.writes]
    ]
    if channel not in run.accumulating[""]:
        last = max((e.superstep for e in wrote), default=None)
        return {e.id for e in wrote if e.superstep == last}
    since = max((e.superstep for e in wrote if channel in e.overwrites), default=-1)
    return {
        e.id
        for e in wrote
        if e.superstep > since or (e.superstep == since and channel in e.overwrites)
    }


def naive_edges(run):
    found = set()
    for e in run.executions:
        if e.sent_by is not None:
            found.add((e.sent_by, e.id, SEND))
            continue
        for channel in e.inputs:
            if e.reads is None or channel in e.reads:
                found |= {(w, e.id, channel) for w in naive_writers(run, channel, e.superstep)}
        # A choice stands until the node runs: a deferred one runs later than what chose it.
        last = max(
            (o.superstep for o in run.executions if o.path == e.path and o.superstep < e.superstep),
            default=-1,
        )
        for other in run.executions:
            if last <= other.superstep < e.superstep and e.path in other.goto:
                found.add((other.id, e.id, ROUTE))
    return found


def ancestors(found, start):
    seen, todo = set(), [start]
    while todo:
        at = todo.pop()
        for producer in {p for p, c, _ in found if c == at} - seen:
            seen.add(producer)
            todo.append(producer)
    return seen


@settings(max_examples=150, deadline=None)
@given(runs())
def test_edges_sinks_order_and_pruning_equal_a_brute_force(run):
    t = Trace.of(run)
    expected = naive_edges(run)
    assert edges(t) == expected
    assert len(t.edges) == len(expected)
    assert {k: set(v) for k, v in t.sinks.items()} == {
        c: w for c in CHANNELS if (w := naive_writers(run, c, 99))
    }
    order = t.reverse_order()
    assert sorted(order) == sorted(e.id for e in run.executions)
    for producer, consumer, _ in expected:
        assert order.index(consumer) < order.index(producer)
    for trainable in ({"p"}, {"p", "q"}, set()):
        own = {e.id for e in run.executions if set(e.prompts) & trainable}
        assert t.worth_visiting(trainable) == {
            e.id for e in run.executions if e.id in own or ancestors(expected, e.id) & own
        }
    for e in run.executions:
        assert {(p, e.id, c) for p, cs in t.producers(e.id).items() for c in cs} == {
            x for x in expected if x[1] == e.id
        }


# By hand.


def test_last_value_channel_keeps_only_the_latest_writer():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("b#0", 2, writes=["x"]),
        execution("c#0", 3, ["x"]),
    )
    assert edges(t) == {("b#0", "c#0", "x")}


def test_reducer_channel_keeps_every_writer():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("b#0", 2, ["x"], ["x"]),
        execution("c#0", 3, ["x"]),
        accumulating=["x"],
        outputs={"x": 1},
    )
    assert edges(t) == {("a#0", "b#0", "x"), ("a#0", "c#0", "x"), ("b#0", "c#0", "x")}
    assert t.sinks == {"x": ("a#0", "b#0")}


def test_overwrite_ends_what_an_accumulating_channel_remembers():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("b#0", 2, ["x"], ["x"], overwrites=frozenset({"x"})),
        execution("c#0", 3, ["x"], ["x"]),
        execution("d#0", 4, ["x"]),
        accumulating=["x"],
    )
    assert {p for p, c, _ in edges(t) if c == "d#0"} == {"b#0", "c#0"}


def test_writes_are_invisible_within_their_own_superstep():
    t = trace(execution("a#0", 1, writes=["x"]), execution("b#0", 1, ["x"]))
    assert edges(t) == set()


def test_channel_that_was_given_but_not_read_makes_no_edge():
    t = Trace.of(
        Run("r", EXAMPLE, "c", None, (
            execution("a#0", 1, writes=["x", "y"]),
            Execution("b#0", "b#0", "b", 2, 1, {"x": 0, "y": 0}, reads=frozenset({"y"})),
        ))
    )
    assert edges(t) == {("a#0", "b#0", "y")}


def test_send_is_the_only_source_of_what_it_started():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("plan#0", 2, ["x"]),
        execution("work#0", 3, ["x"], sent_by="plan#0"),
        execution("work#1", 3, ["x"], sent_by="plan#0"),
    )
    assert edges(t) == {
        ("a#0", "plan#0", "x"),
        ("plan#0", "work#0", SEND),
        ("plan#0", "work#1", SEND),
    }


def test_whole_value_state_is_one_channel():
    t = trace(
        execution("a#0", 1, writes=["__root__"]),
        execution("b#0", 2, inputs="just text"),
    )
    assert edges(t) == {("a#0", "b#0", "__root__")}


def test_what_runs_inside_a_subgraph_reads_what_its_host_was_given():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("sub#0", 2, ["x"], ["y"]),
        execution("sub/w#0", 1, ["x"], ["y"], parent="sub#0"),
        execution("z#0", 3, ["y"]),
        outputs={"y": 1},
    )
    assert edges(t) == {
        ("a#0", "sub#0", "x"),
        ("a#0", "sub/w#0", "x"),
        ("sub/w#0", "sub#0", RETURN),
        ("sub/w#0", "z#0", "y"),
    }
    assert t.sinks == {"y": ("sub/w#0",)}


def test_accumulating_channel_keeps_writers_outside_a_subgraph_for_those_inside():
    t = trace(
        execution("a#0", 1, writes=["m"]),
        execution("sub#0", 2, ["m"], ["m"]),
        execution("sub/v#0", 1, ["m"], ["m"], parent="sub#0"),
        execution("sub/w#0", 2, ["m"], ["m"], parent="sub#0"),
        accumulating=["m"],
        inner={"sub": ("m",)},
    )
    assert {p for p, c, _ in edges(t) if c == "sub/w#0"} == {"a#0", "sub/v#0"}


def test_subgraph_with_names_of_its_own_still_hangs_on_what_fed_its_host():
    t = trace(
        execution("a#0", 1, writes=["x"]),
        execution("sub#0", 2, ["x"], ["y"]),
        execution("sub/w#0", 1, ["question"], ["answer"], parent="sub#0"),
    )
    assert ("a#0", "sub/w#0", "question") in edges(t)


def test_output_keys_without_writers_have_no_sink():
    assert trace(execution("a#0", 1, writes=["x"]), outputs={"q": 1, "x": 2}).sinks == {"x": ("a#0",)}


def test_failed_run_has_sinks_for_all_that_was_written():
    t = trace(execution("a#0", 1, writes=["x"]), error="E: no", failed_in="a#0")
    assert t.sinks == {"x": ("a#0",)}


def test_empty_run_has_an_empty_trace():
    t = trace()
    assert (list(t.edges), t.reverse_order(), t.worth_visiting({"p"})) == ([], [], set())


def test_loop_over_a_growing_list_is_held_in_linear_space():
    rounds = 3_000
    t = trace(
        *(execution(f"n#{k}", k, ["messages"], ["messages"]) for k in range(rounds)),
        accumulating=["messages"],
    )
    vertices = t.vertices_in_reverse()
    assert len(vertices) == 2 * rounds - 1  # the last version is read by nobody
    assert sum(len(list(t.before(v))) for v in vertices) < 3 * rounds
    assert t.reverse_order() == [f"n#{k}" for k in reversed(range(rounds))]
    assert t.producers(f"n#{rounds - 1}") == {f"n#{k}": ["messages"] for k in range(rounds - 1)}


def test_edge_is_data():
    assert Edge("a", "b", "x") == Edge("a", "b", "x")
    with pytest.raises(AttributeError):
        Edge("a", "b", "x").producer = "c"
