"""Which failures may pass, known by what the SDKs raise."""

from __future__ import annotations

import json
from email.message import Message
from urllib.error import HTTPError

import openai
import pytest

from lg_textgrad.errors import (
    BudgetExceededError,
    ModelBusyError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
)
from lg_textgrad.faults import Fault, asked_wait, fault_of, out_of_credit, status_of, withheld
from tests.servers import free_port
from tests.servers.openai_server import Fault as Answer
from tests.servers.openai_server import OpenAIServer


class Response:
    def __init__(self, status_code, headers=()):
        self.status_code = status_code
        self.headers = dict(headers)


class StatusError(Exception):
    """As openai, anthropic, httpx and others shape it."""

    def __init__(self, status, headers=(), code=None):
        super().__init__(f"Error code: {status}")
        self.response = Response(status, headers)
        self.code = code


class APIError(Exception):
    """As openai's, for what comes in the middle of a stream: without a status."""

    def __init__(self, code=None, type=None):
        super().__init__("it broke off")
        self.code, self.type, self.body = code, type, {"code": code, "type": type}


def named(name, *bases):
    return type(name, bases or (Exception,), {})("it failed")


def boto(status):
    error = Exception("ThrottlingException")
    error.response = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return error


def caused(error):
    outer = RuntimeError("wrapped by an integration")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StatusError(429), Fault("rate_limited", None, True)),
        (StatusError(429, {"Retry-After": "7"}), Fault("rate_limited", 7.0, True)),
        (StatusError(503), Fault("server_error", None, True)),
        (StatusError(529), Fault("server_error", None, True)),
        (StatusError(500), Fault("server_error")),
        (StatusError(408), Fault("server_error")),
        (StatusError(500, {"x-should-retry": "false"}), None),
        (StatusError(400), None),
        (StatusError(401), None),
        (StatusError(404), None),
        (StatusError(501), None),
        (StatusError(429, code="insufficient_quota"), None),
        (StatusError(402), None),
        (boto(429), Fault("rate_limited", None, True)),
        (boto(400), None),
        (caused(StatusError(502)), Fault("server_error")),
        (ValueError({"message": "upstream failed", "code": 502}), Fault("server_error")),
        (ValueError({"message": "bad", "code": 400}), None),
        (ValueError({"message": "upstream failed", "code": "503"}), Fault("server_error", None, True)),
        (ValueError({"message": "upstream failed", "code": None}), Fault("garbled")),
        (TypeError("Received response with null value for 'choices'."), Fault("garbled")),
        (TypeError("some bug"), None),
        (named("APITimeoutError", named("APIConnectionError").__class__), Fault("timeout")),
        (named("ReadTimeout"), Fault("timeout")),
        (TimeoutError(), Fault("timeout")),
        (named("APIConnectionError"), Fault("reset")),
        (ConnectionResetError(), Fault("reset")),
        (named("RemoteProtocolError"), Fault("reset")),
        (named("ConnectError"), Fault("unreachable")),
        (ConnectionRefusedError(), Fault("unreachable")),
        (named("ModelRateLimitError"), Fault("rate_limited", None, True)),
        (named("ResourceExhausted"), Fault("rate_limited", None, True)),
        (json.JSONDecodeError("no", "{", 0), Fault("garbled")),
        (ValueError("Unexpected response type from OpenAI-compatible endpoint."), Fault("garbled")),
        (ValueError("some bug"), None),
        (KeyError("some bug"), None),
        (HTTPError("http://x", 429, "no", Message(), None), Fault("rate_limited", None, True)),
        (APIError(), Fault("server_error")),
        (APIError(type="server_error"), Fault("server_error")),
        (APIError(code=429), Fault("rate_limited", None, True)),
        (APIError(code="502"), Fault("server_error")),
        (APIError(code=400), None),
        (APIError(type="invalid_request_error"), None),
        (ModelBusyError("busy", fault="rate_limited", wait=2.0), Fault("rate_limited", 2.0, True)),
        (ModelUnreachableError("gone", fault="unreachable"), Fault("unreachable")),
        (ModelError("no"), None),
        (ModelReplyError("cut off"), None),
        (BudgetExceededError("no"), None),
    ],
)  # fmt: skip
def test_fault_of(error, expected):
    assert fault_of(error) == expected


def test_connection_error_is_unreachable_when_the_transport_never_connected():
    error = named("APIConnectionError")
    error.__cause__ = named("ConnectError")
    assert fault_of(error) == Fault("unreachable")


def test_circle_of_causes_ends():
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__cause__, other.__cause__ = other, one
    assert (fault_of(one), status_of(one)) == (None, None)


def test_credit():
    assert out_of_credit(caused(StatusError(429, code="insufficient_quota")))
    assert out_of_credit(StatusError(402))
    assert not out_of_credit(StatusError(429))


def test_contents_that_a_filter_withheld():
    assert withheld(caused(StatusError(400, code="content_filter")))
    flagged = StatusError(403)
    flagged.body = {"code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "he hit"}}
    assert withheld(flagged)
    assert not withheld(StatusError(403))
    assert not withheld(StatusError(400, code="invalid_request"))


NOON = 1_780_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 28 May 2026 20:26:45 GMT"}, 5),
        ({"retry-after": "Thu, 28 May 2026 20:26:35 GMT"}, 0),
        # The server's clock is an hour ahead, or behind.
        ({"retry-after": "Thu, 28 May 2026 21:26:45 GMT", "date": "Thu, 28 May 2026 21:26:40 GMT"}, 5),
        ({"retry-after": "Thu, 28 May 2026 19:26:45 GMT", "date": "Thu, 28 May 2026 19:26:40 GMT"}, 5),
        ({"retry-after": "Thu, 28 May 2026 20:26:45 GMT", "date": "today"}, 5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "120ms"}, None),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s",
             "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3s"}, 3,
        ),
        (
            {"anthropic-ratelimit-requests-remaining": "0",
             "anthropic-ratelimit-requests-reset": "2026-05-28T20:26:50Z"}, 10,
        ),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1780000004"}, 4),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4"}, 4),
        ({"x-ratelimit-remaining": "0"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "whenever"}, None),
    ],
)  # fmt: skip
def test_wait_that_the_server_asks_for(headers, seconds):
    found = asked_wait(headers, NOON)
    assert found == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("answer", "kind"), [(Answer.reset(), "reset"), (Answer.hang(30), "timeout")]
)
async def test_fault_is_known_through_aiohttp_too(answer, kind):
    with OpenAIServer(lambda body: answer) as server:
        async with openai.DefaultAioHttpClient(trust_env=False) as transport:
            client = openai.AsyncOpenAI(
                base_url=server.base_url, api_key="none", max_retries=0, timeout=0.7,
                http_client=transport,
            )  # fmt: skip
            with pytest.raises(openai.APIConnectionError) as caught:
                await client.chat.completions.create(model="test-model", messages=[])
    assert fault_of(caught.value) == Fault(kind)


async def test_nobody_listening_is_known_through_aiohttp_too():
    async with openai.DefaultAioHttpClient(trust_env=False) as transport:
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="none", max_retries=0,
            http_client=transport,
        )  # fmt: skip
        with pytest.raises(openai.APIConnectionError) as caught:
            await client.chat.completions.create(model="test-model", messages=[])
    assert fault_of(caught.value) == Fault("unreachable")
