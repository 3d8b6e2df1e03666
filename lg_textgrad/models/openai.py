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
from urllib.parse import parse_qsl, urlsplit
from urllib.request import getproxies
from weakref import WeakKeyDictionary, finalize

import openai

from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad._hashing import canonical
from lg_textgrad._sync import close_at_end, run_sync
from lg_textgrad.errors import (
    ConfigurationError,
    ModelBusyError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
)
from lg_textgrad.faults import asked_wait, meant
from lg_textgrad.models._redact import (
    brief,
    is_loopback,
    normalised_url,
    public,
    scrub,
    shown_url,
)
from lg_textgrad.models.base import ModelReply, ModelRequest
from lg_textgrad.models.openai_errors import (
    BUSY,
    model_error,
    names_unknown_model,
    part,
    refuses_schema,
    server_message,
    unsupported_parameter,
    usage_of,
)
from lg_textgrad.models.schema import checked_reply, in_words, scrubbed, text_in, whole_text
from lg_textgrad.traffic import Route, lane_in_scope

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_NO_KEY = "none"
"""What the SDK is given for servers that ask for no key; it insists on one."""


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
        refused = self.refused_schemas
        return self.json_schema and not (refused and canonical(schema) in refused)

    def after(self, error: openai.APIStatusError, request: ModelRequest) -> _Dialect | None:
        """Return the dialect to try next; None when the error is about something else."""
        said = f"{error.param} {server_message(error)}"
        schema = request.schema
        if schema is not None and self.enforces(schema) and refuses_schema(error):
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
    once: openai.AsyncOpenAI
    """The same client, for callers that ask again by themselves."""
    keeper: AsyncGenerator[None]
    """Closes the client when it is closed itself, at the latest by its loop's end."""
    forgotten: finalize[..., OpenAI]
    """Closes the keeper when the model is garbage. Until then it keeps the client from being
    garbage too, which would tear the connections down in no order, with warnings."""


