"""Evaluators in every shape that LangSmith accepts, and what is none."""

from __future__ import annotations

import asyncio
import re

import pytest
from langsmith.evaluation import EvaluationResult

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, EvaluatorError
from lg_textgrad.objective import read_result
from lg_textgrad.run import Feedback

EXAMPLE = tg.Example("e", {"q": "in"}, {"a": "ref"}, {"m": 1})


def run(outputs=None, error=None, id="r"):
    return tg.Run(id, EXAMPLE, "c", outputs if outputs or error else {"a": "out", "b": "more"}, error=error)


async def scored(*evaluators, run=run(), **options):
    [s] = (await tg.Objective(evaluators, **options).acall([run])).scored
    return s


# What evaluators may ask for.


def by_name(inputs, outputs, reference_outputs):
    return (inputs["q"], outputs["a"], reference_outputs["a"]) == ("in", "out", "ref")


async def awaited(outputs, inputs):
    await asyncio.sleep(0)
    return outputs["a"] == "out"


def langsmith_style(run, example):
    return {"key": "k", "score": run.outputs["a"] == "out" and example.outputs["a"] == "ref"}


def any_two(r, e):
    return r.outputs["a"] == "out" and e.id == "e"


def keywords(**kwargs):
    return set(kwargs) == {"inputs", "outputs", "reference_outputs"}


def with_default(outputs, strict=True):
    return strict


class Judge:
    def __call__(self, outputs):
        return 1.0


class AsyncJudge:
    async def __call__(self, *, outputs):
        return 1


@pytest.mark.parametrize(
    "evaluator",
    [by_name, awaited, langsmith_style, any_two, keywords, with_default, Judge(), AsyncJudge()],
)
async def test_evaluator_of_any_signature(evaluator):
    assert (await scored(evaluator)).score == 1


async def test_openevals_evaluators_work_as_they_are():
    from openevals.exact import exact_match

    s = await scored(exact_match, run=tg.Run("r", EXAMPLE, "c", {"a": "ref"}))
    assert (s.score, s.feedback[0].key) == (1, "exact_match")


async def test_unknown_argument_is_named():
    with pytest.raises(EvaluatorError, match="'odd' asks for 'gold'; evaluators take any of run, example"):
        await scored(odd)


def odd(outputs, gold):
    return 1


# What they may return.


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (True, [Feedback("n", 1.0)]),
        (0.25, [Feedback("n", 0.25)]),
        ({"score": 0}, [Feedback("n", 0.0)]),
        ({"key": "k", "score": 0.5, "comment": "c"}, [Feedback("k", 0.5, "c")]),
        ({"key": "k", "score": None, "comment": "c"}, [Feedback("k", None, "c")]),
        ({"key": "k", "value": 1}, [Feedback("k", 1.0)]),
        ({"key": "k", "value": "good"}, [Feedback("k", None, "good")]),
        ("words", [Feedback("n", None, "words")]),
        ([{"key": "a", "score": 1}, {"key": "b", "score": 0}], [Feedback("a", 1.0), Feedback("b", 0.0)]),
        ({"results": [{"key": "a", "score": 1}]}, [Feedback("a", 1.0)]),
        (EvaluationResult(key="k", score=0.5, comment="c"), [Feedback("k", 0.5, "c")]),
    ],
)
def test_result_of_any_shape(result, expected):
    assert read_result(result, "n", "e") == expected


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned nothing for example 'e'; it must return a number between 0 and 1"),
        (7, "returned the score 7, which is not between 0 and 1"),
        (-0.1, "returned the score -0.1"),
        (float("nan"), "returned the score nan"),
        ({"score": "x"}, "returned the score 'x'"),
        ({"score": 2}, "returned the score 2,"),
        ({"key": "k"}, "a dict without 'score'"),
        ([], "an empty list"),
        (object(), "returned a object"),
    ],
)
async def test_result_that_is_no_score(result, words):
    def judge(outputs):
        return result

    with pytest.raises(EvaluatorError, match=f"evaluator 'judge' {words}" if words.startswith("returned") else words):
        await scored(judge)


async def test_words_alone_are_no_score():
    def judge(outputs):
        return "x"

    with pytest.raises(EvaluatorError, match="No evaluator gave a score for example 'e'") as caught:
        await scored(judge)
    assert caught.value.run_id == "r"


