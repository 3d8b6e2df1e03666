"""Every model call goes through here: answered from the store, or paid for, once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.budget import Account, Budget
from lg_textgrad.errors import ModelReplyError, StoreError
from lg_textgrad.models.base import ChatModel, ModelReply, ModelRequest
from lg_textgrad.run import Usage
from lg_textgrad.store import Store

Paid = tuple[Any, Usage]
"""A reply as JSON data, and what it cost."""


class Limiter:
    """At most `limit` holders at once, shared by coroutines of any loop and by plain threads."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._guard = threading.Lock()
        self._waiting: deque[Future[None]] = deque()

    def _take(self) -> Future[None] | None:
        with self._guard:
            if self._free > 0:
                self._free -= 1
                return None
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def _give(self) -> None:
        with self._guard:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    @contextmanager
    def hold(self) -> Iterator[None]:
        turn = self._take()
        if turn is not None:
            if _in_loop() and turn.cancel():
                # A blocking call in a coroutine: waiting would stop the loop in which the holders
                # finish. Slow anywhere; here one over the limit instead of waiting for ever.
                yield
                return
            turn.result()
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
                if not turn.cancelled() and turn.done():
                    self._give()  # the turn came in the same moment as the cancellation
                raise
        try:
            yield
        finally:
            self._give()


class Ledger:
    """The store, the account and the limit on concurrent calls of one run.

    A call is looked up under its key; when it is not there, a place under the limit is taken, the
    budget is reserved, the call is made, and its reply is on disk before anyone sees it. Several
    that ask the same at once share one call. What another run has paid for (`reuse`) is taken from
    its store, and copied.

    A call that was sent is finished and stored even when the one who asked is cancelled: the server
    will charge for it anyway. `aclose` waits for such calls.
    """

    def __init__(
        self,
        store: Store | None = None,
        account: Account | None = None,
        max_concurrency: int = 8,
        reuse: Store | None = None,
    ) -> None:
        self.store = store or Store()
        self.reuse = reuse
        self.account = account or Account(Budget())
        self.limiter = Limiter(max_concurrency)
        self._guard = threading.Lock()
        self._in_flight: dict[str, Future[Paid]] = {}
        self._sent: dict[Future[None], asyncio.Task[Paid] | None] = {}
        self._closed = False

    @property
    def sent(self) -> int:
        """How many calls are under way at this moment."""
        return len(self._sent)

    async def aclose(self, seconds: float = 60.0) -> None:
        """Make no further call, and wait at most `seconds` for those that were sent."""
        self._closed = True
        with self._guard:
            sent = dict(self._sent)
        if not sent:
            return
        waiting = {asyncio.wrap_future(future): task for future, task in sent.items()}
        _, late = await asyncio.wait(waiting, timeout=seconds)
        cancelled = [future for future in late if waiting[future] is not None]
        for future in cancelled:
            if (task := waiting[future]) is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)
        if cancelled:  # so that connections are closed before their loop is
            await asyncio.wait(cancelled, timeout=5)

    @contextmanager
    def _sending(self, task: asyncio.Task[Paid] | None = None) -> Iterator[None]:
        """Reserve one call and count it as under way."""
        if self._closed:
            raise StoreError("The run has ended, so no further model call is made in it.")
        self.account.reserve()
        done: Future[None] = Future()
        with self._guard:
            self._sent[done] = task
        try:
            yield
        finally:
            with self._guard:
                del self._sent[done]
            done.set_result(None)

    def _enter(self, key: str) -> tuple[Future[Paid], bool]:
        """Return the future of the call under way, and whether it is the caller's to make."""
        with self._guard:
            future = self._in_flight.get(key)
            if future is not None:
                return future, False
            future = self._in_flight[key] = Future()
            return future, True

    def _leave(self, key: str, future: Future[Paid], paid: Paid | None) -> None:
        with self._guard:
            del self._in_flight[key]
        # A call that failed is nobody else's result: those who waited try for themselves.
        if paid is None:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(paid)

    def _stored(self, key: str, kind: str, request: Any) -> Paid | None:
        found = self.store.get_result(key)
        if found is None and self.reuse is not None:
            found = self.reuse.get_result(key)
            if found is not None:  # so that this run stays whole when the other one is gone
                self.store.put_result(key, kind, request, *found, origin=self.reuse.where)
        return None if found is None else self._shared(found, kind)

    async def _astored(self, key: str, kind: str, request: Any) -> Paid | None:
        found = await self.store.aget_result(key)
        if found is None and self.reuse is not None:
            found = await self.reuse.aget_result(key)
            if found is not None:
                await self.store.aput_result(key, kind, request, *found, origin=self.reuse.where)
        return None if found is None else self._shared(found, kind)

    def _shared(self, paid: Paid, kind: str) -> Paid:
        cached = Usage(cached_calls=1)
        self.account.note(cached, kind)
        return paid[0], cached

    async def apay(
        self, key: str, kind: str, request: Any, call: Callable[[], Awaitable[Paid]]
    ) -> Paid:
        """Return the reply under `key` and what it cost now: one call, or one cached call.

        Raises what `call` raises, and `BudgetExceededError` when the budget has no room for it.
        """
        while True:
            future, mine = self._enter(key)
            if not mine:
                task = asyncio.current_task()
                cancelled = task.cancelling() if task else 0
                try:
                    return self._shared(await asyncio.shield(asyncio.wrap_future(future)), kind)
                except asyncio.CancelledError:
                    # The owner's failure arrives as a cancellation too; only that one is caught.
                    if future.cancelled() and (task is None or task.cancelling() == cancelled):
                        continue
                    raise
            found: Paid | None = None
            try:
                found = await self._astored(key, kind, request)
            except BaseException:
                self._leave(key, future, None)
                raise
            if found is not None:
                self._leave(key, future, found)
                return found
            return await self._send(key, kind, request, call, future)

    async def _send(
        self,
        key: str,
        kind: str,
        request: Any,
        call: Callable[[], Awaitable[Paid]],
        future: Future[Paid],
    ) -> Paid:
        """Make the call in a task of its own, which a cancelled caller leaves to finish."""
        sent = False

        async def send() -> Paid:
            nonlocal sent
            async with self.limiter.ahold():
                with self._sending(asyncio.current_task()):
                    sent = True
                    try:
                        made = await call()
                    except BaseException:
                        self.account.release()
                        raise
                    self.account.settle(made[1], kind)
                    await self.store.aput_result(key, kind, request, made[0], made[1])
            return made

        def left(task: asyncio.Task[Paid]) -> None:
            failed = task.cancelled() or task.exception() is not None
            self._leave(key, future, None if failed else task.result())

        task = asyncio.create_task(send())
        task.add_done_callback(left)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not sent:
                task.cancel()
            raise

    def pay(self, key: str, kind: str, request: Any, call: Callable[[], Paid]) -> Paid:
        """Return what `apay` returns, for callers in a plain thread."""
        while True:
            future, mine = self._enter(key)
            if not mine and _in_loop():
                return self._made(key, kind, request, call)
            if not mine:
                waited: Future[None] = Future()
                future.add_done_callback(lambda _: waited.set_result(None))  # noqa: B023
                waited.result()
                if future.cancelled():
                    continue
                return self._shared(future.result(), kind)
            paid: Paid | None = None
            try:
                paid = self._made(key, kind, request, call)
                return paid
            finally:
                self._leave(key, future, paid)

    def _made(self, key: str, kind: str, request: Any, call: Callable[[], Paid]) -> Paid:
        if (found := self._stored(key, kind, request)) is not None:
            return found
        with self.limiter.hold(), self._sending():
            try:
                made = call()
            except BaseException:
                self.account.release()
                raise
            self.account.settle(made[1], kind)
            self.store.put_result(key, kind, request, made[0], made[1])
        return made


