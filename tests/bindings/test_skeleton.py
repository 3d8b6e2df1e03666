"""Skeletons: what is constant in texts that one template made, and the variables between."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.bindings.skeleton import (
    Skeleton,
    align,
    from_format,
    from_mustache,
    from_placeholders,
    shown_in,
    state_of,
)
from lg_textgrad.parameter import Parameter

# Constants and values share no letter, so that each text has one reading.
constants = st.text("abcdefgh \n.,:", min_size=1, max_size=20).map(lambda t: f" ab {t} cd ")
values = st.text("stuvwxyz0123", min_size=1, max_size=12)


@st.composite
def skeletons(draw):
    count = draw(st.integers(1, 4))
    between = draw(st.lists(constants, min_size=count + 1, max_size=count + 1))
    names = draw(st.permutations(["team", "tone", "city", "day"]))[:count]
    return Skeleton(tuple(between), tuple(names))


@given(skeletons(), st.data())
def test_variables_come_back_from_the_text_that_they_were_filled_into(skeleton, data):
    variables = {n: data.draw(values) for n in skeleton.names}
    assert skeleton.match(skeleton.fill(variables)) == variables


@given(skeletons(), st.text())
def test_text_that_matches_is_rebuilt_byte_for_byte(skeleton, text):
    for candidate in (text, skeleton.constants[0] + text + skeleton.constants[-1]):
        variables = skeleton.match(candidate)
        assert variables is None or skeleton.fill(variables) == candidate


@given(skeletons(), st.integers(2, 4), st.data())
def test_template_is_found_from_its_fills(skeleton, fills, data):
    samples = []
    for number in range(fills):
        # Values that share nothing: else it can't be told that the shared part varies.
        own = {n: f"{'sz'[number % 2]}{number + 2}{data.draw(values)}" for n in skeleton.names}
        state = dict(own)
        samples.append((skeleton.fill(own), state))
    distinct = all(
        len({s[n] for _, s in samples}) == fills for n in skeleton.names
    ) and all(len(set(s.values())) == len(s) for _, s in samples)
    if distinct:
        assert align(samples) == skeleton


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_what_is_found_matches_every_text_that_it_was_found_in(texts):
    skeleton = align((text, {}) for text in texts)
    for text in texts:
        assert skeleton.fill(skeleton.match(text)) == text


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.randoms())
def test_order_of_the_texts_does_not_matter(texts, random):
    shuffled = random.sample(texts, len(texts))
    assert align((t, {}) for t in texts) == align((t, {}) for t in shuffled)


@given(st.text("ab{}c \n", max_size=30), st.text("ab{}c \n", max_size=30))
def test_braces_next_to_a_variable_still_leave_a_placeholder(before, after):
    skeleton = align([(before + "x1" + after, {"v": "x1"}), (before + "y2" + after, {"v": "y2"})])
    parameter = Parameter("p", skeleton.text, placeholders=skeleton.placeholders)
    parameter.check(skeleton.text)
    text = before + "x1" + after
    assert parameter.message(**skeleton.match(text)).content == text


CASES = [
    (["For billing: go on.", "For sales: go on."], "team", ["billing", "sales"], "For {team}: go on."),
    (["Be nice.", "Be nice."], "team", ["a", "b"], "Be nice."),
    (['Say {"a": 1} to al now', 'Say {"a": 1} to bo now'], "who", ["al", "bo"], 'Say {"a": 1} to {who} now'),
    (["Hi Ann Lee! Go.", "Hi Bob Ray! Go."], "x", ["", ""], "Hi {var1}! Go."),
    (["Do 3 of 3 now.", "Do 5 of 5 now."], "n", ["3", "5"], "Do {n} of {n} now."),
    (["Give 3 ideas to 3 now.", "Give 3 ideas to 5 now."], "n", ["3", "5"], "Give 3 ideas to {n} now."),
    (["The {team} is blue now.", "The {team} is red now."], "team", ["blue", "red"], "The {team} is {team_value} now."),
]


@pytest.mark.parametrize(("texts", "key", "state", "expected"), CASES)
def test_template(texts, key, state, expected):
    samples = [(t, {key: s}) for t, s in zip(texts, state, strict=True)]
    assert align(samples).text == expected


def test_longer_value_that_has_a_shorter_one_in_it_is_one_variable():
    samples = [
        ("Team bill. Asked: call bill today. Answer well.", {"team": "bill", "q": "call bill today"}),
        ("Team ann. Asked: is it ann. Answer well.", {"team": "ann", "q": "is it ann"}),
    ]
    assert align(samples).text == "Team {team}. Asked: {q}. Answer well."


def test_span_that_contains_a_value_is_named_after_it():
    samples = [
        ("Look at bills-2024 well.", {"topic": "bills"}),
        ("Look at taxes_old well.", {"topic": "taxes"}),
    ]
    assert align(samples).text == "Look at {topic} well."


def test_adjacent_variables_are_one():
    samples = [
        ("Name: Ann Lee. Be kind.", {"first": "Ann", "last": "Lee"}),
        ("Name: Bob Ray. Be kind.", {"first": "Bob", "last": "Ray"}),
    ]
    [name] = align(samples).names
    assert align(samples).constants == ("Name: ", ". Be kind.")
    assert align(samples).match("Name: Al van Os. Be kind.") == {name: "Al van Os"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Plain.", "Plain."),
        ("For {team}: {{json}} {n:>3}.", "For {team}: {json} {n}."),
        ("{a}{b} end", "{a_b} end"),
        ("{user.name} and {items[0]}", "{user_name} and {items_0_}"),
        ("{{{a}}} x", "{a} x"),
        ("{self} x", "{self_value} x"),
    ],
)
def test_format_template(template, expected):
    assert from_format(template).text == expected


def test_what_is_no_format_template_is_none():
    assert from_format("a { b") is None


def test_mustache_template():
    assert from_mustache("For {{ team }}: {{{raw}}}!").text == "For {team}: {raw}!"
    assert from_mustache("{{#each}}x{{/each}}") is None


def test_text_of_a_parameter_has_its_placeholders_only():
    assert from_placeholders("a {b} {c}", ["b"]) == Skeleton(("a ", " {c}"), ("b",))
    assert from_placeholders("a {b}", []) == Skeleton(("a {b}",))


def test_same_variable_must_have_the_same_value():
    skeleton = Skeleton(("a ", " b ", " c"), ("x", "x"))
    assert skeleton.match("a 1 b 1 c") == {"x": "1"}
    assert skeleton.match("a 1 b 2 c") is None


def test_match_of_a_long_text_that_does_not_fit_ends():
    skeleton = Skeleton(("", *[" a "] * 40, "end"), tuple(f"v{n}" for n in range(41)))
    assert skeleton.match(" a " * 100_000) is None


def test_state_is_what_a_prompt_would_show():
    inputs = {
        "team": "billing", "n": 3, "ok": True, "none": None,
        "messages": [{"role": "human", "content": "first"}, {"role": "human", "content": "last"}],
    }
    assert state_of(inputs) == {"team": "billing", "n": "3", "messages": "last"}
    assert state_of("text") == {}


def test_lists_and_objects_of_the_state_are_known_as_a_prompt_shows_them():
    order = {"id": 7, "items": ["a red lamp", "two chairs"]}
    inputs = {"order": order, "notes": ["It is late.", "It is due."], "team": "sales", "empty": []}

    def shown(text):
        found = shown_in(text, inputs)
        assert found.pop("team") == "sales"
        return found

    for text in (str(order), json.dumps(order), json.dumps(order, indent=2)):
        assert shown(f"Look at {text} now.") == {"order": text}
    assert shown("Notes:\nIt is late.\nIt is due.") == {
        "notes": "It is late.\nIt is due.", "order_id": "7",
    }  # fmt: skip
    assert shown("Say It is due. of a red lamp") == {
        "notes_1": "It is due.", "order_items_0": "a red lamp", "order_id": "7",
    }  # fmt: skip
    assert shown_in("text", "text") == {}
    assert len(shown_in("1", {"many": [[n] for n in range(10_000)]})) < 300
