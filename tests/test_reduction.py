"""Many gradients of one parameter become the few things that they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.parameter import count_tokens
from lg_textgrad.reduction import contradict, reduce_gradients, rule, same


def gradient(change, weight=0.5, run="r", keep=""):
    return tg.Gradient("p", run, "n#0", change, keep=keep, weight=weight)


SAYINGS = [
    "Be brief.",
    "Always be brief.",
    "Refunds go to 'payments'.",
    "Refunds go to 'delivery'.",
    "Bills go to 'payments'.",
    "Never mention the price.",
    "Always mention the price in euros.",
    "Reply in at most 40 words.",
    "Reply in at most 60 words.",
    "Reply in at most 40 words, this one has 63.",
    "Reply in at most 40 words, this one has 52.",
    "Begin with 'Good day.'.",
    "Begin with 'Good day.' and end with 'Bye'; reply in at most 40 words.",
    "",
]
GRADIENTS = st.lists(
    st.builds(gradient, st.sampled_from(SAYINGS), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from("abc"), st.sampled_from(["", "tone"])),
    max_size=12,
)  # fmt: skip


@given(GRADIENTS, st.integers(1, 6), st.integers(1, 60))
def test_reduction_keeps_its_promises(gradients, max_notes, max_tokens):
    found = reduce_gradients(gradients, max_notes=max_notes, max_tokens=max_tokens)
    notes = found.notes
    asking = [g for g in gradients if g.change]
    assert len(notes) <= max_notes
    assert sum(count_tokens(n.change) for n in notes[1:]) + (0 if not notes else count_tokens(notes[0].change)) <= max(
        max_tokens, count_tokens(notes[0].change) if notes else 0
    )
    assert bool(notes) == bool(asking)
    inside = [g for n in notes for g in n.gradients]
    assert len(inside) <= len(asking)
    for number, note in enumerate(notes):
        assert all(same(note.change, g.change) for g in note.gradients)
        assert note.change in {rule(g.change) for g in note.gradients}
        assert note.gradients[0].weight == max(g.weight for g in note.gradients)
        assert not any(same(note.change, other.change) for other in notes[:number])
        assert note.against == tuple(
            m for m, other in enumerate(notes) if m != number and contradict(note.change, other.change)
        )
    if found.left_out == 0:
        assert sorted(id(g) for g in inside) == sorted(id(g) for g in asking)
    consistent = found.consistent()
    assert not any(contradict(a.change, b.change) for a in consistent for b in consistent)
    assert reduce_gradients(gradients, max_notes=max_notes, max_tokens=max_tokens) == found


@given(GRADIENTS)
def test_heaviest_first_but_for_what_is_moved_behind_its_opposite(gradients):
    notes = reduce_gradients(gradients, max_notes=99, max_tokens=9999).notes
    # Brute force: the heaviest that is left, then whatever contradicts it, heaviest first.
    left = sorted(notes, key=lambda n: -n.weight)
    weights = []
    while left:
        first = left.pop(0)
        opposed = [n for n in left if contradict(first.change, n.change)]
        weights += [n.weight for n in (first, *opposed)]
        left = [n for n in left if n not in opposed]
    assert [n.weight for n in notes] == weights


@given(st.sampled_from(SAYINGS), st.sampled_from(SAYINGS))
def test_same_and_contradictory_are_symmetric_and_exclude_each_other(one, other):
    assert same(one, other) == same(other, one)
    assert contradict(one, other) == contradict(other, one)
    assert not (same(one, other) and contradict(one, other))
    assert same(one, one)


@pytest.mark.parametrize(
    ("one", "other", "relation"),
    [
        ("Be brief.", "Always be BRIEF!", "same"),
        ("Toys are on floor 3.", "The floor of toys is 3.", "same"),
        ("Begin with 'Good day.' and end with 'Bye'.", "Begin with 'Good day.'", "same"),
        ("Begin with 'Good day, friend'; end with 'Bye'.", "Begin with 'Good day'", ""),
        ("Refunds go to 'payments'.", "Refunds over 100 go to 'payments'.", ""),
        ("An answer must have at most 40 words, this one has 63.", "An answer must have at most 40 words, this one has 52.", "same"),
        ("Use at most 40 words (this reply has 63).", "Use at most 30 words (this reply has 63).", "against"),
        ("Messages about a refund go to the team 'payments'.", "Messages about a bill go to the team 'payments'.", ""),
        ("Messages about a refund go to the team 'payments'.", "Messages about a bill go to the team 'advice'.", ""),
        ("Messages about a refund go to the team 'payments'.", "Messages about refunds go to the team 'advice'.", "against"),
        ("Reply in at most 40 words.", "Reply in at most 60 words.", "against"),
        ("Do not apologise.", "Apologise once.", "against"),
        ("Use the word 'please'.", "Do not use the word 'please'.", "against"),
        ("If the customer is angry, apologise.", "If the customer is not angry, apologise.", ""),
        ("Never guess.", "Don't guess.", "same"),
        (
            "Customers who ask for money back because the toy they bought in our shop broke early belong to the team refunds.",
            "Customers who ask for money back because the toy they bought in our shop broke early belong to the team repairs.",
            "",
        ),
        (
            "Customers who ask for money back because the toy they bought in our shop broke early belong to refunds.",
            "Clients who ask for money back because the toy they bought in our shop broke early belong to refunds.",
            "same",
        ),
        ("Refunds go to billing, repairs go to storage.", "Refunds go to storage, repairs go to billing.", "against"),
        ("Always translate English into French.", "Always translate French into English.", "against"),
        ("Put the name before the date.", "Put the date before the name.", "against"),
        ("At most 5 words, and begin with 'To'.", "Begin with 'To', and at most 5 words.", "same"),
        ("Erwähne den Preis nicht.", "Erwähne den Preis.", "against"),
        ("Ne mentionnez jamais le prix.", "Mentionnez le prix.", "against"),
        ("No mencione nunca el precio.", "Mencione el precio.", "against"),
        ("Никогда не называй цену.", "Называй цену.", "against"),
    ],
)  # fmt: skip
def test_notes_are_the_same_contradict_each_other_or_neither(one, other, relation):
    assert (same(one, other), contradict(one, other)) == (relation == "same", relation == "against")


def test_note_that_is_part_of_another_joins_it_and_counts_of_one_reply_are_left_out():
    part = gradient("Form: begin with 'Good day.'; end with 'Bye'.", 1.0, "a")
    counted = gradient("Form: use at most 40 words, this one has 63.", 0.5, "b")
    whole = gradient("Form: begin with 'Good day.'; end with 'Bye'; use at most 40 words, this one has 52.", 0.5, "c")
    [note] = reduce_gradients([part, counted, whole]).notes
    assert note.change == "Form: begin with 'Good day.'; end with 'Bye'; use at most 40 words."
    assert (note.weight, note.ids) == (2.0, (part.id, counted.id, whole.id))


@pytest.mark.parametrize(
    "text",
    [
        "Start with the sentence: this offer is valid for 30 days.",
        "If a customer asks when, this team has 3 days to answer.",
        "End with: this is 1 of 3 letters.",
    ],
)
def test_what_a_rule_says_of_this_and_that_stays(text):
    assert rule(text) == text


def test_merged_note_is_worth_what_all_its_gradients_are_and_knows_them():
    often = [gradient("Be brief.", 0.4, run) for run in "abc"]
    once = gradient("Begin with 'Hello'.", 1.0)
    first, second = reduce_gradients([once, *often]).notes
    assert (first.change, first.weight, first.ids) == ("Be brief.", pytest.approx(1.2), tuple(g.id for g in often))
    assert second.ids == (once.id,)


def test_what_to_keep_is_counted_and_does_not_swamp():
    kept = [gradient("", 0.0, f"r{n}", keep=k) for n, k in enumerate(["team", "tone", "team", "length", "team"])]
    found = reduce_gradients([*kept, gradient("Be brief.", 0.1, keep="a word of the critic's")])
    assert [(n.change, len(n.gradients)) for n in found.keeps] == [("team", 3), ("tone", 1)]
    assert [(n.change, n.keep) for n in found.notes] == [("Be brief.", "a word of the critic's")]


def test_nothing_makes_nothing():
    found = reduce_gradients([])
    assert (found.notes, found.keeps, found.left_out, found.contradictions) == ((), (), 0, [])


def test_what_two_runs_tell_of_is_no_contradiction():
    told = [
        tg.Gradient("p", f"r{n}", "n#0", f"It wrote '{a}'; right is '{b}'.", weight=0.9, is_rule=False)
        for n, (a, b) in enumerate([("red", "blue"), ("one", "two"), ("up", "down")])
    ]
    rule = tg.Gradient("p", "r9", "n#0", "Reply with one word.", weight=0.1)
    reduced = reduce_gradients([*told, rule], max_notes=4)
    assert [note.change for note in reduced.notes] == [g.change for g in (*told, rule)]
    assert reduced.contradictions == []
    assert len(reduced.consistent()) == 4
