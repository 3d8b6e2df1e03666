"""What the openai SDK's exceptions mean: our errors, without secrets and without the SDK's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import openai

from lg_textgrad._hashing import canonical
from lg_textgrad.errors import (
    ContextOverflowError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelError,
    ModelQuotaError,
    ModelReplyError,
    ModelUnreachableError,
    UnknownModelError,
)
from lg_textgrad.faults import (
    fault_of,
    out_of_credit,
    refused_option,
    status_of,
    too_long,
    was_dropped,
    withheld,
)
from lg_textgrad.models._redact import brief, scrub, shown_url
from lg_textgrad.models.base import counted
from lg_textgrad.models.schema import whole_text
from lg_textgrad.run import Usage

_NOT_CONNECTED = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
"""Transport errors by name: the SDK changed its HTTP library between versions."""

BUSY = {408, 409, 429}


def model_error(
    error: Exception,
    *,
    model: str,
    server: str | None = None,
    remedy: str = "give the chat model a valid key",
    secrets: Sequence[str] = (),
    known: Sequence[str] = (),
) -> ModelError:
    """Return what an exception of the SDK means, without secrets and without the exception.

    `server` is the address to show, by default the one that the exception knows; `remedy` says
    how to give a key; `known` are models that the server has, the likeliest first. Raise the
    result outside of the `except` block, or `from None`: the SDK's exceptions hold the request's
    headers.
    """
    at = server or _server_of(error)
    said = brief(scrub(server_message(error), secrets))
    because = f": {said}" if said else ""
    status = status_of(error) if isinstance(error, openai.APIError) else None
    if isinstance(error, openai.LengthFinishReasonError):
        what = "was cut off before it was complete; raise max_tokens"
        return _reply_error(error, what, "truncated", secrets)
    if isinstance(error, openai.ContentFilterFinishReasonError):
        what = "was withheld by a content filter; rephrase it"
        return _reply_error(error, what, "refused", secrets)
    if isinstance(error, openai.APIConnectionError):
        return _connection_error(error, at, secrets)
    if withheld(error):
        # What it cost, if anything, nobody says: that is no reason to ask the model no more.
        return ModelReplyError(
            f"A content filter at {at} refused the request{because}. Rephrase it, or use another"
            " model.",
            kind="refused",
            usage=Usage(),
        )
    if status in {401, 403} or _refuses_key(error):
        # A 401 tells no more than this, and tends to repeat the key. A 403 may have another cause.
        detail = because if status == 403 else ""
        return ModelAuthenticationError(f"The server at {at} refused the API key{detail}; {remedy}")
    if _overflows(error):
        return ContextOverflowError(
            f"The request does not fit into the context of {model!r} at {at}{because}. Shorten the"
            " prompt, the examples or max_tokens, or use a model with a longer context."
        )
    if names_unknown_model(error):
        return UnknownModelError(f"The server at {at} has no model {model!r}; {_advice(known)}")
    if out_of_credit(error):
        return ModelQuotaError(
            f"The account at {at} cannot pay for the call{because}. Add credit, or use another key,"
            " and resume."
        )
    fault = fault_of(error)
    if status is None and fault is not None:
        return ModelBusyError(
            f"The server at {at} broke its answer off{because}. Wait and resume.",
            fault=fault.kind,
            wait=fault.wait,
        )
    if status is not None and (status in BUSY or status >= 500):
        return ModelBusyError(
            f"The server at {at} still answered {status} after every retry{because}. Wait and"
            " resume, ask for less at once, or raise max_retries.",
            fault=fault.kind if fault else None,
            wait=fault.wait if fault else None,
        )
    if status is not None:
        return ModelError(
            f"The server at {at} refused the request with {status}{because}. Change what it names,"
            " or use another model."
        )
    return ModelError(
        f"The server at {at} could not be asked ({type(error).__name__}){because}. Check the"
        " model's settings."
    )


def names_unknown_model(error: Exception) -> bool:
    """Return whether the server says that it lacks the model."""
    if isinstance(error, openai.NotFoundError):
        return True
    return isinstance(error, openai.APIStatusError) and error.code == "model_not_found"


def refuses_schema(error: Exception) -> bool:
    """Return whether the server says that it will not hold the reply to the schema."""
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return False
    said = f"{error.param} {server_message(error)}"
    return any(name in said for name in ("response_format", "response_schema", "json_schema"))


def unsupported_parameter(error: Exception) -> str | None:
    """Return the sampling parameter that the model does not take, when the error is about one."""
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return None
    unsupported = error.code in {"unsupported_parameter", "unsupported_value"}
    if unsupported and error.param in {"temperature", "seed"}:
        return error.param
    # Gateways and other providers say it in words only.
    return refused_option(server_message(error))


def _refuses_key(error: Exception) -> bool:
    """Return whether the key is what is wrong, though the status says only `bad request`."""
    return isinstance(error, openai.BadRequestError) and (
        error.code == "invalid_api_key" or "api key not valid" in server_message(error).lower()
    )


def _overflows(error: Exception) -> bool:
    if not isinstance(error, openai.APIError):
        return False
    return too_long(f"{error.code} {error.type} {server_message(error)}", error)


def _connection_error(
    error: openai.APIConnectionError, at: str, secrets: Sequence[str]
) -> ModelError:
    names: set[str] = set()
    cause: BaseException | None = error
    detail = ""
    # langchain-openai wraps the SDK's exception once more, so the transport's is further down.
    while cause is not None:
        names.add(type(cause).__name__)
        detail = str(cause) or detail
        cause = cause.__cause__
        if names & _NOT_CONNECTED:
            break
    dropped = was_dropped(error)
    detail = brief(scrub(detail, secrets))
    if names & _NOT_CONNECTED and not dropped:
        return ModelUnreachableError(
            f"Nobody answers at {at} ({detail}); start the server or correct --base-url.",
            fault="unreachable",
        )
    if isinstance(error, openai.APITimeoutError) and not dropped:
        return ModelBusyError(
            f"The server at {at} did not answer in time, retries included; ask for less at once,"
            " or raise timeout.",
            fault="timeout",
        )
    return ModelBusyError(
        f"The server at {at} closed the connection without an answer, retries included"
        f" ({detail}); see its log, then resume.",
        fault="reset",
    )


def _reply_error(
    error: openai.LengthFinishReasonError | openai.ContentFilterFinishReasonError,
    what: str,
    kind: str,
    secrets: Sequence[str],
) -> ModelReplyError:
    # Older versions of the SDK keep no completion with a content filter's error.
    completion = getattr(error, "completion", None)
    choices = getattr(completion, "choices", None)
    text = (choices[0].message.content or "") if choices else ""
    return ModelReplyError(
        f"The model's reply {what}.",
        reply=scrub(whole_text(text), secrets),
        usage=usage_of(completion),
        kind=kind,
    )


def usage_of(completion: Any, seconds: float = 0.0) -> Usage:
    """Return what a completion says that it cost; each part of it may be missing."""
    used = part(completion, "usage")
    return counted(
        part(used, "prompt_tokens"),
        part(used, "completion_tokens"),
        part(used, "total_tokens"),
        part(part(used, "prompt_tokens_details"), "cached_tokens"),
        seconds,
    )


def part(of: Any, name: str) -> Any:
    """Return a part of what a server said, as JSON or as the SDK's object; None without it."""
    return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)


def _advice(known: Sequence[str]) -> str:
    if not known:
        return (
            "name one that it has, or correct --base-url, which usually ends in /v1. It did not"
            " list its models."
        )
    listed = ", ".join(brief(name, limit=80) for name in known[:8])
    more = f", and {len(known) - 8} more" if len(known) > 8 else ""
    return f"name one of those that it has: {listed}{more}."


def server_message(error: Exception) -> str:
    """Return what the server said; an empty string when it said nothing."""
    if not isinstance(error, openai.APIError):
        return str(error)
    body: Any = error.body
    if isinstance(body, list) and body and isinstance(body[0], Mapping):
        body = body[0].get("error") or body[0]  # as Google sends it
    if isinstance(body, Mapping):
        said = body.get("message") or body.get("detail")
        if said:
            return said if isinstance(said, str) else canonical(said)
        return canonical(body) if body else ""
    if isinstance(body, str):
        return body
    return "" if isinstance(error, openai.APIStatusError) else error.message


def _server_of(error: Exception) -> str:
    request = getattr(error, "request", None)
    if request is None:
        return "an unknown address"
    return shown_url(str(request.url)).removesuffix("/chat/completions").removesuffix("/responses")
