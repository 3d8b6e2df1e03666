"""What is given in the place of another part is refused with what to write."""

from __future__ import annotations

import pytest

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError
from tests import desk
from tests.parts import Chat, Scripted, echo

CHAT = Chat(answer=echo)
MODEL = Scripted(lambda request: "x")
CRITIC = tg.LLMCritic(MODEL)
GRAPH = desk.build()
OBJECTIVE = tg.Objective([lambda outputs: 1.0])
TGD = tg.optim.TextualGradientDescent
COMPILED = GRAPH.graph


def trainer(graph=GRAPH, objective=OBJECTIVE, critic=CRITIC, optimizer=TGD(MODEL)):
    return tg.Trainer(graph, objective, critic=critic, optimizer=optimizer)


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
    ],
)
def test_part_of_another_kind_is_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_optimizer_without_gradients_needs_no_critic():
    assert trainer(critic=None, optimizer=tg.optim.FewShot()).critic is None
