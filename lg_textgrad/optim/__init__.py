"""Optimizers: gradients and history -> candidates. One file each; they propose and never apply."""

from lg_textgrad.optim.base import Attempt, Bench, Optimizer, Proposal, Search
from lg_textgrad.optim.tgd import TextualGradientDescent

__all__ = ["Attempt", "Bench", "Optimizer", "Proposal", "Search", "TextualGradientDescent"]
