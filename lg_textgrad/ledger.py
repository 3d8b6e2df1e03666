"""Every model call goes through here: answered from the store, or paid for, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from lg_textgrad._hashing import canonical, digest_of_plain, to_plain
from lg_textgrad._heap import settled
from lg_textgrad._sync import OfLoop, in_loop
from lg_textgrad.budget import Account, Budget
from lg_textgrad.errors import ModelReplyError
from lg_textgrad.limiter import Limiter
from lg_textgrad.models.base import ChatModel, ModelReply, ModelRequest
from lg_textgrad.redaction import Redaction
from lg_textgrad.run import Usage
from lg_textgrad.store import TOOL, Store
from lg_textgrad.traffic import Course, Patience, Route, Traffic
from lg_textgrad.underway import Fate, UnderWay

Paid = tuple[Any, Usage]
"""A reply as JSON data, and what it cost."""


class Ledger:
    """The store, the account and the limit on concurrent calls of one run.

    A call is looked up under its key; when it is not there, a place on its lane and one under the
    limit are taken, the budget is reserved, the call is made, and its reply is on disk before
    anyone sees it. What failed on the way is asked again, as `patience` says. Several that ask the
    same at once share one call. What another run has paid for (`reuse`) is taken from its store,
    and copied.

    A call that was sent is finished and stored even when the one who asked is cancelled: the server
    will charge for it anyway, and what a tool has begun it may have done. `aclose` waits for such
    calls.

    Replies are masked before anyone has them, as `redaction` says; by default secrets are.
    """

    def __init__(
        self,
        store: Store | None = None,
        account: Account | None = None,
        max_concurrency: int = 8,
        reuse: Store | None = None,
        patience: Patience | None = None,
        redaction: Redaction | None = None,
    ) -> None:
        self.store = store or Store()
        self.reuse = reuse
        self.account = account or Account(Budget())
        self.limiter = Limiter(max_concurrency)
        self.traffic = Traffic(max_concurrency, patience)
        self.redaction = redaction or Redaction()
        self._guard = threading.Lock()
        self._in_flight: dict[str, OfLoop[Paid]] = {}
        self._under_way = UnderWay()
        self.store.mask_copies(self.redaction)

    @property
    def sent(self) -> int:
        """How many calls of models and tools are under way at this moment."""
        return len(self._under_way)

    async def aclose(self, seconds: float | None = None) -> None:
        """Make no further call, and wait for those that were sent: as long as one may take."""
        await self._under_way.aclose(self.traffic.patience.timeout if seconds is None else seconds)

    def _begin(
        self, task: asyncio.Task[Any] | None, reserve: Callable[[], None] | None = None
    ) -> Future[None]:
        """Count a call as under way, until that ends; one that is paid for is reserved first."""
        self.store.check_room()
        return self._under_way.begin(task, reserve)

    def _enter(self, key: str) -> tuple[OfLoop[Paid], bool]:
        """Return the future of the call under way, and whether it is the caller's to make."""
        with self._guard:
            future = self._in_flight.get(key)
            if future is not None and not future.abandoned:
                return future, False
            future = self._in_flight[key] = OfLoop()
            return future, True

    def _leave(self, key: str, future: Future[Paid], paid: Paid | None) -> None:
        with self._guard:
            if self._in_flight.get(key) is future:  # not so for one that did not wait its turn
                del self._in_flight[key]
        # A call that failed is nobody else's result: those who waited try for themselves.
        if paid is None:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(paid)

    def _found(self, key: str, kind: str, request: Any) -> Paid | None:
        found = self.store.get_result(key)
        if found is None and self.reuse is not None:
            found = self.reuse.get_result(key)
            if found is not None:  # kept here, so that this run stays whole without the other
                found, asked = self._masked(found, request)
                self.store.put_result(key, kind, asked, *found, origin=self.reuse.where)
        return found

    async def _afound(self, key: str, kind: str, request: Any) -> Paid | None:
        found = await self.store.aget_result(key)
        if found is None and self.reuse is not None:
            found = await self.reuse.aget_result(key)
            if found is not None:
                found, asked = self._masked(found, request)
                await self.store.aput_result(key, kind, asked, *found, origin=self.reuse.where)
        return found

    def _masked(self, paid: Paid, request: Any) -> tuple[Paid, Any]:
        return (self.redaction.answer(paid[0]), paid[1]), self.redaction.answer(request)

    def _stored(self, key: str, kind: str, request: Any) -> Paid | None:
        found = self._found(key, kind, request)
        return None if found is None else self._shared(found, kind)

    async def _astored(self, key: str, kind: str, request: Any) -> Paid | None:
        found = await self._afound(key, kind, request)
        return None if found is None else self._shared(found, kind)

    def _shared(self, paid: Paid, kind: str) -> Paid:
        cached = paid[1].saved
        self.account.note(cached, kind)
        return paid[0], cached

    async def apay(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Awaitable[Paid]],
        route: Route | None = None,
        *,
        urgent: bool = False,
    ) -> Paid:
        """Return the reply under `key` and what it cost now: one call, or one cached call.

        `route` says which model is asked; without it nothing is asked again or has a price. An
        `urgent` call waits for no other: until it is back, they cannot finish either.
        Raises what `call` raises at last, `BudgetExceededError` when the budget has no room for it
        and `ModelDownError` when every call fails.
        """
        course = self.traffic.lane(route).course()
        while True:
            future, mine = self._enter(key)
            if not mine and not urgent:
                paid = await self._awaited(future)
                if paid is None:
                    continue
                return self._shared(paid, kind)
            future = future if mine else OfLoop()
            found: Paid | None = None
            try:
                found = await self._astored(key, kind, request)
            except BaseException:
                self._leave(key, future, None)
                raise
            if found is not None:
                self._leave(key, future, found)
                return found
            return await self._send(key, kind, request, call, future, course, route, urgent)

    async def _awaited(self, future: Future[Paid]) -> Paid | None:
        """Return what another's call comes to; None when it failed."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            # The owner's failure arrives as a cancellation too; only that one is caught.
            if future.cancelled() and (task is None or task.cancelling() == cancelled):
                return None
            raise

    async def _send(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Awaitable[Paid]],
        future: Future[Paid],
        course: Course,
        route: Route | None,
        urgent: bool,
    ) -> Paid:
        """Make the call, however often it has to be tried."""
        reserve = partial(self.account.reserve, route)

        async def attempt(fate: Fate) -> Paid:
            async with nullcontext() if urgent else course.aturn(self.limiter):
                under_way = self._begin(asyncio.current_task(), reserve)
                fate.sent = True
                try:
                    made = await course.acall(call)
                except BaseException:
                    fate.sent = False
                    self.account.release()
                    self._under_way.end(under_way)
                    raise
            # Its place is free for the next call while the disk takes its time.
            usage = self.account.prices.of(made[1], route)
            self.account.settle(usage, kind)
            try:
                (reply, _), asked = self._masked(made, request)
                due = self.account.due()
                await self.store.aput_result(
                    key, kind, asked, reply, usage, model=route, elapsed=due
                )
            finally:
                self._under_way.end(under_way)
            return reply, usage

        async def send(fate: Fate) -> Paid:
            async for tried in course.aattempts():
                with tried:
                    return await attempt(fate)
                if fate.deserted:  # nobody waits for another attempt
                    raise asyncio.CancelledError
            raise AssertionError("the last attempt returns or raises")

        return await self._apart(key, future, send)

    async def _apart(
        self,
        key: str,
        future: Future[Paid] | None,
        work: Callable[[Fate], Coroutine[Any, Any, Paid]],
    ) -> Paid:
        """Do it in a task of its own, which a cancelled caller leaves to finish once it is sent."""
        fate = Fate()

        def left(task: asyncio.Task[Paid]) -> None:
            failed = task.cancelled() or task.exception() is not None
            if future is not None:
                self._leave(key, future, None if failed else task.result())

        task = asyncio.create_task(work(fate))
        task.add_done_callback(left)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            fate.deserted = True
            if not fate.sent:
                task.cancel()
            raise

    def pay(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Paid],
        route: Route | None = None,
    ) -> Paid:
        """Return what `apay` returns, for callers in a plain thread."""
        course = self.traffic.lane(route).course()
        while True:
            future, mine = self._enter(key)
            if not mine and in_loop():
                return self._made(key, kind, request, call, course, route)
            if not mine:
                waited: Future[None] = Future()
                future.add_done_callback(lambda _: waited.set_result(None))  # noqa: B023
                waited.result()
                if future.cancelled():
                    continue
                return self._shared(future.result(), kind)
            paid: Paid | None = None
            try:
                paid = self._made(key, kind, request, call, course, route)
                return paid
            finally:
                self._leave(key, future, paid)

    def _made(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Paid],
        course: Course,
        route: Route | None,
    ) -> Paid:
        if (found := self._stored(key, kind, request)) is not None:
            return found

        def attempt() -> Paid:
            with course.turn(self.limiter):
                under_way = self._begin(None, partial(self.account.reserve, route))
                try:
                    made = course.call(call)
                except BaseException:
                    self.account.release()
                    self._under_way.end(under_way)
                    raise
            usage = self.account.prices.of(made[1], route)
            self.account.settle(usage, kind)
            try:
                (reply, _), asked = self._masked(made, request)
                due = self.account.due()
                self.store.put_result(key, kind, asked, reply, usage, model=route, elapsed=due)
            finally:
                self._under_way.end(under_way)
            return reply, usage

        for tried in course.attempts():
            with tried:
                return attempt()
        raise AssertionError("the last attempt returns or raises")

    # What costs nothing, but must not be done twice: the graph's tools.
    def recorded(self, key: str, request: Any) -> Any:
        """Return what is recorded under `key`; None when nothing is."""
        found = self._found(key, TOOL, request)
        return None if found is None else found[0]

    async def arecorded(self, key: str, request: Any) -> Any:
        """`recorded` for coroutines."""
        found = await self._afound(key, TOOL, request)
        return None if found is None else found[0]

    def keep(
        self, key: str, request: Any, make: Callable[[], Any], *, renew: bool = False
    ) -> Any:
        """Return what is recorded under `key`, else what `make` returns, which then is.

        Several that ask the same at once share one call. With `renew` it is called in any case, and
        what was recorded first stays.
        """
        while not renew:
            future, mine = self._enter(key)
            if mine:
                break
            if in_loop():
                return make()
            waited: Future[None] = Future()
            future.add_done_callback(lambda _: waited.set_result(None))  # noqa: B023
            waited.result()
            if not future.cancelled():
                return future.result()[0]
        made: Paid | None = None
        try:
            known = self.recorded(key, request)
            if known is not None and not renew:
                made = self.redaction.answer(known), Usage()
                return made[0]
            under_way = self._begin(None)
            try:
                made = self.redaction.answer(make()), Usage()
                if known is None:
                    self.store.put_result(key, TOOL, self.redaction.answer(request), *made)
            finally:
                self._under_way.end(under_way)
            return made[0]
        finally:
            if not renew:
                self._leave(key, future, made)

    async def akeep(
        self,
        key: str,
        request: Any,
        make: Callable[[], Awaitable[Any]],
        *,
        renew: bool = False,
        urgent: bool = False,
    ) -> Any:
        """`keep` for coroutines; an `urgent` one waits for no other."""
        future: Future[Paid] | None = None
        while not renew:
            future, mine = self._enter(key)
            if mine:
                break
            if urgent:
                return await make()
            found = await self._awaited(future)
            if found is not None:
                return found[0]

        async def work(fate: Fate) -> Paid:
            known = await self.arecorded(key, request)
            if known is not None and not renew:
                return self.redaction.answer(known), Usage()
            under_way = self._begin(asyncio.current_task())
            fate.sent = True
            try:
                made = self.redaction.answer(await make()), Usage()
                if known is None:
                    asked = self.redaction.answer(request)
                    await self.store.aput_result(key, TOOL, asked, *made)
            finally:
                self._under_way.end(under_way)
            return made

        return (await self._apart(key, future, work))[0]


def account_of(store: Store, budget: Budget) -> Account:
    """Return an account in which what `store` has paid for, and the time it took, is spent."""
    paid = store.paid()
    account = Account(
        budget,
        spent=sum(paid.values(), Usage()),
        elapsed=float(store.get_meta("elapsed") or 0.0),
        noted=True,
    )
    for kind, usage in paid.items():
        account.seed(kind, usage)
    return account


_ledger: ContextVar[Ledger | None] = ContextVar("lg_textgrad_ledger", default=None)


@contextmanager
def use_ledger(ledger: Ledger) -> Iterator[None]:
    """Send the model calls of the current context through `ledger`."""
    token = _ledger.set(ledger)
    try:
        with settled():
            yield
    finally:
        _ledger.reset(token)


def ledger_in_scope() -> Ledger | None:
    return _ledger.get()


@asynccontextmanager
async def ledger_at_hand(max_concurrency: int = 64) -> AsyncIterator[Ledger]:
    """Yield the ledger in scope, or one for the moment.

    What that one has sent is given up when the block is left: nobody could find it again.
    """
    known = _ledger.get()
    if known is not None:
        yield known
        return
    own = Ledger(max_concurrency=max_concurrency)
    try:
        yield own
    finally:
        await own.aclose(seconds=0)
        own.store.close()


async def aask(
    model: ChatModel, request: ModelRequest, kind: str, *, attempt: int = 0
) -> ModelReply:
    """Ask `model`, through the ledger in scope where there is one. One call, or none when stored.

    `attempt` is part of the key: asking again after a bad reply must not get that reply again.
    Where the server had promised JSON and sent none, that may be a fault of the server: the same
    is asked once more, and both are paid for.
    """
    ledger = _ledger.get()
    redaction = Redaction() if ledger is None else ledger.redaction
    messages = redaction.without_secrets([dict(m) for m in request.messages])
    request = replace(request, messages=messages)
    if ledger is None:
        return await model.acall(request)
    asked = to_plain(
        {
            "model": dict(model.identity),
            "messages": messages,
            "schema": request.schema,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "attempt": attempt,
        }
    )

    async def call() -> Paid:
        try:
            reply = await model.acall(request)
        except ModelReplyError as error:
            # It was paid for, so it is kept: a resumed run must not buy the same bad reply again.
            ledger.traffic.count(error.kind)
            refused = {
                "refused": str(error),
                "reply": error.reply,
                "kind": error.kind,
                "promised": error.promised,
            }
            return refused, error.usage
        return (
            {"text": reply.text, "data": reply.data, "finish_reason": reply.finish_reason},
            reply.usage,
        )

    route = getattr(model, "route", None) or Route(canonical(asked["model"]))
    stored, usage = await ledger.apay(digest_of_plain("ask", asked), kind, asked, call, route)
    if attempt == 0 and stored.get("promised") and stored["kind"] in ("garbled", "empty"):
        once_more = {**asked, "again": 1}
        key = digest_of_plain("ask", once_more)
        stored, more = await ledger.apay(key, kind, once_more, call, route)
        usage += more
    if "refused" in stored:
        raise ModelReplyError(
            stored["refused"],
            reply=stored["reply"],
            usage=usage,
            kind=stored.get("kind", "violation"),
            promised=stored.get("promised", False),
        )
    return ModelReply(stored["text"], stored["data"], usage, stored["finish_reason"])
