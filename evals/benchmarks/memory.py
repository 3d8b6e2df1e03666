"""Whether memory stays flat over a run of many rollouts.

    python -m evals.benchmarks.memory [--rollouts 1000 10000]

A graph of two nodes, each with a model call of its own through the ledger, is recorded and scored
under a run directory, in batches as a trainer does it, each rollout of its own input. Told is the
resident memory of the process when it has done that many rollouts, and the number of Python objects
alive; both after a garbage collection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, StateGraph

import lg_textgrad as tg

BATCH = 50


class Echo(BaseChatModel):
    """Says back what it was told: the cheapest model that is one."""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        message = AIMessage(str(messages[-1].content))
        return ChatResult(generations=[ChatGeneration(message=message)])


class Texts(TypedDict, total=False):
    question: str
    draft: str
    answer: str


def build() -> tg.TrainableGraph:
    model = Echo()
    draft = tg.Parameter("draft", "Draft an answer.")
    answer = tg.Parameter("answer", "Polish the draft.")

    async def draft_node(state: Texts) -> Texts:
        said = await model.ainvoke([draft.message(), HumanMessage(state["question"])])
        return {"draft": str(said.content)}

    async def answer_node(state: Texts) -> Texts:
        said = await model.ainvoke([answer.message(), HumanMessage(state["draft"])])
        return {"answer": str(said.content)}

    builder = StateGraph(Texts)
    builder.add_node("draft", draft_node).add_node("answer", answer_node)
    builder.add_edge(START, "draft").add_edge("draft", "answer")
    return tg.TrainableGraph(builder.compile(), [draft, answer])


def same(outputs: dict[str, Any], inputs: dict[str, Any]) -> bool:
    return bool(outputs["answer"] == inputs["question"])


def resident() -> float:
    """Return the process's resident memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


async def work(where: str, marks: list[int]) -> list[dict[str, float]]:
    graph, objective = build(), tg.Objective([same])
    told = []
    with tg.Store(where) as store, tg.use_ledger(tg.Ledger(store)):
        for first in range(0, max(marks), BATCH):
            numbers = range(first, first + BATCH)
            inputs = [{"question": f"{n}: " + "where is it? " * 40} for n in numbers]
            runs = await graph.arecord([{"inputs": i} for i in inputs])
            loss = await objective.acall(runs)
            assert loss.score == 1
            del runs, loss
            if first + BATCH in marks:
                gc.collect()
                told.append(
                    {
                        "rollouts": first + BATCH,
                        "mb": round(resident(), 1),
                        "objects": len(gc.get_objects()),
                    }
                )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1_000, 2_000, 5_000, 10_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = asyncio.run(work(f"{folder}/run", options.rollouts))
    if options.json:
        print(json.dumps(told))
        return
    print("| rollouts | resident MB | Python objects |\n|---|---|---|")
    for row in told:
        print(f"| {row['rollouts']:,} | {row['mb']:.1f} | {row['objects']:,} |")
    growth = told[-1]["mb"] / told[0]["mb"] - 1
    print(f"\nfrom the first to the last line: {growth:+.1%} resident memory")


if __name__ == "__main__":
    main()
