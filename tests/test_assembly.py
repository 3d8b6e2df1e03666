"""From a configuration to optimizers and critics."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from langgraph.graph import START, MessagesState, StateGraph

import lg_textgrad as tg
from lg_textgrad.assembly import (
    ACCEPTANCE,
    CRITICS,
    OPTIMIZERS,
    make_acceptance,
    make_critic,
    make_optimizer,
    read_options,
)
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.loading import Config
from tests.parts import Scripted

MODEL = Scripted(lambda request: "")


class Mine(tg.optim.TextualGradientDescent):
    pass


def build():
    return 3


DOCS = (Path(__file__).parent.parent / "docs" / "optimizers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_is_documented_with_its_class(name):
    assert f"| `{name}` | `{OPTIMIZERS[name].__name__}` |" in DOCS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_option_is_documented_with_its_default(name):
    section = DOCS.split(f"## {OPTIMIZERS[name].__name__}\n")[1].split("\n## ")[0]
    options = inspect.signature(OPTIMIZERS[name]).parameters
    told = {
        option: default
        for names, defaults in re.findall(r"^\| (`.+?) \| (.+?) \|", section, re.M)
        for option, default in zip(
            re.findall(r"`(\w+)`", names), re.findall(r"\([^)]*\)|all six|[\w./]+", defaults), strict=True
        )
    }
    assert told.keys() == options.keys() - {"model", "parameters", "seed"}
    for option, default in told.items():
        assert default in (str(options[option].default), str(options[option].default).lower(), "all six") or (
            (default, options[option].default) in (("none", ()), ("1/3", 1 / 3))
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_makes_its_optimizer(name):
    assert type(make_optimizer(name, MODEL, 7, {})) is OPTIMIZERS[name]


def test_options_and_seed_reach_the_optimizer():
    made = make_optimizer("tgd", MODEL, 7, {"max_edits": 2})
    assert (made.model, made.seed, made.max_edits) == (MODEL, 7, 2)


def test_members_of_a_portfolio_are_named():
    made = make_optimizer("portfolio", MODEL, 7, {"members": ["fewshot", "tgd"], "rounds": 1})
    assert [type(m) for m in made.members] == [tg.optim.FewShot, tg.optim.TextualGradientDescent]
    assert [m.seed for m in made.members] == [7, 7]
    assert made.members[1].model is MODEL


def test_optimizer_of_the_users_own_is_named_by_its_place():
    assert type(make_optimizer(f"{__name__}:Mine", MODEL, 0, {})) is Mine


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sgd", {}, "There is no optimizer 'sgd'; there are 'tgd'"),
        ("tgd", {"momentum_": 1}, "has no option 'momentum_'; it has beam, constraints"),
        ("tgd", {"parameters": []}, "has no option 'parameters'"),
        ("tgd", {"beam": True}, "'beam' of the optimizer 'tgd' must be a whole number like 1, not True"),
        ("tgd", {"notes_as_lines": "no"}, "must be true or false like True, not 'no'"),
        ("tgd", {"temperature": "hot"}, "must be a number like 0.0, not 'hot'"),
        ("tgd", {"constraints": "Write English."}, "must be a list like"),
        ("mipro", {"sizes": 3}, r"must be a list like \[3, 6\], not 3"),
        (f"{__name__}:build", {"x": 1}, "has no option 'x'; it has none"),
        (f"{__name__}:build", {}, "makes a int, which is no lg_textgrad Optimizer"),
        (f"{__name__}:Missing", {}, "has no 'Missing'"),
        ("portfolio", {"members": "tgd"}, "is a list of names, as in"),
        ("portfolio", {"members": []}, "is a list of names, as in"),
        ("portfolio", {"members": ["tgd", "gepa"]}, "'gepa' has a loop of its own"),
        ("portfolio", {"members": ["none"]}, "There is no optimizer 'none'"),
        ("tgd", {"members": ["tgd"]}, "has no option 'members'"),
    ],
)
def test_what_cannot_be_made_is_said(name, options, words):
    with pytest.raises(ConfigurationError, match=words):
        make_optimizer(name, MODEL, 0, options)


def test_options_are_read_as_toml_or_as_they_stand():
    given = ["beam=3", "edits = whole", "sizes=[2, 4]", "focus=false", "temperature=0.5", "a=x=y", 'b="3"']
    assert read_options(given) == {
        "beam": 3, "edits": "whole", "sizes": [2, 4], "focus": False, "temperature": 0.5, "a": "x=y", "b": "3",
    }  # fmt: skip
    assert read_options(()) == {}


def a_critic(**settings):
    builder = StateGraph(MessagesState).add_node("n", lambda _: {}).add_edge(START, "n")
    graph = tg.TrainableGraph(builder.compile(), [tg.Parameter("p", "text")])
    return make_critic(Config(**settings), MODEL, graph, tg.Objective([lambda outputs: True]))


@pytest.mark.parametrize("name", CRITICS)
def test_each_name_makes_its_critic(name):
    assert type(a_critic(critic=name)) is CRITICS[name]


def test_critic_judges_node_by_node_unless_it_is_told_otherwise():
    assert type(a_critic()) is tg.LLMCritic


def test_options_and_brevity_reach_the_critic():
    made = a_critic(critic="node", brief_critic=True, critic_options={"max_tokens": 77})
    assert (made.model, made.brief, made.max_tokens) == (MODEL, True, 77)
    made = a_critic(critic="auto", brief_critic=True, critic_options={"share": 1})
    assert (made.node.brief, made.share) == (True, 1)


@pytest.mark.parametrize(("around", "kind"), [(None, "node"), ("trace", "trace"), ("auto", "auto")])
def test_proven_credit_is_put_around_the_critic_that_is_named(around, kind):
    options = {"most": 3} if around is None else {"most": 3, "around": around}
    made = a_critic(critic="proven", critic_options=options)
    assert (made.most, type(made.critic)) == (3, CRITICS[kind])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nodes", {}, "There is no critic 'nodes'; there are 'node', 'trace', 'auto', 'proven', 'self_rewarding'"),
        ("trace", {"tokens": 1}, "The critic 'trace' has no option 'tokens'; it has max_tokens, max"),
        ("node", {"model": "x"}, "The critic 'node' has no option 'model'"),
        ("node", {"max_tokens": "9"}, "'max_tokens' of the critic 'node' must be a whole number like 300"),
        ("auto", {"share": 0}, "`share` of AutoCritic must be .*, not 0"),
        ("proven", {"around": "proven"}, "cannot be `around` itself"),
        ("proven", {"around": "self_rewarding"}, "cannot be `around` one that learns"),
        ("self_rewarding", {"every": 0}, "`every` of SelfRewardingCritic must be .* at least 1, not 0"),
        ("self_rewarding", {"locked": 1}, "'self_rewarding' has no option 'locked'; it has every, history"),
        ("proven", {"around": "x"}, "There is no critic 'x'"),
        ("proven", {"objective": 1}, "has no option 'objective'; it has .*around"),
    ],
)
def test_critic_that_cannot_be_made_is_said(name, options, words):
    with pytest.raises(ConfigurationError, match=words):
        a_critic(critic=name, critic_options=options)


GATE = (Path(__file__).parent.parent / "docs" / "how-it-works.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ACCEPTANCE)
def test_each_acceptance_policy_is_made_by_its_name_and_documented_with_its_options(name):
    assert type(make_acceptance(Config(acceptance=name))) is ACCEPTANCE[name]
    takes = ", ".join(n for n in inspect.signature(ACCEPTANCE[name]).parameters if n != "seed")
    assert f"| `{name}` | `{ACCEPTANCE[name].__name__}({takes})` |" in GATE


def test_options_gain_and_seed_reach_the_policy_and_those_within_it():
    given = {"acceptance": "significant", "acceptance_options": {"alpha": 0.05}}
    assert make_acceptance(Config(**given, min_gain=0.1, seed=3)) == tg.Significant(0.05, 1, 0.1, 3)
    assert make_acceptance(Config(min_gain=0.1)) == tg.Better(0.1)
    options = {"inner": "significant", "anchors": ["e1"]}
    guarded = make_acceptance(Config(acceptance="guarded", acceptance_options=options, min_gain=0.2))
    assert guarded == tg.Guarded(tg.Significant(min_gain=0.2), anchors=("e1",))
    assert make_acceptance(Config(acceptance="priced", min_gain=0.2)).inner == tg.Better(0.2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("best", {}, "There is no acceptance policy 'best'; there are 'better', 'significant'"),
        ("better", {"alpha": 0.1}, "The acceptance policy 'better' has no option 'alpha'"),
        ("better", {"min_gain": 0.1}, "has no option 'min_gain'"),
        ("significant", {"alpha": "low"}, "must be a number like 0.1, not 'low'"),
        ("significant", {"alpha": 2.0}, "`alpha` of Significant must be .* between 0 and 1, not 2.0"),
        ("priced", {"inner": "sequential"}, "use one of the two"),
        ("guarded", {"inner": "none"}, "There is no acceptance policy 'none'"),
        ("guarded", {"inner": {"alpha": 1}}, "There is no acceptance policy {'alpha': 1}"),
    ],
)
def test_policy_that_cannot_be_made_is_said(name, options, words):
    with pytest.raises(ConfigurationError, match=words):
        make_acceptance(Config(acceptance=name, acceptance_options=options))
