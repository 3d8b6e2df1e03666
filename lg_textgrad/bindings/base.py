"""What a way of holding a prompt has to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from lg_textgrad.parameter import Parameter, prompts
from lg_textgrad.run import Execution


@dataclass(frozen=True, slots=True)
class Held:
    """How a graph holds one of its prompts."""

    how: str
    """For people: `declared in the node`, `context field`, …"""
    nodes: tuple[str, ...] = ()
    """Paths of the nodes that read it; empty where only a run can tell."""


class Binding(Protocol):
    """Puts a candidate's texts where the nodes of one run read them."""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters that this binding holds, by name."""
        ...

    def held(self, name: str) -> Held:
        """Return how, and as far as that is known where, the graph holds the parameter `name`."""
        ...

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return the inputs that a run under `candidate` gets in place of the example's."""
        ...

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return a context in which a run sees `candidate`, and nothing else does."""
        ...

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:
        """Return further keyword arguments for the graph's `ainvoke`, such as `context`.

        Of a `config` among them only what is `configurable` counts.
        """
        ...


@runtime_checkable
class ReadsLater(Protocol):
    """A binding whose texts are read unnoticed: only the record of a run shows by whom."""

    def readers(
        self, candidate: Mapping[str, str], executions: Sequence[Execution]
    ) -> Iterable[tuple[str, str, str]]:
        """Yield execution id, parameter and text of each execution that read one of its texts."""
        ...


def with_readers(
    executions: Sequence[Execution], bindings: Iterable[Binding], candidate: Mapping[str, str]
) -> Sequence[Execution]:
    """Return the executions with what was read unnoticed among their `prompts`."""
    noted: dict[str, dict[str, str]] = {}
    for binding in bindings:
        if isinstance(binding, ReadsLater):
            for execution, name, text in binding.readers(candidate, executions):
                noted.setdefault(execution, {})[name] = text
    if not noted:
        return executions
    return tuple(
        replace(e, prompts={**e.prompts, **noted[e.id]}) if e.id in noted else e
        for e in executions
    )


class Declared:
    """`Parameter` objects that the nodes read themselves: the candidate in scope is enough."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = dict(parameters)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._parameters

    def held(self, name: str) -> Held:
        by_agent = self._parameters[name].in_middleware
        return Held("put in by create_agent middleware" if by_agent else "declared in the node")

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]  # noqa: ARG002
    ) -> Mapping[str, Any]:
        return inputs

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        return prompts(candidate)

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:  # noqa: ARG002
        return {}
