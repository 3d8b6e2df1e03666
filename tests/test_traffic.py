"""Lanes: how wide they are, how often they ask again, and when they give up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad._straight import straight
from lg_textgrad._sync import all_at_once
from lg_textgrad.budget import Account
from lg_textgrad.errors import (
    ConfigurationError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelDownError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
)
from lg_textgrad.ledger import aask
from lg_textgrad.models import ModelRequest, OpenAI
from lg_textgrad.run import Usage
from lg_textgrad.traffic import Lane, Patience, Route
from tests.parts import QUICK, Scripted
from tests.servers.openai_server import Fault, OpenAIServer, Reply

BUSY = ModelBusyError("busy", fault="rate_limited")
BROKEN = ModelBusyError("broken", fault="server_error")


def request(text="hi", **options):
    return ModelRequest([{"role": "user", "content": text}], **options)


async def attempt(lane, result, course=None):
    """Make one attempt that ends with `result`."""

    async def call():
        if isinstance(result, BaseException):
            raise result
        return result

    course = course or lane.course()
    async with course.aturn():
        return await course.acall(call)


async def fail(lane, error=BROKEN, course=None):
    with pytest.raises(type(error)):
        await attempt(lane, error, course)


class Under:
    """An attempt that is under way until it is told how to end."""

    def __init__(self, lane):
        self.lane = lane
        self.result = asyncio.get_running_loop().create_future()

    async def __aenter__(self):
        begun = asyncio.Event()

        async def call():
            begun.set()
            return await self.result

        async def run():
            course = self.lane.course()
            async with course.aturn():
                return await course.acall(call)

        self.task = asyncio.create_task(run())
        await begun.wait()
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def end(self, result):
        if isinstance(result, Exception):
            self.result.set_exception(result)
        else:
            self.result.set_result(result)
        await asyncio.gather(self.task, return_exceptions=True)


# Width.


async def test_refusals_for_haste_narrow_the_lane_once_a_round_and_answers_widen_it_again():
    lane = Lane("m", 8, QUICK)
    async with Under(lane) as a, Under(lane) as b, Under(lane) as c:
        await a.end(BUSY)
        assert lane.width == 5
        await b.end(BUSY)  # was under way already: nothing new
        await c.end("answer")
        assert lane.width == 5
    await fail(lane, BUSY)
    assert lane.width == 4
    for _ in range(60):
        await attempt(lane, "answer")
    assert lane.width == 8


async def test_other_faults_leave_the_width_alone():
    lane = Lane("m", 8, QUICK)
    await fail(lane, BROKEN)
    assert lane.width == 8


@given(st.lists(st.sampled_from(["answer", "busy", "broken", "refused"]), max_size=60))
def test_width_stays_between_one_and_the_limit(ends):
    async def run():
        lane = Lane("m", 4, replace(QUICK, first_pause=0, longest_pause=0))
        for end in ends:
            said = {"answer": "x", "busy": BUSY, "broken": BROKEN, "refused": ValueError("no")}[end]
            await asyncio.gather(attempt(lane, said), return_exceptions=True)
            assert 1 <= lane.width <= 4
        for _ in range(40):
            await attempt(lane, "answer")
        assert lane.width == 4

    asyncio.run(run())


async def test_crowded_server_gets_as_much_as_it_takes_from_threads_and_coroutines_alike():
    """At most 3 at once, it says; 16 want in. Everyone is answered."""
    under_way = 0

    async def handler(body):
        nonlocal under_way
        if under_way >= 3:
            return Fault(429)
        under_way += 1
        try:
            await asyncio.sleep(0.004)
            return "ok"
        finally:
            under_way -= 1

    with OpenAIServer(handler) as server:
        patience = Patience(attempts=30, first_pause=0.004, longest_pause=0.05)
        ledger = tg.Ledger(max_concurrency=16, patience=patience)
        model = OpenAI("test-model", base_url=server.base_url)

        def in_thread(number):
            return asyncio.run(asked(f"t{number}"))

        async def asked(text):
            return (await aask(model, request(text), "critic")).text

        # Not in the loop's own executor: the SDK needs a thread of it while it holds a place.
        with tg.use_ledger(ledger), ThreadPoolExecutor(20) as threads:
            scope, loop = copy_context, asyncio.get_running_loop()
            said = await asyncio.gather(
                *(asked(str(i)) for i in range(60)),
                *(loop.run_in_executor(threads, scope().run, in_thread, i) for i in range(20)),
            )
        await model.aclose()
        refused = ledger.traffic.faults["rate_limited"]
        assert said == ["ok"] * 80
        assert len(server.chats) == 80 + refused
        assert ledger.traffic.lane(model.route).width < 16
        assert refused < 80  # 16 at once for 80 calls would be refused far more often


# Waiting.


async def test_whole_lane_waits_as_long_as_the_server_asks():
    lane = Lane("m", 8, QUICK)
    assert lane.pause(lane.course()) <= 0
    await fail(lane, ModelBusyError("busy", fault="rate_limited", wait=3.0))
    assert 2 < lane.pause(lane.course()) <= 3


async def test_server_that_asks_to_wait_too_long_is_not_waited_for():
    lane = Lane("m", 8, QUICK)
    early = lane.course()
    await fail(lane, ModelBusyError("busy", fault="rate_limited", wait=3600.0))
    with pytest.raises(ModelDownError, match="m asks to wait 3600 seconds.*resume then"):
        await attempt(lane, "answer", early)


async def test_rate_limit_headers_of_an_answer_are_heeded_before_the_next_call():
    async def handler(body):
        return Reply("ok")

    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    with OpenAIServer(handler, headers=spent) as server:
        ledger = tg.Ledger(patience=QUICK)
        model = OpenAI("test-model", base_url=server.base_url)
        with tg.use_ledger(ledger):
            await aask(model, request(), "critic")
        await model.aclose()
        lane = ledger.traffic.lane(model.route)
    assert 1 < lane.pause(lane.course()) <= 2


# Asking again.


async def test_fault_is_asked_again_until_it_passes_and_costs_nothing():
    ends = iter([BUSY, BROKEN, ModelBusyError("slow", fault="timeout"), "fine"])
    model = Scripted(lambda r: next(ends))
    ledger = tg.Ledger(account=Account(tg.Budget(calls=1)), patience=QUICK)
    with tg.use_ledger(ledger):
        reply = await aask(model, request(), "critic")
    assert (reply.text, len(model.requests), reply.usage.calls) == ("fine", 4, 1)
    assert (ledger.account.spent.calls, ledger.account._reserved) == (1, 0)
    assert ledger.traffic.faults == {"rate_limited": 1, "server_error": 1, "timeout": 1}


def test_fault_is_asked_again_for_plain_threads_too():
    ends = iter([TimeoutError(), ConnectionResetError(), ("fine", Usage(1))])

    def call():
        end = next(ends)
        if isinstance(end, Exception):
            raise end
        return end

    ledger = tg.Ledger(patience=QUICK)
    assert ledger.pay("k", "rollout", {}, call, Route("m"))[0] == "fine"
    assert ledger.traffic.faults == {"timeout": 1, "reset": 1}


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(BUSY, 4), (ModelBusyError("slow", fault="timeout"), 2), (ModelError("bad request"), 1),
     (ModelUnreachableError("gone", fault="unreachable"), 1), (ModelError("html", fault="garbled"), 3)],
)  # fmt: skip
async def test_last_error_is_raised_as_it_is_when_the_attempts_are_used_up(error, attempts):
    model = Scripted(lambda r: error)
    with tg.use_ledger(tg.Ledger(patience=QUICK)), pytest.raises(type(error)) as caught:
        await aask(model, request(), "critic")
    assert (caught.value, len(model.requests)) == (error, attempts)


@pytest.mark.parametrize(
    "gone", [ModelUnreachableError("gone", fault="unreachable"), ModelError("gone", fault="garbled")]
)
async def test_server_that_has_answered_before_is_given_time_to_come_back(gone):
    ends = iter(["first", gone, gone, gone, "back"])
    model = Scripted(lambda r: next(ends))
    with tg.use_ledger(tg.Ledger(patience=QUICK)):
        await aask(model, request("a"), "critic")
        assert (await aask(model, request("b"), "critic")).text == "back"


async def test_without_a_lane_nothing_is_asked_again():
    made = []

    async def call():
        made.append(1)
        raise BUSY

    with pytest.raises(ModelBusyError):
        await tg.Ledger(patience=QUICK).apay("k", "rollout", {}, call)
    assert len(made) == 1


def asking(ledger, made, threads):
    """Return what asks a model through the ledger, and notes when the call begins."""

    def call():
        made.append(time.monotonic())
        return "r", Usage(1)

    async def acall():
        return call()

    def ask(key, model):
        if threads:
            return asyncio.to_thread(ledger.pay, key, "rollout", {}, call, Route(model))
        return ledger.apay(key, "rollout", {}, acall, Route(model))

    return ask


@asynccontextmanager
async def one_waiting(ledger, ask):
    """A call that has its place on the lane and waits for the one under the common limit."""
    async with ledger.limiter.ahold():
        waiting = asyncio.create_task(ask("k", "graph"))
        while not ledger.limiter._waiting:
            await asyncio.sleep(0.001)
        yield waiting


@pytest.mark.parametrize("threads", [False, True])
async def test_call_that_waits_for_the_common_limit_heeds_a_pause_that_its_lane_hears_of(threads):
    ledger, made = tg.Ledger(patience=QUICK, max_concurrency=1), []
    ask = asking(ledger, made, threads)
    async with one_waiting(ledger, ask) as waiting:
        ledger.traffic.lane(Route("graph")).wait(1.0)
        until = time.monotonic() + 1.0
    await ask("other", "critic")  # has the place meanwhile
    await waiting
    assert made[0] < until <= made[1] + 0.01


@pytest.mark.parametrize("threads", [False, True])
async def test_call_that_waits_for_the_common_limit_is_not_sent_on_a_lane_that_closes(threads):
    ledger, made = tg.Ledger(patience=QUICK, max_concurrency=1), []
    ask = asking(ledger, made, threads)
    async with one_waiting(ledger, ask) as waiting:
        ledger.traffic.lane(Route("graph")).close(ModelAuthenticationError("The key is refused."))
    with pytest.raises(ModelAuthenticationError, match="The key is refused"):
        await waiting
    assert (made, ledger.limiter.held, ledger.account._reserved) == ([], 0, 0)


async def test_nobody_asks_again_for_a_caller_that_is_gone():
    made, answer = [], asyncio.Event()

    async def call():
        made.append(1)
        await answer.wait()
        raise BROKEN

    ledger = tg.Ledger(patience=QUICK)
    caller = asyncio.create_task(ledger.apay("k", "rollout", {}, call, Route("m")))
    while not made:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert ledger.sent == 1
    answer.set()
    await ledger.aclose()
    while ledger._in_flight:
        await asyncio.sleep(0)
    assert (len(made), ledger.account._reserved) == (1, 0)


async def test_caller_that_leaves_between_two_attempts_is_gone_at_once():
    patience = replace(QUICK, first_pause=100, longest_pause=100)
    failed = asyncio.Event()

    async def call():
        failed.set()
        raise BROKEN

    ledger = tg.Ledger(patience=patience)
    caller = asyncio.create_task(ledger.apay("k", "rollout", {}, call, Route("m")))
    await failed.wait()
    while ledger.sent:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    while ledger._in_flight:
        await asyncio.sleep(0)
    assert ledger.limiter.held == ledger.traffic.lane(Route("m")).places.held == 0


async def test_hung_call_ends_at_the_timeout():
    class Hangs(Scripted):
        async def acall(self, request):
            self.requests.append(request)
            if len(self.requests) == 1:
                await asyncio.Event().wait()
            return await super().acall(request)

    model = Hangs(lambda r: "fine")
    ledger = tg.Ledger(patience=replace(QUICK, timeout=0.02))
    with tg.use_ledger(ledger):
        assert (await aask(model, request(), "critic")).text == "fine"
    assert ledger.traffic.faults == {"timeout": 1}


def test_hung_call_of_a_plain_thread_is_left_behind_at_the_timeout():
    never, made = threading.Event(), []

    def call():
        made.append(threading.current_thread())
        if len(made) == 1:
            never.wait()
        return "fine", Usage(1)

    ledger = tg.Ledger(patience=replace(QUICK, timeout=0.02))
    assert ledger.pay("k", "rollout", {}, call, Route("m"))[0] == "fine"
    assert ledger.account.spent.calls == 1
    never.set()
    for thread in made:
        thread.join(5)


async def test_sdk_does_not_ask_again_by_itself_in_a_run_but_does_outside():
    with OpenAIServer(lambda body: Fault(500, headers={"retry-after-ms": "1"})) as server:
        model = OpenAI("test-model", base_url=server.base_url, max_retries=5)
        with tg.use_ledger(tg.Ledger(patience=QUICK)), pytest.raises(ModelBusyError):
            await aask(model, request(), "critic")
        assert len(server.chats) == QUICK.attempts
        with pytest.raises(ModelBusyError):
            await aask(model, request(), "critic")
        assert len(server.chats) == QUICK.attempts + 6
        await model.aclose()


# Giving up.


async def test_sick_request_alone_never_closes_the_lane():
    lane = Lane("m", 1, QUICK)
    sick = lane.course()
    for _ in range(50):
        await fail(lane, BROKEN, sick)
    assert await attempt(lane, "answer") == "answer"


async def test_lane_closes_when_all_calls_fail_and_only_for_those_who_wait():
    lane = Lane("m", 8, QUICK)
    early = lane.course()
    for _ in range(QUICK.attempts - 1):
        await fail(lane)
    with pytest.raises(ModelBusyError):
        await attempt(lane, BROKEN)
    with pytest.raises(ModelDownError, match="All of the last calls to m failed.*ModelBusyError: broken"):
        await attempt(lane, "answer", early)
    assert await attempt(lane, "answer") == "answer"


async def test_sdks_exception_with_its_headers_does_not_travel_with_the_verdict():
    lane = Lane("m", 8, QUICK)
    for _ in range(QUICK.attempts - 1):
        await fail(lane, ConnectionResetError("sent Bearer abc"))
    with pytest.raises(ModelDownError) as caught:
        await attempt(lane, ConnectionResetError("sent Bearer abc"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "abc" not in str(caught.value)


async def test_call_that_began_before_the_failures_may_still_save_the_lane():
    lane = Lane("m", 8, QUICK)
    early = lane.course()
    async with Under(lane) as slow:
        for _ in range(30):
            await fail(lane, ValueError("400"))
        await slow.end("answer")
    assert await attempt(lane, "answer", early) == "answer"


async def test_one_call_at_a_time_tries_whether_a_silent_server_is_back():
    lane = Lane("m", 8, replace(QUICK, attempts=9))
    for _ in range(3):
        await fail(lane)
    assert lane.width == 1
    await attempt(lane, "answer")
    assert lane.width == 8


async def test_refused_key_is_everybodys_error_at_once():
    lane = Lane("m", 8, QUICK)
    early = lane.course()
    await fail(lane, ModelAuthenticationError("bad key"))
    with pytest.raises(ModelAuthenticationError, match="bad key"):
        await attempt(lane, "answer", early)
    assert await attempt(lane, "answer") == "answer"


@pytest.mark.parametrize("nested", [False, True])
async def test_call_of_a_batch_that_begins_after_its_verdict_is_not_made(nested):
    lane = Lane("m", 1, QUICK)
    refused = asyncio.Event()
    made = []

    async def first():
        try:
            await attempt(lane, ModelAuthenticationError("bad key"))
        finally:
            refused.set()
            await asyncio.sleep(0.05)  # as long as an error takes through a graph

    async def second():
        await refused.wait()
        with pytest.raises(ModelAuthenticationError, match="bad key"):
            await attempt(lane, "answer")
        made.append("nothing")
        raise ModelAuthenticationError("bad key")

    async def level(coroutine):
        return await all_at_once([coroutine])

    with pytest.raises(ModelAuthenticationError):
        await all_at_once([level(c) if nested else c for c in (first(), second())])
    assert made == ["nothing"]
    # A batch of its own, after somebody saw to the key.
    assert await all_at_once([attempt(lane, "answer")]) == ["answer"]


async def test_dead_server_stops_a_level_of_calls_within_a_few_requests():
    model = Scripted(lambda r: BROKEN)
    with tg.use_ledger(tg.Ledger(patience=QUICK)):
        results = await asyncio.gather(
            *(aask(model, request(str(i)), "critic") for i in range(100)), return_exceptions=True
        )
    assert Counter(map(type, results))[ModelDownError] > 80
    assert len(model.requests) < 40


# A reply that the server had promised to be JSON.

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


async def test_garbage_where_the_server_promised_json_is_asked_again_identically_and_paid_once():
    script = iter(['{"ok": tr', {"ok": True}])
    with OpenAIServer(lambda body: next(script)) as server:
        model = OpenAI("test-model", base_url=server.base_url)
        store = tg.Store()
        for calls in (2, 0):
            ledger = tg.Ledger(store)
            with tg.use_ledger(ledger):
                reply = await aask(model, request(schema=SCHEMA), "critic")
            assert (reply.data, reply.usage.calls) == ({"ok": True}, calls)
            assert ledger.account.spent.calls == calls
        assert server.chats[0] == server.chats[1]
        assert len(server.chats) == 2
        await model.aclose()
    assert store.paid()["critic"].calls == 2


async def test_garbage_that_comes_twice_is_the_models_own():
    with OpenAIServer(lambda body: "no json") as server:
        model = OpenAI("test-model", base_url=server.base_url)
        ledger = tg.Ledger()
        with tg.use_ledger(ledger), pytest.raises(ModelReplyError, match="malformed") as caught:
            await aask(model, request(schema=SCHEMA), "critic")
        assert (caught.value.kind, caught.value.usage.calls) == ("garbled", 2)
        assert ledger.traffic.faults == {"garbled": 2}
        await model.aclose()


@pytest.mark.parametrize("text", [None, '{"ok": tr'])
async def test_reply_that_a_filter_withheld_is_not_asked_for_again(text):
    with OpenAIServer(lambda body: Reply(text, finish_reason="content_filter")) as server:
        model = OpenAI("test-model", base_url=server.base_url)
        ledger = tg.Ledger()
        with tg.use_ledger(ledger), pytest.raises(ModelReplyError, match="content filter") as caught:
            await aask(model, request(schema=SCHEMA), "critic")
        assert (caught.value.kind, caught.value.usage.calls, len(server.chats)) == ("refused", 1, 1)
        assert ledger.traffic.faults == {"refused": 1}
        await model.aclose()


async def test_reply_that_breaks_the_schema_is_not_asked_for_again():
    with OpenAIServer(lambda body: {"ok": 1}) as server:
        model = OpenAI("test-model", base_url=server.base_url)
        with tg.use_ledger(tg.Ledger()), pytest.raises(ModelReplyError) as caught:
            await aask(model, request(schema=SCHEMA), "critic")
        assert (caught.value.kind, len(server.chats)) == ("violation", 1)
        assert caught.value.usage.completion_tokens > 0
        await model.aclose()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"attempts": 0}, "`attempts` of Patience .* at least 1"), ({"timeout": -1}, "`timeout` of Patience .* above 0"),
     ({"timeout": float("nan")}, "`timeout` of Patience .* above 0"), ({"first_pause": -1}, "`first_pause` of Patience .* at least 0")],
)  # fmt: skip
def test_patience_that_cannot_work_is_refused(options, says):
    with pytest.raises(ConfigurationError, match=says):
        Patience(**options)


@pytest.mark.parametrize("places", [0, -1])
def test_ledger_without_places_is_refused_in_place_of_waiting_for_ever(places):
    with pytest.raises(ConfigurationError, match="`max_concurrency` of .* at least 1"):
        tg.Ledger(max_concurrency=places)


# One call goes as far as it can before the next one begins.


async def test_call_is_sent_before_the_next_one_is_made_ready():
    events = []

    async def call(name):
        events.append(f"{name} begins")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        events.append(f"{name} is sent")
        await asyncio.sleep(0.01)
        return name

    assert await asyncio.gather(*(straight(call(name)) for name in "abc")) == ["a", "b", "c"]
    assert events == [f"{name} {what}" for name in "abc" for what in ("begins", "is sent")]


async def test_call_that_polls_lets_others_make_true_what_it_waits_for():
    ready = []

    async def polls():
        while not ready:
            await asyncio.sleep(0)
        return "seen"

    asyncio.get_running_loop().call_later(0.01, ready.append, True)
    assert await straight(polls()) == "seen"


async def test_call_that_is_cancelled_or_fails_tidies_up_and_says_so():
    tidied = []

    async def call(fails):
        try:
            await asyncio.sleep(0)
            if fails:
                raise ValueError("no")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            tidied.append(fails)

    with pytest.raises(ValueError, match="no"):
        await straight(call(fails=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await straight(call(fails=False))
    assert tidied == [True, False]
