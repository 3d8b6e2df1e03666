"""Runs as JSON data and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lg_textgrad._hashing import to_plain
from lg_textgrad.run import Example, Execution, ModelCall, Run, ToolCall, Usage


def frozen(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def encode_run(run: Run) -> dict[str, Any]:
    """Return the run as JSON data, without its example (that comes from the data again)."""
    return {
        "id": run.id,
        "candidate": run.candidate,
        "outputs": to_plain(run.outputs),
        "executions": [
            {
                **{
                    name: to_plain(getattr(e, name))
                    for name in Execution.__dataclass_fields__
                    if name not in ("model_calls", "tool_calls")
                },
                "model_calls": [
                    {**_fields(c), "usage": _fields(c.usage)} for c in e.model_calls
                ],
                "tool_calls": [_fields(c) for c in e.tool_calls],
            }
            for e in run.executions
        ],
        "error": run.error,
        "failed_in": run.failed_in,
        "usage": _fields(run.usage),
        "seconds": run.seconds,
        "sample": run.sample,
        "warnings": list(run.warnings),
        "accumulating": {path: list(names) for path, names in run.accumulating.items()},
    }


def _fields(record: ModelCall | ToolCall | Usage) -> dict[str, Any]:
    """Return what `asdict` does, without the copies: what is in there is written down at once."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def decode_run(data: dict[str, Any], example: Example) -> Run:
    """Return the run that `encode_run` made `data` from."""
    executions = tuple(
        Execution(
            **{
                **e,
                "writes": tuple((channel, value) for channel, value in e["writes"]),
                "overwrites": frozenset(e["overwrites"]),
                "sends": tuple(e["sends"]),
                "goto": tuple(e["goto"]),
                "reads": frozen(e["reads"]),
                "model_calls": tuple(
                    ModelCall(
                        **{
                            **c,
                            "messages": tuple(c["messages"]),
                            "tools": tuple(c["tools"]),
                            "usage": Usage(**c["usage"]),
                        }
                    )
                    for c in e["model_calls"]
                ),
                "tool_calls": tuple(ToolCall(**c) for c in e["tool_calls"]),
            }
        )
        for e in data["executions"]
    )
    return Run(
        **{
            **data,
            "executions": executions,
            "usage": Usage(**data["usage"]),
            "warnings": tuple(data["warnings"]),
            "accumulating": {path: tuple(names) for path, names in data["accumulating"].items()},
            "example": example,
        }
    )


def usage_of(row: Any) -> Usage:
    """Return what a row of results cost."""
    calls = 1 if row.calls is None else row.calls
    return Usage(
        calls,
        0,
        row.prompt_tokens,
        row.completion_tokens,
        row.seconds,
        row.cached_tokens or 0,
        row.usd or 0.0,
        calls if row.usd is None else 0,
    )
