"""Every way of holding a prompt in one compiled graph, under many candidates at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import SystemMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime

import lg_textgrad as tg
from tests.parts import Chat, echo
from tests.servers.openai_server import OpenAIServer


class S(TypedDict, total=False):
    q: str
    style: str
    messages: Annotated[list, add_messages]
    declared: str
    context: str
    state: str
    found: str
    raw: str


@dataclass
class Context:
    greeting: str = field(default="You greet.", metadata={"langgraph_type": "prompt"})


TOOL = {"name": "look", "description": "Looks.", "input_schema": {"properties": {}}}


class Shows(Chat):
    """Answers with what it was sent and how its tools were described."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        offered = [SystemMessage(t["description"]) for t in kwargs.get("tools", ())]
        return super()._generate([*messages, *offered])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return self._generate(messages, stop, run_manager, **kwargs)

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)


def build(sync, client):
    model = Shows(answer=echo)
    declared = tg.Parameter("declared", "You route.")
    agent = tg.Parameter("agent", "You act.")

    def node(key, ask):
        def plain(state, runtime: Runtime[Context]):
            return {key: ask(state, runtime).content}

        async def awaited(state, runtime: Runtime[Context]):
            await asyncio.sleep(0)
            return {key: (await asyncio.to_thread(ask, state, runtime)).content}

        return plain if sync else awaited

    def by_declared(state, runtime):
        return model.invoke([declared.message(), ("user", state["q"])])

    def by_context(state, runtime):
        return model.invoke([("system", runtime.context.greeting), ("user", state["q"])])

    def by_state(state, runtime):
        return model.invoke([("system", state["style"]), ("user", state["q"])])

    def by_nothing(state, runtime):
        return model.bind(tools=[TOOL]).invoke([("system", "You find."), ("user", state["q"])])

    def by_raw(state, runtime):
        return client.chat.completions.create(
            model="test-model",
            messages=[{"role": "system", "content": "You ask."}, {"role": "user", "content": state["q"]}],
        ).choices[0].message

    sub = create_agent(model, tools=[], middleware=[agent.middleware()], name="actor")
    builder = StateGraph(S, context_schema=Context)
    for name, ask in {
        "declared": by_declared, "context": by_context, "state": by_state,
        "found": by_nothing, "raw": by_raw,
    }.items():  # fmt: skip
        builder.add_node(f"by_{name}", node(name, ask))
        builder.add_edge(START, f"by_{name}")
    builder.add_node("actor", sub).add_edge(START, "actor")
    return builder.compile(), [declared, agent]


@pytest.mark.parametrize("sync", [True, False])
async def test_fifty_candidates_of_all_ways_do_not_meet(sync):
    def said(body):
        return " / ".join(m["content"] for m in body["messages"])

    with OpenAIServer(said) as server, openai.DefaultHttpxClient(trust_env=False) as http:
        plain = openai.OpenAI(api_key="k", base_url=server.base_url, http_client=http, max_retries=0)
        compiled, parameters = build(sync, tg.models.wrap_openai(plain))
        given = {"q": "hi", "messages": [("user", "go")]}
        graph = await tg.adiscover(
            compiled,
            [given],
            parameters=parameters,
            bindings=[tg.StateText(tg.Parameter("style", "You style."))],
            tools=True,
        )
        before = {n: p.value for n, p in graph.parameters.items()}
        assert before == {
            "declared": "You route.", "agent": "You act.", "greeting": "You greet.", "style": "You style.",
            "by_found": "You find.", "by_raw": "You ask.", "by_found.tools.look": "Looks.",
        }  # fmt: skip
        names = sorted(before)

        def candidate(number):
            # Some change everything, most change one thing and leave the rest to the values.
            changed = names if number % 5 == 0 else [names[number % len(names)]]
            return {n: f"{n} {number}." for n in changed}

        candidates = [candidate(number) for number in range(50)]
        runs = await asyncio.gather(*(graph.arecord([{"inputs": given}], prompts=c) for c in candidates))
    for wanted, [run] in zip(candidates, runs, strict=True):
        text = {**before, **wanted}
        assert run.error is None
        assert run.warnings == ()
        assert {k: run.outputs[k] for k in ("declared", "context", "state", "found", "raw")} == {
            "declared": f"{text['declared']} / hi",
            "context": f"{text['greeting']} / hi",
            "state": f"{text['style']} / hi",
            "found": f"{text['by_found']} / hi / {text['by_found.tools.look']}",
            "raw": f"{text['by_raw']} / hi",
        }
        assert run.outputs["messages"][-1].content == f"{text['agent']} / go"
        read = {e.path: dict(e.prompts) for e in run.executions if e.prompts}
        assert read == {
            "by_declared": {"declared": text["declared"]},
            "by_context": {"greeting": text["greeting"]},
            "by_state": {"style": text["style"]},
            "by_found": {n: text[n] for n in ("by_found", "by_found.tools.look")},
            "by_raw": {"by_raw": text["by_raw"]},
            "actor/model": {"agent": text["agent"]},
        }
    assert {n: p.value for n, p in graph.parameters.items()} == before
