"""Evaluators in every shape that LangSmith accepts, and what is none."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langsmith.evaluation import EvaluationResult, RunEvaluator, run_evaluator
from langsmith.evaluation.evaluator import comparison_evaluator

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, EvaluatorError
from lg_textgrad.objective import read_result
from lg_textgrad.run import Feedback
from lg_textgrad.store import decode_run, encode_run
from tests.parts import Chat

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
        (sum([0.1] * 10), [Feedback("n", 1.0)]),
        (1.0000000000000002, [Feedback("n", 1.0)]),
        ({"score": -5e-17}, [Feedback("n", 0.0)]),
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
        (1.00001, "returned the score 1.00001, which"),
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

    with pytest.raises(EvaluatorError, match=r"No evaluator gave a score for example 'e' \('judge' said only 'x'\); at") as caught:
        await scored(judge)
    assert caught.value.run_id == "r"


async def test_words_alone_are_told_on_one_line_and_without_secrets():
    def judge(outputs):
        return "Bearer sk-proj-" + "a1B2" * 12 + "\nis " + "long " * 40

    with pytest.raises(EvaluatorError, match=r"'judge' said only '.{,80}'") as caught:
        await scored(judge)
    assert "a1B2a1B2" not in str(caught.value)


@pytest.mark.parametrize("is_async", [True, False])
async def test_evaluator_that_raises_is_raised_bare_and_named(is_async):
    def bad(outputs):
        raise ZeroDivisionError("oops")

    async def abad(outputs):
        raise ZeroDivisionError("oops")

    words = r"evaluator 'a?bad' raised ZeroDivisionError on example 'e': oops\. Mend it; what a run directory"
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
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="weight of 'k' must not be negative"):
            tg.Objective([by_name], weights={"k": weight})


# One score.


async def test_score_is_the_weighted_mean():
    def many(outputs):
        return [{"key": "a", "score": 1}, {"key": "b", "score": 0}, {"key": "c", "comment": "only words"}]

    assert (await scored(many)).score == 0.5
    assert (await scored(many, weights={"a": 3})).score == 0.75
    assert (await scored(many, weights={"a": 0})).score == 0
    with pytest.raises(EvaluatorError, match=r"All scores for example 'e' have the weight 0 \(a, b\)"):
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


# Objects, judges from libraries, summaries, and what is for something else.


class Syncly(RunEvaluator):
    def evaluate_run(self, run, example=None, evaluator_run_id=None):
        assert threading.current_thread() is not threading.main_thread()
        return EvaluationResult(key="k", score=run.outputs["a"] == "out", comment="c")


class Asyncly(RunEvaluator):
    async def aevaluate_run(self, run, example=None, evaluator_run_id=None):
        return {"results": [EvaluationResult(key="k", score=example.inputs["q"] == "in", comment="c")]}


@run_evaluator
def decorated(run, example):
    return {"key": "k", "score": run.outputs["a"] == "out", "comment": "c"}


@run_evaluator
async def decorated_async(outputs, reference_outputs):
    return {"key": "k", "score": outputs["a"] == "out" and reference_outputs["a"] == "ref", "comment": "c"}


@pytest.mark.parametrize("evaluator", [Syncly(), Asyncly(), decorated, decorated_async])
async def test_evaluator_that_is_an_object(evaluator):
    s = await scored(evaluator)
    assert [(f.key, f.score, f.comment) for f in s.feedback] == [("k", 1.0, "c")]


def by_position_only(run, example, /):
    return run.outputs["a"] == "out" and example.metadata == {"m": 1}


def named_and_the_rest(run, **kwargs):
    return run.outputs["a"] == "out" and kwargs["reference_outputs"] == {"a": "ref"}


def with_attachments(outputs, attachments):
    return attachments == {}


@pytest.mark.parametrize(
    "evaluator",
    [by_position_only, named_and_the_rest, with_attachments,
     functools.partial(with_default, strict=True)],
)  # fmt: skip
async def test_evaluator_called_as_langsmith_calls_it(evaluator):
    assert (await scored(evaluator)).score == 1


async def test_evaluator_finds_in_a_run_what_langsmith_has_there():
    call = tg.ModelCall("m", ({"role": "human", "content": "?"},), {"role": "ai", "content": "!"})
    tool = tg.ToolCall("look", {"w": 1}, "found")
    inner = tg.Execution("sub/w#0", "s|w", "sub/w", 1, 1, {"q": 1}, (("a", 2),), parent="sub#0", model_calls=(call,), tool_calls=(tool,))
    host = tg.Execution("sub#0", "s", "sub", 1, 0, {"q": 1})

    def latency_and_steps(run, example):
        [sub] = run.child_runs
        [w] = sub.child_runs
        asked, looked = w.child_runs
        assert (sub.name, w.name, w.outputs, asked.run_type, looked.outputs) == ("sub", "w", {"a": 2}, "llm", {"output": "found"})
        assert (run.end_time - run.start_time).total_seconds() == 1.5
        assert (run.reference_example_id, run.metadata["candidate"], run.error) == (example.id, "c", None)
        return isinstance(run, tg.Run) and isinstance(example, tg.Example)

    made = tg.Run("r", EXAMPLE, "c", {"a": 2}, (host, inner), seconds=1.5)
    assert (await scored(latency_and_steps, run=made)).score == 1


async def test_agentevals_judge_live_and_stored_runs_alike():
    from agentevals.trajectory.match import create_trajectory_match_evaluator

    call = {"name": "look", "args": {"w": 1}, "id": "c1"}
    wanted = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "look", "arguments": '{"w": 1}'}, "id": "c1", "type": "function"}]},
        {"role": "tool", "content": "found", "tool_call_id": "c1"},
        {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    said = [HumanMessage("hi"), AIMessage("", tool_calls=[call]), ToolMessage("found", tool_call_id="c1"), AIMessage("yes")]
    live = tg.Run("r", tg.Example("e", {}, {"messages": wanted}), "c", {"messages": said})
    stored = decode_run(encode_run(live), live.example)
    judge = create_trajectory_match_evaluator(trajectory_match_mode="strict")
    assert (await scored(judge, run=live)).score == (await scored(judge, run=stored)).score == 1
    other = dataclasses.replace(live, outputs={"messages": said[:1]})
    assert (await scored(judge, run=other)).score == 0


async def test_judges_comment_is_the_text_of_the_loss():
    from openevals.llm import create_llm_as_judge

    model = Chat(answer=lambda _: AIMessage("", tool_calls=[
        {"name": "score", "args": {"reasoning": "Not polite.", "score": False}, "id": "1"}]))  # fmt: skip

    class Structured(type(model)):
        def with_structured_output(self, schema, **_):
            return self | (lambda m: m.tool_calls[0]["args"])

    judge = create_llm_as_judge(prompt="Polite? {outputs}", judge=Structured(answer=model.answer), feedback_key="polite")
    s = await scored(judge)
    assert (s.score, s.text) == (0, "polite: Not polite.")


def accuracy(outputs, reference_outputs):
    return {"key": "all", "score": 7.5, "comment": f"{len(outputs)} of {len(reference_outputs)}"}


def by_runs(runs, examples):
    return [r.outputs["a"] == "out" and e.id == "e" for r, e in zip(runs, examples)][-1]


async def any_names(rs, es):
    return "words" if [r.example.id for r in rs] == [e.id for e in es] else 0


async def test_summary_evaluators_look_at_the_batch_and_decide_nothing():
    objective = tg.Objective([by_name], summary=[accuracy, by_runs, any_names])
    loss = await objective.acall([run(), run(id="s")])
    assert [f.key for s in loss.scored for f in s.feedback] == ["by_name"] * 2
    told = await objective.asummarize(loss.scored)
    assert [(f.key, f.score, f.comment) for f in told] == [
        ("all", 7.5, "2 of 2"), ("by_runs", 1.0, ""), ("any_names", None, "words"),
    ]  # fmt: skip
    assert await objective.asummarize([]) == []


async def test_summary_that_is_none_is_named():
    objective = tg.Objective([by_name], summary=[lambda runs, examples: None])
    with pytest.raises(EvaluatorError, match="evaluator '<lambda>' returned nothing for 2 runs"):
        await objective.asummarize((await objective.acall([run(), run(id="s")])).scored)


@comparison_evaluator
def prefers(runs, example):
    return [1, 0]


@pytest.mark.parametrize(
    ("evaluator", "words"),
    [
        (prefers, "'prefers' compares the runs of several experiments"),
        (lambda runs, example: 1, "compares the runs of several experiments"),
        (by_runs, r"'by_runs' takes all runs of a batch at once.*Objective\(\.\.\., summary="),
        ("words", "must be a function, not str"),
    ],
)
def test_evaluator_for_something_else_is_refused(evaluator, words):
    with pytest.raises(ConfigurationError, match=words):
        tg.Objective([evaluator])


def made(prompt, model="a", threshold=0.5):
    noted = []

    def judge(outputs):
        noted.append(prompt + model)
        return threshold

    return judge


def test_evaluators_from_one_factory_are_told_apart_by_what_they_hold():
    told = [tg.Objective([e]).fingerprint for e in (made("p"), made("q"), made("p", "b"), made("p", "a", 0.6))]
    assert len(set(told)) == 4
    assert tg.Objective([made("p")]).fingerprint == told[0]
    assert tg.Objective([functools.partial(with_default, strict=True)]).fingerprint != (
        tg.Objective([functools.partial(with_default, strict=False)]).fingerprint
    )
    assert tg.Objective([decorated]).fingerprint != tg.Objective([decorated_async]).fingerprint


def test_judges_with_other_prompts_are_other_evaluators():
    from openevals.llm import create_llm_as_judge

    model = Chat(answer=str)
    told = [
        tg.Objective([create_llm_as_judge(prompt=p, judge=model, feedback_key="k")]).fingerprint
        for p in ("Polite? {outputs}", "Short? {outputs}", "Polite? {outputs}")
    ]
    assert told[0] == told[2] != told[1]


async def test_evaluator_that_counts_stays_the_same_one():
    class Counts:
        calls = 0

        def __call__(self, outputs):
            self.calls += 1
            return 1

    objective = tg.Objective([Counts()])
    before = objective.fingerprint
    await objective.acall([run()])
    assert objective.fingerprint == before


# Judges that waver.


async def test_repeated_judgements_are_really_asked_again_paid_once_and_averaged():
    model = Chat(answer=lambda m: str(len(model.calls)))

    async def judge(outputs):
        n = int((await model.ainvoke("How good is it? " + outputs["a"])).content)
        return {"key": "k", "score": n / 10, "comment": f"judgement {n}"}

    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        one = await scored(judge, repeats=3)
        again = await scored(judge, repeats=3)
    assert one.score == pytest.approx(0.2)
    assert [(f.key, f.comment, f.reads) for f in one.feedback] == [("k", "judgement 2", frozenset({"a"}))]
    assert list(again.feedback) == list(one.feedback)
    assert ledger.account.spent.calls == 3


async def test_repeats_of_several_keys_are_joined_by_key():
    turns = iter([1.0, 0.0])

    def judge(outputs):
        score = next(turns)
        return [{"key": "a", "score": score}, {"key": "b", "comment": "fine"}]

    result = await scored(judge, repeats=2)
    assert [(f.key, f.score, f.comment) for f in result.feedback] == [("a", 0.5, ""), ("b", None, "fine")]


def test_repeats_make_another_objective_and_one_must_be_there():
    assert tg.Objective([by_name]).fingerprint == tg.Objective([by_name], repeats=1).fingerprint
    assert tg.Objective([by_name], repeats=2).fingerprint != tg.Objective([by_name]).fingerprint
    with pytest.raises(ConfigurationError, match="`repeats` of Objective must be .* at least 1, not 0"):
        tg.Objective([by_name], repeats=0)


async def test_evaluators_of_one_run_are_asked_at_once():
    barrier = asyncio.Barrier(2)

    async def one(outputs):
        await barrier.wait()
        return True

    async def two(outputs):
        await barrier.wait()
        return True

    async with asyncio.timeout(5):
        await scored(one, two)


async def test_corrected_label_or_metadata_is_scored_anew_though_the_run_is_the_same():
    def right(outputs, reference_outputs):
        return outputs["a"] == reference_outputs["a"]

    def of_team(run, example):
        return {"key": "team", "score": example.metadata["m"] == 1}

    objective, wrong = tg.Objective([right, of_team]), run()
    mended = dataclasses.replace(wrong, example=tg.Example("e", {"q": "in"}, {"a": "out"}, {"m": 1}))
    moved = dataclasses.replace(mended, example=dataclasses.replace(mended.example, metadata={"m": 2}))
    with tg.Store() as old, tg.Store() as new:
        with tg.use_ledger(tg.Ledger(old)):
            assert (await objective.acall([wrong])).score == 0.5
        new.take_over(old)
        with tg.use_ledger(tg.Ledger(new)):
            scores = [(await objective.acall([r])).score for r in (wrong, mended, moved, mended)]
    assert scores == [0.5, 1, 0.5, 1]
