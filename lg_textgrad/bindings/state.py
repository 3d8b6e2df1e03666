"""Any text in the graph's input state that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pydantic import BaseModel

from lg_textgrad.bindings.base import Held
from lg_textgrad.errors import DataError, ParameterError
from lg_textgrad.parameter import Parameter, prompts
from lg_textgrad.run import Execution


class StateText:
    """Holds a text that the graph is given with its inputs: `StateText(policy, "rules.refund")`.

    `key` says where the text stands in the inputs, by default under the parameter's name: a state
    key, and after each dot a key, the number of an element or a field inside of it. Every run gets
    the candidate's text there, whatever the example has in that place. Placeholders are the graph's
    to fill. An execution reads the parameter when its input has the text under that state key and,
    as far as that could be observed, the node looked at it. Raises `ParameterError` for a `key`
    with an empty part.
    """

    def __init__(self, parameter: Parameter, key: str | None = None) -> None:
        self.parameter = parameter
        self.key = parameter.name if key is None else key
        self._path = self.key.split(".")
        if not all(self._path):
            raise ParameterError(
                f"'{self.key}' names no place in the state; write a key such as 'policy', or "
                "'rules.refunds' for what is inside of one.",
                parameter=parameter.name,
            )

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {self.parameter.name: self.parameter}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Where the text goes decides what a run does."""
        return {"state": {self.parameter.name: self.key}}

    def held(self, name: str) -> Held:  # noqa: ARG002
        return Held(f"text in the state, under '{self.key}'")

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return the inputs with the candidate's text in them; the given ones stay as they are.

        Raises `DataError` when they have something else where the way to it leads.
        """
        given: Mapping[str, Any] = self._put(dict(inputs), self._path, self._text(candidate))
        return given

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        return prompts({self.parameter.name: self._text(candidate)})

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:  # noqa: ARG002
        return {}

    def readers(
        self, candidate: Mapping[str, str], executions: Sequence[Execution]
    ) -> Iterator[tuple[str, str, str]]:
        """Yield execution, parameter and text of each execution that read it."""
        text, key = self._text(candidate), self._path[0]
        for execution in executions:
            given = execution.inputs.get(key) if isinstance(execution.inputs, Mapping) else None
            looked = execution.reads is None or key in execution.reads
            if looked and _has(given, text):
                yield execution.id, self.parameter.name, text

    def _text(self, candidate: Mapping[str, str]) -> str:
        return candidate.get(self.parameter.name, self.parameter.full)

    def _put(self, value: Any, path: Sequence[str], text: str) -> Any:
        """Return a copy of the value with the text at the path; what is not on it is shared."""
        if not path:
            return text
        first, rest = path[0], path[1:]
        if value is None:
            value = {}
        if isinstance(value, Mapping):
            return {**value, first: self._put(value.get(first), rest, text)}
        if isinstance(value, list | tuple):
            if not first.isdigit() or int(first) >= len(value):
                raise self._lost(f"a list of {len(value)}", first)
            items = list(value)
            items[int(first)] = self._put(items[int(first)], rest, text)
            return items if isinstance(value, list) else tuple(items)
        model = isinstance(value, BaseModel)
        if not (model or dataclasses.is_dataclass(value)) or not hasattr(value, first):
            raise self._lost(f"a {type(value).__name__}", first)
        inside = {first: self._put(getattr(value, first), rest, text)}
        return value.model_copy(update=inside) if model else dataclasses.replace(value, **inside)

    def _lost(self, what: str, missing: str) -> DataError:
        return DataError(
            f"The text of '{self.parameter.name}' cannot be put into the inputs under "
            f"'{self.key}': there is {what} that has no '{missing}'. Correct the key, or the "
            "example's inputs."
        )


def _has(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return value == text
    if isinstance(value, Mapping):
        return any(_has(inner, text) for inner in value.values())
    return isinstance(value, list) and any(_has(inner, text) for inner in value)
