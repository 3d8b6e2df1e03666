"""What the critics of a step cost, measured at a server in a process of its own."""

from __future__ import annotations

from evals.benchmarks.credit_cost import cost_of, measure


def test_node_mode_is_a_call_for_a_node_and_sample_trace_mode_for_a_sample_full_marks_none():
    found = measure(3, 2, textgrad=False)
    calls = {name: cost["calls"] for name, cost in found["costs"].items()}
    assert calls == {"node": 6, "node, brief": 6, "trace": 2, "full marks": 0}
    assert list(found["bars"].values()) == [True] * 3
    tokens = {name: cost["prompt_tokens"] for name, cost in found["costs"].items()}
    assert 0 < tokens["trace"] < tokens["node"] < tokens["node, brief"]


def test_tokens_are_counted_from_messages_and_schema():
    schema = {"type": "object"}
    body = {
        "messages": [{"content": "four"}, {"content": [{"type": "text", "text": "eight ch"}]}],
        "response_format": {"json_schema": {"schema": schema}},
    }
    assert cost_of([body, {"messages": [{"content": "four"}]}]) == {"calls": 2, "prompt_tokens": 1 + 2 + 5 + 1}
