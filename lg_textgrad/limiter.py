"""Places for so many at once, for coroutines of any loop and plain threads alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager

from lg_textgrad._sync import OfLoop, in_loop


class Limiter:
    """At most `limit` holders at once, shared by coroutines of any loop and by plain threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._guard = threading.Lock()
        self._waiting: deque[OfLoop[None]] = deque()

    @property
    def limit(self) -> int:
        """How many may hold a place; may be changed at any time, holders keep theirs."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._guard:
            self._limit = limit
            self._wake()

    @property
    def held(self) -> int:
        return self._held

    def _take(self) -> Future[None] | None:
        with self._guard:
            if self._held < self._limit:
                self._held += 1
                return None
            turn: OfLoop[None] = OfLoop()
            self._waiting.append(turn)
            return turn

    def _give(self) -> None:
        with self._guard:
            self._held -= 1
            self._wake()

    def _leave(self, turn: Future[None]) -> None:
        """Wait no longer; a turn that came in the same moment is handed on."""
        if not turn.cancel():  # it is ours already, or another thread is about to say so
            self._give()

    def _wake(self) -> None:
        while self._waiting and self._held < self._limit:
            turn = self._waiting.popleft()
            if not turn.abandoned and turn.set_running_or_notify_cancel():
                self._held += 1
                turn.set_result(None)

    @contextmanager
    def hold(self) -> Iterator[None]:
        turn = self._take()
        if turn is not None:
            if in_loop() and turn.cancel():
                # A blocking call in a coroutine: waiting would stop the loop in which the holders
                # finish. Slow anywhere; here one over the limit instead of waiting for ever.
                yield
                return
            try:
                turn.result()
            except BaseException:  # Ctrl-C
                self._leave(turn)
                raise
        try:
            yield
        finally:
            self._give()

    @asynccontextmanager
    async def ahold(self) -> AsyncIterator[None]:
        turn = self._take()
        if turn is not None:
            try:
                await asyncio.wrap_future(turn)
            except asyncio.CancelledError:
                self._leave(turn)
                raise
        try:
            yield
        finally:
            self._give()
