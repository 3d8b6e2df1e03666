"""The chat-model boundary: real ChatOpenAI against a real server, and models written by hand."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Annotated, TypedDict

import openai
import pytest
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad.acceptance import Outcome
from lg_textgrad.bindings.boundary import BoundaryScope, _asked, model_identity, pay_through
from lg_textgrad.bindings.rewriting import rewriting
from lg_textgrad.budget import Account
from lg_textgrad.errors import (
    BudgetExceededError,
    ModelAuthenticationError,
    ModelDownError,
    ModelQuotaError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.objective import Scored
from tests.servers import free_port
from tests.parts import QUICK, Chat, echo
from tests.servers.openai_server import Fault, OpenAIServer, Reply, error_body

METHODS = (
    "generate",
    "agenerate",
    "_generate_with_cache",
    "_agenerate_with_cache",
    "stream",
    "astream",
)


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def make():
    async with openai.DefaultAsyncHttpxClient(trust_env=False) as later:
        with openai.DefaultHttpxClient(trust_env=False) as now:

            def make_model(server, **options):
                url = server if isinstance(server, str) else server.base_url
                options = {"model": "test-model", "api_key": "k", "max_retries": 0, **options}
                return ChatOpenAI(
                    base_url=url, http_client=now, http_async_client=later, **options
                )

            yield make_model


@contextmanager
def paying(ledger=None, **options):
    scope = BoundaryScope(ledger or tg.Ledger(), **options)
    with pay_through(scope):
        yield scope


class S(TypedDict, total=False):
    q: str
    a: str
    items: Annotated[list, lambda a, b: a + b]


def one_node(node):
    return tg.TrainableGraph(StateGraph(S).add_node("n", node).add_edge(START, "n").compile())


BATCH = [{"inputs": {"q": "hi"}}]


# The class is left as it was.


async def test_class_is_as_it_was_after_the_last_scope():
    before = {name: BaseChatModel.__dict__[name] for name in METHODS}
    with paying():
        with paying():
            pass
        assert BaseChatModel.__dict__["stream"] is not before["stream"]
        with pytest.raises(RuntimeError), paying():
            raise RuntimeError
    assert {name: BaseChatModel.__dict__[name] for name in METHODS} == before


async def test_class_is_as_it_was_after_runs_that_fail_or_are_cancelled():
    before = {name: BaseChatModel.__dict__[name] for name in METHODS}

    async def node(s):
        await asyncio.sleep(30)

    task = asyncio.create_task(one_node(node).arecord(BATCH))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await one_node(lambda s: 1 / 0).arecord(BATCH)
    assert {name: BaseChatModel.__dict__[name] for name in METHODS} == before


async def test_call_outside_goes_straight_through_while_a_run_is_in_scope():
    model = Chat(answer=echo)
    inside, outside = asyncio.Event(), asyncio.Event()
    ledger = tg.Ledger()

    async def node(s):
        inside.set()
        await outside.wait()
        return {"a": (await model.ainvoke("in")).content}

    with tg.use_ledger(ledger):
        task = asyncio.create_task(one_node(node).arecord(BATCH))
        await inside.wait()
    for _ in range(2):
        assert (await model.ainvoke("out")).content == "out"
        assert model.invoke("out").content == "out"
        assert "".join([c.content async for c in model.astream("out")]) == "out"
    outside.set()
    await task
    assert len(model.calls) == 7
    assert ledger.account.spent.calls == 1


# Paid once.


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
async def test_second_time_is_answered_from_the_store_without_a_request(make, how):
    async def call(model):
        if how == "invoke":
            return await asyncio.to_thread(lambda: model.invoke("hi").content)
        if how == "ainvoke":
            return (await model.ainvoke("hi")).content
        if how == "stream":
            return await asyncio.to_thread(lambda: "".join(c.content for c in model.stream("hi")))
        return "".join([c.content async for c in model.astream("hi")])

    ledger = tg.Ledger()
    with OpenAIServer(lambda body: "hello to you") as server:
        model = make(server)
        for _ in range(2):
            with paying(ledger):
                assert await call(model) == "hello to you"
        assert len(server.chats) == 1
    spent = ledger.account.spent
    assert (spent.calls, spent.cached_calls, spent.prompt_tokens, spent.completion_tokens) == (1, 1, 1, 3)


async def test_streaming_graph_is_recorded_and_answered_from_the_store(make, tmp_path):
    with OpenAIServer(lambda body: "one two three") as server:
        model = make(server, streaming=True, stream_usage=True)

        async def node(s):
            return {"a": "|".join([c.content async for c in model.astream(s["q"])])}

        outs = []
        for sample in (0, 0, 1):
            with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
                [run] = await one_node(node).arecord(BATCH, sample=sample)
            outs.append(run)
        assert len(server.chats) == 2
    assert [r.outputs["a"] for r in outs] == ["one two three"] * 3
    [call] = outs[0].executions[0].model_calls
    assert (call.output["content"], call.usage.completion_tokens) == ("one two three", 3)
    assert outs[0].usage.calls == 1


async def test_stored_reply_is_the_same_message(make):
    tools = [{"name": "look", "args": {"x": 1}, "id": "call_1"}]
    with OpenAIServer(lambda body: Reply("text", tool_calls=tools)) as server:
        ledger, model = tg.Ledger(), make(server)
        with paying(ledger):
            paid = await model.ainvoke("hi")
        with paying(ledger):
            stored = await model.ainvoke("hi")
    assert stored.tool_calls == paid.tool_calls != []
    assert stored.content == paid.content == "text"
    assert stored.usage_metadata == paid.usage_metadata
    assert stored.response_metadata["finish_reason"] == "tool_calls"


class Several(Chat):
    """One that gives several choices, as OpenAI's does for `n`."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        said = [super(Several, self)._generate([*messages, HumanMessage(str(i))]) for i in range(3)]
        return ChatResult(generations=[g for one in said for g in one.generations])


