"""The executor that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.executors.ray import Ray
from lg_textgrad.graph import TrainableGraph

_OPTIONS = ("env", "runs_per_worker", "runtime_env", "workers_per_node")


def make_executor(
    name: str, options: Mapping[str, Any], graph: TrainableGraph, spec: str
) -> AbstractContextManager[Any]:
    """Return where runs of `graph`, which `spec` names, are made; to be entered before the first.

    `name` is `local`, for this process, or `ray`, or `ray:ADDRESS`. Raises `ConfigurationError` for
    another, or an option that it doesn't have.
    """
    if name == "local":
        return nullcontext()
    kind, _, address = name.partition(":")
    if kind != "ray":
        raise ConfigurationError(
            f"There is no executor '{name}'; there are 'local', 'ray' and 'ray:ADDRESS'."
        )
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise ConfigurationError(
            f"The executor 'ray' has no option '{unknown[0]}'; it has {', '.join(_OPTIONS)}."
        )
    return Ray(graph, spec, address, **options)
