"""Executions from the event stream of a LangGraph server: the live recorder hears it again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.errors import ParentCommand
from langgraph.types import Command, Send

from lg_textgrad._hashing import to_plain
from lg_textgrad.parameter import find_placeholders
from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.structure import Structure, host_of, node_path
from lg_textgrad.run import Execution, ModelCall, Usage

_MESSAGES: Mapping[str, type[BaseMessage]] = {
    "ai": AIMessage,
    "AIMessageChunk": AIMessageChunk,
    "function": FunctionMessage,
    "human": HumanMessage,
    "remove": RemoveMessage,
    "system": SystemMessage,
    "tool": ToolMessage,
}
_MESSAGE_KEYS = {"type", "content", "additional_kwargs", "response_metadata"}
_COMMAND_KEYS = {"graph", "update", "resume", "goto"}
_SEND_KEYS = {"node", "args"}
_KEPT_METADATA = (
    "langgraph_checkpoint_ns", "langgraph_path", "langgraph_step", "langgraph_triggers",
)  # fmt: skip
_ROOT = UUID(int=0)
"""The run that a stream's first events are in, which it may not tell."""
_KEPT_EVENTS = frozenset(
    f"on_{kind}_{when}"
    for kind in ("chain", "chat_model", "tool")
    for when in ("start", "end", "error")
)


def slim(event: str, data: Any, seconds: float) -> dict[str, Any] | None:
    """Return what is kept of one part of the stream; None for what says nothing new."""
    if event == "events":
        if data["event"] not in _KEPT_EVENTS:
            return None
        said = dict(data["data"])
        if not data["event"].endswith("start"):
            said.pop("input", None)  # it came with the start
        metadata = {
            n: v
            for n, v in (data.get("metadata") or {}).items()
            if n in _KEPT_METADATA or n.startswith("ls_model")
        }
        return {
            "event": event,
            "seconds": seconds,
            "data": {
                "event": data["event"],
                "name": data["name"],
                "run_id": data["run_id"],
                "parent": (data.get("parent_ids") or [None])[-1],
                "tags": [t for t in data.get("tags") or () if t.startswith("seq:step:")],
                "metadata": metadata,
                "data": said,
            },
        }
    mode = event.partition("|")[0]
    if mode == "debug":
        if data.get("type") != "task_result":
            return None
        kept = {n: data["payload"].get(n) for n in ("id", "name", "error", "result")}
        return {"event": event, "seconds": seconds, "data": kept}
    return {"event": event, "seconds": seconds, "data": data} if mode in _MODES else None


_MODES = ("values", "error")


def usage_of(parts: Sequence[Mapping[str, Any]]) -> Usage:
    """Return what the model calls of a run cost, as far as the models say."""
    total = Usage()
    for data in _events(parts):
        if data["event"] == "on_chat_model_end":
            output = data["data"].get("output")
            counted = (output.get("usage_metadata") if isinstance(output, Mapping) else None) or {}
            total += Usage(1, 0, counted.get("input_tokens", 0), counted.get("output_tokens", 0))
    return total


