"""Record a run of a LangGraph graph through one callback handler, public API only."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, ParentCommand
from langgraph.types import Command, Overwrite, Send
from pydantic import BaseModel

from lg_textgrad._hashing import digest, message_to_plain, to_plain
from lg_textgrad.recording.structure import AnyGraph, host_of
from lg_textgrad.recording.structure import routers as routers_of
from lg_textgrad.run import Execution, ModelCall, ToolCall, Usage, node_path
from lg_textgrad.tracking import ReadTrackingDict


@dataclass
class _Task:
    """One execution while it goes on; attempts of one task share a namespace and this record."""

    namespace: str
    node: str
    superstep: int
    order: int
    inputs: Any
    plain_inputs: Any
    triggers: Sequence[str]
    tracked: ReadTrackingDict | None
    started: float
    place: str
    """Which execution this is, the same in every repetition: see `Recorder.place`."""
    push: int
    """Position among the `Send`s of its superstep; -1 for ordinary tasks."""
    ended: float = 0.0
    writes: list[tuple[str, Any]] = field(default_factory=list)
    overwrites: set[str] = field(default_factory=set)
    sends: list[Send] = field(default_factory=list)
    goto: list[str] = field(default_factory=list)
    error: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    model_calls: dict[UUID, ModelCall] = field(default_factory=dict)
    tool_calls: dict[UUID, ToolCall] = field(default_factory=dict)


class Recorder(BaseCallbackHandler):
    """Collects one run's executions. Give it to the run as a callback, then ask `executions()`.

    The rule for "this is a node's execution": the run's `langgraph_checkpoint_ns` differs from its
    parent run's.
    """

    run_inline = True  # keeps the order of events, and the context of the node, in async runs

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._namespace_of: dict[UUID, str] = {}
        self._task_of: dict[UUID, _Task] = {}
        self._tasks: dict[str, _Task] = {}
        self._alike: dict[tuple[Any, ...], list[int]] = {}
        self._calls: dict[UUID, tuple[_Task, float, ModelCall]] = {}
        self._tools: dict[UUID, tuple[_Task, ToolCall]] = {}

    # Nodes.

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        found = metadata or {}
        namespace = found.get("langgraph_checkpoint_ns", "")
        with self._guard:
            self._namespace_of[run_id] = namespace
            parent = self._namespace_of.get(parent_run_id, "") if parent_run_id else ""
            if not namespace or namespace == parent:
                return
            task = self._tasks.get(namespace)
            if task is None:
                if isinstance(inputs, ReadTrackingDict):
                    inputs.start()
                plain, push = to_plain(inputs), _push(found.get("langgraph_path"))
                step = int(found.get("langgraph_step", 0))
                task = self._tasks[namespace] = _Task(
                    namespace=namespace,
                    node=namespace.split("|")[-1].split(":")[0],
                    superstep=step,
                    order=len(self._tasks),
                    inputs=inputs,
                    plain_inputs=plain,
                    triggers=tuple(found.get("langgraph_triggers") or ()),
                    tracked=inputs if isinstance(inputs, ReadTrackingDict) else None,
                    started=time.monotonic(),
                    place=self._placed(namespace, step, push, plain),
                    push=push,
                )
            else:
                # Another attempt after an error or an interrupt: what it does replaces what the
                # last one wrote, but the model calls of both were paid for and stay.
                task.writes.clear()
                task.sends.clear()
                task.goto.clear()
                task.overwrites.clear()
                task.error = None
            self._task_of[run_id] = task

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            task = self._task_of.get(run_id)
            if task is not None:
                _take_output(task, outputs)
                task.ended = time.monotonic()
                return
            # A conditional edge is a child run of its node's run and returns the Sends.
            namespace = self._namespace_of.get(run_id, "")
            task = self._tasks.get(namespace)
            if task is not None and isinstance(outputs, Send | list | tuple):
                found = outputs if isinstance(outputs, list | tuple) else [outputs]
                task.sends.extend(
                    s for s in found if isinstance(s, Send) and all(s is not t for t in task.sends)
                )

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            task = self._task_of.get(run_id)
            if task is None:
                return
            task.ended = time.monotonic()
            if isinstance(error, ParentCommand):
                # Snapshot at once: the exception's arguments change while it bubbles up.
                _take_output(task, error.args[0])
            elif not isinstance(error, GraphBubbleUp):
                task.error = f"{type(error).__name__}: {error}"

    def place(self, namespace: str) -> str:
        """Return which execution runs in `namespace`, in words that each repetition repeats.

        The path of its node; and where several `Send`s of one superstep gave that node the same,
        which of them: they are sent in an order, and may finish in any.
        """
        with self._guard:
            task = self._tasks.get(namespace)
            return node_path(namespace) if task is None else task.place

    def _placed(self, namespace: str, step: int, push: int, inputs: Any) -> str:
        host = self._tasks.get(host_of(namespace) or "")
        parts = namespace.split("|")[len(host.namespace.split("|")) if host else 0 :]
        own = "/".join(part.split(":")[0] for part in parts)  # a counter tells calls of one node
        place = f"{host.place}/{own}" if host else own
        if push < 0:
            return place
        known = self._alike.setdefault((place, step, digest(inputs)), [])
        rank = sum(other < push for other in known)
        known.append(push)
        return f"{place}~{rank}" if rank else place

    # Model calls.

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        found = metadata or {}
        task = self._tasks.get(found.get("langgraph_checkpoint_ns", ""))
        if task is None:
            return
        asked = kwargs.get("invocation_params") or {}
        name = asked.get("model") or asked.get("model_name") or found.get("ls_model_name")
        call = ModelCall(
            model=str(name or (kwargs.get("name") or "unknown")),
            messages=tuple(message_to_plain(m) for m in messages[0]),
            output=None,
            tools=tuple(to_plain(asked.get("tools") or ())),
        )
        with self._guard:
            self._calls[run_id] = (task, time.monotonic(), call)
            task.model_calls[run_id] = call

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id not in self._calls:
                return
            task, started, call = self._calls.pop(run_id)
            generation = response.generations[0][0]
            output: Mapping[str, Any] = {"role": "ai", "content": generation.text}
            usage = Usage(calls=1, seconds=time.monotonic() - started)
            reason = (generation.generation_info or {}).get("finish_reason")
            if isinstance(generation, ChatGeneration):
                message = generation.message
                output = message_to_plain(message)
                reason = reason or message.response_metadata.get("finish_reason")
                counted = getattr(message, "usage_metadata", None) or {}
                usage = replace(
                    usage,
                    prompt_tokens=counted.get("input_tokens", 0),
                    completion_tokens=counted.get("output_tokens", 0),
                )
            task.model_calls[run_id] = replace(
                call, output=output, usage=usage, finish_reason=reason
            )

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._calls:
                task, _started, call = self._calls.pop(run_id)
                task.model_calls[run_id] = replace(call, error=f"{type(error).__name__}: {error}")

    # Tool calls.

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        task = self._tasks.get((metadata or {}).get("langgraph_checkpoint_ns", ""))
        if task is None:
            return
        call = ToolCall(
            (serialized or {}).get("name", "tool"),
            to_plain(input_str if inputs is None else inputs),
        )
        with self._guard:
            self._tools[run_id] = (task, call)
            task.tool_calls[run_id] = call

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, output=to_plain(output))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, error=f"{type(error).__name__}: {error}")

    # Parameters.

    def note_read(self, name: str, text: str) -> None:
        """Note that the node which runs in the current context read a parameter."""
        config = var_child_runnable_config.get() or {}
        namespace = (config.get("metadata") or {}).get("langgraph_checkpoint_ns") or (
            config.get("configurable") or {}
        ).get("checkpoint_ns", "")
        task = self._tasks.get(namespace)
        if task is not None:
            with self._guard:
                task.prompts[name] = text

    # The result.

    def executions(self, graph: AnyGraph | None = None) -> tuple[Execution, ...]:
        """Return the executions in an order that doesn't depend on which finished first.

        `graph` tells which nodes have conditional edges, so that their choices become `goto`.
        """
        with self._guard:
            tasks = sorted(self._tasks.values(), key=lambda t: len(t.namespace.split("|")))
            keys: dict[str, tuple[Any, ...]] = {}
            for t in tasks:
                host = host_of(t.namespace)
                own = (t.superstep, t.node, digest(t.plain_inputs), t.push, t.order)
                keys[t.namespace] = (*keys.get(host or "", ()), own)
            tasks.sort(key=lambda t: keys[t.namespace])
            ids: dict[str, str] = {}
            counts: dict[str, int] = {}
            for t in tasks:
                path = node_path(t.namespace)
                ids[t.namespace] = f"{path}#{counts.get(path, 0)}"
                counts[path] = counts.get(path, 0) + 1
            senders = [(send.arg, ids[t.namespace]) for t in tasks for send in t.sends]
            leads = routers_of(graph) if graph is not None else {}
            return tuple(
                Execution(
                    id=ids[t.namespace],
                    namespace=t.namespace,
                    path=node_path(t.namespace),
                    superstep=t.superstep,
                    order=order,
                    inputs=t.plain_inputs,
                    writes=tuple((channel, to_plain(value)) for channel, value in t.writes),
                    overwrites=frozenset(t.overwrites),
                    sends=tuple(send.node for send in t.sends),
                    goto=tuple(dict.fromkeys([*t.goto, *_chosen(t, tasks, leads)])),
                    sent_by=next((by for arg, by in senders if arg is t.inputs), None),
                    reads=None if t.tracked is None else frozenset(t.tracked.keys_read),
                    parent=ids.get(host_of(t.namespace) or ""),
                    prompts=dict(t.prompts),
                    model_calls=tuple(t.model_calls.values()),
                    tool_calls=tuple(t.tool_calls.values()),
                    error=t.error,
                    seconds=max(0.0, t.ended - t.started),
                )
                for order, t in enumerate(tasks)
            )


def _push(path: Any) -> int:
    """Return which `Send` of its superstep a task's `langgraph_path` says it is; else -1."""
    if not isinstance(path, list | tuple) or not path or path[0] != "__pregel_push":
        return -1
    return next((p for p in path[1:] if isinstance(p, int) and not isinstance(p, bool)), -1)


