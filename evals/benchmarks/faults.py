"""Fault rates in, outcome and overhead out: the same training run with and without faults.

    python -m evals.benchmarks.faults
    python -m evals.benchmarks.faults --rate 429=0.3 --rate hang=0.05 --seeds 0 1 2

A chain of three model nodes is trained against a loopback server, once without faults and, for
each seed of the faults, once with them. The prompts and scores have to be the same, no example may
be lost, and the server may have given each answer no more often than without faults. Ends with
status 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import openai

import lg_textgrad as tg
from evals.benchmarks.chain import build, chat, evaluator, examples
from evals.benchmarks.script import MODEL
from evals.benchmarks.server import FAULTS, Server

RATES = {"429": 0.10, "500": 0.05, "malformed": 0.03, "hang": 0.02, "reset": 0.01}
NODES = 3


async def train(
    server: Server, patience: tg.Patience, rows: int, concurrency: int
) -> dict[str, Any]:
    """Train once and return what came of it and what the server saw."""
    connections = openai.DefaultAsyncHttpxClient(trust_env=False)
    graph_model = chat(server.base_url, max_retries=0, http_async_client=connections)
    model = tg.models.OpenAI(MODEL, base_url=server.base_url, api_key="none")
    trainer = tg.Trainer(
        build(graph_model, NODES),
        tg.Objective([evaluator(NODES)]),
        critic=tg.LLMCritic(model),
        optimizer=tg.optim.TextualGradientDescent(model),
        schedule=tg.Schedule(steps=2, batch_size=rows),
        max_concurrency=concurrency,
        patience=patience,
    )
    started = time.perf_counter()
    result = await trainer.afit(examples(2 * rows), examples(2 * rows, 100), examples(rows, 200))
    seconds = time.perf_counter() - started
    await model.aclose()
    await connections.aclose()
    return {
        "outcome": {
            "prompts": result.after,
            "val": [result.baseline.val, result.best.val],
            "test": [result.baseline.test, result.best.test],
            "accepted": result.accepted,
            "rejected": result.rejected,
        },
        "stopped_by": result.stopped_by,
        "calls": result.spent.usage.calls,
        "faults": dict(result.spent.faults),
        "seconds": round(seconds, 2),
        "server": server.stats(),
    }


def compare(without: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the faults cost, and what they changed."""
    calm, rough = without["server"], found["server"]
    more = Counter(rough["answered"]) - Counter(calm["answered"])
    less = Counter(calm["answered"]) - Counter(rough["answered"])
    faults = sum(rough["faults"].values())
    wrong = []
    if found["outcome"] != without["outcome"]:
        wrong.append("the outcome is another one")
    if less:
        wrong.append(f"{less.total()} answers are missing")
    if more:
        wrong.append(f"{more.total()} answers were asked for more often than without faults")
    if rough["requests"] != calm["requests"] + faults:
        wrong.append(
            f"{rough['requests']} requests are not {calm['requests']} and {faults} that failed"
        )
    return {
        "wrong": wrong,
        "requests": rough["requests"],
        "requests_without": calm["requests"],
        "server_faults": rough["faults"],
        "noticed": found["faults"],
        "seconds": found["seconds"],
        "seconds_without": without["seconds"],
        "peak": rough["peak"],
    }


def measure(
    rates: Mapping[str, float],
    *,
    seeds: list[int],
    rows: int = 8,
    latency: float = 0.02,
    timeout: float = 2.0,
    first_pause: float = 0.5,
    concurrency: int = 16,
) -> dict[str, Any]:
    """Return the outcome without faults, and for each seed what the faults cost and changed."""
    patience = tg.Patience(timeout=timeout, first_pause=first_pause)
    with Server(latency=latency) as server:
        without = asyncio.run(train(server, patience, rows, concurrency))
    trials = []
    for seed in seeds:
        with Server(latency=latency, faults=rates, seed=seed) as server:
            found = asyncio.run(train(server, patience, rows, concurrency))
        trials.append({"seed": seed, **compare(without, found)})
    return {"rates": dict(rates), "outcome": without["outcome"], "trials": trials}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", action="append", default=[], metavar="KIND=RATE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.02, metavar="SECONDS")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    rates = dict(RATES)
    for given in options.rate:
        kind, _, rate = given.partition("=")
        if kind not in FAULTS:
            parser.error(f"there is no fault '{kind}'; there are {', '.join(FAULTS)}")
        rates[kind] = float(rate)
    found = measure(
        rates,
        seeds=options.seeds,
        rows=options.rows,
        latency=options.latency,
        timeout=options.timeout,
        concurrency=options.concurrency,
    )
    print(json.dumps(found, indent=2))
    return 1 if any(trial["wrong"] for trial in found["trials"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
