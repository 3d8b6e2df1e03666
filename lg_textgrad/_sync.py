"""The one bridge from sync to async: every `foo` is `run_sync(afoo(...))`.

All sync calls of a process share one background event loop. So clients keep their connections
from call to call, and a call from inside a running loop (a notebook) works like any other.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from lg_textgrad._straight import waits

T = TypeVar("T")

_TURNS = 24
"""Turns of the loop: more than LangGraph and an SDK take to send their first request."""

_THREADS = 256
"""Of sync nodes, which mostly wait for a model. asyncio's own few (6 on two cores) would be all
taken by nodes that wait for their turn, while the call whose turn it is needs one too."""

_shared: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar(
    "lg_textgrad_shared", default=None
)

_lock = threading.Lock()
_left_open: WeakSet[AsyncGenerator[None]] = WeakSet()
_loop: asyncio.AbstractEventLoop | None = None
_process = 0
"""Whose loop it is: a forked process has the loop too, but not the thread that runs it."""


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop in which all sync calls of this process run."""
    global _loop, _process  # noqa: PLW0603 - one loop a process is the point of this module
    with _lock:
        if _loop is None or _loop.is_closed() or _process != os.getpid():
            _left_open.clear()
            _loop = asyncio.new_event_loop()
            _process = os.getpid()
            _loop.set_default_executor(ThreadPoolExecutor(_THREADS, "lg_textgrad-node"))
            threading.Thread(
                target=_loop.run_forever, name="lg_textgrad-sync", daemon=True
            ).start()
            atexit.register(_wind_up, _loop)
        return _loop


def close_at_end(generator: AsyncGenerator[None], loop: asyncio.AbstractEventLoop) -> None:
    """Close a generator of the background loop, which nobody shuts down, when the process ends."""
    if loop is _loop:
        _left_open.add(generator)


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    async def close(generator: AsyncGenerator[None]) -> None:
        await generator.aclose()

    if loop is _loop and loop.is_running():
        wait([asyncio.run_coroutine_threadsafe(close(g), loop) for g in list(_left_open)], 2)


class OfLoop(Future[T]):
    """A future of whoever makes it: a coroutine of the loop that runs here, or a plain thread."""

    def __init__(self) -> None:
        super().__init__()
        self._of = asyncio.get_running_loop() if in_loop() else None

    @property
    def abandoned(self) -> bool:
        """Whether its loop was closed without cancelling what ran in it, which never goes on."""
        return self._of is not None and self._of.is_closed()


def in_loop() -> bool:
    """Return whether this thread runs an event loop, which a blocking call would stop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end and return its result, whether or not a loop is running here.

    The caller's context variables hold inside. Ctrl-C cancels the coroutine, waits until it has
    cleaned up, and is raised again.
    """
    loop = background_loop()
    if threading.current_thread().name == "lg_textgrad-sync":
        coroutine.close()
        raise RuntimeError(
            "A sync method was called from lg_textgrad's own loop; await its a-twin."
        )
    done: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []
    context = contextvars.copy_context()

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            done.cancel()
            done.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(task.result())

    def start() -> None:
        task = loop.create_task(coroutine, context=context)
        tasks.append(task)
        task.add_done_callback(finish)

    loop.call_soon_threadsafe(start)
    try:
        return done.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        # Whatever the coroutine raises while it stops is secondary to the interrupt itself.
        wait([done])
        raise


async def in_thread(function: Callable[[], T]) -> T:
    """Return what `function` does in a thread, where the caller's context variables hold too."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function))


def in_daemon(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread: unlike an executor's, it never delays the process's end."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever awaits it may give up; the work goes on

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to whoever awaits the future
            future.set_exception(error)

    threading.Thread(target=run, name="lg_textgrad-daemon", daemon=True).start()
    return future


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` whose first failure is raised as it is, not inside a group.

    So `except ModelAuthenticationError` works for callers of everything that goes at once.
    """
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        failed = errors
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
    if failed is not None:
        raise failed


def shared() -> dict[Any, Any]:
    """Return the dict that the coroutines of the outermost `all_at_once` share; else a new one."""
    known = _shared.get()
    return {} if known is None else known


async def all_at_once(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what the coroutines return, in their order. The first failure stops the others.

    Each begins when the one before waits for a model, or after a few turns of the loop. So the
    first request leaves when it is ready and not when the last one is: the server works on it while
    others are made ready, and its answer is dealt with before theirs come.
    """
    tasks: list[asyncio.Task[T]] = []
    context, outer = contextvars.copy_context(), waits.get()
    context.run(_shared.set, shared())
    async with task_group() as group:
        for coroutine in coroutines:
            sent: list[bool] = []
            context.run(waits.set, sent)
            task = group.create_task(coroutine, context=context.copy())
            tasks.append(task)
            for _ in range(_TURNS):
                if task.done() or sent:
                    break
                await asyncio.sleep(0)
            if sent and outer is not None:
                outer.append(True)
    return [task.result() for task in tasks]
