"""Run a graph past its interrupts, with values that the example has for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langgraph.types import Command

from lg_textgrad.copies import anew
from lg_textgrad.data import kind_of
from lg_textgrad.errors import DataError
from lg_textgrad.recording.structure import AnyGraph
from lg_textgrad.run import Example

_INTERRUPT = "__interrupt__"


def resume_values(example: Example) -> list[Any] | None:
    """Return the values of `metadata["resume"]`; None where the example has none.

    Raises `DataError` for what is no list.
    """
    values = example.metadata.get("resume")
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise DataError(
            f"In example {example.named}: metadata['resume'] must be a list with a value for each "
            f"interrupt, in order, not {kind_of(values)}."
        )
    return list(anew(values))


async def arun_resumed(
    graph: AnyGraph,
    config: Any,
    values: Sequence[Any],
    inputs: Any,
    invoke: Callable[[Any], Awaitable[Any]],
) -> tuple[Any, list[str]]:
    """Return the graph's output after its interrupts were answered, and what there is to warn of.

    Each interrupt takes the next value, several at once in the order of their nodes' tasks.
    A breakpoint (`interrupt_before`, `interrupt_after`) takes one too, whatever it is. Where no
    value is left the run ends as it stands.
    """
    left = list(values)
    outputs = await invoke(inputs)
    while left:
        pending = _pending(outputs)
        if len(pending) > 1 and graph.checkpointer:
            # They are listed as they come, which with nodes in threads is now so, now otherwise.
            tasks = (await graph.aget_state(config)).tasks
            order = [interrupt.id for task in tasks for interrupt in task.interrupts]
            pending.sort(key=lambda one: order.index(one) if one in order else len(order))
        if pending:
            answers = dict(zip(pending, left, strict=False))
            del left[: len(answers)]
            outputs = await invoke(Command(resume=answers))
        elif graph.checkpointer and (await graph.aget_state(config)).next:
            del left[0]
            outputs = await invoke(None)
        else:
            used = f"{len(values) - len(left)} of the {len(values)} values"
            return outputs, [f"The run came to its end after {used} in metadata['resume']."]
    return outputs, []


def at_breakpoint(nodes: Sequence[str]) -> str:
    """Return the note that a run stopped at a breakpoint of the graph."""
    named = " and ".join(f"'{node}'" for node in nodes)
    return (
        f"The run stopped at a breakpoint, with {named} to go on with; give any value for it in "
        "the example's metadata['resume']."
    )


def _pending(outputs: Any) -> list[str]:
    found = outputs.get(_INTERRUPT, ()) if isinstance(outputs, Mapping) else ()
    return [interrupt.id for interrupt in found]