async def test_all_choices_of_a_model_reach_the_graph_from_the_store_too():
    model, ledger = Several(answer=echo), tg.Ledger()
    for _ in range(2):
        with paying(ledger):
            said = await model.agenerate([[HumanMessage("hi")]])
        assert [g.text for g in said.generations[0]] == ["hi / 0", "hi / 1", "hi / 2"]
    assert len(model.calls) == 3
    assert ledger.account.spent.calls == 1


async def test_structured_output_comes_back_from_the_store(make):
    class Team(BaseModel):
        name: str

    with OpenAIServer(lambda body: {"name": "billing"}) as server:
        ledger = tg.Ledger()
        for _ in range(2):
            with paying(ledger):
                model = make(server).with_structured_output(Team, method="json_schema")
                assert await model.ainvoke("hi") == Team(name="billing")
        assert len(server.chats) == 1


async def test_same_question_twice_in_one_run_is_two_paid_calls_and_stays_so():
    n = iter("abcdef")
    model = Chat(answer=lambda m: next(n))
    ledger = tg.Ledger()
    said = []
    for _ in range(2):
        with paying(ledger):
            said.append([(await model.ainvoke("vote")).content for _ in range(2)])
    assert said == [["a", "b"], ["a", "b"]]
    assert ledger.account.spent.calls == 2
    assert ledger.account.spent.cached_calls == 2


@pytest.mark.parametrize("send", [True, False])
async def test_executions_that_ask_the_same_side_by_side_keep_their_replies_in_any_order(send):
    """The store has two replies to one question; who gets which must not be left to chance."""
    replies = iter("ab")
    model = Chat(answer=lambda m: next(replies))
    order: list[str] = []
    asked: dict[str, asyncio.Event] = {}

    async def ask(name):
        while order[0] != name:
            asked[name] = asyncio.Event()
            await asked[name].wait()
        reply = await model.ainvoke("the same")
        del order[0]
        for event in asked.values():
            event.set()
        return {"items": [f"{name}:{reply.content}"]}

    started: list[str] = []

    async def worker(s):
        started.append(f"worker{len(started)}")
        return await ask(started[-1])

    builder = StateGraph(S)
    if send:
        builder.add_node("worker", worker)
        targets = [Send("worker", {"q": "same"}), Send("worker", {"q": "same"})]
        builder.add_conditional_edges(START, lambda s: targets, ["worker"])
    else:
        for name in ("worker0", "worker1"):

            async def node(s, name=name):
                return await ask(name)

            builder.add_node(name, node)
            builder.add_edge(START, name)
    graph = tg.TrainableGraph(builder.compile())
    ledger = tg.Ledger()
    said = []
    for turns in (["worker1", "worker0"], ["worker0", "worker1"]):
        order[:], started[:] = turns, []
        source = tg.Ledger(reuse=ledger.store)  # results are known, runs are not
        with tg.use_ledger(ledger if not said else source):
            [run] = await graph.arecord([{"inputs": {"q": "hi", "items": []}}])
        assert run.error is None
        said.append(run.outputs["items"])
    assert said[0] == said[1] == ["worker0:b", "worker1:a"]
    assert len(model.calls) == 2


