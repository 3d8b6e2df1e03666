"""Tune the prompts of any LangGraph agent by backpropagation through text."""

from __future__ import annotations

from lg_textgrad._version import __version__
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.parameter import Parameter
