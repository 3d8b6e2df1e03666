"""What a way of holding a prompt has to do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from lg_textgrad.parameter import Parameter, prompts


class Binding(Protocol):
    """Puts a candidate's texts where the nodes of one run read them."""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters that this binding holds, by name."""
        ...

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return a context in which a run sees `candidate`, and nothing else does."""
        ...

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:
        """Return further keyword arguments for the graph's `ainvoke`, such as `context`."""
        ...


class Declared:
    """`Parameter` objects that the nodes read themselves: the candidate in scope is enough."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = dict(parameters)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._parameters

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        return prompts(candidate)

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:  # noqa: ARG002
        return {}
