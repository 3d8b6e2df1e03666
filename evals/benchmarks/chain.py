"""A chain of model nodes that can be tuned: each adds a sentence to the text that it gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from pydantic import SecretStr

import lg_textgrad as tg
from evals.benchmarks.script import MODEL, WORDS, prompt, rule


class State(TypedDict, total=False):
    text: str


def chat(base_url: str, **options: Any) -> ChatOpenAI:
    """Return the graph's model."""
    return ChatOpenAI(model=MODEL, base_url=base_url, api_key=SecretStr("none"), **options)


def build(model: ChatOpenAI, nodes: int) -> tg.TrainableGraph:
    """Return a chain of so many nodes, each with a prompt of its own."""
    builder = StateGraph(State)
    parameters = [tg.Parameter(f"s{k}", prompt(k), role=f"step {k}") for k in range(nodes)]
    before = START
    for parameter in parameters:
        builder.add_node(parameter.name, _node(model, parameter))
        builder.add_edge(before, parameter.name)
        before = parameter.name
    return tg.TrainableGraph(builder.compile(), parameters)


def _node(model: ChatOpenAI, parameter: tg.Parameter) -> Any:
    async def node(state: State) -> State:
        asked = [SystemMessage(str(parameter)), HumanMessage(state["text"])]
        return {"text": str((await model.ainvoke(asked)).content)}

    return node


def examples(count: int, first: int = 0) -> list[tg.Example]:
    return [
        tg.Example(f"e{n}", {"text": f"This is message number {n}."})
        for n in range(first, first + count)
    ]


def evaluator(nodes: int) -> Any:
    def complete(outputs: Mapping[str, Any]) -> dict[str, Any]:
        missing = [k for k in range(nodes) if WORDS[k] not in outputs["text"]]
        return {
            "key": "complete",
            "score": 1 - len(missing) / nodes,
            "comment": " ".join(rule(k) for k in missing),
        }

    return complete
