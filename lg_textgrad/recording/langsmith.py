"""Recordings from traces that LangSmith has kept, without running the graph again.

What LangChain's tracer stored is told to the recorder that live runs use. What a trace doesn't say:

- which state keys a node read: every key counts, so edges are wider;
- `Send`s that a conditional edge returned and nothing traced, as in `create_agent`;
- what a node returned that JSON has no form for, and which fields of a state object it set;
- an update by `Command(graph=Command.PARENT)` whose values have no readable repr;
- reducers, unless the graph itself is at hand;
- reads of a prompt: whose model got its text in a message counts, as the prompt is now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from langgraph.types import Overwrite, Send

from lg_textgrad.recording.base import Recorded
from lg_textgrad.recording.replay import executions_of, revived, usage_of
from lg_textgrad.recording.reprs import parse_error, parse_send
from lg_textgrad.recording.structure import (
    AnyGraph,
    Structure,
    graphs_by_path,
    node_path,
)
from lg_textgrad.run import Execution, Usage

StoredRun = Mapping[str, Any]
"""`id`, `parent_run_id`, `dotted_order`, `name`, `run_type`, `start_time`, `end_time`, `inputs`,
`outputs`, `error`, `extra`, as LangSmith gives them."""

_KINDS = {"llm": "chat_model", "tool": "tool"}
_PUSH = "__pregel_push"


def recorded_from(
    runs: Sequence[StoredRun],
    graph: AnyGraph | None,
    texts: Mapping[str, str],
    readers: Mapping[str, Sequence[str]],
) -> tuple[Recorded, Usage, float]:
    """Return the recording, what its model calls cost, and its seconds.

    `runs` are all runs of one trace, in any order. `graph`, where it is at hand, tells reducers and
    conditional edges. `texts`: parameter -> its text, `readers`: parameter -> the nodes that are
    said to read it. Raises `ValueError` for runs without a root.
    """
    ordered = sorted(runs, key=lambda run: str(run["dotted_order"]))
    roots = [run for run in ordered if run.get("parent_run_id") is None]
    if not roots:
        raise ValueError("The trace has no root run.")
    root = roots[0]
    parts = _Parts(ordered, graph).parts
    structure = Structure() if graph is None else Structure.of(graph)
    executions, _, warnings = executions_of(
        parts, structure.leads, texts, readers, structure.by_hand
    )
    keeps = _inferred(executions) if graph is None else structure.accumulating
    error = root.get("error")
    failure = parse_error(error) if error else None
    outputs = revived(_unreal(root.get("outputs") or {}))
    recorded = Recorded(
        outputs=None if failure else outputs,
        executions=executions,
        error=None if failure is None else f"{type(failure).__name__}: {failure}",
        warnings=warnings,
        accumulating=keeps,
    )
    return recorded, usage_of(parts), _seconds(root, root)


class _Parts:
    """The trace as the parts of a stream that `replay` reads."""

    def __init__(self, runs: Sequence[StoredRun], graph: AnyGraph | None) -> None:
        self._channels: dict[str, frozenset[str]] = {}
        for path, sub in graphs_by_path(graph).items() if graph is not None else ():
            self._channels[path] = frozenset(sub.channels)
        self._spaces = {str(run["id"]): _namespace(run) for run in runs}
        self._root = runs[0]
        self._inputs: dict[str, Any] = {}
        timed: list[tuple[datetime, int, int, dict[str, Any]]] = []
        for number, run in enumerate(runs):
            kind = _KINDS.get(run["run_type"], "chain")
            if kind == "chat_model" and "messages" not in (run.get("inputs") or {}):
                continue  # a model that completes texts: live runs don't record it either
            start, end = _time(run["start_time"]), _time(run.get("end_time") or run["start_time"])
            # Of what happens at one moment, parents begin before and end after what is in them.
            timed.append((start, 0, number, self._started(run, kind)))
            timed.append((end, 1, -number, self._ended(run, kind)))
        timed.sort(key=lambda event: event[:3])
        zero = _time(self._root["start_time"])
        self.parts: list[dict[str, Any]] = [
            {"event": "events", "seconds": (at - zero).total_seconds(), "data": data}
            for at, _, _, data in timed
        ]
        self._settle_sends()

    def _event(self, run: StoredRun, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
        parent = run.get("parent_run_id")
        return {
            "event": event,
            "name": run["name"],
            "run_id": str(run["id"]),
            "parent": None if parent is None else str(parent),
            "metadata": {**_metadata(run), "langgraph_checkpoint_ns": self._spaces[str(run["id"])]},
            "data": data,
        }

    def _started(self, run: StoredRun, kind: str) -> dict[str, Any]:
        inputs = run.get("inputs") or {}
        if kind == "chat_model":
            asked = (run.get("extra") or {}).get("invocation_params")
            data = {"input": _plain_messages(inputs), "invocation_params": asked}
        else:
            data = {"input": _unreal(self._unwrapped(run, inputs, "input"))}
        return self._event(run, f"on_{kind}_start", data)

    def _ended(self, run: StoredRun, kind: str) -> dict[str, Any]:
        if run.get("error"):
            return self._event(run, f"on_{kind}_error", {"error": parse_error(str(run["error"]))})
        outputs = run.get("outputs") or {}
        if kind == "chat_model":
            return self._event(run, "on_chat_model_end", {"output": _reply(outputs)})
        found = _unreal(self._unwrapped(run, outputs, "output"))
        return self._event(run, f"on_{kind}_end", {"output": found})

    def _unwrapped(self, run: StoredRun, value: Any, name: str) -> Any:
        """Return what the tracer put into a dict of one entry, since it was no dict."""
        if not isinstance(value, Mapping) or value.keys() != {name}:
            return value
        host = node_path(self._spaces[str(run["id"])]).rpartition("/")[0]
        return value if name in self._channels.get(host, ()) else value[name]

    def _settle_sends(self) -> None:
        """Give each Send whose argument couldn't be read that of a task which it must have made."""
        pushed: dict[str, list[Any]] = {}
        known = {_PUSH}
        for part in self.parts:
            data = part["data"]
            inside = self._spaces.get(data["parent"] or "") != self._spaces[data["run_id"]]
            if data["event"] == "on_chain_start" and inside:
                triggers = data["metadata"].get("langgraph_triggers") or ()
                if known & set(triggers):
                    node = self._spaces[data["run_id"]].rpartition("|")[2].split(":")[0]
                    pushed.setdefault(node, []).append(data["data"]["input"])
        for part in self.parts:
            if part["data"]["event"] == "on_chain_end":
                output = part["data"]["data"]["output"]
                part["data"]["data"]["output"] = self._settled(output, pushed)

    def _settled(self, output: Any, pushed: Mapping[str, list[Any]]) -> Any:
        if isinstance(output, Send):
            waiting = pushed.get(output.node, [])
            if output.arg is None and waiting:
                return Send(output.node, revived(waiting.pop(0)))
            return output
        if isinstance(output, list):
            return [self._settled(one, pushed) for one in output]
        if isinstance(output, Mapping) and "goto" in output:
            return {**output, "goto": self._settled(output["goto"], pushed)}
        return output


