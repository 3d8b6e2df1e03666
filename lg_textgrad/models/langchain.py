"""Any LangChain chat model as a model of lg_textgrad."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core import exceptions as langchain_errors
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from pydantic import SecretStr

from lg_textgrad._given import check_kind
from lg_textgrad._hashing import canonical
from lg_textgrad.errors import (
    ContextOverflowError,
    LGTextGradError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.faults import fault_of, refused_option, status_of, too_long
from lg_textgrad.models._redact import brief, normalised_url, public, scrub, shown_url
from lg_textgrad.models.base import URL_VARIABLE, Message, ModelReply, ModelRequest, counted
from lg_textgrad.models.schema import checked_reply, in_words, scrubbed, whole_text
from lg_textgrad.run import Usage
from lg_textgrad.traffic import EMBEDDED, Route

_MESSAGES: Mapping[str, type[BaseMessage]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}
_ADDRESSES = ("openai_api_base", "base_url", "azure_endpoint", "anthropic_api_url", "endpoint_url")
"""Fields in which integrations keep the server's address; few count it among what identifies."""

_FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "tool_use": "tool_calls",
    "safety": "content_filter",
}
"""Providers' words for why a reply ended, as OpenAI says it."""

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")

# By name, because older versions of langchain-core lack some. The first that fits counts.
_MEANINGS: Sequence[tuple[str, type[ModelError], str]] = (
    ("ContextOverflowError", ContextOverflowError, "shorten the prompt or the examples"),
    ("ModelAuthenticationError", ModelAuthenticationError, "give the chat model a valid key"),
    ("ModelPermissionDeniedError", ModelAuthenticationError, "give the chat model a valid key"),
    ("ModelNotFoundError", UnknownModelError, "name a model that the provider has"),
    ("ModelRateLimitError", ModelBusyError, "wait and resume, or ask for less at once"),
    ("ModelTimeoutError", ModelBusyError, "ask for less at once, or raise the model's timeout"),
    ("ModelAPIError", ModelBusyError, "wait and resume"),
    ("ModelConnectionError", ModelUnreachableError, "check the model's address and the network"),
)


