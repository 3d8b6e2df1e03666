"""LangChain chat models: the real ChatOpenAI against a real server, and models written by hand."""

from __future__ import annotations

import json
import traceback
from typing import Any

import httpx
import openai
import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from lg_textgrad.errors import (
    BudgetExceededError,
    ContextOverflowError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.models import ChatModel, LangChain, ModelRequest
from tests.models.test_openai import FLAGGED, KEY, SCHEMA, ask, free_port, refuses_json_schema
from tests.servers.openai_server import Fault, OpenAIServer, Reply, error_body


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def http():
    # ChatOpenAI keeps its own connections for ever; these are closed with the test.
    async with openai.DefaultAsyncHttpxClient(trust_env=False) as client:
        yield client


@pytest.fixture
def make(http):
    def make_model(base_url, **options):
        options = {"model": "test-model", "api_key": KEY, "max_retries": 0, **options}
        return LangChain(ChatOpenAI(base_url=base_url, http_async_client=http, **options))

    return make_model


async def failure(model, expected, request=None):
    with pytest.raises(expected) as caught:
        await model.acall(request or ask())
    error = caught.value
    assert type(error) is expected
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(model)
    assert KEY not in shown
    assert KEY[:12] not in shown
    return error


class Model(BaseChatModel):
    """A chat model written by hand: `answers` are messages to return or exceptions to raise."""

    answers: list[Any]
    seen: list[Any] = []
    temperature: float | None = None

    @property
    def _llm_type(self) -> str:
        return "by-hand"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append((messages, kwargs))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        message = AIMessage(answer) if isinstance(answer, str) else answer
        return ChatResult(generations=[ChatGeneration(message=message)])


class ToolModel(Model):
    """One that is held to a schema by a tool call, as many integrations do it."""

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, tool_choice=kwargs.get("tool_choice"))


# --- ChatOpenAI ---------------------------------------------------------------------------------


async def test_free_text_comes_back_with_usage(make):
    with OpenAIServer(lambda body: "one two three") as server:
        chat = make(server.base_url)
        assert isinstance(chat, ChatModel)
        reply = await chat.acall(ask())
    assert (reply.text, reply.data, reply.finish_reason) == ("one two three", None, "stop")
    assert reply.usage.calls == 1
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 3)
    assert reply.usage.seconds > 0


