"""A whole run as text that fits a number of tokens: its steps, what each got and wrote. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lg_textgrad.critics.base import RunRequest
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.run_case import Compact, Step, case
from lg_textgrad.critics.showing import shown_values
from lg_textgrad.run import Execution

_LEAST = 60
"""Characters that each value gets at least; steps are left out before values get shorter."""
_FEWEST = 2
"""So many steps are shown in any case."""
_SAME = 40
"""A value this long that stood in an earlier step is not shown a second time."""
_CHARS = 4
"""Characters of a token."""


def compacted(request: RunRequest, max_tokens: int, *, brief: bool = False) -> Compact:
    """Return the run in about `max_tokens` tokens at most, with all that is written around it.

    Shown are the executions that can be at fault, with other model calls and failures between
    them. Values are cut around what the complaint speaks of, the long ones first and all to the
    same length; what stood in an earlier step is only referred to. Where even that is too much,
    the earliest steps in which nothing visibly went wrong are left out. Two steps with a little of
    each value are shown however few the tokens are.
    """
    room = max_tokens * _CHARS
    everything = _executions(request)
    most = min(len(everything), max(_FEWEST, room // (3 * _LEAST)))
    while True:
        steps = _steps(_with_room(everything, request, most), request)
        whole = _compact(steps, request, len(everything) - len(steps))
        shown, over = _cut(whole, request, room, brief=brief)
        if over <= 0 or len(steps) <= _FEWEST:
            return shown
        each = len(case(shown, request, brief=brief)) // len(steps)
        most = max(_FEWEST, len(steps) - max(1, over // each))


def fits(request: RunRequest, max_tokens: int, *, brief: bool = False) -> bool:
    """Return whether the run takes no more than `max_tokens` tokens without a cut."""
    room = max_tokens * _CHARS
    everything = _executions(request)
    if len(everything) > max(_FEWEST, room // (3 * _LEAST)):
        return False
    whole = _compact(_steps(everything, request), request, 0)
    return len(case(whole, request, brief=brief)) <= room


def size(request: RunRequest) -> int:
    """Return about how many tokens the run's steps have when each is shown by itself."""
    shown = (
        (*shown_values(e), *(text for n, text in e.prompts.items() if n in request.trainable))
        for e in _executions(request)
    )
    return sum(len(value) for values in shown for value in values) // _CHARS


def _compact(steps: Sequence[Step], request: RunRequest, left_out: int) -> Compact:
    prompts = {n: s.execution.prompts[n] for s in reversed(steps) for n in s.parameters}
    return Compact(tuple(steps), request.complaint, left_out, prompts)


def _cut(whole: Compact, request: RunRequest, room: int, *, brief: bool) -> tuple[Compact, int]:
    """Return the run with its long values cut, and how many characters are still too many."""
    size = len(case(whole, request, brief=brief))
    if size <= room:
        return whole, size - room
    sizes = [len(v) for v in (*whole.prompts.values(), *whole.texts())]
    frame = len(case(_limited(whole, 0), request, brief=brief))
    limit = level(sizes, room - frame)
    while True:
        shown = _limited(whole, limit)
        over = len(case(shown, request, brief=brief)) - room
        if over <= 0 or limit == _LEAST:
            return shown, over
        # The marks of the cuts are known only now; every value that is cut gives its part.
        longer = sum(1 for each in sizes if each >= limit)
        limit = max(_LEAST, limit - max(1, over // max(1, longer)))


def _limited(whole: Compact, limit: int) -> Compact:
    """Return the run with no value longer than `limit`, marks of cuts aside; of 0, with none."""
    about = whole.complaint

    def short(text: str) -> str:
        shown = cut(text, limit, about) if limit else ""
        return shown if len(shown) < len(text) else text  # the mark of a cut has its length too

    return Compact(
        tuple(
            replace(
                step,
                given=short(step.given),
                wrote=short(step.wrote),
                notes=tuple(map(short, step.notes)),
            )
            for step in whole.steps
        ),
        short(about),
        whole.left_out,
        {name: short(text) for name, text in whole.prompts.items()},
    )


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
    suspects = {e.id for e in request.suspects}
    for number, execution in enumerate(executions, start=1):
        given, wrote = shown_values(execution)
        for earlier, full in enumerate(written, start=1):
            if len(full) >= _SAME:
                given = given.replace(full, f"[what step {earlier} wrote]")
        written.append(wrote)
        notes = [b.text for b in request.blames.get(execution.id, ()) if not request.is_said(b)]
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
