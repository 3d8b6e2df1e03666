"""What LangSmith is told of a run, a gradient, a model call. Pure: the same run, the same body."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from lg_textgrad._hashing import to_plain
from lg_textgrad._version import __version__
from lg_textgrad.parameter import Gradient
from lg_textgrad.run import Execution, Feedback, ModelCall, Run, ToolCall, Usage

Body = dict[str, Any]
MakeId = Callable[..., UUID]
"""Parts of a name -> the id that they always have."""

_ROLES = {"human": "user", "ai": "assistant"}
_NAME = "LangGraph"


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a run stands in its trace."""

    id: UUID
    trace: UUID
    order: str
    start: datetime
    zero: datetime
    """When the trace began."""

    def below(self, run_id: UUID, start: datetime) -> _Span:
        order = f"{self.order}.{_ordered(start, run_id)}"
        return _Span(run_id, self.trace, order, start, self.zero)


def trace_of(
    run: Run,
    at: float,
    project: str,
    make_id: MakeId,
    *,
    reference: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Body]:
    """Return the bodies of a run: the root, its executions, their model and tool calls.

    `at` is when it was scored, in seconds since 1970. `reference` is the id of the dataset's
    example.
    """
    ended = datetime.fromtimestamp(at, UTC)
    start = ended - timedelta(seconds=max(0.0, run.seconds))
    root = make_id(run.id)
    span = _Span(root, root, _ordered(start, root), start, start)
    body = _body(
        span, None, _NAME, "chain", start, ended, project,
        inputs=_mapping(to_plain(run.example.inputs), "input"),
        outputs=None if run.outputs is None else _mapping(to_plain(run.outputs), "output"),
        error=run.error,
        metadata={
            "lg_textgrad": __version__,
            "lg_textgrad_run": run.id,
            "candidate": run.candidate,
            "example": run.example.id,
            **(metadata or {}),
        },
    )  # fmt: skip
    if reference is not None:
        body["reference_example_id"] = reference
    return [body, *_executions(run, None, span, project, make_id)]


def _executions(
    run: Run, host: str | None, span: _Span, project: str, make_id: MakeId
) -> Iterator[Body]:
    for execution in run.executions:
        if execution.parent != host:
            continue
        # A child never begins before its host: clocks are kept run by run.
        begins = max(span.start, span.zero + timedelta(seconds=execution.started))
        ended = begins + timedelta(seconds=execution.seconds)
        name = execution.path.rpartition("/")[2]
        own = span.below(execution_id(make_id, run.id, execution.id), begins)
        yield _body(
            own, span.id, name, "chain", begins, ended, project,
            inputs=_mapping(execution.inputs, "input"),
            outputs=None if execution.error else _written(execution),
            error=execution.error,
            metadata={
                "langgraph_node": name,
                "langgraph_step": execution.superstep,
                "langgraph_checkpoint_ns": execution.namespace,
                "execution": execution.id,
                **({"prompts": dict(execution.prompts)} if execution.prompts else {}),
            },
        )  # fmt: skip
        yield from _calls(run, execution, own, project, make_id)
        yield from _executions(run, execution.id, own, project, make_id)


def _calls(
    run: Run, execution: Execution, span: _Span, project: str, make_id: MakeId
) -> Iterator[Body]:
    begins = span.start
    calls: list[ModelCall | ToolCall] = [*execution.model_calls, *execution.tool_calls]
    for number, call in enumerate(calls):
        own = span.below(make_id(run.id, execution.id, "call", str(number)), begins)
        if isinstance(call, ToolCall):
            yield _body(
                own, span.id, call.name, "tool", begins, begins, project,
                inputs=_mapping(call.inputs, "input"),
                outputs=None if call.error else _mapping(call.output, "output"),
                error=call.error,
                metadata={},
            )  # fmt: skip
            continue
        ended = begins + timedelta(seconds=call.usage.seconds)
        yield _llm(own, span.id, call, begins, ended, project, {})
        begins = ended


def _llm(
    span: _Span, parent: UUID | None, call: ModelCall, begins: datetime, ended: datetime,
    project: str, metadata: Mapping[str, Any],
) -> Body:  # fmt: skip
    outputs: Body | None = None
    if call.output is not None:
        outputs = {**_message(call.output), "usage_metadata": _usage(call.usage)}
    return _body(
        span, parent, call.model, "llm", begins, ended, project,
        inputs={"messages": [_message(m) for m in call.messages]},
        outputs=outputs,
        error=call.error,
        metadata={"ls_model_name": call.model, "ls_model_type": "chat", **metadata},
        invocation={"tools": list(call.tools)} if call.tools else {},
    )  # fmt: skip


def execution_id(make_id: MakeId, run_id: str, execution: str) -> UUID:
    """Return the id of the child run that stands for an execution."""
    return make_id(run_id, execution)


