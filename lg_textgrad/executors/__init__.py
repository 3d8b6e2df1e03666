"""Where runs of a graph are made, when not in this process."""

from lg_textgrad.executors.named import make_executor
from lg_textgrad.executors.ray import Ray

__all__ = ["Ray", "make_executor"]
