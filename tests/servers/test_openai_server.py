"""The test server against the real SDK: what others' tests rely on."""

from __future__ import annotations

import openai
import pytest

from tests.servers.openai_server import Fault, OpenAIServer, Reply

HELLO = [{"role": "user", "content": "hello there"}]


def client(server):
    return openai.AsyncOpenAI(
        base_url=server.base_url,
        api_key="k",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )


async def chat(sdk, **options):
    return await sdk.chat.completions.create(model="test-model", messages=HELLO, **options)


async def test_streamed_text_and_usage_are_those_of_the_plain_reply():
    text = " two  words\nand\tmore "
    with OpenAIServer(lambda body: text) as server:
        async with client(server) as sdk:
            plain = await chat(sdk)
            stream = await chat(sdk, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            without = [chunk async for chunk in await chat(sdk, stream=True)]
    assert plain.choices[0].message.content == text
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == text
    assert len(chunks) > 4
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == plain.usage
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (2, 4)
    assert all(c.usage is None for c in without)


async def test_tool_calls_are_the_same_plain_and_streamed():
    reply = Reply(None, tool_calls=[{"name": "f", "args": {"x": 1}}, {"name": "g", "args": "{"}])
    with OpenAIServer(lambda body: reply) as server:
        async with client(server) as sdk:
            plain = await chat(sdk)
            again = await chat(sdk)
            async with sdk.chat.completions.stream(model="test-model", messages=HELLO) as stream:
                streamed = [e async for e in stream if e.type == "chunk"]
    calls = plain.choices[0].message.tool_calls
    assert plain.choices[0].finish_reason == "tool_calls"
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("f", '{"x": 1}'),
        ("g", "{"),
    ]
    assert len({c.id for c in calls}) == 2
    assert again == plain  # ids included
    deltas = [
        d for e in streamed for c in e.chunk.choices for d in c.delta.tool_calls or () if d.id
    ]
    assert [d.function.name for d in deltas] == ["f", "g"]


async def test_what_a_handler_raises_reaches_the_test():
    with pytest.raises(AssertionError, match="wrong question"):
        with OpenAIServer(handler_that_fails) as server:
            async with client(server) as sdk:
                with pytest.raises(openai.InternalServerError, match="wrong question"):
                    await chat(sdk)


def handler_that_fails(body):
    raise AssertionError("wrong question")


async def test_faults_end_with_the_server():
    with OpenAIServer(lambda body: Fault.hang(1000)) as server:
        async with client(server) as sdk:
            with pytest.raises(openai.APITimeoutError):
                await chat(sdk, timeout=0.3)
    assert server.chats[0]["messages"] == HELLO
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert server.requests[0]["headers"]["authorization"] == "Bearer k"
