"""The tests behind acceptance, against brute force and simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.significance import bootstrap_interval, mcnemar, paired, wealth


@pytest.mark.parametrize("won", range(7))
@pytest.mark.parametrize("lost", range(7))
def test_mcnemar_counts_coin_tosses(won, lost):
    tosses = list(itertools.product((0, 1), repeat=won + lost))
    assert mcnemar(won, lost) == pytest.approx(sum(sum(t) >= won for t in tosses) / len(tosses))


DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), max_size=9)


@given(DIFFERENCES)
def test_paired_tries_every_choice_of_signs(differences):
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    means = [math.fsum(s * d for s, d in zip(choice, differences, strict=True)) for choice in signs]
    expected = sum(m >= math.fsum(differences) - 1e-9 for m in means) / len(means)
    assert paired(differences) == pytest.approx(expected)


def test_paired_is_mcnemar_for_scores_of_right_and_wrong():
    assert paired([1.0] * 5 + [-1.0] * 2 + [0.0] * 3) == pytest.approx(mcnemar(5, 2))
    many = [1.0] * 20 + [-1.0] * 8
    assert paired(many) == pytest.approx(mcnemar(20, 8), abs=0.01)
    assert paired(many) == paired(list(reversed(many)))


@given(st.lists(st.sampled_from([-0.75, -0.5, -0.25, 0.25, 0.5, 0.75]), min_size=15, max_size=24))
def test_paired_does_not_depend_on_the_order_of_many_differences(differences):
    assert paired(differences, draws=200) == paired(sorted(differences), draws=200)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    dice = random.Random(1)
    hits = 0
    for trial in range(60):
        low, high = bootstrap_interval([dice.gauss(0.2, 0.3) for _ in range(40)], seed=trial, draws=300)
        hits += low <= 0.2 <= high
    assert 46 <= hits <= 60


def test_wealth_rarely_speaks_for_a_difference_that_is_not_there():
    dice = random.Random(2)
    false = 0
    for _ in range(400):
        differences = [dice.choice((-1.0, 0.0, 0.0, 1.0)) for _ in range(60)]
        false += max(wealth(differences[:n]) for n in range(0, 61, 5)) >= 10
    assert false <= 400 * 0.1


def test_wealth_speaks_for_a_clear_difference():
    assert wealth([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]) >= 10
    assert wealth([-1.0] * 8) < 1
    assert wealth([0.5] * 20, floor=0.6) < 1 < wealth([0.5] * 20, floor=0.2)
