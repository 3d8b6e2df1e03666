"""Group commit: writes that wait at the same moment share one transaction, and so one fsync."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.exc import OperationalError

from lg_textgrad.errors import StoreError
from lg_textgrad.store.places import Write
from lg_textgrad.store.tables import results

logger = logging.getLogger(__name__)

_FOR_ALL = (OperationalError, StoreError)
_GATHERING = 0.001
"""Seconds before a group of coroutines' writes is closed. Answers come one after another, and each
transaction that is saved is a wait for the disk, and CPU that the event loop needs."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """Rows that are to be written, and who waits for that."""

    make: Callable[[], Sequence[Write]]
    done: Future[None] = field(default_factory=Future)
    told: asyncio.Future[None] | None = None
    """What a coroutine waits for."""


class Writer:
    """Makes writes durable one group after the other; each caller waits for its own group only.

    `write` writes a group of rows in one transaction. While it waits for the disk, further rows
    gather and become the next group; coroutines' rows also for a moment before.
    """

    def __init__(self, write: Callable[[Sequence[Write]], None]) -> None:
        self._write = write
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._start = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        # Whether the thread has work to come that will find what is added now.
        self._due = False
        self._closed = False
        self._lost = 0
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that the writer works in."""
        return self._process != os.getpid()

    def put(self, rows: Sequence[Write]) -> None:
        """Write, and return when it is durable. Raises what the database raises."""
        one = _Waiting(lambda: rows)
        with self._start:
            self._add(one)
        self._work()
        one.done.result()

    async def aput(self, make: Callable[[], Sequence[Write]]) -> None:
        """`put` what `make` returns, without holding up the event loop: it is called elsewhere.

        A cancelled caller's write is made as well.
        """
        told = asyncio.get_running_loop().create_future()
        one = _Waiting(make, told=told)
        with self._start:
            self._add(one)
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="lg_textgrad-store")
            if not self._due:
                self._thread.submit(self._work, due=True)
                self._due = True
        await told
        one.done.result()

    def close(self) -> None:
        """Make what still waits, and refuse what comes later."""
        with self._start:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        self._work()
        if self._lost:
            logger.warning(
                "%s that %s paid for could not be written to the store, and will be paid for again "
                "when the run goes on.",
                *(("1 result", "was") if self._lost == 1 else (f"{self._lost} results", "were")),
            )
            self._lost = 0

    def _add(self, one: _Waiting) -> None:
        if self._closed:
            raise StoreError("The store is closed, so nothing more can be written to it.")
        if self.forked:
            # A fork has none of the threads, and databases' connections must not be used in it.
            raise StoreError(
                "The store was opened by the process that this one was forked from; only that one "
                "can write to it. Open another one here, in a place of its own."
            )
        one.done.set_running_or_notify_cancel()
        self._waiting.append(one)

    def _work(self, *, due: bool = False) -> None:
        """Write all that waits, unless somebody else has by the time it is our turn."""
        if due:
            time.sleep(_GATHERING)
        with self._turn:
            if due:  # before anything is taken: what comes from now on may come too late for it
                with self._start:
                    self._due = False
            taken: list[_Waiting] = []
            try:
                while self._waiting:
                    taken.append(self._waiting.popleft())
                group = _made(taken)
                if group:
                    self._commit(group)
            except BaseException:  # Ctrl-C here is not what the others asked for: their turn comes
                self._waiting.extendleft(one for one in reversed(taken) if not one.done.done())
                raise
            finally:
                _tell(one for one in taken if one.done.done())

    def _commit(self, group: Sequence[tuple[Sequence[Write], _Waiting]]) -> None:
        try:
            self._write([row for rows, _ in group for row in rows])
        except Exception as error:  # whatever it is belongs to those who wait
            # One that cannot be written must not take the others down; a full disk takes all.
            if len(group) == 1 or isinstance(error, _FOR_ALL):
                for rows, one in group:
                    self._lost += sum(table is results for table, _ in rows)
                    one.done.set_exception(error)
            else:
                for pair in group:
                    self._commit([pair])
        else:
            for _, one in group:
                one.done.set_result(None)


def _made(taken: Sequence[_Waiting]) -> list[tuple[Sequence[Write], _Waiting]]:
    """Return the rows of each; whoever's cannot be made is told so."""
    group = []
    for one in taken:
        try:
            group.append((one.make(), one))
        except Exception as error:
            one.done.set_exception(error)
    return group


def _tell(those: Iterable[_Waiting]) -> None:
    """Let the coroutines go on: a loop is woken once for all of its own."""
    of_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for one in those:
        if one.told is not None:
            of_loop[one.told.get_loop()].append(one.told)
    for loop, told in of_loop.items():
        with suppress(RuntimeError):  # the callers' loop has ended, so nobody waits
            loop.call_soon_threadsafe(_go_on, told)


def _go_on(told: Sequence[asyncio.Future[None]]) -> None:
    for each in told:
        if not each.done():
            each.set_result(None)
