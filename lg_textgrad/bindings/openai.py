"""Raw calls of the openai SDK in a graph's nodes: `models.wrap_openai(client)`.

Inside a recorded run the requests of a wrapped client are rewritten, recorded as model calls of the
node that makes them, and paid for once, as at the chat-model boundary. Elsewhere it is the client
that it was made of. The SDK itself is not changed: `request`, through which every method of a
client goes, is overridden in a subclass that only wrapped clients have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import openai
from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config

from lg_textgrad._hashing import to_plain
from lg_textgrad.bindings.bodies import Api, ChatCompletions, Place, Responses, put, without_ids
from lg_textgrad.bindings.boundary import (
    Asked,
    address,
    apay_in,
    notice_stranger,
    pay_in,
    scope_in_place,
    unordered,
    warn,
)
from lg_textgrad.bindings.rewriting import any_rewriters, rewritten
from lg_textgrad.errors import ConfigurationError, ModelError
from lg_textgrad.ledger import Paid
from lg_textgrad.models._redact import shown_url
from lg_textgrad.traffic import Route

_APIS: Mapping[str, Api] = {"/chat/completions": ChatCompletions(), "/responses": Responses()}

# How a reply travels; streamed calls are answered whole, as everywhere inside a scope.
_DELIVERY = frozenset({"stream", "stream_options"})
_RAW = "x-stainless-raw-response"

# What the SDK was built on: httpx, in later versions httpx2.
_http: Any = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])


def wrap(client: Any) -> Any:
    """Return a client of the same class and settings whose calls are recorded and paid for once.

    It shares its connections with `client`, which stays as it is. Raises `ConfigurationError` for
    what is no client of the openai SDK.
    """
    if isinstance(client, _Wrapped | _AsyncWrapped):
        return client
    if isinstance(client, openai.OpenAI):
        mixin: type = _Wrapped
    elif isinstance(client, openai.AsyncOpenAI):
        mixin = _AsyncWrapped
    else:
        raise ConfigurationError(
            f"wrap_openai takes an openai.OpenAI or openai.AsyncOpenAI client, not "
            f"{type(client).__name__}; LangChain models need no wrapping."
        )
    cls: Any = type(client)
    own: Any = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})
    wrapped = object.__new__(own)
    # What was made on first use (`client.chat`, …) holds on to the client that it was made by.
    made = {n for c in cls.__mro__ for n, v in vars(c).items() if isinstance(v, cached_property)}
    wrapped.__dict__.update({n: v for n, v in vars(client).items() if n not in made})
    return wrapped


class _Wrapped:
    """Goes before the SDK's own class in a wrapped client."""

    def request(
        self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        send: Callable[..., Any] = super().request  # type: ignore[misc]
        asked = _asked(self, options)
        scope = scope_in_place()
        if asked is None:
            return send(cast_to, options, stream=stream, stream_cls=stream_cls)
        if scope is None:
            return send(cast_to, asked.options, stream=stream, stream_cls=stream_cls)
        manager = _manager(CallbackManager)
        runs = manager.on_chat_model_start(*asked.start, **asked.details) if manager else []
        scope.notice(runs[0] if runs else None)
        try:
            result = pay_in(
                scope, asked.by(runs), lambda: asked.paid(send(object, asked.whole))
            )
        except Exception as error:
            for run in runs:
                run.on_llm_error(error)
            raise
        for run in runs:
            run.on_llm_end(asked.end(result))
        return _replaying(openai.OpenAI, _http.Client, asked, result, stream=stream).request(
            cast_to, options, stream=stream, stream_cls=stream_cls
        )


class _AsyncWrapped:
    async def request(
        self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        send: Callable[..., Any] = super().request  # type: ignore[misc]
        asked = _asked(self, options)
        scope = scope_in_place()
        if asked is None:
            return await send(cast_to, options, stream=stream, stream_cls=stream_cls)
        if scope is None:
            return await send(cast_to, asked.options, stream=stream, stream_cls=stream_cls)
        manager = _manager(AsyncCallbackManager)
        runs = await manager.on_chat_model_start(*asked.start, **asked.details) if manager else []
        scope.notice(runs[0] if runs else None)

        async def call() -> Paid:
            return asked.paid(await send(object, asked.whole))

        try:
            result = await apay_in(scope, asked.by(runs), call)
        except Exception as error:
            for run in runs:
                await run.on_llm_error(error)
            raise
        for run in runs:
            await run.on_llm_end(asked.end(result))
        client = _replaying(
            openai.AsyncOpenAI, _http.AsyncClient, asked, result, stream=stream
        )
        return await client.request(cast_to, options, stream=stream, stream_cls=stream_cls)


@dataclass(frozen=True)
class _Asked:
    """One request of a wrapped client, as the rewriters in scope have left it."""

    api: Api
    url: str
    base_url: str
    options: Any
    """The SDK's `FinalRequestOptions`."""
    body: Mapping[str, Any]
    messages: list[BaseMessage] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the model is asked besides its messages."""
        apart = self.api.prompts | _DELIVERY
        return {
            **{k: v for k, v in self.body.items() if k not in apart},
            **(self.options.extra_json or {}),
        }

    def by(self, runs: list[Any]) -> Asked:
        """Return what the ledger is asked, for the runs in callbacks that were told of it."""
        model = str(self.body.get("model") or "a model")
        route = Route(model, shown_url(self.base_url))
        return Asked(self.key, route, runs[0] if runs else None)

    @property
    def key(self) -> dict[str, Any]:
        """What decides the reply, and so what it is stored under. No secrets."""
        return {
            "model": {"class": "openai", "base_url": address(self.base_url), "path": self.url},
            "messages": without_ids({n: to_plain(self.body.get(n)) for n in self.api.prompts}),
            "options": unordered(to_plain(self.parameters)),
            "query": to_plain(self.options.params),
        }

    @property
    def whole(self) -> Any:
        """The options that ask for the reply in one piece, as JSON."""
        headers = self.options.headers
        if isinstance(headers, Mapping):
            headers = {n: v for n, v in headers.items() if n.lower() != _RAW}
        body = {k: v for k, v in self.body.items() if k not in _DELIVERY}
        changed = {"json_data": body, "headers": headers, "post_parser": _as_it_is}
        return self.options.model_copy(update=changed)

    @property
    def start(self) -> tuple[dict[str, Any], list[list[BaseMessage]]]:
        return {"name": "openai"}, [self.messages]

    @property
    def details(self) -> dict[str, Any]:
        return {"invocation_params": self.parameters, "name": "openai"}

    def paid(self, result: Any) -> Paid:
        if not self.api.complete(result):
            said = str(to_plain(result))[:200]
            raise ModelError(
                f"The server that the graph's openai client asks answered {self.url} with "
                f"something else than a reply ({said}); check the client's base_url and model."
            )
        return to_plain(result), self.api.usage(result)

    def end(self, result: Any) -> LLMResult:
        return LLMResult(generations=[[ChatGeneration(message=self.api.reply(result))]])


def _as_it_is(result: Any) -> Any:
    return result


def _asked(client: Any, options: Any) -> _Asked | None:
    """Return the request, rewritten; None where it is none of ours or nothing is in scope."""
    api = _APIS.get(options.url)
    body = options.json_data
    if api is None or options.method.lower() != "post" or not isinstance(body, Mapping):
        return None
    if scope_in_place() is None:
        notice_stranger()
        if not any_rewriters():
            return None
    if body.get("background"):
        warn(
            "A node sent a background request through the openai SDK, which is neither recorded "
            "nor kept; leave background=True out in runs that are to be recorded."
        )
        return None
    places, messages = _split(api, body)
    others = {k: v for k, v in body.items() if k not in api.prompts}
    sent, changed = rewritten(messages, others)
    body = {**{k: v for k, v in body.items() if k in api.prompts}, **changed}
    assert len(sent) == len(messages), "a rewriter changes what messages say, not how many"
    for place, before, after in zip(places, messages, sent, strict=True):
        if after is not before:
            body = put(body, place, after.content)
    again = options.model_copy(update={"json_data": body})
    return _Asked(api, options.url, str(client.base_url), again, body, sent)


def _split(api: Api, body: Mapping[str, Any]) -> tuple[list[Place], list[BaseMessage]]:
    pairs = list(api.messages(body))
    return [place for place, _ in pairs], [message for _, message in pairs]


def _manager(kind: Any) -> Any:
    """Return the callbacks of the node that runs in the current context; None outside a graph."""
    config = var_child_runnable_config.get()
    if not config:
        return None
    return kind.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata=config.get("metadata"),
    )


def _replaying(
    client: Any, transport: Any, asked: _Asked, result: Any, *, stream: bool
) -> Any:
    """Return a client that is answered with `result`, so that the SDK itself makes its objects.

    It has nothing to send and nothing to close.
    """

    def answer(_: Any) -> Any:
        if not stream:
            return _http.Response(200, json=result)
        events = b"".join(asked.api.events(result, asked.body))
        return _http.Response(200, content=events, headers={"content-type": "text/event-stream"})

    return client(
        api_key="none",
        base_url="http://stored",
        max_retries=0,
        http_client=transport(transport=_http.MockTransport(answer), trust_env=False),
    )
