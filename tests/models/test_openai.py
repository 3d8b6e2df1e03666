"""The openai SDK against a real server on loopback."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import traceback

import pytest

from lg_textgrad._sync import run_sync
from lg_textgrad.errors import (
    ConfigurationError,
    ContextOverflowError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.models import ChatModel, ModelRequest, OpenAI
from tests.servers import free_port
from tests.servers.openai_server import Fault, OpenAIServer, Reply, error_body

KEY = "sk-very-secret-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def ask(text="hello there", **options):
    return ModelRequest([{"role": "user", "content": text}], **options)


def model(server, **options):
    options.setdefault("max_retries", 0)
    return OpenAI("test-model", base_url=server.base_url, **options)


async def failure(server, expected, request=None, **options):
    with pytest.raises(expected) as caught:
        await model(server, **options).acall(request or ask())
    error = caught.value
    assert type(error) is expected
    # No SDK exception, and so no request header, may hang on to what we raise.
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


# --- replies ------------------------------------------------------------------------------------


async def test_free_text_comes_back_with_usage():
    with OpenAIServer(lambda body: "one two three") as server:
        reply = await model(server).acall(ask())
    assert reply.text == "one two three"
    assert reply.data is None
    assert reply.finish_reason == "stop"
    assert (reply.usage.calls, reply.usage.cached_calls) == (1, 0)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 3)
    assert 0 < reply.usage.seconds < 60


async def test_text_that_comes_in_parts_is_the_reply_without_what_was_thought():
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": '{"ok": '},
        {"type": "text", "text": "true}"},
    ]
    body = {
        "object": "chat.completion",
        "choices": [{"message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    with OpenAIServer(lambda _: Fault(200, body)) as server:
        reply = await model(server).acall(ask(schema=SCHEMA))
    assert (reply.data, reply.usage.tokens) == ({"ok": True}, 5)


async def test_request_is_sent_as_it_is():
    with OpenAIServer() as server:
        chat = model(server, extra_body={"cache_prompt": True})
        assert isinstance(chat, ChatModel)
        messages = [{"role": "system", "content": "{a}"}, {"role": "user", "content": "b"}]
        await chat.acall(ModelRequest(messages, max_tokens=9, temperature=0.5, seed=3))
    assert server.chats == [
        {
            "model": "test-model",
            "messages": messages,
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 3,
            "cache_prompt": True,
        }
    ]


async def test_what_was_left_open_is_not_sent():
    with OpenAIServer() as server:
        await model(server).acall(ask())
    assert set(server.chats[0]) == {"model", "messages", "temperature"}


async def test_schema_is_sent_and_enforced():
    with OpenAIServer(lambda body: {"ok": True}) as server:
        reply = await model(server).acall(ask(schema=SCHEMA))
        assert reply.data == {"ok": True}
        assert server.chats[0]["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True},
        }
        server.handler = lambda body: {"ok": "yes"}
        error = await failure(server, ModelReplyError, ask(schema=SCHEMA))
    assert "violates the schema at $.ok" in str(error)
    assert error.reply == '{"ok": "yes"}'


@pytest.mark.parametrize(
    ("answer", "says", "reply"),
    [
        (Reply('{"ok": tr', finish_reason="length"), "cut off at max_tokens=4", '{"ok": tr'),
        (Reply('{"ok": tr'), "malformed JSON", '{"ok": tr'),
        (Reply(""), "empty", ""),
        (Reply(None), "empty", ""),
        (Reply(None, finish_reason="length"), "cut off", ""),
        (Reply(None, finish_reason="content_filter"), "content filter", ""),
        (Reply(None, refusal="I will not."), "refused to answer: I will not.", "I will not."),
    ],
)
async def test_unusable_reply_says_which_it_is(answer, says, reply):
    with OpenAIServer(lambda body: answer) as server:
        error = await failure(server, ModelReplyError, ask(schema=SCHEMA, max_tokens=4))
    assert says in str(error)
    assert error.reply == reply


@pytest.mark.parametrize("answer", [Reply(" \n"), Reply(None, refusal="No."), Reply(None)])
async def test_free_text_must_say_something(answer):
    with OpenAIServer(lambda body: answer) as server:
        await failure(server, ModelReplyError)


async def test_free_text_may_be_cut_off():
    with OpenAIServer(lambda body: Reply("so far", finish_reason="length")) as server:
        reply = await model(server).acall(ask(max_tokens=2))
    assert (reply.text, reply.finish_reason) == ("so far", "length")


async def test_half_surrogates_neither_leave_nor_arrive():
    with OpenAIServer(lambda body: Reply("a\ud83d")) as server:
        reply = await model(server).acall(ask("b\udc00"))
    assert reply.text == "a\ufffd"
    assert server.chats[0]["messages"][0]["content"] == "b\ufffd"


@pytest.mark.parametrize(
    "body",
    [
        "<html>Welcome</html>",
        {"hello": "world"},
        {"choices": []},
        {"choices": [{"index": 0}]},
        {"error": {"message": "upstream is down"}},
    ],
)
async def test_answer_that_is_no_completion_blames_the_address(body):
    with OpenAIServer(lambda _: Fault(200, body)) as server:
        error = await failure(server, ModelError)
    assert "usually ends in /v1" in str(error)
    assert ("upstream is down" in str(error)) == ("error" in body)


async def test_broken_json_from_the_server_blames_the_address():
    broken = Fault(200, "{", {"content-type": "application/json"})
    with OpenAIServer(lambda _: broken) as server:
        assert "usually ends in /v1" in str(await failure(server, ModelError))


async def test_missing_usage_counts_the_call():
    body = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    }
    with OpenAIServer(lambda _: Fault(200, body)) as server:
        reply = await model(server).acall(ask())
    assert (reply.usage.calls, reply.usage.tokens, reply.finish_reason) == (1, 0, None)


@pytest.mark.parametrize(
    ("usage", "completion"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, 105),
        ({"prompt_tokens": 10, "completion_tokens": 105, "total_tokens": 115}, 105),
        ({"prompt_tokens": 10, "completion_tokens": 5}, 5),
        (
            {
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015,
                "prompt_tokens_details": {"cached_tokens": 1000},
            },
            5,
        ),
    ],
    ids=["xai", "openai", "no total", "cached apart"],
)  # fmt: skip
async def test_tokens_of_thinking_are_counted_wherever_the_server_has_them(usage, completion):
    choice = {"message": {"role": "assistant", "content": "hi"}}
    body = {"object": "chat.completion", "choices": [choice], "usage": usage}
    with OpenAIServer(lambda _: Fault(200, body)) as server:
        reply = await model(server).acall(ask())
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, completion)


# --- servers that speak a dialect ---------------------------------------------------------------


def refuses_json_schema(body):
    if body.get("response_format", {}).get("type") == "json_schema":
        return Fault(400, error_body("'response_format' of type 'json_schema' is not supported"))
    return {"ok": True}


async def test_server_without_json_schema_is_asked_in_words_and_remembered():
    with OpenAIServer(refuses_json_schema) as server:
        chat = model(server)
        first = await chat.acall(ask(schema=SCHEMA))
        second = await chat.acall(ask(schema={**SCHEMA, "title": "another"}))
        await chat.acall(ask())
    assert first.data == second.data == {"ok": True}
    assert first.usage.calls == 1
    assert len(server.chats) == 4
    for body in server.chats[1:3]:
        assert body["response_format"] == {"type": "json_object"}
        assert '"required": ["ok"]' in body["messages"][-1]["content"]
    assert "response_format" not in server.chats[3]
    assert server.chats[3]["messages"][-1]["content"] == "hello there"


async def test_server_that_names_the_schema_otherwise_is_asked_in_words_too():
    said = 'Unknown name "additionalProperties" at \'generation_config.response_schema\''

    def handler(body):
        asked = body.get("response_format", {}).get("type") == "json_schema"
        return Fault(400, error_body(said)) if asked else {"ok": True}

    with OpenAIServer(handler) as server:
        assert (await model(server).acall(ask(schema=SCHEMA))).data == {"ok": True}


async def test_one_refused_schema_does_not_spoil_the_others():
    def handler(body):
        given = body["response_format"]
        if given["type"] == "json_schema" and "title" in given["json_schema"]["schema"]:
            return Fault(400, error_body("Invalid schema for response_format 'reply'"))
        return {"ok": True}

    with OpenAIServer(handler) as server:
        chat = model(server)
        await chat.acall(ask(schema={**SCHEMA, "title": "x"}))
        await chat.acall(ask(schema=SCHEMA))
        await chat.acall(ask(schema={**SCHEMA, "title": "x"}))
    kinds = [body["response_format"]["type"] for body in server.chats]
    assert kinds == ["json_schema", "json_object", "json_schema", "json_object"]


async def test_server_that_refuses_both_formats_is_asked_twice_only():
    fault = Fault(400, error_body("response_format is not supported"))
    with OpenAIServer(lambda body: fault) as server:
        error = await failure(server, ModelError, ask(schema=SCHEMA))
        assert "response_format is not supported" in str(error)
        assert len(server.chats) == 2


async def test_newer_name_of_max_tokens_is_learned():
    def handler(body):
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Fault(400, error_body(said, code="unsupported_parameter", param="max_tokens"))
        return "ok"

    with OpenAIServer(handler) as server:
        chat = model(server)
        await chat.acall(ask(max_tokens=7))
        await chat.acall(ask(max_tokens=7))
    assert len(server.chats) == 3
    assert server.chats[-1]["max_completion_tokens"] == 7


async def test_model_without_temperature_and_seed_is_asked_without():
    def handler(body):
        for param in ("temperature", "seed"):
            if param in body:
                said = f"Unsupported value: '{param}' does not support this."
                return Fault(400, error_body(said, code="unsupported_value", param=param))
        return "ok"

    with OpenAIServer(handler) as server:
        chat = model(server)
        await chat.acall(ask(seed=1))
        await chat.acall(ask(seed=1))
    assert len(server.chats) == 4


@pytest.mark.parametrize(
    ("status", "body", "param"),
    [
        (400, error_body("gpt-5 models don't support temperature=0.0.", code="400"), "temperature"),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "seed"),
        (400, [{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
    ],
    ids=["litellm", "mistral", "google"],
)  # fmt: skip
async def test_parameter_that_is_refused_in_words_only_is_left_out(status, body, param):
    with OpenAIServer(lambda sent: Fault(status, body) if param in sent else "ok") as server:
        chat = model(server)
        await chat.acall(ask(seed=1))
        await chat.acall(ask(seed=1))
    assert [param in sent for sent in server.chats] == [True, False, False]


async def test_other_bad_request_carries_the_servers_words():
    with OpenAIServer(lambda body: Fault(400, error_body("top_k must be positive"))) as server:
        error = await failure(server, ModelError)
    assert "400: top_k must be positive" in str(error)
    assert server.base_url in str(error)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_key_says_how_to_give_one(status):
    with OpenAIServer(lambda body: Fault(status)) as server:
        error = await failure(server, ModelAuthenticationError, api_key_env="MY_KEY")
    assert f"The server at {server.base_url} refused the API key" in str(error)
    assert "set MY_KEY or pass api_key=..." in str(error)


FLAGGED = [
    Fault(400, error_body("The prompt triggered the content filter.", code="content_filter")),
    Fault(403, {"error": {"message": "flagged", "code": 403, "metadata": {"flagged_input": "x"}}}),
]


@pytest.mark.parametrize("fault", FLAGGED, ids=["azure", "openrouter"])
async def test_request_that_a_content_filter_refuses_is_a_reply_and_no_refused_key(fault):
    with OpenAIServer(lambda body: fault) as server:
        error = await failure(server, ModelReplyError)
    assert "refused the request" in str(error)
    # Nothing is known to have been paid: that must not look like a server that counts no tokens.
    assert (error.kind, error.usage.calls) == ("refused", 0)


@pytest.mark.parametrize("listed", [False, True])
async def test_invalid_key_under_status_400_is_a_refused_key(listed):
    said = error_body("API key not valid. Please pass a valid API key.")
    fault = Fault(400, [said] if listed else said)  # Google's servers send a list
    with OpenAIServer(lambda body: fault) as server:
        await failure(server, ModelAuthenticationError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 422, 429, 500])
@pytest.mark.parametrize("shape", ["message", "text", "detail"])
async def test_key_is_never_in_an_errors_text(status, shape):
    def echo(body):
        seen = server.requests[-1]["headers"]["authorization"]
        # Long enough that shortening the message cuts into the key.
        said = f"{'x' * 480} you sent {seen} and {seen}"
        return Fault(
            status, {"message": error_body(said), "text": said, "detail": {"detail": said}}[shape]
        )

    with OpenAIServer(echo) as server:
        chat = model(server, api_key=KEY)
        with pytest.raises(ModelError) as caught:
            await chat.acall(ask())
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(chat)
    assert KEY not in shown
    assert KEY[:12] not in shown
    assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"


async def test_key_is_not_in_a_reply_errors_text():
    with OpenAIServer(lambda body: {"ok": KEY}) as server:
        error = await failure(server, ModelReplyError, ask(schema=SCHEMA), api_key=KEY)
    assert KEY not in str(error) + error.reply


async def test_word_that_stands_for_no_key_is_no_secret():
    with OpenAIServer(lambda body: Fault(400, error_body("none of these"))) as server:
        assert "none of these" in str(await failure(server, ModelError, api_key="none"))


async def test_wrong_key_is_refused_by_the_server():
    with OpenAIServer(api_key="right-key") as server:
        error = await failure(server, ModelAuthenticationError, api_key="wrong-key")
        assert "wrong-key" not in str(error)
        assert (await model(server, api_key="right-key\n").acall(ask())).text == "ok"


async def test_unreachable_server_says_where_nobody_answers():
    address = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ModelUnreachableError) as caught:
        await OpenAI("m", base_url=address, max_retries=1).acall(ask())
    assert f"Nobody answers at {address}" in str(caught.value)
    assert "--base-url" in str(caught.value)


async def test_doubt_is_told_from_the_list_of_models_and_costs_no_call():
    with OpenAIServer(models=["gpt-5-mini", "other"], api_key="right") as server:
        right = {"base_url": server.base_url, "api_key": "right"}
        assert await OpenAI("other", **right).adoubt() is None
        doubt = await OpenAI("gpt-5-mimi", **right).adoubt()
        assert "lists other models than 'gpt-5-mimi': gpt-5-mini, other." in doubt
        # Some keys may ask, but not for the list; the first call shows what is wrong, if anything.
        assert await OpenAI("x", base_url=server.base_url, api_key="wrong").adoubt() is None
        assert server.chats == []
    with OpenAIServer(models=None) as server:
        assert await OpenAI("any", base_url=server.base_url).adoubt() is None
    with pytest.raises(ModelUnreachableError, match="Nobody answers at .*--base-url"):
        await OpenAI("m", base_url=f"http://127.0.0.1:{free_port()}/v1").adoubt()


async def test_dropped_connection_is_a_busy_server():
    with OpenAIServer(lambda body: Fault.reset()) as server:
        error = await failure(server, ModelBusyError, max_retries=1)
        assert len(server.chats) == 2
    assert "closed the connection without an answer" in str(error)


async def test_dropped_connection_is_retried():
    with OpenAIServer(lambda body: "ok" if len(server.chats) > 1 else Fault.reset()) as server:
        assert (await model(server, max_retries=1).acall(ask())).usage.calls == 1


async def test_silence_beyond_the_timeout_is_a_busy_server():
    with OpenAIServer(lambda body: Fault.hang(30)) as server:
        error = await failure(server, ModelBusyError, timeout=0.7)
    assert "did not answer in time" in str(error)
    assert "timeout" in str(error)


async def test_unknown_model_lists_known_ones():
    names = ["zebra", "test-model-2", *(f"m{k}" for k in range(20))]
    with OpenAIServer(models=names) as server:
        error = await failure(server, UnknownModelError)
    text = str(error)
    assert "'test-model'" in text
    assert server.base_url in text
    assert "it has: test-model-2, " in text
    assert sum(name in text.replace(",", " ").replace(".", " ").split() for name in names) == 8
    assert "and 14 more" in text


async def test_unknown_model_without_a_list_doubts_the_address():
    with OpenAIServer(lambda body: Fault(404), models=None) as server:
        error = await failure(server, UnknownModelError)
    assert "'test-model'" in str(error)
    assert "--base-url" in str(error)


async def test_unknown_model_under_status_400():
    fault = Fault(400, error_body("no such model", code="model_not_found"))
    with OpenAIServer(lambda body: fault) as server:
        assert "test-model" in str(await failure(server, UnknownModelError))


@pytest.mark.parametrize(
    "body",
    [
        error_body("Your input is too long.", code="context_length_exceeded"),
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size, try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9000,
                "n_ctx": 4096,
            }
        },
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (2000000) exceeds the maximum number of tokens "
                    "allowed (1048576).",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ],
    ids=["openai", "llama.cpp", "vllm", "google"],
)
async def test_context_overflow_of_every_shape(body):
    with OpenAIServer(lambda _: Fault(400, body)) as server:
        error = await failure(server, ContextOverflowError)
    assert "does not fit into the context of 'test-model'" in str(error)


async def test_rate_limit_then_success_counts_one_call():
    def handler(body):
        return "ok" if len(server.chats) > 2 else Fault(429, headers={"Retry-After": "0.3"})

    with OpenAIServer(handler) as server:
        reply = await model(server, max_retries=2).acall(ask())
        assert len(server.chats) == 3
    assert reply.usage.calls == 1
    assert reply.usage.prompt_tokens == 2
    assert reply.usage.seconds >= 0.6


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
async def test_faults_that_outlast_the_retries_are_a_busy_server(status):
    body = error_body("overloaded, come back later")
    with OpenAIServer(lambda _: Fault(status, body, {"retry-after-ms": "1"})) as server:
        error = await failure(server, ModelBusyError, max_retries=2)
        assert len(server.chats) == 3
    assert f"still answered {status}" in str(error)
    assert "overloaded, come back later" in str(error)


async def test_bad_request_is_not_retried():
    with OpenAIServer(lambda body: Fault(400)) as server:
        await failure(server, ModelError, max_retries=3)
        assert len(server.chats) == 1


async def test_cancellation_passes_through():
    with OpenAIServer(lambda body: Fault.hang(30)) as server:
        task = asyncio.create_task(model(server).acall(ask()))
        while not server.chats:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- loops and connections ----------------------------------------------------------------------


def test_one_model_serves_two_event_loops():
    with OpenAIServer() as server:
        chat = model(server)
        assert asyncio.run(chat.acall(ask())).text == "ok"
        assert asyncio.run(chat.acall(ask())).text == "ok"
        assert run_sync(chat.acall(ask())).text == "ok"
        run_sync(chat.aclose())
        assert not chat._clients
        assert server.connections == 3
    gc.collect()  # an open socket would warn here, and warnings are errors


def test_loops_in_several_threads_share_one_model():
    replies = []
    with OpenAIServer(latency=0.05) as server:
        chat = model(server)

        async def many():
            replies.extend(await asyncio.gather(*(chat.acall(ask()) for _ in range(5))))

        threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not chat._clients
    assert len(replies) == 20


async def test_connections_are_kept_from_call_to_call():
    with OpenAIServer() as server:
        chat = model(server)
        for _ in range(3):
            await chat.acall(ask())
        assert server.connections == 1
        await chat.aclose()
        await chat.aclose()
        await chat.acall(ask())
        assert server.connections == 2


async def test_connections_of_another_running_loop_are_closed_too():
    with OpenAIServer() as server:
        chat = model(server)
        await asyncio.to_thread(lambda: run_sync(chat.acall(ask())))
        await chat.acall(ask())
        assert len(chat._clients) == 2
        await chat.aclose()
        assert not chat._clients


async def test_forgotten_model_closes_its_connections():
    with OpenAIServer() as server:
        chat = model(server)
        await chat.acall(ask())
        client = next(iter(chat._clients.values())).client
        del chat
        for _ in range(100):
            if client.is_closed():
                break
            await asyncio.sleep(0.01)
        assert client.is_closed()


async def test_a_hundred_calls_go_at_once():
    all_there = asyncio.Event()

    async def handler(body):
        if len(server.chats) == 100:
            all_there.set()
        await all_there.wait()
        return "ok"

    with OpenAIServer(handler) as server:
        chat = model(server)
        replies = await asyncio.gather(*(chat.acall(ask(str(k))) for k in range(100)))
        assert server.peak == 100
    assert len(replies) == 100


async def test_server_is_reached_through_the_environments_proxy(monkeypatch):
    with OpenAIServer() as server:
        proxy = server.base_url.removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", proxy)
        chat = OpenAI("test-model", base_url="http://models.invalid/v1")
        # Nobody else could have answered: the server's name leads nowhere.
        assert (await chat.acall(ask())).text == "ok"


async def test_loopback_is_never_reached_through_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with OpenAIServer() as server:
        assert (await model(server).acall(ask())).text == "ok"


# --- construction and identity ------------------------------------------------------------------


def test_openai_without_a_key_says_which_variable_to_set():
    with pytest.raises(ConfigurationError, match="set MY_KEY or pass api_key="):
        OpenAI("gpt-x", api_key_env="MY_KEY")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        OpenAI("gpt-x", base_url="https://api.openai.com/v1/")


async def test_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    with OpenAIServer(api_key=KEY) as server:
        assert (await model(server, api_key_env="MY_KEY").acall(ask())).text == "ok"


async def test_loopback_needs_no_key():
    with OpenAIServer(api_key="none") as server:
        assert (await model(server).acall(ask())).text == "ok"


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "127.0.0.1:8080/v1"},
        {"base_url": "http://"},
        {"base_url": "http://host:port/v1"},
        {"base_url": "ftp://host/v1"},
        {"timeout": 0},
        {"max_retries": -1},
        {"model": ""},
        {"api_key": "sk-secret\nkey"},
        {"api_key": "sk-sécret-key"},
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(ConfigurationError) as caught:
        OpenAI(**{"model": "m", "base_url": "http://localhost:1/v1", **options})
    assert "cret" not in str(caught.value)


def identity(base_url, **options):
    return OpenAI("m", base_url=base_url, api_key=KEY, **options).identity


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.0.1", "0.0.0.0"])
def test_port_of_a_loopback_server_is_not_in_the_identity(host):
    assert identity(f"http://{host}:8080/v1") == identity("http://127.0.0.1:9999/v1/")


def test_port_of_another_server_is_in_the_identity():
    assert identity("http://host:8080/v1") != identity("http://host:9999/v1")
    assert identity("http://HOST:80/v1/") == identity("http://host/v1")


def test_identity_names_model_server_and_extra_body_and_no_secret():
    found = identity("https://user:pass@Host/v1?key=abc", extra_body={"top_k": 1, "api_key": "x"})
    assert found == {
        "provider": "openai",
        "model": "m",
        "base_url": "https://host/v1",
        "extra_body": {"top_k": 1},
    }
    assert identity("http://h/v1") != identity("http://h/v1", extra_body={"top_k": 1})
    assert json.dumps(found)


def test_base_url_of_the_environment_is_used_and_identified(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host:8080/v1/")
    assert OpenAI("m").identity["base_url"] == "http://host:8080/v1"


async def test_query_of_the_address_goes_with_every_request():
    targets = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        targets.append(head.split()[1].decode())
        said = b'{"error": {"message": "the key is s3cretS3cret"}}'
        length = f"content-length: {len(said)}\r\ncontent-type: application/json\r\n\r\n"
        writer.write(b"HTTP/1.1 400 No\r\nconnection: close\r\n" + length.encode() + said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        query = "api-version=2024-10-21&api-key=s3cretS3cret"
        chat = OpenAI("m", base_url=f"http://127.0.0.1:{port}/v1/?{query}", api_key="k" * 8)
        with pytest.raises(ModelError, match="the key is") as caught:
            await chat.acall(ask())
        await chat.aclose()
    assert targets == [f"/v1/chat/completions?{query}"]
    assert "s3cret" not in f"{caught.value} {chat!r} {chat.identity}"


def test_repr_has_neither_key_nor_password():
    chat = OpenAI("m", base_url="http://user:hunter2@host:1/v1", api_key=KEY)
    assert repr(chat) == "OpenAI('m', base_url='http://host:1/v1')"
