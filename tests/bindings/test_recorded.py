"""Values and exceptions of tools come back as the same objects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath, Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.types import Command, Send
from pydantic import BaseModel, ConfigDict, PrivateAttr

from lg_textgrad.bindings.recorded import (
    ReplayedToolError,
    UnrecordableError,
    decode,
    decode_error,
    encode,
    encode_error,
)


class Colour(Enum):
    RED = "red"


class Order(BaseModel):
    number: int
    tags: list[str] = []


class Hit(BaseModel):
    model_config = ConfigDict(extra="allow")
    title: str = ""
    rank: int | None = None
    _from: str = PrivateAttr(default="nowhere")
    _lock: object = PrivateAttr(default=None)


class Busy(ToolException):
    def __init__(self, text, status=500):
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Point:
    x: int
    seen: set = field(default_factory=set)


def through(value, call_id=None, other=None):
    return decode(json.loads(json.dumps(encode(value, call_id))), other or call_id)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.datetimes() | st.dates() | st.timedeltas() | st.uuids() | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.tuples(inner, inner) | st.dictionaries(st.just("$"), inner),
    max_leaves=8,
)  # fmt: skip


@given(plain)
def test_plain_values_come_back_as_they_were(value):
    back = through(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Order(number=3, tags=["a"]), Point(1, {2}), Path("a/b"), time(3, 4),
        datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2), timedelta(1, 2, 3), Decimal("1.20"),
        UUID("039e60f2-f8b5-495c-9554-3fa0073b9693"), {1: "a"}, {"$": "call"}, (1, (2,)), frozenset({1}), float("inf"), b"\x00",
        Document("text", metadata={"n": 1}), [Order(number=1)], {"deep": {"er": Colour.RED}},
    ],
    ids=str,
)  # fmt: skip
def test_objects_come_back_as_they_were(value):
    assert through(value) == value
    assert type(through(value)) is type(value)


def test_messages_and_commands_come_back_as_answers_to_the_call_that_is_asked_now():
    command = Command(
        goto=[Send("billing", {"q": 1}), "end"],
        update={"messages": [ToolMessage("done", tool_call_id="call_1"), AIMessage("x")]},
    )
    back = through(command, "call_1", "call_2")
    said = back.update["messages"]
    assert (said[0].content, said[0].tool_call_id, said[1].content) == ("done", "call_2", "x")
    assert (back.goto[0].node, back.goto[0].arg, back.goto[1]) == ("billing", {"q": 1}, "end")


@pytest.mark.parametrize("value", [object(), lambda: 1, iter([]), [object()], {"a": object()}])
def test_what_has_no_form_is_told(value):
    with pytest.raises(UnrecordableError):
        encode(value)


def test_class_that_is_not_under_its_path_is_not_recorded():
    class Local(BaseModel):
        x: int = 1

    with pytest.raises(UnrecordableError):
        encode(Local())


@pytest.mark.parametrize("path", ["os:system", "subprocess:Popen", "nowhere:At", "json:nothing"])
def test_path_to_something_else_is_not_rebuilt(path):
    with pytest.raises(UnrecordableError):
        decode({"$": "model", "t": path, "v": {}})


class Odd(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


@pytest.mark.parametrize("error", [ValueError("bad", 3), KeyError("x"), ToolException("no order")])
def test_exceptions_come_back_as_they_were(error):
    back = decode_error(json.loads(json.dumps(encode_error(error))))
    assert (type(back), back.args, str(back)) == (type(error), error.args, str(error))


@pytest.mark.parametrize("error", [Odd(4, "teapot"), type("Gone", (Exception,), {})("away"), ValueError(object)])
def test_exception_that_cannot_be_rebuilt_keeps_its_name_and_text(error):
    back = decode_error(json.loads(json.dumps(encode_error(error))))
    assert isinstance(back, ReplayedToolError)
    assert (type(back).__name__, str(back)) == (type(error).__name__, str(error))


def test_pure_paths_are_no_paths():
    with pytest.raises(UnrecordableError):
        encode(PurePosixPath("a"))


def test_model_comes_back_with_what_it_has_besides_its_fields():
    hit = Hit(title="a", url=Point(1))
    hit._from, hit._lock = "there", object()  # what nobody hands on is left out
    again = through(hit)
    assert again.url == Point(1)
    assert again._from == "there"
    assert again.model_dump(exclude_unset=True) == hit.model_dump(exclude_unset=True)
    assert through(Hit(title="b")) == Hit(title="b")
    old = {name: part for name, part in encode(Hit(title="c", rank=1)).items() if name in ("$", "t", "v")}
    assert decode(old) == Hit(title="c", rank=1)  # as earlier versions recorded it


def test_artifact_is_the_object_that_it_was():
    said = ToolMessage("x", tool_call_id="c", artifact=Point(1))
    assert through(said).artifact == Point(1)
    command = through(Command(update={"messages": [said]}))
    assert command.update["messages"][0].artifact == Point(1)
    with pytest.raises(UnrecordableError):
        encode(ToolMessage("x", tool_call_id="c", artifact=object()))


def test_exception_comes_back_with_its_attributes():
    error = Busy("busy", status=429)
    error.client = object()
    again = decode_error(json.loads(json.dumps(encode_error(error))))
    assert type(again) is Busy
    assert vars(again) == {"status": 429}
