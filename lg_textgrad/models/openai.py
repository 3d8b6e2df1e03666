"""Models behind the OpenAI API: OpenAI's own, and every server that speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, finalize

import openai
from openai.types.chat import ChatCompletion

from lg_textgrad._hashing import canonical
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
from lg_textgrad.models._redact import (
    brief,
    is_loopback,
    normalised_url,
    public,
    scrub,
    shown_url,
)
from lg_textgrad.models.base import ModelReply, ModelRequest
from lg_textgrad.models.schema import checked_reply, in_words, whole_text
from lg_textgrad.run import Usage

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_NO_KEY = "none"
"""What the SDK is given for servers that ask for no key; it insists on one."""

_OVERFLOW = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "exceeds the available context size",
    "exceeds the context window",
    "maximum context length",
    "prompt is too long",
)
"""How OpenAI, llama.cpp, vLLM and others say that a request does not fit."""

_NOT_CONNECTED = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
"""Transport errors by name: the SDK changed its HTTP library between versions."""

_BUSY = {408, 409, 429}


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What the server takes, learned from what it refused."""

    json_schema: bool = True
    refused_schemas: frozenset[str] = frozenset()
    """Schemas, as canonical JSON, that the server will not enforce, though it does others."""
    max_tokens: str = "max_tokens"
    refused: frozenset[str] = frozenset()
    """Sampling parameters that the model does not take."""

    def enforces(self, schema: Mapping[str, Any]) -> bool:
        return self.json_schema and canonical(schema) not in self.refused_schemas

    def after(self, error: openai.APIStatusError, request: ModelRequest) -> _Dialect | None:
        """Return the dialect to try next; None when the error is about something else."""
        said = f"{error.param} {_server_message(error)}"
        schema = request.schema
        if schema is not None and self.enforces(schema) and "response_format" in said:
            # One schema that is outside the server's subset says nothing about the next one.
            if "invalid schema" in said.lower():
                return replace(self, refused_schemas=self.refused_schemas | {canonical(schema)})
            return replace(self, json_schema=False)
        if (
            request.max_tokens is not None
            and self.max_tokens == "max_tokens"
            and "max_completion_tokens" in said
        ):
            return replace(self, max_tokens="max_completion_tokens")
        refused = unsupported_parameter(error)
        if refused is not None and refused not in self.refused:
            return replace(self, refused=self.refused | {refused})
        return None


@dataclass(slots=True)
class _Held:
    """A client, and what closes it."""

    client: openai.AsyncOpenAI
    keeper: AsyncGenerator[None]
    """Closes the client when it is closed itself, at the latest by its loop's end."""
    forgotten: finalize[..., OpenAI]
    """Closes the keeper when the model is garbage. Until then it keeps the client from being
    garbage too, which would tear the connections down in no order, with warnings."""