def account_of(store: Store, budget: Budget) -> Account:
    """Return an account in which what `store` has paid for, and the time it took, is spent."""
    paid = store.paid()
    account = Account(
        budget,
        spent=sum(paid.values(), Usage()),
        elapsed=float(store.get_meta("elapsed") or 0.0),
    )
    for kind, usage in paid.items():
        account.seed(kind, usage)
    return account


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_ledger: ContextVar[Ledger | None] = ContextVar("lg_textgrad_ledger", default=None)


@contextmanager
def use_ledger(ledger: Ledger) -> Iterator[None]:
    """Send the model calls of the current context through `ledger`."""
    token = _ledger.set(ledger)
    try:
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
    """
    ledger = _ledger.get()
    if ledger is None:
        return await model.acall(request)
    asked = {
        "model": dict(model.identity),
        "messages": [dict(m) for m in request.messages],
        "schema": request.schema,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "attempt": attempt,
    }

    async def call() -> Paid:
        try:
            reply = await model.acall(request)
        except ModelReplyError as error:
            # It was paid for, so it is kept: a resumed run must not buy the same bad reply again.
            return {"refused": str(error), "reply": error.reply}, error.usage
        return (
            {"text": reply.text, "data": reply.data, "finish_reason": reply.finish_reason},
            reply.usage,
        )

    stored, usage = await ledger.apay(digest("ask", asked), kind, asked, call)
    if "refused" in stored:
        raise ModelReplyError(stored["refused"], reply=stored["reply"], usage=usage)
    return ModelReply(stored["text"], stored["data"], usage, stored["finish_reason"])
