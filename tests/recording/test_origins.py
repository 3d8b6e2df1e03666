"""Where a value came from that code handed on: by identity, by what it is, by its pieces."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from lg_textgrad.recording.origins import Known, constants_of

STYLE = "formal"


def helper(text, mark="!", *, limit=40):
    return text


def made_with_constants(x):
    inner = lambda: "nested"  # noqa: E731
    return helper(f"Write about {x} in {STYLE} style", limit=7), inner, ("in a tuple",)


def known(**values):
    found = Known(constants_of(made_with_constants))
    for at, (name, value) in enumerate(values.items(), start=1):
        found.add(value, name, at)
    return found


def made_of(found, value, before=99):
    origins = found.made_of(value, before)
    return None if origins is None else set(origins)


def test_constants_are_literals_module_constants_and_defaults_of_what_is_called():
    found = {value for _, value in constants_of(made_with_constants)}
    assert {"Write about ", " in ", " style", "nested", "in a tuple", "formal", "!", 40, 7} <= found
    assert constants_of(len) == frozenset()


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("apple", {"a"}),
        (["apple", "pear"], {"a", "b"}),
        ({"x": ["apple", {"y": "pear"}]}, {"a", "b"}),
        (("apple", None, "formal", 40), {"a"}),
        (f"Write about {'apple'} in {STYLE} style", {"a"}),
        ("applepear", {"a", "b"}),
        ("apple!", {"a"}),
        (HumanMessage("apple"), {"a"}),
        ([], set()),
        ("nested", set()),
        (7, set()),
        (8, None),
        ("APPLE", None),
        ("apple, really", None),
        (["apple", "something else"], None),
        (object(), None),
    ],
)
def test_value_is_looked_up_by_what_it_is_and_what_it_is_made_of(value, origins):
    assert made_of(known(a="apple", b="pear"), value) == origins


def test_only_what_is_handed_on_as_it_is_counts_as_a_whole():
    found = known(a="apple", b="pear")
    assert set(found.whole("apple", 99)) == {"a"}
    assert set(found.whole(["apple", "pear"], 99)) == {"a", "b"}
    assert found.whole("apple!", 99) is None
    assert found.whole(HumanMessage("apple"), 99) is None
    assert found.whole("nested", 99) is None


def test_what_came_back_later_was_not_there_yet():
    found = known(a="apple", b="pear")
    assert made_of(found, "pear", before=2) is None
    assert made_of(found, "pear", before=3) == {"b"}


def test_equal_values_come_from_all_who_made_them():
    assert made_of(known(a="yes", b="yes"), "yes") == {"a", "b"}


def test_objects_are_known_by_identity_and_their_parts_too():
    class Thing(BaseModel):
        x: str

    thing, same = Thing(x="one thing"), Thing(x="another")
    reply = AIMessage("said", tool_calls=[{"name": "t", "args": {"q": "asked"}, "id": "1"}])
    found = known(thing=thing, reply=reply)
    assert made_of(found, [thing]) == {"thing"}
    assert made_of(found, "one thing") == {"thing"}
    assert made_of(found, same) is None
    assert made_of(found, reply.tool_calls[0]["args"]) == {"reply"}
    assert made_of(found, "asked") == {"reply"}


def test_values_from_outside_come_from_nobody():
    found = known(a="apple")
    found.add("resumed with", None, 0)
    assert made_of(found, "resumed with") == set()
    assert made_of(found, ["apple", "resumed with"]) == {"a"}


def test_new_parts_get_an_origin_and_known_ones_keep_theirs():
    found = known(a="apple")
    found.add_new(["apple", "total"], ["b"], 5)
    assert made_of(found, "apple") == {"a"}
    assert made_of(found, "total") == {"b"}


def test_more_than_a_person_could_have_meant_is_not_looked_through():
    assert made_of(known(a="apple"), ["apple"] * 10_000) is None
