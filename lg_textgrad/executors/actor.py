"""What runs on a node of a cluster: takes what home says, and yields what is told home."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncIterator
from typing import Any

from lg_textgrad._version import __version__
from lg_textgrad.executors.distant import Guests
from lg_textgrad.executors.luggage import unpack
from lg_textgrad.executors.wire import packed
from lg_textgrad.recording.isolation import untraced_process


class Worker:
    """The actor on a node: loads the graph once, then runs it, many runs at a time."""

    def __init__(self) -> None:
        self._out = asyncio.Queue[Any]()
        self._guests: Guests | None = None

    async def hello(self) -> str:
        """Return the version of lg_textgrad on the node, before anything of it travels."""
        return __version__

    async def load(self, luggage: bytes) -> tuple[int, bytes | None]:
        """Load the graph. Returns the process's id, and the error where that fails."""
        loop = asyncio.get_running_loop()

        def tell(message: Any) -> None:
            loop.call_soon_threadsafe(self._out.put_nowait, message)

        def load() -> bytes | None:
            try:
                untraced_process().__enter__()  # for good: the process is ours alone
                ready = unpack(pickle.loads(luggage))  # noqa: S301 - from home
                self._guests = Guests(ready.source, ready.bindings, ready.tools, tell)
            except Exception as error:  # raised at home
                return packed(error)
            return None

        # Not in the loop's own thread: modules may run coroutines when they are imported.
        return os.getpid(), await loop.run_in_executor(None, load)

    async def hear(self, message: Any) -> None:
        if self._guests is not None:
            self._guests.hear(message)

    async def stop(self) -> None:
        self._out.put_nowait(None)

    async def messages(self) -> AsyncIterator[list[Any]]:
        """Yield what is told home, until `stop`."""
        while True:
            told = [await self._out.get()]
            while not self._out.empty():
                told.append(self._out.get_nowait())
            ended = None in told
            yield [message for message in told if message is not None]
            if ended:
                return
