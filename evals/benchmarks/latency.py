"""How long one training step takes against a server with a fixed latency; TextGrad's beside it.

    python -m evals.benchmarks.latency
    python -m evals.benchmarks.latency --no-textgrad --repeat 5

The step records, evaluates, goes back and proposes on a chain of 5 model nodes with 16 samples, its
store on disk. The server answers after 50 ms, in a process of its own. The critical path is 5 calls
forward, 5 back and 1 to propose. Three bars: the step takes at most 1.5 times the critical path, at
least 12 times less than TextGrad's, and its CPU per call is at most 2 ms above what the openai SDK
needs for the same requests. Beside them stands what a step takes without us: the bare graph, and
the critic's and rewriter's requests through the bare SDK. The best of `--repeat` steps counts,
each on rows of its own and after one to warm up; all are printed. TextGrad runs in `.venv-peers`,
installed the first time (some minutes). Ends with status 1 where a bar is missed: on a machine that
does nothing else, that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai

import lg_textgrad as tg
from evals.benchmarks.chain import build, chat, evaluator, examples
from evals.benchmarks.peers_environment import interpreter
from evals.benchmarks.script import MODEL
from evals.benchmarks.server import Server

NODES, SAMPLES, LATENCY = 5, 16, 0.05
MOST_PATHS, LEAST_FASTER, MOST_CPU = 1.5, 12.0, 0.002


class Steps:
    """Training steps on one graph and one store, as a notebook would make them."""

    def __init__(self, server: Server, store: tg.Store, nodes: int, samples: int) -> None:
        self.connections = openai.DefaultAioHttpClient(trust_env=False)
        model = chat(server.base_url, max_retries=0, http_async_client=self.connections)
        self.model = tg.models.OpenAI(MODEL, base_url=server.base_url, api_key="none")
        self.graph = build(model, nodes)
        self.objective = tg.Objective([evaluator(nodes)])
        self.critic = tg.LLMCritic(self.model)
        self.ledger = tg.Ledger(store, max_concurrency=4 * samples)
        self.samples = samples
        self.made = 0

    async def step(self) -> dict[str, float]:
        """Make one step on rows of its own and return its seconds, those of CPU too, by part."""
        rows = examples(self.samples, self.made * self.samples)
        self.made += 1
        # A seed of its own, or the rewriter's answers were in the store already.
        optimizer = tg.optim.TextualGradientDescent(
            self.model, parameters=self.graph.parameters, seed=self.made
        )
        times = [time.perf_counter()]
        cpu = time.process_time()
        with tg.use_ledger(self.ledger):
            runs = await self.graph.arecord(rows)
            times.append(time.perf_counter())
            loss = await self.objective.acall(runs)
            times.append(time.perf_counter())
            optimizer.zero_grad()
            await loss.abackward(self.critic)
            times.append(time.perf_counter())
            candidates = await optimizer.apropose()
            times.append(time.perf_counter())
        cpu = time.process_time() - cpu
        assert candidates, "the step proposed nothing"
        parts = [b - a for a, b in pairwise(times)]
        names = ("record", "evaluate", "backward", "propose")
        return {
            "seconds": times[-1] - times[0],
            "cpu": cpu,
            **dict(zip(names, parts, strict=True)),
        }

    async def aclose(self) -> None:
        await self.model.aclose()
        await self.connections.aclose()


async def our_steps(
    server: Server, nodes: int, samples: int, repeat: int
) -> tuple[list[dict[str, float]], list[Any]]:
    """Return what each step took, and the requests of the last one."""
    with tempfile.TemporaryDirectory() as folder, tg.Store(Path(folder) / "run") as store:
        steps = Steps(server, store, nodes, samples)
        await steps.step()
        server.stats()
        found = []
        for _ in range(repeat):
            step = await steps.step()
            seen = server.stats()
            found.append({**step, "calls": float(seen["requests"])})
        await steps.aclose()
    return found, seen["bodies"]


async def sdk_cpu(server: Server, bodies: Sequence[Any], at_once: int, repeat: int) -> float:
    """Return the least CPU, in seconds per call, that the SDK needs for these requests."""
    connections = openai.DefaultAioHttpClient(trust_env=False)
    client = openai.AsyncOpenAI(
        base_url=server.base_url, api_key="none", max_retries=0, http_client=connections
    )
    least = float("inf")
    for _ in range(repeat + 1):  # the first one opens the connections
        cpu = time.process_time()
        for first in range(0, len(bodies), at_once):
            level = bodies[first : first + at_once]
            await asyncio.gather(*(client.chat.completions.create(**body) for body in level))
        least = min(least, (time.process_time() - cpu) / len(bodies))
    await client.close()
    return least


async def without_us(
    server: Server, nodes: int, samples: int, bodies: Sequence[Any], repeat: int
) -> tuple[float, float]:
    """Return the least seconds, and CPU per call, of the bare graph and SDK with these requests."""
    connections = openai.DefaultAioHttpClient(trust_env=False)
    graph = build(chat(server.base_url, max_retries=0, http_async_client=connections), nodes).graph
    assert graph is not None, "it was compiled here"
    client = openai.AsyncOpenAI(
        base_url=server.base_url, api_key="none", max_retries=0, http_client=connections
    )
    asked = [body for body in bodies if "response_format" in body]
    critic, rewriter = asked[: nodes * samples], asked[nodes * samples :]

    async def back(sample: int) -> None:
        for body in critic[sample::samples]:
            await client.chat.completions.create(**body)

    seconds, cpu = float("inf"), float("inf")
    for turn in range(repeat + 1):  # the first one opens the connections
        rows = [dict(e.inputs) for e in examples(samples, turn * samples)]
        began, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(graph.ainvoke(row) for row in rows))
        await asyncio.gather(*(back(sample) for sample in range(samples)))
        await asyncio.gather(*(client.chat.completions.create(**body) for body in rewriter))
        seconds = min(seconds, time.perf_counter() - began)
        cpu = min(cpu, (time.process_time() - used) / len(bodies))
    await client.close()
    return seconds, cpu


def textgrad_seconds(server: Server, nodes: int, samples: int) -> float:
    """Return what TextGrad's step takes. Raises `CalledProcessError` when it cannot be had."""
    done = subprocess.run(
        [interpreter(), "-m", "evals.benchmarks.textgrad_step", server.base_url, str(nodes),
         str(samples)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the network
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure(
    *,
    nodes: int = NODES,
    samples: int = SAMPLES,
    latency: float = LATENCY,
    repeat: int = 5,
    textgrad: bool = True,
) -> dict[str, Any]:
    """Return the seconds and CPU of our steps, the SDK's CPU, TextGrad's seconds, and the bars."""
    with Server(latency=latency, keep=True) as server:
        steps, bodies = asyncio.run(our_steps(server, nodes, samples, repeat))
        sdk = asyncio.run(sdk_cpu(server, bodies, samples, repeat))
        bare, bare_cpu = asyncio.run(without_us(server, nodes, samples, bodies, repeat))
        theirs = textgrad_seconds(server, nodes, samples) if textgrad else None
    best = min(steps, key=lambda step: step["seconds"])
    path = (2 * nodes + 1) * latency
    used = min(step["cpu"] / step["calls"] for step in steps)
    own = used - sdk
    bars = {
        f"at most {MOST_PATHS:g} critical paths": best["seconds"] <= MOST_PATHS * path,
        f"at most {1000 * MOST_CPU:g} ms of own CPU per call": own <= MOST_CPU,
    }
    if theirs is not None:
        faster = theirs / best["seconds"]
        bars[f"at least {LEAST_FASTER:g} times faster than TextGrad"] = faster >= LEAST_FASTER
    return {
        "critical_path": path,
        "seconds": round(best["seconds"], 3),
        "critical_paths": round(best["seconds"] / path, 2),
        "textgrad_seconds": None if theirs is None else round(theirs, 2),
        "times_faster": None if theirs is None else round(theirs / best["seconds"], 1),
        "seconds_without_us": round(bare, 3),
        "own_cpu_ms_per_call": round(1000 * own, 2),
        "own_cpu_ms_per_call_with_a_bare_graph": round(1000 * (used - bare_cpu), 2),
        "sdk_cpu_ms_per_call": round(1000 * sdk, 2),
        "load": round(os.getloadavg()[0], 1),
        "bars": bars,
        "steps": [{name: round(value, 3) for name, value in step.items()} for step in steps],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-textgrad", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(repeat=options.repeat, textgrad=not options.no_textgrad)
    except subprocess.CalledProcessError as error:
        print(
            f"TextGrad could not be run: {str(error.stderr or error)[-300:]}\nMeasure without it: "
            "--no-textgrad.",
            file=sys.stderr,
        )
        return 2
    print(json.dumps(found, indent=2))
    return 0 if all(found["bars"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