class OpenAI:
    """A chat model behind the OpenAI API.

    `base_url` is the API's address, usually ending in `/v1`; without it, the environment's
    `OPENAI_BASE_URL`, then OpenAI itself. `api_key` is taken from the environment variable
    `api_key_env` when it is not given; servers other than OpenAI may need none. `timeout` is in
    seconds, for each attempt of a call. `max_retries` counts further attempts after lost
    connections, timeouts, and answers 408, 409, 429 and 5xx, with growing pauses or those that
    the server asks for. `extra_body` is sent along with every request.

    What the server cannot do is found out once and remembered: a JSON schema that it refuses is
    asked for in words, with `json_object`; `max_tokens` goes out under its newer name; and a
    temperature or a seed that the model does not take is left out. Refused requests cost nothing
    and are not counted.

    Safe to share between event loops and threads: each loop has its own connections, which are
    closed with the loop or by `aclose`. A server on loopback is never reached through a proxy.
    Raises `ConfigurationError` when the arguments cannot work.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        max_retries: int = 4,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise ConfigurationError("The model has no name; name one that the server has.")
        if timeout <= 0:
            raise ConfigurationError(f"timeout must be more than 0 seconds, not {timeout:g}.")
        if max_retries < 0:
            raise ConfigurationError(f"max_retries must be 0 or more, not {max_retries}.")
        self.model = model
        self._base_url = _checked_url(
            base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE_URL
        )
        self._shown = shown_url(self._base_url)
        # A key that was read from a file often ends in a newline, which no HTTP header may hold.
        key = (api_key or os.environ.get(api_key_env) or "").strip()
        if not key and urlsplit(self._base_url).hostname == "api.openai.com":
            raise ConfigurationError(
                f"OpenAI needs an API key: set {api_key_env} or pass api_key=..., or pass base_url"
                " for a server that needs none."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigurationError(
                "The API key has characters that no HTTP header may hold; copy it again, and set"
                f" {api_key_env} or pass api_key=...."
            )
        self._key = key or _NO_KEY
        self._secrets = [] if self._key == _NO_KEY else [key]
        self._remedy = f"set {api_key_env} or pass api_key=..."
        self._timeout = timeout
        self._max_retries = max_retries
        self._extra_body = dict(extra_body or {})
        self._identity = {
            "provider": "openai",
            "model": model,
            "base_url": normalised_url(self._base_url),
            "extra_body": public(self._extra_body, self._secrets),
        }
        self._dialect = _Dialect()
        self._clients: MutableMapping[asyncio.AbstractEventLoop, _Held] = WeakKeyDictionary()
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"OpenAI({self.model!r}, base_url={self._shown!r})"

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything besides the request that decides the reply. Never the key."""
        return dict(self._identity)

    async def acall(self, request: ModelRequest) -> ModelReply:
        """Ask once and return the reply; under a schema, with `data` that satisfies it.

        One call. Raises `ModelReplyError` when the reply is a refusal, empty, or under a schema
        cut off, malformed or in violation; and the other `ModelError`s for what their names say.
        """
        failure: ModelError
        started = time.perf_counter()
        client = await self._client()
        try:
            completion = await self._complete(client, request)
            return self._reply(completion, request, time.perf_counter() - started)
        except ModelReplyError as error:
            failure = ModelReplyError(self._scrub(str(error)), reply=self._scrub(error.reply))
        except openai.OpenAIError as error:
            failure = await self._explained(client, error)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # The SDK lets the decoders' own errors through.
            failure = self._no_api(str(error))
        # Raised out here, where no SDK exception, and none of its headers, hangs on to it.
        raise failure

    async def aclose(self) -> None:
        """Close the connections. The next call opens new ones."""
        with self._guard:
            held = list(self._clients.items())
        here = asyncio.get_running_loop()
        for loop, each in held:
            if loop is here:
                await each.keeper.aclose()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(_aclose(each.keeper), loop)
                await asyncio.wrap_future(closing)
            # A loop that stands still closes its own when it is shut down.

    async def _client(self) -> openai.AsyncOpenAI:
        """Return the running loop's client: connections cannot move from loop to loop."""
        loop = asyncio.get_running_loop()
        with self._guard:
            held = self._clients.get(loop)
            if held is not None:
                return held.client
            for other in [known for known in self._clients if known.is_closed()]:
                self._clients.pop(other).forgotten.detach()
            client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self._base_url,
                timeout=openai.Timeout(self._timeout, connect=min(self._timeout, 10.0)),
                max_retries=self._max_retries,
                http_client=(
                    openai.DefaultAsyncHttpxClient(trust_env=False)
                    if is_loopback(self._base_url)
                    else None
                ),
            )
            keeper = _keep(client, loop, self._clients, self._guard)
            forgotten = finalize(self, _close_soon, keeper, loop)
            forgotten.atexit = False
            self._clients[loop] = _Held(client, keeper, forgotten)
        # A loop closes its unfinished async generators when it is shut down: the only way to
        # learn of it in time to close the connections too.
        await anext(keeper)
        return client

    async def _complete(self, client: openai.AsyncOpenAI, request: ModelRequest) -> Any:
        known = dialect = self._dialect
        while True:
            payload = self._payload(request, dialect)
            try:
                completion = await client.chat.completions.create(**payload)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                learned = dialect.after(error, request)
                if learned is None:
                    raise
                dialect = learned
            else:
                # Only what helped is worth remembering; and another call may have learned since.
                if dialect is not known:
                    self._dialect = dialect
                return completion

    def _payload(self, request: ModelRequest, dialect: _Dialect) -> dict[str, Any]:
        messages, schema = request.messages, request.schema
        payload: dict[str, Any] = {"model": self.model}
        if schema is not None and dialect.enforces(schema):
            payload["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": dict(schema), "strict": True},
            }
        elif schema is not None:
            messages = in_words(messages, schema)
            payload["response_format"] = {"type": "json_object"}
        payload["messages"] = [
            {**message, "content": whole_text(message["content"])} for message in messages
        ]
        if "temperature" not in dialect.refused:
            payload["temperature"] = request.temperature
        if request.seed is not None and "seed" not in dialect.refused:
            payload["seed"] = request.seed
        if request.max_tokens is not None:
            payload[dialect.max_tokens] = request.max_tokens
        if self._extra_body:
            payload["extra_body"] = self._extra_body
        return payload

    def _reply(self, completion: Any, request: ModelRequest, seconds: float) -> ModelReply:
        # The SDK checks nothing of what it received, so each part may be missing.
        choices = getattr(completion, "choices", None) or [None]
        message = getattr(choices[0], "message", None)
        if not isinstance(completion, ChatCompletion) or message is None:
            # Some gateways report their upstream's failure under status 200.
            said = (getattr(completion, "model_extra", None) or {}).get("error")
            raise self._no_api(canonical(said) if said else "")
        text = whole_text(getattr(message, "content", None) or "")
        finish_reason = getattr(choices[0], "finish_reason", None)
        data = checked_reply(
            text,
            schema=request.schema,
            finish_reason=finish_reason,
            refusal=getattr(message, "refusal", None),
            max_tokens=request.max_tokens,
        )
        used = getattr(completion, "usage", None)
        usage = Usage(
            calls=1,
            prompt_tokens=getattr(used, "prompt_tokens", None) or 0,
            completion_tokens=getattr(used, "completion_tokens", None) or 0,
            seconds=seconds,
        )
        return ModelReply(text, data, usage, finish_reason)

    async def _explained(self, client: openai.AsyncOpenAI, error: openai.OpenAIError) -> ModelError:
        known = await _known_models(client) if names_unknown_model(error) else ()
        return model_error(
            error,
            model=self.model,
            server=self._shown,
            remedy=self._remedy,
            secrets=self._secrets,
            known=sorted(
                (self._scrub(name) for name in known),
                key=lambda name: -SequenceMatcher(None, name, self.model).ratio(),
            ),
        )

    def _no_api(self, said: str) -> ModelError:
        detail = f" ({brief(self._scrub(said))})" if said else ""
        return ModelError(
            f"The server at {self._shown} answered with something other than a chat completion"
            f"{detail}; check that base_url is the address of an OpenAI-compatible API, which"
            " usually ends in /v1."
        )

    def _scrub(self, text: str) -> str:
        return scrub(text, self._secrets)