async def test_loop_that_asks_the_same_again_gets_another_reply_each_time():
    replies = iter("abc")
    model = Chat(answer=lambda m: next(replies))

    async def node(s):
        return {"items": [(await model.ainvoke("the same")).content]}

    builder = StateGraph(S).add_node("n", node).add_edge(START, "n")
    builder.add_conditional_edges("n", lambda s: "n" if len(s["items"]) < 3 else "__end__")
    graph = tg.TrainableGraph(builder.compile())
    ledger = tg.Ledger()
    for known in (None, ledger.store):
        with tg.use_ledger(tg.Ledger(reuse=known) if known else ledger):
            [run] = await graph.arecord([{"inputs": {"items": []}}])
        assert run.outputs["items"] == ["a", "b", "c"]


async def test_each_sample_of_a_run_pays_for_itself():
    model = Chat(answer=echo)
    ledger = tg.Ledger()
    for sample in (0, 1, 0):
        with paying(ledger, sample=sample):
            await model.ainvoke("hi")
    assert len(model.calls) == 2


async def test_candidate_that_changes_one_node_repays_only_that_node():
    model = Chat(answer=lambda m: "same" if "first" in m[0].content else echo(m))
    first, second = tg.Parameter("p1", "first"), tg.Parameter("p2", "second")

    async def one(s):
        return {"q": (await model.ainvoke([first.message()])).content}

    async def two(s):
        return {"a": (await model.ainvoke([second.message(), ("user", s["q"])])).content}

    builder = StateGraph(S).add_node("one", one).add_node("two", two)
    graph = tg.TrainableGraph(builder.add_edge(START, "one").add_edge("one", "two").compile(), [first, second])
    with tg.use_ledger(tg.Ledger()):
        await graph.arecord(BATCH)
        [run] = await graph.arecord(BATCH, prompts={"p2": "other"})
    assert (run.usage.calls, run.usage.cached_calls) == (1, 1)
    assert len(model.calls) == 3


# What decides the key, and what doesn't.


def key(model, messages="hi", **options):
    messages = [HumanMessage(messages)] if isinstance(messages, str) else messages
    return BoundaryScope(tg.Ledger()).key(_asked(model, messages, None, options))


def conversation(call_id):
    return [
        HumanMessage("hi"),
        AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": call_id}]),
        ToolMessage("out", tool_call_id=call_id),
    ]


async def test_key(make):
    base = make("http://127.0.0.1:1111/v1")
    same = [
        make("http://127.0.0.1:2222/v1"),
        make("http://localhost:3333/v1"),
        make("http://127.0.0.1:1111/v1", api_key="another"),
        make("http://127.0.0.1:1111/v1", max_retries=5, timeout=3, tags=["x"]),
    ]
    other = [
        make("http://127.0.0.1:1111/v1", temperature=0.5),
        make("http://127.0.0.1:1111/v1", model="m2"),
        make("http://127.0.0.1:1111/v1", max_tokens=5),
        make("http://127.0.0.1:1111/v1", seed=5),
        make("http://127.0.0.1:1111/elsewhere"),
        make("https://api.example.com/v1"),
    ]
    assert {key(m) for m in same} == {key(base)}
    assert len({key(m) for m in [base, *other]}) == 1 + len(other)
    assert key(base, tools=[{"name": "t"}]) != key(base)
    assert key(base, "hi") != key(base, "ho")
    # What keeps its tools in a set offers them in another order in each process.
    tools = [{"name": "t"}, {"name": "u"}]
    assert key(base, tools=tools) == key(base, tools=tools[::-1]) != key(base, tools=tools[:1])


def test_tool_call_ids_do_not_change_the_key():
    model = Chat(answer=echo)
    assert key(model, conversation("call_a")) == key(model, conversation("call_b"))
    swapped = conversation("call_a")
    swapped[2] = ToolMessage("out", tool_call_id="stranger")
    assert key(model, swapped) != key(model, conversation("call_a"))


def test_identity_has_no_secrets_and_counts_a_custom_models_fields():
    model = ChatOpenAI(
        model="m", api_key="sk-secret-secret", base_url="http://127.0.0.1:1/v1",
        default_headers={"Authorization": "sk-secret-secret"},
        http_client=None,
    )
    assert "sk-secret" not in str(model_identity(model))
    assert model_identity(Chat(answer=echo)) != model_identity(Chat(answer=echo, temperature=1))


# Failures: a node's own are data, those that would repeat in every run are raised.


