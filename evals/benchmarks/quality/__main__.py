"""Run the quality benchmark: ours and the peers, on one model that speaks OpenAI's API.

    python -m evals.benchmarks.quality --data DIR --seeds 0 1 2

`--data` is the folder with the tasks' JSONL files. Without `--base-url` the embedded model is
used. The peers are installed into `.venv-peers` the first time. Each result is written to
`results.json` beside this script as soon as it is there, failures included, and a result that is
there already is not made again. `python -m evals.benchmarks.quality.plot` draws them.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from pathlib import Path
from typing import Any

import lg_textgrad as tg
from evals.benchmarks.peers_environment import outcome_of
from evals.benchmarks.quality.ours import (
    evaluator_of,
    examples_of,
    graph_of,
    optimize,
)
from evals.benchmarks.quality.results import by_task, line_of
from evals.benchmarks.quality.tasks import TASKS, Rows, Task, rows_of
from lg_textgrad.demos import split_demos

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PEERS = ("textgrad", "gepa", "mipro")
OURS = ("portfolio", "tgd")


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m evals.benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--val", type=int, default=24)
    parser.add_argument("--test", type=int, default=60)
    # 1 is faster where each slot of a local server has to read a long prompt for itself.
    parser.add_argument("--concurrency", type=int, default=4, help="of our own runs")
    parser.add_argument("--base-url")
    parser.add_argument("--model")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.base_url is None:
        local = tg.models.Local().start()
        options.base_url, options.model = local.base_url, local.model
    results = json.loads(options.results.read_text()) if options.results.exists() else []
    known = {(r["task"], r["method"], r["seed"], r["calls_allowed"], r["rows"][1]) for r in results}
    for seed in options.seeds:
        for name in options.tasks:
            rows = rows_of(TASKS[name], options.data, seed, val=options.val, test=options.test)
            for method in ["seed", *options.methods]:
                key = name, method, seed, options.calls, options.val
                if key in known:
                    continue
                known.add(key)
                results.append(_run(TASKS[name], method, seed, rows, options))
                text = json.dumps(results, indent=1, ensure_ascii=False)
                options.results.write_text(text + "\n", encoding="utf-8")
                print(line_of(results[-1]), flush=True)
    print(table(results))


def _run(
    task: Task, method: str, seed: int, rows: Rows, options: argparse.Namespace
) -> dict[str, Any]:
    started = time.monotonic()
    about = {
        "task": task.name, "method": method, "seed": seed, "calls_allowed": options.calls,
        "rows": [len(rows.train), len(rows.val), len(rows.test)],
    }  # fmt: skip
    try:
        if method == "seed":
            found = {"test": _test(task, rows, task.prompt, options), "prompt": task.prompt}
        elif method in PEERS:
            found = _peer(task, method, seed, rows, options)
        else:
            found = _ours(task, method, seed, rows, options)
    except Exception as error:  # a failure is a result, and is kept as one
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {**about, **found, "seconds": round(time.monotonic() - started)}


def _ours(
    task: Task, method: str, seed: int, rows: Rows, options: argparse.Namespace
) -> dict[str, Any]:
    makers = {
        "portfolio": lambda llm, seed: tg.optim.Portfolio(llm, seed=seed),
        "tgd": lambda llm, seed: tg.optim.TextualGradientDescent(llm, seed=seed),
    }
    prompt, result, way = optimize(
        task,
        rows,
        make=makers[method],
        acceptance=tg.Significant(alpha=0.1),
        base_url=options.base_url,
        model=options.model,
        calls=options.calls,
        seed=seed,
        concurrency=options.concurrency,
        store=options.runs / f"{task.name}-{method}-{seed}-{options.calls}-{options.val}",
    )
    spent = result["spent"]
    instruction, demos = split_demos(prompt)
    return {
        "test": _test(task, rows, prompt, options),
        "prompt": instruction,
        "demonstrations": len(demos),  # rows of the data, which are not ours to publish
        "calls": spent["calls"],
        "tokens": spent["prompt_tokens"] + spent["completion_tokens"],
        "val": [result["baseline"]["val"], result["best"]["val"]],
        "way": way,
    }


def _test(task: Task, rows: Rows, prompt: str, options: argparse.Namespace) -> float:
    """Score a prompt on the fresh rows. What was answered before is not asked again."""
    graph = graph_of(task, options.base_url, options.model)
    objective = tg.Objective([evaluator_of(task)])
    with tg.Store(options.runs / "test") as store, tg.use_ledger(
        tg.Ledger(store, None, options.concurrency)
    ):
        runs = graph.record(examples_of(task, rows.test), prompts={"prompt": prompt})
        return objective(runs).score


def _peer(
    task: Task, method: str, seed: int, rows: Rows, options: argparse.Namespace
) -> dict[str, Any]:
    job = {
        "task": task.name, "peer": method, "seed": seed, "calls": options.calls,
        "base_url": options.base_url, "model": options.model,
        "train": rows.train, "val": rows.val, "test": rows.test,
    }  # fmt: skip
    return outcome_of("evals.benchmarks.quality.peers", job)


def table(results: list[dict[str, Any]]) -> str:
    """Return the mean scores as a Markdown table: a row a task and size, a column a method."""
    methods = list(dict.fromkeys(r["method"] for r in results))
    head = ["task", "validation rows", *methods]
    lines = [" | ".join(["", *head, ""]).strip(), "|---" * len(head) + "|"]
    for (task, val), own in by_task(results).items():
        cells = [task, str(val)]
        for method in methods:
            scores = [r["test"] for r in own if r["method"] == method and "test" in r]
            cells.append(f"{sum(scores) / len(scores):.3f} ({len(scores)})" if scores else "–")
        lines.append(" | ".join(["", *cells, ""]).strip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
