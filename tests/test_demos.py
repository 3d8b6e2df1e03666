"""Demonstrations are part of a prompt's text, and are read back from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.demos import Demo, render_demos, split_demos

PIECES = st.sampled_from(["a", "\n", " ", "Input: ", "Output: ", "Examples:", "\n\n", "x:"])
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@given(TEXTS)
def test_every_text_is_what_its_parts_render_to(text):
    assert render_demos(*split_demos(text)) == text


@given(TEXTS, st.lists(st.builds(Demo, TEXTS, TEXTS), max_size=4))
def test_readable_demonstrations_are_read_back_as_they_were(instruction, demos):
    demos = [d for d in demos if d.readable]
    instruction, none = split_demos(instruction)
    if not none:
        assert split_demos(render_demos(instruction, demos)) == (instruction, tuple(demos))


@pytest.mark.parametrize(
    ("inputs", "output", "readable"),
    [
        ("a", "b", True),
        ("two\nlines", "and\n\nmore", True),
        ("", "", True),
        ("a", "b\n\nInput: c\nOutput: d", False),
        ("a\nOutput: b", "c", False),
        ("a\n\nExamples:\n\nInput: x", "b", False),
    ],
)
def test_what_would_be_read_as_something_else_is_known(inputs, output, readable):
    assert Demo(inputs, output).readable is readable
