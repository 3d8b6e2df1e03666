"""`anew`: a copy for one run, of everything that a node may change in place."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, Field

from lg_textgrad.copies import anew

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True, slots=True)
class Slotted:
    items: list


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")
    items: list[dict] = Field(max_length=1)


CALL = {"name": "f", "args": {"items": [1]}, "id": "1", "type": "tool_call"}


@pytest.mark.parametrize(
    ("value", "inside"),
    [
        ({"a": {"b": [1]}}, lambda v: v["a"]["b"]),
        (defaultdict(list, a=[1]), lambda v: v["a"]),
        (OrderedDict(a=[1]), lambda v: v["a"]),
        (({"a": [1]},), lambda v: v[0]["a"]),
        (Pair([1], [2]), lambda v: v.left),
        ([{1}], lambda v: v[0]),
        (Slotted([1]), lambda v: v.items),
        (Model(items=[{"a": 1}]), lambda v: v.items[0]),
        ([HumanMessage([{"type": "text", "text": "hi"}])], lambda v: v[0].content[0]),
        (AIMessage("", tool_calls=[CALL]), lambda v: v.tool_calls[0]["args"]["items"]),
    ],
)
def test_what_is_inside_is_equal_and_another_object(value, inside):
    copied = anew(value)
    assert copied == value
    assert type(copied) is type(value)
    assert inside(copied) is not inside(value)
    inside(copied).clear()
    assert inside(value)


def test_what_stands_in_two_places_still_does_and_cycles_end():
    shared: list = [1]
    value = {"a": shared, "b": {"c": shared}}
    value["itself"] = value
    copied = anew(value)
    assert copied["a"] is copied["b"]["c"]
    assert copied["itself"] is copied


def test_what_is_no_data_is_the_same_object():
    client, kind = object(), Model
    assert anew({"client": client, "kind": kind}) == {"client": client, "kind": kind}


class Frozen(dict):
    """A dict that nobody changes, as those of some libraries; a copy is the same one."""

    def __setitem__(self, key, value):
        raise TypeError("This is frozen.")

    def __copy__(self):
        return self


@dataclass
class Client:
    """What is no data, though it has fields."""

    url: str

    def __reduce__(self):
        raise TypeError("A connection cannot be copied.")


@pytest.mark.parametrize("value", [Frozen(a=[1]), Client("http://localhost")])
def test_what_refuses_to_be_copied_is_the_same_object(value):
    copied = anew({"it": value, "items": [1]})
    assert copied["it"] is value
    assert copied["items"] == [1]


def test_texts_and_numbers_are_not_looked_into(monkeypatch):
    def looked(kind):
        raise AssertionError(kind)

    monkeypatch.setattr("lg_textgrad.copies.field_names", looked)
    value = {"rows": [[0.5, 1, "two", None, True, b"3"]]}
    assert anew(value) == value
