"""What went wrong on the way to a model, and whether asking again may help.

Exceptions of SDKs are known by their names and attributes, so that no SDK is imported here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from lg_textgrad.errors import LGTextGradError, ModelError

KINDS = ("rate_limited", "server_error", "timeout", "reset", "garbled", "unreachable")
"""Faults of the way; all may pass."""

_BUSY = frozenset({408, 409, 425, 429})
_CROWDED = frozenset({429, 503, 529})
"""Statuses that ask for fewer calls at once; 529 is Anthropic's `overloaded`."""
_HOPELESS = frozenset({501, 505})

_TIMEOUTS = frozenset(
    {"APITimeoutError", "ModelTimeoutError", "TimeoutException", "ReadTimeout", "Timeout",
     "ReadTimeoutError", "DeadlineExceeded", "ServerTimeoutError"}
)  # fmt: skip
_NOT_CONNECTED = frozenset(
    {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "ConnectTimeoutError",
     "ClientConnectorError", "EndpointConnectionError", "ConnectionRefusedError"}
)  # fmt: skip
_RESETS = frozenset(
    {"APIConnectionError", "ModelConnectionError", "ReadError", "WriteError", "CloseError",
     "RemoteProtocolError", "ServerDisconnectedError", "ChunkedEncodingError", "ProtocolError",
     "IncompleteRead", "ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError",
     "ClientOSError", "ClientPayloadError", "ConnectionClosedError"}
)  # fmt: skip
_DROPPED = frozenset({"ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError"})
"""What aiohttp itself raises; as exact names, for a connector's errors derive from them."""
_LIMITS = frozenset(
    {"ModelRateLimitError", "RateLimitError", "ResourceExhausted", "TooManyRequests",
     "ThrottlingException"}
)  # fmt: skip
_SERVER = frozenset(
    {"ModelAPIError", "InternalServerError", "ServiceUnavailable", "OverloadedError"}
)

_OVERFLOW = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "exceeds the maximum number of tokens",
    "exceeds the available context size",
    "exceeds the context window",
    "maximum context length",
    "maximum prompt length",
    "prompt is too long",
    "Input is too long for requested model",
)
"""How OpenAI, llama.cpp, vLLM, Google, xAI, Bedrock and others say that a request does not fit."""

_OPTION = re.compile(r"(?<![A-Za-z_])(?:temperature|seed)(?![A-Za-z_])")
_NOT_TAKEN = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not (?:permitted|allowed|accept)|deprecated"
    r"|only be set|cannot both",
    re.IGNORECASE,
)

_NO_COMPLETION = (
    (ValueError, "Unexpected response type from"),
    (TypeError, "Received response with null value for"),
)
"""How langchain-openai says that a body is no JSON object, or has no choices in it."""

_WITHHELD = ("content_filter", "content_policy_violation")
_BLAMED = (
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
)  # fmt: skip
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of the way that may pass."""

    kind: str
    """One of `KINDS`."""
    wait: float | None = None
    """Seconds that the server asks to wait; None when it did not say."""
    crowded: bool = False
    """Whether the server asks for fewer calls at once."""


class FailedElsewhere(Exception):  # noqa: N818 - it stands for an error, by that one's name
    """Stands for what a call raised in another process: an SDK's exceptions don't travel.

    They hold the request, with its key. `fault` is what the other process took it for.
    """

    def __init__(self, text: str, fault: Fault | None) -> None:
        super().__init__(text)
        self.fault = fault

    @classmethod
    def named(cls, name: str, text: str, fault: Fault | None) -> FailedElsewhere:
        """Return one whose type has the name of the original's, for messages."""
        kind: type[FailedElsewhere] = type(name, (cls,), {})
        return kind(text, fault)


def fault_of(error: BaseException) -> Fault | None:
    """Return the fault that `error` stands for; None where asking again would change nothing."""
    if isinstance(error, FailedElsewhere):
        return error.fault
    if isinstance(error, ModelError) and error.fault is not None:
        return Fault(error.fault, error.wait, error.fault == "rate_limited")
    if isinstance(error, LGTextGradError):
        return None
    status, headers = status_of(error), headers_of(error)
    if status is not None:
        if out_of_credit(error) or headers.get("x-should-retry") == "false":
            return None
        wait = asked_wait(headers)
        if status == 429:
            return Fault("rate_limited", wait, crowded=True)
        if status in _BUSY or (status >= 500 and status not in _HOPELESS):
            return Fault("server_error", wait, status in _CROWDED)
        if status != 200:
            return None
    return _by_name(error)


def _refused(error: BaseException) -> bool:
    """Return whether an error that came in the middle of a stream blames the request."""
    body = getattr(error, "body", None)
    said = body.get("error", body) if isinstance(body, Mapping) else None
    kind = said.get("type") if isinstance(said, Mapping) else None
    return str(kind or getattr(error, "type", None)) in _BLAMED


def was_dropped(error: BaseException) -> bool:
    """Return whether the server took the connection and closed it without an answer.

    The SDKs' aiohttp transports report that as a connection that took too long to be made.
    """
    return any(type(each).__name__ in _DROPPED for each in _chain(error))


