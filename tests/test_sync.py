"""The bridge from sync to async."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextvars import ContextVar
from types import coroutine

import pytest

from lg_textgrad._straight import straight
from lg_textgrad._sync import all_at_once, run_sync, task_group

var = ContextVar("var", default="none")


async def later(value):
    await asyncio.sleep(0)
    return value


def test_returns_and_raises_what_the_coroutine_does():
    async def bad():
        raise KeyError("k")

    assert run_sync(later(3)) == 3
    with pytest.raises(KeyError):
        run_sync(bad())


async def test_works_inside_a_running_loop():
    assert run_sync(later(3)) == 3


_FORKED = """
import os, signal, sys
from lg_textgrad._sync import run_sync

async def one():
    return 1

run_sync(one())
child = os.fork()
if child == 0:
    signal.alarm(10)
    sys.exit(run_sync(one()) - 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_works_in_a_process_that_was_forked_from_one_where_it_has_worked():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_works_from_many_threads_at_once():
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(run_sync(later(i)))) for i in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == list(range(20))


def test_callers_context_holds_inside():
    async def read():
        return var.get()

    var.set("mine")
    assert run_sync(read()) == "mine"
    var.set("none")


def test_all_calls_share_one_loop():
    async def loop():
        return asyncio.get_running_loop()

    assert run_sync(loop()) is run_sync(loop())


def test_call_from_its_own_loop_is_refused_instead_of_hanging():
    async def slip():
        return run_sync(later(1))

    with pytest.raises(RuntimeError, match="await its a-twin"):
        run_sync(slip())


def test_cancelled_coroutine_is_raised_as_such():
    async def cancelled():
        raise asyncio.CancelledError

    import concurrent.futures

    with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        run_sync(cancelled())


def test_ctrl_c_stops_the_coroutine_and_waits_until_it_has_cleaned_up():
    import signal

    done = []

    async def work():
        try:
            threading.Timer(
                0.05, lambda: signal.pthread_kill(main, signal.SIGINT)
            ).start()
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            done.append("clean")

    main = threading.main_thread().ident
    with pytest.raises(KeyboardInterrupt):
        run_sync(work())
    assert done == ["clean"]


# Task groups.


async def test_first_failure_is_raised_bare_and_the_rest_is_cancelled():
    cancelled = []

    async def wait():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def nested():
        async with task_group() as inner:
            inner.create_task(wait())
            inner.create_task(fail())

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("k") from ValueError("cause")

    with pytest.raises(KeyError) as caught:
        async with task_group() as group:
            group.create_task(wait())
            group.create_task(nested())
    assert isinstance(caught.value.__cause__, ValueError)
    assert cancelled == [1, 1]


async def test_cancelling_the_caller_cancels_the_group():
    async def outer():
        async with task_group() as group:
            group.create_task(asyncio.sleep(30))

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_all_at_once_returns_results_in_their_order_however_they_end():
    async def ends(after):
        for _ in range(after):
            await asyncio.sleep(0)
        return after

    assert await all_at_once(ends(n) for n in (90, 3, 50, 0)) == [90, 3, 50, 0]


async def test_all_at_once_waits_for_nobody_but_lets_the_first_go_first():
    seen = []
    everyone = asyncio.Event()

    async def one(n):
        for step in range(5):  # what it takes to send a request
            seen.append((n, step))
            await asyncio.sleep(0)
        if n == 2:
            everyone.set()
        await everyone.wait()  # only ends when all have begun

    await all_at_once(one(n) for n in range(3))
    assert seen == [(n, step) for n in range(3) for step in range(5)]


@pytest.mark.parametrize("nested", [False, True])
async def test_next_begins_as_soon_as_the_one_before_waits_for_its_answer(nested):
    turns, began = 0, []

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def one():
        began.append(turns)
        await asyncio.sleep(0)
        await straight(asyncio.sleep(0.05))

    async def level():
        await all_at_once([one()])

    counting = asyncio.create_task(count())
    await all_at_once(level() if nested else one() for _ in range(5))
    counting.cancel()
    assert began[-1] - began[0] < 5 * 8


async def test_all_at_once_raises_the_first_failure_and_begins_no_more():
    begun = []

    async def one(n):
        begun.append(n)
        if n == 1:
            raise KeyError("k")
        await asyncio.sleep(30)

    with pytest.raises(KeyError):
        await all_at_once(one(n) for n in range(5))
    assert begun == [0, 1]


def test_threads_are_enough_for_many_that_wait_for_each_other():
    everyone = threading.Barrier(100)

    async def all_wait():
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, everyone.wait, 20) for _ in range(100)))

    run_sync(all_wait())


def test_what_the_garbage_collector_closes_in_any_order_raises_nothing():
    @coroutine
    def waiting():
        yield object()

    async def inner():
        await waiting()

    async def outer():
        await straight(started)

    started = inner()
    waits = outer()
    waits.send(None)
    started.close()
    waits.close()