def _metadata(run: StoredRun) -> dict[str, Any]:
    found = (run.get("extra") or {}).get("metadata") or {}
    return dict(found) if isinstance(found, Mapping) else {}


def _namespace(run: StoredRun) -> str:
    return str(_metadata(run).get("langgraph_checkpoint_ns") or "")


def _time(value: Any) -> datetime:
    at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds(first: StoredRun, last: StoredRun) -> float:
    ended = last.get("end_time") or last["start_time"]
    return max(0.0, (_time(ended) - _time(first["start_time"])).total_seconds())


def _unreal(value: Any) -> Any:
    """Return stored data with the objects in it that the tracer turned into something else."""
    if isinstance(value, list):
        return [_unreal(one) for one in value]
    if isinstance(value, str):
        return parse_send(value) or value
    if not isinstance(value, Mapping):
        return value
    if value.get("type") == "__overwrite__" and value.keys() == {"type", "value"}:
        return Overwrite(revived(_unreal(value["value"])))
    if _is_constructor(value):
        return _constructed(value)
    return {name: _unreal(one) for name, one in value.items()}


def _is_constructor(value: Mapping[str, Any]) -> bool:
    return value.get("lc") == 1 and value.get("type") == "constructor" and "kwargs" in value


def _constructed(value: Mapping[str, Any]) -> Any:
    """Return a message that LangChain serialized, in the form that `revived` knows."""
    kwargs = {name: _unreal(one) for name, one in value["kwargs"].items()}
    if "content" not in kwargs or "type" not in kwargs:
        return kwargs
    return {"additional_kwargs": {}, "response_metadata": {}, **kwargs}


