"""The chat-model boundary: the graph's own model calls are paid for once, through the ledger.

While a run is in scope, what its chat models are asked is looked up before it is sent; `patching`
puts that in place and takes it away again.
"""

from __future__ import annotations

import functools
import heapq
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessageChunk,
    BaseMessage,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import SecretStr

from lg_textgrad._hashing import canonical, digest, message_to_plain, to_plain
from lg_textgrad.bindings.answering import Correction
from lg_textgrad.bindings.patching import register, replaced
from lg_textgrad.bindings.streaming import quiet, told
from lg_textgrad.errors import (
    SYSTEMIC,
    LGTextGradError,
    ModelAuthenticationError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.ledger import Ledger, Paid
from lg_textgrad.run import Usage

# Fields of a chat model that don't change what it answers.
_BOOKKEEPING = frozenset(
    {
        "cache", "callbacks", "verbose", "tags", "metadata", "name", "rate_limiter",
        "custom_get_token_ids", "streaming", "disable_streaming", "stream_usage", "max_retries",
        "request_timeout", "profile", "output_version", "default_headers",
    }
)  # fmt: skip


@dataclass
class BoundaryScope:
    """What the boundary knows about the run in scope."""

    ledger: Ledger
    kind: str = "rollout"
    sample: int = 0
    usage: Usage = Usage()
    failure: LGTextGradError | None = None
    """The first error that makes every further call pointless, even if a node swallowed it."""
    warnings: set[str] = field(default_factory=set)
    """Where a candidate's text could not be put in place, by node."""
    witness: Callable[[UUID | None], None] | None = None
    """Told of each call, by the id of its run in callbacks."""
    stranger: Callable[[], None] | None = None
    """Told of each call in a thread that began during the run and has nothing of its context."""
    correction: Correction | None = None
    """What one execution's model is to have said instead."""
    _threads: frozenset[threading.Thread] = frozenset()
    _seen: dict[str, int] = field(default_factory=dict)
    _free: dict[str, list[int]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def key(self, asked: Any) -> str:
        """Return the key of the next call that asks this.

        A run that asks the same thing twice wants two answers (a vote, a retry), so the count is
        part of the key, and so is the sample.
        """
        base = digest("chat", asked)
        with self._guard:
            free = self._free.setdefault(base, [])
            if not free:
                self._seen[base] = self._seen.get(base, 0) + 1
            count = heapq.heappop(free) if free else self._seen[base] - 1
        return f"{base}.{self.sample}.{count}"

    def give_back(self, key: str) -> None:
        """Let the next call that asks the same have the key of one that failed.

        So a retry is kept where a run that is repeated looks first.
        """
        base, _, count = key.split(".")
        with self._guard:
            heapq.heappush(self._free[base], int(count))

    def corrected(
        self, run_manager: Any, messages: list[BaseMessage], asked: Any
    ) -> ChatResult | None:
        """Return what the model is to have said; None where it is to be asked."""
        if self.correction is None:
            return None
        said = self.correction.answer(getattr(run_manager, "metadata", None), messages)
        if said is None:
            return None
        self.key(asked)  # whoever asks the same later still gets the answer of its own turn
        return ChatResult(generations=[ChatGeneration(message=said)])

    def notice(self, run_manager: Any) -> None:
        """Tell whoever records the run of a call in it."""
        if self.witness is not None:
            self.witness(getattr(run_manager, "run_id", None))

    def add(self, usage: Usage) -> None:
        with self._guard:
            self.usage += usage


_scope: ContextVar[BoundaryScope | None] = ContextVar("lg_textgrad_boundary", default=None)
_inside_call: ContextVar[bool] = ContextVar("lg_textgrad_inside_call", default=False)


def scope_in_place() -> BoundaryScope | None:
    """Return the scope of the run that the current context belongs to."""
    return _scope.get()


def pay_in(scope: BoundaryScope, asked: Any, call: Callable[[], Paid]) -> Any:
    """Return what `call` returns, or the store has for the same question; note what it cost.

    `call` is outside of the scope: what a model asks of another one to answer is part of its own
    call, paid for with it, and takes no second place under the limit.
    """

    def alone() -> Paid:
        with _left():
            return call()

    key = scope.key(asked)
    try:
        stored, usage = scope.ledger.pay(key, scope.kind, asked, alone)
    except Exception as error:
        scope.give_back(key)
        scope.failure = scope.failure or _systemic(error)
        raise
    scope.add(usage)
    return stored


async def apay_in(scope: BoundaryScope, asked: Any, call: Callable[[], Awaitable[Paid]]) -> Any:
    """Return what `pay_in` returns, for coroutines."""

    async def alone() -> Paid:
        with _left():
            return await call()

    key = scope.key(asked)
    try:
        stored, usage = await scope.ledger.apay(key, scope.kind, asked, alone)
    except Exception as error:
        scope.give_back(key)
        scope.failure = scope.failure or _systemic(error)
        raise
    scope.add(usage)
    return stored


@contextmanager
def _left() -> Iterator[None]:
    tokens = _scope.set(None), _inside_call.set(True)
    try:
        yield
    finally:
        _scope.reset(tokens[0])
        _inside_call.reset(tokens[1])


_open: dict[int, BoundaryScope] = {}


def notice_stranger() -> None:
    """Tell the runs in scope of a call that has no scope, in a thread that they may have started.

    Contexts don't reach threads by themselves. Other callers in the process are no business of
    ours: they have threads of their own.
    """
    if _inside_call.get():
        return
    here = threading.current_thread()
    for scope in list(_open.values()):
        if scope.stranger is not None and here not in scope._threads:  # noqa: SLF001 - ours
            scope.stranger()


def warn(text: str) -> None:
    """Add a warning to the run in scope, once."""
    scope = _scope.get()
    if scope is not None:
        scope.warnings.add(text)


def model_identity(model: BaseChatModel) -> dict[str, Any]:
    """Return what, besides the request, decides a chat model's reply. No secrets.

    A loopback address counts without its port: a server that was started again is the same one.
    """
    identity: dict[str, Any] = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    for name in type(model).model_fields:
        value = getattr(model, name, None)
        if name in _BOOKKEEPING or value is None or isinstance(value, SecretStr):
            continue
        if "client" in name or "api_key" in name or "token_" in name:
            continue
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            value = address(value)
        plain = to_plain(value)
        if callable(value):
            plain = getattr(value, "__qualname__", type(value).__qualname__)
        identity[name] = plain
    return identity


def address(url: str) -> str:
    """Return host, port and path; a loopback address without its port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("127.0.0.1", "localhost", "::1"):
        return f"loopback{parts.path}"
    return f"{host}:{parts.port}{parts.path}" if parts.port else f"{host}{parts.path}"


def _asked(
    model: BaseChatModel, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    plain = [message_to_plain(m) for m in messages]
    # Tool call ids are drawn at random by servers; their order of appearance is what they mean.
    order: dict[str, str] = {}
    for message in plain:
        for call in message.get("tool_calls", ()):
            call["id"] = order.setdefault(str(call["id"]), f"call{len(order)}")
        if "tool_call_id" in message:
            answered = str(message["tool_call_id"])
            message["tool_call_id"] = order.setdefault(answered, f"call{len(order)}")
    options = {
        k: to_plain(_schema_of(v)) for k, v in kwargs.items() if k != "ls_structured_output_format"
    }
    return {
        "model": model_identity(model),
        "messages": plain,
        "stop": stop,
        "options": unordered(options),
    }


def unordered(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the tools in an order of ours.

    Agents that keep their tools in a set offer them in another order in each process.
    """
    tools = options.get("tools")
    if not isinstance(tools, list):
        return options
    return {**options, "tools": sorted(tools, key=canonical)}


def _schema_of(value: Any) -> Any:
    """A pydantic class stands for its schema; its repr would do for no one."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    return value


def _encode(result: ChatResult) -> Paid:
    generation = result.generations[0]
    message = generation.message
    if isinstance(message, AIMessageChunk):
        message = message_chunk_to_message(message)
    counted = getattr(message, "usage_metadata", None) or {}
    usage = Usage(1, 0, counted.get("input_tokens", 0), counted.get("output_tokens", 0))
    return (
        {
            "message": to_plain(message_to_dict(message)),
            "info": to_plain(generation.generation_info),
            "llm_output": to_plain(result.llm_output),
        },
        usage,
    )


def _decode(stored: Any) -> ChatResult:
    message = messages_from_dict([stored["message"]])[0]
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=stored["info"])],
        llm_output=stored["llm_output"],
    )


def _systemic(error: BaseException) -> LGTextGradError | None:
    """Return the error to stop the run with when the next call would fail the same way."""
    if isinstance(error, SYSTEMIC):
        return error
    # SDK errors are known by their names, so that no SDK has to be imported here.
    status, names = getattr(error, "status_code", None), {t.__name__ for t in type(error).__mro__}
    if status in (401, 403):
        return ModelAuthenticationError(
            "The server of a model that the graph uses refused its API key; "
            "set the key that the graph reads and run again."
        )
    if status == 404:
        return UnknownModelError(
            "The server does not have a model that the graph asks for; "
            "correct the model's name in the graph and run again."
        )
    lost = "APIConnectionError" in names and "APITimeoutError" not in names
    if lost or isinstance(error, ConnectionError):
        return ModelUnreachableError(
            "Nobody answers at the address of a model that the graph uses; "
            "start its server or correct the graph's base_url, and run again."
        )
    return None


def _generate(original: Callable[..., ChatResult]) -> Callable[..., ChatResult]:
    @functools.wraps(original)
    def generate(
        self: BaseChatModel,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        scope = _scope.get()
        if scope is None:
            notice_stranger()
            return original(self, messages, stop=stop, run_manager=run_manager, **kwargs)
        scope.notice(run_manager)
        asked = _asked(self, messages, stop, kwargs)
        alone = quiet(run_manager)
        result = scope.corrected(run_manager, messages, asked) or _decode(
            pay_in(
                scope,
                asked,
                lambda: _encode(
                    original(self, messages, stop=stop, run_manager=alone, **kwargs)
                ),
            )
        )
        for tell, said, more in told(self, run_manager, result, is_async=False, **kwargs):
            tell(*said, **more)
        return result

    return generate


def _agenerate(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def agenerate(
        self: BaseChatModel,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        scope = _scope.get()
        if scope is None:
            notice_stranger()
            plain: ChatResult = await original(
                self, messages, stop=stop, run_manager=run_manager, **kwargs
            )
            return plain
        scope.notice(run_manager)
        asked = _asked(self, messages, stop, kwargs)
        alone = quiet(run_manager)

        async def call() -> Paid:
            return _encode(await original(self, messages, stop=stop, run_manager=alone, **kwargs))

        result = scope.corrected(run_manager, messages, asked)
        if result is None:
            result = _decode(await apay_in(scope, asked, call))
        for tell, said, more in told(self, run_manager, result, is_async=True, **kwargs):
            await tell(*said, **more)
        return result

    return agenerate


register("_generate_with_cache", _generate)
register("_agenerate_with_cache", _agenerate)


@contextmanager
def pay_through(scope: BoundaryScope) -> Iterator[None]:
    """Send the chat-model calls of the current context through the scope's ledger."""
    with replaced():
        scope._threads = frozenset(threading.enumerate())  # noqa: SLF001 - ours
        _open[id(scope)] = scope
        token = _scope.set(scope)
        try:
            yield
        finally:
            _scope.reset(token)
            _open.pop(id(scope), None)
