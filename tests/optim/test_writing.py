"""Texts from a model: asked twice at most, kept to promises, told as edits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.errors import ModelReplyError, ParameterError
from lg_textgrad.optim.writing import Writer, all_edits, edits_between, promises, quoting, with_instruction
from lg_textgrad.parameter import apply_edits
from tests.parts import Scripted

LINES = st.lists(st.sampled_from(["a", "b", "c", "", "a b"]), min_size=1, max_size=7).map("\n".join)


@given(LINES, LINES)
def test_edits_between_two_texts_turn_one_into_the_other(before, after):
    edits = edits_between("p", before, after, gradients=["g"], why="w")
    assert apply_edits(before, edits) == after
    assert (edits == ()) == (before == after)
    assert all((e.parameter, e.gradients, e.why) == ("p", ("g",), "w") for e in edits)


def test_edits_leave_the_lines_that_stay_alone():
    edits = edits_between("p", "Keep.\nOld.\nStay.", "Keep.\nNew.\nMore.\nStay.")
    assert [(e.op, e.line, e.text) for e in edits] == [("replace", 2, "New."), ("add", 2, "More.")]


def test_edits_of_a_candidate_leave_demonstrations_out():
    before = {"a": "Old.\n\nExamples:\n\nInput: 1\nOutput: 2", "b": "Be."}
    after = {"a": "New.\n\nExamples:\n\nInput: 3\nOutput: 4", "b": "Be."}
    assert all_edits(before, after, gradients={"a": ("g",)}) == (tg.Edit("a", "replace", 1, "New.", ("g",)),)
    assert with_instruction(before, "a", "Newer.")["a"] == "Newer.\n\nExamples:\n\nInput: 1\nOutput: 2"


def writer(*replies):
    said = iter(replies)
    model = Scripted(lambda r: next(said))
    return Writer(model, seed=5), model


def no_shouting(text):
    return "It shouts." if text.isupper() else None


QUESTION = [{"role": "user", "content": "Write."}]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"instruction": "SHOUT"}, "It shouts."),
        ({"instruction": "  \n"}, "It is empty."),
        ({"instruction": "x" * 40}, "cut off at 40 characters"),
        (ModelReplyError("The reply is no JSON."), "The reply is no JSON."),
    ],
)
async def test_unusable_reply_is_asked_for_again_with_the_reason(bad, why):
    by, model = writer(bad, {"instruction": " Speak.\n"})
    assert await by.awrite(QUESTION, no_shouting, longest=40) == "Speak."
    first, second = model.requests
    assert [first.seed, second.seed] == [5, 6]
    assert list(second.messages[:1]) == QUESTION
    assert re.search(rf"<(data-\w+)>\n[^<]*{why}[^<]*\n</\1>", second.messages[-1]["content"])
    by, model = writer(bad, bad)
    with pytest.raises(ParameterError, match=why):
        await by.awrite(QUESTION, no_shouting, longest=40)
    assert len(model.requests) == 2


def test_words_of_a_run_are_quoted_only_in_new_lines():
    said = "please do tell me where my parcel is now"
    refusal = quoting([said], now="Say: tell me where my parcel is.")
    assert refusal("Be kind.\nSay: tell me where my parcel is.") is None
    assert "quotes what was said in a run: 'tell me where my parcel is'" in refusal("Then: Tell me where my parcel is!")
    assert refusal("Tell me where my bill is.") is None


def test_promises_are_told_in_words():
    p = tg.Parameter("p", "Hi {user}. Never lie.", locked=["Never lie."], forbidden=["lorem"], max_tokens=40)
    assert promises(p) == (
        "Keep {user}.\nKeep these words as they are: Never lie.\nNever use: lorem.\nAt most 30 words."
    )
    assert promises(tg.Parameter("q", "Hi.")) == ""
