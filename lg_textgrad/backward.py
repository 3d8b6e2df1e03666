"""The reverse pass: from the loss of each run back to the prompts that caused it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from lg_textgrad._sync import all_at_once, task_group
from lg_textgrad.critics.base import (
    Blame,
    Critic,
    CriticRequest,
    Critique,
    Producer,
    RunRequest,
)
from lg_textgrad.critics.evident import full_marks, visible
from lg_textgrad.errors import CriticError
from lg_textgrad.objective import Loss, Scored
from lg_textgrad.parameter import Gradient, Parameter
from lg_textgrad.trace import Trace, Vertex

logger = logging.getLogger(__name__)

THRESHOLD = 0.1
"""Blame below this stops where it is and costs nothing upstream."""


async def abackward(loss: Loss, critic: Critic, *, threshold: float = THRESHOLD) -> list[Gradient]:
    """Return the gradients of all runs in their order, and append them to their parameters.

    Each execution is handled once, after all its consumers; executions that don't wait for each
    other, and all runs, go at once. No call for runs with full marks, which say what to keep, for
    executions that nothing blames, and for those without a trainable parameter in themselves or
    before them. Code and tool nodes hand blame on without a call. A critic that judges whole runs
    is asked once a run instead.
    """
    beside = sum(scored.score < 1 for scored in loss.scored)
    found = await all_at_once(backward_run(s, critic, threshold, beside) for s in loss.scored)
    # Only now, so that a failure half-way leaves no parameter half-filled.
    for scored, gradients in zip(loss.scored, found, strict=True):
        for gradient in gradients:
            scored.run.parameters[gradient.parameter].grad.append(gradient)
    return [gradient for gradients in found for gradient in gradients]


async def backward_run(
    scored: Scored, critic: Critic, threshold: float = THRESHOLD, beside: int = 1
) -> list[Gradient]:
    """Return one run's gradients, in order of execution. At most one call per model-calling one."""
    trainable = {n for n, p in scored.run.parameters.items() if p.requires_grad}
    if scored.score >= 1:
        return full_marks(scored, trainable)
    trace = Trace.of(scored.run)
    blames = _terminal_blame(trace, scored)
    worth = trace.worth_visiting(trainable)
    plain, seen = visible(scored, trace, trace.reached_from(blames) & worth, trainable)
    for execution, more in seen.items():
        blames[execution] = [*blames.get(execution, ()), *more]
    if worth.isdisjoint(trace.reached_from(blames)):
        return plain
    request = RunRequest(scored, trace, trainable, worth, blames, threshold, beside)
    judged = await _judged_whole(request, critic)
    if judged is None:
        judged = await _walked(request, critic)
    weigh = getattr(critic, "aweigh", None)
    if weigh is not None:
        judged = await weigh(request, judged)
    order = {execution: number for number, execution in enumerate(trace.executions)}
    return sorted([*plain, *judged], key=lambda gradient: order[gradient.execution])


async def _judged_whole(request: RunRequest, critic: Critic) -> Sequence[Gradient] | None:
    """Return what a critic says that looks at the whole run; None when it has to be walked."""
    judge = getattr(critic, "acriticize_run", None)
    if judge is None:
        return None
    try:
        found: Sequence[Gradient] | None = await judge(request)
    except CriticError as error:
        logger.warning("%s", error)
        return []
    return found


async def _walked(request: RunRequest, critic: Critic) -> list[Gradient]:
    """Walk the run backwards, consumers before producers, and return what the critic said."""
    trace, worth, threshold = request.trace, request.worth, request.threshold
    blamed = {execution: list(blames) for execution, blames in request.blames.items()}
    waiting = trace.dependents()
    order = {e: number for number, e in enumerate(trace.executions)}
    heard: dict[str, dict[str, Blame]] = {}
    found: dict[str, tuple[Gradient, ...]] = {}

    async def visit(execution: str) -> None:
        blames = [b for b in blamed.get(execution, ()) if b.weight >= threshold]
        before = [
            Producer(p, trace.executions[p].path, channels)
            for p, channels in trace.producers(execution).items()
            if p in worth
        ]
        critique = await _handle(request, execution, before, blames, critic)
        found[execution] = tuple(critique.gradients)
        for producer in before:
            if producer.execution in critique.upstream:
                heard.setdefault(producer.execution, {})[execution] = critique.upstream[
                    producer.execution
                ]
        release([execution])

    def release(done: list[Vertex]) -> None:
        """Start what now has heard from all of its consumers."""
        while done:
            vertex = done.pop()
            for other in trace.before(vertex):
                waiting[other] -= 1
                if waiting[other] == 0:
                    begin(other, done)

    def begin(vertex: Vertex, done: list[Vertex]) -> None:
        if isinstance(vertex, str):
            said = heard.get(vertex, {})
            # In the order of the run, not of the replies.
            consumers = sorted(said, key=order.__getitem__)
            blamed.setdefault(vertex, []).extend(said[c] for c in consumers)
            if vertex in worth and _is_worth_a_visit(blamed[vertex], threshold):
                group.create_task(visit(vertex))
                return
        done.append(vertex)

    async with task_group() as group:
        first: list[Vertex] = []
        for execution in reversed(list(trace.executions)):
            if not waiting.get(execution):
                begin(execution, first)
        release(first)
    return [g for e in trace.executions for g in found.get(e, ())]


def _is_worth_a_visit(blames: Iterable[Blame], threshold: float) -> bool:
    return any(b.weight >= threshold and not b.settled for b in blames)


async def _handle(
    request: RunRequest,
    execution: str,
    producers: list[Producer],
    blames: list[Blame],
    critic: Critic,
) -> Critique:
    scored, node = request.scored, request.trace.executions[execution]
    own: Mapping[str, Parameter] = {
        n: scored.run.parameters[n] for n in node.prompts if n in request.trainable
    }
    if not own and not node.model_calls:
        # Code did what code does: whatever is wrong came in with its inputs.
        text = "\n".join(dict.fromkeys(b.text for b in blames))
        weight = max(b.weight for b in blames)
        return Critique(
            upstream={p.execution: Blame(text, weight, execution) for p in producers}
        )
    try:
        return await critic.acriticize(CriticRequest(scored, node, own, producers, blames))
    except CriticError as error:
        logger.warning("%s", error)
        return Critique()


def _terminal_blame(trace: Trace, scored: Scored) -> dict[str, list[Blame]]:
    """Give each complaint to the executions that wrote what the evaluator looked at."""
    run = trace.run
    blamed: dict[str, list[Blame]] = {}
    for feedback in scored.feedback:
        weight = scored.blame(feedback)
        if weight <= 0:
            continue
        blame = Blame(
            feedback.comment or f"The score for {feedback.key} is {feedback.score}.",
            weight,
            feedback.key,
        )
        if run.error is not None:
            targets = [run.failed_in] if run.failed_in else list(trace.executions)[-1:]
        else:
            looked = [k for k in trace.sinks if feedback.reads is None or k in feedback.reads]
            targets = [e for k in (looked or trace.sinks) for e in trace.sinks[k]]
        for execution in dict.fromkeys(targets):
            blamed.setdefault(execution, []).append(blame)
    return blamed
