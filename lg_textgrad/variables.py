"""Where a run has a text, and the run with another one in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage

from lg_textgrad._hashing import digest
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.recording.live import LiveSource
from lg_textgrad.recording.substituting import Substitution
from lg_textgrad.run import Execution, Run
from lg_textgrad.trace import Trace


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run has the text of one state key."""

    run: Run
    variable: str
    text: str
    writer: Execution | None
    """Who has to write another text, for later nodes to read it; None where nobody reads it."""

    @classmethod
    def of(cls, run: Run, variable: str | None) -> Place:
        """Raises `ConfigurationError` when the run has no such text."""
        written = _written(run.executions)
        outputs = run.outputs or {}
        texts = {n: t for n, v in outputs.items() if (t := _text_of(v)) is not None}
        name = variable or _last(written, texts)
        if name is None:
            raise ConfigurationError(
                "The graph's output has no text to improve; name a state key that has one: "
                f"variable=... The output has {', '.join(outputs) or 'nothing'}."
            )
        writer = written.get(name)
        if writer is not None and _is_read(run, writer, name):
            text = next(v for c, v in reversed(writer.writes) if c == name)
            if isinstance(text, str):
                return cls(run, name, text, writer)
        if name in texts:
            return cls(run, name, texts[name], None)
        known = [*texts, *(n for n, e in written.items() if n not in texts and _wrote(e, n))]
        raise ConfigurationError(
            f"The run has no text under '{name}'; there are {', '.join(known) or 'none'}."
        )

    async def awith(self, graph: TrainableGraph, text: str) -> Run | None:
        """Return the run with another text; None where its writer didn't come again."""
        run_id = digest("refined", self.run.id, self.variable, text)[:32]
        if self.writer is None:
            outputs = dict(self.run.outputs or {})
            outputs[self.variable] = _replaced(outputs[self.variable], text)
            return replace(self.run, id=run_id, outputs=outputs)
        if graph.graph is None:
            raise ConfigurationError(
                f"Other nodes read '{self.variable}', and this graph does not run in this process, "
                "so they cannot be shown another text; name a text that only the output has."
            )
        substitution = Substitution(self.variable, self.writer, text)
        other = copy.copy(graph)
        other.source = LiveSource(substitution.into(graph.graph, self.writer.path))
        example = graph.example_of(self.run)
        example = replace(example, id=f"{example.id}/{run_id[:12]}")
        [run] = await other.arecord([example], sample=self.run.sample)
        taken = any(
            (self.variable, text) in e.writes for e in run.executions if e.id == self.writer.id
        )
        return run if taken or run.error is not None else None


def _written(executions: Iterable[Execution]) -> dict[str, Execution]:
    """Return state key -> the execution of the graph's own nodes that wrote it last."""
    return {
        channel: execution
        for execution in executions
        if execution.parent is None
        for channel, _ in execution.writes
    }


def _wrote(execution: Execution, channel: str) -> bool:
    return any(c == channel and isinstance(v, str) for c, v in execution.writes)


def _last(written: Mapping[str, Execution], texts: Mapping[str, str]) -> str | None:
    """Return the key of the output text that was written last."""
    found = [name for name in texts if name in written]
    return max(found, key=lambda name: written[name].order, default=None)


def _is_read(run: Run, writer: Execution, channel: str) -> bool:
    """Return whether another execution used what `writer`, or a node inside it, wrote there."""
    inside = {writer.id}
    for execution in run.executions:  # a parent stands before its children
        if execution.parent in inside:
            inside.add(execution.id)
    trace = Trace.of(run)
    return any(
        producer in inside and channel in channels
        for execution in run.executions
        if execution.id not in inside
        for producer, channels in trace.producers(execution.id).items()
    )


def _text_of(value: Any) -> str | None:
    """Return a value that is a text, or the text of the last of a list of messages."""
    if isinstance(value, str):
        return value
    last = value[-1] if isinstance(value, list) and value else None
    if isinstance(last, BaseMessage):
        return last.content if isinstance(last.content, str) else None
    if isinstance(last, Mapping) and {"role", "content"} <= last.keys():
        return last["content"] if isinstance(last["content"], str) else None
    return None


def _replaced(value: Any, text: str) -> Any:
    """Return a value of the output with another text, in the form that it had."""
    if isinstance(value, str):
        return text
    last = value[-1]
    if isinstance(last, BaseMessage):
        return [*value[:-1], last.model_copy(update={"content": text})]
    return [*value[:-1], {**last, "content": text}]
