"""Long values cut around what matters, and quotations held against what was shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.critics.cutting import cut, quoted

WORDS = st.lists(st.sampled_from("ab cab north 17 'x y' [… ßİ zone the".split(" ")), max_size=60).map(" ".join)
MARK = re.compile(r" ?\[… (\d+) characters cut …\] ?")


def put_together(shown, text):
    """Return how much of `text` is shown, after checking that the rest is where the marks say."""
    at = kept = 0
    rest = shown
    while rest:
        mark = MARK.match(rest)
        if mark and not text.startswith(rest[: mark.end()], at):
            at += int(mark[1])
            rest = rest[mark.end() :]
            continue
        following = [m.start() for m in MARK.finditer(rest) if m.start() > 0]
        # A piece ends where a mark stands that says how far it is to where the next piece goes on.
        for end in [*following, len(rest)]:
            piece = rest[:end]
            if text.startswith(piece, at) and (end == len(rest) or goes_on(rest[end:], text, at + end)):
                at, kept, rest = at + end, kept + end, rest[end:]
                break
        else:
            raise AssertionError((shown, text))
    assert at == len(text)
    return kept


def goes_on(rest, text, at):
    mark = MARK.match(rest)
    return bool(mark) and at + int(mark[1]) <= len(text)


@given(st.text("abc XY\n", max_size=80), st.integers(1, 60), st.text("abc XY'", max_size=20))
def test_what_stays_and_what_is_cut_make_the_whole(text, limit, about):
    shown = cut(text, limit, about)
    if len(text) <= limit:
        assert shown == text
    else:
        assert put_together(shown, text) <= limit


@given(WORDS, st.integers(1, 200), WORDS)
def test_cutting_is_deterministic_and_keeps_the_limit(text, limit, about):
    shown = cut(text, limit, about)
    assert shown == cut(text, limit, about)
    if len(text) > limit:
        assert len(MARK.sub("", shown)) <= limit + shown.count(" [… ")


@given(st.text("abc \n", max_size=60), st.integers(1, 40))
def test_without_anything_to_go_by_both_ends_stay(text, limit):
    shown = cut(text, limit)
    if len(text) > limit:
        pieces = MARK.split(shown)[::2]
        assert text.startswith(pieces[0])
        assert text.endswith(pieces[-1])
        assert sum(map(len, pieces)) == limit


@pytest.mark.parametrize(
    ("needle", "about"),
    [
        ("the clerk said 'no refunds today' twice", "It must not say 'no refunds today'."),
        ("zone seventeen-b is closed", "The zone is wrong: seventeen-b."),
        ("order Q-77 was lost", "It names order Q-77."),
    ],
)
def test_what_the_complaint_speaks_of_stays(needle, about):
    text = "something else entirely " * 200 + needle + " something else entirely" * 200
    assert needle in cut(text, 300, about)


def test_words_that_are_everywhere_say_nothing():
    text = "zone " * 500 + "needle " + "zone " * 500
    assert cut(text, 100, "The zone is wrong.") == cut(text, 100)


def test_many_spots_share_the_room():
    text = " ".join(f"{'filler ' * 40}item{n} costs" for n in range(20))
    shown = cut(text, 400, " ".join(f"item{n}" for n in range(20)))
    assert sum(f"item{n}" in shown for n in range(20)) >= 8


@pytest.mark.parametrize(
    ("span", "found"),
    [
        ("Green  TEA", "green\ntea"),
        ("'green tea…'", "green\ntea"),
        ("black tea", None),
        ("  ", None),
        (".*", None),
    ],
)
def test_quotation_is_found_as_it_stands(span, found):
    assert quoted(span, ["nothing", "We sell green\ntea."]) == found


@given(st.text(max_size=40), st.integers(0, 20), st.integers(1, 20))
def test_every_part_of_a_text_is_found_in_it(text, start, size):
    span = text[start : start + size]
    if span.strip("'\"“”‘’«»` \n").strip() and span.isalnum():
        assert quoted(span, [text]) is not None