async def test_nodes_own_exception_is_data(make):
    def node(s):
        raise PermissionError("not your ticket")

    [run] = await one_node(node).arecord(BATCH)
    assert (run.error, run.failed_in) == ("PermissionError: not your ticket", "n#0")


def calling(model, swallow=False):
    async def node(s):
        try:
            return {"a": (await model.ainvoke(s["q"])).content}
        except Exception:
            if swallow:
                return {"a": "sorry"}
            raise

    return one_node(node)


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, ModelAuthenticationError), (403, ModelAuthenticationError), (404, UnknownModelError)],
)
async def test_refused_key_and_unknown_model_are_raised_as_they_are(make, status, expected, swallow):
    with OpenAIServer(lambda body: Fault(status)) as server:
        with pytest.raises(expected) as caught:
            await calling(make(server), swallow).arecord(BATCH * 3)
    assert type(caught.value) is expected


async def test_request_that_a_content_filter_refuses_is_the_outcome_of_its_run_only(make):
    body = {"error": {"message": "flagged", "code": 403, "metadata": {"flagged_input": "hit"}}}

    def handler(asked):
        return Fault(403, body) if "hit" in asked["messages"][-1]["content"] else "fine"

    with OpenAIServer(handler) as server:
        rows = [tg.Example(str(i), {"q": q}) for i, q in enumerate(["I was hit", "hello"])]
        flagged, other = await calling(make(server)).arecord(rows)
    assert "PermissionDeniedError" in flagged.error
    assert other.outputs["a"] == "fine"


async def test_answer_without_choices_is_asked_for_again(make):
    none = {"object": "chat.completion", "model": "m", "choices": []}
    with OpenAIServer(lambda body: Fault(200, none) if len(server.chats) == 1 else "fine") as server:
        with tg.use_ledger(tg.Ledger(patience=tg.Patience(first_pause=0))):
            [run] = await calling(make(server)).arecord(BATCH)
    assert (run.outputs["a"], len(server.chats)) == ("fine", 2)