class OpenAI:
    """A chat model behind the OpenAI API.

    `base_url` is the API's address, usually ending in `/v1`; without it, the environment's
    `OPENAI_BASE_URL`, then OpenAI itself. A query in it goes with every request. `api_key` is taken
    from the environment variable `api_key_env` when it is not given; servers other than OpenAI may
    need none. `timeout` is in seconds, for each attempt of a call. `max_retries` counts further
    attempts after lost connections, timeouts, and answers 408, 409, 429 and 5xx, with growing
    pauses or those that the server asks for; in a run it is the run's `Patience` that decides.
    `extra_body` is sent along with every request.

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
        check_numbers("OpenAI", lambda n: n > 0, "of seconds above 0", timeout=timeout)
        check_counts("OpenAI", 0, max_retries=max_retries)
        self.model = model
        self._base_url = _checked_url(
            base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE_URL
        )
        self._shown = shown_url(self._base_url)
        address = urlsplit(self._base_url)
        # The SDK would write the path of each request behind a query that stands in the address.
        self._api = address._replace(query="", fragment="").geturl().rstrip("/")
        self._query = dict(parse_qsl(address.query))
        # A key that was read from a file often ends in a newline, which no HTTP header may hold.
        key = (api_key or os.environ.get(api_key_env) or "").strip()
        if not key and urlsplit(self._base_url).hostname == "api.openai.com":
            raise ConfigurationError(
                f"OpenAI needs an API key: set {api_key_env} or pass api_key=... (--api-key-env VAR"
                " names another variable), or base_url=... (--base-url) for a server without keys."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigurationError(
                "The API key has characters that no HTTP header may hold; copy it again, and set"
                f" {api_key_env} or pass api_key=...."
            )
        self._key = key or _NO_KEY
        told = public(self._query)
        hidden = [value for name, value in self._query.items() if name not in told]
        self._secrets = [*([] if self._key == _NO_KEY else [key]), *hidden]
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

    @property
    def route(self) -> Route:
        """What shares rate limits and has a price: the model on its server."""
        return Route(self.model, self._shown)

    async def acall(self, request: ModelRequest) -> ModelReply:
        """Ask once and return the reply; under a schema, with `data` that satisfies it.

        One call. Raises `ModelReplyError` when the reply is a refusal, empty, or under a schema
        cut off, malformed or in violation; and the other `ModelError`s for what their names say.
        """
        failure: ModelError
        started = time.perf_counter()
        client = await self._client()
        try:
            completion, held = await self._complete(client, request)
            return self._reply(completion, request, held, time.perf_counter() - started)
        except ModelReplyError as error:
            failure = scrubbed(error, self._secrets)
        except openai.OpenAIError as error:
            failure = await self._explained(client, error)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # The SDK lets the decoders' own errors through.
            failure = self._no_api(str(error))
        # Raised out here, where no SDK exception, and none of its headers, hangs on to it.
        raise failure

    async def adoubt(self) -> str | None:
        """Return why the server may not know the model; None where nothing speaks against it.

        Asks for the list of its models, which costs nothing; many servers have none, or not all in
        it. Raises `ModelUnreachableError` when nobody answers there.
        """
        failure: ModelError | None = None
        known: list[str] = []
        client = await self._client()
        try:
            known = await _listed(client)
        except openai.APIConnectionError as error:
            failure = await self._explained(client, error)
        except Exception:
            return None
        if isinstance(failure, ModelUnreachableError):
            raise failure
        if not known or self.model in known:
            return None
        others = ", ".join(brief(name, limit=80) for name in self._likeliest(known)[:3])
        return (
            f"The server at {self._shown} lists other models than {self.model!r}: {others}. If it "
            "does not know that one, the run will stop at its first question to it."
        )

    def doubt(self) -> str | None:
        """`adoubt` for sync code."""
        return run_sync(self.adoubt())

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
                return held.client if lane_in_scope() is None else held.once
            for other in [known for known in self._clients if known.is_closed()]:
                self._clients.pop(other).forgotten.detach()
            client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self._api,
                default_query=self._query,
                timeout=openai.Timeout(self._timeout, connect=min(self._timeout, 10.0)),
                max_retries=self._max_retries,
                http_client=_transport(self._base_url),
            )
            keeper = _keep(client, loop, self._clients, self._guard)
            close_at_end(keeper, loop)
            forgotten = finalize(self, _close_soon, keeper, loop)
            forgotten.atexit = False
            once = client.with_options(max_retries=0)
            self._clients[loop] = _Held(client, once, keeper, forgotten)
        # A loop closes its unfinished async generators when it is shut down: the only way to
        # learn of it in time to close the connections too.
        await anext(keeper)
        return client if lane_in_scope() is None else once

    async def _complete(
        self, client: openai.AsyncOpenAI, request: ModelRequest
    ) -> tuple[Any, bool]:
        """Return the completion, and whether the server took on the schema."""
        known = dialect = self._dialect
        while True:
            payload = self._payload(request, dialect)
            try:
                # What `chat.completions.create` does, without looking for files and other unusual
                # values in each part of a request that is plain JSON, and without making an object
                # of each part of the reply.
                completion = await client.post("/chat/completions", cast_to=object, body=payload)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                learned = dialect.after(error, request)
                if learned is None:
                    raise
                dialect = learned
            else:
                # Only what helped is worth remembering; and another call may have learned since.
                if dialect is not known:
                    self._dialect = dialect
                schema = request.schema
                return completion, schema is not None and dialect.enforces(schema)

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
        return _merged(payload, self._extra_body)

    def _reply(
        self, completion: Any, request: ModelRequest, held: bool, seconds: float
    ) -> ModelReply:
        if isinstance(completion, str):  # JSON that the server calls something else
            completion = json.loads(completion)
        # Nothing of it was checked, so each part may be missing.
        choices = part(completion, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = part(choice, "message")
        if message is None:
            # Some gateways report their upstream's failure under status 200.
            said = part(completion, "error")
            raise self._no_api(canonical(said) if said else "", meant(said))
        text = text_in(part(message, "content"))
        finish_reason = part(choice, "finish_reason")
        usage = usage_of(completion, seconds)
        try:
            data = checked_reply(
                text,
                schema=request.schema,
                finish_reason=finish_reason,
                refusal=part(message, "refusal"),
                max_tokens=request.max_tokens,
            )
        except ModelReplyError as error:
            error.usage, error.promised = usage, held
            raise
        return ModelReply(text, data, usage, finish_reason)

    async def _explained(self, client: openai.AsyncOpenAI, error: openai.OpenAIError) -> ModelError:
        known = await _known_models(client) if names_unknown_model(error) else ()
        return model_error(
            error,
            model=self.model,
            server=self._shown,
            remedy=self._remedy,
            secrets=self._secrets,
            known=self._likeliest(known),
        )

    def _likeliest(self, known: Sequence[str]) -> list[str]:
        return sorted(
            (self._scrub(name) for name in known),
            key=lambda name: -SequenceMatcher(None, name, self.model).ratio(),
        )

    def _no_api(self, said: str, status: int | None = None) -> ModelError:
        detail = f" ({brief(self._scrub(said))})" if said else ""
        if status is not None and (status in BUSY or status >= 500):
            return ModelBusyError(
                f"The server at {self._shown} reported {status} from the model behind it{detail}. "
                "Wait and resume.",
                fault="rate_limited" if status == 429 else "server_error",
            )
        return ModelError(
            f"The server at {self._shown} answered with something other than a chat completion"
            f"{detail}; check that base_url is the address of an OpenAI-compatible API, which"
            " usually ends in /v1.",
            fault="garbled",
        )

    def _scrub(self, text: str) -> str:
        return scrub(text, self._secrets)


def _merged(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body with what the user adds to it, as the SDK's `extra_body` would."""
    for name, value in extra.items():
        known = body.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            body[name] = _merged(dict(known), value)
        else:
            body[name] = value
    return body


def _transport(base_url: str) -> Any:
    """Return the HTTP client for a server: never a proxy's where that is on loopback."""
    trust_env = not is_loopback(base_url)
    # The SDK's aiohttp transport is the quicker one: the other asks the system about each idle
    # connection for each request. But it takes no SOCKS proxy, and no password in an address.
    proxies = getproxies().values() if trust_env else ()
    plain = not any(proxy.lower().startswith("socks") for proxy in proxies)
    plain = plain and urlsplit(base_url).username is None
    make = openai.DefaultAioHttpClient if plain else openai.DefaultAsyncHttpxClient
    return make(trust_env=trust_env, event_hooks={"response": [_heed]})


async def _heed(response: Any) -> None:
    """Wait, before the next call, when the server says that this was the last one for now."""
    lane = lane_in_scope()
    if lane is None or response.status_code != 200:
        return  # what a refusal says is heeded with the refusal
    headers = response.headers
    limits = {name: value for name, value in headers.items() if "ratelimit" in name}
    if limits and (wait := asked_wait({"date": headers.get("date", ""), **limits})) is not None:
        lane.wait(wait)


async def _known_models(client: openai.AsyncOpenAI) -> list[str]:
    # It only makes an error message better: whatever goes wrong here, that error is what matters.
    with contextlib.suppress(Exception):
        return await _listed(client)
    return []


async def _listed(client: openai.AsyncOpenAI) -> list[str]:
    page = await client.with_options(timeout=5.0, max_retries=0).models.list()
    return [str(model.id) for model in page.data]


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
