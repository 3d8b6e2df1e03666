"""An OpenAI-compatible server on loopback, in a process of its own, that can be slow and faulty.

`Server` starts it and tells what it saw. It answers for whichever models it is asked for, with what
`evals.benchmarks.script` says, after a fixed latency. Faults are drawn for each request by its
content and how often it came, so they are the same whatever the order of arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.request import ProxyHandler, build_opener

from evals.benchmarks.script import reply

FAULTS = ("429", "500", "malformed", "hang", "reset")
_SILENCE = 120.0
"""Seconds for which a hung request gets no answer."""


class Server:
    """The server as a context manager: `base_url`, and `stats()` of what it has seen."""

    def __init__(
        self,
        *,
        latency: float = 0.0,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        self._command = [
            sys.executable, "-m", "evals.benchmarks.server", "--latency", str(latency),
            "--faults", json.dumps(dict(faults or {})), "--seed", str(seed),
            *(["--keep"] if keep else []),
        ]  # fmt: skip
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stats(self) -> dict[str, Any]:
        """Return what was seen since the last time.

        `requests`, `faults` by kind, `answered` (hash of a request -> how often), `seconds` of CPU,
        the `peak` of requests at once, and with `keep` the `bodies` of all.
        """
        with build_opener(ProxyHandler({})).open(f"{self.base_url}/stats") as answer:
            found: dict[str, Any] = json.load(answer)
        return found


class _Connection(asyncio.Protocol):
    """One connection, kept open; requests come one after another."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end]).lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            body = bytes(self._data[end + 4 : end + 4 + length])
            del self._data[: end + 4 + length]
            if head.startswith(b"get "):
                self._send(200, json.dumps(self._state.told()).encode())
            else:
                self._take(body)

    def _take(self, body: bytes) -> None:
        state = self._state
        state.requests += 1
        state.under_way += 1
        state.peak = max(state.peak, state.under_way)
        if state.keep:
            state.bodies.append(json.loads(body))
        asked = hashlib.sha256(body).hexdigest()[:16]
        fault = state.fault(asked)
        delay = _SILENCE if fault == "hang" else state.latency
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        # Written while it waits, so that the latency is what was asked for.
        payload = b"" if fault in ("reset", "hang", "429", "500") else _said(body, asked, fault)
        loop.call_at(due, self._answer, payload, asked, fault)

    def _answer(self, payload: bytes, asked: str, fault: str | None) -> None:
        state = self._state
        state.under_way -= 1
        if self._transport is None:
            return
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if fault in ("reset", "hang"):
            self._transport.abort()
        elif fault in ("429", "500"):
            wrong = {"error": {"message": f"a fault ({fault})", "type": "fault", "code": None}}
            self._send(int(fault), json.dumps(wrong).encode(), "retry-after-ms: 20\r\n")
        else:
            state.answered[asked] += fault is None
            self._send(200, payload)

    def _send(self, status: int, payload: bytes, more: str = "") -> None:
        assert self._transport is not None
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}"
            f"content-length: {len(payload)}\r\n\r\n"
        )
        self._transport.write(head.encode() + payload)


class _State:
    def __init__(
        self, latency: float, faults: Mapping[str, float], seed: int, *, keep: bool
    ) -> None:
        self.latency = latency
        self.keep = keep
        self._rates = {kind: float(faults.get(kind, 0.0)) for kind in FAULTS}
        self._seed = seed
        self._times: Counter[str] = Counter()
        self.under_way = 0
        self._begin()

    def _begin(self) -> None:
        self.requests = self.peak = 0
        self.bodies: list[Any] = []
        self.answered: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._cpu = time.process_time()

    def fault(self, asked: str) -> str | None:
        """Return what goes wrong with this request, if anything."""
        self._times[asked] += 1
        drawn = random.Random(f"{self._seed}/{asked}/{self._times[asked]}").random()
        for kind, rate in self._rates.items():
            drawn -= rate
            if drawn < 0:
                self._faults[kind] += 1
                return kind
        return None

    def told(self) -> dict[str, Any]:
        found = {
            "requests": self.requests,
            "faults": dict(self._faults),
            "answered": dict(self.answered),
            "seconds": time.process_time() - self._cpu,
            "peak": self.peak,
            "bodies": self.bodies,
        }
        self._begin()
        return found


def _said(body: bytes, asked: str, fault: str | None) -> bytes:
    """Return the answer to a request, cut in half where it is malformed."""
    request = json.loads(body)
    text = reply(request)
    if fault is None:
        return _completion(request, text)
    if "response_format" in request and int(asked, 16) % 2:
        return _completion(request, text[: len(text) // 2])  # the model's own text is cut
    payload = _completion(request, text)  # the other half of the time it is HTTP's
    return payload[: len(payload) // 2]


def _completion(request: Mapping[str, Any], text: str) -> bytes:
    prompt = sum(len(m["content"].split()) for m in request["messages"])
    said = len(text.split())
    return json.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": said,
                "total_tokens": prompt + said,
            },
        }
    ).encode()


async def _serve(options: argparse.Namespace) -> None:
    state = _State(
        options.latency, json.loads(options.faults), options.seed, keep=options.keep
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", default="{}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
