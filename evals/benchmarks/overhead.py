"""What recording costs: a ReAct loop of 30 steps with an instant model, bare and recorded.

    python -m evals.benchmarks.overhead

All in one run. The graph is hand-written LangGraph with a ToolNode, so that there is little else to
measure; its model answers at once. Each round runs it in every way, one after the other, and ratios
are taken within a round: what else the machine does then counts on both sides. The figures are
medians, of processor time and by the clock.

- `bare`: the graph alone. `not recording`: the same graph, after it was recorded, alone again.
- `recorded`: under `tg.watch`, from the first callback to the finished `Run`.
- `recorded, paid once`: by `arecord`, where every model call is also looked up and kept in a store.
- `LangSmith`: traced by LangSmith's own tracer, whose client posts nowhere.

Exit status 1 where recording misses a bar: 2 times the bare run, 0.5 ms a node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import requests
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.tracers.langchain import LangChainTracer
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langsmith import Client

import lg_textgrad as tg

RATIO, MILLISECONDS = 2.0, 0.5


class Instant(BaseChatModel):
    """Asks for its tool again and again, and answers when it has asked `rounds` times."""

    rounds: int

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **_: Any,
    ) -> ChatResult:
        asked = sum(message.type == "tool" for message in messages)
        call = {"name": "look", "args": {"word": f"word {asked}"}, "id": f"call{asked}"}
        usage = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
        message = AIMessage("", tool_calls=[call], usage_metadata=usage)
        if asked >= self.rounds:
            message = AIMessage("That is all.", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool
def look(word: str) -> str:
    """Look a word up."""
    return f"{word} means what it says. " * 10


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def react(steps: int) -> Any:
    model = Instant(rounds=steps // 2).bind(tools=[{"name": "look"}])

    async def agent(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(State).add_node("agent", agent).add_node("tools", ToolNode([look]))
    builder.add_edge(START, "agent").add_edge("tools", "agent")
    builder.add_conditional_edges("agent", tools_condition, ["tools", END])
    return builder.compile()


class Nowhere(requests.Session):
    """Answers every request itself: nothing leaves the process."""

    def request(self, *_: Any, **__: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = 202
        response._content = b"{}"  # noqa: SLF001 - what requests has no setter for
        return response


INPUTS = {"messages": [("user", "What do these words mean? " * 10)]}
CONFIG: Any = {"recursion_limit": 10_000}


def ways(steps: int) -> dict[str, Callable[[], Awaitable[Any]]]:
    graph = react(steps)
    trainable = tg.TrainableGraph(graph)
    ledger = tg.Ledger()
    client = Client(api_url="http://127.0.0.1:9", api_key="none", session=Nowhere(), info={})
    samples = iter(range(10**9))

    async def bare() -> None:
        await graph.ainvoke(INPUTS, CONFIG)

    async def recorded() -> None:
        with tg.watch(trainable) as watched:
            await watched.graph.ainvoke(INPUTS, CONFIG)
        [run] = watched.runs
        assert len(run.executions) == steps + 1

    async def paid() -> None:
        with tg.use_ledger(ledger):
            [run] = await trainable.arecord([{"inputs": INPUTS}], sample=next(samples))
        assert len(run.executions) == steps + 1

    async def traced() -> None:
        tracer = LangChainTracer(client=client, project_name="overhead")
        await graph.ainvoke(INPUTS, {**CONFIG, "callbacks": [tracer]})
        client.flush()

    return {
        "bare": bare,
        "not recording": bare,
        "recorded": recorded,
        "recorded, paid once": paid,
        "LangSmith": traced,
    }


async def measure(steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return for each way its median seconds, ratio to the bare run, and milliseconds a node."""
    made = ways(steps)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for number in range(rounds + 1):
        for name, run in made.items():
            cpu, clock = time.process_time(), time.perf_counter()
            await run()
            if number:  # the first round warms up
                taken[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    bare = taken["bare"]
    found = {}
    for name, times in taken.items():
        pairs = list(zip(times, bare, strict=True))
        found[name] = {
            "cpu_ms": 1e3 * statistics.median(own[0] for own in times),
            "cpu_ratio": statistics.median(own[0] / other[0] for own, other in pairs),
            "clock_ratio": statistics.median(own[1] / other[1] for own, other in pairs),
            "ms_a_node": 1e3 * statistics.median(
                (own[0] - other[0]) / (steps + 1) for own, other in pairs
            ),
        }  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="executions of nodes, about")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = asyncio.run(measure(options.steps, options.rounds))
    recorded = found["recorded"]
    holds = recorded["cpu_ratio"] <= RATIO and recorded["ms_a_node"] <= MILLISECONDS
    if options.json:
        print(json.dumps({"steps": options.steps, "holds": holds, "ways": found}))
        return 0 if holds else 1
    print(f"{'':<22}{'cpu ms':>9}{'ratio':>8}{'by clock':>10}{'ms a node':>11}")
    for name, row in found.items():
        print(
            f"{name:<22}{row['cpu_ms']:>9.1f}{row['cpu_ratio']:>8.2f}{row['clock_ratio']:>10.2f}"
            f"{row['ms_a_node']:>11.3f}"
        )
    print(
        f"recording costs {recorded['cpu_ratio']:.2f} times the bare run (at most {RATIO}) and "
        f"{recorded['ms_a_node']:.3f} ms a node (at most {MILLISECONDS}): "
        f"{'holds' if holds else 'MISSED'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