async def test_request_is_sent_with_its_options(make):
    messages = [
        {"role": "system", "content": "{a}"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    with OpenAIServer() as server:
        chat = make(server.base_url)
        await chat.acall(ModelRequest(messages, max_tokens=9, temperature=0.5, seed=3))
    (sent,) = server.chats
    assert [(m["role"], m["content"]) for m in sent["messages"]] == [
        (m["role"], m["content"]) for m in messages
    ]
    assert sent["max_completion_tokens"] == 9
    assert (sent["temperature"], sent["seed"]) == (0.5, 3)


async def test_schema_is_sent_with_the_options_and_enforced(make):
    with OpenAIServer(lambda body: {"ok": True}) as server:
        chat = make(server.base_url)
        reply = await chat.acall(ask(schema=SCHEMA, max_tokens=9, seed=3))
        assert reply.data == {"ok": True}
        (sent,) = server.chats
        assert sent["response_format"]["type"] == "json_schema"
        assert sent["response_format"]["json_schema"]["name"] == "reply"
        assert sent["response_format"]["json_schema"]["strict"] is True
        assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
        assert (sent["temperature"], sent["max_completion_tokens"], sent["seed"]) == (0.0, 9, 3)
        server.handler = lambda body: {"ok": "yes"}
        error = await failure(chat, ModelReplyError, ask(schema=SCHEMA))
    assert "violates the schema at $.ok" in str(error)
    assert error.reply == '{"ok": "yes"}'


@pytest.mark.parametrize(
    ("answer", "says", "reply"),
    [
        (Reply('{"ok": tr', finish_reason="length"), "cut off", '{"ok": tr'),
        (Reply('{"ok": tr'), "malformed JSON", '{"ok": tr'),
        (Reply(""), "empty", ""),
        (Reply("x", finish_reason="content_filter"), "content filter", None),
        (Reply(None, refusal="I will not."), "refused to answer: I will not.", "I will not."),
    ],
)
async def test_unusable_reply_says_which_it_is(make, answer, says, reply):
    with OpenAIServer(lambda body: answer) as server:
        error = await failure(make(server.base_url), ModelReplyError, ask(schema=SCHEMA))
    assert says in str(error)
    assert reply is None or error.reply == reply


@pytest.mark.parametrize(
    ("why", "kind"), [("length", "truncated"), ("content_filter", "refused")]
)
async def test_reply_that_the_sdk_refuses_is_paid_for_like_any_other(make, why, kind):
    with OpenAIServer(lambda body: Reply('{"ok": tr', finish_reason=why)) as server:
        error = await failure(make(server.base_url), ModelReplyError, ask(schema=SCHEMA))
    assert error.kind == kind
    assert (error.usage.calls, error.usage.tokens, error.usage.seconds > 0) == (1, 4, True)


@pytest.mark.parametrize("fault", FLAGGED, ids=["azure", "openrouter"])
async def test_request_that_a_content_filter_refuses_is_a_reply_and_no_refused_key(make, fault):
    with OpenAIServer(lambda body: fault) as server:
        error = await failure(make(server.base_url), ModelReplyError)
    assert (error.kind, error.usage.calls) == ("refused", 0)


async def test_free_text_may_be_cut_off_but_not_empty(make):
    with OpenAIServer(lambda body: Reply("so far", finish_reason="length")) as server:
        chat = make(server.base_url)
        assert (await chat.acall(ask())).finish_reason == "length"
        server.handler = lambda body: Reply("", finish_reason="length")
        await failure(chat, ModelReplyError)


async def test_server_without_json_schema_is_asked_in_words_and_remembered(make):
    with OpenAIServer(refuses_json_schema) as server:
        chat = make(server.base_url)
        assert (await chat.acall(ask(schema=SCHEMA))).data == {"ok": True}
        assert (await chat.acall(ask(schema={**SCHEMA, "minProperties": 1}))).data == {"ok": True}
    assert len(server.chats) == 3
    for sent in server.chats[1:]:
        assert "response_format" not in sent
        assert '"required": ["ok"]' in sent["messages"][-1]["content"]


async def test_model_without_temperature_is_asked_without(make):
    def handler(body):
        if "temperature" not in body:
            return "ok"
        said = "Unsupported value: 'temperature' does not support 0.0 with this model."
        return Fault(400, error_body(said, code="unsupported_value", param="temperature"))

    with OpenAIServer(handler) as server:
        chat = make(server.base_url)
        await chat.acall(ask())
        await chat.acall(ask())
    assert len(server.chats) == 3


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(401), ModelAuthenticationError),
        (Fault(403), ModelAuthenticationError),
        (Fault(404), UnknownModelError),
        (Fault(400, error_body("no", code="model_not_found")), UnknownModelError),
        (Fault(400, error_body("long", code="context_length_exceeded")), ContextOverflowError),
        (
            Fault(400, {"error": {"message": "too long", "type": "exceed_context_size_error"}}),
            ContextOverflowError,
        ),
        (Fault(400, error_body(f"you sent {KEY}")), ModelError),
        (Fault(429, error_body(f"you sent {KEY}")), ModelBusyError),
        (Fault(503), ModelBusyError),
        (Fault.reset(), ModelBusyError),
    ],
)
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["text", "schema"])
async def test_sdk_errors_mean_what_they_mean_for_our_own_client(make, fault, expected, schema):
    with OpenAIServer(lambda body: fault) as server:
        error = await failure(make(server.base_url), expected, ask(schema=schema))
        assert server.base_url in str(error)


async def test_unreachable_server_and_silence(make):
    address = f"http://127.0.0.1:{free_port()}/v1"
    error = await failure(make(address), ModelUnreachableError)
    assert f"Nobody answers at {address}" in str(error)
    with OpenAIServer(lambda body: Fault.hang(30)) as server:
        await failure(make(server.base_url, timeout=0.7), ModelBusyError)


def test_identity_names_class_parameters_and_server_and_no_secret(make):
    def identity(base_url="http://host/v1", **options):
        return make(base_url, **options).identity

    found = identity(top_p=0.5, model_kwargs={"x_api_key": "abc", "user": f"u {KEY}"})
    assert found["class"] == "langchain_openai.chat_models.base.ChatOpenAI"
    assert found["params"]["model_name"] == "test-model"
    assert found["params"]["top_p"] == 0.5
    assert found["base_url"] == "http://host/v1"
    assert KEY not in json.dumps(found)
    assert "abc" not in json.dumps(found)
    assert identity() == identity(api_key="sk-another-key-0123")
    assert identity() != identity(temperature=0.3)
    assert identity() != identity(model="test-model-2")
    assert identity() != identity("http://other/v1")
    assert identity("http://localhost:1/v1") == identity("http://127.0.0.1:2/v1")


# --- models written by hand ---------------------------------------------------------------------


async def test_messages_keep_their_roles():
    hand = Model(answers=["ok"])
    roles = ["system", "user", "assistant", "user"]
    await LangChain(hand).acall(ModelRequest([{"role": r, "content": r} for r in roles]))
    kinds = [type(m) for m in hand.seen[0][0]]
    assert kinds == [SystemMessage, HumanMessage, AIMessage, HumanMessage]


async def test_only_options_that_the_class_has_are_bound():
    hand = Model(answers=["ok"])
    await LangChain(hand).acall(ask(max_tokens=5, seed=1, temperature=0.2))
    assert hand.seen[0][1] == {"temperature": 0.2}
    listed = FakeListChatModel(responses=["a", "b"])
    chat = LangChain(listed)
    assert [(await chat.acall(ask(seed=1))).text for _ in range(2)] == ["a", "b"]


