"""Keep a recorded run from what surrounds it, and what surrounds it from the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.runnables.config import var_child_runnable_config
from langsmith.run_helpers import tracing_context
from langsmith.utils import get_env_var

_SWITCHES = (
    "LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"
)  # fmt: skip


def _forget() -> None:
    """Let langsmith look at the environment anew: it remembers what it has seen."""
    clear = getattr(get_env_var, "cache_clear", None)
    if clear is not None:
        clear()


@contextmanager
def untraced_process() -> Iterator[None]:
    """Switch LangSmith tracing off in the whole process, for one that is ours alone.

    `isolated` holds where context variables do; a thread that a node starts by hand has none of
    them, and a `.env` that the user's module loads doesn't go over what is set.
    """
    before = {name: os.environ.get(name) for name in _SWITCHES}
    os.environ.update(dict.fromkeys(_SWITCHES, "false"))
    _forget()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _forget()


@contextmanager
def isolated() -> Iterator[None]:
    """Run as if at the top: no callbacks, checkpointer or limits of a surrounding LangGraph run.

    LangSmith tracing is off inside, whatever the environment says: tuning runs are many, and
    nothing leaves the machine unless the user asked for it in this run.
    """
    token = var_child_runnable_config.set(None)
    try:
        with tracing_context(enabled=False, parent=False):
            yield
    finally:
        var_child_runnable_config.reset(token)
