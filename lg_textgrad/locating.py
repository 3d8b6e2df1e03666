"""Find the object that the user names: in a module, in a file, or by what `langgraph.json` says."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from langgraph.pregel import Pregel
from langgraph.store.memory import InMemoryStore

from lg_textgrad._sync import run_sync
from lg_textgrad.errors import ConfigurationError, GraphError, LGTextGradError

SERVER_FILE = "langgraph.json"
"""The file in which LangGraph's own tools name an application's graphs."""
_UTF_8 = "utf-8-sig"  # some editors begin a file with a byte-order mark

_open = ExitStack()
"""Context managers of graphs that stay open as long as the process."""
atexit.register(_open.close)


def load_object(spec: str, what: str) -> tuple[Any, ModuleType]:
    """Return the object that `MODULE:NAME` or `FILE.py:NAME` names, and its module.

    Raises `GraphError` for a graph, `ConfigurationError` for anything else, that is not there.
    """
    kind = GraphError if what == "graph" else ConfigurationError
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise kind(
            f"'{spec}' names no {what}; write MODULE:NAME, as in my_app.agent:{what}."
        )
    _importable(Path.cwd())
    module = _module(place, spec, what, kind)
    try:
        return getattr(module, name), module
    except AttributeError:
        raise kind(
            f"The module '{module.__name__}' has no '{name}'; check the name after the colon."
        ) from None


def load_graph_object(spec: str) -> tuple[Any, ModuleType]:
    """Return what `spec` names as a graph, factories called, and the module that it is in.

    Besides `MODULE:NAME` and `FILE.py:NAME`, `FILE.json:NAME` takes a graph of a `langgraph.json`,
    and a bare `NAME` one of the `langgraph.json` in the current folder. A factory (a function, sync
    or async, or a context manager, with no argument or one for the config) is called, and a
    `StateGraph` that it returns, or that a `langgraph.json` names, is compiled, and a graph of a
    `langgraph.json` without a store gets one in memory, as LangGraph's server does. Raises
    `GraphError`.
    """
    place, _, name = spec.rpartition(":")
    if place.endswith(".json") or (not place and name and Path(SERVER_FILE).is_file()):
        target, store = _from_server_file(Path(place or SERVER_FILE), name)
        found, module = load_object(target, "graph")
        return _with_store(_compiled(_made(found, spec)), store, spec), module
    found, module = load_object(spec, "graph")
    made = _made(found, spec)
    return (made if made is found else _compiled(made)), module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module(place: str, spec: str, what: str, kind: type[LGTextGradError]) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _module_of_file(Path(place), what, kind)
        if "/" in place or place.startswith("."):
            raise kind(
                f"'{place}' is neither a Python module nor a file that ends in .py, so there is no "
                f"{what} in it."
            )
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name
        if missing and not (place == missing or place.startswith(f"{missing}.")):
            raise kind(
                f"The {what} '{spec}' cannot be loaded: {place} imports '{missing}', "
                f"which is not installed."
            ) from None
        raise kind(
            f"There is no module '{place}' for the {what} '{spec}'; "
            "run from the folder that has it, or install it."
        ) from None
    except LGTextGradError:
        raise
    except Exception as error:  # whatever a user's module raises is about that module
        raise kind(
            f"The {what} '{spec}' cannot be loaded: importing {place} raised "
            f"{type(error).__name__}: {error}. Mend the module and run again."
        ) from error


def _module_of_file(path: Path, what: str, kind: type[LGTextGradError]) -> ModuleType:
    """Import a file: as the module that it is where it can be imported, else by itself."""
    path = path.resolve()
    if not path.is_file():
        raise kind(f"There is no file '{path}' for the {what}; check the path before the colon.")
    for folder in sys.path:
        root = Path(folder or ".").resolve()
        if path.is_relative_to(root):
            parts = path.relative_to(root).with_suffix("").parts
            packages = [root.joinpath(*parts[:n]) for n in range(1, len(parts))]
            importable = all(p.isidentifier() for p in parts) and all(
                (p / "__init__.py").is_file() for p in packages
            )
            if importable:
                return importlib.import_module(".".join(parts))
    # The same in every process: what is pickled in one is found in another.
    name = f"_lg_textgrad_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _importable(path.parent)
    described = importlib.util.spec_from_file_location(name, path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module
    try:
        described.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_server_file(path: Path, name: str) -> tuple[str, Any]:
    """Return `FILE.py:NAME` of a graph in a `langgraph.json`, its environment prepared.

    And what the file says of the store.
    """
    try:
        document = json.loads(path.read_text(encoding=_UTF_8))
    except FileNotFoundError:
        raise GraphError(f"There is no file '{path}'; check the path before the colon.") from None
    except (OSError, ValueError) as error:
        raise GraphError(f"The file '{path}' cannot be read as JSON: {error}.") from None
    graphs = document.get("graphs") if isinstance(document, dict) else None
    if not isinstance(graphs, dict) or not graphs:
        raise GraphError(f"The file '{path}' names no graphs under \"graphs\".")
    if name not in graphs:
        known = ", ".join(f"'{g}'" for g in graphs)
        raise GraphError(f"The file '{path}' has no graph '{name}'; it has {known}.")
    entry = graphs[name]
    target = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(target, str) or ":" not in target:
        raise GraphError(f"In '{path}' the graph '{name}' must be written as \"FILE.py:NAME\".")
    folder = path.resolve().parent
    for dependency in document.get("dependencies", []):
        local = folder / str(dependency)
        if str(dependency).startswith(".") and local.is_dir():
            _importable(local.resolve())
            if (local / "src").is_dir():
                _importable((local / "src").resolve())
    _set_environment(document.get("env"), folder, path)
    place, _, attribute = target.rpartition(":")
    found = f"{folder / place}:{attribute}" if place.endswith(".py") else target
    return found, _store_settings(document.get("store"), folder)


def _store_settings(given: Any, folder: Path) -> Any:
    """Return the settings with an embedding function's file where it is."""
    index = given.get("index") if isinstance(given, Mapping) else None
    place, _, attribute = str((index or {}).get("embed", "")).rpartition(":")
    if not place.endswith(".py"):
        return given
    return {**given, "index": {**(index or {}), "embed": f"{folder / place}:{attribute}"}}