def _take_output(task: _Task, output: Any) -> None:
    """Read a node's return value as LangGraph does: updates, Commands, Sends, or lists of them."""
    if output is None:
        return
    if isinstance(output, Send):
        task.sends.append(output)
    elif isinstance(output, Command):
        targets = output.goto if isinstance(output.goto, list | tuple) else (output.goto,)
        for target in targets:
            if isinstance(target, Send):
                task.sends.append(target)
            elif target:
                task.goto.append(str(target))
        _take_update(task, output.update)
    elif isinstance(output, list | tuple) and any(isinstance(o, Command | Send) for o in output):
        for part in output:
            _take_output(task, part)
    else:
        _take_update(task, output)


def _take_update(task: _Task, update: Any) -> None:
    if update is None:
        return
    pairs: list[tuple[str, Any]]
    if isinstance(update, Mapping):
        pairs = list(dict.items(update)) if isinstance(update, dict) else list(update.items())
    elif isinstance(update, BaseModel):
        pairs = [(name, getattr(update, name)) for name in update.model_fields_set]
    elif hasattr(update, "__dataclass_fields__"):
        pairs = [(name, getattr(update, name)) for name in update.__dataclass_fields__]
    elif isinstance(update, list | tuple) and all(
        isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in update
    ):
        pairs = list(update)
    else:
        pairs = [("__root__", update)]
    for channel, value in pairs:
        if isinstance(value, Overwrite):
            task.overwrites.add(channel)
            task.writes.append((channel, value.value))
        else:
            task.writes.append((channel, value))


def _chosen(
    task: _Task, tasks: Sequence[_Task], routers: Mapping[str, set[str] | None]
) -> list[str]:
    """Return the nodes of the next superstep that this task's conditional edges led to."""
    path = node_path(task.namespace)
    if path not in routers:
        return []
    ends, host = routers[path], host_of(task.namespace)
    return [
        t.node
        for t in tasks
        if t.superstep == task.superstep + 1
        and host_of(t.namespace) == host
        and (ends is None or t.node in ends)
        and any(trigger.startswith("branch:") for trigger in t.triggers)
    ]
