"""Values and exceptions of tools as JSON data, and back as the same objects.

What is rebuilt from a path (`module:Name`) is only ever a class of the kinds named here, and was
found under that path when it was recorded.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict
from langchain_core.tools import ToolException
from langgraph.types import Send
from pydantic import BaseModel

_TAG = "$"


class UnrecordableError(Exception):
    """A value has no form in which it could be kept and given back."""


class ReplayedToolError(ToolException):
    """A recorded exception whose own class is not to be had any more."""


_TEXTS: Mapping[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "uuid": (UUID, str, UUID),
    "decimal": (Decimal, str, Decimal),
    "path": (Path, str, Path),
    "float": (float, repr, float),
    "bytes": (bytes, lambda b: base64.b64encode(b).decode(), base64.b64decode),
}
_SEQUENCES: Mapping[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any, call_id: str | None = None) -> Any:
    """Return `value` as JSON data. Raises `UnrecordableError` when it has no such form.

    `call_id` is the id of the tool call that it answers: another call will have another.
    """

    def again(part: Any) -> Any:
        return encode(part, call_id)

    if isinstance(value, str) and type(value) is str:
        return {_TAG: "call"} if call_id and value == call_id else value
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is list:
        return [again(part) for part in value]
    if type(value) is dict:
        if all(type(name) is str for name in value) and _TAG not in value:
            return {name: again(part) for name, part in value.items()}
        return {_TAG: "dict", "v": [[again(k), again(v)] for k, v in value.items()]}
    for tag, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {_TAG: tag, "v": [again(part) for part in value]}
    for tag, (kind, write, _) in _TEXTS.items():
        if isinstance(value, kind) and not isinstance(value, Enum):
            return {_TAG: tag, "v": write(value)}
    if isinstance(value, timedelta):
        return {_TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, BaseMessage):
        said = message_to_dict(value)
        if getattr(value, "artifact", None) is not None:  # as it is: it would be a dict by now
            said["data"]["artifact"] = value.artifact  # type: ignore[attr-defined]
        return {_TAG: "message", "v": again(said)}
    if isinstance(value, Send):
        return {_TAG: "send", "v": [value.node, again(value.arg)]}
    if isinstance(value, Enum):
        return {_TAG: "enum", "t": _path(value), "v": again(value.value)}
    if isinstance(value, BaseModel):
        own = type(value).model_fields
        parts = {name: again(getattr(value, name)) for name in own}
        found = {_TAG: "model", "t": _path(value), "v": parts}
        if value.model_extra:
            found["extra"] = again(dict(value.model_extra))
        if private := _as_far(value.__pydantic_private__ or {}, call_id):
            found["private"] = private
        if own.keys() - value.model_fields_set:
            found["set"] = sorted(value.model_fields_set)
        return found
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        parts = {name: again(getattr(value, name)) for name in fields}
        return {_TAG: "dataclass", "t": _path(value), "v": parts}
    raise UnrecordableError(f"{type(value).__module__}.{type(value).__qualname__}")


def decode(data: Any, call_id: str | None = None) -> Any:
    """Return the value that `encode` made `data` from, as the answer to the call `call_id`.

    Raises `UnrecordableError` when a class of it is not there any more.
    """

    def again(part: Any) -> Any:
        return decode(part, call_id)

    if isinstance(data, list):
        return [again(part) for part in data]
    if not isinstance(data, dict):
        return data
    tag = data.get(_TAG)
    value: Any = data.get("v")
    if tag is None:
        return {name: again(part) for name, part in data.items()}
    if tag == "call":
        return call_id or ""
    if tag == "dict":
        return {again(k): again(v) for k, v in value}
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](again(part) for part in value)
    if tag in _TEXTS:
        return _TEXTS[tag][2](value)
    if tag == "timedelta":
        return timedelta(*value)
    if tag == "message":
        return messages_from_dict([again(value)])[0]
    if tag == "send":
        return Send(value[0], again(value[1]))
    kind = _class(data["t"])
    if tag == "enum":
        return kind(again(value))
    parts = {name: again(part) for name, part in value.items()}
    if tag == "model" and issubclass(kind, BaseModel):
        given = {*data.get("set", parts), *data.get("extra", ())}
        made = kind.model_construct(given, **parts, **again(data.get("extra", {})))
        if made.__pydantic_private__ is not None:
            made.__pydantic_private__.update(again(data.get("private", {})))
        return made
    if tag == "dataclass" and hasattr(kind, "__dataclass_fields__"):
        return kind(**parts)
    raise UnrecordableError(data["t"])


def encode_error(error: Exception, call_id: str | None = None) -> dict[str, Any]:
    """Return an exception as JSON data: its class, arguments and text."""
    found: dict[str, Any] = {"name": type(error).__name__, "text": str(error)}
    with suppress(UnrecordableError):  # its name and its text then stand for it
        found |= {"args": encode(list(error.args), call_id), "t": _path(error)}
    if more := _as_far(vars(error), call_id):
        found["more"] = more
    return found


def _as_far(values: Mapping[str, Any], call_id: str | None) -> dict[str, Any]:
    """Return what has a form of values that nobody hands on, such as a client or a lock."""
    found = {}
    for name, value in values.items():
        with suppress(UnrecordableError):
            found[name] = encode(value, call_id)
    return found


def decode_error(data: Mapping[str, Any], call_id: str | None = None) -> Exception:
    """Return the exception again; one of another class, with its name, where it can't be had."""
    error = _rebuilt(data, call_id)
    if error is None:
        named: Any = type(str(data["name"]), (ReplayedToolError,), {})
        error = named(data["text"])
    for name, value in data.get("more", {}).items():  # such as a status, by which nodes decide
        with suppress(Exception):
            vars(error)[name] = decode(value, call_id)
    assert isinstance(error, Exception), error
    return error


def _rebuilt(data: Mapping[str, Any], call_id: str | None) -> Exception | None:
    with suppress(Exception):  # whatever a constructor of somebody's does
        error = _class(data["t"])(*decode(data["args"], call_id))
        if isinstance(error, Exception) and str(error) == data["text"]:
            return error
    return None


def _path(value: object) -> str:
    """Return where the value's class is found. Raises `UnrecordableError` when it isn't there."""
    path = f"{type(value).__module__}:{type(value).__qualname__}"
    try:
        same = _class(path) is type(value)
    except UnrecordableError:
        same = False
    if not same:
        raise UnrecordableError(path)
    return path


def _class(path: str) -> Any:
    """Return the class at a path, if it is of a kind that is rebuilt."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UnrecordableError(path) from error
    rebuilt = isinstance(found, type) and (
        issubclass(found, BaseModel | Enum | Exception) or dataclasses.is_dataclass(found)
    )
    if not rebuilt:
        raise UnrecordableError(path)
    return found