async def test_unreachable_server_is_raised(make):
    model = make(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(ModelUnreachableError, match="start its server or correct"):
        await calling(model).arecord(BATCH)


def test_unreachable_server_is_raised_to_sync_callers():
    class Gone(ConnectionError):
        pass

    model = Chat(answer=lambda m: Gone("refused"))
    with pytest.raises(ModelUnreachableError):
        one_node(lambda s: {"a": model.invoke("x").content}).record(BATCH)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_faults_of_one_run_are_data(make, status):
    ledger = tg.Ledger(patience=QUICK)
    with OpenAIServer(lambda body: Fault(status)) as server, tg.use_ledger(ledger):
        [run] = await calling(make(server)).arecord(BATCH)
        assert len(server.chats) == (1 if status == 400 else QUICK.attempts)
    assert run.provisional is (status != 400)
    assert run.failed_in == "n#0"
    assert f"fault {status}" in run.error
    assert run.executions[0].model_calls[0].error == run.executions[0].error
    assert run.usage.calls == 0


async def test_timeout_is_data(make):
    with OpenAIServer(lambda body: Fault.hang(1)) as server:
        with tg.use_ledger(tg.Ledger(patience=QUICK)):
            [run] = await calling(make(server, timeout=0.1)).arecord(BATCH)
        assert len(server.chats) == QUICK.timeouts
    assert "TimeoutError" in run.error


@pytest.mark.parametrize("sync", [False, True])
async def test_graphs_own_call_is_asked_again_after_faults_of_every_kind(make, sync):
    faults = [
        Fault(429, headers={"retry-after-ms": "5"}),
        Fault(500),
        Fault(200, body='{"id": "chatcmpl', headers={"content-type": "application/json"}),
        Fault(200, body="not even that"),
        Fault(200, body={"error": {"code": 502, "message": "upstream"}}),
        Fault.reset(),
        Fault.hang(30),
    ]
    script = iter(["first", *faults, "hello"])
    patience = replace(QUICK, attempts=9, timeout=0.3)
    ledger = tg.Ledger(patience=patience)
    with OpenAIServer(lambda body: next(script)) as server:
        model = make(server)
        with paying(ledger) as scope:
            for text in ("a", "b"):
                if sync:
                    said = (await asyncio.to_thread(model.invoke, text)).content
                else:
                    said = (await model.ainvoke(text)).content
        assert said == "hello"
        assert server.chats[1:] == server.chats[1:2] * (len(faults) + 1)
    assert (scope.lost, scope.failure, scope.usage.calls) == (False, None, 2)
    assert ledger.traffic.faults == {
        "rate_limited": 1, "server_error": 2, "garbled": 2, "reset": 1, "timeout": 1
    }  # fmt: skip


async def test_replies_that_are_wrong_in_themselves_are_counted_and_given_to_the_graph(make):
    script = iter([Reply("cut", finish_reason="length"), Reply(refusal="no"), Reply("")])
    ledger = tg.Ledger()
    with OpenAIServer(lambda body: next(script)) as server, paying(ledger):
        said = [(await make(server).ainvoke(str(i))).content for i in range(3)]
    assert said == ["cut", "", ""]
    assert ledger.traffic.faults == {"truncated": 1, "refused": 1, "empty": 1}


async def test_run_that_chance_had_a_hand_in_is_neither_stored_nor_is_its_score(make):
    answers = {"sick": [Fault(500)] * QUICK.attempts}

    def handler(body):
        waiting = answers.get(body["messages"][0]["content"])
        return waiting.pop() if waiting else "well"

    batch = [{"inputs": {"q": q}} for q in ("fine", "sick")]
    objective = tg.Objective([lambda outputs: outputs["a"] == "well"])
    with OpenAIServer(handler) as server, tg.use_ledger(tg.Ledger(patience=QUICK)):
        graph = calling(make(server))
        first = await objective.acall(await graph.arecord(batch))
        again = await objective.acall(await graph.arecord(batch))
    assert [s.score for s in first.scored] == [1, 0]
    assert [s.run.provisional for s in first.scored] == [False, True]
    assert [s.score for s in again.scored] == [1, 1]


async def test_judge_that_cannot_be_reached_for_one_run_does_not_end_the_batch(make):
    def handler(body):
        text = body["messages"][0]["content"]
        return Fault(503) if text == "judge sick" and len(server.chats) < 12 else "0.5"

    with OpenAIServer(handler) as server, tg.use_ledger(tg.Ledger(patience=QUICK)):
        model = make(server)

        async def judge(inputs):
            return float((await model.ainvoke("judge " + inputs["q"])).content)

        graph = one_node(lambda s: {"a": "x"})
        runs = await graph.arecord([{"inputs": {"q": q}} for q in ("fine", "sick")])
        first = await tg.Objective([judge]).acall(runs)
        while len(server.chats) < 12:
            await model.ainvoke("pass the time")
        again = await tg.Objective([judge]).acall(runs)
    assert [s.score for s in first.scored] == [0.5, 0]
    assert "could not be reached" in first.scored[1].feedback[0].comment
    assert [s.score for s in again.scored] == [0.5, 0.5]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("score", [0.5, None])
async def test_judge_that_is_away_counts_as_much_as_the_weight_of_its_key_says(make, score, kept):
    sick = [Fault(503)] * QUICK.attempts

    def handler(body):
        return sick.pop() if body["messages"][0]["content"] == "judge sick" and sick else "said"

    with OpenAIServer(handler) as server, tg.use_ledger(tg.Ledger(patience=QUICK)):
        model = make(server)

        async def judge(inputs):
            said = (await model.ainvoke("judge " + inputs["q"])).content
            return {"key": "tone", "score": score, "comment": said}

        def objective():
            return tg.Objective([lambda outputs: True, judge], weights={"tone": 0})

        runs = await one_node(lambda s: {"a": "x"}).arecord(
            [{"inputs": {"q": q}} for q in ("fine", "sick")]
        )
        asked = objective()
        if kept:  # as when a run goes on: only what is kept says what the key was
            await asked.acall(runs[:1])
            asked = objective()
            [fine] = (await asked.acall(runs[:1])).scored
            [away] = (await asked.acall(runs[1:])).scored
        else:
            fine, away = (await asked.acall(runs)).scored
    assert not sick
    assert (fine.score, away.score) == (1, 1)
    assert [f.key for f in away.feedback] == [f.key for f in fine.feedback]
    assert [f.score for f in away.feedback] == [1, None if score is None else 0]
    assert "could not be reached" in away.feedback[1].comment


async def test_repeated_judgements_that_could_be_had_are_the_score(make):
    lost = [Fault(503)] * QUICK.attempts

    def handler(body):
        return lost.pop() if body["messages"][0]["content"] == "judge again" and lost else "0.5"

    turns = iter(["judge", "judge again", "judge"])

    async def judge(inputs):
        score = float((await model.ainvoke(next(turns))).content)
        return {"key": "helpful", "score": score}

    with OpenAIServer(handler) as server, tg.use_ledger(tg.Ledger(patience=QUICK)):
        model = make(server)
        runs = await one_node(lambda s: {"a": "x"}).arecord([{"inputs": {"q": "?"}}])
        loss = await tg.Objective([judge], repeats=3).acall(runs)
    assert not lost
    assert [(f.key, f.score) for f in loss.scored[0].feedback] == [("helpful", 0.5)]


async def test_server_that_fails_everybody_stops_the_run_within_a_few_calls(make):
    with OpenAIServer(lambda body: Fault(500)) as server:
        with tg.use_ledger(tg.Ledger(patience=QUICK)), pytest.raises(ModelDownError) as caught:
            await calling(make(server)).arecord([{"inputs": {"q": str(i)}} for i in range(200)])
        assert len(server.chats) < 40
    assert f"test-model at {server.base_url}" in str(caught.value)


async def test_requests_that_are_all_refused_stop_the_run_within_a_few_calls(make):
    with OpenAIServer(lambda body: Fault(400)) as server:
        with tg.use_ledger(tg.Ledger(max_concurrency=4)), pytest.raises(ModelDownError):
            await calling(make(server)).arecord([{"inputs": {"q": str(i)}} for i in range(200)])
        assert len(server.chats) < 30


async def test_account_without_credit_stops_the_run_at_once(make):
    wrong = error_body("You exceeded your current quota.", code="insufficient_quota")
    with OpenAIServer(lambda body: Fault(429, wrong)) as server:
        with tg.use_ledger(tg.Ledger(max_concurrency=1)), pytest.raises(ModelQuotaError):
            await calling(make(server)).arecord(BATCH * 3)
        assert len(server.chats) == 1


async def test_run_that_failed_for_good_is_not_stored():
    keys = iter([PermissionDenied("no"), "welcome"])
    model = Chat(answer=lambda m: next(keys))
    with tg.use_ledger(tg.Ledger()):
        with pytest.raises(ModelAuthenticationError):
            await calling(model).arecord(BATCH)
        [run] = await calling(model).arecord(BATCH)
    assert run.outputs["a"] == "welcome"


class PermissionDenied(Exception):
    status_code = 401


@pytest.mark.parametrize("swallow", [False, True])
async def test_used_up_budget_is_raised_even_if_a_node_swallows_it(swallow):
    model = Chat(answer=echo)
    ledger = tg.Ledger(account=Account(tg.Budget(calls=2)))
    batch = [{"inputs": {"q": str(i)}} for i in range(4)]
    with tg.use_ledger(ledger), pytest.raises(BudgetExceededError, match="budget of 2 calls"):
        await calling(model, swallow).arecord(batch)
    assert 1 <= ledger.account.spent.calls <= len(model.calls) <= 2


async def test_ledger_limits_how_many_calls_of_the_graph_go_at_once(make):
    with OpenAIServer(lambda body: "ok", latency=0.03) as server:
        with tg.use_ledger(tg.Ledger(max_concurrency=3)):
            await calling(make(server)).arecord([{"inputs": {"q": str(i)}} for i in range(12)])
        assert server.peak == 3


async def test_evaluators_calls_are_judge_calls_paid_through_the_same_ledger():
    model = Chat(answer=lambda m: "0.5")
    ledger = tg.Ledger()

    async def awaited(outputs):
        return float((await model.ainvoke("judge " + outputs["a"])).content)

    def plain(outputs):
        return float(model.invoke("grade " + outputs["a"]).content)

    with tg.use_ledger(ledger):
        runs = await calling(model).arecord(BATCH)
        loss = await tg.Objective([awaited, plain]).acall(runs)
        again = await tg.Objective([awaited, plain]).acall(runs)
    assert loss.score == again.score == 0.5
    assert {k: u.calls for k, u in ledger.account.by_kind.items()} == {"rollout": 1, "judge": 2}
    assert len(model.calls) == 3


async def test_sync_call_in_an_async_node_does_not_block_the_loop_for_ever():
    """A common slip. It is slow anywhere, but must not wait for calls that wait for it."""
    model = Chat(answer=echo)
    gate = asyncio.Event()

    class Slow(Chat):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            await gate.wait()
            return self._generate(messages)

    slow = Slow(answer=echo)

    async def node(s):
        if s["q"] == "await":
            return {"a": (await slow.ainvoke("x")).content}
        await asyncio.sleep(0.02)
        gate.set()
        return {"a": model.invoke("y").content}

    with tg.use_ledger(tg.Ledger(max_concurrency=1)):
        task = one_node(node).arecord([{"inputs": {"q": "await"}}, {"inputs": {"q": "block"}}])
        runs = await asyncio.wait_for(task, 10)
    assert [r.outputs["a"] for r in runs] == ["x", "y"]


class HandsOn(Chat):
    """A chat model that asks another one in its own call."""

    inner: BaseChatModel

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self.inner.invoke(messages))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        message = await self.inner.ainvoke(messages)
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.mark.parametrize("sync", [False, True])
async def test_call_that_a_model_hands_on_is_one_call_and_takes_one_place_under_the_limit(sync):
    model = HandsOn(answer=echo, inner=Chat(answer=echo))

    async def awaited(s):
        return {"a": (await model.ainvoke(s["q"])).content}

    graph = one_node(awaited if not sync else lambda s: {"a": model.invoke(s["q"]).content})
    ledger = tg.Ledger(max_concurrency=1)
    with tg.use_ledger(ledger):
        [run] = await asyncio.wait_for(graph.arecord(BATCH), 10)
    assert (run.outputs["a"], run.warnings) == ("hi", ())
    assert (run.usage.calls, ledger.account.spent.calls, len(model.inner.calls)) == (1, 1, 1)


