"""Optimizers: gradients and history -> candidates. One file each; they propose and never apply."""

from lg_textgrad.optim.base import Attempt, Optimizer, Proposal
from lg_textgrad.optim.tgd import TextualGradientDescent

__all__ = ["Attempt", "Optimizer", "Proposal", "TextualGradientDescent"]
