"""Group commit: writes that wait at the same moment share one transaction, and so one fsync."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy.exc import OperationalError

from lg_textgrad.errors import StoreError
from lg_textgrad.store.places import Write

_FOR_ALL = (OperationalError, StoreError)
_Make = Callable[[], Sequence[Write]]
_Waiting = tuple[Sequence[Write], Future[None]]


class Writer:
    """Makes writes durable one group after the other; each caller waits for its own group only.

    `write` writes a group of rows in one transaction. While it waits for the disk, further rows
    gather and become the next group.
    """

    def __init__(self, write: Callable[[Sequence[Write]], None]) -> None:
        self._write = write
        self._turn = threading.Lock()
        self._waiting: deque[tuple[_Make, Future[None]]] = deque()
        self._start = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def put(self, rows: Sequence[Write]) -> None:
        """Write, and return when it is durable. Raises what the database raises."""
        with self._start:
            done = self._submit(lambda: rows)
        self._work()
        done.result()

    async def aput(self, make: Callable[[], Sequence[Write]]) -> None:
        """`put` what `make` returns, without holding up the event loop: it is called elsewhere.

        A cancelled caller's write is made as well.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not told.done():
                told.set_result(None)

        def written(_: Future[None]) -> None:
            with suppress(RuntimeError):  # the caller's loop has ended, so nobody waits
                loop.call_soon_threadsafe(tell)

        with self._start:
            done = self._submit(make)
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="lg_textgrad-store")
            self._thread.submit(self._work)
        done.add_done_callback(written)
        await told
        done.result()

    def close(self) -> None:
        """Make what still waits, and refuse what comes later."""
        with self._start:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        self._work()

    def _submit(self, make: _Make) -> Future[None]:
        if self._closed:
            raise StoreError("The store is closed, so nothing more can be written to it.")
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        self._waiting.append((make, done))
        return done

    def _work(self) -> None:
        """Write all that waits, unless somebody else has by the time it is our turn."""
        with self._turn:
            taken: list[tuple[_Make, Future[None]]] = []
            try:
                while self._waiting:
                    taken.append(self._waiting.popleft())
                group = _made(taken)
                if group:
                    self._commit(group)
            except BaseException:  # Ctrl-C here is not what the others asked for: their turn comes
                self._waiting.extendleft(pair for pair in reversed(taken) if not pair[1].done())
                raise

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            self._write([row for rows, _ in group for row in rows])
        except Exception as error:  # whatever it is belongs to those who wait
            # One that cannot be written must not take the others down; a full disk takes all.
            if len(group) == 1 or isinstance(error, _FOR_ALL):
                for _, done in group:
                    done.set_exception(error)
            else:
                for one in group:
                    self._commit([one])
        else:
            for _, done in group:
                done.set_result(None)


def _made(taken: Sequence[tuple[_Make, Future[None]]]) -> list[_Waiting]:
    """Return the rows of each; whoever's cannot be made is told so."""
    group = []
    for make, done in taken:
        try:
            group.append((make(), done))
        except Exception as error:
            done.set_exception(error)
    return group