@pytest.mark.parametrize("sync", [False, True])
async def test_attempt_that_failed_leaves_its_place_to_the_next_one(sync):
    """Else a run that is repeated would ask for the first attempt anew."""
    said = [ValueError("down"), "first", ValueError("down"), "second"]
    model = Chat(answer=lambda m: said.pop(0))
    retried = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=2)

    def plain(s):
        return {"a": "".join(retried.invoke("vote").content for _ in range(2))}

    async def awaited(s):
        return {"a": "".join([(await retried.ainvoke("vote")).content for _ in range(2)])}

    graph = one_node(plain if sync else awaited)
    with tg.use_ledger(tg.Ledger()):
        runs = [
            run
            for n in range(2)
            for run in await graph.arecord([{"id": str(n), "inputs": {"q": "hi"}}])
        ]
    assert [r.outputs["a"] for r in runs] == ["firstsecond"] * 2
    assert [(r.usage.calls, r.usage.cached_calls) for r in runs] == [(2, 0), (0, 2)]
    assert len(model.calls) == 4


async def test_fallback_is_rewritten_recorded_and_answered_from_the_store():
    broken, model = Chat(answer=lambda m: ValueError("down")), Chat(answer=echo, temperature=1)
    either = broken.with_fallbacks([model])

    async def node(s):
        return {"a": (await either.ainvoke([("system", "You write."), ("user", s["q"])])).content}

    with tg.use_ledger(tg.Ledger()):
        graph = await tg.adiscover(
            StateGraph(S).add_node("n", node).add_edge(START, "n").compile(), [{"q": "first"}]
        )
        runs = [
            run
            for n in range(2)
            for run in await graph.arecord(
                [{"id": str(n), "inputs": {"q": "hi"}}], prompts={"n": "You sing."}
            )
        ]
    assert [r.outputs["a"] for r in runs] == ["You sing. / hi"] * 2
    calls = runs[0].executions[0].model_calls
    assert [(c.messages[0]["content"], c.error is None) for c in calls] == [
        ("You sing.", False), ("You sing.", True),
    ]  # fmt: skip
    assert [r.usage.calls for r in runs] == [1, 0]
    assert len(model.calls) == 2


