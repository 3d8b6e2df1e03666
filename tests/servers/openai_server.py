"""A real OpenAI-compatible HTTP server on loopback, whose model is a function of the test's.

    with OpenAIServer(lambda body: "hello") as server:
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key="k")

The handler gets the body of each chat request and returns the reply: a string, a dict (sent as
JSON text), a `Reply`, or a `Fault`. It may be a coroutine function. Plain handlers run one at a
time on the server's own thread, so they need no locks and must not block; waiting belongs into
`latency`, `Fault.hang` or a coroutine. What a handler raises becomes a 500 that clients do not
retry, and is raised again when the `with` block ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any

_CREATED = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Reply:
    """What the assistant says."""

    text: str | None = None
    tool_calls: Sequence[dict[str, Any]] | None = None
    """Each `{"name": ..., "args": dict | str}`, and `id` where it matters."""
    finish_reason: str = "stop"
    """`tool_calls` where there are any and nothing else was said."""
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong: an error status, a connection reset, or silence."""

    status: int
    body: Any = None
    """A dict is sent as JSON, a string as it is; None makes OpenAI's error shape."""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "status"
    seconds: float = 0.0

    @classmethod
    def reset(cls) -> Fault:
        """Reset the connection instead of answering."""
        return cls(0, kind="reset")

    @classmethod
    def hang(cls, seconds: float) -> Fault:
        """Say nothing for `seconds`, then close the connection."""
        return cls(0, kind="hang", seconds=seconds)


Answer = str | dict[str, Any] | Reply | Fault
Handler = Callable[[dict[str, Any]], Answer | Awaitable[Answer]]


def error_body(message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error in the shape that OpenAI sends."""
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }
    }


class OpenAIServer:
    """The server, as a context manager.

    `models` are the ids that it lists and answers for; with None it answers for any and has no
    list. `api_key`, when set, is the only one that it lets in. `latency` is in seconds, before
    each chat reply, and may be changed at any time. `headers` go with each answer of a model.
    """

    def __init__(
        self,
        handler: Handler = lambda body: "ok",
        *,
        models: Sequence[str] | None = ("test-model",),
        api_key: str | None = None,
        latency: float = 0.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.handler = handler
        self.models = None if models is None else list(models)
        self.api_key = api_key
        self.latency = latency
        self.headers = headers
        self.requests: list[dict[str, Any]] = []
        """Every request in the order of arrival: `method`, `path`, `headers`, `body`."""
        self.connections = 0
        """How many connections were opened."""
        self.peak = 0
        """The largest number of chat requests that were under way at once."""
        self.errors: list[Exception] = []
        """What handlers raised."""
        self._under_way = 0
        self._port = 0
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests, in the order of arrival."""
        return [r["body"] for r in self.requests if r["path"] == "/v1/chat/completions"]

    @property
    def responses(self) -> list[dict[str, Any]]:
        """The bodies of the requests to the Responses API, in the order of arrival."""
        return [r["body"] for r in self.requests if r["path"] == "/v1/responses"]

    def __enter__(self) -> OpenAIServer:
        self._thread = threading.Thread(target=self._run, name="openai-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "a handler blocks the test server"
        if self.errors and error is None:
            raise self.errors[0]

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left, or the server stops: either ends the connection quietly
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {}
        for line in head[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else None
        path = target.partition("?")[0]
        self.requests.append({"method": method, "path": path, "headers": headers, "body": body})
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            given = headers.get("authorization", "").removeprefix("Bearer ")
            # OpenAI repeats the key, masked; a careless server repeats all of it.
            wrong = error_body(f"Incorrect API key provided: {given}.", code="invalid_api_key")
            return await self._send(writer, 401, wrong)
        if (method, path) == ("GET", "/v1/models") and self.models is not None:
            listed = [
                {"id": m, "object": "model", "created": _CREATED, "owned_by": "tests"}
                for m in self.models
            ]
            return await self._send(writer, 200, {"object": "list", "data": listed})
        # Azure puts the deployment before what it is asked for.
        if method != "POST" or not path.endswith(("/chat/completions", "/v1/responses")):
            return await self._send(writer, 404, error_body(f"Unknown URL ({method} {path})."))
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        try:
            return await self._chat(writer, body, _response if path.endswith("responses") else _completion)
        finally:
            self._under_way -= 1

    async def _chat(
        self,
        writer: asyncio.StreamWriter,
        body: dict[str, Any],
        shape: Callable[[dict[str, Any], Reply], dict[str, Any]],
    ) -> bool:
        model = body.get("model")
        if self.models is not None and model not in self.models:
            wrong = f"The model `{model}` does not exist or you do not have access to it."
            return await self._send(writer, 404, error_body(wrong, code="model_not_found"))
        if self.latency:
            await asyncio.sleep(self.latency)
        try:
            answer = self.handler(body)
            if inspect.isawaitable(answer):
                answer = await answer
            if isinstance(answer, str):
                answer = Reply(answer)
            elif isinstance(answer, dict):
                answer = Reply(json.dumps(answer))
            elif not isinstance(answer, Reply | Fault):
                raise TypeError(f"a handler cannot return {type(answer).__name__}")
        except Exception as error:
            self.errors.append(error)
            wrong = error_body(f"the test's handler raised {error!r}")
            return await self._send(writer, 500, wrong, {"x-should-retry": "false"})
        if isinstance(answer, Fault):
            return await self._fail(writer, answer)
        if body.get("stream"):
            return await self._stream(writer, body, answer)
        return await self._send(writer, 200, shape(body, answer), self.headers)

    async def _fail(self, writer: asyncio.StreamWriter, fault: Fault) -> bool:
        if fault.kind == "hang":
            await asyncio.sleep(fault.seconds)
            return False
        if fault.kind == "reset":
            # Without lingering, closing the socket sends a reset instead of an orderly end.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        body = error_body(f"fault {fault.status}") if fault.body is None else fault.body
        return await self._send(writer, fault.status, body, fault.headers)

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], reply: Reply
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for chunk in [*map(json.dumps, _chunks(body, reply)), "[DONE]"]:
            event = f"data: {chunk}\n\n".encode()
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: Any,
        headers: dict[str, str] | None = None,
    ) -> bool:
        text = isinstance(body, str)
        payload = body.encode() if text else json.dumps(body).encode()
        fields = {
            "content-type": "text/plain; charset=utf-8" if text else "application/json",
            "content-length": str(len(payload)),
            **{k.lower(): v for k, v in (headers or {}).items()},
        }
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Fault"
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in fields.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        await writer.drain()
        return True


def _id(prefix: str, body: dict[str, Any]) -> str:
    """The same request always gets the same id, whatever the order of arrival."""
    text = json.dumps(body, sort_keys=True)
    return f"{prefix}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _tool_calls(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    calls = []
    for k, call in enumerate(reply.tool_calls or ()):
        args = call.get("args", {})
        calls.append(
            {
                "id": call.get("id") or _id("call_", {**body, "k": k}),
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": args if isinstance(args, str) else json.dumps(args),
                },
            }
        )
    return calls