def outputs_of(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the graph's output, with messages as live runs give them; None when there is none."""
    values = [p["data"] for p in parts if p["event"] == "values"]
    if not values:
        return None
    output = revived(values[-1])
    return output if isinstance(output, Mapping) else {"output": output}


def executions_of(
    parts: Sequence[Mapping[str, Any]],
    routers: Mapping[str, set[str] | None],
    texts: Mapping[str, str],
    readers: Mapping[str, Sequence[str]],
    structure: Structure | None = None,
) -> tuple[tuple[Execution, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return executions, accumulating channels by graph path, and warnings.

    `routers`: path of node -> where its conditional edges lead. `texts`: parameter -> its text in
    this run, `readers`: parameter -> the nodes that are said to read it. `structure`: of nodes
    whose writes nothing but the graph tells.
    """
    replay = _Replay(parts, structure)
    executions = list(replay.executions())
    noted: dict[str, dict[str, str]] = {e.id: {} for e in executions}
    for name, text in texts.items():
        for reader in _readers(executions, text, readers.get(name, ())):
            noted[reader][name] = text
    found = []
    for execution in executions:
        goto = tuple(dict.fromkeys([*execution.goto, *replay.chosen(execution, routers)]))
        found.append(replace(execution, prompts=noted[execution.id], goto=goto))
    return tuple(found), _accumulating(parts), tuple(replay.warnings)


def _readers(executions: Sequence[Execution], text: str, nodes: Sequence[str]) -> list[str]:
    """Return the executions that read a prompt, by the best evidence that there is.

    Those of the nodes that its metadata name; else those whose model got it as a system message;
    else those whose model got it in any message.
    """
    named = [e.id for e in executions if e.path in nodes or e.path.rpartition("/")[2] in nodes]
    if named or not text.strip():
        return named
    shape = re.escape(text)
    for placeholder in find_placeholders(text):
        shape = shape.replace(re.escape(f"{{{placeholder}}}"), ".*?")
    pattern = re.compile(shape, re.DOTALL)
    for roles in (("system",), ("system", "human")):
        sent = [
            e.id
            for e in executions
            if any(
                message["role"] in roles and pattern.search(_text(message["content"]))
                for call in e.model_calls
                for message in call.messages
            )
        ]
        if sent:
            return sent
    return []


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = (b.get("text", "") if isinstance(b, Mapping) else b for b in content)
    return "\n".join(str(part) for part in parts)


class _Replay:
    """Tells a recorder what the stream told, in its order."""

    def __init__(
        self, parts: Sequence[Mapping[str, Any]], structure: Structure | None = None
    ) -> None:
        self._recorder = Recorder(structure, copies=True)
        self._recorder.on_chain_start(None, None, run_id=_ROOT)
        self._namespaces: dict[str, str] = {}
        self._node_runs: dict[str, UUID] = {}
        self._spans: dict[str, list[float]] = {}
        self._triggers: dict[str, Sequence[str]] = {}
        self._errors: dict[str, Exception] = {}
        self._open: dict[UUID, tuple[str, float]] = {}
        self._call_seconds: dict[str, dict[UUID, float]] = {}
        self._sends: list[Send] = []
        self._ended: set[str] = set()
        self._results: dict[str, Mapping[str, Any]] = {}
        self._handed: dict[str, str] = {}
        self.warnings: list[str] = []
        for part in parts:
            mode, _, host = part["event"].partition("|")
            if mode == "events":
                self._hear(part["data"], part["seconds"])
            elif mode == "debug":
                self._result(host, part["data"])
        self._hand_over()
        self._close()

    def _hear(self, data: Mapping[str, Any], at: float) -> None:
        recorder, event = self._recorder, data["event"]
        run_id, said, metadata = UUID(data["run_id"]), data["data"], dict(data["metadata"])
        namespace = metadata.get("langgraph_checkpoint_ns", "")
        parent = data["parent"]
        host = UUID(parent) if parent else _ROOT
        if event.endswith("start"):
            self._namespaces[data["run_id"]] = namespace
        if event == "on_chain_start":
            triggers = metadata.get("langgraph_triggers") or ()
            inputs = revived(said.get("input"))
            if namespace and namespace != self._namespaces.get(parent, ""):
                self._node_runs[namespace] = run_id
                self._triggers[namespace] = triggers
                self._spans.setdefault(namespace, [at, at])
                self._errors.pop(namespace, None)  # this is another attempt
                inputs = self._sent(namespace, inputs) if "__pregel_push" in triggers else inputs
            recorder.on_chain_start(
                None,
                inputs,
                run_id=run_id,
                parent_run_id=host,
                tags=data.get("tags"),
                metadata=metadata,
            )
        elif event == "on_chain_end":
            output = _returned(said.get("output"))
            self._sends.extend(_sends_in(output))
            recorder.on_chain_end(output, run_id=run_id)
            if self._node_runs.get(namespace) == run_id:
                self._spans[namespace][1] = at
                self._ended.add(namespace)
        elif event == "on_chain_error":
            recorder.on_chain_error(_exception(said.get("error")), run_id=run_id)
            if self._node_runs.get(namespace) == run_id:
                self._spans[namespace][1] = at
                self._ended.add(namespace)
        elif event == "on_chat_model_start":
            messages = revived((said.get("input") or {}).get("messages") or [[]])
            self._open[run_id] = (namespace, at)
            recorder.on_chat_model_start(
                None,
                messages,
                run_id=run_id,
                parent_run_id=host,
                metadata=metadata,
                name=data["name"],
                invocation_params=said.get("invocation_params"),
            )
        elif event == "on_chat_model_error":
            self._open.pop(run_id, None)
            recorder.on_llm_error(_exception(said.get("error")), run_id=run_id)
        elif event == "on_chat_model_end":
            namespace, started = self._open.pop(run_id, (namespace, at))
            self._call_seconds.setdefault(namespace, {})[run_id] = at - started
            message = revived(said.get("output"))
            if not isinstance(message, BaseMessage):
                message = AIMessage(str(message or ""))
            recorder.on_llm_end(
                LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id
            )
        elif event == "on_tool_start":
            recorder.on_tool_start(
                {"name": data["name"]},
                "",
                run_id=run_id,
                parent_run_id=host,
                metadata=metadata,
                inputs=revived(said.get("input")),
            )
        elif event == "on_tool_end":
            recorder.on_tool_end(revived(said.get("output")), run_id=run_id)
        elif event == "on_tool_error":
            recorder.on_tool_error(_exception(said.get("error")), run_id=run_id)

    def _sent(self, namespace: str, inputs: Any) -> Any:
        """Return the argument of the Send that made this task, so that the recorder knows it.

        Of several Sends with the same argument to the same node any will do.
        """
        node, plain = node_path(namespace).rpartition("/")[2], to_plain(inputs)
        for number, send in enumerate(self._sends):
            if send.node == node and to_plain(send.arg) == plain:
                return self._sends.pop(number).arg
        return inputs

    def _result(self, host: str, task: Mapping[str, Any]) -> None:
        namespace = "|".join(part for part in (host, f"{task['name']}:{task['id']}") if part)
        run_id = self._node_runs.get(namespace)
        if run_id is None:
            return
        if task.get("error"):
            self._ended.add(namespace)
            self._errors[namespace] = _exception(task["error"])
            self._recorder.on_chain_error(self._errors[namespace], run_id=run_id)
        elif task.get("result"):
            self._results[namespace] = task["result"]

    def _hand_over(self) -> None:
        """Find each `Command(graph=Command.PARENT)`.

        It leaves its node as an exception that the stream doesn't tell; the host has a result all
        the same, though it never came to its end.
        """
        for host, result in self._results.items():
            if host in self._ended:
                continue
            update = revived(result)
            for namespace, run_id in self._node_runs.items():
                inside = namespace.startswith(f"{host}|") and namespace not in self._ended
                if namespace == host or inside:
                    self._handed[namespace] = host
                    self._recorder.on_chain_error(
                        ParentCommand(Command(graph=Command.PARENT, update=update)), run_id=run_id
                    )

    def _close(self) -> None:
        """Model calls without an end have failed; the stream says why only for the node."""
        for run_id, (namespace, _) in self._open.items():
            error = self._errors.get(namespace)
            if error is None:
                error = _exception({"error": "Error", "message": "the server does not say which"})
                self.warnings.append(
                    f"A model call of the node '{node_path(namespace)}' failed or was cut off; the "
                    "server's stream does not say why."
                )
            self._recorder.on_llm_error(error, run_id=run_id)

    def executions(self) -> Iterator[Execution]:
        """Yield the executions, timed by when the server said what."""
        for execution in self._recorder.executions():
            started, ended = self._spans.get(execution.namespace, (0.0, 0.0))
            seconds = iter(self._call_seconds.get(execution.namespace, {}).values())
            calls: list[ModelCall] = [
                replace(c, usage=replace(c.usage, seconds=next(seconds, 0.0)))
                if c.output is not None
                else c
                for c in execution.model_calls
            ]
            yield replace(
                execution, started=started, seconds=ended - started, model_calls=tuple(calls)
            )

    def chosen(
        self, execution: Execution, routers: Mapping[str, set[str] | None]
    ) -> list[str]:
        """Return the nodes of the next superstep that the execution led to.

        Through its conditional edges, or through a Command for the parent.
        """
        tasks = self._recorder._tasks  # noqa: SLF001 - the recorder is ours
        host = self._handed.get(execution.namespace)
        led = tasks[host or execution.namespace]
        ends = None if host else routers.get(execution.path, set())
        return [
            t.node
            for t in tasks.values()
            if t.superstep == led.superstep + 1
            and host_of(t.namespace) == host_of(led.namespace)
            and (ends is None or t.node in ends)
            and any(str(name).startswith("branch:") for name in t.triggers)
        ]


def _accumulating(parts: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return graph path -> channels that hold something else than what was just written to them."""
    written: dict[str, list[tuple[str, Any]]] = {}
    found: dict[str, set[str]] = {}
    for part in parts:
        mode, _, host = part["event"].partition("|")
        if mode == "debug" and isinstance(part["data"].get("result"), Mapping):
            written.setdefault(host, []).extend(part["data"]["result"].items())
        elif mode == "values" and isinstance(part["data"], Mapping):
            for channel, value in written.pop(host, ()):
                if channel in part["data"] and part["data"][channel] != value:
                    found.setdefault(node_path(host), set()).add(channel)
    return {path: tuple(sorted(channels)) for path, channels in found.items()}


def revived(value: Any) -> Any:
    """Return `value` with the messages in it as LangChain's objects, as live runs have them."""
    if isinstance(value, list):
        return [revived(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() >= _MESSAGE_KEYS and value["type"] in _MESSAGES:
        try:
            return _MESSAGES[value["type"]].model_validate(dict(value))
        except (KeyError, TypeError, ValueError):  # it only looks like a message
            return dict(value)
    return {k: revived(v) for k, v in value.items()}


def _returned(output: Any) -> Any:
    """Return what a node returned, with Commands and Sends as objects again."""
    if isinstance(output, list):
        return [_returned(o) for o in output]
    if isinstance(output, Mapping):
        if output.keys() == _COMMAND_KEYS:
            goto = _returned(output["goto"])
            return Command(graph=output["graph"], update=_pairs(output["update"]), goto=goto)
        if output.keys() == _SEND_KEYS and isinstance(output["node"], str):
            return Send(output["node"], revived(output["args"]))
    return revived(output)


def _pairs(update: Any) -> Any:
    """JSON has no tuples, which an update that is a list of pairs is told by."""
    update = revived(update)
    if isinstance(update, list):
        return [tuple(p) if isinstance(p, list) and len(p) == 2 else p for p in update]
    return update


def _sends_in(output: Any) -> Iterator[Send]:
    if isinstance(output, Send):
        yield output
    elif isinstance(output, Command):
        yield from _sends_in(output.goto)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _sends_in(one)


def _exception(error: Any) -> Exception:
    """Return an exception of the type's name and message that the server told."""
    if isinstance(error, Exception):
        return error
    if not isinstance(error, Mapping):
        return Exception(str(error))
    made: Exception = type(str(error.get("error", "Error")), (Exception,), {})(
        str(error.get("message", ""))
    )
    return made


def _events(parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (part["data"] for part in parts if part["event"] == "events")
