"""The chat-model boundary: the graph's own model calls are paid for once, through the ledger.

While a run is in scope, what its chat models are asked is looked up before it is sent; `patching`
puts that in place and takes it away again.
"""

from __future__ import annotations

import functools
import heapq
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
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

from lg_textgrad._hashing import canonical, digest_of_plain, message_to_plain, to_plain
from lg_textgrad.bindings.answering import Correction
from lg_textgrad.bindings.nesting import note_dependence
from lg_textgrad.bindings.patching import namespace_of, register, replaced
from lg_textgrad.bindings.streaming import quiet, told
from lg_textgrad.errors import (
    SYSTEMIC,
    LGTextGradError,
    ModelAuthenticationError,
    ModelError,
    ModelQuotaError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.faults import fault_of, out_of_credit, status_of, withheld
from lg_textgrad.ledger import Ledger, Paid
from lg_textgrad.models.langchain import route_of, usage_in
from lg_textgrad.run import Usage, node_path
from lg_textgrad.traffic import Route

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
    lost: bool = False
    """Whether a call failed on its way for good: chance had a hand in what the run did."""
    place: Callable[[UUID | None, str], tuple[str, str]] | None = None
    """Return which execution makes a call, by the id of the call's run in callbacks and its
    namespace: in words that every repetition of the run repeats, and then in words that no other
    execution of its superstep has."""
    warnings: set[str] = field(default_factory=set)
    """Where a candidate's text could not be put in place, by node."""
    timed: Callable[[UUID | None, float], None] | None = None
    """Told how many seconds a call took when it was made, by the id of its run in callbacks."""
    witness: Callable[[UUID | None], None] | None = None
    """Told of each call, by the id of its run in callbacks."""
    stranger: Callable[[], None] | None = None
    """Told of each call in a thread that began during the run and has nothing of its context."""
    tools: Any = None
    """Answers the calls of tools, a `ToolDesk`; None calls each of them."""
    correction: Correction | None = None
    """What one execution's model is to have said instead."""
    _threads: frozenset[threading.Thread] = frozenset()
    _seen: dict[str, int] = field(default_factory=dict)
    _free: dict[str, list[int]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def key(self, asked: Any, run_manager: Any = None) -> str:
        """Return the key of the next call that asks this.

        A run that asks the same thing twice wants two answers (a vote, a retry), so how often this
        execution asked it before is part of the key, and so is the sample. Executions that ask the
        same side by side are told apart by their place in the run, never by who comes first.
        """
        base = digest_of_plain("chat", asked, self.where(run_manager)[0])
        with self._guard:
            free = self._free.setdefault(base, [])
            if not free:
                self._seen[base] = self._seen.get(base, 0) + 1
            count = heapq.heappop(free) if free else self._seen[base] - 1
        return f"{base}.{self.sample}.{count}"

    def where(self, run_manager: Any) -> tuple[str, str]:
        """Return which execution makes a call, as `place` says."""
        namespace = namespace_of(getattr(run_manager, "metadata", None))
        if self.place is None:
            return node_path(namespace), node_path(namespace)
        return self.place(getattr(run_manager, "run_id", None), namespace)

    def give_back(self, key: str) -> None:
        """Let the next call that asks the same have the key of one that failed.

        So a retry is kept where a run that is repeated looks first.
        """
        base, _, count = key.split(".")
        with self._guard:
            heapq.heappush(self._free[base], int(count))

    def corrected(self, asked: Asked, messages: list[BaseMessage]) -> ChatResult | None:
        """Return what the model is to have said; None where it is to be asked."""
        if self.correction is None:
            return None
        said = self.correction.answer(getattr(asked.run, "metadata", None), messages)
        if said is None:
            return None
        # Whoever asks the same later still gets the answer of its own turn.
        self.key(asked.request, asked.run)
        return ChatResult(generations=[ChatGeneration(message=said)])

    def notice(self, run_manager: Any) -> None:
        """Tell whoever records the run of a call in it."""
        if self.witness is not None:
            self.witness(getattr(run_manager, "run_id", None))

    def add(self, usage: Usage, run_manager: Any = None) -> None:
        """Note what a call cost, and tell whoever records the run how long it took."""
        with self._guard:
            self.usage += usage
        if self.timed is not None:
            took = usage.seconds + usage.saved_seconds
            self.timed(getattr(run_manager, "run_id", None), took)


_scope: ContextVar[BoundaryScope | None] = ContextVar("lg_textgrad_boundary", default=None)
_inside_call: ContextVar[bool] = ContextVar("lg_textgrad_inside_call", default=False)


def scope_in_place() -> BoundaryScope | None:
    """Return the scope of the run that the current context belongs to."""
    return _scope.get()


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a node."""

    request: Any
    """What decides the reply, as plain data. No secrets."""
    route: Route
    run: Any = None
    """The call's run manager in callbacks; None where nobody is told of it."""


def pay_in(scope: BoundaryScope, asked: Asked, call: Callable[[], Paid]) -> Any:
    """Return what `call` returns, or the store has for the same question; note what it cost.

    `call` is outside of the scope: what a model asks of another one to answer is part of its own
    call, paid for with it, and takes no second place under the limit.
    """

    def alone() -> Paid:
        started = time.monotonic()
        with _left():
            return _took(call(), started)

    with _asking(scope, asked) as key:
        found = scope.ledger.pay(key, scope.kind, asked.request, alone, asked.route)
    scope.add(found[1], asked.run)
    return found[0]


async def apay_in(scope: BoundaryScope, asked: Asked, call: Callable[[], Awaitable[Paid]]) -> Any:
    """Return what `pay_in` returns, for coroutines."""

    async def alone() -> Paid:
        started = time.monotonic()
        with _left():
            return _took(await call(), started)

    with _asking(scope, asked) as key:
        found = await scope.ledger.apay(key, scope.kind, asked.request, alone, asked.route)
    scope.add(found[1], asked.run)
    return found[0]


def _took(paid: Paid, started: float) -> Paid:
    """Return what a call came to with the time that it took: the model's, without any queue."""
    return paid[0], replace(paid[1], seconds=time.monotonic() - started)


@contextmanager
def _asking(scope: BoundaryScope, asked: Asked) -> Iterator[str]:
    """Yield the key of a call, and note its failure for good."""
    note_dependence()
    if scope.failure is not None:
        raise scope.failure  # a node that swallowed it may not spend on
    key = scope.key(asked.request, asked.run)
    try:
        yield key
    except Exception as error:
        scope.give_back(key)
        failure = _systemic(error)
        if isinstance(failure, ModelError) and failure is not error:
            scope.ledger.traffic.lane(asked.route).close(failure)
        scope.failure = scope.failure or failure
        scope.lost = scope.lost or fault_of(error) is not None
        raise


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
        "stop": to_plain(stop),
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
    if not result.generations:
        raise ModelError("The model's answer has no choices in it; ask again.", fault="garbled")
    first, *others = map(_choice, result.generations)
    more = {"others": others} if others else {}  # of a model that is asked for n choices at once
    said = {**first, **more, "llm_output": to_plain(result.llm_output)}
    return said, usage_in(result.generations[0].message)


def _choice(generation: ChatGeneration) -> dict[str, Any]:
    message = generation.message
    if isinstance(message, AIMessageChunk):
        message = message_chunk_to_message(message)
    return {
        "message": to_plain(message_to_dict(message)),
        "info": to_plain(generation.generation_info),
    }


def _decode(stored: Any) -> ChatResult:
    choices = (stored, *stored.get("others", ()))
    messages = messages_from_dict([choice["message"] for choice in choices])
    return ChatResult(
        generations=[
            ChatGeneration(message=message, generation_info=choice["info"])
            for message, choice in zip(messages, choices, strict=True)
        ],
        llm_output=stored["llm_output"],
    )


def _systemic(error: BaseException) -> LGTextGradError | None:
    """Return the error to stop the run with when the next call would fail the same way."""
    if isinstance(error, SYSTEMIC):
        return error
    status, fault = status_of(error), fault_of(error)
    if withheld(error):
        return None
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
    if out_of_credit(error):
        return ModelQuotaError(
            "The account of a model that the graph uses cannot pay for the call; "
            "add credit, or set another key, and resume."
        )
    if fault is not None and fault.kind == "unreachable":
        return ModelUnreachableError(
            "Nobody answers at the address of a model that the graph uses; "
            "start its server or correct the graph's base_url, and run again."
        )
    return None


def _examined(scope: BoundaryScope, paid: Paid) -> Paid:
    """Count what is wrong with a reply; the graph gets it as it is."""
    message = paid[0]["message"]["data"]
    info = {**(message.get("response_metadata") or {}), **(paid[0]["info"] or {})}
    if info.get("finish_reason") in ("length", "max_tokens"):
        scope.ledger.traffic.count("truncated")
    elif (message.get("additional_kwargs") or {}).get("refusal"):
        scope.ledger.traffic.count("refused")
    elif not (message.get("content") or message.get("tool_calls")):
        scope.ledger.traffic.count("empty")
    return paid


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
        alone = quiet(run_manager)

        def call() -> Paid:
            made = original(self, messages, stop=stop, run_manager=alone, **kwargs)
            return _examined(scope, _encode(made))

        asked = Asked(_asked(self, messages, stop, kwargs), route_of(self), run_manager)
        result = scope.corrected(asked, messages)
        if result is None:
            result = _decode(pay_in(scope, asked, call))
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
        alone = quiet(run_manager)

        async def call() -> Paid:
            made = await original(self, messages, stop=stop, run_manager=alone, **kwargs)
            return _examined(scope, _encode(made))

        asked = Asked(_asked(self, messages, stop, kwargs), route_of(self), run_manager)
        result = scope.corrected(asked, messages)
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