def _by_name(error: BaseException) -> Fault | None:
    if was_dropped(error):
        return Fault("reset")
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    if names & _NOT_CONNECTED:
        return Fault("unreachable")
    if names & _TIMEOUTS or isinstance(error, TimeoutError):
        return Fault("timeout")
    if names & _RESETS:
        return Fault("reset")
    if isinstance(error, ConnectionError):
        return Fault("unreachable")
    if names & _LIMITS:
        return Fault("rate_limited", crowded=True)
    if names & _SERVER or ("APIError" in names and not _refused(error)):
        return Fault("server_error")
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return Fault("garbled")  # SDKs let their decoders' own errors through
    if _from_gateway(error) is not None or any(
        isinstance(error, kind) and words in str(error) for kind, words in _NO_COMPLETION
    ):
        return Fault("garbled")
    return Fault("garbled") if _no_choice(error) else None


def _no_choice(error: BaseException) -> bool:
    """Return whether langchain-core looked for the first choice of a reply that has none."""
    trace = error.__traceback__ if isinstance(error, IndexError) else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return where.startswith("langchain_core.language_models")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that the server answered with; None when it is not known."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        for found in (
            getattr(each, "status_code", None),
            getattr(response, "status_code", None),
            _of_boto(response),
            meant(_from_gateway(each)),
            meant({"code": getattr(each, "code", None)}),
        ):
            if isinstance(found, int) and not isinstance(found, bool):
                return found
    return None


def _of_boto(response: Any) -> Any:
    if not isinstance(response, Mapping):
        return None
    return (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")


def _from_gateway(error: BaseException) -> Mapping[str, Any] | None:
    """Return the error that a gateway reports under status 200, as langchain-openai raises it."""
    said = error.args[0] if isinstance(error, ValueError) and error.args else None
    return said if isinstance(said, Mapping) and "message" in said else None


def meant(said: Any) -> int | None:
    """Return the status that a gateway means by an error under status 200; None if unsaid."""
    code = said.get("code") if isinstance(said, Mapping) else None
    if isinstance(code, str) and re.fullmatch(r"[1-5]\d\d", code):
        return int(code)
    return code if isinstance(code, int) and 100 <= code < 600 else None


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Return the answer's headers, names in lower case; empty when there are none."""
    for each in _chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None)
        if headers is not None and hasattr(headers, "items"):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}


def out_of_credit(error: BaseException) -> bool:
    """Return whether waiting would not help: the account cannot pay."""
    if status_of(error) == 402:
        return True
    return any(
        str(getattr(each, name, "")) in _NO_CREDIT
        for each in _chain(error)
        for name in ("code", "type")
    )


def withheld(error: BaseException) -> bool:
    """Return whether a filter of contents refused this one request: others are answered.

    Azure does so with status 400, OpenRouter with a 403 that tells what was flagged.
    """
    for each in _chain(error):
        body = getattr(each, "body", None)
        about = body.get("metadata") if isinstance(body, Mapping) else None
        flagged = isinstance(about, Mapping) and "flagged_input" in about
        if flagged or str(getattr(each, "code", "")) in _WITHHELD:
            return status_of(error) in (400, 403)
    return False


def too_long(said: str, error: BaseException) -> bool:
    """Return whether a refusal says that the request does not fit into the model's context."""
    return status_of(error) == 413 or any(mark in said for mark in _OVERFLOW)


def refused_option(said: str) -> str | None:
    """Return which of `temperature` and `seed` a refusal says that the model does not take."""
    named = _OPTION.search(said)
    return named[0] if named and _NOT_TAKEN.search(said) else None


def asked_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return how many seconds the server asks to wait, by `Retry-After` or its rate limits.

    `headers` have names in lower case. `now` is the time of day in seconds, for dates; where the
    server says what it takes for now, that counts, for this machine's clock may be another.
    """
    now = time.time() if now is None else now
    now = _time_of_day(headers.get("date", "")) or now
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    after = headers.get("retry-after")
    if after is not None:
        seconds = _number(after)
        return max(0.0, seconds) if seconds is not None else _until(after, now)
    waits = [
        _span(headers.get(name.replace("remaining", "reset")), now)
        for name, left in headers.items()
        if "ratelimit" in name and "remaining" in name and _number(left) == 0
    ]
    known = [wait for wait in waits if wait is not None]
    return max(known) if known else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < 1e12 else None


def _span(text: str | None, now: float) -> float | None:
    """Return the seconds that `6m0s`, `120ms`, `2.5`, or a time of day in RFC 3339 are away."""
    if text is None:
        return None
    number = _number(text)
    if number is not None:  # a large one is a time of day
        return max(0.0, number - now if number > 1e9 else number)
    if _SPAN.sub("", text) == "":
        return sum(float(count) * _SECONDS[unit] for count, unit in _SPAN.findall(text))
    return _until(text, now)


def _until(date: str, now: float) -> float | None:
    at = _time_of_day(date)
    return None if at is None else max(0.0, at - now)


def _time_of_day(date: str) -> float | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            at = read(date)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, at most a handful."""
    at: BaseException | None = error
    for _ in range(8):
        if at is None:
            return
        yield at
        at = at.__cause__