@pytest.mark.parametrize("is_async", [True, False])
async def test_evaluator_that_raises_is_raised_bare_and_named(is_async):
    def bad(outputs):
        raise ZeroDivisionError("oops")

    async def abad(outputs):
        raise ZeroDivisionError("oops")

    words = r"evaluator 'a?bad' raised ZeroDivisionError on example 'e': oops\. Mend the evaluator"
    with pytest.raises(EvaluatorError, match=words) as caught:
        await scored(abad if is_async else bad)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_sync_callers_get_the_same_error():
    with pytest.raises(EvaluatorError, match="raised KeyError"):
        tg.Objective([lambda outputs: outputs["zz"]])([run()])


async def test_evaluators_are_functions_and_at_least_one():
    with pytest.raises(ConfigurationError, match="at least one"):
        tg.Objective([])
    with pytest.raises(ConfigurationError, match="must be a function, not str"):
        tg.Objective(["exact"])
    with pytest.raises(ConfigurationError, match="weight of 'k' must not be negative"):
        tg.Objective([by_name], weights={"k": -1})


# One score.


async def test_score_is_the_weighted_mean():
    def many(outputs):
        return [{"key": "a", "score": 1}, {"key": "b", "score": 0}, {"key": "c", "comment": "only words"}]

    assert (await scored(many)).score == 0.5
    assert (await scored(many, weights={"a": 3})).score == 0.75
    assert (await scored(many, weights={"a": 0})).score == 0
    with pytest.raises(EvaluatorError, match="No evaluator gave a score"):
        await scored(many, weights={"a": 0, "b": 0})


async def test_failed_run_scores_nothing_and_asks_nobody():
    asked = []
    s = await scored(lambda outputs: asked.append(1) or 1, run=run(error="ValueError: no"))
    assert (s.score, asked) == (0, [])
    assert s.text == "error: The run failed: ValueError: no"


async def test_feedback_says_which_outputs_were_looked_at():
    def only_a(outputs):
        return outputs["a"] == "out"

    def through_run(run, example):
        return run.outputs.get("b") == "more"

    def all_of_it(outputs):
        return len(dict(outputs)) == 2

    def nothing(inputs):
        return 1

    s = await scored(only_a, through_run, all_of_it, nothing)
    assert [f.reads for f in s.feedback] == [{"a"}, {"b"}, {"a", "b"}, None]


async def test_text_has_what_was_not_perfect():
    s = await scored(
        lambda outputs: [{"key": "a", "score": 1, "comment": "fine"}, {"key": "b", "score": 0.5},
                         {"key": "c", "score": 0, "comment": "bad"}]  # fmt: skip
    )
    assert s.text == "b: scored 0.50\nc: bad"
    assert tg.Loss((s,)).text == "e\n" + s.text
    assert tg.Loss(()).score == 0


async def test_runs_and_their_order_and_the_mean():
    def judge(outputs):
        return outputs["a"]

    runs = [run({"a": x}, id=str(x)) for x in (0.1, 0.2, 0.6)]
    loss = await tg.Objective([judge]).acall(runs)
    assert [s.run for s in loss.scored] == runs
    assert loss.score == pytest.approx(0.3)


async def test_all_runs_are_judged_at_once():
    barrier = asyncio.Barrier(5)

    async def judge(outputs):
        await barrier.wait()
        return 1

    async with asyncio.timeout(10):
        await tg.Objective([judge]).acall([run(id=str(i)) for i in range(5)])


async def test_feedback_is_kept_under_the_objective():
    asked = []

    def judge(outputs):
        asked.append(1)
        return {"score": 0.5, "comment": outputs["a"]}

    with tg.use_ledger(tg.Ledger()):
        first = await scored(judge)
        again = await scored(judge)
        await scored(judge, weights={"judge": 2})
    assert first.feedback == tuple(again.feedback)
    assert len(asked) == 2


def test_fingerprint_follows_code_and_weights():
    assert re.fullmatch("[0-9a-f]{16}", tg.Objective([by_name]).fingerprint)
    assert tg.Objective([by_name]).fingerprint == tg.Objective([by_name]).fingerprint
    assert len({
        tg.Objective([by_name]).fingerprint,
        tg.Objective([awaited]).fingerprint,
        tg.Objective([by_name], weights={"a": 2}).fingerprint,
    }) == 3  # fmt: skip


async def test_mean_of_each_key_leaves_out_what_only_comments():
    def two(outputs):
        return [
            {"key": "length", "score": len(outputs["a"]) / 10},
            {"key": "remark", "comment": "hm"},
        ]

    runs = [run({"a": text}, id=text) for text in ("12", "1234")]
    loss = await tg.Objective([two]).acall(runs)
    assert loss.by_key == {"length": pytest.approx(0.3)}
    assert tg.Loss([]).by_key == {}