class LangChain:
    """A LangChain chat model behind the `ChatModel` protocol.

    Of the request's `temperature`, `max_tokens` and `seed` the model gets those that its class
    has as fields; what the provider then refuses is left out from there on. A schema is enforced
    with `with_structured_output` where the model supports it, and asked for in words where it
    does not; every reply is checked either way. Retries and timeouts are the chat model's own.
    """

    def __init__(self, chat_model: BaseChatModel) -> None:
        hint = "name it so: tg.models.LangChain(init_chat_model(NAME))"
        check_kind(chat_model, BaseChatModel, "LangChain", hint)
        self.chat_model = chat_model
        self._bindable = {"temperature", "max_tokens", "seed"} & set(type(chat_model).model_fields)
        self._structured = True
        self._refused_schemas: set[str] = set()

    def __repr__(self) -> str:
        return f"LangChain({_class_path(self.chat_model)}, model={self._name!r})"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The class, its identifying parameters and its server's address. Never a key."""
        identity: dict[str, Any] = {
            "provider": "langchain",
            "class": _class_path(self.chat_model),
            "params": public(
                self.chat_model._identifying_params,  # noqa: SLF001 - LangChain's name for it
                list(self._secrets()),
            ),
        }
        if (url := _address(self.chat_model)) is not None:
            identity["base_url"] = normalised_url(url)
        return identity

    @property
    def route(self) -> Route:
        """What shares rate limits and has a price: the model on its server."""
        return route_of(self.chat_model)

    async def acall(self, request: ModelRequest) -> ModelReply:
        """Ask once and return the reply; under a schema, with `data` that satisfies it.

        One call. Raises `ModelReplyError` when the reply is a refusal, empty, or under a schema
        cut off, malformed or in violation; and the other `ModelError`s for what their names say.
        """
        started = time.perf_counter()
        failure: ModelError
        origin: Exception | None = None
        try:
            message, structured = await self._ask(request)
            return self._reply(message, request, structured, time.perf_counter() - started)
        except ModelReplyError as error:
            failure = scrubbed(error, list(self._secrets()))
        except LGTextGradError:
            raise
        # Whatever an integration raises means that the model could not be asked.
        except Exception as error:
            failure = self._explained(error)
            if isinstance(failure, ModelReplyError) and failure.usage.calls:
                taken = time.perf_counter() - started
                failure.usage = replace(failure.usage, seconds=taken)
            # A bug in a hand-written model needs its traceback; clients' exceptions hold headers.
            origin = error if type(error).__module__ == "builtins" else None
        if origin is not None and not any(s in str(origin) for s in self._secrets()):
            raise failure from origin
        raise failure

    async def _ask(self, request: ModelRequest) -> tuple[BaseMessage, bool]:
        """Return the reply, and whether the schema was enforced; refused options are left out."""
        while True:
            options = self._options(request)
            asker = self._held_to(request.schema, options)
            try:
                if asker is not None:
                    return _message(await asker.ainvoke(_messages(request.messages))), True
                said = (
                    request.messages
                    if request.schema is None
                    else in_words(request.messages, request.schema)
                )
                bound = self.chat_model.bind(**options) if options else self.chat_model
                return _message(await bound.ainvoke(_messages(said))), False
            except LGTextGradError:
                raise
            # Which exceptions a refusal comes as is up to the integration.
            except Exception as error:
                if not self._learned(error, request, options, structured=asker is not None):
                    raise

    def _options(self, request: ModelRequest) -> dict[str, Any]:
        wanted = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        return {k: v for k, v in wanted.items() if k in self._bindable and v is not None}

    def _held_to(
        self, schema: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Runnable[Any, Any] | None:
        """Return the model held to `schema`; None without one, or when it must be put in words."""
        if schema is None or not self._structured or canonical(schema) in self._refused_schemas:
            return None
        make = self.chat_model.with_structured_output
        # LangChain takes the schema's name from its title.
        titled = {**schema, "title": "reply"}
        try:
            try:
                held = make(titled, method="json_schema", include_raw=True, strict=True)
            except (TypeError, ValueError):
                # Not every integration knows `strict`.
                held = make(titled, method="json_schema", include_raw=True)
        except (NotImplementedError, TypeError, ValueError, KeyError):
            # No support at all, not for this method, or not for this schema.
            self._refused_schemas.add(canonical(schema))
            return None
        # The reply is parsed and checked here, so only the step that asks is needed; and only
        # there can options be bound.
        first = held.first if isinstance(held, RunnableSequence) else None
        asker = first.steps__.get("raw") if isinstance(first, RunnableParallel) else None
        if asker is None:
            return held
        return asker.bind(**options) if options else asker

    def _learned(
        self,
        error: Exception,
        request: ModelRequest,
        options: Mapping[str, Any],
        *,
        structured: bool,
    ) -> bool:
        """Return whether asking again, without what was refused, may help; remember it if so."""
        refused: str | None = None
        if isinstance(error, TypeError) and (named := _UNEXPECTED.search(str(error))):
            refused = named[1]
        elif _from_openai(error):
            from lg_textgrad.models import openai_errors as ours

            refused = ours.unsupported_parameter(error)
            if structured and request.schema is not None and ours.refuses_schema(error):
                if "invalid schema" in str(error).lower():
                    self._refused_schemas.add(canonical(request.schema))
                else:
                    self._structured = False
                return True
        elif structured and isinstance(error, NotImplementedError):
            self._structured = False
            return True
        elif status_of(error) in (400, 422):
            refused = refused_option(str(error))
        if refused in options:
            self._bindable.discard(str(refused))
            return True
        return False

    def _reply(
        self, message: BaseMessage, request: ModelRequest, structured: bool, seconds: float
    ) -> ModelReply:
        text = str(message.text)
        calls = getattr(message, "tool_calls", None) or getattr(message, "invalid_tool_calls", None)
        if structured and calls and not text.strip():
            # Some integrations hold a model to a schema by making it call a tool.
            args = calls[0]["args"]
            text = args if isinstance(args, str) else json.dumps(args, ensure_ascii=False)
        text = whole_text(text)
        finish_reason = _finish_reason(message)
        usage = usage_in(message, seconds)
        try:
            data = checked_reply(
                text,
                schema=request.schema,
                finish_reason=finish_reason,
                refusal=message.additional_kwargs.get("refusal"),
                max_tokens=request.max_tokens,
            )
        except ModelReplyError as error:
            error.usage, error.promised = usage, structured
            raise
        return ModelReply(text, data, usage, finish_reason)

    def _explained(self, error: Exception) -> ModelError:
        secrets = list(self._secrets())
        if _from_openai(error):
            from lg_textgrad.models import openai_errors as ours

            return ours.model_error(error, model=self._name, secrets=secrets)
        said = brief(scrub(str(error), secrets))
        fault = fault_of(error)
        kind_of = fault.kind if fault else None
        wait = fault.wait if fault else None
        about = f"The chat model {self._name!r} failed with {type(error).__name__}: {said}"
        for name, kind, remedy in _MEANINGS:
            meant = getattr(langchain_errors, name, None)
            if meant is not None and isinstance(error, meant):
                return kind(f"{about}; {remedy}.", fault=kind_of, wait=wait)
        if status_of(error) in (400, 413) and too_long(str(error), error):
            return ContextOverflowError(f"{about}; shorten the prompt or the examples.")
        return ModelError(
            f"{about}; try the chat model on its own, with `ainvoke`.", fault=kind_of, wait=wait
        )

    def _secrets(self) -> Iterator[str]:
        for field in type(self.chat_model).model_fields:
            value = getattr(self.chat_model, field, None)
            if isinstance(value, SecretStr) and value.get_secret_value():
                yield value.get_secret_value()

    @property
    def _name(self) -> str:
        return _name_of(self.chat_model)


def route_of(chat_model: BaseChatModel) -> Route:
    """Return what shares rate limits and a price with a chat model, as `models.OpenAI` names it."""
    url = _address(chat_model) or getattr(getattr(chat_model, "root_client", None), "base_url", "")
    shown = shown_url(str(url)) if url else type(chat_model).__name__
    if shown == os.environ.get(URL_VARIABLE, "").rstrip("/"):
        return Route("the embedded model", EMBEDDED)
    return Route(_name_of(chat_model), shown)


def _name_of(chat_model: BaseChatModel) -> str:
    for field in ("model_name", "model", "model_id", "deployment_name"):
        name = getattr(chat_model, field, None)
        if isinstance(name, str) and name:
            return name
    return type(chat_model).__name__


def _address(chat_model: BaseChatModel) -> str | None:
    for field in _ADDRESSES:
        url = getattr(chat_model, field, None)
        if isinstance(url, str) and "://" in url:
            return url
    return None


def _messages(messages: Sequence[Message]) -> list[BaseMessage]:
    return [
        _MESSAGES[message["role"]](content=whole_text(message["content"])) for message in messages
    ]


def _message(answer: Any) -> BaseMessage:
    message = answer["raw"] if isinstance(answer, Mapping) else answer
    if not isinstance(message, BaseMessage):
        raise TypeError(f"a chat model returned {type(message).__name__} instead of a message")
    return message


def usage_in(message: BaseMessage, seconds: float = 0.0) -> Usage:
    """Return what a message says that it cost; each part of it may be missing."""
    used = getattr(message, "usage_metadata", None) or {}
    return counted(
        used.get("input_tokens"),
        used.get("output_tokens"),
        used.get("total_tokens"),
        (used.get("input_token_details") or {}).get("cache_read"),
        seconds,
    )


def _finish_reason(message: BaseMessage) -> str | None:
    for key in ("finish_reason", "stop_reason", "done_reason"):
        reason = message.response_metadata.get(key)
        if isinstance(reason, str) and reason:
            return _FINISHED.get(reason.lower(), reason.lower())
    return None


def _from_openai(error: Exception) -> bool:
    """Return whether the openai SDK raised `error`, without importing the SDK to find out."""
    return any(
        kind.__module__.partition(".")[0] == "openai" and kind.__name__ == "OpenAIError"
        for kind in type(error).__mro__
    )


def _class_path(chat_model: BaseChatModel) -> str:
    return f"{type(chat_model).__module__}.{type(chat_model).__qualname__}"
