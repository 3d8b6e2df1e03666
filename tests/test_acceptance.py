"""Candidate against incumbent."""

from __future__ import annotations

import itertools

import pytest

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError


def scores(by_example):
    return {str(e): tg.Outcome(score) for e, score in by_example.items()}


def test_better_mean_is_accepted_with_its_counts():
    verdict = tg.Better().decide(
        scores({"a": 0.0, "b": 1.0, "c": 0.5}), scores({"a": 1.0, "b": 0.5, "c": 0.5})
    )
    assert (verdict.accepted, verdict.won, verdict.lost) == (True, 1, 1)
    assert verdict.gain == pytest.approx(1 / 6)
    assert verdict.reason == "better by +0.167: 1 of 3 examples better, 1 worse"


def test_tie_keeps_the_incumbent_in_any_order_of_examples():
    some = [0.1, 0.2, 0.3, 0.7]
    for order in itertools.permutations(some):
        verdict = tg.Better().decide(scores(dict(enumerate(some))), scores(dict(enumerate(order))))
        assert not verdict.accepted


def test_gain_must_be_more_than_min_gain():
    policy = tg.Better(min_gain=0.1)
    assert not policy.decide(scores({"a": 0.5}), scores({"a": 0.6})).accepted
    assert policy.decide(scores({"a": 0.5}), scores({"a": 0.61})).accepted
    assert policy.fingerprint != tg.Better().fingerprint


@pytest.mark.parametrize(("incumbent", "candidate"), [({"a": 1}, {"b": 1}), ({"a": 1}, {}), ({}, {})])
def test_other_examples_cannot_be_compared(incumbent, candidate):
    with pytest.raises(ConfigurationError, match="the same examples"):
        tg.Better().decide(scores(incumbent), scores(candidate))


@pytest.mark.parametrize("gain", [-0.1, 1.0])
def test_min_gain_out_of_range(gain):
    with pytest.raises(ConfigurationError, match="min_gain"):
        tg.Better(min_gain=gain)