def _plain_messages(inputs: Mapping[str, Any]) -> dict[str, Any]:
    batches = inputs.get("messages") or [[]]
    batches = batches if isinstance(batches[0], list) else [batches]
    return {"messages": [_unreal(batch) for batch in batches]}


def _reply(outputs: Mapping[str, Any]) -> Any:
    """Return the message in a model's stored output."""
    if "generations" not in outputs and (said := _completed(outputs)) is not None:
        return said
    generations = outputs.get("generations") or []
    first = generations[0] if generations else {}
    generation = first[0] if isinstance(first, list) and first else first
    if not isinstance(generation, Mapping):
        return str(generation)
    message = generation.get("message")
    if not isinstance(message, Mapping):
        return str(generation.get("text") or "")
    found = _unreal(message)
    reason = (generation.get("generation_info") or {}).get("finish_reason")
    if isinstance(found, dict) and reason:
        metadata = found.get("response_metadata") or {}
        found["response_metadata"] = {"finish_reason": reason, **metadata}
    return found


def _completed(outputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the message in a chat completion, which LangSmith's wrapper of the openai SDK stores.

    None for what has none. Our own reports of runs have the message alone.
    """
    choices = outputs.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {"message": outputs}
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(message, Mapping) or "role" not in message:
        return None
    calls = []
    for call in message.get("tool_calls") or ():
        asked = call.get("function") or {}
        try:
            given = json.loads(asked.get("arguments") or "{}")
        except ValueError:
            given = None
        args = given if isinstance(given, dict) else {"arguments": asked.get("arguments")}
        calls.append({"name": str(asked.get("name") or ""), "args": args, "id": call.get("id")})
    used = outputs.get("usage_metadata") or {}
    tokens = {n: int(used.get(n) or 0) for n in ("input_tokens", "output_tokens", "total_tokens")}
    reason = first.get("finish_reason")
    return {
        "type": "ai",
        "content": message.get("content") or "",
        "tool_calls": calls,
        "usage_metadata": tokens if used else None,
        "additional_kwargs": {},
        "response_metadata": {"finish_reason": reason} if reason else {},
    }


def _inferred(executions: Sequence[Execution]) -> dict[str, tuple[str, ...]]:
    """Return graph path -> channels that held something else than what was just written to them."""
    found: dict[str, set[str]] = {}
    levels: dict[str | None, list[Execution]] = {}
    for execution in executions:
        levels.setdefault(execution.parent, []).append(execution)
    for level in levels.values():
        path = level[0].path.rpartition("/")[0]
        written: dict[str, tuple[int, Any]] = {}
        for execution in sorted(level, key=lambda e: e.superstep):
            given = execution.inputs
            if execution.sent_by is None and isinstance(given, Mapping):
                for channel, (step, value) in written.items():
                    if step < execution.superstep and channel in given and given[channel] != value:
                        found.setdefault(path, set()).add(channel)
            for channel, value in execution.writes:
                if channel not in execution.overwrites:
                    written[channel] = (execution.superstep, value)
    return {path: tuple(sorted(channels)) for path, channels in found.items()}
