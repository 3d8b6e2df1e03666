"""Tune the support desk by lg_textgrad and by the peers, on one model that speaks OpenAI's API.

    python -m evals.benchmarks.support_peers --seeds 0

Everybody starts from the desk's prompts and gets the same 12 validation rows and calls; the final
prompts meet rows that optimizing never saw. Without `--base-url` the embedded model is used. The
peers are installed into `.venv-peers` the first time. Each result is written to `results.json`
beside this script as soon as it is there, failures included, and is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import lg_textgrad as tg
from evals.benchmarks.peers_environment import outcome_of
from evals.benchmarks.quality.ours import into
from evals.benchmarks.quality.results import line_of
from evals.evaluators.support import ALL

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PEERS = ("textgrad", "gepa", "mipro")
_BATCH = 5


def main() -> None:
    """Run what was asked for and print each result."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.benchmarks.support_peers", description=__doc__
    )
    parser.add_argument("--methods", nargs="+", default=["lg_textgrad", *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--val", type=int, default=12)
    parser.add_argument("--test", type=int, default=24)
    parser.add_argument("--base-url")
    parser.add_argument("--model")
    parser.add_argument("--runs", type=Path, default=Path("runs/support-peers"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.base_url is None:
        local = tg.models.Local().start()
        options.base_url, options.model = local.base_url, local.model
    os.environ["SUPPORT_BASE_URL"], os.environ["SUPPORT_MODEL"] = options.base_url, options.model
    results = json.loads(options.results.read_text()) if options.results.exists() else []
    for seed in options.seeds:
        for method in ("seed", *options.methods):
            about = {
                "method": method, "seed": seed, "calls_allowed": options.calls,
                "rows": [options.val, options.test],
            }  # fmt: skip
            if any(about.items() <= result.items() for result in results):
                continue
            results.append({**about, **_run(method, seed, options)})
            text = json.dumps(results, indent=1, ensure_ascii=False)
            options.results.write_text(text + "\n", encoding="utf-8")
            print(line_of(results[-1]), flush=True)


def rows_of(seed: int, *, val: int, test: int) -> dict[str, list[dict[str, Any]]]:
    """Return the desk's rows by split, validation and test drawn by `seed`."""
    data = HERE.parents[2] / "graphs" / "support" / "data"
    rows = {}
    for split, most in (("train", None), ("val", val), ("test", test)):
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        known = [json.loads(line) for line in lines]
        random.Random(f"support/{split}/{seed}").shuffle(known)
        rows[split] = known[:most]
    return rows


@cache
def start() -> dict[str, str]:
    """Return the prompts that everybody begins with."""
    from graphs.support.graph import graph  # reads the environment

    return {name: parameter.value for name, parameter in graph.parameters.items()}


def _run(method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    rows = rows_of(seed, val=options.val, test=options.test)
    try:
        found = (_peer if method in PEERS else _ours)(method, seed, rows, options)
    except Exception as error:  # a failure is a result, and is kept as one
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {**found, "seconds": round(time.monotonic() - started)}


def _ours(
    method: str, seed: int, rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    from graphs.support.graph import graph  # reads the environment

    splits = {
        name: [tg.Example(r["id"], r["inputs"], r["outputs"]) for r in own]
        for name, own in rows.items()
    }
    objective = tg.Objective(ALL)
    prompts = start()  # before the graph has others
    found: dict[str, Any] = {}
    if method != "seed":
        llm = tg.models.OpenAI(options.model, base_url=options.base_url, api_key="none")
        way: list[tuple[int, float]] = []
        trainer = tg.Trainer(
            graph,
            objective,
            critic=tg.LLMCritic(llm, brief=True),
            optimizer=tg.optim.TextualGradientDescent(llm, seed=seed),
            budget=tg.Budget(calls=options.calls),
            schedule=tg.Schedule(steps=10, batch_size=_BATCH, seed=seed),
            store=options.runs / f"{seed}-{options.calls}-{options.val}",
            max_concurrency=4,
            on_event=into(way),
        )
        try:
            result = trainer.fit(splits["train"], splits["val"])
        finally:
            for name, text in prompts.items():  # who comes next begins where we began
                graph.parameters[name].adopt(text)
        prompts = {name: result.after[name] for name in prompts}
        spent = result.to_json()["spent"]
        found = {
            "calls": spent["calls"],
            "tokens": spent["prompt_tokens"] + spent["completion_tokens"],
            "way": way,
        }
    with tg.use_ledger(tg.Ledger(max_concurrency=4)):
        runs = graph.record(splits["test"], prompts=prompts)
        scored = objective(runs).scored
    return {"test": sum(s.score for s in scored) / len(scored), "prompts": prompts, **found}


def _peer(
    method: str, seed: int, rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    from graphs.support.graph import graph

    job = {
        "peer": method, "seed": seed, "calls": options.calls, "base_url": options.base_url,
        "model": options.model, **rows,
        "prompts": start(),
        "roles": {name: p.role for name, p in graph.parameters.items()},
    }  # fmt: skip
    return outcome_of("evals.benchmarks.support_peers.peers", job)


if __name__ == "__main__":
    main()
