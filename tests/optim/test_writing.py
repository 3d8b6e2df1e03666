"""New instructions are kept to promises and told as edits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.optim.rewriting import read_whole
from lg_textgrad.optim.writing import all_edits, edits_between, promises, with_instruction
from lg_textgrad.parameter import apply_edits

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


def test_whole_rewrite_of_windows_lines_leaves_those_that_stay_alone():
    p = tg.Parameter("p", "Keep.\r\nOld.\r\nStay.")
    for reply in ("Keep.\nNew.\nStay.", "Keep.\r\nNew.\r\nStay."):
        edits = read_whole(p, {"prompt": reply}, ["g"])
        assert [(e.op, e.line, e.text) for e in edits] == [("replace", 2, "New.\r")]


def test_edits_of_a_candidate_leave_demonstrations_out():
    before = {"a": "Old.\n\nExamples:\n\nInput: 1\nOutput: 2", "b": "Be."}
    after = {"a": "New.\n\nExamples:\n\nInput: 3\nOutput: 4", "b": "Be."}
    assert all_edits(before, after, gradients={"a": ("g",)}) == (tg.Edit("a", "replace", 1, "New.", ("g",)),)
    assert with_instruction(before, "a", "Newer.")["a"] == "Newer.\n\nExamples:\n\nInput: 1\nOutput: 2"


def test_promises_are_told_in_words():
    p = tg.Parameter("p", "Hi {user}. Never lie.", locked=["Never lie."], forbidden=["lorem"], max_tokens=40)
    assert promises(p) == (
        "Keep {user}.\nKeep these words as they are: Never lie.\nNever use: lorem.\nAt most 30 words."
    )
    assert promises(tg.Parameter("q", "Hi.")) == ""
