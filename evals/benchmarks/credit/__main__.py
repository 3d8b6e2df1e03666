"""How often the largest weight falls on the node that is at fault.

    python -m evals.benchmarks.credit [--desks parcels hotel] [--rows 2]

`same` gives every node the evaluator's feedback with the same weight; `node` is `LLMCritic`, with a
call for each execution; `trace` is `TraceCritic`, with a call for a run; `proven` is `ProvenCredit`
around `trace`. The critics are `brief`, as a small model needs.

Two desks of six nodes (see `desks.py`), a fault seeded in one node after the other, each on the
first rows that it costs points. The nodes' models and the evaluators are code; the critic is a real
model, the embedded one unless `--base-url` names another. Written to `results.json` beside this
script: for each case the weight that each node got, by each way to give credit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lg_textgrad as tg
from evals.benchmarks.credit.desks import DESKS, Desk
from lg_textgrad.critics import CriticRequest, Critique, RunRequest
from lg_textgrad.models import ChatModel

RESULTS = Path(__file__).parent / "results.json"
WAYS = ("same", "node", "trace", "proven")


class Same:
    """Gives each execution that can be to blame the evaluator's words and the whole weight."""

    async def acriticize(self, request: CriticRequest) -> Critique:  # noqa: ARG002 - never asked
        return Critique()

    async def acriticize_run(self, request: RunRequest) -> list[tg.Gradient]:
        run = request.scored.run
        return [
            tg.Gradient(name, run.id, e.id, request.complaint, weight=1.0)
            for e in request.suspects
            for name in e.prompts
        ]


def critic_of(
    way: str, model: ChatModel, graph: tg.TrainableGraph, objective: tg.Objective
) -> tg.Critic:
    """Return the critic that gives credit in this way."""
    if way == "same":
        return Same()
    if way == "node":
        return tg.LLMCritic(model, brief=True)
    trace = tg.TraceCritic(model, brief=True)
    return trace if way == "trace" else tg.ProvenCredit(trace, graph, objective, model=model)


async def cases_of(
    desk: Desk, faulty: str, rows: int
) -> tuple[tg.TrainableGraph, tg.Objective, list[tg.Scored]]:
    """Return the first runs that the fault costs points."""
    graph, objective = desk.graph(faulty), tg.Objective([desk.evaluator])
    loss = await objective.acall(await graph.arecord(desk.rows))
    return graph, objective, [s for s in loss.scored if s.score < 1][:rows]


async def weights_of(
    way: str, model: ChatModel, graph: tg.TrainableGraph, objective: tg.Objective, case: tg.Scored
) -> dict[str, float]:
    """Return node -> the weight of what is to be changed in its prompt."""
    found = dict.fromkeys(graph.parameters, 0.0)
    loss = tg.Loss((case,))
    for gradient in await loss.abackward(critic_of(way, model, graph, objective)):
        if gradient.change:
            found[gradient.parameter] += gradient.weight
    for parameter in graph.parameters.values():
        parameter.grad.clear()
    return {name: round(weight, 4) for name, weight in found.items()}


def hit(weights: Mapping[str, float], faulty: str) -> float:
    """Return 1 when the largest weight is the faulty node's; of several that are as large a share.

    0 when nobody is blamed.
    """
    most = max(weights.values())
    first = [name for name, weight in weights.items() if weight == most]
    return 1 / len(first) if most > 0 and faulty in first else 0.0


async def measure(options: argparse.Namespace, model: ChatModel) -> list[dict[str, Any]]:
    """Return a record for each case and way; what is there is written down after each."""
    records: list[dict[str, Any]] = []
    for name in options.desks:
        desk = DESKS[name]
        for faulty in [n for n in desk.nodes if n in (options.nodes or desk.nodes)]:
            for way in options.ways:
                ledger, started = tg.Ledger(max_concurrency=options.concurrency), time.monotonic()
                with tg.use_ledger(ledger):
                    graph, objective, cases = await cases_of(desk, faulty, options.rows)
                    found = await asyncio.gather(
                        *(weights_of(way, model, graph, objective, case) for case in cases)
                    )
                spent = ledger.account.by_kind
                records += [
                    {
                        "way": way, "desk": name, "faulty": faulty, "row": case.run.example.id,
                        "weights": weights, "hit": hit(weights, faulty),
                    }
                    for case, weights in zip(cases, found, strict=True)
                ]  # fmt: skip
                asked = spent.get("critic", tg.Usage())
                print(
                    f"{way:7} {name:8} {faulty:8}"
                    f" {sum(r['hit'] for r in records[-len(cases) :]):.2f} of {len(cases)},"
                    f" {asked.calls} calls, {asked.prompt_tokens} prompt tokens,"
                    f" {time.monotonic() - started:.0f} s",
                    flush=True,
                )
                records[-len(cases)]["spent"] = {
                    "calls": asked.calls, "prompt_tokens": asked.prompt_tokens,
                    "completion_tokens": asked.completion_tokens,
                    "proof_calls": spent.get("proof", tg.Usage()).calls,
                    "seconds": round(time.monotonic() - started),
                }  # fmt: skip
                options.results.write_text(
                    json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
    return records


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| credit | parcels | hotel | both | critic calls per run | prompt tokens per run |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        mine = [r for r in records if r["way"] == way]
        if not mine:
            continue
        cells = [_share([r for r in mine if r["desk"] == desk]) for desk in DESKS]
        spent = [r["spent"] for r in mine if "spent" in r]
        calls = sum(s["calls"] for s in spent) / len(mine)
        tokens = sum(s["prompt_tokens"] for s in spent) / len(mine)
        lines.append(
            f"| {way} | {' | '.join(cells)} | {_share(mine)} | {calls:.1f} | {tokens:.0f} |"
        )
    return "\n".join(lines)


def _share(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "-"
    return f"{sum(r['hit'] for r in records) / len(records):.0%} of {len(records)}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m evals.benchmarks.credit", description=__doc__)
    parser.add_argument("--desks", nargs="+", default=list(DESKS), choices=list(DESKS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--nodes", nargs="+", help="only faults in these nodes")
    parser.add_argument("--rows", type=int, default=2, help="cases for each fault")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--base-url")
    parser.add_argument("--model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    local = tg.models.Local().start() if options.base_url is None else None
    model = tg.models.OpenAI(
        local.model if local else options.model,
        base_url=local.base_url if local else options.base_url,
        api_key="none",
        timeout=900,
    )
    records = asyncio.run(measure(options, model))
    print(table(records))


if __name__ == "__main__":
    main()