async def test_configurable_model_is_known_by_what_it_was_configured_to(make):
    with OpenAIServer(lambda body: f"{body['model']}: {body['messages'][0]['content']}", models=None) as server:
        clients = make(server)
        model = init_chat_model(
            model="openai:small", configurable_fields=("model",), api_key="k", base_url=server.base_url,
            http_client=clients.http_client, http_async_client=clients.http_async_client,
        )  # fmt: skip

        async def node(s):
            config = {"configurable": {"model": "openai:" + s["q"]}}
            asked = [("system", "You write."), ("user", "x")]
            found = [await model.ainvoke(asked), await model.ainvoke(asked, config)]
            return {"a": "|".join(m.content for m in found)}

        graph = await tg.adiscover(
            StateGraph(S).add_node("n", node).add_edge(START, "n").compile(), [{"q": "big"}]
        )
        with tg.use_ledger(tg.Ledger()):
            runs = [
                run
                for n in range(2)
                for run in await graph.arecord(
                    [{"id": str(n), "inputs": {"q": "big"}}], prompts={"n": "You sing."}
                )
            ]
    assert [r.outputs["a"] for r in runs] == ["small: You sing.|big: You sing."] * 2
    assert [r.usage.calls for r in runs] == [2, 0]
    assert [c.model for c in runs[0].executions[0].model_calls] == ["small", "big"]


