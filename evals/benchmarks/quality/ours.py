"""One run of lg_textgrad on a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from pydantic import SecretStr

import lg_textgrad as tg
from evals.benchmarks.quality.tasks import Rows, Task
from lg_textgrad.ledger import ledger_in_scope


class State(TypedDict, total=False):
    """One question, one reply."""

    question: str
    reply: str


def graph_of(task: Task, base_url: str, model: str) -> tg.TrainableGraph:
    """Return a graph of one node that asks the model."""
    prompt = tg.Parameter("prompt", task.prompt, role=task.role, max_tokens=1800)
    chat = ChatOpenAI(
        model=model, base_url=base_url, api_key=SecretStr("none"), temperature=0,
        max_completion_tokens=task.max_tokens, timeout=900,
    )  # fmt: skip

    async def answer(state: State) -> State:
        reply = await chat.ainvoke([prompt.message(), HumanMessage(state["question"])])
        return {"reply": str(reply.content)}

    builder = StateGraph(State).add_node(answer).add_edge(START, "answer")
    return tg.TrainableGraph(builder.compile(), [prompt])


def examples_of(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[tg.Example]:
    """Return the rows as examples."""
    return [
        tg.Example(
            str(row["metadata"]["id"]), {"question": row["inputs"][task.key]}, row["outputs"]
        )
        for row in rows
    ]


def evaluator_of(task: Task) -> Callable[..., dict[str, Any]]:
    """Return the task's score as an evaluator."""

    def scored(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
        score, comment = task.score(outputs["reply"], reference_outputs)
        return {"key": task.name, "score": score, "comment": comment}

    scored.__name__ = task.name
    return scored


def into(way: list[tuple[int, float]]) -> Callable[[str, Mapping[str, Any]], None]:
    """Return what notes each incumbent's validation score with the calls that were made by then."""

    def on_event(kind: str, data: Mapping[str, Any]) -> None:
        ledger = ledger_in_scope()  # None before the run begins
        if ledger is None:
            return
        if kind == "baseline":
            way.append((ledger.account.spent.calls, data["val"]))
        elif kind == "decision" and data["stage"] == "val" and data["accepted"]:
            way.append((ledger.account.spent.calls, data["val_after"]))

    return on_event


def optimize(
    task: Task,
    rows: Rows,
    *,
    make: Callable[[tg.models.OpenAI, int], tg.optim.Optimizer],
    acceptance: tg.Acceptance,
    base_url: str,
    model: str,
    calls: int,
    seed: int,
    store: Path | None,
    concurrency: int,
) -> tuple[str, dict[str, Any], list[tuple[int, float]]]:
    """Return the prompt that the optimizer ended with, what it cost, and the way there.

    The way is each incumbent's validation score with the calls that were made by then.
    """
    way: list[tuple[int, float]] = []
    graph = graph_of(task, base_url, model)
    llm = tg.models.OpenAI(model, base_url=base_url, api_key="none", timeout=900)
    trainer = tg.Trainer(
        graph,
        tg.Objective([evaluator_of(task)]),
        critic=tg.LLMCritic(llm, brief=True),
        optimizer=make(llm, seed),
        acceptance=acceptance,
        budget=tg.Budget(calls=calls),
        schedule=tg.Schedule(steps=10, batch_size=8, seed=seed),
        store=store,
        max_concurrency=concurrency,
        on_event=into(way),
    )
    result = trainer.fit(examples_of(task, rows.train), examples_of(task, rows.val))
    return result.after["prompt"], result.to_json(), way
