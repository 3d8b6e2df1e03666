"""Record a run of a LangGraph graph through one callback handler, public API only."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Send

from lg_textgrad.recording.assembly import Assembled, assemble
from lg_textgrad.recording.caches import cached
from lg_textgrad.recording.doubts import changed, hidden, in_a_thread
from lg_textgrad.recording.formats import reply_format
from lg_textgrad.recording.origins import Known, Origins, constants_of, items_of
from lg_textgrad.recording.plain import Plainer
from lg_textgrad.recording.structure import UNKNOWN, Structure
from lg_textgrad.recording.tasks import Frame, Root, Task
from lg_textgrad.run import Execution, ModelCall, ToolCall, Usage, node_path
from lg_textgrad.tracking import ReadTrackingDict

_NAMESPACE = "langgraph_checkpoint_ns"


class Recorder(BaseCallbackHandler):
    """Collects the executions of runs. Give it to a run as a callback, then ask `executions()`.

    The rule for "this is a node's execution": the run's `langgraph_checkpoint_ns` differs from its
    parent run's. `structure` is what is known of the graph before; what isn't, is told by the run.
    `copies` says that each event comes with objects of its own, as from a stream: then a value is
    known by what it is, and the inputs of graphs that nodes call by the names of their channels.
    """

    run_inline = True  # keeps the order of events, and the context of the node, in async runs

    def __init__(self, structure: Structure | None = None, *, copies: bool = False) -> None:
        self.roots: list[Root] = []
        self._structure = structure or Structure()
        self._copies = copies
        self._guard = threading.RLock()
        self._count = 0
        self._plainer = Plainer()
        self._frames: dict[UUID, Frame] = {}
        self._tasks: dict[str, Task] = {}
        self._asking: dict[str, Task] = {}
        self._calls: dict[UUID, tuple[Task, float, ModelCall]] = {}
        self._tools: dict[UUID, tuple[Task, ToolCall]] = {}

    # Nodes.

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        found = metadata or {}
        namespace = found.get(_NAMESPACE, "")
        with self._guard:
            self._count += 1
            parent = self._frames.get(parent_run_id) if parent_run_id else None
            if parent is None:
                frame = self._enter(namespace, inputs, found)
            elif namespace and namespace != parent.namespace:
                task = self._begin(namespace, inputs, found, parent)
                frame = Frame(namespace, task, parent.root, inputs, own=True)
            else:
                frame = Frame(parent.namespace, parent.task, parent.root, inputs)
                frame.router = parent.own and _is_router(tags)
                frame.loose = tags is None
            frame.began = self._count
            self._frames[run_id] = frame

    def _enter(self, namespace: str, inputs: Any, found: Mapping[str, Any]) -> Frame:
        """Return the frame of a run that nobody here started."""
        thread = found.get("thread_id")
        root = Root(
            inputs, None if thread is None else str(thread), time.monotonic(), namespace
        )
        self.roots.append(root)
        return Frame(namespace, None, root, inputs)

    def _begin(
        self, namespace: str, inputs: Any, found: Mapping[str, Any], parent: Frame
    ) -> Task:
        task = self._tasks.get(namespace)
        if task is not None:
            task.begin_again(inputs, parent.root)
            return task
        above = parent.root.namespace
        path = node_path(namespace.removeprefix(f"{above}|") if above else namespace)
        kind = self._structure.nodes.get(path, UNKNOWN)
        task = self._tasks[namespace] = Task(
            namespace=namespace,
            path=path,
            node=path.rpartition("/")[2],
            kind=kind,
            superstep=int(found.get("langgraph_step", 0)),
            order=len(self._tasks),
            route=tuple(found.get("langgraph_path") or ()),
            triggers=tuple(found.get("langgraph_triggers") or ()),
            root=parent.root,
            caller=parent.task,
            inputs=inputs,
            plain_inputs=None,
            reads=inputs.start() if isinstance(inputs, ReadTrackingDict) else None,
            started=time.monotonic(),
        )
        if task.caller is not None:
            task.caller.inside.append(task)
        plain = self._plain(inputs, task)
        task.plain_inputs = plain if kind.channel is None else {kind.channel: plain}
        if task.is_call and task.caller is not None:
            task.sources = self._sources(task.caller, inputs, self._count)
        else:
            if parent.tasks is None:
                parent.tasks = []
                if task.caller is not None:
                    self._host(task.caller, parent)
            parent.tasks.append(task)
            task.sources = parent.given
        return task

    def _host(self, caller: Task, frame: Frame) -> None:
        """Note that a frame is a graph, which runs inside an execution."""
        known = caller.kind is not UNKNOWN
        if caller.kind.is_graph if known else frame.inputs is caller.inputs:
            # It is the node itself, which reads and writes only what is read and written inside.
            caller.reads = set()
        elif not self._copies:
            frame.given = self._sources(caller, frame.inputs, frame.began)

    def _sources(self, caller: Task, inputs: Any, before: int) -> dict[str, Origins]:
        """Return where each input of what a node's code starts came from."""
        known = self._at_hand(caller)
        given = inputs if isinstance(inputs, Mapping) else {"__root__": inputs}
        found = {}
        for key, value in items_of(given):
            origins = known.made_of(value, before)
            if origins is None:
                # From anywhere: what the node was given, and all that had come back by then.
                ended = [t for t in caller.results if 0 < t.finished < before]
                origins = {("", "*"): None, **{(t, "*"): None for t in ended}}
            found[str(key)] = origins
        return found

    def _at_hand(self, task: Task) -> Known:
        if task.known is None:
            task.known = Known(constants_of(task.kind.function))
            task.known.add_inputs(task.inputs)
        return task.known

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            self._count += 1
            frame = self._frames.get(run_id)
            if frame is None:
                return
            task = frame.task
            if task is None:
                frame.root.outputs, frame.root.ended = outputs, time.monotonic()
            elif frame.own:
                kind = task.kind
                if task.is_call:
                    task.values.append(("__return__", outputs))
                elif kind.writes is not None:
                    task.take_by_hand(outputs, kind.writes)
                else:
                    task.take(outputs, whole=kind.whole)
                if kind.writable is not None:
                    task.values = [v for v in task.values if v[0] in kind.writable]
                self._finish(task)
            elif frame.router or frame.loose:
                sends = [s for s in _listed(outputs) if isinstance(s, Send)]
                task.sends.extend(s for s in sends if all(s is not t for t in task.sends))
                if frame.router:
                    task.routed.append(outputs)
            elif frame.given is not None:
                self._came_back(task, frame, outputs)

    def _came_back(self, caller: Task, frame: Frame, outputs: Any) -> None:
        """Note what a graph that a node's code called returned, as far as no node in it wrote it.

        What a reducer made of many writes comes from all who wrote.
        """
        known = self._at_hand(caller)
        for channel, value in items_of(outputs) if isinstance(outputs, Mapping) else ():
            if not known.whole(value, self._count):
                for task in frame.tasks or ():
                    if any(written == channel for written, _ in task.values):
                        known.add(value, (task, channel), self._count)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            self._count += 1
            frame = self._frames.get(run_id)
            if frame is None:
                return
            task = frame.task
            if task is None:
                frame.root.error, frame.root.ended = error, time.monotonic()
            if task is None or not frame.own:
                return
            if isinstance(error, ParentCommand):
                # Snapshot at once: the exception's arguments change while it bubbles up.
                task.take(error.args[0])
            elif isinstance(error, GraphInterrupt):
                for interrupt in error.args[0] if error.args else ():
                    # A host's run ends with what the node inside of it asked.
                    if self._asking.setdefault(interrupt.id, task) is task:
                        task.interrupts[interrupt.id] = self._plain(interrupt.value, task)
                        task.waits = True
            elif not isinstance(error, GraphBubbleUp):
                task.error = f"{type(error).__name__}: {error}"
            self._finish(task)

    def _finish(self, task: Task) -> None:
        task.ended, task.finished = time.monotonic(), self._count
        for channel, value in task.values:
            task.writes.append((channel, self._plain(value, task)))
        if task.known is not None:
            self._trace_back(task, task.known)
        caller = task.caller
        if caller is not None and task.sources is not None:
            caller.results.append(task)
            known = self._at_hand(caller)
            for channel, value in task.values:
                known.add(value, (task, channel), self._count)
        task.root.notes.update(changed(task, self._plainer))

    def _trace_back(self, task: Task, known: Known) -> None:
        """Note where what a node wrote came from, when its code called others for it."""
        used: Origins | None = {}
        for channel, value in task.values:
            if whole := known.whole(value, self._count):
                task.passed[channel] = whole
            made = known.made_of(value, self._count)
            used = None if used is None or made is None else {**used, **made}
        if used is not None:
            task.passed["*"] = used

    def _plain(self, value: Any, task: Task) -> Any:
        try:
            return self._plainer.of(value)
        except Exception as error:  # a repr or a property of the user's that raises
            task.root.notes.add(
                f"A value in the node '{task.path}' could not be recorded "
                f"({type(error).__name__}: {error}); the trace has its type's name."
            )
            return f"<{type(value).__name__}>"

    # Model calls.

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        found = metadata or {}
        asked = kwargs.get("invocation_params") or {}
        name = asked.get("model") or asked.get("model_name") or found.get("ls_model_name")
        with self._guard:
            task = self._inside(run_id, parent_run_id, found)
            if task is None:
                return
            call = ModelCall(
                model=str(name or (kwargs.get("name") or "unknown")),
                messages=tuple(self._plain(m, task) for m in messages[0]),
                output=None,
                tools=tuple(self._plain(asked.get("tools") or (), task)),
                format=reply_format(asked),
            )
            self._calls[run_id] = (task, time.monotonic(), call)
            task.model_calls[run_id] = call

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A model that completes texts is recorded as one that is sent a user's message."""
        said: list[Mapping[str, Any]] = [{"role": "human", "content": p} for p in prompts]
        found = metadata or {}
        with self._guard:
            task = self._inside(run_id, parent_run_id, found)
            if task is None:
                return
            name = found.get("ls_model_name") or kwargs.get("name") or "unknown"
            call = ModelCall(model=str(name), messages=tuple(said), output=None)
            self._calls[run_id] = (task, time.monotonic(), call)
            task.model_calls[run_id] = call

    def _inside(
        self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any]
    ) -> Task | None:
        """Return the execution that something other than a chain runs in, and note its frame."""
        parent = self._frames.get(parent_run_id) if parent_run_id else None
        task = parent.task if parent else self._tasks.get(metadata.get(_NAMESPACE, ""))
        if parent is not None:
            self._frames[run_id] = Frame(parent.namespace, task, parent.root)
        elif task is not None:
            self._frames[run_id] = Frame(task.namespace, task, task.root)
        return task

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
                output = self._plain(message, task)
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
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        with self._guard:
            task = self._inside(run_id, parent_run_id, metadata or {})
            if task is None:
                return
            given = self._plain(input_str if inputs is None else inputs, task)
            call = ToolCall((serialized or {}).get("name", "tool"), given)
            self._tools[run_id] = (task, call)
            task.tool_calls[run_id] = call

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, output=self._plain(output, task))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, error=f"{type(error).__name__}: {error}")

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        with self._guard:
            self._inside(run_id, parent_run_id, metadata or {})

    # What callbacks don't tell.

    def witness(self, run_id: UUID | None) -> None:
        """Note a model call of the current context if its callbacks did not come here."""
        with self._guard:
            if run_id in self._calls:
                return
            namespace = namespace_here()
            if any(task.namespace == namespace for task, _, _ in self._calls.values()):
                return  # a model that asks another one inside of its own call
            task = self._tasks.get(namespace)
            text = hidden(node_path(namespace) if task is None else task.path)
            for root in self._open() if task is None else [task.root]:
                root.notes.add(text)

    def stranger(self) -> None:
        """Note a model call in a thread that has no context, while nodes run here."""
        with self._guard:
            inside = [t for t in self._tasks.values() if not t.finished]
            hosts = {id(t.caller) for t in inside}
            for root in self._open():
                running = [t for t in inside if t.root is root and id(t) not in hosts]
                if paths := dict.fromkeys(t.path for t in running):
                    root.notes.add(in_a_thread(list(paths)))

    def cached(self, node: str) -> None:
        """Note that a cache answered in the place of a node, in the runs that are under way."""
        with self._guard:
            for root in self._open():
                root.notes.add(cached(node.rpartition(".")[2]))

    def _open(self) -> list[Root]:
        return [root for root in self.roots if not root.ended]

    # Parameters.

    def note_read(self, name: str, text: str) -> None:
        """Note that the node which runs in the current context read a parameter."""
        task = self._tasks.get(namespace_here())
        if task is not None:
            with self._guard:
                task.prompts[name] = text

    # The result.

    def assembled(self, roots: Sequence[Root] | None = None) -> Assembled:
        """Return what was recorded, of some invocations only or of all, as one run."""
        with self._guard:
            wanted = self.roots if roots is None else roots
            chosen = {id(root) for root in wanted}
            tasks = [t for t in self._tasks.values() if id(t.root) in chosen]
            started = min((root.started for root in wanted), default=0.0)
            found = assemble(tasks, self._structure, started)
            notes = {note for root in wanted for note in root.notes}
            # In alphabetical order, so that they don't hang on who was faster.
            return replace(found, warnings=tuple(sorted({*found.warnings, *notes})))

    def executions(self) -> tuple[Execution, ...]:
        """Return the executions in an order that doesn't depend on which finished first."""
        return self.assembled().executions


def namespace_here() -> str:
    """Return the checkpoint namespace of the node that runs in the current context."""
    config = var_child_runnable_config.get() or {}
    return str(
        (config.get("metadata") or {}).get(_NAMESPACE)
        or (config.get("configurable") or {}).get("checkpoint_ns", "")
    )


def _is_router(tags: Sequence[str] | None) -> bool:
    """A node's body is the first step of its run; the functions of conditional edges come later."""
    return any(t.startswith("seq:step:") and t != "seq:step:1" for t in tags or ())


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
