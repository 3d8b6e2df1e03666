"""A candidate's changes: numbered, and left out one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.changes import Change, Refused, changes_of, lines_of, numbered, without
from lg_textgrad.demos import Demo, render_demos, split_demos

LINES = st.lists(st.sampled_from(["", "a", "b", "c", "Say x."]), max_size=6).map(lambda lines: "\n".join(["Top.", *lines]))
DEMOS = st.lists(st.builds(Demo, st.sampled_from("pqr"), st.sampled_from("st")), max_size=3)
CANDIDATES = st.fixed_dictionaries({n: st.builds(render_demos, LINES, DEMOS) for n in ("one", "two")})


@given(CANDIDATES, CANDIDATES)
def test_without_any_it_is_after_and_without_all_it_is_before(before, after):
    found = changes_of(before, after)
    assert [c.number for c in found] == list(range(1, len(found) + 1))
    assert without(before, after, ()) == after
    assert without(before, after, {c.number for c in found}) == before


@given(CANDIDATES, CANDIDATES, st.data())
def test_what_is_left_out_is_undone_and_the_rest_is_done(before, after, data):
    found = changes_of(before, after)
    numbers = data.draw(st.sets(st.sampled_from([c.number for c in found]))) if found else set()
    left = without(before, after, numbers)
    # Seen from either side, nothing else has changed: as many lines and demonstrations come and go.
    kept = [c for c in found if c.number not in numbers]
    gone = [c for c in found if c.number in numbers]
    for name in before:
        for one, two, between in ((before, left, kept), (left, after, gone)):
            come_and_go = [(c.before is None) - (c.after is None) for c in between if c.parameter == name]
            assert _size(two[name]) - _size(one[name]) == sum(come_and_go)


def _size(text):
    instruction, demos = split_demos(text)
    return len(instruction.split("\n")) + len(demos)


def test_lines_and_demonstrations_are_numbered_through_all_parameters():
    before = {"a": "One.\nReply in two words.", "b": "Same.", "c": render_demos("Show.", [Demo("x", "y")])}
    after = {"a": "One.\nMore.\nReply in three words.", "b": "Same.", "c": render_demos("Show.", [Demo("x", "y"), Demo("p", "q")])}
    assert [str(c) for c in changes_of(before, after)] == [
        "a: + More.", "a: Reply in two words. -> Reply in three words.", "c: + Input: p\nOutput: q",
    ]  # fmt: skip
    assert list(numbered(before, after)) == [
        ("a", " ", "One.", None), ("a", "+", "More.", 1), ("a", "-", "Reply in two words.", 2),
        ("a", "+", "Reply in three words.", 2),
        ("c", " ", "Show.", None), ("c", " ", "Input: x\nOutput: y", None), ("c", "+", "Input: p\nOutput: q", 3),
    ]  # fmt: skip
    assert without(before, after, {1}) == {**after, "a": "One.\nReply in three words."}
    assert without(before, after, {2, 3}) == {**before, "a": "One.\nMore.\nReply in two words."}
    assert [str(c) for c in changes_of(after, before)][0] == "a: - More."
    # One line for one other is one change, however unlike they are.
    assert [str(c) for c in changes_of({"a": "Two."}, {"a": "Three."})] == ["a: Two. -> Three."]


def test_refused_changes_are_known_again_whatever_their_marks_and_capitals():
    shown = Demo("What is open?", "Nothing.")
    refused = Refused()
    line, loss = Change(1, "a", None, "Always sell a plan."), Change(2, "a", "Be kind.", None)
    swap, demo = Change(3, "b", "Old.", "New."), Change(4, "b", None, shown)
    refused.add([line, loss, swap, demo])
    assert refused.find("a", "Be kind.", "Be kind.\n- always SELL a plan!") == line
    assert refused.find("a", "Be kind.\nAlways sell a plan.", "Be kind.\nALWAYS sell a plan.") is None  # is there
    assert refused.find("a", "Be kind.\nMore.", "More.") == loss
    assert refused.find("a", "More.", "Be brief.") is None
    assert refused.find("b", "Old.", "New.") == swap
    assert refused.find("b", "Old.", "Other.") is None  # the old line may go for another one
    assert refused.find("b", "Old.", render_demos("Old.", [shown])) == demo
    assert refused.find("c", "Be kind.", "New.\nAlways sell a plan.") is None


def test_lines_that_compare_the_other_way_are_not_the_refused_ones():
    refused = Refused()
    for text in ("Refund if x > 5.", "Escalate when a != b."):
        refused.add([Change(1, "a", None, text)])
    for text in ("Refund if x < 5.", "refund if x <= 5.", "Escalate when a == b."):
        assert refused.find("a", "Top.", f"Top.\n{text}") is None, text
    for text in ("> Refund if x > 5!", "refund  if x >5", "- escalate when A != B"):
        assert refused.find("a", "Top.", f"Top.\n{text}") is not None, text


def test_refused_line_does_not_come_back_as_a_variant_of_a_line_that_stays_or_as_a_copy_of_it():
    refused = Refused()
    swap, copy = Change(1, "a", "Be polite.", "- BE POLITE!"), Change(1, "b", None, "Be brief.")
    refused.add([swap, copy])
    assert refused.find("a", "Be polite.\nTop.", "- BE POLITE!\nTop.\nMore.") == swap
    assert refused.find("a", "Be polite.", "Be polite.\nMore.") is None
    assert refused.find("b", "Be brief.\nTop.", "Be brief.\nTop.\nBe brief.") == copy
    assert refused.find("b", "Be brief.\nTop.", "Be brief.\nTop.\nMore.") is None


def test_move_of_a_line_that_was_refused_does_not_come_back():
    before, after = {"a": "One.\nTwo.\nThree."}, {"a": "Two.\nThree.\nOne."}
    refused = Refused()
    refused.add(changes_of(before, after))
    assert refused.find("a", before["a"], "Two.\nThree.\nOne.\nMore.") is not None
    assert refused.find("a", before["a"], "One.\nTwo.\nThree.\nMore.") is None


def test_refused_loss_of_a_line_is_no_refusal_to_move_it():
    refused = Refused()
    refused.add([Change(1, "a", "One.", None)])
    assert refused.find("a", "One.\nTwo.\nThree.", "Two.\nThree.\nOne.") is None


def test_blank_lines_that_were_refused_with_others_are_no_reason_to_refuse_what_follows():
    refused = Refused()
    gone = Change(3, "a", "Old.", "")
    refused.add([Change(1, "a", None, ""), Change(2, "a", None, "Sell."), gone])
    assert refused.find("a", "Top.\nOld.", "Top.\nOld.\n\nBe brief.") is None
    assert refused.find("a", "Top.\n\nOld.", "Top.\n\n") == gone  # whatever blank lines there are


TEXTS = st.lists(st.sampled_from(["", "a", "b", "One line.", "One lime.", "- x", "é\u2028"]), max_size=8).map("\n".join)


@given(TEXTS, TEXTS)
def test_lines_of_two_texts_are_each_of_them_in_order(before, after):
    lines = list(lines_of(before, after))
    assert "\n".join(text for sign, text in lines if sign != "+") == before
    assert "\n".join(text for sign, text in lines if sign != "-") == after


def test_empty_text_has_no_line_that_a_person_would_be_shown_as_gone():
    assert list(lines_of("", "One.\nTwo.")) == [("+", "One."), ("+", "Two.")]
    assert list(lines_of("One.", "")) == [("-", "One.")]
    assert [str(c) for c in changes_of({"a": ""}, {"a": "One."})] == ["a: + One."]


def test_line_that_became_another_stands_beside_it():
    assert list(lines_of("One.\nBe kind to all.", "New.\nOne.\nBe kind to everybody.\nEnd.")) == [
        ("+", "New."), (" ", "One."), ("-", "Be kind to all."), ("+", "Be kind to everybody."), ("+", "End."),
    ]  # fmt: skip
