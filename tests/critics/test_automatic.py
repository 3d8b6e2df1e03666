"""The critic that chooses between whole runs and single executions."""

from __future__ import annotations

from typing import TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.assembly import CRITICS, make_critic
from lg_textgrad.budget import Account
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.loading import Config
from tests import desk
from tests.critics.test_whole import chain, loss_of
from tests.desk import RULES, START_PROMPTS, Script, play, schema_of, who
from tests.parts import BlamesUpstream, Chat, Scripted
from tests.servers.openai_server import OpenAIServer


class Both(Scripted):
    """A model that answers whole runs and single executions, and counts them."""

    def __init__(self):
        super().__init__(self.said)

    def said(self, request):
        wanted = request.schema["properties"]
        if "faults" in wanted:
            step = wanted["faults"]["items"]["properties"]["step"]["enum"][0]
            return {"faults": [{"step": step, "evidence": "", "general_rule": "Say.", "weight": 1}]}
        verdict = {"general_rule": "Say.", "weight": 1.0, "keep": "", "evidence": ""}
        if "upstream" in wanted:
            steps = wanted["upstream"]["items"]["properties"]["step"]["enum"]
            verdict["upstream"] = [{"step": s, "complaint": "wrong", "weight": 1} for s in steps]
        return {k: v for k, v in verdict.items() if k in wanted}

    @property
    def counted(self):
        whole = sum("faults" in r.schema["properties"] for r in self.requests)
        return whole, len(self.requests) - whole


def wordy():
    """A chain that answers each question at length."""
    took = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    return chain(lambda m: AIMessage(m[1].content[:2] + " word" * 200, usage_metadata=took))


async def counted(graph, n=2, budget=None, **options):
    """Return how many calls of either kind a reverse pass over n runs makes."""
    model = Both()
    with tg.use_ledger(tg.Ledger(account=Account(budget or tg.Budget()))):
        await (await loss_of(graph, n=n)).abackward(tg.AutoCritic(model, **options))
    return model.counted


async def test_short_runs_are_judged_at_once():
    assert await counted(chain()) == (2, 0)


async def test_runs_that_would_have_to_be_cut_are_walked():
    long = wordy()
    assert await counted(long, max_trace_tokens=300) == (0, 6)
    assert await counted(long, max_trace_tokens=3000) == (2, 0)


async def test_run_with_one_execution_to_judge_is_judged_by_itself():
    class S(TypedDict, total=False):
        q: str
        c: str

    parameter, model = tg.Parameter("p", "You are p."), Chat(answer=lambda m: "x")

    async def only(state):
        return {"c": (await model.ainvoke([parameter.message(), ("user", state["q"])])).content}

    builder = StateGraph(S).add_node("c1", only).add_edge(START, "c1")
    assert await counted(tg.TrainableGraph(builder.compile(), [parameter])) == (0, 2)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (tg.Budget(calls=60), (0, 6)),  # 2 runs of 3 executions are a tenth of it
        (tg.Budget(calls=59), (2, 0)),
        (tg.Budget(tokens=100_000), (0, 6)),
        (tg.Budget(tokens=20_000), (2, 0)),
        (tg.Budget(seconds=60), (0, 6)),
    ],
)
async def test_long_runs_are_judged_at_once_where_the_budget_wants_it(budget, expected):
    long = wordy()
    assert await counted(long, budget=budget, max_trace_tokens=300) == expected


async def test_share_says_how_much_of_the_budget_a_pass_may_take():
    long = wordy()
    budget = tg.Budget(calls=20)
    assert await counted(long, budget=budget, max_trace_tokens=300) == (2, 0)
    assert await counted(long, budget=budget, max_trace_tokens=300, share=0.5) == (0, 6)


