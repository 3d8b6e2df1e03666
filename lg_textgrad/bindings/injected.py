"""What a tool is given by LangGraph, beside the arguments that the model chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime
from langgraph.store.base import BaseStore

from lg_textgrad._hashing import digest
from lg_textgrad.tracking import fields_of

_NO_STATE = frozenset({"run_manager", "callbacks", "config"})
_COUNTERS = frozenset({"remaining_steps", "is_last_step"})


def visible(tool: BaseTool, args: Any) -> Any:
    """Return the arguments that the model chose."""
    without = getattr(tool, "_filter_injected_args", None)
    if not isinstance(args, Mapping) or without is None:
        return args
    return without(dict(args))


def state_given(tool: BaseTool, args: Any, call_id: str | None) -> str | None:
    """Return the hash of the state that a tool is given, unseen; None where it is given none.

    Messages don't count: they differ from run to run, and what matters of them is in the arguments.
    """
    chosen = visible(tool, args)
    if chosen is args:
        return None
    found = {}
    for name in args.keys() - chosen.keys() - _NO_STATE:
        value = args[name]
        if isinstance(value, ToolRuntime):
            value = value.state
        if value is None or isinstance(value, BaseStore):
            continue
        if type(value) is str and value == call_id:  # of a state, comparing would be a read
            continue
        if _are_messages(value):
            continue
        fields = dict(dict.items(value)) if isinstance(value, dict) else fields_of(value)
        found[name] = value if fields is None else _without_messages(fields)
    # No comparison: the values are the user's, and arrays and data frames have no truth value.
    empty = all(isinstance(part, dict | list) and not part for part in found.values())
    return None if empty else digest(found)


def _without_messages(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in fields.items()
        if name not in _COUNTERS and not _are_messages(value)
    }


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, BaseMessage) for part in value)
