"""What a graph sends to its chat models, changed on the way, for the runs in scope.

A rewriter sees each call before its callbacks fire and before it is looked up in the store: traces
show what was really sent, and results are kept under it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from lg_textgrad.bindings.patching import path_here, register, replaced

# Arguments of `generate` that are the call's circumstances, not what the model is asked.
_CIRCUMSTANCES = ("stop", "callbacks", "tags", "metadata", "run_name", "run_id")


class Rewriter(Protocol):
    """Changes what the chat models of the runs in scope are asked."""

    def rewrite(
        self, node: str, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any]]:
        """Return what to send in place of `messages` and `options`, which stay as they are.

        `node` is the path of the node that calls, `sub/writer`; empty outside a graph. `options`
        are the call's further arguments: `tools`, `response_format`, and so on. Both come back as
        they are where there is nothing to change. Called again for each retry and each fallback,
        in whatever thread the node runs. Nothing in a message may be changed in place: the graph
        holds it still.
        """
        ...


_rewriters: ContextVar[tuple[Rewriter, ...]] = ContextVar("lg_textgrad_rewriters", default=())


@contextmanager
def rewriting(rewriter: Rewriter) -> Iterator[None]:
    """Send the chat-model calls of the current context through `rewriter`.

    Scopes nest: the outer one rewrites first. Other contexts see nothing of it, and outside every
    scope langchain-core is as it was. A model that calls another inside its own call is rewritten
    once; streamed calls are answered whole, as one chunk.
    """
    with replaced():
        token = _rewriters.set((*_rewriters.get(), rewriter))
        try:
            yield
        finally:
            _rewriters.reset(token)


def any_rewriters() -> bool:
    """Return whether the calls of the current context are rewritten."""
    return bool(_rewriters.get())


def rewritten(
    messages: list[BaseMessage], options: dict[str, Any]
) -> tuple[list[BaseMessage], dict[str, Any]]:
    """Return what the node that runs in the current context sends in place of its own call."""
    node = path_here()
    for rewriter in _rewriters.get():
        messages, options = rewriter.rewrite(node, messages, options)
    return messages, options


def _rewritten(
    rewriters: tuple[Rewriter, ...],
    batch: list[list[BaseMessage]],
    arguments: Mapping[str, Any],
) -> tuple[list[list[BaseMessage]], dict[str, Any]]:
    nearest = arguments.get("metadata"), getattr(arguments.get("callbacks"), "metadata", None)
    node = path_here(*nearest)
    given = {name: arguments[name] for name in _CIRCUMSTANCES if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in given}
    asked = options
    sent = []
    for one in batch:  # a batch is one call of one node: all get the same options
        messages, asked = list(one), dict(options)
        for rewriter in rewriters:
            messages, asked = rewriter.rewrite(node, messages, asked)
        sent.append(messages)
    return sent, {**given, **asked}


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generate(
        self: BaseChatModel, messages: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        rewriters = _rewriters.get()
        arguments = {"stop": stop, "callbacks": callbacks, **kwargs}
        if not rewriters:
            return original(self, messages, **arguments)
        messages, arguments = _rewritten(rewriters, messages, arguments)
        # A model that hands its call on, to its super class or to another model, is done already.
        token = _rewriters.set(())
        try:
            return original(self, messages, **arguments)
        finally:
            _rewriters.reset(token)

    return generate


def _agenerate(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def agenerate(
        self: BaseChatModel, messages: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        rewriters = _rewriters.get()
        arguments = {"stop": stop, "callbacks": callbacks, **kwargs}
        if not rewriters:
            return await original(self, messages, **arguments)
        messages, arguments = _rewritten(rewriters, messages, arguments)
        token = _rewriters.set(())
        try:
            return await original(self, messages, **arguments)
        finally:
            _rewriters.reset(token)

    return agenerate


register("generate", _generate, subclasses=True)
register("agenerate", _agenerate, subclasses=True)
