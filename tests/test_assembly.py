"""From a configuration to optimizers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import lg_textgrad as tg
from lg_textgrad.assembly import OPTIMIZERS, make_optimizer, read_options
from lg_textgrad.errors import ConfigurationError
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


@pytest.mark.parametrize("name", ["tgd", "mipro", "gepa", "promptbreeder"])
def test_each_option_is_documented_with_its_default(name):
    section = DOCS.split(f"## {OPTIMIZERS[name].__name__}\n")[1].split("\n## ")[0]
    options = inspect.signature(OPTIMIZERS[name]).parameters
    told = {
        option: default
        for names, defaults in re.findall(r"^\| (`.+?) \| (.+?) \|", section, re.M)
        for option, default in zip(
            re.findall(r"`(\w+)`", names), re.findall(r"\([^)]*\)|all six|[\w.]+", defaults), strict=True
        )
    }
    assert told.keys() == options.keys() - {"model", "parameters", "seed"}
    for option, default in told.items():
        assert default in (str(options[option].default), str(options[option].default).lower(), "all six") or (
            (default, options[option].default) == ("none", ())
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_makes_its_optimizer(name):
    assert type(make_optimizer(name, MODEL, 7, {})) is OPTIMIZERS[name]


def test_options_and_seed_reach_the_optimizer():
    made = make_optimizer("tgd", MODEL, 7, {"max_edits": 2})
    assert (made.model, made.seed, made.max_edits) == (MODEL, 7, 2)


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
        ("portfolio", {"members": ["tgd"]}, "has no option 'members'"),
        (f"{__name__}:build", {"x": 1}, "has no option 'x'; it has none"),
        (f"{__name__}:build", {}, "makes a int, which is no lg_textgrad Optimizer"),
        (f"{__name__}:Missing", {}, "has no 'Missing'"),
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