async def test_option_that_the_provider_does_not_take_is_left_out_from_there_on():
    refusal = TypeError("AsyncClient.chat() got an unexpected keyword argument 'temperature'")
    hand = Model(answers=[refusal, "ok", "ok"])
    chat = LangChain(hand)
    await chat.acall(ask())
    await chat.acall(ask())
    assert [sorted(kwargs) for _, kwargs in hand.seen] == [["temperature"], [], []]


def refusal(status, said):
    """As other providers' SDKs raise it: with the response."""
    asked = httpx.Request("POST", "https://api.anthropic.com")
    return httpx.HTTPStatusError(said, request=asked, response=httpx.Response(status))


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "Input is too long for requested model."), (413, "Request exceeds the maximum size")],
)
async def test_request_that_is_too_long_for_another_provider(status, said):
    with pytest.raises(ContextOverflowError, match=said):
        await LangChain(Model(answers=[refusal(status, said)])).acall(ask())


async def test_temperature_that_another_provider_refuses_is_left_out_from_there_on():
    said = "`temperature` may only be set to 1 when thinking is enabled."
    hand = Model(answers=[refusal(400, said), "ok", "ok"])
    chat = LangChain(hand)
    await chat.acall(ask())
    await chat.acall(ask())
    assert [sorted(kwargs) for _, kwargs in hand.seen] == [["temperature"], [], []]


async def test_model_without_structured_output_is_asked_in_words():
    hand = Model(answers=['```json\n{"ok": true}\n```'])
    reply = await LangChain(hand).acall(ask(schema=SCHEMA))
    assert reply.data == {"ok": True}
    assert '"required": ["ok"]' in hand.seen[0][0][-1].content


async def test_reply_in_a_tool_call_is_checked_like_any_other():
    def called(args):
        return AIMessage("", tool_calls=[{"name": "reply", "args": args, "id": "1"}])

    chat = LangChain(ToolModel(answers=[called({"ok": True}), called({"ok": 3}), "in words"]))
    reply = await chat.acall(ask(schema=SCHEMA))
    assert reply.data == {"ok": True}
    assert json.loads(reply.text) == {"ok": True}
    await failure(chat, ModelReplyError, ask(schema=SCHEMA))
    assert (await failure(chat, ModelReplyError, ask(schema=SCHEMA))).reply == "in words"


async def test_usage_and_finish_reason_of_other_providers():
    message = AIMessage(
        [{"type": "text", "text": "hi"}],
        response_metadata={"stop_reason": "max_tokens"},
        usage_metadata={"input_tokens": 5, "output_tokens": 3, "total_tokens": 12},
    )
    reply = await LangChain(Model(answers=[message])).acall(ask())
    assert (reply.text, reply.finish_reason) == ("hi", "length")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 7)


async def test_stream_that_ends_in_an_error_is_a_busy_server(make):
    stream = 'data: {"error": {"message": "overloaded", "type": "server_error", "code": null}}\n\n'
    head = {"content-type": "text/event-stream"}
    with OpenAIServer(lambda body: Fault(200, stream, headers=head)) as server:
        error = await failure(make(server.base_url, streaming=True), ModelBusyError)
    assert (error.fault, "overloaded" in str(error)) == ("server_error", True)


@pytest.mark.parametrize("choices", [[], None])
async def test_answer_without_choices_is_garbled(make, choices):
    body = {"object": "chat.completion", "model": "m", "choices": choices}
    with OpenAIServer(lambda _: Fault(200, body)) as server:
        with pytest.raises(ModelError) as caught:
            await make(server.base_url).acall(ask())
    assert caught.value.fault == "garbled"


async def test_bug_in_a_hand_written_model_keeps_its_traceback():
    bug = ValueError("broken")
    with pytest.raises(ModelError, match="'Model' failed with ValueError: broken") as caught:
        await LangChain(Model(answers=[bug])).acall(ask())
    assert caught.value.__cause__ is bug


async def test_secret_of_any_model_stays_out_of_errors():
    class Keyed(Model):
        some_key: SecretStr = SecretStr(KEY)

    await failure(LangChain(Keyed(answers=[ValueError(f"bad {KEY}")])), ModelError)


async def test_our_own_errors_pass_through():
    over = BudgetExceededError("used up", limit="calls")
    with pytest.raises(BudgetExceededError) as caught:
        await LangChain(Model(answers=[over])).acall(ask())
    assert caught.value is over


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ContextOverflowError", ContextOverflowError),
        ("ModelAuthenticationError", ModelAuthenticationError),
        ("ModelNotFoundError", UnknownModelError),
        ("ModelRateLimitError", ModelBusyError),
        ("ModelAPIError", ModelBusyError),
        ("ModelConnectionError", ModelUnreachableError),
    ],
)
async def test_langchains_own_errors_are_understood(name, expected):
    exceptions = pytest.importorskip("langchain_core.exceptions")
    if not hasattr(exceptions, name):
        pytest.skip(f"this langchain-core has no {name}")
    error = getattr(exceptions, name)("said so")
    assert "said so" in str(await failure(LangChain(Model(answers=[error])), expected))
