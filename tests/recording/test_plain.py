"""Conversions that are kept: what comes out is what `to_plain` says now, whatever was changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from lg_textgrad._hashing import to_plain
from lg_textgrad.recording.plain import LONG, Plainer


class Model(BaseModel):
    items: list = []
    name: str = "n"


@dataclass
class Data:
    items: list = field(default_factory=list)
    name: str = "n"


@dataclass(slots=True)
class Slotted:
    items: list = field(default_factory=list)


def call():
    return AIMessage("", tool_calls=[{"name": "t", "args": {"a": [1]}, "id": "1"}])


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3)
values = st.recursive(
    leaves
    | st.builds(HumanMessage, st.text())
    | st.builds(call)
    | st.builds(lambda t: HumanMessage([{"type": "text", "text": t}]), st.text()),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=2), inner, max_size=4)
    | st.tuples(inner, inner)
    | st.builds(lambda i: Model(items=[i]), inner)
    | st.builds(lambda i: Data([i]), inner)
    | st.builds(lambda i: Slotted([i]), inner),
    max_leaves=12,
)


def containers(value):
    """Everything in a value that can be changed in place."""
    if isinstance(value, list | dict):
        yield value
        for item in value if isinstance(value, list) else value.values():
            yield from containers(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from containers(item)
    elif isinstance(value, Model | Data | Slotted):
        yield value
        yield from containers(value.items)
    elif isinstance(value, HumanMessage | AIMessage):
        yield value
        yield from containers(value.content)
        for call in getattr(value, "tool_calls", ()):
            yield from containers(call["args"])


def objects(value):
    """At least as many as are kept of a value: a message has a list of calls with arguments."""
    return sum(5 if isinstance(c, HumanMessage | AIMessage) else 1 for c in containers(value))


def change(one):
    if isinstance(one, list):
        one.append("changed")
    elif isinstance(one, dict):
        one["changed"] = "changed"
    elif isinstance(one, HumanMessage | AIMessage):
        one.content = "changed"
    else:
        one.items = ["changed"]


@settings(max_examples=200, deadline=None)
@given(st.lists(values, max_size=4), st.data())
def test_kept_conversions_are_what_a_fresh_one_would_be(held, data):
    assume(objects(held) <= LONG)  # what is deep inside of more is looked at once, at the end
    plainer = Plainer()
    for _ in range(3):
        assert plainer.of(held) == to_plain(held)
        for value in held:
            assert plainer.of(value) == to_plain(value)
            assert not plainer.changed(value)
        assert not list(plainer.changes())
        found = list(containers(held))
        one = data.draw(st.sampled_from(found))
        before = to_plain(held)
        change(one)
        assert plainer.changed(held) == (to_plain(held) != before)


def test_growing_list_is_turned_into_the_same_objects():
    plainer = Plainer()
    messages = [HumanMessage(str(n)) for n in range(3)]
    first = plainer.of(messages)
    second = plainer.of([*messages, HumanMessage("new")])
    assert [a is b for a, b in zip(first, second, strict=False)] == [True] * 3


def test_change_inside_a_long_list_is_seen_by_the_look_at_all_of_it():
    plainer = Plainer()
    messages = [HumanMessage(str(n)) for n in range(LONG + 1)]
    plainer.of(messages)
    messages[3].content = "changed"
    assert not plainer.changed(messages)
    assert list(plainer.changes()) == [messages[3]]
    messages.append(HumanMessage("new"))
    assert plainer.changed(messages)


@pytest.mark.parametrize("value", [{1, 2}, frozenset("ab"), object, 1.5, b"x", float("nan"), {1: 2}])
def test_other_values_are_what_they_are_without(value):
    assert Plainer().of(value) == to_plain(value)
