"""Where a recording could miss something: told in warnings that name the node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from lg_textgrad.recording.origins import items_of
from lg_textgrad.recording.plain import Plainer
from lg_textgrad.recording.tasks import Task
from lg_textgrad.run import node_path


def changed(task: Task, plainer: Plainer) -> Iterator[str]:
    """Yield a warning for each value of a node's state that was changed in place and not written.

    Others that hold the same object see the change, and no write tells them where it came from.
    """
    given = task.inputs if isinstance(task.inputs, Mapping) else _fields(task.inputs)
    written = {id(value) for _, value in task.values}
    for channel, value in items_of(given):
        if plainer.moved(value) and id(value) not in written:
            plainer.of(value)  # from now on as it is
            yield (
                f"While the node '{task.path}' ran, the value of '{channel}' that it was given was "
                "changed in place; the trace has no write for that. Return the new value from the "
                "node."
            )


def _fields(state: Any) -> Mapping[str, Any]:
    is_state = isinstance(state, BaseModel) or hasattr(state, "__dataclass_fields__")
    return getattr(state, "__dict__", {}) if is_state else {}


def hidden(path: str) -> str:
    """Return the warning for a model call whose callbacks are not those of the run."""
    return (
        f"The node '{path}' called a model with callbacks of its own; the call is not in the "
        'trace. Leave "callbacks" out of the call\'s config, or add to them.'
    )


def in_a_thread(paths: Sequence[str]) -> str:
    """Return the warning for a model call in a thread without the run's context."""
    nodes = [f"'{path}'" for path in paths]
    which = f"the node {nodes[0]}" if len(nodes) == 1 else f"the nodes {', '.join(nodes)}"
    return (
        f"While {which} ran, a model was called in a thread that has nothing of the run's context; "
        "the call is not in the trace and got no candidate's text. Start such threads through "
        "contextvars.copy_context().run, or use LangChain's ContextThreadPoolExecutor."
    )


def gaps(tasks: Iterable[Task]) -> Iterator[str]:
    """Yield a warning for each superstep in which nothing was seen to run."""
    levels: dict[str, set[int]] = {}
    for task in tasks:
        if not task.is_call:
            levels.setdefault(task.namespace.rpartition("|")[0], set()).add(task.superstep)
    for level, steps in levels.items():
        path = node_path(level)
        for step in sorted(set(range(min(steps), max(steps))) - steps):
            where = f"the graph in the node '{path}'" if path else "the graph"
            yield (
                f"Superstep {step} of {where} left nothing in the recording: its nodes were "
                "answered from a cache, or ran with callbacks of their own."
            )





def waiting(tasks: Iterable[Task]) -> Iterator[str]:
    """Yield a note for each node at whose interrupt the run stopped."""
    for task in tasks:
        if task.waits:
            yield (
                f"The run waits at an interrupt in the node '{task.path}'; give a value for it in "
                "the example's metadata['resume'] to have it go on."
            )
