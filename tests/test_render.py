"""What people see of a run: numbers in words, and why what was proposed was not tried."""

from __future__ import annotations

import io

from rich.console import Console

from lg_textgrad._render import Watch, show_result, show_spent
from lg_textgrad.result import Result, Scores, Spent
from lg_textgrad.run import Usage


def screen():
    return Console(file=io.StringIO(), width=300)


def test_one_call_is_no_calls():
    one = Usage(1, 1, prompt_tokens=5, completion_tokens=1, unpriced=1, saved_tokens=1)
    show_spent(people := screen(), Spent(one, {"critic": one}, 2.0))
    assert people.file.getvalue() == (
        "spent: 1 call, 5 + 1 tokens, 1 call of unknown price, 2 s\n"
        "  critic: 1 call, 6 tokens, 1 call of unknown price\n"
        "saved: 1 call, 1 token answered from the store in place of paid for again\n"
    )


def test_faults_are_told_in_words():
    faults = {"violation": 1, "rate_limited": 2, "truncated": 3}
    show_spent(people := screen(), Spent(Usage(), {}, 1.0, faults))
    told = "2 rate limited, 3 cut off, 1 against the schema asked for"
    assert f"faults of the models or on the way to them: {told}\n" in people.file.getvalue()


def test_what_was_proposed_and_not_tried_is_told_with_why_and_once():
    watch, refused = Watch(people := screen()), ["triage: It is empty.", "triage: It is empty."]
    watch("proposals", {"step": 1, "proposals": [], "refused": refused})
    watch("proposals", {"step": 2, "proposals": [], "refused": [*refused, "writer: It [/b] quotes."]})
    said = [line.split("  ", 2)[-1] for line in people.file.getvalue().splitlines()]
    assert said == ["not tried: triage: It is empty. (2 times)", "not tried: writer: It [/b] quotes."]


def test_run_in_which_nothing_could_be_tried_says_so():
    for rejected, told in ((0, True), (2, False)):
        result = Result(
            None, "steps", Scores(0.5, None), Scores(0.5, None), None, {"a": "One."}, {"a": "One."}, {}, (),
            1, 0, rejected, Spent(Usage(), {}, 1.0),
        )  # fmt: skip
        show_result(people := screen(), result)
        said = " ".join(people.file.getvalue().split())
        assert f"1 step, 0 accepted, {rejected} rejected; stopped by steps" in said
        assert ("Nothing was proposed that could be tried." in said) is told