@settings(deadline=None, max_examples=30)
@given(st.data())
async def test_calls_of_node_mode_are_foreseen_exactly_when_all_is_blamed(data):
    """`asked_by_node` against what a critic that blames everyone is really asked."""
    count = data.draw(st.integers(1, 6))
    State = TypedDict("State", {"q": str, **{f"k{i}": str for i in range(count)}}, total=False)
    model, builder, named = Chat(answer=lambda m: "x"), StateGraph(State), []
    for i in range(count):
        reads = data.draw(st.sets(st.sampled_from(["q", *(f"k{j}" for j in range(i))]), min_size=1))
        kind = data.draw(st.sampled_from(["trainable", "frozen", "bare", "code"]))
        parameter = tg.Parameter(f"p{i}", f"You are {i}.", requires_grad=kind == "trainable")

        async def run(state, reads=sorted(reads), kind=kind, parameter=parameter, i=i):
            text = " ".join(state.get(key, "") for key in reads)
            if kind == "code":
                return {f"k{i}": text}
            prompt = "none" if kind == "bare" else str(parameter)
            return {f"k{i}": (await model.ainvoke([("system", prompt), ("user", text)])).content}

        named += [parameter] if kind in ("trainable", "frozen") else []
        builder.add_node(f"n{i}", run).add_edge(f"n{i - 1}" if i else START, f"n{i}")
    graph = tg.TrainableGraph(builder.compile(), named)
    last = f"k{count - 1}"
    [run] = await graph.arecord([{"inputs": {"q": "q"}}])

    def complains(outputs):
        return {"key": "end", "score": 0, "comment": outputs[last]}

    foreseen = []

    class Counts(BlamesUpstream):
        async def acriticize_run(self, request):
            foreseen.append(request.asked_by_node)

    critic = Counts(also_self=True)
    await (await tg.Objective([complains]).acall([run])).abackward(critic)
    assert len(critic.asked) == (foreseen[0] if foreseen else 0)


def test_share_must_be_one():
    with pytest.raises(ConfigurationError, match="`share` of AutoCritic must be .* at most 1, not 1.5"):
        tg.AutoCritic(Both(), share=1.5)


def test_fingerprint_follows_both_critics_and_the_share():
    plain = tg.AutoCritic(Both()).fingerprint
    others = [{"brief": True}, {"max_trace_tokens": 5}, {"share": 0.2}]
    assert all(tg.AutoCritic(Both(), **more).fingerprint != plain for more in others)


class Knows(Script):
    """The desk's server, which also answers about whole runs, and writes what should have been."""

    async def __call__(self, body):
        if "response_format" in body:
            wanted = schema_of(body)["properties"]
            text = body["messages"][-1]["content"]
            if "faults" in wanted:
                complaint = text.split("Complaint about")[-1]
                found = [(n, r) for n, rules in RULES.items() for r in rules if r in complaint]
                faults = [
                    {"step": n, "evidence": "", "general_rule": r, "weight": 0.9} for n, r in found
                ]
                return {"faults": faults[:3] or [{"step": "triage", "evidence": "", "general_rule": "", "weight": 0}]}
            if "output" in wanted:
                name = who(body)[1]
                given_ = text.split("It was given:\n")[1].split("\n\nIt wrote:")[0]
                return {"output": play(name, "\n".join(RULES[name]), given_)}
        return await super().__call__(body)


@pytest.mark.parametrize("name", CRITICS)
async def test_every_critic_trains_the_desk_to_full_marks(name, monkeypatch):
    with OpenAIServer(Knows()) as server:
        monkeypatch.setenv("DESK_BASE_URL", server.base_url)
        model = tg.models.OpenAI("test-model", base_url=server.base_url, api_key="k")
        graph, objective = desk.build(), tg.Objective(desk.EVALUATORS)
        trainer = tg.Trainer(
            graph,
            objective,
            critic=make_critic(Config(critic=name), model, graph, objective),
            optimizer=tg.optim.TextualGradientDescent(model),
            schedule=tg.Schedule(steps=2, batch_size=3),
        )
        result = await trainer.afit(desk.rows(3), desk.rows(3, 3))
        await model.aclose()
    assert result.best.val == 1.0
    assert set(result.after) == set(START_PROMPTS)
