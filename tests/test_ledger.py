"""The ledger: every call is paid once, under one limit and one budget."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import lg_textgrad as tg
from lg_textgrad.budget import Account
from lg_textgrad.errors import BudgetExceededError, ModelBusyError, ModelReplyError, StoreError
from lg_textgrad.ledger import aask, account_of, ledger_in_scope
from lg_textgrad.limiter import Limiter
from lg_textgrad.models import ModelRequest, OpenAI
from lg_textgrad.run import Usage
from lg_textgrad.store import Store
from tests.parts import QUICK, Scripted
from tests.servers.openai_server import OpenAIServer, Reply


def free(limiter):
    return limiter.limit - limiter.held


def request(text="hi", **options):
    return ModelRequest([{"role": "user", "content": text}], **options)


# The limiter.


async def test_limit_holds_with_threads_and_coroutines_mixed():
    limiter = Limiter(3)
    guard = threading.Lock()
    now = peak = done = 0

    def enter(step):
        nonlocal now, peak, done
        with guard:
            now += step
            peak = max(peak, now)
            done += step < 0

    def in_thread():
        with limiter.hold():
            enter(1)
            time.sleep(0.001)
            enter(-1)

    async def in_loop():
        async with limiter.ahold():
            enter(1)
            await asyncio.sleep(0.001)
            enter(-1)

    def in_another_loop():
        asyncio.run(asyncio.wait_for(in_loop(), 20))

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(in_thread if i % 2 else in_another_loop) for i in range(40)]
        await asyncio.gather(*(in_loop() for _ in range(40)))
        await asyncio.gather(*map(asyncio.wrap_future, futures))
    assert (peak, now, done, free(limiter)) == (3, 0, 80, 3)


async def test_cancelled_waiters_leak_no_place():
    limiter = Limiter(2)
    generator = random.Random(0)

    async def use():
        async with limiter.ahold():
            await asyncio.sleep(0)

    for _ in range(60):
        tasks = [asyncio.create_task(use()) for _ in range(8)]
        for _ in range(generator.randrange(4)):
            await asyncio.sleep(0)
        for task in generator.sample(tasks, 5):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert free(limiter) == 2


async def test_cancelled_holder_gives_its_place_back():
    limiter = Limiter(1)

    async def hold():
        async with limiter.ahold():
            await asyncio.sleep(30)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiter = asyncio.create_task(hold())
    await asyncio.sleep(0)
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    await asyncio.sleep(0)
    assert (free(limiter), waiter.done()) == (0, False)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert free(limiter) == 1


async def test_turn_that_comes_with_the_cancellation_is_handed_on():
    limiter = Limiter(1)
    manager = limiter.ahold()
    await manager.__aenter__()

    async def hold():
        async with limiter.ahold():
            await asyncio.sleep(30)

    waiter = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiter.cancel()
    await manager.__aexit__(None, None, None)  # before the waiter has seen its cancellation
    await asyncio.gather(waiter, return_exceptions=True)
    assert free(limiter) == 1


async def test_turn_of_a_loop_that_was_closed_is_handed_on():
    limiter, waiting = Limiter(1), []

    async def hold():
        async with limiter.ahold():
            pass

    async def begin():
        waiting.append(asyncio.ensure_future(hold()))
        await asyncio.sleep(0)

    def abandon():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()  # without cancelling, as after a Ctrl-C in `run_until_complete`
        waiting.pop()._log_destroy_pending = False

    async with limiter.ahold():
        await asyncio.to_thread(abandon)
    async with asyncio.timeout(5), limiter.ahold():
        assert free(limiter) == 0
    assert free(limiter) == 1


def test_call_of_a_loop_that_was_closed_is_made_again_and_not_waited_for():
    ledger, tasks = tg.Ledger(), []

    async def begin():
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(ledger.apay("key", "rollout", {}, never)))
        await asyncio.sleep(0.05)
        tasks.extend(asyncio.all_tasks() - {asyncio.current_task()})

    async def never():
        await asyncio.sleep(60)

    async def said():
        return "said", Usage(1)

    async def again():
        async with asyncio.timeout(5):
            paid = await ledger.apay("key", "rollout", {}, said)
            await ledger.aclose()
        return paid[0]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()  # without cancelling, as after a Ctrl-C in `run_until_complete`
    for task in tasks:
        task._log_destroy_pending = False
    assert ledger.sent == 1
    assert asyncio.run(again()) == "said"
    tasks.clear()
    del ledger, loop, task
    gc.collect()  # what was abandoned is closed here, which raises nothing


async def test_turn_that_another_thread_is_about_to_give_is_handed_on_too():
    limiter, between = Limiter(1), threading.Event()
    manager = limiter.hold()
    manager.__enter__()

    async def hold():
        async with limiter.ahold():
            await asyncio.sleep(30)

    waiter = asyncio.create_task(hold())
    await asyncio.sleep(0)
    [turn] = limiter._waiting
    give = turn.set_result

    def slowly(result):
        between.set()
        time.sleep(0.05)
        give(result)

    turn.set_result = slowly
    thread = threading.Thread(target=manager.__exit__, args=(None, None, None))
    thread.start()
    while not between.is_set():
        await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await asyncio.to_thread(thread.join)
    assert free(limiter) == 1


# Paying.


async def test_request_that_cost_nothing_is_no_call_after_a_resume_either(tmp_path):
    refusal = ModelReplyError("filtered", kind="refused", usage=Usage())
    answers = iter([refusal, "fine"])
    with Store(tmp_path / "run") as store:
        ledger = tg.Ledger(store)
        with tg.use_ledger(ledger):
            model = Scripted(lambda r: next(answers))
            with pytest.raises(ModelReplyError):
                await aask(model, request("a"), "critic")
            await aask(model, request("b"), "critic")
        assert ledger.account.spent.calls == 1
        assert account_of(store, tg.Budget()).spent.calls == 1


async def test_concurrent_equal_asks_cost_one_call():
    model = Scripted(lambda r: "yes")
    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        replies = await asyncio.gather(*(aask(model, request(), "critic") for _ in range(10)))
    assert {r.text for r in replies} == {"yes"}
    assert len(model.requests) == 1
    assert (ledger.account.spent.calls, ledger.account.spent.cached_calls) == (1, 9)
    assert sum(r.usage.calls for r in replies) == 1


def test_concurrent_equal_asks_from_threads_and_loops_cost_one_call():
    ledger = tg.Ledger()
    made = []

    def call():
        made.append(1)
        time.sleep(0.02)
        return "r", Usage(1, 0, 3, 4)

    async def acall():
        made.append(1)
        await asyncio.sleep(0.02)
        return "r", Usage(1, 0, 3, 4)

    def ask(i):
        if i % 2:
            return ledger.pay("k", "rollout", {}, call)
        return asyncio.run(ledger.apay("k", "rollout", {}, acall))

    with ThreadPoolExecutor(8) as pool:
        paid = list(pool.map(ask, range(16)))
    assert {p[0] for p in paid} == {"r"}
    assert (len(made), ledger.account.spent.calls, ledger.account.spent.cached_calls) == (1, 1, 15)


@pytest.mark.parametrize("threads", [False, True])
async def test_failing_owner_lets_those_who_waited_try(threads):
    ledger = tg.Ledger()
    made = []

    def reply():
        if len(made) == 1:
            raise ModelBusyError("busy")
        return "r", Usage(1)

    def call():
        made.append(1)
        time.sleep(0.02)
        return reply()

    async def acall():
        made.append(1)
        await asyncio.sleep(0.02)
        return reply()

    def ask():
        if threads:
            return asyncio.to_thread(ledger.pay, "k", "rollout", {}, call)
        return ledger.apay("k", "rollout", {}, acall)

    results = await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
    failed = [r for r in results if isinstance(r, Exception)]
    assert [type(r) for r in failed] == [ModelBusyError]
    assert len(made) == 2
    assert ledger.account.spent.calls == 1
    assert ledger.account._reserved == 0


async def test_call_that_was_sent_is_finished_and_stored_when_its_caller_is_cancelled():
    ledger = tg.Ledger(max_concurrency=1)
    answer = asyncio.Event()

    async def call():
        await answer.wait()
        return "r", Usage(1)

    owner = asyncio.create_task(ledger.apay("k", "rollout", {}, call))
    await asyncio.sleep(0.01)
    waiter = asyncio.create_task(ledger.apay("k", "rollout", {}, call))
    await asyncio.sleep(0.01)
    owner.cancel()
    await asyncio.gather(owner, return_exceptions=True)
    assert (owner.cancelled(), ledger.sent) == (True, 1)
    answer.set()
    assert (await waiter)[0] == "r"
    await ledger.aclose()
    assert ledger.store.get_result("k")[0] == "r"
    assert (ledger.account.spent.calls, free(ledger.limiter), ledger.account._reserved, ledger.sent) == (1, 1, 0, 0)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("renew", [False, True])
async def test_tool_that_is_under_way_is_waited_for_and_kept_when_its_caller_is_cancelled(threads, renew):
    ledger, begun, go_on = tg.Ledger(), threading.Event(), threading.Event()

    def mail():
        begun.set()
        go_on.wait(10)
        return "sent"

    async def amail():
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return "sent"

    if threads:
        caller = asyncio.create_task(asyncio.to_thread(ledger.keep, "k", {}, mail, renew=renew))
    else:
        caller = asyncio.create_task(ledger.akeep("k", {}, amail, renew=renew))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert (caller.cancelled(), ledger.sent) == (True, 1)
    closing = asyncio.create_task(ledger.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    go_on.set()
    await closing
    assert (ledger.store.get_result("k")[0], ledger.sent) == ("sent", 0)


async def test_tool_is_not_called_once_the_run_has_ended_but_answered_where_it_is_recorded():
    ledger, made = tg.Ledger(), []

    async def amail():
        made.append(1)
        return "sent"

    assert await ledger.akeep("k", {}, amail) == "sent"
    await ledger.aclose()
    assert await ledger.akeep("k", {}, amail) == ledger.keep("k", {}, None) == "sent"
    with pytest.raises(StoreError, match="The run has ended"):
        await ledger.akeep("other", {}, amail)
    with pytest.raises(StoreError, match="The run has ended"):
        ledger.keep("other", {}, lambda: made.append(1))
    assert (made, ledger._in_flight) == ([1], {})


async def test_tool_whose_caller_is_cancelled_before_it_begins_is_not_called(monkeypatch):
    ledger, made = tg.Ledger(), []

    async def far_away(key):
        await asyncio.sleep(0.01)

    monkeypatch.setattr(ledger.store, "aget_result", far_away)

    async def amail():
        made.append(1)
        return "sent"

    caller = asyncio.create_task(ledger.akeep("k", {}, amail))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await asyncio.sleep(0.02)
    assert (made, ledger.sent, ledger._in_flight) == ([], 0, {})


async def test_call_that_was_not_sent_is_dropped_with_its_caller_and_those_who_waited_try():
    ledger = tg.Ledger(max_concurrency=1)
    made = []

    async def call():
        made.append(1)
        return "r", Usage(1)

    for turns in range(3):  # cancelled before its first step, and while it waits for a place
        async with ledger.limiter.ahold():
            owner = asyncio.create_task(ledger.apay(f"k{turns}", "rollout", {}, call))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter = asyncio.create_task(ledger.apay(f"k{turns}", "rollout", {}, call))
            await asyncio.sleep(0)
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)
        assert (await waiter)[0] == "r"
        assert (owner.cancelled(), len(made)) == (True, turns + 1)
    assert (free(ledger.limiter), ledger.account._reserved, ledger._in_flight) == (1, 0, {})


async def test_closed_ledger_waits_no_longer_than_asked_and_makes_no_further_call():
    ledger = tg.Ledger()

    async def hangs():
        await asyncio.sleep(3600)

    caller = asyncio.create_task(ledger.apay("k", "rollout", {}, hangs))
    await asyncio.sleep(0.01)
    caller.cancel()
    await ledger.aclose(seconds=0.01)
    await asyncio.gather(caller, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert (ledger.sent, ledger.account._reserved) == (0, 0)
    with pytest.raises(StoreError, match="The run has ended"):
        await ledger.apay("other", "rollout", {}, hangs)
    with pytest.raises(StoreError, match="The run has ended"):
        ledger.pay("another", "rollout", {}, lambda: ("r", Usage(1)))


@pytest.mark.parametrize("timeout", [0.1, None])
async def test_end_waits_as_long_as_an_attempt_may_take(timeout):
    ledger, hung = tg.Ledger(patience=replace(QUICK, timeout=timeout)), asyncio.Event()

    async def tool():
        await asyncio.wait_for(hung.wait(), 0.2 if timeout is None else 30)
        return "done"

    caller = asyncio.create_task(ledger.akeep("k", {}, tool))
    await asyncio.sleep(0.01)
    caller.cancel()
    begun = time.monotonic()
    if timeout is None:
        asyncio.get_running_loop().call_later(0.15, hung.set)
    await asyncio.wait_for(ledger.aclose(), 5)
    assert 0.1 <= time.monotonic() - begun < 3
    assert (ledger.sent, ledger.store.get_result("k") is None) == (0, timeout is not None)


async def test_waiter_that_is_cancelled_does_not_disturb_the_owner():
    ledger = tg.Ledger()

    async def call():
        await asyncio.sleep(0.02)
        return "r", Usage(1)

    owner = asyncio.create_task(ledger.apay("k", "rollout", {}, call))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(ledger.apay("k", "rollout", {}, call))
    await asyncio.sleep(0)
    waiter.cancel()
    assert (await owner)[0] == "r"
    assert (await asyncio.gather(waiter, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_waiter_that_is_cancelled_together_with_a_failing_owner_makes_no_call():
    # A task group does this: the owner fails, the group cancels the rest.
    ledger = tg.Ledger()
    made = []

    async def call():
        made.append(1)
        await asyncio.sleep(0.01)
        raise ModelBusyError("busy")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(ledger.apay("k", "rollout", {}, call))
    assert len(made) == 1


async def test_blocking_call_in_a_coroutine_does_not_wait_for_its_own_loop():
    ledger = tg.Ledger(max_concurrency=1)
    gate = asyncio.Event()

    async def slow():
        await gate.wait()
        return "r", Usage(1)

    owner = asyncio.create_task(ledger.apay("k", "rollout", {}, slow))
    await asyncio.sleep(0)
    assert ledger.pay("k", "rollout", {}, lambda: ("s", Usage(1)))[0] == "s"
    assert ledger.pay("other", "rollout", {}, lambda: ("t", Usage(1)))[0] == "t"
    gate.set()
    assert (await owner)[0] == "r"
    assert free(ledger.limiter) == 1


async def test_reply_is_on_disk_before_anyone_sees_it(tmp_path):
    with tg.Store(tmp_path) as store:
        ledger = tg.Ledger(store)

        async def call():
            return "r", Usage(1, 0, 7, 8)

        await ledger.apay("k", "rollout", {"q": 1}, call)
        with tg.Store(tmp_path, read_only=True) as other:
            assert other.get_result("k") == ("r", Usage(1, 0, 7, 8, unpriced=1))
    with tg.Store(tmp_path) as store:
        again = tg.Ledger(store)
        saved = Usage(cached_calls=1, saved_tokens=15)
        assert await again.apay("k", "rollout", {}, None) == ("r", saved)
        assert again.account.by_kind == {"rollout": saved}


async def test_budget_is_asked_before_each_call_but_not_for_stored_ones():
    model = Scripted(lambda r: "ok")
    with tg.use_ledger(tg.Ledger(account=Account(tg.Budget(calls=2)))):
        await aask(model, request("a"), "critic")
        await aask(model, request("b"), "critic")
        with pytest.raises(BudgetExceededError):
            await aask(model, request("c"), "critic")
        assert (await aask(model, request("a"), "critic")).text == "ok"
    assert len(model.requests) == 2


async def test_concurrent_calls_never_exceed_the_budget():
    model = Scripted(lambda r: "ok")
    ledger = tg.Ledger(account=Account(tg.Budget(calls=5)), max_concurrency=20)
    with tg.use_ledger(ledger):
        results = await asyncio.gather(
            *(aask(model, request(str(i)), "critic") for i in range(20)), return_exceptions=True
        )
    assert len(model.requests) == ledger.account.spent.calls == 5
    assert sum(isinstance(r, BudgetExceededError) for r in results) == 15


async def test_bad_reply_is_stored_and_not_paid_again():
    bad = ModelReplyError("cut off", reply='{"a', usage=Usage(1, 0, 30, 40))
    model = Scripted(lambda r: bad)
    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        for _ in range(2):
            with pytest.raises(ModelReplyError, match="cut off") as caught:
                await aask(model, request(), "critic")
            assert caught.value.reply == '{"a'
        assert len(model.requests) == 1
        with pytest.raises(ModelReplyError):
            await aask(model, request(), "critic", attempt=1)
    assert len(model.requests) == 2
    assert ledger.account.spent.tokens == 140


async def test_bad_reply_over_http_is_stored_and_not_paid_again():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with OpenAIServer(lambda body: Reply('{"ok', finish_reason="length")) as server:
        model = OpenAI("test-model", base_url=server.base_url, max_retries=0)
        with tg.use_ledger(tg.Ledger()):
            for _ in range(2):
                with pytest.raises(ModelReplyError):
                    await aask(model, request(schema=schema), "critic")
        assert len(server.chats) == 1


@pytest.mark.parametrize(
    "other",
    [
        request("ho"),
        request(schema={"type": "object"}),
        request(max_tokens=3),
        request(temperature=1.0),
        request(seed=1),
    ],
)
async def test_everything_in_a_request_is_part_of_its_key(other):
    model = Scripted(lambda r: "ok")
    with tg.use_ledger(tg.Ledger()):
        await aask(model, request(), "critic")
        await aask(model, other, "critic")
        await aask(Scripted(model.reply, "another"), request(), "critic")
    assert len(model.requests) == 2


async def test_without_a_ledger_each_ask_is_a_call():
    model = Scripted(lambda r: "ok")
    for _ in range(2):
        await aask(model, request(), "critic")
    assert len(model.requests) == 2


def test_ledger_in_scope_ends_with_the_scope():
    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        assert ledger_in_scope() is ledger
    assert ledger_in_scope() is None


async def test_account_of_a_store_has_spent_what_the_store_paid_for():
    model = Scripted(lambda r: "ok")
    with Store() as store:
        with tg.use_ledger(tg.Ledger(store)):
            for n, kind in enumerate(["critic", "critic", "judge"]):
                await aask(model, request(seed=n), kind)
        store.put_meta("elapsed", 5.0)
        account = account_of(store, tg.Budget(calls=4))
    assert account.spent == sum(account.by_kind.values(), Usage())
    assert {k: u.calls for k, u in account.by_kind.items()} == {"critic": 2, "judge": 1}
    assert account.elapsed >= 5
    account.reserve()
    with pytest.raises(BudgetExceededError):
        account.reserve()


@pytest.mark.parametrize("threads", [False, True])
async def test_sessions_that_are_killed_count_for_the_cap_in_seconds(tmp_path, threads):
    async def acall():
        await asyncio.sleep(0.1)
        return "r", Usage(1)

    def call():
        time.sleep(0.1)
        return "r", Usage(1)

    async def session(number):
        with Store(tmp_path) as store:  # whoever is killed notes nothing at the end
            ledger = tg.Ledger(store, account_of(store, tg.Budget(seconds=0.25)))
            if threads:
                await asyncio.to_thread(ledger.pay, f"k{number}", "rollout", {}, call)
            else:
                await ledger.apay(f"k{number}", "rollout", {}, acall)

    with pytest.raises(BudgetExceededError, match=r"0\.25 seconds"):
        for number in range(9):
            await session(number)
    assert number < 4


async def test_ledger_made_by_hand_leaves_the_time_of_the_stores_run_alone():
    with Store() as store:
        store.put_meta("elapsed", 500.0)
        await tg.Ledger(store).akeep("k", {}, lambda: asyncio.sleep(0, "r"))
        await aask_with(tg.Ledger(store))
        assert store.get_meta("elapsed") == 500.0


async def aask_with(ledger):
    with tg.use_ledger(ledger):
        return await aask(Scripted(lambda r: "ok"), request(), "critic")
