"""TrainableGraph: candidates stay apart, errors say what to do, failures are data."""

from __future__ import annotations

import asyncio
import functools
import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, TypedDict

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import (
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_openai import ChatOpenAI
from langgraph.cache.memory import InMemoryCache
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy, interrupt

import lg_textgrad as tg
from lg_textgrad.bindings.base import Declared
from lg_textgrad.errors import DataError, GraphError, ParameterError
from tests.parts import Chat, echo
from tests.servers.openai_server import OpenAIServer


class Context(TypedDict):
    log: list


@dataclass(frozen=True)
class Form:
    names: list


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    c: str
    seen: Annotated[list, operator.add]


def crowd_graph(sync):
    """Three nodes that read parameters, the second of them cached."""
    first, second, third = (tg.Parameter(n, "default") for n in ("first", "second", "third"))
    model = Chat(answer=echo)

    if sync:
        def one(s):
            return {"a": model.invoke([first.message()]).content}

        def two(s):
            return {"b": str(second)}

        def three(s):
            return {"c": model.invoke([third.message(), ("user", s["q"])]).content}
    else:
        async def one(s):
            await asyncio.sleep(0)
            return {"a": (await model.ainvoke([first.message()])).content}

        async def two(s):
            await asyncio.sleep(0.001)
            return {"b": str(second)}

        async def three(s):
            return {"c": (await model.ainvoke([third.message(), ("user", s["q"])])).content}

    builder = StateGraph(S)
    builder.add_node("one", one)
    builder.add_node("two", two, cache_policy=CachePolicy(key_func=lambda s: "always"))
    builder.add_node("three", three)
    builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", "three")
    return tg.TrainableGraph(builder.compile(cache=InMemoryCache()), [first, second, third])


def candidate(i):
    return {"first": f"first-{i}", "second": f"second-{i}", "third": f"third-{i}"}


def check(i, run, q="q"):
    out = run.outputs
    assert (out["a"], out["b"], out["c"]) == (f"first-{i}", f"second-{i}", f"third-{i} / {q}")
    read = {n: t for e in run.executions for n, t in e.prompts.items()}
    assert read == candidate(i)
    assert run.candidate == tg.candidate_hash(candidate(i))


@pytest.mark.parametrize("sync", [True, False])
async def test_a_hundred_candidates_run_at_once_without_crosstalk(sync):
    graph = crowd_graph(sync)
    batch = [{"inputs": {"q": "q"}}]
    ledger = tg.Ledger(max_concurrency=100)
    with tg.use_ledger(ledger):
        runs = await asyncio.gather(
            *(graph.arecord(batch, prompts=candidate(i)) for i in range(100))
        )
    for i, [run] in enumerate(runs):
        check(i, run)
    assert all(p.value == "default" for p in graph.parameters.values())


@pytest.mark.parametrize("sync", [True, False])
def test_a_hundred_candidates_from_threads_without_crosstalk(sync):
    graph = crowd_graph(sync)
    with ThreadPoolExecutor(20) as pool:
        runs = list(
            pool.map(lambda i: graph.record([{"inputs": {"q": f"q{i}"}}], prompts=candidate(i)), range(100))
        )
    for i, [run] in enumerate(runs):
        check(i, run, f"q{i}")


def test_candidate_in_scope_is_what_runs_and_prompts_win_over_it():
    graph = crowd_graph(sync=True)
    with tg.prompts({"first": "scoped", "second": "scoped", "stranger": "ignored"}):
        [run] = graph.record([{"inputs": {"q": "q"}}], prompts={"second": "given"})
    assert (run.outputs["a"], run.outputs["b"]) == ("scoped", "given")
    assert graph.candidate() == {"first": "default", "second": "default", "third": "default"}


@pytest.mark.parametrize("sync", [True, False])
async def test_node_cache_does_not_answer_one_candidate_with_anothers_result(sync):
    graph = crowd_graph(sync)
    # First that the cache does answer on its own: one after another, so that there is a hit.
    for text in ("cached", "never seen"):
        with tg.prompts({"second": text}):
            assert (await graph.graph.ainvoke({"q": "q"}))["b"] == "cached"
    for i in range(3):
        [run] = await graph.arecord([{"inputs": {"q": "q"}}], prompts=candidate(i))
        check(i, run)
    # What was recorded is not in the user's cache either.
    assert (await graph.graph.ainvoke({"q": "q"}))["b"] == "cached"


async def test_record_works_inside_a_running_loop():
    [run] = crowd_graph(sync=False).record([{"inputs": {"q": "q"}}], prompts=candidate(3))
    check(3, run)


def one_node(node, **compiled):
    return StateGraph(S).add_node("n", node).add_edge(START, "n").compile(**compiled)


def test_runs_come_in_the_order_of_the_examples():
    async def node(s):
        await asyncio.sleep(0.002 * (5 - int(s["q"])))
        return {"a": s["q"]}

    runs = tg.TrainableGraph(one_node(node)).record([{"inputs": {"q": str(i)}} for i in range(5)])
    assert [r.outputs["a"] for r in runs] == list("01234")


async def test_at_most_max_runs_are_in_memory():
    now = peak = 0

    async def node(s):
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.02)
        now -= 1
        return {"a": ""}

    await tg.TrainableGraph(one_node(node)).arecord([{"inputs": {"q": str(i)}} for i in range(12)], max_runs=3)
    assert peak == 3


