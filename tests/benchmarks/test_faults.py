"""A run against a faulty server ends as it would have without faults; the benchmark, in small."""

from __future__ import annotations

from evals.benchmarks.faults import RATES, compare, measure


def test_faults_change_neither_prompts_nor_scores_and_cost_only_what_failed():
    rates = {**{kind: 2 * rate for kind, rate in RATES.items()}, "hang": 0.015}
    # A seed with one hang: each costs the timeout, which a busy machine must not reach by itself.
    found = measure(
        rates, seeds=[6], rows=2, latency=0.0, timeout=8.0, first_pause=0.01, concurrency=16
    )  # fmt: skip
    [trial] = found["trials"]
    assert trial["wrong"] == []
    assert set(trial["server_faults"]) == set(RATES)
    noticed = sum(trial["noticed"].values())
    assert noticed == sum(trial["server_faults"].values()) > 10
    assert found["outcome"]["val"] == [0.0, 1.0]


def test_benchmark_notices_what_it_is_there_to_notice():
    server = {"requests": 2, "faults": {}, "answered": {"a": 1, "b": 1}, "peak": 1}
    calm = {"outcome": 1, "server": server, "seconds": 1.0, "faults": {}}
    assert compare(calm, calm)["wrong"] == []
    rough = {"requests": 4, "faults": {"429": 1}, "answered": {"a": 2}, "peak": 1}
    found = compare(calm, {**calm, "outcome": 2, "server": rough})
    assert len(found["wrong"]) == 4