def model_error(
    error: Exception,
    *,
    model: str,
    server: str | None = None,
    remedy: str = "give the chat model a valid key",
    secrets: Sequence[str] = (),
    known: Sequence[str] = (),
) -> ModelError:
    """Return what an exception of the SDK means, without secrets and without the exception.

    `server` is the address to show, by default the one that the exception knows; `remedy` says
    how to give a key; `known` are models that the server has, the likeliest first. Raise the
    result outside of the `except` block, or `from None`: the SDK's exceptions hold the request's
    headers.
    """
    at = server or _server_of(error)
    said = brief(scrub(_server_message(error), secrets))
    because = f": {said}" if said else ""
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    if isinstance(error, openai.LengthFinishReasonError):
        return _reply_error(error, "was cut off before it was complete; raise max_tokens", secrets)
    if isinstance(error, openai.ContentFilterFinishReasonError):
        return _reply_error(error, "was withheld by a content filter; rephrase it", secrets)
    if isinstance(error, openai.APIConnectionError):
        return _connection_error(error, at, secrets)
    if status in {401, 403} or _refuses_key(error):
        # A 401 tells no more than this, and tends to repeat the key. A 403 may have another cause.
        detail = because if status == 403 else ""
        return ModelAuthenticationError(f"The server at {at} refused the API key{detail}; {remedy}")
    if _overflows(error):
        return ContextOverflowError(
            f"The request does not fit into the context of {model!r} at {at}{because}. Shorten the"
            " prompt, the examples or max_tokens, or use a model with a longer context."
        )
    if names_unknown_model(error):
        return UnknownModelError(f"The server at {at} has no model {model!r}; {_advice(known)}")
    if status is not None and (status in _BUSY or status >= 500):
        return ModelBusyError(
            f"The server at {at} still answered {status} after every retry{because}. Wait and"
            " resume, ask for less at once, or raise max_retries."
        )
    if status is not None:
        return ModelError(
            f"The server at {at} refused the request with {status}{because}. Change what it names,"
            " or use another model."
        )
    return ModelError(
        f"The server at {at} could not be asked ({type(error).__name__}){because}. Check the"
        " model's settings."
    )


def names_unknown_model(error: Exception) -> bool:
    """Return whether the server says that it lacks the model."""
    if isinstance(error, openai.NotFoundError):
        return True
    return isinstance(error, openai.APIStatusError) and error.code == "model_not_found"


def refuses_schema(error: Exception) -> bool:
    """Return whether the server says that it will not hold the reply to the schema."""
    return (
        isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
        and "response_format" in f"{error.param} {_server_message(error)}"
    )


