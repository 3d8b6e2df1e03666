"""Optimizers: gradients and history -> candidates. One file each; they propose and never apply."""

from lg_textgrad.optim.base import Attempt, Bench, Optimizer, Proposal, Search
from lg_textgrad.optim.fewshot import FewShot
from lg_textgrad.optim.gepa import GEPA
from lg_textgrad.optim.mipro import MIPRO
from lg_textgrad.optim.output_rules import OutputRules
from lg_textgrad.optim.portfolio import Portfolio
from lg_textgrad.optim.promptbreeder import Promptbreeder
from lg_textgrad.optim.recorded import FromRuns
from lg_textgrad.optim.strategies import Strategies
from lg_textgrad.optim.tgd import TextualGradientDescent

__all__ = [
    "GEPA",
    "MIPRO",
    "Attempt",
    "Bench",
    "FewShot",
    "FromRuns",
    "Optimizer",
    "OutputRules",
    "Portfolio",
    "Promptbreeder",
    "Proposal",
    "Search",
    "Strategies",
    "TextualGradientDescent",
]
