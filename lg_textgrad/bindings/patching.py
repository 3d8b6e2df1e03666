"""The one place that changes langchain-core, and only while a scope is open.

What a scope needs replaced, of chat models or tools, is registered here by name. The replacements
look at context variables first, so calls outside a scope go straight through, and when the last
scope is left every class is as it was.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables.config import var_child_runnable_config

from lg_textgrad.bindings.streaming import as_chunk, async_events, events
from lg_textgrad.run import node_path

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

_inside: ContextVar[bool] = ContextVar("lg_textgrad_inside_scope", default=False)

_wraps: dict[type, dict[str, Wrap]] = {}
_everywhere: dict[type, set[str]] = {}
# Reentrant: the collector may close a scope that was left open while another one is opened.
_guard = threading.RLock()
_scopes = 0
_originals: dict[tuple[type, str], Any] = {}


def register(
    name: str, wrap: Wrap, *, of: type = BaseChatModel, subclasses: bool = False
) -> None:
    """Have `<of>.<name>` replaced by `wrap(original)` while a scope is open.

    With `subclasses`, so are the methods of that name that its subclasses define themselves.
    """
    _wraps.setdefault(of, {})[name] = wrap
    if subclasses:
        _everywhere.setdefault(of, set()).add(name)


@contextmanager
def replaced() -> Iterator[None]:
    """Hold the replacements in place; they apply to the current context only."""
    with at_hand():
        token = _inside.set(True)
        try:
            yield
        finally:
            _inside.reset(token)  # refuses where the collector closes what nobody closed


@contextmanager
def at_hand() -> Iterator[None]:
    """Hold the replacements in place for many short scopes: to change a class is what they cost."""
    _enter()
    try:
        yield
    finally:
        _leave()


@contextmanager
def kept_in_place() -> Iterator[None]:
    """Hold what a scope has put in place, for what may go on when the scope is left."""
    global _scopes  # noqa: PLW0603
    with _guard:
        _scopes += 1
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _scopes  # noqa: PLW0603 - counts the scopes that hold the replacements
    with _guard:
        _scopes += 1
        for base in list(_wraps):
            for cls in _subclasses(base):
                _replace(base, cls)


def ensure(base: type, cls: type) -> None:
    """Replace the methods of a class that came after the scope was opened."""
    with _guard:
        if _scopes:
            for each in cls.__mro__:
                if issubclass(each, base):
                    _replace(base, each)


def _replace(base: type, cls: type) -> None:
    wraps = _wraps[base]
    names = wraps.keys() if cls is base else _everywhere.get(base, set()) & cls.__dict__.keys()
    for name in names:
        if (cls, name) not in _originals:
            original = _originals[cls, name] = cls.__dict__[name]
            setattr(cls, name, wraps[name](original))


def _leave() -> None:
    global _scopes  # noqa: PLW0603
    with _guard:
        _scopes -= 1
        if _scopes == 0:
            for (cls, name), original in _originals.items():
                setattr(cls, name, original)
            _originals.clear()


def _subclasses(base: type) -> Iterator[type]:
    """Yield the class and its subclasses that exist by now, each once."""
    found: dict[type, None] = {}
    waiting: list[type] = [base]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found[cls] = None
            waiting.extend(type.__subclasses__(cls))
    return iter(found)


def namespace_of(*known: Any) -> str:
    """Return LangGraph's checkpoint namespace of the node that makes the current call.

    It is in the call's metadata; not where a node gives metadata of its own, but then its callback
    manager has it, or the surrounding config. `known` are such metadata, the nearest first.
    """
    ambient = var_child_runnable_config.get() or {}
    for metadata in (*known, ambient.get("metadata")):
        if metadata and metadata.get("langgraph_checkpoint_ns"):
            return str(metadata["langgraph_checkpoint_ns"])
    return str((ambient.get("configurable") or {}).get("checkpoint_ns") or "")


_path_of: ContextVar[Callable[[str], str]] = ContextVar("lg_textgrad_path_of", default=node_path)


@contextmanager
def paths_by(path_of: Callable[[str], str]) -> Iterator[None]:
    """Have `path_of` say which node a namespace is: it may not tell what it is inside of."""
    token = _path_of.set(path_of)
    try:
        yield
    finally:
        _path_of.reset(token)


def path_here(*known: Any) -> str:
    """Return the path of the node that makes the current call; `known` as for `namespace_of`."""
    return _path_of.get()(namespace_of(*known))


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    """Within a scope a streamed call is answered whole, as one chunk: nobody watches it type."""

    @functools.wraps(original)
    def stream(
        self: BaseChatModel, input: Any, config: Any = None, *, stop: Any = None, **kwargs: Any  # noqa: A002
    ) -> Iterator[AIMessageChunk]:
        if not _inside.get():
            yield from original(self, input, config, stop=stop, **kwargs)
        else:
            yield as_chunk(self.invoke(input, _untapped(config), stop=stop, **kwargs))

    return stream


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def astream(
        self: BaseChatModel, input: Any, config: Any = None, *, stop: Any = None, **kwargs: Any  # noqa: A002
    ) -> AsyncIterator[AIMessageChunk]:
        if not _inside.get():
            async for chunk in original(self, input, config, stop=stop, **kwargs):
                yield chunk
        else:
            yield as_chunk(await self.ainvoke(input, _untapped(config), stop=stop, **kwargs))

    return astream


def _untapped(config: Any) -> Any:
    """Return the config without the run's id.

    By that `astream_events` tells the run that it taps, whose chunks it drops after its end.
    """
    return config and {name: value for name, value in config.items() if name != "run_id"}


def _stream_events(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def stream_events(
        self: BaseChatModel, input: Any, config: Any = None, *, version: Any = "v2", **kwargs: Any  # noqa: A002
    ) -> Any:
        if version != "v3" or not _inside.get():
            return original(self, input, config, version=version, **kwargs)
        return events(self.invoke(input, config, **kwargs))

    return stream_events


def _astream_events(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def astream_events(
        self: BaseChatModel, input: Any, config: Any = None, *, version: Any = "v2", **kwargs: Any  # noqa: A002
    ) -> Any:
        if version != "v3" or not _inside.get():
            return original(self, input, config, version=version, **kwargs)

        async def whole() -> Any:
            return async_events(await self.ainvoke(input, config, **kwargs))

        return whole()

    return astream_events


register("stream", _stream, subclasses=True)
register("astream", _astream, subclasses=True)
register("stream_events", _stream_events, subclasses=True)
register("astream_events", _astream_events, subclasses=True)
