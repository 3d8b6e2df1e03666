"""Find the `Parameter` objects that a graph's nodes can reach, wherever they were written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from lg_textgrad.parameter import Parameter
from lg_textgrad.recording.structure import AnyGraph, graphs_by_path


def reachable_parameters(graph: AnyGraph) -> list[Parameter]:
    """Return the parameters that node functions use, in the order of the nodes.

    Looked through are globals and closures of the functions, attributes of the modules that they
    name, attributes of the objects whose methods they are, and the functions that they call. What
    is looked up by a computed name is not found.
    """
    found: dict[int, Parameter] = {}
    seen: set[int] = set()
    for sub in graphs_by_path(graph).values():
        for node in sub.nodes.values():
            for function in _functions(node.bound):
                for parameter in _used_by(function, seen):
                    found.setdefault(id(parameter), parameter)
    return list(found.values())


def _functions(bound: Any) -> Iterator[Any]:
    """Yield the functions of a node: those of each step, when it is a sequence."""
    for step in getattr(bound, "steps", None) or [bound]:
        for name in ("afunc", "func"):
            if (function := getattr(step, name, None)) is not None:
                yield function


def _used_by(value: Any, seen: set[int]) -> Iterator[Parameter]:
    if isinstance(value, Parameter):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _used_by(part, seen)
        return
    if inspect.ismethod(value):
        yield from _used_by(value.__func__, seen)
        yield from _attributes(value.__self__)
        return
    if not isinstance(value, FunctionType):
        if callable(value) and not isinstance(value, type):
            yield from _attributes(value)
            method = inspect.getattr_static(type(value), "__call__", None)
            if isinstance(method, FunctionType):
                yield from _used_by(method, seen)
        return
    if isinstance(inspected := inspect.unwrap(value), FunctionType):
        value = inspected
    names = list(_names(value.__code__))
    for name in names:
        if name in value.__globals__:
            used = value.__globals__[name]
            if isinstance(used, ModuleType):
                for attribute in names:
                    if isinstance(p := vars(used).get(attribute), Parameter):
                        yield p
            elif isinstance(used, Parameter | FunctionType | functools.partial):
                yield from _used_by(used, seen)
            elif isinstance(used, dict):
                yield from (v for v in used.values() if isinstance(v, Parameter))
    for cell in value.__closure__ or ():
        try:
            used = cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
        if isinstance(used, dict):
            yield from (v for v in used.values() if isinstance(v, Parameter))
        else:
            yield from _used_by(used, seen)


def _attributes(instance: Any) -> Iterator[Parameter]:
    yield from (v for v in getattr(instance, "__dict__", {}).values() if isinstance(v, Parameter))


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function uses, those inside of it included, in order."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