def _with_store(graph: Any, settings: Any, spec: str) -> Any:
    """Return a graph that has no store with one in memory, which finds by meaning if it is to."""
    if not isinstance(graph, Pregel) or graph.store is not None:
        return graph
    index = settings.get("index") if isinstance(settings, Mapping) else None
    if index and ".py:" in str(index.get("embed")):
        index = {**index, "embed": load_object(str(index["embed"]), "embedding function")[0]}
    try:
        store = InMemoryStore(index=index) if index else InMemoryStore()
    except Exception as error:  # whatever the embeddings' own package raises
        raise GraphError(
            f"The store that the graph '{spec}' is to have cannot be made: "
            f"{type(error).__name__}: {error}. Correct 'store' in its langgraph.json, or give "
            "the graph a store where it is compiled."
        ) from error
    return graph.copy({"store": store})


def _set_environment(env: Any, folder: Path, path: Path) -> None:
    """Set what `env` gives, a table or a file of NAME=VALUE lines; what is set already stays."""
    if isinstance(env, Mapping):
        for name, value in env.items():
            os.environ.setdefault(str(name), str(value))
    elif isinstance(env, str) and env:
        file = folder / env
        try:
            lines = file.read_text(encoding=_UTF_8).splitlines()
        except OSError:
            raise GraphError(
                f"The file '{path}' names the environment file '{env}', which cannot be read."
            ) from None
        for line in lines:
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if equals and not name.startswith("#"):
                os.environ.setdefault(name.strip(), value.strip().strip("'\""))


def _made(found: Any, spec: str) -> Any:
    """Return what a factory makes; what is no factory is returned as it is."""
    if isinstance(found, type) or not callable(found):
        return found
    needed = [
        p
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        names = ", ".join(p.name for p in needed)
        raise GraphError(
            f"The factory '{spec}' asks for {names}; a factory takes nothing, or one config. "
            "Write a function that needs no more, and name that."
        )
    config: dict[str, Any] = {"configurable": {}}
    try:
        if not needed:
            made = found()
        elif needed[0].kind is needed[0].KEYWORD_ONLY:
            made = found(**{needed[0].name: config})
        else:
            made = found(config)
        if inspect.isawaitable(made):
            made = run_sync(_awaited(made))
        if isinstance(made, AbstractAsyncContextManager):
            manager = made
            made = run_sync(manager.__aenter__())
            _open.callback(lambda: run_sync(manager.__aexit__(None, None, None)))
        elif isinstance(made, AbstractContextManager):
            made = _open.enter_context(made)
    except LGTextGradError:
        raise
    except Exception as error:  # whatever a user's factory raises is about that factory
        raise GraphError(
            f"The factory '{spec}' raised {type(error).__name__}: {error}. Mend it and run again."
        ) from error
    return made


async def _awaited(made: Any) -> Any:
    return await made


def _compiled(found: Any) -> Any:
    return found.compile() if hasattr(found, "compile") and hasattr(found, "nodes") else found
