"""How the dependency graph of a run grows: seconds and memory from 100 to 100,000 executions.

    python -m evals.benchmarks.trace_scale

Four shapes: a chain over last-value channels, a ReAct loop whose every round reads the whole list
of messages, map-reduce by `Send`, and a loop around a subgraph. `graph` is the processor time to
work out who fed whom, `order` that to put the executions in reverse and to prune them; bytes are
the peak that both needed, for each execution, the run itself not counted.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import lg_textgrad as tg

EXAMPLE = tg.Example("e", {})


def execution(
    number: int, path: str, step: int, reads: str, writes: str, **more: Any
) -> tg.Execution:
    return tg.Execution(
        id=f"{path}#{number}",
        namespace=f"{path}:{number}",
        path=path,
        superstep=step,
        order=number,
        inputs={reads: 0},
        writes=((writes, 0),),
        prompts={"p": "t"} if number == 0 else {},
        **more,
    )


def run(executions: list[tg.Execution], accumulating: dict[str, tuple[str, ...]]) -> tg.Run:
    return tg.Run("r", EXAMPLE, "c", None, executions, accumulating=accumulating)


def chain(count: int) -> tg.Run:
    return run([execution(n, "node", n, "a", "a") for n in range(count)], {})


def react(count: int) -> tg.Run:
    nodes = ("model", "tools")
    found = [execution(n, nodes[n % 2], n, "messages", "messages") for n in range(count)]
    return run(found, {"": ("messages",)})


def map_reduce(count: int) -> tg.Run:
    workers = count - 2
    planner = execution(0, "planner", 0, "topic", "plan", sends=("worker",) * workers)
    sent = [
        execution(n, "worker", 1, "part", "found", sent_by="planner#0") for n in range(workers)
    ]
    return run([planner, *sent, execution(0, "writer", 2, "found", "text")], {"": ("found",)})


def subgraph(count: int) -> tg.Run:
    found: list[tg.Execution] = []
    for n in range(count // 3):
        host = execution(n, "agent", n, "messages", "messages")
        inner = [
            execution(n, f"agent/{name}", step, "messages", "messages", parent=host.id)
            for step, name in enumerate(("model", "tools"))
        ]
        found.extend([host, *inner])
    return run(found, {"": ("messages",), "agent": ("messages",)})


SHAPES: dict[str, Callable[[int], tg.Run]] = {
    "chain": chain, "react": react, "map_reduce": map_reduce, "subgraph": subgraph,
}  # fmt: skip


def measure(made: tg.Run) -> dict[str, float]:
    started = time.process_time()
    trace = tg.Trace.of(made)
    built = time.process_time()
    trace.reverse_order()
    trace.worth_visiting({"p"})
    ordered = time.process_time()
    tracemalloc.start()
    trace = tg.Trace.of(made)
    trace.reverse_order()
    trace.worth_visiting({"p"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "graph": built - started,
        "order": ordered - built,
        "bytes": peak / len(made.executions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = {
        shape: {count: measure(make(count)) for count in options.counts}
        for shape, make in SHAPES.items()
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'shape':<12}{'executions':>12}{'graph s':>10}{'order s':>10}{'bytes each':>12}")
    for shape, rows in found.items():
        for count, row in rows.items():
            print(
                f"{shape:<12}{count:>12,}{row['graph']:>10.3f}{row['order']:>10.3f}"
                f"{row['bytes']:>12,.0f}"
            )


if __name__ == "__main__":
    main()