def blame_of(gradient: Gradient) -> Body:
    """Return the feedback that a gradient is, on the execution that it blames."""
    said = [gradient.change, gradient.keep and f"Keep: {gradient.keep}"]
    said.append(gradient.evidence and f"Because of: {gradient.evidence}")
    return {
        "key": "blame",
        "score": gradient.weight,
        "value": gradient.parameter,
        "comment": "\n".join(line for line in said if line) or None,
        "source_info": {"parameter": gradient.parameter, "gradient": gradient.id},
    }


def scores_of(score: float, feedback: Sequence[Feedback]) -> list[Body]:
    """Return what the evaluators said of a run, and what it came to, as LangSmith's feedback."""
    told: list[Body] = [
        {"key": f.key, "score": f.score, "comment": f.comment or None} for f in feedback
    ]
    return [*told, {"key": "objective", "score": score, "comment": None}]


def call_of(result: Mapping[str, Any], project: str, make_id: MakeId) -> Body:
    """Return the body of one model call of the optimizer's own: critic, rewriter or judge."""
    request, reply, usage = result["request"], result["reply"], result["usage"]
    model = request.get("model") or {}
    name = str(model.get("model") or model.get("model_name") or model.get("class") or "model")
    output, error = _replied(reply)
    call = ModelCall(name, tuple(request.get("messages") or ()), output, usage=usage, error=error)
    ended = datetime.fromtimestamp(result["created"], UTC)
    begins = ended - timedelta(seconds=max(0.0, usage.seconds))
    run_id = make_id("call", result["key"])
    span = _Span(run_id, run_id, _ordered(begins, run_id), begins, begins)
    body = _llm(span, None, call, begins, ended, project, {"lg_textgrad": __version__})
    body["name"] = result["kind"]
    body["tags"] = [result["kind"]]
    return body


def _replied(reply: Any) -> tuple[Body | None, str | None]:
    """Return the message and the error in a stored reply, in either of the forms that it has."""
    if not isinstance(reply, Mapping):
        return {"role": "assistant", "content": str(reply)}, None
    if "refused" in reply:
        return {"role": "assistant", "content": reply.get("reply") or ""}, str(reply["refused"])
    if "message" in reply:
        data = reply["message"].get("data") or {}
        said = {n: data[n] for n in ("content", "tool_calls") if n in data}
        return {"role": "assistant", "content": "", **said}, None
    content = reply.get("text") or json.dumps(reply.get("data"), ensure_ascii=False)
    return {"role": "assistant", "content": content}, None


def _body(
    span: _Span, parent: UUID | None, name: str, kind: str, start: datetime, end: datetime,
    project: str, *, inputs: Body, outputs: Body | None, error: str | None,
    metadata: Mapping[str, Any], invocation: Mapping[str, Any] | None = None,
) -> Body:  # fmt: skip
    extra: Body = {"metadata": dict(metadata)}
    if invocation:
        extra["invocation_params"] = dict(invocation)
    body: Body = {
        "id": str(span.id),
        "trace_id": str(span.trace),
        "dotted_order": span.order,
        "name": name,
        "run_type": kind,
        "start_time": start.isoformat(),
        "end_time": max(start, end).isoformat(),
        "session_name": project,
        "inputs": inputs,
        "extra": extra,
    }
    if parent is not None:
        body["parent_run_id"] = str(parent)
    if outputs is not None:
        body["outputs"] = outputs
    if error is not None:
        body["error"] = error
    return body


def _ordered(start: datetime, run_id: UUID) -> str:
    return f"{start.strftime('%Y%m%dT%H%M%S%fZ')}{run_id}"


def _mapping(value: Any, key: str) -> Body:
    return dict(value) if isinstance(value, Mapping) else {key: value}


def _written(execution: Execution) -> Body:
    """Return what was written; of several writes to one channel all, in a list."""
    written: dict[str, list[Any]] = {}
    for channel, value in execution.writes:
        written.setdefault(channel, []).append(value)
    found = {c: values[0] if len(values) == 1 else values for c, values in written.items()}
    if execution.goto or execution.sends:
        found["__goto__"] = [*execution.goto, *execution.sends]
    return found


def _message(message: Mapping[str, Any]) -> Body:
    """Return a message as LangSmith shows it best: as OpenAI writes them."""
    found = {"role": _ROLES.get(message["role"], message["role"]), "content": message["content"]}
    if message.get("tool_calls"):
        found["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["args"], ensure_ascii=False),
                },
            }
            for call in message["tool_calls"]
        ]
    for name in ("name", "tool_call_id", "status"):
        if message.get(name):
            found[name] = message[name]
    return found


def _usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.tokens,
    }
