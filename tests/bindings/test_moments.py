"""Dates and times of a run in a prompt are variables; those of another time are words like others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.bindings.moments import moments, with_moments
from lg_textgrad.bindings.skeleton import Skeleton, align

NOW = datetime(2026, 3, 5, 14, 7, 9, 123456, UTC)
SINCE, UNTIL = NOW - timedelta(minutes=2), NOW + timedelta(minutes=1)
EAST = NOW.astimezone(timezone(timedelta(hours=13)))


def templated(*texts):
    return with_moments(align((t, {}) for t in texts), texts, SINCE, UNTIL).text


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (NOW.isoformat(), "time"),
        (NOW.replace(tzinfo=None).isoformat(), "time"),
        (f"{NOW}", "time"),
        (f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "time"),
        (f"{NOW:%Y-%m-%d %H:%M}", "time"),
        (f"{NOW:%Y-%m-%d}", "date"),
        (f"{NOW:%d.%m.%Y}", "date"),
        (f"{NOW:%m/%d/%Y}", "date"),
        (f"{NOW:%B %d, %Y}", "date"),
        ("Thu Mar 5, 2026", "date"),
        ("Thursday, March 5th, 2026", "date"),
        ("Thursday, 5 March 2026", "date"),
        ("the 5th of March 2026", "date"),
        (NOW.ctime(), "time"),
        ("March 05, 2026 at 02:07 PM", "time"),
        ("14:07 on 5 March 2026", "time"),
        ("14:06", "time"),
        ("2:07 PM", "time"),
        ("14:07:09 UTC", "time"),
        (f"{EAST:%Y-%m-%d}", "date"),
    ],
)
def test_moment_of_the_run_is_a_variable(said, kind):
    before = "the " if said.startswith("the ") else ""
    expected = f"It is {before}{{{kind}}}. Answer."
    assert templated(f"It is {said}. Answer.") == expected


@pytest.mark.parametrize(
    "said",
    ["2024-03-05", "March 5, 2025", "5 May 2026", "09:30", "1.14:07", "v2026-03-051", "14:077", "Thursday"],
)
def test_other_dates_and_times_are_words_like_others(said):
    assert templated(f"Known until {said}. Answer.") == f"Known until {said}. Answer."


def test_what_varies_within_a_time_is_no_variable_of_its_own():
    texts = [f"Now: {NOW + timedelta(seconds=s):%Y-%m-%d %H:%M:%S.%f} UTC. Go." for s in (0, 3, 11)]
    assert templated(*texts) == "Now: {time}. Go."
    skeleton = with_moments(align((t, {}) for t in texts), texts, SINCE, UNTIL)
    assert skeleton.match("Now: 2027-12-31 23:59:59.5 UTC. Go.") == {"time": "2027-12-31 23:59:59.5 UTC"}


def test_two_times_are_two_variables_and_others_stay_as_they_are():
    texts = [f"On 2026-03-05 ask {who} of 5 March 2026 at 14:07 UTC." for who in ("Ann", "Bob")]
    assert templated(*texts) == "On {date} ask {var1} of {time}."
    texts = ["On 2026-03-05, not on 2026-03-05, go."]
    assert templated(*texts) == "On {date}, not on {date2}, go."


def test_date_within_what_varies_anyway_stays_there():
    texts = ["Say: it is 2026-03-05 here. End.", "Say: no idea about that day. End."]
    made = align((t, {}) for t in texts)
    assert with_moments(made, texts, SINCE, UNTIL) == made


def test_moments_are_given_with_their_place():
    assert moments("On 2026-03-05 at 14:07: go", SINCE, UNTIL) == [(3, 22, "time")]


@given(st.lists(st.text("ab 2026-03514:7,{}", max_size=40), min_size=1, max_size=3))
def test_template_still_matches_every_text(texts):
    made = with_moments(align((t, {}) for t in texts), texts, SINCE, UNTIL)
    for text in texts:
        assert made.fill(made.match(text)) == text
    assert with_moments(Skeleton(("x",)), texts, SINCE, UNTIL) == Skeleton(("x",))
