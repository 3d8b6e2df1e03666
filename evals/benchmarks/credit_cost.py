"""What the critics of one step cost in calls and prompt tokens; TextGrad's beside them.

    python -m evals.benchmarks.credit_cost
    python -m evals.benchmarks.credit_cost --nodes 8 --samples 4 --no-textgrad

A chain of N model nodes, each with a prompt, and B samples that fail. The models are a server on
loopback that plays everyone; what it is sent is counted. Bars: at most N·B calls in node mode, B in
trace mode, none for samples with full marks, and at most half of TextGrad's prompt tokens; `brief`,
with its two worked examples for small models, is told beside them. Tokens are counted alike for
all, from the requests: messages, and the JSON schemas that only we send.
TextGrad runs in `.venv-peers`, installed the first time (some minutes). Ends with status 1 where a
bar is missed. Nothing is timed, so the figures are the same on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openai

import lg_textgrad as tg
from evals.benchmarks.chain import build, chat, evaluator, examples
from evals.benchmarks.peers_environment import interpreter
from evals.benchmarks.script import MODEL, prompt, rule
from evals.benchmarks.server import Server
from lg_textgrad.parameter import count_tokens

Cost = dict[str, int]


def cost_of(bodies: Sequence[Mapping[str, Any]]) -> Cost:
    """Return calls and prompt tokens of requests, schemas included."""
    tokens = 0
    for body in bodies:
        tokens += sum(count_tokens(_text(m["content"])) for m in body["messages"])
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        tokens += count_tokens(json.dumps(schema)) if schema else 0
    return {"calls": len(bodies), "prompt_tokens": tokens}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def our_costs(server: Server, nodes: int, samples: int) -> dict[str, Cost]:
    """Return what each mode costs, and what samples with full marks do."""
    connections = openai.DefaultAsyncHttpxClient(trust_env=False)
    graph = build(chat(server.base_url, max_retries=0, http_async_client=connections), nodes)
    model = tg.models.OpenAI(MODEL, base_url=server.base_url, api_key="none")
    objective = tg.Objective([evaluator(nodes)])
    critics: dict[str, tg.Critic] = {
        "node": tg.LLMCritic(model),
        "node, brief": tg.LLMCritic(model, brief=True),
        "trace": tg.TraceCritic(model),
    }
    loss = await objective.acall(await graph.arecord(examples(samples)))
    assert all(s.score == 0 for s in loss.scored), "every node of every sample is at fault"
    good = {f"s{k}": f"{prompt(k)}\n{rule(k)}" for k in range(nodes)}
    perfect = await objective.acall(await graph.arecord(examples(samples), prompts=good))
    assert all(s.score == 1 for s in perfect.scored), "nothing is left to blame"
    server.stats()
    costs = {}
    for name, critic in critics.items():
        await loss.abackward(critic)
        costs[name] = cost_of(server.stats()["bodies"])
        blamed = [n for n, p in graph.parameters.items() if any(g.change for g in p.grad)]
        assert blamed, f"{name} found no fault"
        await perfect.abackward(critic)
        seen = cost_of(server.stats()["bodies"])
        known = costs.setdefault("full marks", {"calls": 0, "prompt_tokens": 0})
        costs["full marks"] = {key: known[key] + seen[key] for key in known}
        for parameter in graph.parameters.values():
            parameter.grad.clear()
    await model.aclose()
    await connections.aclose()
    return costs


def textgrads_cost(server: Server, nodes: int, samples: int) -> Cost:
    """Return what TextGrad's backward pass costs. Raises `CalledProcessError` without it."""
    subprocess.run(
        [interpreter(), "-m", "evals.benchmarks.textgrad_step", server.base_url, str(nodes),
         str(samples)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the network
    )  # fmt: skip
    bodies = server.stats()["bodies"]
    texts = ["\n".join(_text(m["content"]) for m in body["messages"]) for body in bodies]
    # Its calls come one after another; before the step that counts there is one to warm up.
    first = next(n for n, text in enumerate(texts) if "This is message number 0." in text)
    return cost_of(
        [
            body
            for body, text in list(zip(bodies, texts, strict=True))[first:]
            if "You are the gradient (feedback) engine" in text
        ]
    )


def measure(nodes: int, samples: int, *, textgrad: bool = True) -> dict[str, Any]:
    """Return the costs and whether each bar is met."""
    with Server(keep=True) as server:
        costs = asyncio.run(our_costs(server, nodes, samples))
        if textgrad:
            costs["TextGrad"] = textgrads_cost(server, nodes, samples)
    bars = {
        "node mode: at most N·B calls": costs["node"]["calls"] <= nodes * samples,
        "trace mode: B calls": costs["trace"]["calls"] == samples,
        "full marks: no call": costs["full marks"]["calls"] == 0,
    }
    if textgrad:
        half = costs["TextGrad"]["prompt_tokens"] / 2
        for name in ("node", "trace"):
            bars[f"{name}: at most half of TextGrad's tokens"] = (
                costs[name]["prompt_tokens"] <= half
            )
    return {"nodes": nodes, "samples": samples, "costs": costs, "bars": bars}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--no-textgrad", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(options.nodes, options.samples, textgrad=not options.no_textgrad)
    except subprocess.CalledProcessError as error:
        print(
            f"TextGrad could not be run: {str(error.stderr or error)[-300:]}\nMeasure without it: "
            "--no-textgrad.",
            file=sys.stderr,
        )
        return 2
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if all(found["bars"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
