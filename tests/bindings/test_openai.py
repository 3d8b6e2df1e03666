"""Raw openai SDK calls in nodes: a real client against a real server, recorded, paid for, tuned."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TypedDict

import openai
import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from pydantic import BaseModel

import lg_textgrad as tg
from lg_textgrad.bindings.bodies import ChatCompletions, Responses, without_ids
from lg_textgrad.budget import Account
from lg_textgrad.errors import (
    BudgetExceededError,
    ConfigurationError,
    ModelAuthenticationError,
    ModelUnreachableError,
    UnknownModelError,
)
from tests.servers.openai_server import Fault, OpenAIServer, Reply


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)


class Clients:
    """A sync and an async client of one server, wrapped or not."""

    def __init__(self, now, later):
        self.now, self.later = now, later

    def make(self, server, wrapped=True):
        url = server if isinstance(server, str) else server.base_url
        given = {"api_key": "k", "base_url": url, "max_retries": 0}
        plain = (
            openai.OpenAI(http_client=self.now, **given),
            openai.AsyncOpenAI(http_client=self.later, **given),
        )
        return tuple(map(tg.models.wrap_openai, plain)) if wrapped else plain


@pytest.fixture
async def clients():
    async with openai.DefaultAsyncHttpxClient(trust_env=False) as later:
        with openai.DefaultHttpxClient(trust_env=False) as now:
            yield Clients(now, later)


class S(TypedDict, total=False):
    q: str
    team: str
    a: str


def said(body):
    """Answer with everything that was sent."""
    given = body.get("messages")
    if given is None:
        asked = body["input"]
        asked = [{"content": asked}] if isinstance(asked, str) else asked
        given = [{"content": body.get("instructions")}, *asked]
    texts = [
        m["content"] if isinstance(m.get("content"), str) else "+".join(b["text"] for b in m["content"])
        for m in given
        if m.get("content")
    ]
    return " / ".join(texts)


def one(node):
    return StateGraph(S).add_node("writer", node).add_edge(START, "writer").compile()


BATCH = [{"inputs": {"q": "hi", "team": "sales"}}]
TWO = [{"q": "why is it blue", "team": "billing"}, {"q": "who pays for this", "team": "sales"}]


def asked(state, role="system"):
    return [{"role": role, "content": "You write."}, {"role": "user", "content": state["q"]}]


async def completion(pair, how, **request):
    """Return the text of the reply, however it was asked for."""
    now, later = pair
    request = {"model": "test-model", **request}
    if how == "create":
        return now.chat.completions.create(**request).choices[0].message.content
    if how == "acreate":
        return (await later.chat.completions.create(**request)).choices[0].message.content
    if how == "stream":
        chunks = now.chat.completions.create(stream=True, **request)
        return "".join(c.choices[0].delta.content or "" for c in chunks)
    if how == "astream":
        chunks = await later.chat.completions.create(stream=True, **request)
        return "".join([c.choices[0].delta.content or "" async for c in chunks])
    if how == "helper":
        with now.chat.completions.stream(**request) as stream:
            return stream.get_final_completion().choices[0].message.content
    if how == "ahelper":
        async with later.chat.completions.stream(**request) as stream:
            return (await stream.get_final_completion()).choices[0].message.content
    if how == "raw":
        raw = now.chat.completions.with_raw_response.create(**request)
        return raw.parse().choices[0].message.content
    if how == "araw":
        raw = await later.chat.completions.with_raw_response.create(**request)
        return raw.parse().choices[0].message.content
    if how == "streaming response":
        with now.chat.completions.with_streaming_response.create(**request) as response:
            return json.loads(response.read())["choices"][0]["message"]["content"]
    if how == "options":
        short = now.with_options(timeout=5)
        return short.chat.completions.create(**request).choices[0].message.content
    request["input"] = request.pop("messages")
    if how == "response":
        return now.responses.create(**request).output_text
    if how == "aresponse":
        return (await later.responses.create(**request)).output_text
    if how == "response stream":
        events = now.responses.create(stream=True, **request)
        return "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert how == "response helper"
    async with later.responses.stream(**request) as stream:
        return (await stream.get_final_response()).output_text


HOWS = [
    "create", "acreate", "stream", "astream", "helper", "ahelper", "raw", "araw",
    "streaming response", "options", "response", "aresponse", "response stream", "response helper",
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
async def test_call_is_recorded_paid_once_found_and_replaced(clients, how):
    with OpenAIServer(said) as server:
        pair = clients.make(server)

        async def writer(state):
            return {"a": await completion(pair, how, messages=asked(state))}

        ledger = tg.Ledger()
        with tg.use_ledger(ledger):
            graph = await tg.adiscover(one(writer), TWO)
            [run] = await graph.arecord([{"inputs": TWO[0]}])
            assert len(server.requests) == ledger.account.spent.calls == 2
            [other] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You sing."})
        assert len(server.requests) == 3
    assert {n: p.value for n, p in graph.parameters.items()} == {"writer": "You write."}
    assert run.outputs["a"] == "You write. / why is it blue"
    assert other.outputs["a"] == "You sing. / why is it blue"
    [call] = other.executions[0].model_calls
    assert [m["content"] for m in call.messages] == ["You sing.", "why is it blue"]
    assert [m["role"] for m in call.messages] == ["system", "human"]
    assert (call.model, call.output["content"]) == ("test-model", other.outputs["a"])
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (6, 7)
    assert call.finish_reason == "stop"
    assert other.executions[0].prompts == {"writer": "You sing."}
    assert (other.usage.calls, other.usage.tokens) == (1, 13)
    assert run.usage.cached_calls == 1


def test_sync_node_in_a_thread_is_recorded_too():
    with (
        OpenAIServer(said) as server,
        openai.OpenAI(
            api_key="k",
            base_url=server.base_url,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        ) as plain,
    ):
        client = tg.models.wrap_openai(plain)

        def writer(state):
            reply = client.chat.completions.create(model="test-model", messages=asked(state))
            return {"a": reply.choices[0].message.content}

        graph = tg.discover(one(writer), TWO)
        [run] = graph.record([{"inputs": TWO[0]}], prompts={"writer": "You sing."})
    assert run.outputs["a"] == "You sing. / why is it blue"
    assert len(run.executions[0].model_calls) == 1


@pytest.mark.parametrize("how", ["stream", "create", "acreate", "raw", "options"])
async def test_outside_a_run_it_is_the_plain_client(clients, how):
    with OpenAIServer(said) as server:
        pair = clients.make(server)
        for _ in range(2):
            assert await completion(pair, how, messages=asked({"q": "hi"})) == "You write. / hi"
        assert len(server.chats) == 2
        assert bool(server.chats[0].get("stream")) is (how == "stream")


async def test_neither_the_client_nor_the_sdk_is_changed(clients):
    with OpenAIServer(said) as server:
        plain = clients.make(server, wrapped=False)
        before = dict(vars(openai.OpenAI)), dict(vars(openai.AsyncOpenAI))
        chat = plain[0].chat  # made on first use, and bound to the client that made it
        wrapped = tuple(map(tg.models.wrap_openai, plain))
        assert [isinstance(w, type(p)) for w, p in zip(wrapped, plain)] == [True, True]
        assert tg.models.wrap_openai(wrapped[0]) is wrapped[0]
        assert wrapped[0].chat is not chat

        async def writer(state):
            texts = [await completion(pair, "acreate", messages=asked(state)) for pair in (plain, wrapped)]
            return {"a": "|".join(texts)}

        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert run.outputs["a"] == "You write. / hi|You write. / hi"
    assert (run.usage.calls, len(run.executions[0].model_calls)) == (1, 1)
    assert (dict(vars(openai.OpenAI)), dict(vars(openai.AsyncOpenAI))) == before
    assert type(plain[0]) is openai.OpenAI
    assert plain[0].chat is chat


async def test_subclasses_stay_what_they_are(clients):
    with OpenAIServer(said) as server:
        azure = openai.AsyncAzureOpenAI(
            api_key="k", api_version="1", base_url=server.base_url, http_client=clients.later
        )
        client = tg.models.wrap_openai(azure)
        assert isinstance(client, openai.AsyncAzureOpenAI)

        async def writer(state):
            reply = await client.chat.completions.create(model="test-model", messages=asked(state))
            return {"a": reply.choices[0].message.content}

        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert len(run.executions[0].model_calls) == 1


@pytest.mark.parametrize("wrong", [None, "client", ChatOpenAI, openai])
def test_what_is_no_client_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="takes an openai.OpenAI or openai.AsyncOpenAI"):
        tg.models.wrap_openai(wrong)


class Team(BaseModel):
    name: str


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("sync", [True, False])
async def test_parsed_output_comes_from_the_store_too(clients, api, sync):
    with OpenAIServer(lambda body: {"name": "billing"}) as server:
        now, later = clients.make(server)

        async def writer(state):
            if api == "chat":
                call = (now if sync else later).chat.completions.parse(
                    model="test-model", messages=asked(state), response_format=Team
                )
                made = (call if sync else await call).choices[0].message.parsed
            else:
                call = (now if sync else later).responses.parse(
                    model="test-model", input=asked(state), text_format=Team
                )
                made = (call if sync else await call).output_parsed
            assert isinstance(made, Team)
            return {"a": made.name}

        with tg.use_ledger(tg.Ledger()):
            graph = await tg.adiscover(one(writer), TWO)
            [run] = await graph.arecord([{"inputs": TWO[0]}])
        assert len(server.requests) == 2
    assert run.outputs["a"] == "billing"


@pytest.mark.parametrize("how", ["create", "stream", "response", "response stream"])
async def test_tool_calls_and_offered_tools_are_recorded(clients, how):
    calls = [{"name": "look", "args": {"x": 1}, "id": "call_1"}, {"name": "see", "args": "{bad", "id": "call_2"}]
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    function = {"name": "look", "description": "Looks.", "parameters": schema}
    with OpenAIServer(lambda body: Reply(None, tool_calls=calls)) as server:
        now, _ = clients.make(server)

        def writer(state):
            if how == "create":
                reply = now.chat.completions.create(model="test-model", messages=asked(state), tools=[chat])
                return {"a": " ".join(c.function.arguments for c in reply.choices[0].message.tool_calls)}
            if how == "stream":
                with now.chat.completions.stream(model="test-model", messages=asked(state), tools=[chat]) as s:
                    final = s.get_final_completion()
                return {"a": " ".join(c.function.arguments for c in final.choices[0].message.tool_calls)}
            request = {"model": "test-model", "input": asked(state), "tools": [flat]}
            if how == "response":
                return {"a": " ".join(i.arguments for i in now.responses.create(**request).output)}
            events = now.responses.create(stream=True, **request)
            return {"a": " ".join(e.arguments for e in events if e.type.endswith("arguments.done"))}

        chat, flat = {"type": "function", "function": function}, {"type": "function", **function}
        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert run.outputs["a"] == '{"x": 1} {bad'
    [call] = run.executions[0].model_calls
    assert call.tools == (chat if "response" not in how else flat,)
    assert call.output["tool_calls"] == [
        {"name": "look", "args": {"x": 1}, "id": "call_1"},
        {"name": "see", "args": {"arguments": "{bad"}, "id": "call_2"},
    ]
    assert call.finish_reason == "tool_calls"


async def test_developer_messages_and_text_blocks_are_replaced_and_all_else_stays(clients):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    blocks = [{"type": "text", "text": "You write.", "cache": 1}, image]
    messages = [
        {"role": "developer", "content": blocks, "name": "boss"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "t", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]  # fmt: skip
    with OpenAIServer(lambda body: "ok") as server:
        _, later = clients.make(server)

        async def writer(state):
            await later.chat.completions.create(
                model="test-model", messages=messages, temperature=0.5, extra_body={"min_p": 0.1}
            )

        graph = await tg.adiscover(one(writer), TWO[:1])
        await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You sing."})
        first, last = server.chats
    assert last == {
        **first,
        "messages": [{**messages[0], "content": [{**blocks[0], "text": "You sing."}, image]}, *messages[1:]],
    }
    assert messages[0]["content"] is blocks
    assert blocks[0]["text"] == "You write."
    assert (first["temperature"], first["min_p"]) == (0.5, 0.1)


async def test_instructions_and_input_of_a_response_are_prompts(clients):
    with OpenAIServer(said) as server:
        now, _ = clients.make(server)

        async def writer(state):
            reply = now.responses.create(
                model="test-model",
                instructions=f"You answer for {state['team']}.",
                input=[
                    {"role": "user", "content": [{"type": "input_text", "text": state["q"]}]},
                    {"type": "function_call", "name": "t", "arguments": "{}", "call_id": "c1"},
                    {"type": "function_call_output", "call_id": "c1", "output": "seen"},
                    {"type": "reasoning", "id": "r1", "summary": []},
                ],
            )
            return {"a": reply.output_text}

        def plain(state):
            return {"a": now.responses.create(model="test-model", input=f"Please sum up: {state['q']}").output_text}

        graph = await tg.adiscover(one(writer), TWO)
        [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "Hail {team}!"})
        bare = await tg.adiscover(one(plain), TWO)
        [short] = await bare.arecord([{"inputs": TWO[0]}], prompts={"writer": "{q}, briefly"})
    assert graph.parameters["writer"].value == "You answer for {team}."
    assert run.outputs["a"] == "Hail billing! / why is it blue"
    [call] = run.executions[0].model_calls
    assert [m["role"] for m in call.messages] == ["system", "human", "ai", "tool", "ai"]
    assert call.messages[3]["content"] == "seen"
    assert short.outputs["a"] == "why is it blue, briefly"


async def test_streamed_and_whole_calls_are_the_same_question(clients):
    with OpenAIServer(said) as server:
        pair = clients.make(server)

        def graph(how):
            async def writer(state):
                return {"a": await completion(pair, how, messages=asked(state))}

            return tg.TrainableGraph(one(writer))

        with tg.use_ledger(tg.Ledger()):
            for how in ("create", "astream", "acreate", "stream", "raw"):
                await graph(how).arecord(BATCH)
        assert len(server.chats) == 1


async def test_chunks_have_the_usage_where_it_was_asked_for(clients):
    with OpenAIServer(said) as server:
        now, _ = clients.make(server)
        seen = []

        def writer(state):
            for options in ({"include_usage": True}, {}):
                seen.append(
                    list(
                        now.chat.completions.create(
                            model="test-model", messages=asked(state), stream=True, stream_options=options
                        )
                    )
                )

        await tg.TrainableGraph(one(writer)).arecord(BATCH)
    with_usage, without = seen
    assert [c.choices == [] for c in with_usage] == [False, False, True]
    assert with_usage[-1].usage.total_tokens == 7
    assert [c.choices[0].finish_reason for c in without] == [None, "stop"]
    assert all(c.usage is None for c in without)


async def test_second_sample_and_repeated_questions_are_paid_for_and_kept(clients):
    count = iter(range(10))
    with OpenAIServer(lambda body: str(next(count))) as server:
        pair = clients.make(server)

        async def writer(state):
            return {"a": "".join([await completion(pair, "acreate", messages=asked(state)) for _ in "12"])}

        with tg.use_ledger(tg.Ledger()):
            graph = tg.TrainableGraph(one(writer))
            outs = [(await graph.arecord(BATCH, sample=n))[0].outputs["a"] for n in (0, 1, 0)]
    assert outs == ["01", "23", "01"]


async def test_sdks_own_retries_are_one_call_that_is_found_again(clients):
    answers = [Fault(500, headers={"retry-after-ms": "1"}), "fine"]
    with OpenAIServer(lambda body: answers.pop(0)) as server:
        client = clients.make(server)[1].with_options(max_retries=2)

        async def writer(state):
            reply = await client.chat.completions.create(model="test-model", messages=asked(state))
            return {"a": reply.choices[0].message.content}

        with tg.use_ledger(tg.Ledger()) as _:
            outs = []
            for q in ("", " "):  # not the same run, but the same question
                state = {"q": "same", "team": q}
                outs += await tg.TrainableGraph(one(writer)).arecord([{"inputs": state}])
        assert len(server.chats) == 2
    assert [(r.outputs["a"], r.usage.calls, len(r.executions[0].model_calls)) for r in outs] == [
        ("fine", 1, 1), ("fine", 0, 1),
    ]  # fmt: skip


async def test_errors_of_a_call_are_recorded_and_are_the_sdks_own(clients):
    with OpenAIServer(lambda body: Fault(400)) as server:
        pair = clients.make(server)

        async def writer(state):
            with pytest.raises(openai.BadRequestError):
                await completion(pair, "create", messages=asked(state))
            return {"a": await completion(pair, "acreate", messages=asked(state))}

        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert run.error.startswith("BadRequestError: ")
    assert all(c.error.startswith("BadRequestError") for c in run.executions[0].model_calls)
    assert (len(run.executions[0].model_calls), run.usage.calls) == (2, 0)


@pytest.mark.parametrize("how", ["create", "acreate"])
@pytest.mark.parametrize(
    ("status", "expected"), [(401, ModelAuthenticationError), (404, UnknownModelError)]
)
async def test_errors_that_would_repeat_are_raised_even_if_a_node_swallows_them(clients, how, status, expected):
    with OpenAIServer(lambda body: Fault(status)) as server:
        pair = clients.make(server)

        async def writer(state):
            try:
                return {"a": await completion(pair, how, messages=asked(state))}
            except openai.APIError:
                return {"a": "sorry"}

        with pytest.raises(expected):
            await tg.TrainableGraph(one(writer)).arecord(BATCH)


async def test_unreachable_server_and_used_up_budget_are_raised(clients):
    pair = clients.make("http://127.0.0.1:9/v1")

    async def writer(state):
        return {"a": await completion(pair, "acreate", messages=asked(state))}

    with pytest.raises(ModelUnreachableError):
        await tg.TrainableGraph(one(writer)).arecord(BATCH)
    with OpenAIServer(said) as server:
        pair = clients.make(server)
        ledger = tg.Ledger(account=Account(tg.Budget(calls=1)))
        with tg.use_ledger(ledger):
            await tg.TrainableGraph(one(writer)).arecord([{"inputs": {"q": "a"}}])
            with pytest.raises(BudgetExceededError):
                await tg.TrainableGraph(one(writer)).arecord([{"inputs": {"q": "b"}}])
        assert len(server.chats) == 1


async def test_gateways_error_under_status_200_is_not_kept(clients):
    answers = [{"error": {"message": "upstream is down"}}, {"choices": None}, ["?"]]
    with OpenAIServer(lambda body: Fault(200, answers.pop(0))) as server:
        pair = clients.make(server)

        async def writer(state):
            return {"a": await completion(pair, "acreate", messages=asked(state))}

        with tg.use_ledger(tg.Ledger()) as _:
            for said_ in ("upstream is down", "None", "?"):
                [run] = await tg.TrainableGraph(one(writer)).arecord([{"inputs": {"q": said_}}])
                assert "something else than a reply" in run.error
                assert said_ in run.error


async def test_background_responses_go_through_with_a_warning(clients):
    with OpenAIServer(said) as server:
        now, _ = clients.make(server)

        def writer(state):
            return {"a": now.responses.create(model="test-model", input="x", background=True).output_text}

        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert run.executions[0].model_calls == ()
    [warning] = run.warnings
    assert "background" in warning


async def test_call_in_a_thread_without_context_is_not_recorded_and_told(clients):
    with OpenAIServer(said) as server:
        pair = clients.make(server)

        async def writer(state):
            found = []

            def work():
                reply = pair[0].chat.completions.create(model="test-model", messages=asked(state))
                found.append(reply.choices[0].message.content)

            thread = threading.Thread(target=work)
            thread.start()
            await asyncio.to_thread(thread.join)
            return {"a": found[0]}

        [run] = await tg.TrainableGraph(one(writer)).arecord(BATCH)
    assert (run.outputs["a"], run.usage.calls) == ("You write. / hi", 0)
    [warning] = run.warnings
    assert "writer" in warning
    assert "thread" in warning


async def test_langchain_model_on_a_wrapped_client_is_one_call(clients):
    with OpenAIServer(said) as server:
        now, later = clients.make(server)
        model = ChatOpenAI(
            model="test-model", api_key="k", base_url=server.base_url,
            client=now.chat.completions, async_client=later.chat.completions,
            root_client=now, root_async_client=later,
        )  # fmt: skip

        async def writer(state):
            return {"a": (await model.ainvoke(asked(state))).content}

        graph = await tg.adiscover(one(writer), TWO[:1])
        [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You sing."})
        assert len(server.chats) == 2
    assert run.outputs["a"] == "You sing. / why is it blue"
    assert (run.usage.calls, len(run.executions[0].model_calls)) == (1, 1)


async def test_evaluators_calls_are_the_judges(clients):
    with OpenAIServer(lambda body: "0.5") as server:
        pair = clients.make(server)
        ledger = tg.Ledger()

        async def judge(outputs):
            return float(await completion(pair, "acreate", messages=asked({"q": outputs["a"]})))

        with tg.use_ledger(ledger):
            runs = await tg.TrainableGraph(one(lambda s: {"a": "x"})).arecord(BATCH)
            loss = await tg.Objective([judge]).acall(runs)
    assert loss.score == 0.5
    assert {k: u.calls for k, u in ledger.account.by_kind.items()} == {"judge": 1}


@pytest.mark.parametrize("how", ["stream", "acreate"])
async def test_fifty_candidates_at_once_do_not_meet(clients, how):
    with OpenAIServer(said) as server:
        pair = clients.make(server)

        async def writer(state):
            await asyncio.sleep(0)
            if how.startswith("a"):
                return {"a": await completion(pair, how, messages=asked(state))}
            return {"a": await asyncio.to_thread(lambda: asyncio.run(completion(pair, how, messages=asked(state))))}

        graph = await tg.adiscover(one(writer), TWO[:1])
        texts = [f"Candidate {n}." for n in range(50)]
        runs = await asyncio.gather(
            *(graph.arecord([{"inputs": TWO[0]}], prompts={"writer": t}) for t in texts)
        )
    assert [r.outputs["a"] for [r] in runs] == [f"{t} / why is it blue" for t in texts]
    assert [dict(r.executions[0].prompts) for [r] in runs] == [{"writer": t} for t in texts]


def test_ids_that_servers_draw_do_not_decide_what_a_question_is():
    def talk(a, b):
        return [
            {"role": "assistant", "tool_calls": [{"id": a}, {"id": b}]},
            {"role": "tool", "tool_call_id": b, "content": a},
        ]

    assert without_ids(talk("x", "y"))[1]["tool_call_id"] == without_ids(talk("p", "q"))[1]["tool_call_id"]
    assert without_ids(talk("x", "y"))[0] == without_ids(talk("p", "q"))[0]
    assert without_ids(talk("x", "x")) != without_ids(talk("x", "y"))


@pytest.mark.parametrize("api", [ChatCompletions(), Responses()])
@pytest.mark.parametrize("odd", [{}, {"messages": 1, "input": 1}, {"messages": [1, {}], "input": [1, {"role": 3}, {}]}])
def test_bodies_that_are_not_as_documented_are_read_as_far_as_they_go(api, odd):
    assert all(m.content in ("", [{}]) for _, m in api.messages(odd))
    assert not api.complete(odd)
