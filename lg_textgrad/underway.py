"""What is under way when a run ends: it is waited for, so that what it came to is kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from lg_textgrad.errors import StoreError


@dataclass(slots=True)
class Fate:
    """How far a call has come, and whether anybody waits for it."""

    sent: bool = False
    deserted: bool = False


class UnderWay:
    """The calls of one run that have begun and are not stored yet; from any loop and thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._calls: dict[Future[None], asyncio.Task[Any] | None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._calls)

    def begin(
        self, task: asyncio.Task[Any] | None, reserve: Callable[[], None] | None = None
    ) -> Future[None]:
        """Count a call, which runs in `task` or in a plain thread, until `end`.

        Raises `StoreError` when the run has ended, and what `reserve` raises.
        """
        done: Future[None] = Future()
        with self._guard:
            if self._closed:
                raise StoreError("The run has ended, so no further call is made in it.")
            if reserve is not None:
                reserve()
            self._calls[done] = task
        return done

    def end(self, done: Future[None]) -> None:
        with self._guard:
            del self._calls[done]
        done.set_result(None)

    async def aclose(self, seconds: float | None) -> None:
        """Let no further call begin, and wait at most `seconds` for those that have; None waits.

        Those of tasks are cancelled then; nobody can stop a thread.
        """
        with self._guard:
            self._closed = True
            # In a loop that was closed nothing goes on, and nobody can cancel it.
            begun = {
                done: task
                for done, task in self._calls.items()
                if task is None or not task.get_loop().is_closed()
            }
        if not begun:
            return
        waiting = {asyncio.wrap_future(future): task for future, task in begun.items()}
        _, late = await asyncio.wait(waiting, timeout=seconds)
        cancelled = [future for future in late if waiting[future] is not None]
        for future in cancelled:
            if (task := waiting[future]) is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)
        if cancelled:  # so that connections are closed before their loop is
            await asyncio.wait(cancelled, timeout=5)
