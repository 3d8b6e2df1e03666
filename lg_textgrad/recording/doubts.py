"""Where a recording could miss something: told in warnings that name the node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lg_textgrad.recording.origins import items_of, walk
from lg_textgrad.recording.tasks import Root, Task
from lg_textgrad.run import node_path
from lg_textgrad.tracking import fields_of


def changed(task: Task) -> Iterator[str]:
    """Yield a warning for each value of a node's state that was changed in place and not written.

    Others that hold the same object see the change, and no write tells them where it came from.
    """
    given = task.inputs if isinstance(task.inputs, Mapping) else fields_of(task.inputs) or {}
    written = {id(value) for _, value in task.values}
    plainer = task.root.plainer
    for channel, value in items_of(given):
        if id(value) not in written and plainer.changed(value):
            yield (
                f"While the node '{task.path}' ran, the value of '{channel}' that it was given was "
                "changed in place; the trace has no write for that. Return the new value from the "
                "node."
            )


def changed_further_inside(root: Root, tasks: Iterable[Task]) -> Iterator[str]:
    """Yield a warning for each value that was changed in place where no node's end showed it."""
    moved = {id(value): value for value in root.plainer.changes()}
    if not moved:
        return
    held: dict[str, dict[str, None]] = {}
    for task in tasks:
        given = task.inputs if isinstance(task.inputs, Mapping) else fields_of(task.inputs) or {}
        for channel, value in items_of(given):
            if any(id(part) in moved for part in walk(value)):
                held.setdefault(channel, {})[task.path] = None
    for channel, paths in held.items():
        nodes = ", ".join(f"'{path}'" for path in paths)
        yield (
            f"Something in the value of '{channel}' was changed in place while one of these nodes "
            f"ran: {nodes}. The trace has no write for that, and may show it as it was before."
        )


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