def unsupported_parameter(error: Exception) -> str | None:
    """Return the sampling parameter that the model does not take, when the error is about one."""
    if (
        isinstance(error, openai.BadRequestError)
        and error.code in {"unsupported_parameter", "unsupported_value"}
        and error.param in {"temperature", "seed"}
    ):
        return error.param
    return None


def _refuses_key(error: Exception) -> bool:
    """Return whether the key is what is wrong, though the status says only `bad request`."""
    return isinstance(error, openai.BadRequestError) and (
        error.code == "invalid_api_key" or "api key not valid" in _server_message(error).lower()
    )


def _overflows(error: Exception) -> bool:
    if not isinstance(error, openai.APIError):
        return False
    said = f"{error.code} {error.type} {_server_message(error)}"
    return any(mark in said for mark in _OVERFLOW)


def _connection_error(
    error: openai.APIConnectionError, at: str, secrets: Sequence[str]
) -> ModelError:
    names: set[str] = set()
    cause: BaseException | None = error
    detail = ""
    # langchain-openai wraps the SDK's exception once more, so the transport's is further down.
    while cause is not None:
        names.add(type(cause).__name__)
        detail = str(cause) or detail
        cause = cause.__cause__
        if names & _NOT_CONNECTED:
            break
    detail = brief(scrub(detail, secrets))
    if names & _NOT_CONNECTED:
        return ModelUnreachableError(
            f"Nobody answers at {at} ({detail}); start the server or correct --base-url."
        )
    if isinstance(error, openai.APITimeoutError):
        return ModelBusyError(
            f"The server at {at} did not answer in time, retries included; ask for less at once,"
            " or raise timeout."
        )
    return ModelBusyError(
        f"The server at {at} closed the connection without an answer, retries included"
        f" ({detail}); see its log, then resume."
    )


def _reply_error(
    error: openai.LengthFinishReasonError | openai.ContentFilterFinishReasonError,
    what: str,
    secrets: Sequence[str],
) -> ModelReplyError:
    # Older versions of the SDK keep no completion with a content filter's error.
    choices = getattr(getattr(error, "completion", None), "choices", None)
    text = (choices[0].message.content or "") if choices else ""
    return ModelReplyError(f"The model's reply {what}.", reply=scrub(whole_text(text), secrets))


def _advice(known: Sequence[str]) -> str:
    if not known:
        return (
            "name one that it has, or correct --base-url, which usually ends in /v1. It did not"
            " list its models."
        )
    listed = ", ".join(brief(name, limit=80) for name in known[:8])
    more = f", and {len(known) - 8} more" if len(known) > 8 else ""
    return f"name one of those that it has: {listed}{more}."


def _server_message(error: Exception) -> str:
    """Return what the server said; an empty string when it said nothing."""
    if not isinstance(error, openai.APIError):
        return str(error)
    body: Any = error.body
    if isinstance(body, Mapping):
        said = body.get("message") or body.get("detail")
        if said:
            return said if isinstance(said, str) else canonical(said)
        return canonical(body) if body else ""
    if isinstance(body, str):
        return body
    return "" if isinstance(error, openai.APIStatusError) else error.message


def _server_of(error: Exception) -> str:
    request = getattr(error, "request", None)
    if request is None:
        return "an unknown address"
    return shown_url(str(request.url)).removesuffix("/chat/completions").removesuffix("/responses")


async def _known_models(client: openai.AsyncOpenAI) -> list[str]:
    # It only makes an error message better: whatever goes wrong here, that error is what matters.
    with contextlib.suppress(Exception):
        page = await client.with_options(timeout=5.0, max_retries=0).models.list()
        return [str(model.id) for model in page.data]
    return []


async def _keep(
    client: openai.AsyncOpenAI,
    loop: asyncio.AbstractEventLoop,
    clients: MutableMapping[asyncio.AbstractEventLoop, _Held],
    guard: threading.Lock,
) -> AsyncGenerator[None]:
    # It must not hold the model, which could otherwise never become garbage.
    try:
        yield
    finally:
        with guard:
            held = clients.pop(loop, None)
        if held is not None:
            held.forgotten.detach()
        await client.close()


def _close_soon(keeper: AsyncGenerator[None], loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        # The loop may be closed in this very moment, and then there is nothing left to close.
        with contextlib.suppress(RuntimeError):
            asyncio.run_coroutine_threadsafe(_aclose(keeper), loop)


async def _aclose(keeper: AsyncGenerator[None]) -> None:
    await keeper.aclose()


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            "base_url is not an address of a server; write it like http://127.0.0.1:8080/v1."
        )
    return url.rstrip("/")
