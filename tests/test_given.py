"""What is given in the place of another part is refused with what to write."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, DataError
from tests import desk
from tests.parts import Chat, Scripted, echo

CHAT = Chat(answer=echo)
MODEL = Scripted(lambda request: "x")
CRITIC = tg.LLMCritic(MODEL)
GRAPH = desk.build()
OBJECTIVE = tg.Objective([lambda outputs: 1.0])
TGD = tg.optim.TextualGradientDescent
COMPILED = GRAPH.graph


def trainer(graph=GRAPH, objective=OBJECTIVE, critic=CRITIC, optimizer=TGD(MODEL), **options):
    return tg.Trainer(graph, objective, critic=critic, optimizer=optimizer, **options)


def refine(**options):
    return tg.refine(COMPILED, {"message": "x"}, OBJECTIVE, model=MODEL, **options)


ASKERS = [
    tg.LLMCritic, tg.TraceCritic, tg.AutoCritic, TGD, tg.optim.GEPA, tg.optim.MIPRO,
    tg.optim.Promptbreeder, tg.optim.Portfolio,
    lambda model: tg.ProvenCredit(CRITIC, GRAPH, OBJECTIVE, model=model),
    lambda model: tg.refine(COMPILED, {"messages": []}, OBJECTIVE, model=model),
    lambda model: tg.refine(COMPILED, {"messages": []}, OBJECTIVE, model=MODEL, critic=model),
]  # fmt: skip


@pytest.mark.parametrize("asker", ASKERS)
def test_whoever_asks_a_model_refuses_a_bare_chat_model(asker):
    with pytest.raises(ConfigurationError, match=r"not a Chat; wrap it: tg\.models\.LangChain\("):
        asker(CHAT)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TGD("gpt-4o-mini"), r"not a str; name it so: tg\.models\.OpenAI\('gpt-4o-mini'\)"),
        (lambda: TGD(tg.models.OpenAI), r"not the class OpenAI; give tg\.models\.OpenAI\(NAME\)"),
        (lambda: tg.models.LangChain("gpt-4o-mini"), "LangChain needs a BaseChatModel, not a str"),
        (lambda: tg.Objective(len), r"`evaluators` of Objective needs .*\[evaluator\]"),
        (lambda: tg.Objective([len], summary=len), r"`summary` of Objective needs"),
        (lambda: tg.refine(COMPILED, {}, len, model=MODEL), r"refine needs an Objective, not a"),
        (lambda: trainer(graph=COMPILED), "a TrainableGraph, not a CompiledStateGraph; make one"),
        (lambda: trainer(objective=len), "Trainer needs an Objective"),
        (lambda: trainer(critic=MODEL), r"Trainer needs a critic, not a Scripted; .*tg\.LLMCritic"),
        (lambda: trainer(critic=tg.LLMCritic), "not the class LLMCritic"),
        (lambda: trainer(optimizer=MODEL), "Trainer needs an Optimizer, not a Scripted"),
        (lambda: tg.ProvenCredit(MODEL, GRAPH, OBJECTIVE), "ProvenCredit needs a critic"),
        (lambda: tg.ProvenCredit(CRITIC, COMPILED, OBJECTIVE), "ProvenCredit needs a TrainableGraph"),
        (lambda: tg.SelfRewardingCritic(MODEL), "SelfRewardingCritic needs a critic"),
        (lambda: tg.SelfRewardingCritic(tg.TraceCritic(MODEL)), "has no instruction"),
        (lambda: tg.Loss(()).backward(MODEL), "backward needs a critic"),
        (lambda: trainer(acceptance="significant"), r"`acceptance` of Trainer must be an object with `decide`, such as tg\.Significant\(\), not 'significant'"),
        (lambda: trainer(acceptance=tg.Significant), "`acceptance` of Trainer must be an object .* not <class"),
        (lambda: trainer(selection=tg.Pareto), r"`selection` of Trainer must be an object with `parent`, such as tg\.Pareto\(\)"),
        (lambda: trainer(screening="batch"), r"`screening` of Trainer must be an object with `ascreen`, such as tg\.OnBatch\(\)"),
        (lambda: trainer(store=5), "`store` of Trainer needs a run directory, a URL or a Store, not an int"),
        (lambda: refine(budget=5), r"`budget` of refine needs a Budget, not an int; make one: tg\.Budget\(calls=500\)"),
        (lambda: refine(store=5), "`store` of refine needs a run directory, a URL or a Store, not an int"),
        (lambda: refine(answer_of="text"), "`answer_of` of refine must be a function, not a str"),
    ],
)
def test_part_of_another_kind_is_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_optimizer_without_gradients_needs_no_critic():
    assert trainer(critic=None, optimizer=tg.optim.FewShot()).critic is None


COUNTED = [
    (tg.Schedule, {"steps": "2"}),
    (tg.Schedule, {"batch_size": 2.5}),
    (tg.Schedule, {"patience": 0}),
    (tg.Patience, {"attempts": True}),
    (tg.Ledger, {"max_concurrency": "4"}),
    (tg.Objective, {"repeats": 0}),
    (TGD, {"beam": 0}),
    (TGD, {"max_tokens": 0}),
    (tg.optim.FewShot, {"max_tokens": 0}),
    (TGD, {"momentum": -1}),
    (tg.optim.FewShot, {"sizes": (0,)}),
    (tg.optim.FewShot, {"sets": "1"}),
    (tg.optim.MIPRO, {"gate_every": 0}),
    (tg.optim.MIPRO, {"instructions": -1}),
    (tg.optim.Promptbreeder, {"population": 1}),
    (tg.optim.GEPA, {"merges": -1}),
    (tg.optim.Portfolio, {"rounds": "3"}),
    (tg.SelfRewardingCritic, {"every": 0}),
    (tg.SelfRewardingCritic, {"history": 1}),
    (tg.acceptance.Significant, {"tries": 0}),
    (tg.acceptance.Sequential, {"chunk": 0}),
    (tg.models.OpenAI, {"max_retries": -1}),
    (tg.models.Local, {"slots": 0}),
    (tg.executors.Ray, {"runs_per_worker": 0}),
]
NUMBERED = [
    (tg.Patience, {"timeout": "60"}),
    (tg.Patience, {"timeout": math.nan}),
    (tg.Patience, {"first_pause": -1}),
    (tg.AutoCritic, {"share": 0}),
    (tg.optim.Portfolio, {"keep": 1}),
    (TGD, {"temperature": "hot"}),
    (tg.optim.FewShot, {"threshold": 90}),
    (tg.optim.Promptbreeder, {"threshold": -0.1}),
    (tg.acceptance.Better, {"min_gain": "0.1"}),
    (tg.acceptance.Significant, {"alpha": 1}),
    (tg.acceptance.Sequential, {"hope": -0.1}),
    (tg.acceptance.Guarded, {"tolerance": math.nan}),
    (tg.acceptance.Priced, {"per_second": math.inf}),
    (tg.models.OpenAI, {"timeout": 0}),
]
NEEDED = {
    tg.Objective: ([len],), tg.models.OpenAI: ("m",), tg.SelfRewardingCritic: (CRITIC,),
    **dict.fromkeys((TGD, tg.optim.MIPRO, tg.optim.Promptbreeder, tg.optim.GEPA), (MODEL,)),
    tg.executors.Ray: (GRAPH, "m:g"), tg.optim.Portfolio: (MODEL,), tg.AutoCritic: (MODEL,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [(*each, "a whole number of at least") for each in COUNTED]
    + [(*each, "a number") for each in NUMBERED],
)
def test_a_number_that_cannot_work_is_named_with_whose_it_is(kind, given, words):
    [(name, value)] = given.items()
    value = value[0] if isinstance(value, tuple) else value
    said = rf"^`{name}` of {kind.__name__} must be {words} .*, not {re.escape(repr(value))}\.$"
    with pytest.raises(ConfigurationError, match=said):
        kind(*NEEDED.get(kind, ()), **given)


@pytest.mark.parametrize("examples", ["train.jsonl", Path("train.jsonl"), {"inputs": {"message": "x"}}])
def test_file_or_one_row_in_the_place_of_rows_is_told_with_what_to_write(examples):
    with pytest.raises(DataError, match=r"^Examples are a list of rows, not .*read a file with tg\.read_examples\(PATH\)"):
        GRAPH.record(examples)
    with pytest.raises(DataError, match="^Examples are a list of rows, not ('train.jsonl'|one row);"):
        trainer().fit(examples, [{"inputs": {"message": "x"}}])
