"""A whole run as text that fits a number of tokens: its steps, what each got and wrote. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lg_textgrad.critics.base import RunRequest
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.showing import shown_values
from lg_textgrad.run import Execution

_LEAST = 60
"""Characters that each value gets at least; steps are left out before values get shorter."""
_SAME = 40
"""A value this long that stood in an earlier step is not shown a second time."""
_CHARS = 4
"""Characters of a token."""


@dataclass(frozen=True, slots=True)
class Step:
    """One execution, as the critic sees it."""

    number: int
    """Counted from 1, in order of execution."""
    execution: Execution
    parameters: tuple[str, ...]
    """The trainable parameters that it read; empty for a step that is shown for the others."""
    given: str
    wrote: str
    notes: tuple[str, ...]
    """What visibly went wrong."""


@dataclass(frozen=True, slots=True)
class Compact:
    """A run, ready to be shown."""

    steps: tuple[Step, ...]
    complaint: str
    left_out: int = 0
    """How many steps had no room."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> its text, cut where it is long."""

    @property
    def judged(self) -> list[Step]:
        return [step for step in self.steps if step.parameters]

    def texts(self) -> list[str]:
        """Return everything that came out of the run."""
        return [self.complaint, *(t for s in self.steps for t in (s.wrote, s.given, *s.notes))]


def compacted(request: RunRequest, max_tokens: int) -> Compact:
    """Return the run in about `max_tokens` tokens at most.

    Shown are the executions that can be at fault, with other model calls and failures between
    them. Values are cut around what the complaint speaks of, the long ones first and all to the
    same length; what stood in an earlier step is only referred to. Where even that is too much,
    the earliest steps in which nothing visibly went wrong are left out.
    """
    room = max_tokens * _CHARS
    everything = _executions(request)
    steps = _steps(_with_room(everything, request, _most_steps(room)), request)
    prompts = _prompts(steps)
    complaint = request.complaint
    limit = level(_sizes(steps, complaint), room)
    return Compact(
        tuple(
            replace(s, given=cut(s.given, limit, complaint), wrote=cut(s.wrote, limit, complaint))
            for s in steps
        ),
        cut(complaint, limit),
        len(everything) - len(steps),
        {name: cut(text, limit, complaint) for name, text in prompts.items()},
    )


def fits(request: RunRequest, max_tokens: int) -> bool:
    """Return whether `compacted` would show the run without a cut."""
    room = max_tokens * _CHARS
    everything = _executions(request)
    if len(everything) > _most_steps(room):
        return False
    return sum(_sizes(_steps(everything, request), request.complaint)) <= room


def size(request: RunRequest) -> int:
    """Return about how many tokens the run's steps have when each is shown by itself."""
    shown = (
        (*shown_values(e), *(text for n, text in e.prompts.items() if n in request.trainable))
        for e in _executions(request)
    )
    return sum(len(value) for values in shown for value in values) // _CHARS


def _most_steps(room: int) -> int:
    """Return how many steps can be shown in `room` characters."""
    return max(2, room // (3 * _LEAST))


def _prompts(steps: Sequence[Step]) -> dict[str, str]:
    return {n: s.execution.prompts[n] for s in reversed(steps) for n in s.parameters}


def _sizes(steps: Sequence[Step], complaint: str) -> list[int]:
    """Return the characters of each value that is shown."""
    values = [complaint, *_prompts(steps).values(), *(v for s in steps for v in (s.given, s.wrote))]
    return [len(value) for value in values]


def _executions(request: RunRequest) -> list[Execution]:
    """Return what can be at fault, and what explains it, in order of execution."""
    suspects = {e.id for e in request.suspects}
    reached = request.trace.reached_from(request.blames)
    return [
        execution
        for name, execution in request.trace.executions.items()
        if not execution.discarded
        and (name in suspects or (name in reached and _explains(execution)))
    ]


def _explains(execution: Execution) -> bool:
    return bool(execution.model_calls or execution.tool_calls or execution.error)


def _with_room(
    executions: Sequence[Execution], request: RunRequest, most: int
) -> list[Execution]:
    """Return at most `most` of the executions, those that are left out being the earliest."""
    if len(executions) <= most:
        return list(executions)
    telling = [e for e in executions if request.blames.get(e.id)][-most:]
    others = [e for e in executions if not request.blames.get(e.id)]
    kept = {e.id for e in (*telling, *others[len(others) - (most - len(telling)) :])}
    return [e for e in executions if e.id in kept]


def _steps(executions: Sequence[Execution], request: RunRequest) -> list[Step]:
    steps: list[Step] = []
    written: list[str] = []
    keys = {f.key for f in request.scored.feedback}
    suspects = {e.id for e in request.suspects}
    for number, execution in enumerate(executions, start=1):
        given, wrote = shown_values(execution)
        for earlier, full in enumerate(written, start=1):
            if len(full) >= _SAME:
                given = given.replace(full, f"[what step {earlier} wrote]")
        written.append(wrote)
        notes = [b.text for b in request.blames.get(execution.id, ()) if b.source not in keys]
        own = tuple(
            n for n in execution.prompts if n in request.trainable and execution.id in suspects
        )
        steps.append(Step(number, execution, own, given, wrote, tuple(notes)))
    return steps


def level(sizes: Sequence[int], room: int) -> int:
    """Return the greatest limit to which all can be cut so that together they fit `room`.

    At least `_LEAST`: less says nothing.
    """
    left, waiting = room, sorted(sizes)
    while waiting:
        limit = left // len(waiting)
        if waiting[0] > limit:
            return max(_LEAST, limit)
        left -= waiting.pop(0)
    return max(_LEAST, *sizes) if sizes else _LEAST
