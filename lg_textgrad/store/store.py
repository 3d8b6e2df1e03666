"""The store itself: what is kept, under which key, and how it is read back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from lg_textgrad.errors import ConfigurationError, StoreError
from lg_textgrad.parameter import Edit, Gradient
from lg_textgrad.redaction import Redaction
from lg_textgrad.run import Candidate, Example, Feedback, Run, Usage
from lg_textgrad.store import tables
from lg_textgrad.store.copying import copy, mask
from lg_textgrad.store.file import File
from lg_textgrad.store.known import Known
from lg_textgrad.store.places import Memory, Place, Write
from lg_textgrad.store.postgres import Postgres, is_url
from lg_textgrad.store.records import decode_run, encode_run, frozen, usage_of
from lg_textgrad.store.salvage import Salvaged, salvage
from lg_textgrad.store.tables import checksum, dump, fitting, pack, unpack
from lg_textgrad.store.writing import Writer

T = TypeVar("T")


def _by_key(table: sa.Table, *without: str) -> sa.Select[Any]:
    """Return the query for one row; made once, since making one costs more than asking it."""
    columns = [c for c in table.c if c.name not in without]
    return sa.select(*columns).where(*(c == sa.bindparam(c.name) for c in table.primary_key))


_RESULT = _by_key(tables.results, "request")
_RUN, _FEEDBACK, _META = map(_by_key, (tables.runs, tables.feedback, tables.meta))


class Store:
    """What one run paid for and decided. Use as a context manager, or call `close()`.

    `where` is a run directory, or a PostgreSQL URL with the run's name in it:
    `postgresql://host/database?run=NAME`. None keeps everything in memory. `read_only` opens what
    is there, without the lock that keeps a second process from writing. `busy_seconds` is how long
    to wait for other programs that have locked the file, or for a server that doesn't answer.

    Each write is durable when its method returns: it survives the death of the process and of the
    machine. Methods come in pairs: `aput_result` does what `put_result` does without holding up the
    event loop, and shares its fsync with others that wait at the same moment.

    Raises `StoreError` when the place cannot be used or another process is writing to it,
    `CorruptStoreError` when what is there is damaged; `Store.salvage` then saves the good part.
    """

    def __init__(
        self,
        where: str | Path | None = None,
        *,
        read_only: bool = False,
        busy_seconds: float = 20.0,
    ) -> None:
        self._place: Place
        self.directory: Path | None = None
        """The run directory; None in memory and on a server."""
        if where is None:
            self._place = Memory()
        elif is_url(where):
            self._place = Postgres(str(where), read_only=read_only, busy_seconds=busy_seconds)
        else:
            self.directory = Path(where)
            self._place = File(self.directory, read_only=read_only, busy_seconds=busy_seconds)
        try:
            self._known = Known(self._place)
        except SQLAlchemyError as error:
            self._place.close()
            raise self._place.failure(error) from None
        self._writer = Writer(self._write)
        self._readers = ThreadPoolExecutor(8, "lg_textgrad-read") if self._place.far else None

    @staticmethod
    def salvage(directory: str | Path) -> Salvaged:
        """Save what is good in a damaged run directory. See `lg_textgrad.store.salvage`."""
        if is_url(directory):
            raise ConfigurationError(
                "Only run directories can be salvaged. What a PostgreSQL server keeps is its own "
                "to restore, from its backups."
            )
        return salvage(Path(directory))

    @property
    def where(self) -> str | None:
        """The run directory, or the URL without its password; None in memory."""
        return self._place.shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer.forked:
            return  # what is open is the other process's, files and the server's sessions
        self._writer.close()
        if self._readers is not None:
            self._readers.shutdown()
        self._place.close()

    def take_over(self, other: Store) -> int:
        """Copy all that `other` paid for: replies, runs and feedback. Returns how many replies.

        They are answers from the store here, and count towards no budget. Damaged rows are left
        out. A run with a redaction hook masks them before it uses any.
        """
        self._check_writable()
        return copy(other._place, self._put, other.where)

    def mask_copies(self, redaction: Redaction) -> None:
        """Mask what `take_over` has copied as the redaction's hook says, where it has one."""
        if redaction.hook is not None:
            mask(self._place, self._put, redaction)

    def check_room(self) -> None:
        """Raise `StoreError` where nothing new may begin: the disk is full.

        What is left of it is for what is under way, which is still written.
        """
        if self._place.full is not None:
            raise StoreError(self._place.full)

    # What was asked of models.

    def get_result(self, key: str) -> tuple[Any, Usage] | None:
        """Return the reply stored under `key` and what it cost; None when there is none."""
        rows = self._checked(tables.results, _RESULT, key=key)
        if not rows:
            return None
        row = rows[0]
        return unpack(row.reply), usage_of(row)

    async def aget_result(self, key: str) -> tuple[Any, Usage] | None:
        """`get_result`, without holding up the event loop."""
        return await self._afar(self.get_result, key)

    def put_result(
        self,
        key: str,
        kind: str,
        request: Any,
        reply: Any,
        usage: Usage,
        *,
        origin: str | None = None,
        model: object = None,
        elapsed: float | None = None,
    ) -> None:
        """Keep a reply; what is there already stays. `origin` is the run that paid, if not this.

        `model` names, for people, the model that was asked, and where. `elapsed` are the seconds
        that the run has taken by now, which are noted with it.

        It is on disk when this returns.
        """
        row = self._result(key, kind, request, reply, usage, origin, model, time.time())
        self._put(row, *_time(elapsed))

    async def aput_result(
        self,
        key: str,
        kind: str,
        request: Any,
        reply: Any,
        usage: Usage,
        *,
        origin: str | None = None,
        model: object = None,
        elapsed: float | None = None,
    ) -> None:
        """`put_result`, without holding up the event loop."""
        created = time.time()
        await self._aput(
            lambda: self._result(key, kind, request, reply, usage, origin, model, created),
            *_time(elapsed),
        )

    def _result(
        self,
        key: str,
        kind: str,
        request: Any,
        reply: Any,
        usage: Usage,
        origin: str | None,
        model: object,
        created: float,
    ) -> Write:
        return _row(
            tables.results,
            key=key,
            kind=kind,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            seconds=usage.seconds,
            created=created,
            origin=fitting(origin, 200),
            model=fitting(model, 200),
            cached_tokens=usage.cached_tokens or None,
            usd=usage.dollars,
            calls=None if usage.calls == 1 else usage.calls,
            reply=pack(reply),
            request=pack(request),
        )

    def results(self, kinds: Collection[str], after: float = 0.0) -> list[dict[str, Any]]:
        """Return the results of some kinds that this run paid for after a time, the oldest first.

        Each has `key`, `kind`, `request`, `reply`, `usage` and `created`, in seconds since 1970.
        """
        t = tables.results
        own = (t.c.kind.in_(kinds), t.c.created > after, t.c.origin.is_(None))
        query = sa.select(t).where(*own).order_by(t.c.created)
        return [
            {
                "key": row.key,
                "kind": row.kind,
                "request": unpack(row.request),
                "reply": unpack(row.reply),
                "usage": usage_of(row),
                "created": row.created,
            }
            for row in self._checked(t, query)
        ]

    def paid(self) -> dict[str, Usage]:
        """Return what this run's own results cost, by kind of call; checks are not verified."""
        c = tables.results.c
        calls = sa.func.coalesce(c.calls, 1)
        query = (
            sa.select(
                c.kind,
                sa.func.sum(calls).label("calls"),
                sa.func.sum(c.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(c.completion_tokens).label("completion_tokens"),
                sa.func.sum(c.seconds).label("seconds"),
                sa.func.sum(c.cached_tokens).label("cached_tokens"),
                sa.func.sum(c.usd).label("usd"),
                sa.func.sum(sa.case((c.usd.is_(None), calls), else_=0)).label("unpriced"),
            )
            .where(*tables.paid_here())
            .group_by(c.kind)
        )
        return {
            row.kind: replace(usage_of(row), unpriced=row.unpriced) for row in self._rows(query)
        }

    def unpriced(self) -> tuple[str, ...]:
        """Return the names of the models in `paid` whose price was not known when they replied."""
        c = tables.results.c
        query = sa.select(c.model).distinct().where(*tables.paid_here(), c.usd.is_(None))
        # The column has a route, `MODEL at SERVER`; what was asked on a graph's server has none.
        routes = [row.model for row in self._rows(query) if row.model]
        return tuple(sorted({route.rpartition(" at ")[0] or route for route in routes}))

    # Runs and what evaluators said of them.

    def get_run(self, run_id: str, example: Example) -> Run | None:
        """Return the run of that id, with its example put back in; None when there is none."""
        rows = self._checked(tables.runs, _RUN, id=run_id)
        return decode_run(unpack(rows[0].payload), example) if rows else None

    async def aget_run(self, run_id: str, example: Example) -> Run | None:
        """`get_run`, without holding up the event loop."""
        return await self._afar(self.get_run, run_id, example)

    def put_run(self, run: Run) -> None:
        self._put(self._run(run))

    async def aput_run(self, run: Run) -> None:
        """`put_run`, without holding up the event loop."""
        await self._aput(lambda: self._run(run))

    def _run(self, run: Run) -> Write:
        return _row(
            tables.runs,
            id=run.id,
            candidate=run.candidate,
            example=fitting(run.example.id, 200),
            error=fitting(run.error),
            payload=pack(encode_run(run)),
        )

    def get_feedback(self, run_id: str, objective: str) -> list[Feedback] | None:
        rows = self._checked(tables.feedback, _FEEDBACK, run=run_id, objective=objective)
        if not rows:
            return None
        return [
            Feedback(f["key"], f["score"], f["comment"], frozen(f["reads"]))
            for f in json.loads(rows[0].payload)
        ]

    async def aget_feedback(self, run_id: str, objective: str) -> list[Feedback] | None:
        """`get_feedback`, without holding up the event loop."""
        return await self._afar(self.get_feedback, run_id, objective)

    def put_feedback(
        self, run_id: str, objective: str, score: float, feedback: Sequence[Feedback]
    ) -> None:
        self._put(self._scored(run_id, objective, score, feedback))

    async def aput_feedback(
        self, run_id: str, objective: str, score: float, feedback: Sequence[Feedback]
    ) -> None:
        """`put_feedback`, without holding up the event loop."""
        await self._aput(lambda: self._scored(run_id, objective, score, feedback))

    def _scored(
        self, run_id: str, objective: str, score: float, feedback: Sequence[Feedback]
    ) -> Write:
        payload = [
            {"key": f.key, "score": f.score, "comment": f.comment, "reads": _listed(f.reads)}
            for f in feedback
        ]
        return _row(
            tables.feedback, run=run_id, objective=objective, score=score, payload=dump(payload)
        )

    def scores(self) -> dict[tuple[str, str], float]:
        """Return the score of each (candidate hash, example id); checks are not verified."""
        r, f = tables.runs.c, tables.feedback.c
        query = sa.select(r.candidate, r.example, f.score).where(r.id == f.run)
        return {(row.candidate, row.example): row.score for row in self._rows(query)}

    # How candidates came to be.

    def put_gradients(self, step: int, gradients: Sequence[Gradient]) -> None:
        self._put(
            *(
                _row(
                    tables.gradients,
                    id=g.id,
                    step=step,
                    parameter=fitting(g.parameter, 200),
                    payload=dump(asdict(g)),
                )
                for g in gradients
            )
        )

    def gradients(self) -> dict[str, Gradient]:
        """Return every gradient by its id."""
        t = tables.gradients
        rows = self._checked(t, sa.select(t).order_by(t.c.step))
        return {row.id: Gradient(**json.loads(row.payload)) for row in rows}

    def put_candidate(
        self,
        candidate_hash: str,
        candidate: Candidate,
        *,
        parent: str | None,
        step: int,
        edits: Sequence[Edit] = (),
    ) -> None:
        self._put(
            _row(
                tables.candidates,
                hash=candidate_hash,
                parent=parent,
                step=step,
                texts=dump(candidate),
                edits=dump([asdict(e) for e in edits]),
            )
        )

    def candidates(self) -> dict[str, dict[str, Any]]:
        """Return hash -> `texts`, `parent` (hash or None), `step`, `edits`."""
        t = tables.candidates
        rows = self._checked(t, sa.select(t).order_by(t.c.step, t.c.hash))
        return {
            row.hash: {
                "texts": json.loads(row.texts),
                "parent": row.parent,
                "step": row.step,
                "edits": [
                    Edit(**{**e, "gradients": tuple(e["gradients"])})
                    for e in json.loads(row.edits)
                ],
            }
            for row in rows
        }

    def put_decision(
        self, step: int, number: int, candidate_hash: str, stage: str, payload: Any
    ) -> None:
        made = {"step": step, "candidate": candidate_hash, "stage": stage, "number": number}
        self._put(_row(tables.decisions, **made, payload=dump(payload)))

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions in the order in which they were made."""
        t = tables.decisions
        return [
            {"step": row.step, "candidate": row.candidate, **json.loads(row.payload)}
            for row in self._checked(t, sa.select(t).order_by(t.c.step, t.c.number))
        ]

    # The rest.

    def get_meta(self, key: str) -> Any:
        rows = self._checked(tables.meta, _META, key=key)
        return json.loads(rows[0].value) if rows else None

    def put_meta(self, key: str, value: Any, *, event: str | None = None) -> None:
        """Keep a value. With `event`, one of that kind says the same; both are kept or neither."""
        told = [] if event is None else [_event(event, value)]
        self._put(_row(tables.meta, key=key, value=dump(value)), *told)

    def add_event(self, kind: str, payload: Any) -> None:
        self._put(_event(kind, payload))

    def events(self) -> list[dict[str, Any]]:
        t = tables.events
        return [
            {"at": row.at, "kind": row.kind, **json.loads(row.payload)}
            for row in self._checked(t, sa.select(t).order_by(t.c.number))
        ]

    # Writing and reading rows.

    def _put(self, *rows: Write) -> None:
        self._check_writable()
        try:
            if rows:
                self._writer.put(rows)
        except SQLAlchemyError as error:
            raise self._place.failure(error) from None

    async def _aput(self, make: Callable[[], Write], *more: Write) -> None:
        if self.where is None:  # there is no disk to wait for
            self._put(make(), *more)
            return
        self._check_writable()
        try:
            # Packing happens beside the event loop too: compression is half of what it takes.
            await self._writer.aput(lambda: [make(), *more])
        except SQLAlchemyError as error:
            raise self._place.failure(error) from None

    def _write(self, rows: Sequence[Write]) -> None:
        self._known.note(rows)
        self._place.write(rows)

    def _check_writable(self) -> None:
        if self._place.read_only:
            raise StoreError(f"The store in '{self.where}' was opened for reading only.")

    async def _afar(self, read: Callable[..., T], *arguments: Any) -> T:
        if self._readers is None:
            return read(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read, *arguments)

    def _rows(self, query: sa.Select[Any], **values: Any) -> Sequence[sa.Row[Any]]:
        try:
            return self._place.rows(query, **values)
        except SQLAlchemyError as error:
            raise self._place.failure(error) from None

    def _checked(
        self, table: sa.Table, query: sa.Select[Any], **values: Any
    ) -> Sequence[sa.Row[Any]]:
        """Return rows of one table. Raises `CorruptStoreError` for one that is not as written."""
        rows = () if self._known.lacks(table, values) else self._rows(query, **values)
        for row in rows:
            values = row._asdict()
            if row.crc != checksum(table, values):
                key = ", ".join(str(values[c.name]) for c in table.primary_key)
                raise self._place.damaged(f"row {key!r} of '{table.name}' is not as written")
        return rows


def _row(table: sa.Table, **row: Any) -> Write:
    return table, {**row, "crc": checksum(table, row)}


def _event(kind: str, payload: Any) -> Write:
    return _row(tables.events, at=time.time(), kind=kind, payload=dump(payload))


def _time(elapsed: float | None) -> list[Write]:
    return [] if elapsed is None else [_row(tables.meta, key="elapsed", value=dump(elapsed))]


def _listed(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)