def _finish_reason(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls and reply.finish_reason == "stop" else reply.finish_reason


def _words(value: Any) -> int:
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(_words(part.get("text")) for part in value)
    return 0


def _usage(body: dict[str, Any], reply: Reply) -> dict[str, int]:
    prompt = sum(_words(message.get("content")) for message in body.get("messages", []))
    called = sum(_words(c["function"]["arguments"]) for c in _tool_calls(body, reply))
    said = _words(reply.text) + _words(reply.refusal) + called
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _completion(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text,
        "refusal": reply.refusal,
    }
    if reply.tool_calls:
        message["tool_calls"] = _tool_calls(body, reply)
    return {
        "id": _id("chatcmpl-", body),
        "object": "chat.completion",
        "created": _CREATED,
        "model": body.get("model"),
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": _finish_reason(reply),
                "logprobs": None,
            }
        ],
        "usage": _usage(body, reply),
    }


def _response(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """Return the reply as the Responses API gives it. It is streamed by no test."""
    asked = body.get("input")
    asked = [{"content": asked}] if isinstance(asked, str) else asked
    counted = _usage({"messages": [*asked, {"content": body.get("instructions")}]}, reply)
    output: list[dict[str, Any]] = []
    if reply.text is not None:
        part = {"type": "output_text", "text": reply.text, "annotations": []}
        output.append(
            {
                "id": _id("msg_", body),
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    for call in _tool_calls(body, reply):
        output.append(
            {
                "id": _id("fc_", call),
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                **call["function"],
            }
        )
    return {
        "id": _id("resp_", body),
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "model": body.get("model"),
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "usage": {
            "input_tokens": counted["prompt_tokens"],
            "output_tokens": counted["completion_tokens"],
            "total_tokens": counted["total_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _chunks(body: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    """Yield the reply word by word, as OpenAI streams it."""
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    shared = {
        "id": _id("chatcmpl-", body),
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": body.get("model"),
    }

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**shared, "choices": [choice], **({"usage": None} if with_usage else {})}

    yield chunk({"role": "assistant", "content": ""})
    for piece in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", reply.text or ""):
        yield chunk({"content": piece})
    if reply.refusal:
        yield chunk({"refusal": reply.refusal})
    for index, call in enumerate(_tool_calls(body, reply)):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening = {**call, "index": index, "function": {"name": name, "arguments": ""}}
        yield chunk({"tool_calls": [opening]})
        yield chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
    yield chunk({}, _finish_reason(reply))
    if with_usage:
        yield {**shared, "choices": [], "usage": _usage(body, reply)}
