"""Rollouts a second on two nodes of a Ray cluster against one, at the same limit for each node.

    python -m evals.benchmarks.ray_scale [--latency 1] [--limit 8] [--rollouts 64] [--rounds 3]

The nodes are two raylets on this machine, the server answers on loopback after a fixed latency, so
what is measured is what the way home costs, not what machines do. Each node has one worker with at
most `--limit` runs, and `max_concurrency` is that for each node. The graph is the chain of
`chain.py`. In-process runs at one node's limit stand beside it. Exit status 1 where two nodes do
less than 1.8 times the rollouts of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

import openai

import lg_textgrad as tg
from evals.benchmarks import chain
from evals.benchmarks.server import Server

BAR = 1.8
NODES = 2
URL = "RAY_SCALE_URL"
SPEC = "evals.benchmarks.ray_scale:graph"
_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def build() -> tg.TrainableGraph:
    """Return the chain, with clients that no other event loop has."""
    client = openai.DefaultAsyncHttpxClient(trust_env=False)
    url = os.environ.get(URL, "http://127.0.0.1:9/v1")
    return chain.build(chain.chat(url, http_async_client=client, max_retries=0), NODES)


graph = build()


async def timed(made: tg.TrainableGraph, rows: list[tg.Example], limit: int) -> float:
    """Return the rollouts a second."""
    ledger = tg.Ledger(max_concurrency=limit)
    started = time.monotonic()
    with tg.use_ledger(ledger):
        runs = await made.arecord(rows, max_runs=4 * limit)
    seconds = time.monotonic() - started
    assert all(run.error is None for run in runs), next(r.error for r in runs if r.error)
    await ledger.aclose()
    return len(rows) / seconds


def rates(address: str | None, limit: int, nodes: int, rollouts: int, rounds: int) -> list[float]:
    """Return the rollouts a second of each round; a round to begin with is not counted."""
    made = build()

    async def measure() -> list[float]:
        found = []
        for turn in range(rounds + 1):
            first = turn * rollouts
            found.append(await timed(made, chain.examples(rollouts, first), limit * nodes))
        return found[1:]

    if address is None:
        return asyncio.run(measure())
    with tg.executors.Ray(made, SPEC, address, runs_per_worker=limit, env=[URL]) as executor:
        assert len(executor.workers) == nodes, executor.workers
        return asyncio.run(measure())


def measure(latency: float, limit: int, rollouts: int, rounds: int) -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    found: dict[str, list[float]] = {}
    with Server(latency=latency) as server:
        os.environ[URL] = server.base_url
        found["in process"] = rates(None, limit, 1, rollouts, rounds)
        cluster: Any = Cluster(
            initialize_head=True, head_node_args={**_NODE, "include_dashboard": False}
        )
        try:
            found["1 node"] = rates(cluster.address, limit, 1, rollouts, rounds)
            cluster.add_node(**_NODE)
            cluster.wait_for_nodes()
            found["2 nodes"] = rates(cluster.address, limit, 2, rollouts, rounds)
        finally:
            ray.shutdown()
            cluster.shutdown()
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "latency": latency,
        "limit": limit,
        "rollouts": rollouts,
        "calls_each": NODES,
        "possible_a_node": limit / (latency * NODES),
        "rollouts_a_second": medians,
        "rounds": found,
        "ratio": medians["2 nodes"] / medians["1 node"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=8, help="runs at once on each node")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = measure(options.latency, options.limit, options.rollouts, options.rounds)
    print(json.dumps(found, indent=2))
    return 0 if found["ratio"] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
