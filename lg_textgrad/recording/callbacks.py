"""Record a run of a LangGraph graph through one callback handler, public API only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Send

from lg_textgrad.recording.assembly import Assembled, assemble
from lg_textgrad.recording.caches import cached
from lg_textgrad.recording.calls import NAMESPACE, CallRecorder, namespace_here
from lg_textgrad.recording.doubts import changed, changed_further_inside, in_a_thread
from lg_textgrad.recording.origins import Known, Origins, constants_of, items_of
from lg_textgrad.recording.places import Places, line_of
from lg_textgrad.recording.structure import UNKNOWN, Structure
from lg_textgrad.recording.tasks import Frame, Root, Task
from lg_textgrad.run import Execution, node_path


class Recorder(CallRecorder):
    """Collects the executions of runs. Give it to a run as a callback, then ask `executions()`.

    The rule for "this is a node's execution": the run's `langgraph_checkpoint_ns` differs from its
    parent run's. `structure` is what is known of the graph before; what isn't, is told by the run.
    `copies` says that each event comes with objects of its own, as from a stream: then a value is
    known by what it is, and the inputs of graphs that nodes call by the names of their channels.
    """

    def __init__(self, structure: Structure | None = None, *, copies: bool = False) -> None:
        super().__init__()
        self._structure = structure or Structure()
        self._copies = copies
        self._count = 0
        self._places = Places()
        self._asking: dict[str, Task] = {}

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
        namespace = found.get(NAMESPACE, "")
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
        within = _within(namespace, parent)
        path = node_path(within.removeprefix(f"{above}|") if above else within)
        route = tuple(found.get("langgraph_path") or ())
        kind = self._structure.node(path, handles="node_error_handler" in route)
        task = self._tasks[namespace] = Task(
            namespace=within,
            path=path,
            node=path.rpartition("/")[2],
            kind=kind,
            superstep=int(found.get("langgraph_step", 0)),
            order=len(self._tasks),
            route=route,
            triggers=tuple(found.get("langgraph_triggers") or ()),
            root=parent.root,
            caller=parent.task,
            inputs=inputs,
            plain_inputs=None,
            started=time.monotonic(),
            began=self._count,
        )
        if task.caller is not None:
            task.caller.inside.append(task)
        plain = self._plain(inputs, task)
        task.plain_inputs = plain if kind.channel is None else {kind.channel: plain}
        task.place, task.line = self._places.name(task), line_of(task)
        if task.is_call and task.caller is not None:
            made = task.caller.called(task, self._count)
            task.sources = self._sources(task.caller, inputs, made)
        else:
            if parent.tasks is None:
                parent.tasks = []
                if task.caller is not None:
                    self._host(task.caller, parent)
                    _remember(task, parent, str(found.get("thread_id")))
            parent.tasks.append(task)
            task.sources = parent.given
        return task

    def _host(self, caller: Task, frame: Frame) -> None:
        """Note that a frame is a graph, which runs inside an execution."""
        known = caller.kind is not UNKNOWN
        if caller.kind.is_graph if known else frame.inputs is caller.inputs:
            # It is the node itself, which reads and writes only what is read and written inside.
            caller.sheets.append(set())
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
            known.add_new(value, origins or [None], before)
        return found

    def _at_hand(self, task: Task) -> Known:
        if task.known is None:
            task.known = Known(constants_of(task.kind.function))
            task.known.add_inputs(task.inputs)
            for inputs in (task.root.inputs, *task.resumed):
                task.known.add_from_outside(inputs)
        return task.known

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            self._count += 1
            frame = self._frames.get(run_id)
            if frame is None:
                return
            task = frame.task
            if task is None:
                self._leave(frame)
                frame.root.outputs = outputs
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
                self._send(task, outputs)
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
            writers = [
                task
                for task in frame.tasks or ()
                if any(written == channel for written, _ in task.values)
            ]
            known.add_new(value, [(task, channel) for task in writers], self._count)

    def _leave(self, frame: Frame) -> None:
        root = frame.root
        root.ended = time.monotonic()
        tasks = [t for t in self._tasks.values() if t.root is root]
        root.notes.update(changed_further_inside(root, tasks))

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            self._count += 1
            frame = self._frames.get(run_id)
            if frame is None:
                return
            task = frame.task
            if task is None:
                self._leave(frame)
                frame.root.error = error
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
        task.root.notes.update(changed(task))

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

    def path_of(self, namespace: str) -> str:
        """Return the path of the node that makes a call, by the namespace that the call has."""
        with self._guard:
            task = self._tasks.get(namespace)
            return node_path(namespace) if task is None else task.path

    def place(self, run_id: UUID | None, namespace: str) -> tuple[str, str]:
        """Return which execution makes a call: by its run, else by its namespace.

        Its place and its line, see `recording.places`.
        """
        with self._guard:
            frame = self._frames.get(run_id) if run_id is not None else None
            task = frame.task if frame is not None else self._tasks.get(namespace)
            if task is None:
                return node_path(namespace), node_path(namespace)
            return task.place, task.line

    # What callbacks don't tell.

    def reading(self, namespace: str, sheet: set[str]) -> None:
        """Take the sheet on which the body of a node notes what it reads of its state."""
        with self._guard:
            task = self._tasks.get(namespace)
            if task is not None:
                task.sheets.append(sheet)

    def routed(self, namespace: str, reads: set[str] | None, result: Any) -> None:
        """Note what the function of a conditional edge returned, and which keys it read."""
        with self._guard:
            task = self._tasks.get(namespace)
            if task is None:
                return
            given = task.plain_inputs if isinstance(task.plain_inputs, Mapping) else ("__root__",)
            task.routed_by.update(given if reads is None else reads)
            task.told.append(result)
            self._send(task, result)

    def _send(self, task: Task, result: Any) -> None:
        sends = [s for s in _listed(result) if isinstance(s, Send)]
        task.sends.extend(s for s in sends if all(s is not t for t in task.sends))

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


def _within(namespace: str, parent: Frame) -> str:
    """Return a namespace that says which execution it is inside of.

    A graph that is called with a `thread_id` of its own has namespaces as if at the top.
    """
    caller = parent.task
    if caller is None:
        return namespace
    if namespace.startswith(f"{parent.namespace}|"):
        return caller.namespace + namespace[len(parent.namespace) :]
    if parent.apart is None:
        parent.apart, caller.apart = caller.apart, caller.apart + 1
    return f"{caller.namespace}|{parent.apart}|{namespace}"


def _remember(task: Task, frame: Frame, thread: str) -> None:
    """Note that a graph which is called again on its thread goes on with what was written there."""
    if frame.apart is None or task.caller is None or frame.tasks is None:
        return
    before = task.caller.threads.setdefault(thread, [])
    if frame.given is not None and all(t.superstep < task.superstep for ts in before for t in ts):
        for other in (t for tasks in before for t in tasks):
            for channel, _ in other.values:
                frame.given.setdefault(channel, {})[other, channel] = None
    before.append(frame.tasks)


def _is_router(tags: Sequence[str] | None) -> bool:
    """A node's body is the first step of its run; the functions of conditional edges come later."""
    return any(t.startswith("seq:step:") and t != "seq:step:1" for t in tags or ())


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
