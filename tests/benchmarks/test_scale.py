"""Costs grow as they have to: the benchmark, in small."""

from __future__ import annotations

from evals.benchmarks.scale import NODES, QUICK, SAMPLES, measure, table, wrong_with
from evals.benchmarks.script import WORDS


def test_calls_grow_with_what_changed_and_the_store_saves_the_rest():
    found = measure(QUICK, latency=0.0, repeat=1)
    assert [w for w in found["wrong"] if "CPU" not in w] == []  # no timings in tests
    rows = {(row["against"], row["size"]): row for row in found["rows"]}
    assert rows["examples", 3]["calls"] == 2 * 3 * NODES + NODES
    assert rows["nodes", 2]["calls"] == 2 * 2 * SAMPLES + 2
    for size in QUICK["candidates"]:
        one, each = rows["candidates, one node", size], rows["candidates, each node", size]
        assert (one["calls"], one["saved_calls"]) == (size * SAMPLES, size * SAMPLES * (NODES - 1))
        assert (each["calls"], each["saved_calls"]) == (size * SAMPLES * NODES, 0)
        assert 0 < one["tokens"] < each["tokens"]
    lines = table(found["rows"]).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith(f"| examples | 1 | {3 * NODES} | 0 |")


def test_benchmark_notices_what_it_is_there_to_notice():
    row = {"against": "examples", "size": 1, "calls": 2, "due": 2, "cpu_per_call": 1.0}
    assert wrong_with([row, {**row, "size": 9}]) == []
    wrong = wrong_with([row, {**row, "size": 9, "calls": 3, "cpu_per_call": 2.5}])
    assert wrong == [
        "examples 9: 3 calls, not 2",
        "examples: a call costs 2.5 times the CPU at 9 that it costs at 1",
    ]


def test_longest_chain_has_a_note_for_each_prompt():
    longest = len(WORDS)
    found = measure({"examples": (1, 2), "nodes": (1, longest), "candidates": (1, 2)}, latency=0.0, repeat=1)
    assert [w for w in found["wrong"] if "CPU" not in w] == []
    [row] = [r for r in found["rows"] if (r["against"], r["size"]) == ("nodes", longest)]
    assert row["calls"] == 2 * longest * SAMPLES + longest
