"""What tuning costs against the number of examples, of nodes and of candidates.

    python -m evals.benchmarks.scale
    python -m evals.benchmarks.scale --quick

A training step (record, evaluate, reverse pass, propose) on a chain of model nodes, its store on
disk, against a loopback server in a process of its own that answers after 50 ms. Examples and nodes
vary one at a time. Candidates are scored side by side on the same examples: such that change one
node, and such that change each, since what a candidate leaves as it was is not paid again. Prints
a table and the same as JSON. Own CPU is what is above the openai SDK's for a step's requests,
measured in the same run; the step with the least CPU of `--repeat` counts. Ends with status 1 where
the calls are not those that they have to be, or where a call costs more than twice the CPU at the
largest size that it costs at the smallest; answers from the store count as calls there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lg_textgrad as tg
from evals.benchmarks.chain import examples
from evals.benchmarks.latency import Steps, sdk_cpu
from evals.benchmarks.script import prompt
from evals.benchmarks.server import Server

SIZES = {"examples": (4, 16, 64), "nodes": (1, 2, 5, 8), "candidates": (1, 4, 16)}
QUICK = {"examples": (1, 3), "nodes": (1, 2), "candidates": (1, 2)}
NODES, SAMPLES, LATENCY = 3, 8, 0.05
MOST_DEARER = 2.0


async def steps(
    server: Server, nodes: int, samples: int, repeat: int
) -> tuple[dict[str, Any], list[Any]]:
    """Return what the best of some steps took and cost, and its requests."""
    with tempfile.TemporaryDirectory() as folder, tg.Store(Path(folder) / "run") as store:
        made = Steps(server, store, nodes, samples)
        await made.step()  # opens the connections
        found = []
        for _ in range(repeat):
            server.stats()
            before = made.ledger.account.spent
            step = await made.step()
            spent, seen = made.ledger.account.spent, server.stats()
            row = {
                "calls": seen["requests"],
                "saved_calls": spent.cached_calls - before.cached_calls,
                "tokens": spent.tokens - before.tokens,
                "seconds": step["seconds"],
                "cpu": step["cpu"],
            }
            found.append((row, seen["bodies"]))
        await made.aclose()
    return min(found, key=lambda pair: float(pair[0]["cpu"]))


async def trial(
    server: Server, count: int, changed: Sequence[int], nodes: int, samples: int
) -> dict[str, Any]:
    """Return what it takes and costs to score `count` candidates after the one that was there."""
    with tempfile.TemporaryDirectory() as folder, tg.Store(Path(folder) / "run") as store:
        made = Steps(server, store, nodes, samples)
        rows = examples(samples)
        candidates = [
            {f"s{k}": f"{prompt(k)}\nThis is candidate {n}." for k in changed}
            for n in range(count)
        ]

        async def score(candidate: Mapping[str, str] | None) -> None:
            await made.objective.acall(await made.graph.arecord(rows, prompts=candidate))

        with tg.use_ledger(made.ledger):
            await score(None)
            server.stats()
            before = made.ledger.account.spent
            started, cpu = time.perf_counter(), time.process_time()
            async with asyncio.TaskGroup() as group:
                for candidate in candidates:
                    group.create_task(score(candidate))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        spent = made.ledger.account.spent
        calls = server.stats()["requests"]
        await made.aclose()
    return {
        "calls": calls,
        "saved_calls": spent.cached_calls - before.cached_calls,
        "tokens": spent.tokens - before.tokens,
        "seconds": seconds,
        "cpu": cpu,
    }


def measure(
    sizes: Mapping[str, Sequence[int]] = SIZES, *, latency: float = LATENCY, repeat: int = 3
) -> dict[str, Any]:
    """Return a row for each size, and what is wrong with them."""
    rows: list[dict[str, Any]] = []
    with Server(latency=latency, keep=True) as server:
        for name in ("examples", "nodes"):
            for size in sizes[name]:
                nodes, samples = (NODES, size) if name == "examples" else (size, SAMPLES)
                row, bodies = asyncio.run(steps(server, nodes, samples, repeat))
                sdk = asyncio.run(sdk_cpu(server, bodies, samples, repeat))
                # Forward, back, and a rewriter's call for each prompt.
                due = 2 * nodes * samples + nodes
                rows.append({"against": name, "size": size, **row, "due": due, "sdk": sdk})
        for changed, name in (
            ([NODES - 1], "candidates, one node"), (range(NODES), "candidates, each node"),
        ):  # fmt: skip
            for size in sizes["candidates"]:
                row = asyncio.run(trial(server, size, changed, NODES, SAMPLES))
                due = size * SAMPLES * len(changed)
                rows.append({"against": name, "size": size, **row, "due": due, "sdk": sdk})
    for row in rows:
        cpu, answers = row.pop("cpu"), row["calls"] + row["saved_calls"]
        row["cpu_per_call"] = cpu / answers
        row["own_cpu_per_call"] = (cpu - row["calls"] * row.pop("sdk")) / answers
    return {"rows": rows, "wrong": wrong_with(rows), "load": round(os.getloadavg()[0], 1)}


def wrong_with(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where the costs are not what they have to be."""
    wrong = [
        f"{row['against']} {row['size']}: {row['calls']} calls, not {row['due']}"
        for row in rows
        if row["calls"] != row["due"]
    ]
    for name in dict.fromkeys(row["against"] for row in rows):
        first, *_, last = (row for row in rows if row["against"] == name)
        dearer = last["cpu_per_call"] / first["cpu_per_call"]
        if dearer > MOST_DEARER:
            wrong.append(
                f"{name}: a call costs {dearer:.1f} times the CPU at {last['size']} that it costs "
                f"at {first['size']}"
            )
    return wrong


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| against | | calls | from the store | tokens | seconds | own CPU, ms a call |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['against']} | {row['size']} | {row['calls']} | {row['saved_calls']} | "
        f"{row['tokens']:,} | {row['seconds']:.2f} | {1000 * row['own_cpu_per_call']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--latency", type=float, default=LATENCY, metavar="SECONDS")
    parser.add_argument("--quick", action="store_true", help="small sizes, once each")
    options = parser.parse_args()
    sizes, repeat = (QUICK, 1) if options.quick else (SIZES, options.repeat)
    found = measure(sizes, latency=options.latency, repeat=repeat)
    print(table(found["rows"]), end="\n\n")
    print(json.dumps(found, indent=2))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
