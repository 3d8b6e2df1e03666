"""Which execution is which, while a run goes on, whoever comes first."""

from __future__ import annotations

from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.recording.tasks import Task


class Places:
    """Names each execution in words that every repetition of the run repeats.

    A name is the path of the node, counters of graphs that nodes call included. Where several
    `Send`s of one superstep, or calls of one `@task`, gave the same node the same, it also says
    which of them: they are issued in an order, and may be carried out in any. What a run does
    elsewhere changes no name, so that a candidate that changes one node finds the others' results.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[Any, ...], list[int]] = {}

    def name(self, task: Task) -> str:
        """Return the name of an execution that begins; its caller's was asked for before."""
        own, issued = _own(task), task.number
        name = f"{task.caller.place}/{own}" if task.caller else own
        if issued is None:
            return name
        known = self._alike.setdefault((name, task.superstep, digest(task.plain_inputs)), [])
        rank = sum(other < issued for other in known)
        known.append(issued)
        return f"{name}~{rank}" if rank else name


def line_of(task: Task) -> str:
    """Return the name of an execution that no other of its run has in the same superstep.

    Other than a place it hangs on what was sent beside it, so a candidate that sends more, or in
    another order, gives its executions other lines.
    """
    issued = task.number
    own = _own(task) if issued is None else f"{_own(task)}!{issued}"
    return f"{task.caller.line}/{own}" if task.caller else own


def _own(task: Task) -> str:
    """Return the part of an execution's name that its caller's has not."""
    host = task.caller
    parts = task.namespace.split("|")[len(host.namespace.split("|")) if host else 0 :]
    return "/".join(part.split(":")[0] for part in parts)
