"""Candidate against incumbent."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.acceptance import check_policy
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


# Chance.


def graded(before, after):
    return scores(dict(enumerate(before))), scores(dict(enumerate(after)))


def test_gain_that_may_be_chance_is_not_significant():
    policy = tg.Significant(alpha=0.1)
    assert not policy.decide(*graded([0] * 8, [1, 1] + [0] * 6)).accepted
    verdict = policy.decide(*graded([0] * 8, [1, 1, 1, 1] + [0] * 4))
    assert verdict.accepted
    assert verdict.reason.endswith("; p = 0.062")
    assert not tg.Significant(alpha=0.1, tries=2).decide(*graded([0] * 8, [1, 1, 1, 1] + [0] * 4)).accepted


def test_graded_scores_are_compared_by_their_differences():
    policy = tg.Significant(alpha=0.05)
    assert policy.decide(*graded([0.2] * 6, [0.5] * 6)).accepted
    assert not policy.decide(*graded([0.2] * 6, [0.5, 0.5, 0.5, 0.1, 0.1, 0.1])).accepted
    assert not policy.decide(*graded([0.5] * 6, [0.5] * 6)).accepted


def test_candidates_that_are_only_lucky_are_accepted_as_rarely_as_alpha_says():
    dice = random.Random(5)
    accepted = 0
    for _ in range(300):
        before, after = ([float(dice.random() < 0.6) for _ in range(30)] for _ in range(2))
        accepted += tg.Significant(alpha=0.1).decide(*graded(before, after)).accepted
    assert accepted <= 300 * 0.13


# Early.


def test_clear_refusals_are_settled_early_and_all_else_stays_open():
    policy = tg.Sequential(alpha=0.05)
    lost = policy.settled(*graded([1] * 12, [0] * 12), 100)
    assert (lost.accepted, "clear after 12 of 100" in lost.reason) == (False, True)
    assert policy.settled(*graded([0] * 12, [1] * 12), 100) is None
    assert policy.settled(*graded([0, 1, 0, 1], [1, 0, 1, 0]), 100) is None
    hopeless = policy.settled(*graded([1, 1, 1, 0], [0, 0, 0, 0]), 7)
    assert "no chance left after 4 of 7" in hopeless.reason
    assert policy.decide(*graded([0], [1])).accepted


def test_small_gain_is_given_up_when_it_is_not_worth_waiting_for():
    flat = graded([0.5] * 60, [0.5] * 60)
    assert tg.Sequential(hope=0.0).settled(*flat, 100) is None
    assert not tg.Sequential(hope=0.2).settled(*flat, 100).accepted


def test_what_a_sequence_ends_in_decides_on_all_examples():
    before, after = scores({"a": 1, "b": 0, "c": 0}), scores({"a": 0, "b": 1, "c": 1})
    guarded = tg.Sequential(tg.Guarded(anchors=("a",)), chunk=1)
    assert guarded.settled(before, after, 20) is None
    assert not guarded.decide(before, after).accepted


@pytest.mark.parametrize("policy", [tg.Guarded(tg.Sequential(chunk=3)), tg.Sequential(tg.Guarded(), chunk=3)])
def test_guards_refuse_early_what_is_clear_in_either_order(policy):
    assert policy.chunk == 3
    assert not policy.settled(*graded([1] * 12, [0] * 12), 100).accepted


def test_guards_around_a_policy_that_never_looks_early_do_not_look_either():
    assert tg.Guarded().chunk is None
    assert tg.Guarded().settled(*graded([1] * 12, [0] * 12), 100) is None


@pytest.mark.parametrize(
    "make",
    [lambda: tg.Sequential(tg.Priced()), lambda: tg.Priced(inner=tg.Sequential()),
     lambda: tg.Sequential(tg.Guarded(tg.Priced())), lambda: tg.Priced(inner=tg.Guarded(tg.Sequential()))],
)  # fmt: skip
def test_early_looks_at_scores_are_refused_beside_prices(make):
    with pytest.raises(ConfigurationError, match="looks at scores alone"):
        make()


# Guards.


@pytest.mark.parametrize(
    ("guarded", "said"),
    [
        (tg.Guarded(slices=("langauge",)), "No validation example has 'langauge' in its metadata.*there are lang"),
        (tg.Guarded(anchors=("z",)), "The anchor 'z' is not among the validation examples"),
    ],
)
@pytest.mark.parametrize("around", [lambda p: p, tg.Sequential, lambda p: tg.Priced(inner=p), tg.Guarded])
def test_guard_of_what_no_example_has_is_refused_before_anything_is_tried(guarded, said, around):
    rows = [tg.Example("a", {"q": "x"}, metadata={"lang": "de"}), tg.Example("b", {"q": "y"})]
    check_policy(around(tg.Guarded(slices=("lang",), anchors=("a",))), rows)
    check_policy(tg.Better(), rows)
    with pytest.raises(ConfigurationError, match=said):
        check_policy(around(guarded), rows)


def test_guard_of_an_evaluator_that_gives_no_score_is_refused():
    before, after = ({"a": outcome(score, feedback={"right": score})} for score in (0.0, 1.0))
    with pytest.raises(ConfigurationError, match="No evaluator gives a score for 'polite'.*the keys are right"):
        tg.Guarded(keys=("polite",)).decide(before, after)

def outcome(score, **more):
    return tg.Outcome(score, **more)


def test_anchor_that_falls_refuses_a_better_mean():
    before, after = scores({"a": 0.5, "b": 0, "c": 0}), scores({"a": 0.4, "b": 1, "c": 1})
    verdict = tg.Guarded(anchors=("a",)).decide(before, after)
    assert not verdict.accepted
    assert "but the anchor 'a' falls from 0.500 to 0.400" in verdict.reason
    assert tg.Guarded(anchors=("b",)).decide(before, after).accepted
    with pytest.raises(ConfigurationError, match="The anchor 'z' is not among"):
        tg.Guarded(anchors=("z",)).decide(before, after)


def test_slice_that_falls_refuses_a_better_mean():
    def rows(*by_language):
        return {
            f"{language}{n}": outcome(score, metadata={"language": language})
            for language, some in zip("de", by_language, strict=True)
            for n, score in enumerate(some)
        }

    before, after = rows([0, 0, 0], [1, 1]), rows([1, 1, 1], [1, 0.5])
    verdict = tg.Guarded(slices=("language",)).decide(before, after)
    assert "but the slice language=e changes by -0.250" in verdict.reason
    assert tg.Guarded(slices=("language",), tolerance=0.3).decide(before, after).accepted


def test_evaluator_that_falls_refuses_a_better_mean():
    before = {"a": outcome(0.4, feedback={"form": 1.0, "facts": 0.0})}
    after = {"a": outcome(0.7, feedback={"form": 0.5, "facts": 1.0})}
    assert "but 'form' changes by -0.500" in tg.Guarded(keys=("form",)).decide(before, after).reason
    assert tg.Guarded(keys=("facts",)).decide(before, after).accepted


def test_rows_on_which_the_candidate_fails_count_against_what_is_watched():
    before = {str(n): outcome(0.5, feedback={"safe": 1.0, "right": 0.0}) for n in range(10)}
    after = {e: outcome(1.0, feedback={"safe": 1.0, "right": 1.0}) for e in before}
    broken = {str(n): outcome(0.0, feedback={"error": 0.0}, failed=True) for n in range(3)}
    assert tg.Better().decide(before, after | broken).accepted
    reason = tg.Guarded(keys=("safe",)).decide(before, after | broken).reason
    assert "but 'safe' changes by -0.300" in reason
    assert tg.Guarded(keys=("safe",)).decide(before | broken, after).accepted


async def test_two_evaluators_of_one_key_are_both_watched():
    def strict(outputs):
        return {"key": "form", "score": outputs["strict"]}

    def lax(outputs):
        return {"key": "form", "score": 1.0}

    graph = tg.TrainableGraph(
        StateGraph(dict).add_node("say", lambda state: state).add_edge(START, "say").compile(), []
    )
    for score, expected in ((0.0, 0.5), (1.0, 1.0)):
        runs = await graph.arecord([{"inputs": {"strict": score}}])
        [scored] = (await tg.Objective([strict, lax]).acall(runs)).scored
        assert tg.Outcome.of(scored).feedback == {"form": expected}


def test_guard_asks_only_of_what_is_accepted():
    worse = tg.Guarded(anchors=("a",)).decide(scores({"a": 1, "b": 1}), scores({"a": 0, "b": 1}))
    assert "anchor" not in worse.reason


# Prices.


def test_cheaper_prompt_of_the_same_score_wins_and_a_dear_one_loses():
    def run(score, tokens, seconds=0.0):
        return {"a": outcome(score, tokens=tokens, seconds=seconds)}

    policy = tg.Priced(per_1k_tokens=0.1)
    shorter = policy.decide(run(0.5, 900), run(0.5, 300))
    assert shorter.accepted
    assert "score +0.000, tokens a run 900 → 300" in shorter.reason
    assert not policy.decide(run(0.5, 300), run(0.55, 900)).accepted
    assert policy.decide(run(0.5, 300), run(0.6, 900)).accepted
    assert tg.Priced(per_second=0.1).decide(run(0.5, 0, 3), run(0.5, 0, 2)).accepted
    assert not tg.Priced().decide(run(0.5, 900), run(0.5, 300)).accepted


@pytest.mark.parametrize(
    "policy",
    [tg.Better(), tg.Significant(), tg.Sequential(), tg.Guarded(), tg.Priced(), tg.Sequential(tg.Guarded())],
)
def test_policies_have_plain_fingerprints_that_differ(policy):
    plain = json.loads(json.dumps(policy.fingerprint))
    assert plain == policy.fingerprint
    assert plain != {"acceptance": "other"}


@pytest.mark.parametrize(
    "make",
    [lambda: tg.Significant(alpha=0), lambda: tg.Significant(tries=0), lambda: tg.Sequential(chunk=0),
     lambda: tg.Sequential(hope=1), lambda: tg.Priced(per_second=-1), lambda: tg.Significant(min_gain=2),
     lambda: tg.Priced(per_second=float("nan")), lambda: tg.Guarded(tolerance=-0.1),
     lambda: tg.Guarded(tolerance=float("nan")), lambda: tg.Guarded(keys="safe")],
)  # fmt: skip
def test_policies_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()