def everything(cls=BaseChatModel):
    """What the class and all its subclasses have in their own dicts."""
    found = {cls: dict(vars(cls))}
    for sub in type.__subclasses__(cls):
        found |= everything(sub)
    return found


def same(before, after):
    """Whether each class that was there has the identical objects, and no others."""
    return all(
        vars(cls).keys() == had.keys() and all(vars(cls)[n] is had[n] for n in had)
        for cls, had in before.items()
    ) and before.keys() <= after.keys()


@pytest.mark.parametrize("ending", ["return", "raise", "cancel", "thread"])
async def test_nothing_in_langchain_is_changed_outside_of_scopes_that_overlap(ending):
    class Own(Chat):
        """Defines everything that is replaced itself."""

        stream, astream = BaseChatModel.stream, BaseChatModel.astream
        generate, agenerate = BaseChatModel.generate, BaseChatModel.agenerate

    before = everything()
    entered, leave = threading.Event(), threading.Event()

    def elsewhere():
        with paying():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=elsewhere)
    other.start()
    await asyncio.to_thread(entered.wait)
    assert not same(before, everything())

    class Late(Chat):
        """Is made while a scope is open."""

        def stream(self, *args, **kwargs):
            return super().stream(*args, **kwargs)

    made = vars(Late)["stream"]

    async def run():
        with paying(), rewriting(Nothing()):
            await Late(answer=echo).ainvoke("x")
            "".join(c.content for c in Late(answer=echo).stream("x"))
            if ending == "raise":
                raise RuntimeError
            if ending == "cancel":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)

    if ending == "thread":
        await asyncio.to_thread(lambda: asyncio.run(run()))
    else:
        with suppress(RuntimeError, asyncio.CancelledError):
            await asyncio.create_task(run())
    leave.set()
    await asyncio.to_thread(other.join)
    assert same(before, everything())
    assert vars(Late)["stream"] is made


class Nothing:
    def rewrite(self, node, messages, options):
        return messages, options


# How long a call took.


def slow(first=0.0):
    """A model that takes a tenth of a second, and fails once, after a pause, if it is told to."""
    failures = [first] if first else []

    class Slow(Chat):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            await asyncio.sleep(failures[0] if failures else 0.1)
            if failures:
                failures.pop()
                raise TimeoutError
            return self._generate(messages)

    return Slow(answer=lambda messages: "said")


def seconds_of(run):
    outcome = Outcome.of(Scored(run, 1.0, ()))
    assert outcome.seconds == pytest.approx(
        sum(c.usage.seconds for e in run.executions for c in e.model_calls)
    )
    return outcome.seconds


async def test_call_that_the_store_answers_took_as_long_as_when_it_was_made():
    model = slow()

    async def node(s):
        return {"a": (await model.ainvoke(s["q"])).content}

    graph, store = one_node(node), tg.Store()
    found = []
    for sample in (0, 1):
        with tg.use_ledger(tg.Ledger(store)):
            # The run is made anew, its call is the first one's.
            found += await graph.arecord([{"id": str(sample), **BATCH[0]}])
    assert 0.09 <= seconds_of(found[0]) < 1
    assert seconds_of(found[1]) == seconds_of(found[0])
    assert len(model.calls) == 1


async def test_candidate_that_shares_a_call_is_no_faster_for_it():
    model, prompt = slow(), tg.Parameter("p", "first")

    async def node(s):
        str(prompt)
        return {"a": (await model.ainvoke(s["q"])).content}

    built = StateGraph(S).add_node("n", node).add_edge(START, "n").compile()
    graph = tg.TrainableGraph(built, [prompt])
    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        [first] = await graph.arecord(BATCH)
        [again] = await graph.arecord(BATCH, prompts={"p": "second"})
    assert len(model.calls) == 1
    assert 0.09 <= seconds_of(first) == seconds_of(again)
    assert (again.usage.calls, again.usage.cached_calls, again.usage.seconds) == (0, 1, 0)
    assert ledger.account.spent.seconds == first.usage.seconds > 0


@pytest.mark.parametrize("what", ["a turn", "another attempt"])
async def test_what_a_call_waits_for_is_not_the_models_time(what):
    model = slow(first=0.5 if what == "another attempt" else 0.0)

    async def node(s):
        return {"a": (await model.ainvoke(s["q"])).content}

    rows = [{"inputs": {"q": str(n)}} for n in range(1 if what == "another attempt" else 8)]
    with tg.use_ledger(tg.Ledger(max_concurrency=1, patience=QUICK)):
        runs = await one_node(node).arecord(rows)
    assert all(0.09 <= seconds_of(run) < 0.5 for run in runs)
