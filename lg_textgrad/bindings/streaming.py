"""Streamed calls of chat models inside a scope: answered whole, and the same from the store.

Nobody watches a recorded run type, so a reply arrives in one piece, whether it was asked for now or
is known already. Whoever listens for tokens or for events hears of that piece.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models._compat_bridge import message_to_events
from langchain_core.language_models.chat_model_stream import AsyncChatModelStream, ChatModelStream
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler


def as_chunk(message: Any) -> AIMessageChunk:
    """Return the message as the one chunk of a stream."""
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        id=message.id,
        name=message.name,
        usage_metadata=message.usage_metadata,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
        chunk_position="last",
    )


def quiet(run_manager: Any) -> Any:
    """Return the run manager without those who would make the model stream."""
    return run_manager and _with(run_manager, lambda h: not _listens(h))


def told(
    model: BaseChatModel, run_manager: Any, result: ChatResult, *, is_async: bool, **kwargs: Any
) -> list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """Return the calls that tell the listeners of a reply what a stream would have told them.

    None where the model would not have streamed for them.
    """
    if run_manager is None or not any(map(_listens, run_manager.handlers)):
        return []
    message = result.generations[0].message
    asked = {"async_api": is_async, "run_manager": run_manager, **kwargs}
    if model._should_use_protocol_streaming(**asked):  # noqa: SLF001
        events = message_to_events(message, message_id=message.id)
        return [(run_manager.on_stream_event, (event,), {}) for event in events]
    if model._should_stream(**asked):  # noqa: SLF001
        chunk = ChatGenerationChunk(message=as_chunk(message))
        listeners = _with(run_manager, _listens)
        return [(listeners.on_llm_new_token, (message.content,), {"chunk": chunk})]
    return []


def _listens(handler: Any) -> bool:
    return _kind_listens(type(handler))  # type: ignore[arg-type]  # types can be hashed


@lru_cache(256)  # the one is a protocol, which takes long to check
def _kind_listens(kind: type) -> bool:
    return issubclass(kind, _StreamingCallbackHandler | _V2StreamingCallbackHandler)


def _with(run_manager: Any, wanted: Callable[[Any], bool]) -> Any:
    some = copy.copy(run_manager)
    some.handlers = [h for h in run_manager.handlers if wanted(h)]
    return some


def events(message: Any) -> ChatModelStream:
    """Return what `stream_events(version="v3")` returns, at its end already."""
    stream = ChatModelStream()
    _feed(stream, message)
    return stream


def async_events(message: Any) -> AsyncChatModelStream:
    """Return what `astream_events(version="v3")` returns, at its end already."""
    stream = AsyncChatModelStream()
    _feed(stream, message)
    return stream


def _feed(stream: Any, message: Any) -> None:
    stream.set_message_id(message.id)
    for event in message_to_events(message, message_id=message.id):
        stream.dispatch(event)
