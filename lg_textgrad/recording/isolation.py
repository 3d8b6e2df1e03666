"""Keep a recorded run from what surrounds it, and what surrounds it from the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.runnables.config import var_child_runnable_config
from langsmith.run_helpers import tracing_context


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
