"""Replies that are held to a JSON schema: asking for one in words, and checking what came."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from lg_textgrad.errors import ConfigurationError, ModelReplyError
from lg_textgrad.models._redact import brief, scrub
from lg_textgrad.models.base import Message

_FENCED = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL | re.IGNORECASE)


def in_words(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return `messages` with the schema asked for in words, at the end of the last one.

    For servers and models that cannot be held to a schema in any other way.
    """
    asked = (
        "Answer with one JSON object that satisfies this JSON schema, and with nothing else:\n"
        + json.dumps(schema, ensure_ascii=False)
    )
    said = [dict(message) for message in messages]
    if said and said[-1]["role"] != "assistant":
        said[-1]["content"] = f"{said[-1]['content']}\n\n{asked}"
    else:
        said.append({"role": "user", "content": asked})
    return said


def parse_reply(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the JSON value in `text`, which satisfies `schema`.

    One code fence around the whole of it is ignored, and where only the last digits of numbers
    break the schema (1.0000000000000002 of at most 1) those are rounded; nothing else is repaired
    or cut out. Raises `ModelReplyError` when the text is empty, is not JSON, or breaks the schema,
    and `ConfigurationError` when the schema itself is broken.
    """
    if not text.strip():
        raise ModelReplyError(
            "The model's reply is empty where JSON was asked for; ask again, or use another model.",
            reply=text,
            kind="empty",
        )
    stripped = text.strip()
    fenced = _FENCED.match(stripped)
    try:
        data = json.loads(
            fenced[1] if fenced else stripped, parse_constant=_no_number, parse_float=_finite
        )
        # Half a surrogate pair is legal in JSON, but no file and no server would take it.
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ModelReplyError(
            f"The model's reply is malformed JSON ({brief(str(error))}); ask again, or use a model"
            " that supports JSON-schema output.",
            reply=text,
            kind="garbled",
        ) from None
    violation = _violation(data, schema)
    if violation and not _violation(rounded := _rounded(data), schema):
        return rounded
    if violation:
        raise ModelReplyError(
            f"The model's reply violates the schema {violation}; ask again, or use a model that"
            " supports JSON-schema output.",
            reply=text,
        )
    return data


def checked_reply(
    text: str,
    *,
    schema: Mapping[str, Any] | None,
    finish_reason: str | None = None,
    refusal: str | None = None,
    max_tokens: int | None = None,
) -> Any:
    """Return the data of a reply under a schema, or None for free text.

    Raises `ModelReplyError` for a refusal, an empty reply, and under a schema also for one that
    was cut off or filtered, is malformed, or breaks the schema. Free text may end at `max_tokens`
    or at a filter.
    """
    if refusal:
        raise ModelReplyError(
            f"The model refused to answer: {brief(refusal)} Rephrase the request, or use another"
            " model.",
            reply=refusal,
            kind="refused",
        )
    empty = not text.strip()
    if finish_reason == "length" and (empty or schema is not None):
        cap = "the server's limit" if max_tokens is None else f"max_tokens={max_tokens}"
        raise ModelReplyError(
            f"The model's reply was cut off at {cap} before it "
            + ("said anything" if empty else "was complete")
            + "; raise max_tokens or ask for less.",
            reply=text,
            kind="truncated",
        )
    if finish_reason == "content_filter" and (empty or schema is not None):
        raise ModelReplyError(
            "The model's reply was withheld by a content filter. Rephrase the request, or use"
            " another model.",
            reply=text,
            kind="refused",
        )
    if empty:
        raise ModelReplyError(
            "The model's reply is empty; ask again, or use another model.",
            reply=text,
            kind="empty",
        )
    return None if schema is None else parse_reply(text, schema)


def scrubbed(error: ModelReplyError, secrets: Sequence[str]) -> ModelReplyError:
    """Return the same error without secrets, and without where it was raised."""
    return ModelReplyError(
        scrub(str(error), secrets),
        reply=scrub(error.reply, secrets),
        usage=error.usage,
        kind=error.kind,
        promised=error.promised,
    )


def text_in(content: Any) -> str:
    """Return the text of a message's content, which some servers send in parts.

    Parts of other kinds, such as what a model that reasons has thought, are left out.
    """
    if isinstance(content, str):
        return whole_text(content)
    parts = content if isinstance(content, list) else ()
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return whole_text("".join(text for text in texts if isinstance(text, str)))


def whole_text(text: str) -> str:
    """Return `text` without halves of surrogate pairs, which neither files nor servers take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _violation(data: Any, schema: Mapping[str, Any]) -> str:
    """Return where and how `data` breaks `schema`; an empty string when it does not."""
    try:
        error = best_match(_validator(json.dumps(schema)).iter_errors(data))
    except (SchemaError, Unresolvable) as broken:
        raise ConfigurationError(
            f"The reply's JSON schema is itself invalid: {brief(str(broken))}. Correct the schema;"
            " references must stay inside it."
        ) from None
    if error is None:
        return ""
    if len(error.message) <= 300:
        return f"at {error.json_path}: {error.message}"
    # jsonschema puts the value first; when that is long, the rule that it breaks would be cut off.
    rule = brief(f"{error.validator}: {error.validator_value}", 200)
    return f"at {error.json_path}: {brief(error.message, 100)} (breaks {rule})"


def _rounded(data: Any) -> Any:
    """Return the data with its numbers rounded to twelve decimals."""
    if isinstance(data, float):
        return round(data, 12)
    if isinstance(data, list):
        return [_rounded(item) for item in data]
    if isinstance(data, dict):
        return {name: _rounded(item) for name, item in data.items()}
    return data


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Return what checks values against `schema`, in JSON: checking a schema itself is slow."""
    loaded = json.loads(schema)
    kind = validator_for(loaded, default=Draft202012Validator)
    kind.check_schema(loaded)
    # The empty registry keeps an outside `$ref` from being downloaded.
    return kind(loaded, registry=Registry())


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large a number")
    return value
