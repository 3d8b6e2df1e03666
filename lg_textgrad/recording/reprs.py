"""Read back what LangSmith keeps only as the text of a Python object: Sends, Commands, errors.

Nothing is evaluated: the text is parsed, and of what it names only what is known here is made.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Command, Overwrite, Send

_TRACEBACK = "Traceback (most recent call last):"
_ERROR = re.compile(r"([A-Za-z_][\w.]*)\((.*)\)\s*", re.DOTALL)
_MADE: Mapping[str, Callable[..., Any]] = {
    "Command": Command,
    "Overwrite": Overwrite,
    "Send": Send,
    "set": list,
    "frozenset": list,
    **{
        kind.__name__: kind
        for kind in (
            AIMessage, AIMessageChunk, FunctionMessage, HumanMessage, RemoveMessage, SystemMessage,
            ToolMessage,
        )
    },
}  # fmt: skip


def parse_repr(text: str) -> Any:
    """Return the value that `text` is the repr of, as far as it can be read.

    Objects of classes that aren't known become dicts of their fields. Raises `ValueError` where the
    text is no such thing.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"This is no value that can be read: {text[:80]!r}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key): _value(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Set):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        args = [_value(arg) for arg in node.args]
        kwargs = {k.arg: _value(k.value) for k in node.keywords if k.arg is not None}
        if name in _MADE:
            try:
                return _MADE[name](*args, **kwargs)
            except Exception as error:  # pydantic and dataclasses each have their own
                raise ValueError(f"This is no {name}: {error}") from error
        if kwargs and not args:
            return kwargs
    raise ValueError(f"This cannot be read: {ast.unparse(node)[:80]}")


def parse_send(text: Any) -> Send | None:
    """Return the Send that `text` is the repr of; its argument is None where that can't be read.

    None for what is no Send.
    """
    found = re.match(r"Send\(node='([^']+)', arg=", text) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        send = parse_repr(text)
    except ValueError:
        send = None
    return send if isinstance(send, Send) else Send(found[1], None)


def parse_error(text: str) -> Exception:
    """Return an exception that says what the stored one said: its repr, then its traceback.

    LangGraph's own that only steer it come back as what they are.
    """
    said = text.partition(_TRACEBACK)[0].strip()
    found = _ERROR.fullmatch(said)
    name = found[1].rpartition(".")[2] if found else "Error"
    if name == "ParentCommand":
        return _parent_command(said)
    if name in ("GraphInterrupt", "NodeInterrupt"):
        return GraphInterrupt()
    if name == "GraphBubbleUp":
        return GraphBubbleUp()
    message = _message(name, found[2]) if found else None
    if message is None:  # several arguments, or none that can be read: the traceback's end knows
        name, message = _last_line(text, name) or (name, found[2] if found else said)
    made: Exception = type(name, (Exception,), {})(message)
    return made


def _message(name: str, arguments: str) -> str | None:
    """Return what `str(error)` was, from the arguments in its repr; None where they can't tell."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        values = [ast.literal_eval(arg) for arg in call.args]  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    if getattr(call, "keywords", None) or len(values) > 1:
        return None
    if not values:
        return ""
    return repr(values[0]) if name == "KeyError" else str(values[0])


def _last_line(text: str, name: str) -> tuple[str, str] | None:
    """Return type and message from the end of a traceback; None where there is none."""
    known = re.escape(name) if name != "Error" else r"\w+"
    found = list(re.finditer(rf"^(?:[\w.]*\.)?({known}): (.*)", text, re.MULTILINE))
    if not found:
        return None
    message = text[found[-1].start(2) :].partition("\nDuring task with name ")[0]
    return found[-1][1], message.strip()


def _parent_command(said: str) -> ParentCommand:
    inner = said[len("ParentCommand(") : -1]
    try:
        command = parse_repr(inner)
    except ValueError:
        command = None
    if not isinstance(command, Command):
        # The update can't be read; where it led to mostly can.
        led = re.search(r"goto=('[^']*'|\[[^\]]*\]|\([^)]*\))\)*$", inner)
        try:
            goto = ast.literal_eval(led[1]) if led else ()
        except (SyntaxError, ValueError):
            goto = ()
        command = Command(goto=goto)
    return ParentCommand(command)
