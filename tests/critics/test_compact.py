"""A whole run as text of so many tokens."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.critics import Blame, RunRequest, TraceCritic
from lg_textgrad.critics.compact import compacted, fits, level, size
from lg_textgrad.critics.run_case import case
from lg_textgrad.run import Execution, Feedback, ModelCall, ToolCall
from tests.parts import Scripted

MARK = re.compile(r" ?\[… \d+ characters cut …\] ?")


def step(name, reads, writes, given_, said, *, prompt=None, order=0, **more):
    """An execution of a model that read `reads` and wrote `writes`."""
    messages = ({"role": "system", "content": "S"}, {"role": "human", "content": given_})
    more.setdefault("model_calls", (ModelCall("m", messages, {"role": "ai", "content": said}),))
    return Execution(
        f"{name}#0", f"{name}:1", name, order + 1, order, {c: "" for c in reads},
        writes=tuple((c, said) for c in writes), reads=frozenset(reads),
        prompts={name: prompt or f"You are {name}."}, **more,
    )  # fmt: skip


def request_for(executions, comment="It is wrong.", blames=None, trainable=None, score=0.0):
    names = [n for e in executions for n in e.prompts]
    parameters = {n: tg.Parameter(n, f"You are {n}.") for n in names}
    outputs = dict(executions[-1].writes)
    run = tg.Run("r", tg.Example("e", {}), "c", outputs, tuple(executions), parameters=parameters)
    scored = tg.Scored(run, score, (Feedback("right", score, comment),))
    trace = tg.Trace.of(run)
    trainable = set(names if trainable is None else trainable)
    last = {executions[-1].id: [Blame(comment, 1.0, "right")]}
    return RunRequest(
        scored, trace, trainable, trace.worth_visiting(trainable), {**last, **(blames or {})}, 0.1
    )


def chain(count, said="s", given_=None, **more):
    return [
        step(f"n{i}", [f"k{i}"], [f"k{i + 1}"], f"{given_ or 'g'} {i}", f"{said} {i}", order=i, **more)
        for i in range(count)
    ]


def test_short_run_is_shown_as_it_is():
    request = request_for(chain(3))
    shown = compacted(request, 500)
    assert [(s.number, s.given, s.wrote) for s in shown.steps] == [
        (1, "g 0", "s 0"), (2, "g 1", "s 1"), (3, "g 2", "s 2"),
    ]  # fmt: skip
    assert (shown.complaint, shown.left_out) == ("It is wrong.", 0)
    assert shown.prompts == {f"n{i}": f"You are n{i}." for i in range(3)}


@given(st.lists(st.integers(0, 900), min_size=1, max_size=12), st.integers(1, 5000))
def test_limit_is_the_greatest_that_fits(sizes, room):
    def together(limit):
        return sum(min(s, limit) for s in sizes)

    found = level(sizes, room)
    best = max((n for n in range(max(sizes) + 1) if together(n) <= room), default=0)
    # The least that says something is given whatever the room.
    assert found == max(60, *sizes) if together(max(sizes)) <= room else found == max(60, best)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=70),
    st.integers(100, 2500),
    st.booleans(),
)
def test_what_is_asked_about_a_run_fits_its_tokens(sizes, max_tokens, brief):
    steps = [
        step(f"n{i}", [f"k{i}"], [f"k{i + 1}"], "g" * a, "w" * b, order=i)
        for i, (a, b) in enumerate(sizes)
    ]
    request = request_for(steps)
    shown = compacted(request, max_tokens, brief=brief)
    values = [shown.complaint, *shown.prompts.values(), *(v for s in shown.steps for v in (s.given, s.wrote))]
    least = len(shown.steps) <= 2 and max(len(MARK.sub("", v)) for v in values) <= 60 + 32
    within = len(case(shown, request, brief=brief)) <= 4 * max_tokens
    assert within or (max_tokens < 400 and least)
    assert shown.left_out == len(sizes) - len(shown.steps)
    cut = shown.left_out or any(MARK.search(v) for v in values)
    assert fits(request, max_tokens, brief=brief) is (within and not cut)


@pytest.mark.parametrize("count", [2, 10, 44, 300])
@pytest.mark.parametrize("words", [3, 300])
async def test_what_is_sent_fits_its_tokens(count, words):
    steps = chain(count, said="word " * words, given_="other " * words, error="Traceback: " + "at line 7 " * words)
    request = request_for(steps, comment="It is wrong. " * words)
    for p in request.scored.run.parameters.values():
        p.role = "writes a part of the report that people read"
    model = Scripted(lambda _: {"faults": [{"step": f"n{count - 1}", "general_rule": "Be kind.", "weight": 1.0}]})
    await TraceCritic(model, brief=True).acriticize_run(request)
    [sent] = model.requests
    case = sent.messages[1]["content"]
    assert len(case) <= 4 * 2000
    assert words == 3 or len(case) > 0.8 * 4 * 2000  # the room is used


def test_long_note_is_cut_like_any_value():
    steps = chain(3)
    blames = {"n1#0": [Blame("It failed: " + "at line 7 " * 2000, 0.5, "error")]}
    request = request_for(steps, blames=blames)
    shown = compacted(request, 500)
    assert MARK.search(shown.steps[1].notes[0])
    assert len(case(shown, request, brief=True)) <= 4 * 500
    assert not fits(request, 500)


def test_what_an_earlier_step_wrote_is_referred_to():
    long = "A sentence that is long enough to be worth a reference."
    steps = [
        step("a", ["q"], ["x"], "the question", long),
        step("b", ["x"], ["y"], f"Text: {long} End.", "short", order=1),
        step("c", ["y"], ["z"], "short and more", "done", order=2),
    ]
    shown = compacted(request_for(steps), 500)
    assert [s.given for s in shown.steps] == [
        "the question", "Text: [what step 1 wrote] End.", "short and more",
    ]  # fmt: skip


def test_long_values_are_cut_around_what_the_complaint_speaks_of():
    said = "x " * 900 + "the zebra is blue " + "y " * 900
    shown = compacted(request_for([step("a", ["q"], ["x"], "g", said)], "No 'zebra is blue'!"), 100)
    assert "the zebra is blue" in shown.steps[0].wrote
    assert MARK.search(shown.steps[0].wrote)


def test_earliest_steps_are_left_out_unless_something_visibly_went_wrong():
    steps = chain(30)
    blames = {"n2#0": [Blame("The reply was cut off.", 0.5, "cut_off")]}
    shown = compacted(request_for(steps, blames=blames), 250)
    assert [s.execution.id for s in shown.steps] == ["n2#0", "n27#0", "n28#0", "n29#0"]
    assert shown.left_out == 26
    assert shown.steps[0].notes == ("The reply was cut off.",)
    assert all(not s.notes for s in shown.steps[1:])


def test_steps_that_explain_are_shown_and_others_are_not():
    looked = step("look", ["a"], ["b"], "", "", model_calls=(), tool_calls=(ToolCall("t", {}),), order=1)
    steps = [
        step("a", ["q"], ["a"], "g", "s"),
        looked,
        step("code", ["b"], ["c"], "", "", model_calls=(), order=2),
        step("aside", ["q"], ["unread"], "g", "s", order=2),
        step("end", ["c"], ["z"], "g", "s", order=3),
    ]
    shown = compacted(request_for(steps, trainable=["a", "end"]), 500)
    assert [(s.execution.path, s.parameters) for s in shown.steps] == [
        ("a", ("a",)), ("look", ()), ("end", ("end",)),
    ]  # fmt: skip
    assert [s.execution.path for s in shown.judged] == ["a", "end"]


def test_size_counts_what_each_step_shows_by_itself():
    request = request_for(chain(3, said="w" * 100, given_="g" * 60))
    assert size(request) == 3 * (102 + 62 + len("You are n0.")) // 4


@pytest.mark.parametrize("count", [2000])
def test_very_long_run_is_compacted_without_looking_at_every_pair(count):
    request = request_for(chain(count, said="w" * 50))
    shown = compacted(request, 300)
    assert (len(shown.steps), shown.left_out) == (4, count - 4)
    assert not fits(request, 300)
