"""What requests and replies of OpenAI's two chat APIs say, read from their JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from lg_textgrad.models.base import counted
from lg_textgrad.run import Usage

Place = tuple[str | int, ...]
"""Where in a request the content of a message stands."""

_IDS = frozenset({"id", "call_id", "tool_call_id"})


class Api(Protocol):
    """One of the two APIs. A body that is not as documented is read as far as it goes."""

    prompts: frozenset[str]
    """The fields of a request that hold its messages; all others are options."""

    def messages(self, body: Mapping[str, Any]) -> Iterator[tuple[Place, BaseMessage]]:
        """Yield the messages of a request, in the order in which the model sees them."""
        ...

    def complete(self, result: Any) -> bool:
        """Return whether it is a reply of this API, and no gateway's error under status 200."""
        ...

    def reply(self, result: Mapping[str, Any]) -> AIMessage:
        """Return what the model says, with its usage and its `finish_reason`."""
        ...

    def usage(self, result: Mapping[str, Any]) -> Usage: ...

    def events(self, result: Mapping[str, Any], body: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the server-sent events that stream the reply, whole pieces at a time."""
        ...


class ChatCompletions:
    """`/chat/completions`."""

    prompts = frozenset({"messages"})

    def messages(self, body: Mapping[str, Any]) -> Iterator[tuple[Place, BaseMessage]]:
        for number, said in enumerate(_list(body.get("messages"))):
            if isinstance(said, Mapping):
                calls = [_function(c) for c in _list(said.get("tool_calls"))]
                answered = str(said.get("tool_call_id") or "")
                role, content = str(said.get("role")), said.get("content")
                yield ("messages", number, "content"), _message(role, content, calls, answered)

    def complete(self, result: Any) -> bool:
        return isinstance(result, Mapping) and any(
            isinstance(c, Mapping) and c.get("message") for c in _list(result.get("choices"))
        )

    def reply(self, result: Mapping[str, Any]) -> AIMessage:
        choice = result["choices"][0]
        said = choice["message"]
        text = said.get("content") or said.get("refusal")
        calls = [_function(c) for c in _list(said.get("tool_calls"))]
        return _reply(text, calls, self.usage(result), choice.get("finish_reason"))

    def usage(self, result: Mapping[str, Any]) -> Usage:
        return _usage(result, "prompt_tokens", "completion_tokens")

    def events(self, result: Mapping[str, Any], body: Mapping[str, Any]) -> Iterator[bytes]:
        counted = bool((body.get("stream_options") or {}).get("include_usage"))
        shared = {k: v for k, v in result.items() if k not in ("choices", "usage", "object")}
        shared["object"] = "chat.completion.chunk"

        def chunk(choices: Sequence[Any], usage: Any = None) -> bytes:
            more = {"usage": usage} if counted else {}
            return _event({**shared, "choices": choices, **more})

        for choice in result["choices"]:
            delta = {k: v for k, v in choice["message"].items() if v is not None}
            if "tool_calls" in delta:
                delta["tool_calls"] = [
                    {"index": n, **call} for n, call in enumerate(delta["tool_calls"])
                ]
            first = {k: v for k, v in choice.items() if k != "message"}
            yield chunk([{**first, "delta": delta, "finish_reason": None}])
            yield chunk([{**first, "delta": {}, "logprobs": None}])
        if counted:
            yield chunk([], result.get("usage"))
        yield b"data: [DONE]\n\n"


class Responses:
    """`/responses`."""

    prompts = frozenset({"instructions", "input"})

    def messages(self, body: Mapping[str, Any]) -> Iterator[tuple[Place, BaseMessage]]:
        if isinstance(body.get("instructions"), str):
            yield ("instructions",), SystemMessage(body["instructions"])
        given = body.get("input")
        if isinstance(given, str):
            yield ("input",), HumanMessage(given)
            return
        for number, item in enumerate(_list(given)):
            if not isinstance(item, Mapping):
                continue
            if item.get("type") == "function_call":
                yield ("input", number, "type"), _message("assistant", "", [_called(item)])
            elif item.get("type") == "function_call_output":
                place: Place = ("input", number, "output")
                yield place, _message("tool", item.get("output"), (), str(item.get("call_id")))
            elif "role" in item:
                role = str(item["role"])
                yield ("input", number, "content"), _message(role, item.get("content"))
            else:  # what the model thought, searched, …
                yield ("input", number, "type"), _message("assistant", [dict(item)])

    def complete(self, result: Any) -> bool:
        return isinstance(result, Mapping) and isinstance(result.get("output"), list)

    def reply(self, result: Mapping[str, Any]) -> AIMessage:
        items = [i for i in result["output"] if isinstance(i, Mapping)]
        parts = [
            part.get("text") or part.get("refusal") or ""
            for item in items
            if item.get("type") == "message"
            for part in _list(item.get("content"))
        ]
        calls = [_called(item) for item in items if item.get("type") == "function_call"]
        why = (result.get("incomplete_details") or {}).get("reason")
        reason = {None: "tool_calls" if calls else "stop", "max_output_tokens": "length"}.get(
            why, why
        )
        return _reply("".join(parts), calls, self.usage(result), reason)

    def usage(self, result: Mapping[str, Any]) -> Usage:
        return _usage(result, "input_tokens", "output_tokens")

    def events(
        self, result: Mapping[str, Any], body: Mapping[str, Any]  # noqa: ARG002
    ) -> Iterator[bytes]:
        for number, (kind, said) in enumerate(_progress(result)):
            event = {"type": f"response.{kind}", "sequence_number": number, **said}
            yield f"event: response.{kind}\n".encode() + _event(event)


def _progress(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events by which the Responses API tells how a response comes to be."""
    begun = {**result, "status": "in_progress", "output": [], "usage": None}
    yield "created", {"response": begun}
    yield "in_progress", {"response": begun}
    for index, item in enumerate(result["output"]):
        at = {"output_index": index, "item_id": item.get("id")}
        empty: Mapping[Any, Mapping[str, Any]] = {
            "message": {"content": []},
            "function_call": {"arguments": ""},
        }
        started = {**item, **empty.get(item.get("type"), {})}
        if "status" in started:
            started["status"] = "in_progress"
        yield "output_item.added", {"output_index": index, "item": started}
        if item.get("type") == "message":
            for number, part in enumerate(_list(item.get("content"))):
                yield from _part(part, {**at, "content_index": number})
        elif item.get("type") == "function_call":
            arguments = item.get("arguments") or ""
            yield "function_call_arguments.delta", {**at, "delta": arguments}
            named = {"name": item.get("name"), "arguments": arguments}
            yield "function_call_arguments.done", {**at, **named}
        yield "output_item.done", {"output_index": index, "item": item}
    status = result.get("status")
    end = status if status in ("failed", "incomplete") else "completed"
    yield end, {"response": dict(result)}


def _part(part: Mapping[str, Any], at: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    key = "refusal" if part.get("type") == "refusal" else "text"
    kind = "refusal" if key == "refusal" else "output_text"
    more = {} if key == "refusal" else {"logprobs": part.get("logprobs") or []}
    yield "content_part.added", {**at, "part": {**part, key: ""}}
    yield f"{kind}.delta", {**at, "delta": part.get(key) or "", **more}
    yield f"{kind}.done", {**at, key: part.get(key) or "", **more}
    yield "content_part.done", {**at, "part": dict(part)}


def without_ids(value: Any, order: dict[str, str] | None = None) -> Any:
    """Return messages with their ids numbered as they appear: servers draw them at random."""
    order = {} if order is None else order
    if isinstance(value, Mapping):
        return {
            k: order.setdefault(str(v), f"id{len(order)}")
            if k in _IDS and isinstance(v, str)
            else without_ids(v, order)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_ids(v, order) for v in value]
    return value


def put(body: Any, place: Place, content: Any) -> Any:
    """Return a copy of the body with `content` at the place; nothing else of it is copied."""
    if not place:
        return content
    first, *rest = place
    copy: Any = dict(body) if isinstance(body, Mapping) else list(body)
    copy[first] = put(copy[first], tuple(rest), content)
    return copy


def _message(
    role: str, content: Any, calls: Iterable[Mapping[str, Any]] = (), answered: str = ""
) -> BaseMessage:
    text: Any = _content(content)
    if role in ("system", "developer"):
        return SystemMessage(text)
    if role == "user":
        return HumanMessage(text)
    if role == "assistant":
        return AIMessage(text, tool_calls=[dict(c) for c in calls])
    if role in ("tool", "function"):
        return ToolMessage(text, tool_call_id=answered)
    return ChatMessage(content=text, role=role)


def _content(content: Any) -> Any:
    if isinstance(content, list | tuple):
        return [dict(b) if isinstance(b, Mapping) else str(b) for b in content]
    return "" if content is None else str(content)


def _reply(text: Any, calls: Sequence[Any], usage: Usage, reason: Any) -> AIMessage:
    return AIMessage(
        _content(text),
        tool_calls=list(calls),
        usage_metadata={
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.tokens,
        },
        response_metadata={"finish_reason": reason} if reason else {},
    )


def _function(call: Any) -> dict[str, Any]:
    said = call if isinstance(call, Mapping) else {}
    function = said.get("function") or said.get("custom") or {}
    arguments = function.get("arguments", function.get("input"))
    return _call(function.get("name"), arguments, said.get("id"))


def _called(item: Mapping[str, Any]) -> dict[str, Any]:
    return _call(item.get("name"), item.get("arguments"), item.get("call_id"))


def _call(name: Any, arguments: Any, call_id: Any) -> dict[str, Any]:
    try:
        args = json.loads(arguments or "{}")
    except (TypeError, ValueError):  # the model's slip; shown as it is
        args = None
    args = args if isinstance(args, dict) else {"arguments": arguments}
    return {"name": str(name), "args": args, "id": None if call_id is None else str(call_id)}


def _usage(result: Mapping[str, Any], sent: str, received: str) -> Usage:
    used = result.get("usage") or {}
    details = used.get(f"{sent}_details") or {}
    return counted(
        used.get(sent), used.get(received), used.get("total_tokens"), details.get("cached_tokens")
    )


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