def test_one_failed_example_is_data_and_the_others_go_on():
    def node(s):
        if s["q"] == "bad":
            raise KeyError("team")
        return {"a": s["q"]}

    runs = tg.TrainableGraph(one_node(node)).record([{"inputs": {"q": q}} for q in ("x", "bad", "y")])
    assert [r.error for r in runs] == [None, "KeyError: 'team'", None]
    assert runs[1].failed_in == "n#0"


def test_run_is_read_back_instead_of_run_again(tmp_path):
    ran = []
    p = tg.Parameter("p", "v")

    def node(s):
        ran.append(str(p))
        return {"a": str(p)}

    graph = tg.TrainableGraph(one_node(node), [p])
    batch = [{"inputs": {"q": "q"}}]
    with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
        [first] = graph.record(batch)
        [again] = graph.record(batch)
        graph.record(batch, prompts={"p": "other"})
        graph.record(batch, sample=1)
    assert ran == ["v", "other", "v"]
    assert again.executions == first.executions
    assert again.parameters == {"p": p}


async def test_on_run_hears_of_each_run():
    heard = []
    graph = tg.TrainableGraph(one_node(lambda s: {"a": ""}))
    await graph.arecord([{"inputs": {"q": str(i)}} for i in range(3)], on_run=heard.append)
    assert len(heard) == 3


def test_run_ids_and_fingerprint_are_stable_and_tell_graphs_apart():
    a, b = (tg.TrainableGraph(one_node(lambda s: {"a": ""})) for _ in range(2))
    wider = StateGraph(S).add_node("n", lambda s: None).add_node("m", lambda s: None)
    c = tg.TrainableGraph(wider.add_edge(START, "n").add_edge("n", "m").compile())
    example = tg.Example("e", {"q": 1})
    assert a.fingerprint == b.fingerprint != c.fingerprint
    ids = [a.run_id(example, {}), b.run_id(example, {}), a.run_id(example, {"p": "x"}),
           a.run_id(example, {}, 1), a.run_id(tg.Example("f", {"q": 1}), {})]  # fmt: skip
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


def test_nothing_that_a_node_sets_reaches_the_caller():
    from contextvars import ContextVar

    var = ContextVar("var", default="clean")

    async def node(s):
        var.set("dirty")
        return {"a": ""}

    tg.TrainableGraph(one_node(node)).record([{"inputs": {"q": "x"}}])
    assert var.get() == "clean"


# What cannot work is said at once.


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (StateGraph(S), r"StateGraph is not a compiled LangGraph graph; call \.compile\(\)"),
        (lambda s: s, "function is not a compiled LangGraph graph; give what"),
        (None, "NoneType is not a compiled"),
    ],
)
def test_not_a_compiled_graph(graph, words):
    with pytest.raises(GraphError, match=words):
        tg.TrainableGraph(graph)


def test_two_parameters_of_one_name():
    twice = [tg.Parameter("p", "a"), tg.Parameter("p", "b")]
    with pytest.raises(ParameterError, match="Two parameters are named 'p'") as caught:
        tg.TrainableGraph(one_node(lambda s: None), twice)
    assert caught.value.parameter == "p"


def test_what_is_no_parameter():
    with pytest.raises(ParameterError, match="not str; write Parameter"):
        tg.TrainableGraph(one_node(lambda s: None), ["p"])


async def test_unknown_name_in_prompts():
    graph = tg.TrainableGraph(one_node(lambda s: None), [tg.Parameter("p", "a")])
    with pytest.raises(ParameterError, match="no parameter 'q'; the graph has 'p'"):
        await graph.arecord([{"inputs": {}}], prompts={"q": "x"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"q": "x"}, "example 0: 'inputs' must be an object with the graph's input, but it is missing"),
        ({"inputs": "x"}, "it is a string"),
        ("x", "a row must be an object with 'inputs', not a string"),
        ({"inputs": {}, "outputs": [1]}, "'outputs' must be an object, not a list"),
    ],
)
async def test_row_without_inputs(row, words):
    with pytest.raises(DataError, match=words):
        await tg.TrainableGraph(one_node(lambda s: None)).arecord([row])


def _compiled_with(node):
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(dict)
    builder.add_node("only", node)
    builder.add_edge(START, "only")
    builder.add_edge("only", END)
    return tg.TrainableGraph(builder.compile())


def test_changed_node_code_changes_the_fingerprint():
    async def one(state):
        return {"a": 1}

    async def other(state):
        return {"a": 2}

    assert _compiled_with(one).fingerprint == _compiled_with(one).fingerprint
    assert _compiled_with(one).fingerprint != _compiled_with(other).fingerprint


class Answers:
    def __init__(self, text):
        self.text = text

    def __call__(self, state):
        return {"a": self.text}


class Shouts(Answers):
    async def __call__(self, state):
        return {"a": self.text.upper()}


