"""Where runs of a graph are made, when not in this process."""

from lg_textgrad.executors.ray import Ray

__all__ = ["Ray"]