def quiet(state):
    return {"a": state["q"]}


def loud(state):
    return {"a": state["q"].upper()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (quiet, loud),
        (functools.partial(quiet), functools.partial(loud)),
        (Answers("a"), Shouts("a")),
        (functools.partial(Answers("a")), functools.partial(Shouts("a"))),
        (RunnableLambda(quiet), RunnableLambda(loud)),
        (RunnablePassthrough() | quiet, RunnablePassthrough() | loud),
        ((RunnablePassthrough() | quiet).with_retry(), (RunnablePassthrough() | loud).with_retry()),
        ((dict | RunnableLambda(quiet) | dict).with_retry(), (dict | RunnableLambda(loud) | dict).with_retry()),
        (RunnableParallel(a=quiet).map(), RunnableParallel(a=loud).map()),
        (RunnablePassthrough.assign(a=quiet), RunnablePassthrough.assign(a=loud)),
        (RunnableParallel(a=quiet), RunnableParallel(a=loud)),
        (RunnableBranch((bool, quiet), quiet), RunnableBranch((bool, loud), quiet)),
    ],
)
def test_changed_code_of_functions_objects_and_chains_changes_the_fingerprint(one, other):
    def graph(node):
        return tg.TrainableGraph(StateGraph(S).add_node("n", node).add_edge(START, "n").compile())

    assert graph(one).fingerprint == graph(one).fingerprint != graph(other).fingerprint


def test_changed_conditional_edge_changes_the_fingerprint():
    def by_question(state):
        return "b" if state["q"] else "c"

    def by_answer(state):
        return "b" if state["a"] else "c"

    def graph(route):
        builder = StateGraph(S).add_node("a", quiet).add_node("b", quiet).add_node("c", quiet)
        builder.add_edge(START, "a").add_conditional_edges("a", route, {"b": "b", "c": "c"})
        return tg.TrainableGraph(builder.compile())

    # Under one name, so that nothing but the code tells them apart.
    by_answer.__name__ = by_question.__name__
    one, other = graph(by_question), graph(by_answer)
    assert one.fingerprint == graph(by_question).fingerprint != other.fingerprint
    assert [n for n, part in one.parts.items() if part != other.parts[n]] == ["a"]


def test_graph_that_holds_more_leaves_the_first_as_it_was():
    graph = _compiled_with(lambda state: state)
    more = graph.holding(Declared({"a": tg.Parameter("a", "x")}))
    assert (list(graph.parameters), list(more.parameters)) == ([], ["a"])
    assert more.fingerprint == graph.fingerprint
    with pytest.raises(ParameterError, match="Two parameters are named 'a'"):
        more.holding(Declared({"a": tg.Parameter("a", "y")}))


def test_sync_nodes_ask_at_once_up_to_the_limit():
    all_there, waiting = asyncio.Event(), set()

    async def handler(body):
        waiting.add(body["messages"][-1]["content"])
        if len(waiting) == 24:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), 20)
        return "ok"

    with OpenAIServer(handler) as server, openai.DefaultHttpxClient(trust_env=False) as client:
        model = ChatOpenAI(
            model="test-model", base_url=server.base_url, api_key="none", max_retries=0,
            http_client=client,
        )  # fmt: skip

        def node(state):
            return {"a": model.invoke(state["q"]).content}

        builder = StateGraph(S).add_node("node", node).add_edge(START, "node")
        graph = tg.TrainableGraph(builder.compile(), [])
        examples = [{"inputs": {"q": f"question {n}"}} for n in range(24)]
        with tg.Store() as store, tg.use_ledger(tg.Ledger(store, max_concurrency=24)):
            runs = graph.record(examples, max_runs=24)
        assert [run.outputs["a"] for run in runs] == ["ok"] * 24


async def test_nodes_that_change_their_inputs_in_place_leave_the_example_as_it_is():
    prompt = tg.Parameter("p", "first")
    context = {"log": []}

    def node(state, runtime: Runtime[Context]):
        state["notes"]["lines"].append(str(prompt))
        state["messages"][0].content += "!"
        state["form"].names.append("x")
        runtime.context["log"].append("x")
        said = interrupt("more?")
        said.append("x")
        seen = [*state["notes"]["lines"], state["messages"][0].content, *state["form"].names]
        return {"a": [seen, list(runtime.context["log"]), said]}

    builder = StateGraph(dict, context_schema=Context).add_node("node", node)
    graph = tg.TrainableGraph(builder.add_edge(START, "node").compile(), [prompt], context=context)
    form, message = Form(["a"]), HumanMessage("hi")
    inputs = {"notes": {"lines": []}, "messages": [message], "form": form}
    example = tg.Example("e", {"__root__": inputs}, metadata={"resume": [["yes"]]})
    for text in ("first", "second"):
        [run] = await graph.arecord([example], prompts={"p": text})
        assert run.error is None
        assert run.outputs["a"] == [[text, "hi!", "a", "x"], ["x", "x"], ["yes", "x"]]
    assert (inputs["notes"], message.content, form.names) == ({"lines": []}, "hi", ["a"])
    assert (context, example.metadata) == ({"log": []}, {"resume": [["yes"]]})
